"""Rows of segments to position IDs.

Each row is planned first: `plan` walks over its segments and says where each begins, as a token and as an id. Then `write_row`
writes the asked slice, whole segments at a time; the frames of a video with its time stamps are written at once. Both are a few
operations a segment: nothing here loops over tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np

from mmrope.extras import needed_for
from mmrope.positions.families import family as find_family
from mmrope.positions.rules import Family
from mmrope.positions.segments import Custom, Row, Segment, as_segment, frame_by_frame, whole_grids
from mmrope.positions.stated import LARGEST, MOST_AT_ONCE, choice, numbers, whole
from mmrope.positions.timing import EXACT, rounded
from mmrope.records import is_number, shown

Rows = Row | Sequence[Segment] | Sequence[Row] | Sequence[Sequence[Segment]]
"""One row, or a list of rows."""

_RAMP = np.arange(1 << 16)
"""The numbers from 0 up, read-only: most text is a slice of it."""
_RAMP.flags.writeable = False


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
    """[B] the id that text after the row takes: decoding continues there. int64; where ids are fractional of their dtype."""
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
        where ids are fractional of their dtype. On the CPU they share the memory of `ids` and `next`.

        Example:
            >>> from mmrope import Segment, position_ids
            >>> tensors = position_ids([Segment.text(4)], "qwen2_vl").torch()
            >>> {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            {'position_ids': (3, 1, 4), 'attention_mask': (1, 4), 'next_position': (1,)}
        """
        with needed_for("Positions.torch"):
            import torch

        arrays = {"position_ids": self.ids, "attention_mask": self.mask, "next_position": self.next}
        tensors = {name: torch.as_tensor(array) for name, array in arrays.items()}
        return {
            name: tensor.to(device=device, dtype=tensor.dtype if tensor.is_floating_point() else torch.int64)
            for name, tensor in tensors.items()
        }

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
            shape, ids (or, of fractional families, the next id) that do not fit the dtype: float32 gives whole ids past 2^24
            the number of a neighbour.

    Example:
        >>> from mmrope import Segment, position_ids
        >>> row = [Segment.text(2), Segment.image(h=2, w=2), Segment.text(2)]
        >>> position_ids(row, "qwen2_vl").ids[:, 0].tolist()
        [[0, 1, 2, 2, 2, 2, 4, 5], [0, 1, 2, 2, 3, 3, 4, 5], [0, 1, 2, 3, 2, 3, 4, 5]]
        >>> position_ids(row, "qwen2_vl", start=8, stop=10).ids[:, 0].tolist()  # the next two decode steps
        [[6, 7], [6, 7], [6, 7]]
    """
    family = family if isinstance(family, Family) else find_family(family)
    batch = batch_of(rows)
    length = _common_length(batch)
    start, stop = (0, length) if stop is None and type(start) is int and start == 0 else _slice(start, stop, length)
    plans = plan(batch, family)
    ids = output(out, dtype, (len(family.axes), len(batch), stop - start), family)  # [A, B, stop - start]
    mask = np.empty(ids.shape[1:], dtype=bool)  # [B, stop - start]
    mask.fill(True)
    check_fits(plans, family, ids.dtype, start, stop)
    pad = family.pad_value
    if family.pad_value_without_vision is not None and all(kind in _BLIND for row in batch for kind, _, _, _ in row.items):
        pad = family.pad_value_without_vision
    for b, (placed, following, tokens) in enumerate(plans):
        write_row(ids[:, b], mask[b], placed, following, tokens, family, start, stop, pad=pad)
    following = np.array([following for _, following, _ in plans], ids.dtype if family.fractional else np.int64)  # [B]
    return Positions(ids, mask, following, family, tuple(batch), start)


def decode_position_ids(following: Any, family: Family | str, *, step: Any = 0, count: int = 1) -> np.ndarray:
    """The ids of a decode step: text after rows that were placed before, for servers that keep each request's `Positions.next`.

    Args:
        following: [B] `Positions.next` of the prompts.
        family: a Family, or its name.
        step: how many tokens have been generated already, a number or [B].
        count: tokens of this step; more than one when drafts are verified.

    Returns:
        [A, B, count] int64; where ids are fractional float32, or float64 where `following` is: what `position_ids(row, family,
        start=length + step, stop=length + step + count)` gives for each row.

    Raises:
        ValueError: what is no array of ids or of numbers of tokens [B], a count below 0, ids past 2^24 in float32, which gives
            them the number of a neighbour: ask `position_ids` for float64.

    Example:
        >>> from mmrope import Segment, position_ids
        >>> from mmrope.positions import decode_position_ids
        >>> rows = [[Segment.text(5)], [Segment.text(1), Segment.image(h=2, w=2)]]
        >>> prompts = position_ids(rows, "qwen2_vl")
        >>> decode_position_ids(prompts.next, "qwen2_vl", step=[2, 0])[0].tolist()  # t of the third and of the first new token
        [[7], [3]]
    """
    family = family if isinstance(family, Family) else find_family(family)
    first = numbers(
        following, "following", "iuf" if family.fractional else "iu", asked=f"the next id of each row [B], {family.dtype}"
    )
    done, count = numbers(step, "step", "iu"), whole(count, "count", least=0)
    if count * first.size > MOST_AT_ONCE:
        raise ValueError(f"count is {count:,} tokens of {first.size} rows, more than {MOST_AT_ONCE:,}: ask for fewer")
    if first.ndim != 1 or done.shape not in ((), first.shape):
        raise ValueError(
            f"following must be the next id of each row [B], {family.dtype}, and step a whole number or [B] of them, got "
            f"{first.dtype} {list(first.shape)} and {done.dtype} {list(done.shape)}"
        )
    if (least := done.item() if done.ndim == 0 else np.minimum.reduce(done, initial=0)) < 0:
        raise ValueError(f"step must be tokens that were generated, at least 0, got {least}")
    tokens = done[..., None] + np.arange(count)  # [B or 1, count]
    shape = (len(family.axes), len(first), count)
    if not family.fractional:
        ids = np.empty(shape, dtype=np.int64)
        ids[:] = first[:, None] + tokens  # [A, B, count]
        return ids
    exact = first[:, None] + tokens.astype(np.float64)  # [B, count], float64, which has no narrow sums
    ids = np.empty(shape, dtype=first.dtype if first.dtype == np.float64 else np.float32)
    largest = np.abs(exact).max(initial=0)
    if not largest < LARGEST:  # nor NaN
        raise ValueError(f"following must be finite ids, below 2^62, got {shown(first)}")
    if largest > _HALVES:
        for bound in sorted(exact[:, [0, -1]].flat, key=abs, reverse=True):
            check_holds(bound, ids.dtype)
    ids[:] = exact  # [A, B, count]
    return ids


def real_tokens(row: Row, stop: int | None = None) -> int:
    """How many of the first `stop` tokens of a row, or of all, are no padding; past its end all are none."""
    stop, token, padding = row.length if stop is None else stop, 0, 0
    for kind, _, n, _ in row.items:
        if kind == "pad" and token < stop:
            padding += min(n, stop - token)
        token += n
    return stop - padding


# --- where segments begin ---------------------------------------------------------------------------------------------

Place = tuple[str, tuple[int, int, int], int, int, Any, Any, int]
"""(kind, grid, tokens, first token, first id, more, media before). More is of a video its last time step, its seconds per grid
and its times; of frames the text tokens and the ids from one to the next; of a "table", which a function placed, its ids."""
RowPlan = tuple[list[Place], Any, int]
"""Where the segments of a row are, the id at which text continues, and the tokens of the row."""

_LINES, _BLIND = ("text", "audio"), ("text", "pad", "audio", "custom")
_INSTEAD = {
    "video": "splits videos into frames: list text (the time stamp) and Segment.frame alternately, one frame per temporal grid",
    "frame": "places videos whole: use Segment.video, or Segment.image for a picture on its own",
}


def plan(rows: Sequence[Row], family: Family) -> list[RowPlan]:
    """Where every segment of a batch begins."""
    plans, media = [], 0
    for b, row in enumerate(rows):
        placed, following, count = _places(rows, b, family, media)
        plans.append((placed, following, row.length))
        media = count if family.ordinal == "batch" else 0
    return plans


def _places(rows: Sequence[Row], b: int, family: Family, media: int) -> tuple[list[Place], Any, int]:
    """Where the segments of row b are, the id at which text continues, and the media up to there."""
    row, place, exact = rows[b], family.place, not family.fractional
    alike = exact and "frame" not in place and "i" not in family.axes  # frames are written at once
    known = {"text", "pad", "custom", *family.media}
    made: list[Place] = []
    token, at = 0, 0 if exact else 0.0
    for item in row.items if alike else row.singles:
        kind, grid, n, more = item
        name = "frame" if kind == "frames" else kind
        extra: Any = None
        if name not in known:
            _refuse(rows, b, item, family, "")
        if kind == "text" or kind == "pad":
            step = n if kind == "text" else 0
            following = at + step if exact else rounded(at + rounded(step))
        elif kind == "custom" or kind in place:
            extra, following = _by_itself(rows, b, item, at, family)
            kind = "table"
        elif kind == "audio":
            following = at + n if exact else rounded(rounded(at + rounded(n - 1)) + 1)
        else:
            last = 0
            if kind == "video":
                extra = _clock(rows, b, item, family)
                last = family.steps(np.asarray(grid[0] - 1), *extra).item()
                extra = (last, *extra)
            elif family.stride is None and "p" in family.axes:
                _refuse(rows, b, item, family, _NO_STRIDE.format(family.key))
            extent = _extent(grid, n, last, family)  # how far the largest id that counts lies from the first
            following = at + extent + 1 if exact else rounded(rounded(at + rounded(extent)) + 1)
            if kind == "frames":
                _, h, w = grid
                extra = (more, _extent((1, h, w), h * w, 0, family) + 1 + more)
                following = at + grid[0] * extra[1] - more
        made.append((kind, grid, n, token, at, extra, media))
        media += name in ("image", "frame", "video")
        token += n
        at = following
    if not abs(at) < 2**62:
        raise ValueError(f"the ids of a row go up to {at:,}: they must stay below 2^62")
    return made, at, media


def _extent(grid: tuple[int, int, int], n: int, last: Any, family: Family) -> Any:
    """From where vision begins to its largest id that counts; `last` is its last time step."""
    _, h, w = grid
    if family.advance == "max":
        return max(h - 1, w - 1, last)
    if family.advance == "spatial":
        return max(h, w) - 1
    if family.advance == "time":
        return last
    return math.ceil(n * (family.stride or 0)) - 1


def _clock(rows: Sequence[Row], b: int, item: Any, family: Family) -> tuple[float | None, tuple[float, ...] | None]:
    """A video's seconds per grid, or the times of its grids."""
    more = item[3]
    if family.stride is None:
        _refuse(rows, b, item, family, _NO_STRIDE.format(family.key))
    if family.uses_seconds and more is None:
        _refuse(rows, b, item, family, _NO_SECONDS)
    if isinstance(more, tuple):
        if family.revision and family.uses_seconds:
            _refuse(rows, b, item, family, _EVEN_ALONE)
        return None, more
    return more, None


