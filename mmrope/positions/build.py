"""Rows of segments to position IDs.

A batch is planned first (plan.py): where each segment begins. Then the ids of the asked slice are written, whole segments at a
time. Nothing here loops over tokens.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmrope.extras import needed_for
from mmrope.positions.families import family as find_family
from mmrope.positions.plan import Plan, plan
from mmrope.positions.rules import Family
from mmrope.positions.segments import (
    AUDIO,
    IMAGE,
    PAD,
    TEXT,
    VIDEO,
    Row,
    Segment,
    whole_grids,
)

Rows = Row | Sequence[Segment] | Sequence[Row] | Sequence[Sequence[Segment]]
"""One row, or a list of rows."""


@dataclass(frozen=True, eq=False, repr=False)
class Positions:
    """Position IDs of a batch, or of a slice of it, and what continuing it needs.

    Example:
        >>> from mmrope import Segment, position_ids
        >>> positions = position_ids([Segment.text(2), Segment.image(h=2, w=2), Segment.text(1)], "qwen2_vl")
        >>> positions.ids[:, 0].tolist()  # t, h, w of the row
        [[0, 1, 2, 2, 2, 2, 4], [0, 1, 2, 2, 3, 3, 4], [0, 1, 2, 3, 2, 3, 4]]
        >>> positions.next.tolist()  # the id that the next text token gets
        [5]
    """

    ids: np.ndarray
    """[A, B, S], one row of ids per axis of the family (t, h, w)."""
    mask: np.ndarray
    """[B, S] bool, True at real tokens."""
    next: np.ndarray
    """[B] the id that text after the row takes: decoding goes on there. int64; float32 where ids are fractional."""
    family: Family
    rows: tuple[Row, ...]
    start: int = 0
    """The token of the rows that the first column belongs to."""

    @property
    def text_ids(self) -> np.ndarray:
        """[B, S] int64, the place of each token among the real tokens of its row: the order that causal attention and caches
        go by, whatever the ids. Padding carries the family's `pad_value`."""
        before = [real_tokens(row, self.start) for row in self.rows]
        counted = self.mask.cumsum(axis=1, dtype=np.int64) + np.array(before, dtype=np.int64)[:, None] - 1  # [B, S]
        return np.where(self.mask, counted, self.family.pad_value)

    def torch(self, device: Any = None) -> dict[str, Any]:
        """`position_ids` [A, B, S], `attention_mask` [B, S] and `next_position` [B] as tensors on `device`: int64, and
        float32 where ids are fractional.

        Example:
            >>> from mmrope import Segment, position_ids
            >>> tensors = position_ids([Segment.text(4)], "qwen2_vl").torch()
            >>> {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            {'position_ids': (3, 1, 4), 'attention_mask': (1, 4), 'next_position': (1,)}
        """
        with needed_for("Positions.torch"):
            import torch

        dtype = torch.float32 if self.family.fractional else torch.int64
        arrays = {
            "position_ids": (self.ids, dtype),
            "attention_mask": (self.mask, torch.int64),
            "next_position": (self.next, dtype),
        }
        return {name: torch.as_tensor(array).to(device=device, dtype=kind) for name, (array, kind) in arrays.items()}

    def __repr__(self) -> str:
        axes, batch, length = self.ids.shape
        part = f" from {self.start}" if self.start else ""
        return (
            f"Positions({self.family}: {axes} axes {self.family.axes}, {batch} x {length} tokens{part}, "
            f"{self.ids.dtype}, next {self.next.tolist()})"
        )


