"""Position IDs side by side and for human eyes: what each segment got, where two tables differ, a hash of each row."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmrope.positions.batches import Packed
from mmrope.positions.build import Positions, position_ids
from mmrope.positions.plan import plan
from mmrope.positions.segments import Row, Segment, token_mask
from mmrope.positions.shards import running_totals


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
    following = [*p.first.tolist(), p.next[0]][1:]  # also of a row without segments
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

    Example:
        >>> from mmrope import Segment, explain, position_ids
        >>> print(explain(position_ids([Segment.text(2), Segment.image(h=2, w=3), Segment.text(1)], "qwen2_vl")))
        qwen2_vl: 9 tokens, text goes on at 6
        tokens  kind   grid   t     h     w     next
        0..1    text   2      0..1  0..1  0..1  2
        2..7    image  2 x 3  2     2..3  2..4  5
        8       text   1      5     5     5     6
    """
    if not isinstance(positions, Positions):
        raise ValueError(f"explain takes what position_ids returned, which knows its segments, got {type(positions).__name__}")
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


# --- two tables -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Where two tables of ids first differ, by row, then by token.

    Example:
        >>> from mmrope import Segment, diff, position_ids
        >>> row = [Segment.text(2), Segment.video(t=4, h=1, w=1), Segment.text(1)]
        >>> found = diff(position_ids(row, "qwen2_vl"), position_ids(row, "qwen2_vl@transformers-5.23"))
        >>> found.token, found.axis, found.a, found.b
        (6, 't', 6, 3)
    """

    row: int
    token: int
    axis: str
    """Its letter, or the number of its row of ids where no family says it."""
    a: float
    b: float
    tokens: int
    """How many tokens differ."""
    of: int
    """How many were compared."""
    segment: int | None = None
    """The segment of the row that the token is of, where that is known."""
    what: Segment | None = None

    def __str__(self) -> str:
        where = f"row {self.row}, token {self.token}"
        if self.segment is not None:
            where += f" (segment {self.segment}, {self.what!r})"
        return f"{self.tokens:,} of {self.of:,} tokens differ, first {where}: {self.axis} is {self.a:.9g} and {self.b:.9g}"


def diff(a: Positions | Packed | Any, b: Positions | Packed | Any, *, mask: Any = None) -> Difference | None:
    """The first difference between two tables of position IDs, by row and token; None if there is none.

    Args:
        a, b: what `position_ids` or `pack` returned, or arrays [A, B, S] or [A, T]. Where one of them says what is padding, it
            does not count unless the other has a token there.
        mask: [B, S], True or 1 at the tokens that count; the others do not.

    Raises:
        ValueError: shapes that cannot be compared.

    Example:
        >>> from mmrope import Segment, diff, position_ids
        >>> row = [Segment.text(2), Segment.video(t=4, h=1, w=1), Segment.text(1)]
        >>> print(diff(position_ids(row, "qwen2_vl"), position_ids(row, "qwen2_vl@transformers-5.23")))
        1 of 7 tokens differ, first row 0, token 6 (segment 2, Segment.text(1)): t is 6 and 3
    """
    (ids_a, mask_a), (ids_b, mask_b) = _table(a), _table(b)
    if ids_a.shape != ids_b.shape:
        raise ValueError(
            f"a has shape {list(ids_a.shape)} and b {list(ids_b.shape)} (axes, rows, tokens): "
            "only tables of the same tokens and axes can be compared; a row of text positions in front is not an axis"
        )
    masks = [m for m in (mask_a, mask_b) if m is not None]
    real = np.logical_or.reduce(masks) if masks else np.ones(ids_a.shape[1:], dtype=bool)
    if mask is not None:
        real = real & token_mask(np.atleast_2d(mask), ids_a.shape[1:], "mask")
    wrong = (ids_a != ids_b) & real  # [A, B, S]
    if not wrong.any():
        return None
    tokens = np.logical_or.reduce(wrong, axis=0)  # [B, S]
    row, token = (int(i) for i in np.unravel_index(int(np.argmax(tokens)), tokens.shape))
    axis = int(np.argmax(wrong[:, row, token]))
    values = (x[axis, row, token].item() for x in (ids_a, ids_b))
    found = Difference(row, token, str(axis), *values, tokens=int(tokens.sum()), of=int(real.sum()))
    for x in (a, b):
        if isinstance(x, Positions):
            token, segments = token + x.start, x.rows[row]
            segment = segment_of(segments, token)
            what = None if segment is None else segments[segment]
            return dataclasses.replace(found, token=token, axis=x.family.axes[axis], segment=segment, what=what)
        if isinstance(x, Packed):
            row = int(np.searchsorted(x.cu_seqlens_padded, token, side="right")) - 1
            token -= int(x.cu_seqlens_padded[row])
            return dataclasses.replace(found, row=row, token=token, axis=x.family.axes[axis])
    return found


def _table(x: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """ids [A, B, S], and which tokens are real [B, S], where that is known."""
    if isinstance(x, Positions):
        return x.ids, x.mask
    if isinstance(x, Packed):
        return x.ids[:, None], x.mask[None]
    ids = np.asarray(x)
    if ids.ndim not in (2, 3) or ids.dtype.kind not in "iuf":
        raise ValueError(f"position ids must be numbers [A, B, S] or [A, T], got {ids.dtype} {list(ids.shape)}")
    return (ids if ids.ndim == 3 else ids[:, None]), None


def segment_of(row: Row, token: int) -> int | None:
    """The segment that a token of the row is of; None past its end."""
    segment = int(np.searchsorted(row.lengths.cumsum(), token, side="right"))
    return segment if segment < len(row) else None


def fingerprint(
    positions: Positions | Packed | Any, *, mask: Any = None, cu_seqlens: Sequence[int] | np.ndarray | None = None
) -> list[str]:
    """A hash of the ids of each row: equal if and only if the ids of its real tokens are, whatever its padding, its place in a
    batch or a pack, and its dtype. For trainers and servers to compare what they compute.

    Args:
        positions: what `position_ids` or `pack` returned; or what another program computed, [A, B, S] or [A, T], without a row
            of text positions in front.
        mask: of an array, [B, S], True or 1 at real tokens; all are by default.
        cu_seqlens: of an array that is packed, where each sequence begins, and the end.

    It is the first 16 hexadecimal digits of the SHA-256 of: the number of axes as one byte, then axis by axis the ids of the
    real tokens as little-endian float64; fractional ids are rounded to float32 first.

    Example:
        >>> from mmrope import Segment, position_ids
        >>> from mmrope.positions import fingerprint
        >>> short, padded = [Segment.text(3)], [Segment.pad(5), Segment.text(3)]
        >>> fingerprint(position_ids(short, "qwen2_vl"))
        ['f93b2e2a62ccef37']
        >>> fingerprint(position_ids(padded, "qwen2_vl"))
        ['f93b2e2a62ccef37']
    """
    ids, real = _table(positions)
    cuts = [0, ids.shape[2]]
    if isinstance(positions, Packed):
        cuts = positions.cu_seqlens_padded.tolist()
    elif cu_seqlens is not None:
        cuts = running_totals(cu_seqlens).tolist()
    if (ids.shape[1] != 1 and len(cuts) > 2) or cuts[-1] != ids.shape[2]:
        raise ValueError(f"cu_seqlens end at {cuts[-1]}, but ids {list(ids.shape)} are no pack of so many tokens")
    if mask is not None:
        stated = token_mask(np.atleast_2d(mask), ids.shape[1:], "mask")
        real = stated if real is None else real & stated
    real = np.ones(ids.shape[1:], dtype=bool) if real is None else real
    return [_hash(ids[:, b, a:z][:, real[b, a:z]]) for b in range(ids.shape[1]) for a, z in itertools.pairwise(cuts)]


def _hash(ids: np.ndarray) -> str:
    exact = ids.astype(np.float32).astype("<f8") if ids.dtype.kind == "f" else ids.astype("<f8")
    return hashlib.sha256(bytes([len(ids)]) + exact.tobytes()).hexdigest()[:16]