def _by_itself(rows: Sequence[Row], b: int, item: Any, at: Any, family: Family) -> tuple[np.ndarray, Any]:
    """The ids [A, tokens] of a segment that no field places, and the id at which text continues."""
    kind, _, n, _ = item
    segment = as_segment(item)
    if isinstance(segment, Custom):
        following = rounded(at + rounded(segment.advance)) if family.fractional else at + int(segment.advance)
        return _custom(segment, at, family), following
    if family.uses_seconds and segment.has_time:
        if segment.seconds_per_grid is None and segment.times is None:
            _refuse(rows, b, item, family, _NO_SECONDS)
        if segment.times is not None and family.revision:
            _refuse(rows, b, item, family, _EVEN_ALONE)
    if not family.fractional:
        ids, following = _placed_by(family.place[kind], segment, np.int64(at), n, family)
        return ids, int(following)
    # upstreams add in float32; past 2^24 it has no room for whole ids, and the sums are those of float64
    number = np.float32 if abs(at) <= EXACT else np.float64
    ids, following = _placed_by(family.place[kind], segment, number(at), n, family)
    largest = max(abs(following), np.abs(ids).max(initial=0))
    if number is np.float32 and largest > EXACT:
        ids, following = _placed_by(family.place[kind], segment, np.float64(at), n, family)
    if largest > EXACT and np.float32 in (ids.dtype, np.asarray(following).dtype):
        raise ValueError(
            f"{family}: {_name(family.place[kind])} returned float32 ids up to {largest:,.0f} for {segment!r}, which has no "
            "whole numbers past 2^24: compute in the dtype of the id that the segment begins at"
        )
    return ids, rounded(float(following))