def position_ids(
    rows: Rows,
    family: Family | str,
    *,
    start: int = 0,
    stop: int | None = None,
    dtype: Any = None,
    out: np.ndarray | None = None,
) -> Positions:
    """The position IDs of one row or of a batch of rows of equal length.

    Args:
        rows: a list of Segments, a Row, or a list of these (one per batch row).
        family: a Family, or its name.
        start, stop: the slice of tokens to compute, as of a list of `range(length)`; any slice equals the same slice of
            the whole. `stop` may pass the end: text goes on there at `next`, so that n decoding steps are
            `start=length, stop=length + n`.
        dtype: int64 (default) or int32; float32 (default) or float64 for families whose ids are fractional.
        out: an array [A, B, stop - start] to write into, of such a dtype.

    Returns:
        Positions, with `ids` [A, B, stop - start], `mask` [B, stop - start] and `next` [B]. The last does not depend on
        the slice. Padding keeps its place and carries `family.pad_value`.

    Raises:
        ValueError: rows that the family cannot place, rows of unequal length, a slice out of order, an `out` of another
            shape, ids that do not fit the dtype.

    Example:
        >>> from mmrope import Segment, position_ids
        >>> row = [Segment.text(2), Segment.image(h=2, w=2), Segment.text(2)]
        >>> position_ids(row, "qwen2_vl").ids[:, 0].tolist()
        [[0, 1, 2, 2, 2, 2, 4, 5], [0, 1, 2, 2, 3, 3, 4, 5], [0, 1, 2, 3, 2, 3, 4, 5]]
        >>> position_ids(row, "qwen2_vl", start=8, stop=10).ids[:, 0].tolist()  # the next two decode steps
        [[6, 7], [6, 7], [6, 7]]
    """
    family = find_family(family)
    batch = batch_of(rows)
    p = plan(batch, family)
    length = _common_length(p.lengths)
    start, stop = _slice(start, stop, length)
    ids = output(out, dtype, (len(family.axes), len(batch), stop - start), family)
    if ids.dtype in LARGEST:
        check_fits(p.bounds(start, stop), ids.dtype)
    mask = np.ones(ids.shape[1:], dtype=bool)  # [B, S]
    ramp = shared_ramp(ids, len(batch), stop - start)
    for b in range(len(batch)):
        write_row(ids[:, b], mask[b], p, b, start, stop, ramp)
    return Positions(
        ids, mask, np.array(p.next, dtype=ids.dtype if family.fractional else family.dtype), family, tuple(batch), start
    )


def real_tokens(row: Row, stop: int | None = None) -> int:
    """How many of the first `stop` tokens of a row, or of all, are no padding; past its end all are none."""
    lengths = row.lengths
    length = int(lengths.sum())
    stop = length if stop is None else stop
    before = np.minimum(lengths, np.maximum(stop - (lengths.cumsum() - lengths), 0))
    return int(before[row.kind != PAD].sum()) + max(stop - length, 0)


# the largest ids that a narrow dtype holds: int32 would wrap past it, float32 give neighbours one number
LARGEST = {np.dtype(np.int32): (2**31 - 1, "int64"), np.dtype(np.float32): (2**24, "float64")}


def check_fits(bounds: tuple[float, float], dtype: np.dtype) -> None:
    """Refuses ids that a narrow dtype cannot tell apart."""
    largest, wider = LARGEST[dtype]
    for bound in bounds:
        if abs(bound) > largest:
            raise ValueError(f"position id {bound:,} does not fit {dtype}; ask for {wider} (dtype=, or the dtype of out)")


# --- writing ids ------------------------------------------------------------------------------------------------------


def write_row(ids: np.ndarray, mask: np.ndarray, p: Plan, b: int, start: int, stop: int, ramp: np.ndarray) -> None:
    """Writes the tokens start .. stop of row b of a plan: ids [A, stop - start], mask [stop - start]. `ramp` holds the numbers
    from 0 up, as many as there are."""
    begin, end, length, plain = p.cuts[b], p.cuts[b + 1], p.lengths[b], p.plain
    if start < length:
        if start > 0:
            begin += int(np.searchsorted(p.offset[begin:end], start, side="right")) - 1
        if stop < length:
            end = begin + int(np.searchsorted(p.offset[begin:end], stop, side="left"))
        heads, counts = _series(p, begin, end)
        numbers = range(begin, end) if isinstance(heads, slice) else heads.tolist()
        columns = (p.kind[heads], p.grid[heads], p.offset[heads], p.first[heads])
        for i, count, kind, (t, h, w), offset, first in zip(numbers, counts, *(c.tolist() for c in columns), strict=False):
            n, at = t * h * w, offset - start
            if count > 1:
                last = i + 2 * count - 2
                if at >= 0 and p.offset[last] + n <= stop:
                    _write_series(ids, p, i, count, start)
                else:  # cut by the slice
                    for j in range(i, last + 1, 2):
                        _write_part(ids, mask, p, j, start, stop)
            elif at < 0 or offset + n > stop:
                _write_part(ids, mask, p, i, start, stop)
            elif kind in (TEXT, AUDIO):
                ids[:, at : at + n] = _counting(first, n, ramp)
            elif kind == IMAGE and plain:  # the usual case: as _write_grids has it, in a third of the time
                grid, line = ids[:, at : at + n].reshape(3, h, w), _counting(first, max(h, w), ramp)  # [3, h, w], a view
                grid[0], grid[1], grid[2] = first, line[:h, None], line[:w]
            elif kind == PAD:
                ids[:, at : at + n] = p.family.pad_value
                mask[at : at + n] = False
            elif i in p.tables:
                ids[:, at : at + n] = p.tables[i]
            else:
                _write_grids(
                    ids[:, at : at + n].reshape(len(ids), t, h, w), p, i, first, 0
                )  # a view: splits the last dimension
    if stop > length:
        lo = max(start, length)
        ids[:, lo - start :] = np.arange(lo - length, stop - length) + p.next[b]


