"""Rows of segments to position IDs.

A row is planned first, all segments at once: how far each moves the next id, hence where each begins. Then the ids of
the asked slice are written, whole segments at a time. Nothing here loops over tokens.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmrope.positions.families import Advance, Family, Time
from mmrope.positions.families import family as find_family
from mmrope.positions.segments import FRAME, PAD, TEXT, VIDEO, Row, Segment, whole_grids

Rows = Row | Sequence[Segment] | Sequence[Row] | Sequence[Sequence[Segment]]
"""One row, or a list of rows."""


@dataclass(frozen=True, eq=False, repr=False)
class Positions:
    """Position IDs of a batch, or of a slice of it, and what continuing it needs."""

    ids: np.ndarray
    """[A, B, S], one row of ids per axis of the family (t, h, w)."""
    mask: np.ndarray
    """[B, S] bool, True at real tokens."""
    next: np.ndarray
    """[B] int64, the id that text after the row takes: decoding goes on there."""
    family: Family
    rows: tuple[Row, ...]
    start: int = 0
    """The token of the rows that the first column belongs to."""

    def torch(self, device: Any = None) -> dict[str, Any]:
        """`position_ids` [A, B, S], `attention_mask` [B, S] and `next_position` [B] as int64 tensors on `device`."""
        import torch

        arrays = {"position_ids": self.ids, "attention_mask": self.mask, "next_position": self.next}
        return {name: torch.as_tensor(array).to(device=device, dtype=torch.int64) for name, array in arrays.items()}

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
        dtype: int64 (default) or int32.
        out: an array [A, B, stop - start] to write into, int64 or int32.

    Returns:
        Positions, with `ids` [A, B, stop - start], `mask` [B, stop - start] and `next` [B]. The last does not depend on
        the slice. Padding keeps its place and carries `family.pad_value`.

    Raises:
        ValueError: rows that the family cannot place, rows of unequal length, a slice out of order, an `out` of another
            shape, ids that do not fit the dtype.
    """
    family = find_family(family)
    batch = _batch(rows)
    plans = [plan(row, family, f"row {b}, " if len(batch) > 1 else "") for b, row in enumerate(batch)]
    length = _common_length(plans)
    start, stop = _slice(start, stop, length)
    ids = _output(out, dtype, (len(family.axes), len(batch), stop - start))
    largest = max(p.largest(stop) for p in plans)
    if largest > np.iinfo(ids.dtype).max:
        raise ValueError(f"position id {largest:,} does not fit {ids.dtype}; ask for int64 (dtype=, or the dtype of out)")
    mask = np.ones(ids.shape[1:], dtype=bool)  # [B, S]
    for b, p in enumerate(plans):
        _write(ids[:, b], mask[b], p, family, start, stop)
    return Positions(ids, mask, np.array([p.next for p in plans], dtype=np.int64), family, tuple(batch), start)


# --- the rules that a family's row names ------------------------------------------------------------------------------

TIME_STEPS: dict[Time, Callable[[np.ndarray, np.ndarray, np.float32], np.ndarray]] = {
    "index": lambda i, seconds, rate: i,
    "constant": lambda i, seconds, rate: np.zeros_like(i),
    # the order of the float32 operations decides at integer boundaries (0.7 s, 0.3 s, ...), so it is part of the rule
    "seconds": lambda i, seconds, rate: _floor((i.astype(np.float32) * seconds.astype(np.float32)) * rate),
    "seconds_rate_first": lambda i, seconds, rate: _floor(
        i.astype(np.float32) * (seconds * np.float64(rate)).astype(np.float32)
    ),
}
"""(index i of a temporal grid, seconds per grid, ids per second) -> the ids that grid i lies after grid 0."""

ADVANCES: dict[Advance, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "max": lambda last_step, h, w: np.maximum(last_step, np.maximum(h, w) - 1) + 1,
    "spatial": lambda last_step, h, w: np.maximum(h, w),
}
"""(step of the last temporal grid, h, w) -> the ids from the start of a vision block to the text after it."""


def _floor(x: np.ndarray) -> np.ndarray:
    if not (x < 2**62).all():
        raise ValueError("a video's time ids go beyond int64: its seconds x ids per second x temporal grids are too large")
    return np.floor(x).astype(np.int64)


def _video_steps(family: Family, i: np.ndarray, seconds: float, times: tuple[float, ...] | None) -> np.ndarray:
    """Steps of the temporal grids `i` of one video."""
    rate = np.float32(family.ids_per_second or 0)
    if times is None or not family.uses_seconds:
        return TIME_STEPS[family.time](i, np.array(seconds), rate)
    since_first = np.array(times, dtype=np.float64)[i] - times[0]
    return _floor(since_first.astype(np.float32) * rate)


