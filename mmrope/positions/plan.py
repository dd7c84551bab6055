"""Where each segment of a batch begins: how far each moves the next id. All segments at once, whole arrays at a time."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmrope.positions.rules import Family
from mmrope.positions.segments import AUDIO_IN_VIDEO, FRAME, IMAGE, KINDS, PAD, TEXT, VIDEO, Row, Segment


@dataclass(frozen=True, eq=False)
class Plan:
    """Where each segment of a batch begins, as tokens and as ids. Segments are counted through: those of row b are
    `cuts[b] : cuts[b + 1]`."""

    rows: Sequence[Row]
    family: Family
    kind: np.ndarray  # [n]
    grid: np.ndarray  # [n, 3]
    seconds: np.ndarray  # [n]
    cuts: list[int]  # [B + 1]
    tokens: np.ndarray  # [n]
    offset: np.ndarray
    """[n] int64, the token of its row that a segment begins at."""
    first: np.ndarray
    """[n] the id that a segment begins at: int64, or float64 that holds the float32 of fractional families."""
    last_step: np.ndarray
    """[n] the time step of a video's last temporal grid; 0 of the rest."""
    lengths: list[int]
    """[B] tokens of each row."""
    next: list[Any]
    """[B] the id that text after each row takes."""
    ordinal: np.ndarray | None
    """[n] the media before each segment; None where no axis counts them."""
    special: dict[int, Segment]
    tables: dict[int, np.ndarray]
    """The ids [A, tokens] of segments that a function places."""

    @functools.cached_property
    def plain(self) -> bool:
        """Whether images lie as Qwen2-VL's do: t, h and w are whole numbers, counted from the id where the image begins."""
        f = self.family
        return f.axes == "thw" and f.origin == "next" and not (f.center or f.couple or f.fractional or f.place)

    def bounds(self, start: int = 0, stop: int | None = None) -> tuple[int, int]:
        """The smallest and the largest id of the segments that the slice start .. stop of the rows touches; of whole rows."""
        f, (_, h, w) = self.family, self.grid.T
        lengths = [] if stop is None else self.lengths  # that may be passed
        stop = max(self.lengths) if stop is None else stop
        mine = (self.kind != PAD) & (self.tokens > 0) & (self.offset < stop) & (self.offset + self.tokens > start)
        plane = np.maximum(h, w) - 1
        vision = (self.kind == IMAGE) | (self.kind == FRAME) | (self.kind == VIDEO)
        low = np.where(vision & f.center, plane // 2, 0)
        high = np.maximum(self.last_step, plane - low + (self.last_step if f.couple else 0))
        if f.origin == "zero":
            low = np.where(vision, self.first, 0)
            high = np.where(vision, np.maximum(self.last_step, plane - self.first), high)
        if "p" in f.axes:
            high = np.maximum(high, self.tokens - 1)
        mine[list(self.tables)] = False
        found = [(self.first - low)[mine], (self.first + high)[mine]]
        found += [self.tables[i] for i in self.tables if self.offset[i] < stop and self.offset[i] + self.tokens[i] > start]
        found += [
            np.array([n + max(start - length, 0), n + stop - length - 1])
            for n, length in zip(self.next, lengths, strict=False)
            if stop > length
        ]
        ids = [part for part in found if part.size]
        return min((int(part.min()) for part in ids), default=0), max((int(part.max()) for part in ids), default=0)


def plan(rows: Sequence[Row], family: Family) -> Plan:
    """Plans a batch by the family's rules."""
    cuts = [0, *itertools.accumulate(len(row.kind) for row in rows)]
    joined = Row.join(rows)
    kind, grid, seconds, special = joined.kind, joined.grid, joined.seconds, dict(joined.special)
    counts = np.bincount(kind, minlength=len(KINDS)).tolist()
    _check(rows, kind, seconds, special, cuts, counts, family)
    t, h, w = grid.T
    tokens = t * h * w
    last_step = np.zeros_like(tokens) if not counts[VIDEO] else _last_steps(kind, t, seconds, special, family)
    extent: np.ndarray = np.maximum(h, w) - 1  # of text, whose grid is (1, 1, n), n - 1
    if family.advance == "max" and counts[VIDEO]:
        extent = np.maximum(extent, last_step)
    elif family.advance == "time":
        extent = np.where((kind == IMAGE) | (kind == FRAME) | (kind == VIDEO), last_step, extent)
    elif family.advance == "tokens":
        extent = tokens - 1 if family.stride == 1 else np.where(kind > TEXT, np.ceil(tokens * (family.stride or 0)), tokens) - 1
    offset, lengths = _starts(tokens, cuts)
    tables: dict[int, np.ndarray] = {}
    if family.fractional or any(counts[KINDS.index(name)] for name in ("custom", *family.place)):
        first, following = _one_by_one(rows, family, kind, extent, tokens, special, cuts, tables)
    else:
        advance = extent + 1
        if counts[PAD] or not tokens.all():
            advance[(kind == PAD) | (tokens == 0)] = 0
        first, following = _starts(advance, cuts)
    ordinal = _ordinals(kind, cuts, family) if "i" in family.axes else None
    return Plan(
        rows, family, kind, grid, seconds, cuts, tokens, offset, first, last_step, lengths, following, ordinal, special, tables
    )  # fmt: skip


def _last_steps(
    kind: np.ndarray, t: np.ndarray, seconds: np.ndarray, special: dict[int, Segment], family: Family
) -> np.ndarray:
    """[n] the time step of each video's last temporal grid, 0 for the rest."""
    videos = np.flatnonzero(kind == VIDEO)
    between = np.where(np.isnan(seconds[videos]), 1.0, seconds[videos])  # those that state times come below
    steps = family.steps(t[videos] - 1, between)
    last_step = np.zeros(len(kind), dtype=steps.dtype)
    last_step[videos] = steps
    for i, segment in special.items():
        if kind[i] == VIDEO:
            last_step[i] = family.steps(t[i] - 1, None, segment.times)
    return last_step


def _starts(n: np.ndarray, cuts: list[int]) -> tuple[np.ndarray, list[Any]]:
    """Running totals of n that begin anew with each row: [n] before each segment, and [B] of each row."""
    total = np.zeros(len(n) + 1, dtype=np.int64)
    np.cumsum(n, out=total[1:])
    if len(cuts) == 2:
        return total[:-1], [int(total[-1])]
    ends = total[cuts]
    return total[:-1] - np.repeat(ends[:-1], np.diff(cuts)), np.diff(ends).tolist()


def _one_by_one(
    rows: Sequence[Row],
    family: Family,
    kind: np.ndarray,
    extent: np.ndarray,
    tokens: np.ndarray,
    special: dict[int, Segment],
    cuts: list[int],
    tables: dict[int, np.ndarray],
) -> tuple[np.ndarray, list[Any]]:
    """Where segments begin, where each has to wait for the one before: for functions that place, whose ids go to `tables`, and
    for sums that are rounded to float32 at every step, as upstream rounds them."""
    number = np.dtype(family.dtype).type
    first = np.zeros(len(kind), dtype=np.float64 if family.fractional else np.int64)
    following = []
    for b, row in enumerate(rows):
        at = number(0)
        for i in range(cuts[b], cuts[b + 1]):
            first[i] = at
            name = KINDS[kind[i]]
            if name == "custom":
                tables[i] = _custom(special[i], at, family)
                at = at + number(special[i].advance)
            elif name in family.place:
                tables[i], after = family.place[name](row[i - cuts[b]], at, family)
                if tables[i].shape != (len(family.axes), tokens[i]) or (tables[i].dtype.kind == "f") > family.fractional:
                    raise ValueError(
                        f"{family}: {family.place[name].__name__} made {tables[i].dtype} {list(tables[i].shape)} of "
                        f"{row[i - cuts[b]]!r}, but its ids are {family.dtype} [{len(family.axes)}, {tokens[i]}]"
                    )
                at = number(after)
            elif name == "text":
                at = at + number(tokens[i])
            elif name != "pad":
                at = at + number(extent[i]) + number(1)  # the largest id, and one more
        following.append(at.item())
    return first, following


def _custom(segment: Segment, start: Any, family: Family) -> np.ndarray:
    table = np.array(segment.ids)
    table = table if table.size else table.astype(np.int64)
    if len(table) != len(family.axes):
        raise ValueError(f"{segment!r} has ids on {len(table)} axes, but {family} has {len(family.axes)} ({family.axes})")
    if not family.fractional and (table.dtype.kind == "f" or segment.advance != int(segment.advance)):
        raise ValueError(f"{segment!r} has fractional ids, but those of {family} are whole numbers")
    return table + start


def _ordinals(kind: np.ndarray, cuts: list[int], family: Family) -> np.ndarray:
    """[n] the media before each segment, in its row or in the batch."""
    is_media = (kind == IMAGE) | (kind == FRAME) | (kind == VIDEO)
    return _starts(is_media, [0, len(kind)] if family.ordinal == "batch" else cuts)[0]


_INSTEAD = {
    "video": "splits videos into frames: list text (the time stamp) and Segment.frame alternately, one frame per temporal grid",
    "frame": "places videos whole: use Segment.video, or Segment.image for a picture on its own",
}


def _check(
    rows: Sequence[Row],
    kind: np.ndarray,
    seconds: np.ndarray,
    special: dict[int, Segment],
    cuts: list[int],
    counts: list[int],
    family: Family,
) -> None:
    """Refuses segments that the family does not place."""

    def refuse(i: int, why: str) -> None:
        b = int(np.searchsorted(cuts, i, side="right")) - 1
        where = f"row {b}, " if len(rows) > 1 else ""
        raise ValueError(f"{where}segment {i - cuts[b]} is {rows[b][i - cuts[b]]!r}, but {family} {why}")

    for k, name in enumerate(KINDS):
        if counts[k] and name not in ("pad", "text", "custom", *family.media):
            other = {"video": "frame", "frame": "video"}.get(name)
            why = _INSTEAD[name] if other in family.media else f"places {', '.join(family.media)} and no {name}"
            refuse(int(np.argmax(kind == k)), why)
    if family.stride is None:
        unknown = kind > TEXT if "p" in family.axes else kind == VIDEO
        if unknown.any():
            said = f"family({family.key!r}, stride=...), on the command line --stride"
            refuse(int(np.argmax(unknown)), f"leaves its stride to the user: {said}")
    if family.revision and family.uses_seconds:
        for i, segment in special.items():
            if segment.times is not None:
                refuse(i, "is an upstream's rule, which takes evenly spaced grids alone: state seconds_per_grid")
    if family.uses_seconds and (counts[VIDEO] or counts[AUDIO_IN_VIDEO]):
        untimed = ((kind == VIDEO) | (kind == AUDIO_IN_VIDEO)) & np.isnan(seconds)
        untimed[[i for i, segment in special.items() if segment.times is not None]] = False
        if untimed.any():
            refuse(
                int(np.argmax(untimed)),
                "places videos by time: state seconds_per_grid (temporal patch size / frames sampled per second) or "
                "times=[...]; there is no default",
            )