def _placed_by(function: Any, segment: Segment, at: Any, n: int, family: Family) -> tuple[np.ndarray, Any]:
    """What a function in place returns of a segment that begins at an id, checked."""
    try:
        found = function(segment, at, family)
    except Exception as error:  # code of others
        raise ValueError(
            f"{family}: {_name(function)} failed on {segment!r} from {at} on: {type(error).__name__}: {error}"
        ) from error
    what = type(found).__name__
    if isinstance(found, tuple) and len(found) == 2:
        ids, following = found
        what = " and ".join(map(shown, found))
        if isinstance(ids, np.ndarray) and is_number(following) and abs(following) < LARGEST:
            fits = ids.shape == (len(family.axes), n) and ids.dtype.kind in ("iuf" if family.fractional else "iu")
            is_whole = family.fractional or following == int(following)
            if fits and is_whole and (not ids.size or (ids.max() < LARGEST and ids.min() > -LARGEST)):  # nor NaN
                return ids, following
    elif isinstance(found, np.ndarray):
        what = shown(found)
    raise ValueError(
        f"{family}: {_name(function)} returned {what} for {segment!r}; a function in place returns (ids, next): ids "
        f"{family.dtype} [{len(family.axes)}, {n}], finite, and the id at which text continues"
    )


def _name(function: Any) -> Any:
    return getattr(function, "__name__", function)