def shared_ramp(ids: np.ndarray, rows: int, tokens: int) -> np.ndarray:
    """The numbers from 0 up, which rows share; for a few it does not pay."""
    return np.arange(tokens if rows >= 4 else 0, dtype=_working(ids))


def _series(p: Plan, begin: int, end: int) -> tuple[Any, Iterable[int]]:
    """The heads of series, and how many each has: every other segment for as long as they are alike and equally far apart. The
    frames of a video and the time stamps between them are two such series; elsewhere each segment is a series of its own."""
    if end - begin < 64 or p.tables or p.ordinal is not None:
        return slice(begin, end), itertools.repeat(1)
    kind, grid, offset = p.kind[begin:end], p.grid[begin:end], p.offset[begin:end]
    distance = offset[2:] - offset[:-2]
    alike = (kind[2:] == kind[:-2]) & (grid[2:] == grid[:-2]).all(axis=1) & (kind[2:] != PAD) & (kind[2:] != VIDEO)
    alike[2:] &= ~alike[:-2] | (distance[2:] == distance[:-2])
    heads, counts = [], []
    for parity in (0, 1):
        follows = alike[parity::2]  # whether segment parity + 2, parity + 4, ... goes on with a series
        at = np.append(0, np.flatnonzero(~follows) + 1)
        heads.append(begin + parity + 2 * at)
        counts.append(np.diff(at, append=len(follows) + 1))
    return np.concatenate(heads), np.concatenate(counts).tolist()


def _write_part(ids: np.ndarray, mask: np.ndarray, p: Plan, i: int, start: int, stop: int) -> None:
    """Writes the tokens of segment i that are in the slice start .. stop of its row, by way of whole temporal grids."""
    (t, h, w), offset, first = p.grid[i].tolist(), int(p.offset[i]) - start, p.first[i].item()
    lo, hi = max(0, -offset), min(t * h * w, stop - start - offset)  # of the segment's tokens
    to, kind = ids[:, offset + lo : offset + hi], p.kind[i]
    if kind in (TEXT, AUDIO):
        to[:] = _counting(first, hi, np.arange(0, dtype=_working(ids)))[lo:]
    elif kind == PAD:
        to[:] = p.family.pad_value
        mask[offset + lo : offset + hi] = False
    elif i in p.tables:
        to[:] = p.tables[i][:, lo:hi]
    else:
        t0, t1 = lo // (h * w), -(-hi // (h * w))  # the temporal grids that the slice touches
        whole = np.empty((len(ids), t1 - t0, h, w), dtype=ids.dtype)
        _write_grids(whole, p, i, first, t0)
        to[:] = whole.reshape(len(ids), -1)[:, lo - t0 * h * w : hi - t0 * h * w]


def _write_series(ids: np.ndarray, p: Plan, head: int, count: int, start: int) -> None:
    """Writes the segments head, head + 2, ...: `count` of them, alike and equally far apart, all inside the slice."""
    _, h, w = p.grid[head].tolist()
    n, offset, distance = h * w, int(p.offset[head]) - start, int(p.offset[head + 2] - p.offset[head])
    first = p.first[head : head + 2 * count : 2].astype(_working(ids))
    end = offset + distance * (count - 1)  # the last has no whole distance after it, so it is written alone
    parts = ids[:, offset:end].reshape(len(ids), count - 1, distance)[..., :n], ids[:, None, end : end + n]
    for to, at in zip(parts, (first[:-1], first[-1:]), strict=True):
        if p.kind[head] == TEXT or p.kind[head] == AUDIO:
            to[:] = at[:, None] + np.arange(n, dtype=first.dtype)
        else:
            _write_grids(to.reshape(len(ids), len(at), h, w), p, head, at[:, None, None], 0)