# --- planning a row ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Plan:
    """Where each segment of a row begins, as tokens and as ids: n segments, and an entry more for the end."""

    row: Row
    offset: np.ndarray
    """[n + 1] int64, the token that a segment begins at; the last entry is the row's length."""
    first: np.ndarray
    """[n + 1] int64, the id that a segment begins at; the last entry is `next`."""
    extent: np.ndarray
    """[3, n] int64, the largest step on t, h, w: a segment's ids on axis a are first .. first + extent[a]."""

    @property
    def length(self) -> int:
        return int(self.offset[-1])

    @property
    def next(self) -> int:
        return int(self.first[-1])

    def largest(self, stop: int) -> int:
        """The largest id among the tokens before `stop`, which may pass the end."""
        inside = self.first[:-1] + self.extent.max(axis=0)
        past = self.next + max(0, stop - self.length) - 1
        return max(int(inside.max(initial=0)), past, 0)


def plan(row: Row, family: Family, where: str = "") -> Plan:
    """Plans a row by the family's rules. `where` names the row in errors."""
    kind, (t, h, w) = row.kind, row.grid.T
    _check(row, family, where)
    is_text, is_pad = kind == TEXT, kind == PAD
    rate = np.float32(family.ids_per_second or 0)
    last_step = np.where(kind == VIDEO, TIME_STEPS[family.time](t - 1, np.nan_to_num(row.seconds), rate), 0)
    for i, times in row.times:
        last_step[i] = _video_steps(family, np.array([len(times) - 1]), 0.0, times)[0]
    advance = np.where(is_text, w, np.where(is_pad, 0, ADVANCES[family.advance](last_step, h, w)))
    text_extent = np.maximum(w - 1, 0)
    extent = np.stack(
        [np.where(is_pad, 0, np.where(is_text, text_extent, vision)) for vision in (last_step, h - 1, w - 1)]
    )  # [3, n]
    return Plan(row, _running_total(t * h * w), _running_total(advance), extent)


def _running_total(n: np.ndarray) -> np.ndarray:
    total = np.zeros(len(n) + 1, dtype=np.int64)
    np.cumsum(n, out=total[1:])
    return total


def _check(row: Row, family: Family, where: str) -> None:
    """Refuses segments that the family does not place."""
    for kind, refused, instead in (
        (
            VIDEO,
            family.split_frames,
            "list text (the time stamp) and Segment.frame alternately, one frame per temporal grid",
        ),
        (FRAME, not family.split_frames, "use Segment.video, or Segment.image for a picture on its own"),
    ):
        if refused and (row.kind == kind).any():
            i = int(np.argmax(row.kind == kind))
            splits = "splits videos into frames" if family.split_frames else "places videos whole"
            raise ValueError(f"{where}segment {i} is {row[i]!r}, but {family} {splits}: {instead}")
    if family.uses_seconds:
        untimed = (row.kind == VIDEO) & np.isnan(row.seconds)
        untimed[[i for i, _ in row.times]] = False
        if untimed.any():
            i = int(np.argmax(untimed))
            raise ValueError(
                f"{where}segment {i} is {row[i]!r}, but {family} places videos by time: state seconds_per_grid "
                "(temporal patch size / frames sampled per second) or times=[...]; there is no default"
            )


# --- writing ids ------------------------------------------------------------------------------------------------------