def _custom(segment: Custom, start: Any, family: Family) -> np.ndarray:
    table = np.array(segment.ids)
    table = table if table.size else table.astype(np.int64)
    if len(table) != len(family.axes):
        raise ValueError(f"{segment!r} has ids on {len(table)} axes, but {family} has {len(family.axes)} ({family.axes})")
    if not family.fractional and (table.dtype.kind == "f" or segment.advance != int(segment.advance)):
        raise ValueError(f"{segment!r} has fractional ids, but those of {family} are whole numbers")
    return table + start


_NO_STRIDE = "leaves its stride to the user: family({0!r}, stride=...), on the command line --stride"
_NO_SECONDS = (
    "places videos by time: state seconds_per_grid (temporal patch size / frames sampled per second) or times=[...]; "
    "there is no default"
)
_EVEN_ALONE = "is an upstream's rule, which takes evenly spaced grids alone: state seconds_per_grid"


def _refuse(rows: Sequence[Row], b: int, item: Any, family: Family, why: str) -> NoReturn:
    """A segment that the family does not place."""
    item = next(frame_by_frame(item)) if item[0] == "frames" else item
    where, name, number = f"row {b}, " if len(rows) > 1 else "", item[0], list(rows[b].singles).index(item)
    if not why:
        other = {"video": "frame", "frame": "video"}.get(name)
        why = _INSTEAD[name] if other in family.media else f"places {', '.join(family.media)} and no {name}"
    raise ValueError(f"{where}segment {number} is {as_segment(item)!r}, but {family} {why}")


