"""Position IDs for human eyes: what each segment got, and where text goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmrope.positions.build import Positions, plan
from mmrope.positions.segments import Segment


@dataclass(frozen=True)
class Placed:
    """A segment and the ids it got."""

    segment: Segment
    start: int
    """Its first token in the row."""
    ids: dict[str, tuple[int, int]]
    """For each axis the smallest and the largest id; empty for padding and for empty text."""
    next: int
    """The id that text after it starts at."""


def placed(positions: Positions, row: int = 0) -> list[Placed]:
    """Each segment of a row, with its ids, whatever slice of the row `positions` covers."""
    p = plan(positions.rows[row], positions.family)
    items = []
    for i, segment in enumerate(p.row):
        first, last = int(p.first[i]), p.extent[:, i].tolist()
        has_ids = segment.kind != "pad" and segment.length > 0
        ids = {axis: (first, first + step) for axis, step in zip(positions.family.axes, last, strict=True)}
        items.append(Placed(segment, int(p.offset[i]), ids if has_ids else {}, int(p.first[i + 1])))
    return items


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
        table = [f"{title}{positions.family}: {length} tokens, text goes on at {int(positions.next[b])}"]
        table += ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        tables.append("\n".join(table))
    return "\n\n".join(tables)


def _cells(item: Placed, axes: str) -> tuple[str, ...]:
    (t, h, w), kind = item.segment.grid, item.segment.kind
    tokens = _range(item.start, item.start + item.segment.length - 1) if item.segment.length else "-"
    grid = {"image": f"{h} x {w}", "frame": f"{h} x {w}", "video": f"{t} x {h} x {w}"}.get(kind, str(w))
    if item.segment.seconds_per_grid is not None:
        grid += f", {item.segment.seconds_per_grid:g} s apart"
    ids = [_range(*item.ids[axis]) if axis in item.ids else "-" for axis in axes]
    return (tokens, kind, grid, *ids, str(item.next))


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}..{last}"