def _write(ids: np.ndarray, mask: np.ndarray, plan: Plan, family: Family, start: int, stop: int) -> None:
    """Writes the tokens start .. stop of a planned row: ids [A, stop - start], mask [stop - start]."""
    offset, first = plan.offset, plan.first
    begin = int(np.searchsorted(offset, start, side="right")) - 1
    end = int(np.searchsorted(offset, stop, side="left"))
    times = dict(plan.row.times)
    for i in range(begin, min(end, len(plan.row))):
        lo, hi = max(start, int(offset[i])), min(stop, int(offset[i + 1]))
        to, p = slice(lo - start, hi - start), int(first[i])
        lo, hi = lo - int(offset[i]), hi - int(offset[i])  # tokens of this segment
        kind = plan.row.kind[i]
        if kind == TEXT:
            ids[:, to] = np.arange(p + lo, p + hi)
        elif kind == PAD:
            ids[:, to] = family.pad_value
            mask[to] = False
        else:
            _t, h, w = plan.row.grid[i].tolist()
            t0, t1 = lo // (h * w), -(-hi // (h * w))  # the temporal grids that the slice touches
            i_t = np.arange(t0, t1)
            steps = _video_steps(family, i_t, plan.row.seconds[i], times.get(i)) if kind == VIDEO else i_t
            whole = hi - lo == (t1 - t0) * h * w
            block = ids[:, to] if whole else np.empty((3, (t1 - t0) * h * w), dtype=ids.dtype)
            grid = block.reshape(3, t1 - t0, h, w)  # a view: only the last axis is split
            grid[0] = (p + steps)[:, None, None]
            grid[1] = p + np.arange(h)[:, None]
            grid[2] = p + np.arange(w)
            if not whole:
                ids[:, to] = block[:, lo - t0 * h * w : hi - t0 * h * w]
    if stop > plan.length:
        lo = max(start, plan.length)
        ids[:, lo - start :] = np.arange(lo, stop) + (plan.next - plan.length)


# --- arguments --------------------------------------------------------------------------------------------------------


def _batch(rows: Rows) -> list[Row]:
    """One row or a list of rows, as a list of Rows."""
    if isinstance(rows, Row):
        return [rows]
    if not isinstance(rows, Iterable) or isinstance(rows, (str, dict)):
        raise ValueError(f"rows must be a list of Segments or a list of such lists, got {type(rows).__name__}")
    items: list[Any] = list(rows)
    if items and all(isinstance(item, Sequence) and not isinstance(item, str) for item in items):
        return [Row.of(item) for item in items]
    return [Row.of(items)]


def _common_length(plans: list[Plan]) -> int:
    lengths = [p.length for p in plans]
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


def _output(out: np.ndarray | None, dtype: Any, shape: tuple[int, int, int]) -> np.ndarray:
    wanted = None if dtype is None else np.dtype(dtype)
    if out is None:
        wanted = np.dtype(np.int64) if wanted is None else wanted
    elif not isinstance(out, np.ndarray) or out.shape != shape:
        raise ValueError(
            f"out must be a numpy array of shape {shape} (axes, rows, tokens), got {getattr(out, 'shape', type(out))}"
        )
    elif wanted not in (None, out.dtype):
        raise ValueError(f"dtype={wanted} and out of {out.dtype} disagree; leave one of them out")
    else:
        wanted = out.dtype
    if wanted not in (np.int64, np.int32):
        raise ValueError(f"position ids are int64 or int32, not {wanted}")
    return np.empty(shape, dtype=wanted) if out is None else out


# --- vision towers ----------------------------------------------------------------------------------------------------


def patch_position_ids(
    grid_thw: Any, *, axes: Literal["hw", "thw"] = "hw", order: Literal["raster", "blocks"] = "blocks", merge: int = 2
) -> np.ndarray:
    """The position IDs of packed patches, for the rotary of a vision tower.

    Args:
        grid_thw: patch grids [n, 3], one row an image or video, as `image_grid_thw` holds them.
        axes: "hw", or "thw" with the temporal grid in front. Frames of a video repeat the same h and w.
        order: "raster", row by row; "blocks", the merge x merge patches of a token next to each other, as the Qwen
            processors emit them.
        merge: side of a merge block, for order="blocks".

    Returns:
        [A, P] int64, P = the number of patches of all grids together.

    Raises:
        ValueError: unknown axes or order, or a grid that the merge size does not divide.
    """
    if axes not in ("hw", "thw") or order not in ("raster", "blocks"):
        raise ValueError(f"axes must be 'hw' or 'thw' and order 'raster' or 'blocks', got axes={axes!r}, order={order!r}")
    grids = whole_grids(grid_thw, "grid_thw")
    if merge < 1:
        raise ValueError(f"merge must be at least 1, got {merge}")
    m = merge if order == "blocks" else 1
    parts = [np.empty((len(axes), 0), dtype=np.int64)]
    for n, (t, h, w) in enumerate(grids.tolist()):
        if min(t, h, w) < 1 or h % m or w % m:
            raise ValueError(
                f"patch grid {n} is {t} x {h} x {w}; order='blocks' with merge={m} needs h and w that are multiples of {m}"
            )
        thw = np.indices((t, h, w)).reshape(3, t, h // m, m, w // m, m)
        parts.append(thw.swapaxes(3, 4).reshape(3, t * h * w)[-len(axes) :])  # [A, t * h * w]
    return np.concatenate(parts, axis=1)  # [A, P]