# --- which dtype holds them -------------------------------------------------------------------------------------------

# int32 wraps past this; float32 rounds halves past this, and gives whole ids past twice as much the number of a neighbour
_HALVES = 2**23
_NARROW = {np.dtype(np.int32): (2**31 - 1, "int64"), np.dtype(np.float32): (_HALVES, "float64")}


def check_holds(value: Any, dtype: np.dtype) -> None:
    """Refuses an id that a narrow dtype cannot tell from the one before it."""
    largest, wider = _NARROW.get(dtype, (math.inf, ""))
    if abs(value) <= largest or (
        dtype.kind == "f" and 0.5 < float(np.float32(abs(value))) - float(np.float32(abs(value) - 1)) < 1.5
    ):
        return
    raise ValueError(f"position id {int(value):,} does not fit {dtype}; ask for {wider} (dtype=, or the dtype of out)")


def check_fits(plans: Sequence[RowPlan], family: Family, dtype: np.dtype, start: int, stop: int) -> None:
    """Refuses ids of the slice start .. stop that a narrow dtype cannot tell apart; also the next id, where it is of that
    dtype, too."""
    if dtype not in _NARROW:
        return
    largest, _ = _NARROW[dtype]
    for placed, following, length in plans:
        bounds = [_bounds(place, family) for place in placed if place[3] < stop and place[3] + place[2] > start]
        if family.fractional:
            bounds.append((following, following))
        if stop > length:
            bounds.append((following + max(start - length, 0), following + stop - length - 1))
        past = [bound for bound in itertools.chain.from_iterable(bounds) if abs(bound) > largest]
        for bound in sorted(past, key=abs, reverse=True):  # the message says the largest
            check_holds(bound, dtype)


def widest(family: Family) -> type[np.number]:
    """Of the dtypes of its ids the one that holds all of them."""
    return np.float64 if family.fractional else np.int64


def cast(ids: np.ndarray, dtype: Any, what: str = "position ids") -> np.ndarray:
    """Ids in another dtype, in which whole numbers must stay what they are."""
    made = ids.astype(dtype, copy=False)
    if made is not ids:
        check_same(ids, made, made.dtype, what)
    return made


def check_same(ids: np.ndarray, made: np.ndarray, dtype: Any, what: str = "position ids") -> None:
    """Refuses what another dtype made of whole ids where it is something else."""
    changed = (made != ids) & (ids == np.trunc(ids))
    if changed.any():
        raise ValueError(f"{what} up to {np.abs(ids[changed]).max():,} do not fit {dtype}: take ids of a wider dtype")


def largest_ids(plans: Sequence[RowPlan], family: Family) -> list[Any]:
    """[B] the largest id of each row's real tokens; -1 where there are none."""
    return [max((_bounds(p, family)[1] for p in placed if p[2] and p[0] != "pad"), default=-1) for placed, _, _ in plans]


def _bounds(place: Place, family: Family) -> tuple[Any, Any]:
    """The smallest and the largest id of a segment."""
    kind, (t, h, w), n, _, at, extra, media = place
    if kind == "pad" or not n:
        return 0, 0
    if kind in _LINES:
        return at, at + n - 1
    if kind == "table":
        return extra.min().item(), extra.max().item()
    if kind == "image" and family.plain:  # the usual case
        return at, at + max(h, w) - 1
    last, moved = (extra[0], 0) if kind == "video" else (0, (t - 1) * extra[1] if kind == "frames" else 0)
    bounds = []
    for axis in family.axes:
        if axis == "t":
            bounds.append((at, at + last + moved))
        elif axis == "h" or axis == "w":
            size, (first, to) = h if axis == "h" else w, (0, 0) if family.origin == "zero" else (at, at + moved)
            low = (size - 1) // 2 if family.center else 0
            bounds.append((first - low, to - low + size - 1 + (last if family.couple else 0)))
        elif axis == "p":
            tokens, stride = h * w if kind == "frames" else n, family.stride or 0
            bounds.append((at, at + moved + tokens - 1) if stride == 1 else (at - 1 + stride, at - 1 + stride * tokens))
        else:
            bounds.append((media, media))
    return min(low for low, _ in bounds), max(high for _, high in bounds)


