"""Position IDs for human eyes: what each segment got, and where text goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmrope.positions.build import Positions, position_ids
from mmrope.positions.plan import plan
from mmrope.positions.segments import Segment


@dataclass(frozen=True)
class Placed:
    """A segment and the ids it got."""

    segment: Segment
    start: int
    """Its first token in the row."""
    ids: dict[str, tuple[float, float]]
    """For each axis the smallest and the largest id; empty for padding and for empty text."""
    next: float
    """The id that text after it starts at."""


def placed(positions: Positions, row: int = 0) -> list[Placed]:
    """Each segment of a row, with its ids, whatever slice of the row `positions` covers."""
    family, segments = positions.family, positions.rows[row]
    p = plan([segments], family)
    ids = positions.ids[:, row] if _is_whole(positions, p.lengths[0]) else position_ids(segments, family).ids[:, 0]
    following = [*p.first[1:].tolist(), p.next[0]]
    items = []
    for segment, start, after in zip(segments, p.offset.tolist(), following, strict=True):
        mine = ids[:, start : start + segment.length]
        has_ids = segment.kind != "pad" and segment.length > 0
        bounds = zip(mine.min(axis=1).tolist(), mine.max(axis=1).tolist(), strict=True) if has_ids else ()
        items.append(Placed(segment, start, dict(zip(family.axes, bounds, strict=False)), after))
    return items


def _is_whole(positions: Positions, length: int) -> bool:
    return positions.start == 0 and positions.ids.shape[-1] >= length


def explain(positions: Positions, *, labels: Sequence[Sequence[str]] | None = None) -> str:
    """A table of every segment: its tokens, its token grid, its ids on each axis (first..last), and the id that the text
    after it starts at.

    Args:
        positions: what `position_ids` returned.
        labels: for each row what its segments hold, for a last column.
    """
    tables = []
    for b in range(len(positions.rows)):
        items = placed(positions, b)
        lines = [
            ("tokens", "kind", "grid", *positions.family.axes, "next"),
            *(_cells(item, positions.family.axes) for item in items),
        ]
        if labels:
            lines = [(*line, label) for line, label in zip(lines, ["content", *labels[b]], strict=True)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        length = sum(item.segment.length for item in items)
        title = f"row {b}, " if len(positions.rows) > 1 else ""
        table = [f"{title}{positions.family}: {length} tokens, text goes on at {_number(positions.next[b])}"]
        table += ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        tables.append("\n".join(table))
    return "\n\n".join(tables)


def _cells(item: Placed, axes: str) -> tuple[str, ...]:
    tokens = _range(item.start, item.start + item.segment.length - 1) if item.segment.length else "-"
    ids = [_range(*item.ids[axis]) if axis in item.ids else "-" for axis in axes]
    return (tokens, item.segment.kind.replace("_", " "), _size(item.segment), *ids, _number(item.next))


def _size(segment: Segment) -> str:
    """The token grid of a segment, and what else there is to it."""
    (t, h, w), kind = segment.grid, segment.kind
    size = f"{h} x {w}" if kind in ("image", "frame", "canvas") else str(w)
    if kind in ("video", "audio_in_video"):
        size = f"{t} x {h} x {w}"
    if segment.seconds_per_grid is not None:
        size += f", {segment.seconds_per_grid:g} s apart"
    if kind == "audio_in_video":
        size += f", sound {segment.audio_tokens}"
    return size + (f", {len(segment.slices)} crops" if segment.slices else "")


def _range(first: float, last: float) -> str:
    return _number(first) if first == last else f"{_number(first)}..{_number(last)}"


def _number(x: float) -> str:
    return str(int(x)) if x == int(x) else f"{x:.2f}"