def _write_grids(to: np.ndarray, p: Plan, i: int, first: Any, t0: int) -> None:
    """Writes temporal grids t0, t0 + 1, ... of segment i into `to` [A, grids, h, w], or one grid each of several segments like
    it, whose first ids are `first` [segments, 1, 1]."""
    family, (n, h, w), dtype = p.family, to.shape[1:], _working(to)
    time, origin = first, first if family.origin == "next" else 0
    if p.kind[i] == VIDEO:
        special = p.special.get(i)
        step = family.steps(np.arange(t0, t0 + n), p.seconds[i], special and special.times)[:, None, None]
        time = first + step
        origin = origin + step if family.couple else origin
    for a, axis in enumerate(family.axes):
        if axis == "t":
            to[a] = time
        elif axis == "h" or axis == "w":
            size = h if axis == "h" else w
            base = origin - (size - 1) // 2 if family.center else origin
            if isinstance(base, int):
                line = np.arange(base, base + size, dtype=dtype)
                line = line[:, None] if axis == "h" else line
                # a whole grid, copied many times, is faster than its rows
                to[a] = line if n == 1 else np.array(np.broadcast_to(line, (h, w)), order="C")
            else:
                line = np.arange(size, dtype=dtype)
                to[a] = base + (line[:, None] if axis == "h" else line)
        elif axis == "p":
            to[a] = _in_order(first, t0 * h * w, to[a], family)
        else:
            assert p.ordinal is not None, axis
            to[a] = p.ordinal[i]


def _in_order(first: Any, begin: int, to: np.ndarray, family: Family) -> np.ndarray:
    """The ids of vision tokens, from the `begin`th on, that are counted one after the other: like `to`, or one grid of it."""
    _, h, w = to.shape
    n = to.size if np.ndim(first) == 0 else h * w
    if family.stride == 1:
        return first + np.arange(begin, begin + n).reshape(-1, h, w)
    # the first is a stride after the last id of the text, not a whole one
    return (first - 1) + (family.stride or 0) * np.arange(begin + 1, begin + n + 1).reshape(-1, h, w)


def _counting(first: Any, n: int, ramp: np.ndarray) -> np.ndarray:
    """first, first + 1, ..., n of them; fractions are rounded once, when they are stored."""
    if isinstance(first, float):
        return first + np.arange(n)
    return ramp[first : first + n] if 0 <= first <= len(ramp) - n else np.arange(first, first + n, dtype=ramp.dtype)


def _working(ids: np.ndarray) -> Any:
    """What ids are computed in: their own integers, or float64, whose sums are rounded once, when they are stored."""
    return ids.dtype if ids.dtype.kind == "i" else np.float64


# --- arguments --------------------------------------------------------------------------------------------------------


def batch_of(rows: Rows) -> list[Row]:
    """One row or a list of rows, as a list of Rows."""
    if isinstance(rows, Row):
        return [rows]
    if not isinstance(rows, Iterable) or isinstance(rows, (str, dict)):
        raise ValueError(f"rows must be a list of Segments or a list of such lists, got {type(rows).__name__}")
    items: list[Any] = list(rows)
    if items and all(isinstance(item, Sequence) and not isinstance(item, str) for item in items):
        return [Row.of(item) for item in items]
    return [Row.of(items)]


def _common_length(lengths: list[int]) -> int:
    if len(set(lengths)) > 1:
        raise ValueError(
            f"rows have {', '.join(map(str, lengths))} tokens; a batch needs rows of equal length: "
            f"fill up to {max(lengths)} with Segment.pad(n), before the row or after it"
        )
    return lengths[0]


def _slice(start: int, stop: int | None, length: int) -> tuple[int, int]:
    try:
        start, stop = operator.index(start), length if stop is None else operator.index(stop)
    except TypeError:
        raise ValueError(f"start and stop must be whole numbers, got start={start!r}, stop={stop!r}") from None
    if not 0 <= start <= stop:
        raise ValueError(f"start and stop must satisfy 0 <= start <= stop, got start={start}, stop={stop} for {length} tokens")
    return start, stop