# --- writing ids ------------------------------------------------------------------------------------------------------


def write_row(
    ids: np.ndarray,
    mask: np.ndarray,
    placed: Sequence[Place],
    following: Any,
    length: int,
    family: Family,
    start: int,
    stop: int,
    *,
    pad: int = 0,
) -> None:
    """Writes the tokens start .. stop of a row: ids [A, stop - start], mask [stop - start], which is True already."""
    if start < length:
        _write(ids, mask, placed, family, start, stop, cut=start > 0 or stop < length, pad=pad)
    if stop > length:
        lo = max(start, length)
        ids[:, lo - start :] = np.arange(lo - length, stop - length) + following


def _write(
    ids: np.ndarray,
    mask: np.ndarray,
    placed: Sequence[Place],
    family: Family,
    start: int,
    stop: int,
    *,
    cut: bool,
    pad: int = 0,
) -> None:
    """Writes what segments have in the slice start .. stop; without `cut` they are all inside."""
    for place in placed:
        kind, (t, h, w), n, token, at, extra, media = place
        begin = token - start
        if cut and (begin < 0 or begin + n > stop - start):
            if begin + n > 0 and begin < stop - start:
                _write_part(ids, mask, place, family, start, stop, pad)
        elif kind == "text" or kind == "audio":
            ids[:, begin : begin + n] = _counting(at, n)
        elif kind == "image" and family.plain:  # the usual case: as _write_grids has it, in a third of the time
            grid, line = ids[:, begin : begin + n].reshape(3, h, w), _counting(at, max(h, w))  # [3, h, w], a view
            grid[0], grid[1], grid[2] = at, line[:h, None], line[:w]
        elif kind == "pad":
            ids[:, begin : begin + n] = pad
            mask[begin : begin + n] = False
        elif kind == "table":
            ids[:, begin : begin + n] = extra
        elif kind == "frames":
            _write_frames(ids, place, family, start)
        else:
            grids = ids[:, begin : begin + n].reshape(len(ids), t, h, w)  # a view: splits the last dimension
            _write_grids(grids, at, family, clock=extra, media=media)


def _write_part(ids: np.ndarray, mask: np.ndarray, place: Place, family: Family, start: int, stop: int, pad: int) -> None:
    """Writes the tokens of a segment that are in the slice start .. stop of its row, by way of whole temporal grids."""
    kind, (t, h, w), n, token, at, extra, media = place
    if kind == "frames":
        gap, step = extra
        for i in range(t):
            frame, words = token + i * (h * w + gap), at + i * step + step - gap
            parts = [("frame", (1, h, w), h * w, frame, at + i * step, None, media)]
            parts += [("text", (1, 1, gap), gap, frame + h * w, words, None, media)] * (gap > 0 and i + 1 < t)
            _write(ids, mask, parts, family, start, stop, cut=True)
        return
    begin = token - start
    lo, hi = max(0, -begin), min(n, stop - start - begin)  # of the segment's tokens
    to = ids[:, begin + lo : begin + hi]  # [A, hi - lo]
    if kind in _LINES:
        to[:] = _counting(at, hi)[lo:]
    elif kind == "pad":
        to[:] = pad
        mask[begin + lo : begin + hi] = False
    elif kind == "table":
        to[:] = extra[:, lo:hi]
    else:
        t0, t1 = lo // (h * w), -(-hi // (h * w))  # the temporal grids that the slice touches
        grids = np.empty((len(ids), t1 - t0, h, w), dtype=ids.dtype)
        _write_grids(grids, at, family, clock=extra, media=media, t0=t0)
        to[:] = grids.reshape(len(ids), -1)[:, lo - t0 * h * w : hi - t0 * h * w]


def _write_frames(ids: np.ndarray, place: Place, family: Family, start: int) -> None:
    """Writes frames that are alike and equally far apart, and the text between them, all inside the slice."""
    _, (count, h, w), _, token, at, (gap, step), media = place
    n, begin = h * w, token - start
    end = begin + (n + gap) * (count - 1)  # the last has no text after it, so it is written alone
    first = at + step * np.arange(count, dtype=ids.dtype)  # [count]
    both = ids[:, begin:end].reshape(len(ids), count - 1, n + gap)  # [A, count - 1, n + gap], a view
    for to, of in ((both[..., :n], first[:-1]), (ids[:, None, end : end + n], first[-1:])):
        _write_grids(to.reshape(len(ids), len(of), h, w), of[:, None, None], family, media=media)
    both[..., n:] = (first[:-1] + (step - gap))[:, None] + np.arange(gap, dtype=ids.dtype)


def _write_grids(to: np.ndarray, first: Any, family: Family, *, clock: Any = None, media: int = 0, t0: int = 0) -> None:
    """Writes temporal grids t0, t0 + 1, ... of a segment into `to` [A, grids, h, w], or one grid each of several frames.

    Args:
        first: the id that the segment begins at; of frames [grids, 1, 1].
        clock: of a video its last time step, seconds per grid and times.
        media: the media before it.
    """
    n, h, w = to.shape[1:]
    working = to.dtype if to.dtype.kind == "i" else np.float64  # whose sums are rounded once, when they are stored
    time, origin = first, first if family.origin == "next" else 0
    if clock is not None:
        step = family.steps(np.arange(t0, t0 + n), *clock[1:])[:, None, None]  # [grids, 1, 1]
        time = _later(first, step)
        origin = _later(origin, step) if family.couple else origin
    for a, axis in enumerate(family.axes):
        if axis == "t":
            to[a] = time
        elif axis == "h" or axis == "w":
            size = h if axis == "h" else w
            line = np.arange(size, dtype=working)
            line = line[:, None] if axis == "h" else line
            base = origin - (size - 1) // 2 if family.center else origin
            # a whole grid, copied many times, is faster than its rows
            to[a] = base + line if n == 1 or np.ndim(base) else np.array(np.broadcast_to(base + line, (h, w)), order="C")
        elif axis == "p":
            to[a] = _in_order(first, t0 * h * w, to[a], family)
        else:
            assert axis == "i", axis
            to[a] = media


def _later(first: Any, step: np.ndarray) -> np.ndarray:
    """first + step; where upstreams add in float32, rounded to it."""
    return rounded(first + step.astype(np.float64)) if step.dtype == np.float32 else first + step


def _in_order(first: Any, begin: int, to: np.ndarray, family: Family) -> np.ndarray:
    """The ids of vision tokens, from the `begin`th on, that are counted one after the other: like `to`, or one grid of it."""
    _, h, w = to.shape
    n = to.size if np.ndim(first) == 0 else h * w
    if family.stride == 1:
        return first + np.arange(begin, begin + n).reshape(-1, h, w)  # [grids, h, w]
    # the first is a stride after the last id of the text, not a whole one
    return (first - 1) + (family.stride or 0) * np.arange(begin + 1, begin + n + 1).reshape(-1, h, w)  # [grids, h, w]


def _counting(first: Any, n: int) -> np.ndarray:
    """[n] first, first + 1, ...; fractions are rounded once, when they are stored."""
    if isinstance(first, int) and 0 <= first <= len(_RAMP) - n:
        return _RAMP[first : first + n]
    return np.arange(first, first + n) if isinstance(first, int) else first + np.arange(n)