def output(out: np.ndarray | None, dtype: Any, shape: tuple[int, ...], family: Family) -> np.ndarray:
    """`out`, if it is of this shape and can hold the ids, or a new array."""
    wanted = None if dtype is None else np.dtype(dtype)
    if out is None:
        wanted = np.dtype(family.dtype) if wanted is None else wanted
    elif not isinstance(out, np.ndarray) or out.shape != shape:
        raise ValueError(
            f"out must be a numpy array of shape {shape} (axes, rows, tokens), got {getattr(out, 'shape', type(out))}"
        )
    elif wanted not in (None, out.dtype):
        raise ValueError(f"dtype={wanted} and out of {out.dtype} disagree; leave one of them out")
    else:
        wanted = out.dtype
    if family.fractional and wanted not in (np.float32, np.float64):
        raise ValueError(f"{family} has fractional position ids: they are float32 or float64, not {wanted}")
    if not family.fractional and wanted not in (np.int64, np.int32):
        raise ValueError(f"position ids are int64 or int32, not {wanted}")
    return np.empty(shape, dtype=wanted) if out is None else out


# --- vision towers ----------------------------------------------------------------------------------------------------


def patch_position_ids(
    grid_thw: Any,
    *,
    axes: Literal["hw", "thw"] = "hw",
    order: Literal["raster", "blocks"] = "blocks",
    merge: int = 2,
    offset: int = 0,
    normalize: Literal["separate", "max", "min"] | None = None,
) -> np.ndarray:
    """The position IDs of packed patches, for the rotary of a vision tower.

    Args:
        grid_thw: patch grids [n, 3], one row an image or video, as `image_grid_thw` holds them.
        axes: "hw", or "thw" with the temporal grid in front. Frames of a video repeat the same h and w.
        order: "raster", row by row; "blocks", the merge x merge patches of a token next to each other, as the Qwen
            processors emit them.
        merge: side of a merge block, for order="blocks".
        offset: the id of the first row and column (1 where 0 is a class token's).
        normalize: coordinates of the patches' centres from -1 to 1 instead (DINOv3): of h and w each by itself ("separate"), or
            of the longer ("max") or the shorter side ("min"), so that a patch is square.

    Returns:
        [A, P] int64, float32 if normalized; P = the number of patches of all grids together.

    Raises:
        ValueError: unknown axes, order or normalization, or a grid that the merge size does not divide.

    Example:
        >>> from mmrope import patch_position_ids
        >>> patch_position_ids([[1, 2, 4]], merge=2).tolist()  # h and w of one image of 2 x 4 patches
        [[0, 0, 1, 1, 0, 0, 1, 1], [0, 1, 0, 1, 2, 3, 2, 3]]
        >>> patch_position_ids([[1, 2, 4]], order="raster").tolist()
        [[0, 0, 0, 0, 1, 1, 1, 1], [0, 1, 2, 3, 0, 1, 2, 3]]
    """
    if axes not in ("hw", "thw") or order not in ("raster", "blocks"):
        raise ValueError(f"axes must be 'hw' or 'thw' and order 'raster' or 'blocks', got axes={axes!r}, order={order!r}")
    grids = whole_grids(grid_thw, "grid_thw")
    if merge < 1:
        raise ValueError(f"merge must be at least 1, got {merge}")
    if normalize not in (None, "separate", "max", "min") or (normalize and (offset or axes != "hw")):
        raise ValueError(
            f"normalize must be 'separate', 'max' or 'min', of axes 'hw' without an offset, got normalize={normalize!r}, "
            f"axes={axes!r}, offset={offset}"
        )
    m = merge if order == "blocks" else 1
    parts = [np.empty((len(axes), 0), dtype=np.float32 if normalize else np.int64)]
    for n, (t, h, w) in enumerate(grids.tolist()):
        if min(t, h, w) < 1 or h % m or w % m:
            raise ValueError(
                f"patch grid {n} is {t} x {h} x {w}; order='blocks' with merge={m} needs h and w that are multiples of {m}"
            )
        thw = np.indices((t, h, w)).reshape(3, t, h // m, m, w // m, m)
        ids = thw.swapaxes(3, 4).reshape(3, t * h * w)[-len(axes) :]  # [A, t * h * w]
        if normalize:
            size = {"separate": (h, w), "max": (max(h, w),) * 2, "min": (min(h, w),) * 2}[normalize]
            parts.append(((ids + 0.5) / np.array(size)[:, None] * 2 - 1).astype(np.float32))
        else:
            parts.append(ids + offset)
    return np.concatenate(parts, axis=1)  # [A, P]