# --- arguments --------------------------------------------------------------------------------------------------------


def batch_of(rows: Rows) -> list[Row]:
    """One row or a list of rows, as a list of Rows."""
    if isinstance(rows, Row):
        return [rows]
    if not isinstance(rows, Iterable) or isinstance(rows, (str, bytes, dict, np.ndarray)):
        raise ValueError(f"rows must be a list of Segments or a list of such lists, got {type(rows).__name__}")
    items: list[Any] = list(rows)
    if items and isinstance(items[0], Row) and all(type(item) is Row for item in items):
        return items
    if items and all(isinstance(item, Sequence) and not isinstance(item, str) for item in items):
        return [Row.of(item) for item in items]
    return [Row.of(items)]


def _common_length(rows: Sequence[Row]) -> int:
    if not rows:
        return 0
    length = rows[0].length
    if any(row.length != length for row in rows):
        lengths = [row.length for row in rows]
        raise ValueError(
            f"rows have {', '.join(map(str, lengths))} tokens; a batch needs rows of equal length: collate(rows) fills them "
            f"up to {max(lengths)} with padding"
        )
    return length


def _slice(start: int, stop: int | None, length: int) -> tuple[int, int]:
    start, stop = whole(start, "start"), length if stop is None else whole(stop, "stop")
    if not 0 <= start <= stop:
        raise ValueError(f"start and stop must satisfy 0 <= start <= stop, got start={start}, stop={stop} for {length} tokens")
    return start, stop


_WHOLE = {np.dtype(np.int64), np.dtype(np.int32)}
_FRACTIONS = {np.dtype(np.float32), np.dtype(np.float64)}


def output(out: np.ndarray | None, dtype: Any, shape: tuple[int, ...], family: Family) -> np.ndarray:
    """`out`, if it is of this shape and can hold the ids, or a new array."""
    try:
        wanted = None if dtype is None else np.dtype(dtype)
    except (TypeError, ValueError):
        allowed = "float32 or float64" if family.fractional else "int64 or int32"
        raise ValueError(f"dtype must be numpy's {allowed}, got {shown(dtype)}") from None
    if math.prod(shape) > MOST_AT_ONCE:
        raise ValueError(f"{' x '.join(map(str, shape))} ids are more than {MOST_AT_ONCE:,}: ask for a slice, start=, stop=")
    if out is None:
        wanted = np.dtype(family.dtype) if wanted is None else wanted
    elif not isinstance(out, np.ndarray) or out.shape != shape or (out.size and 0 in out.strides):
        raise ValueError(
            f"out must be a numpy array of shape {shape} (axes, rows, tokens), with memory for each element, got "
            f"{getattr(out, 'shape', type(out))}" + (f" with strides {out.strides}" if isinstance(out, np.ndarray) else "")
        )
    elif wanted not in (None, out.dtype):
        raise ValueError(f"dtype={wanted} and out of {out.dtype} disagree; leave one of them out")
    else:
        wanted = out.dtype
    if family.fractional and wanted not in _FRACTIONS:
        raise ValueError(f"{family} has fractional position ids: they are float32 or float64, not {wanted}")
    if not family.fractional and wanted not in _WHOLE:
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
    choice(axes, "axes", ("hw", "thw"))
    choice(order, "order", ("raster", "blocks"))
    grids, merge, offset = whole_grids(grid_thw, "grid_thw"), whole(merge, "merge", least=1), whole(offset, "offset")
    if normalize is not None:
        choice(normalize, "normalize", ("separate", "max", "min"))
        if offset or axes != "hw":
            raise ValueError(f"normalize goes with axes 'hw' without an offset, got axes={axes!r}, offset={offset}")
    if (most := sum(map(math.prod, grids.tolist()))) > MOST_AT_ONCE:
        raise ValueError(f"grid_thw has {most:,} patches, more than {MOST_AT_ONCE:,}: are these grids (t, h, w) in patches?")
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
