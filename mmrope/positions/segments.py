"""What a sequence is made of: a row of segments, each text, an image, a frame, a video, sound or padding.

Positions are computed from segments, never from single tokens, so a sequence of 100,000 tokens is a handful of numbers.
`Segment` is what people write and read; `Row` holds the same by column, which is what the builder reads.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

KINDS = ("pad", "text", "image", "frame", "video", "audio", "audio_in_video", "canvas", "custom")
"""The kinds of segments; a row's `kind` column holds indices into this tuple."""
PAD, TEXT, IMAGE, FRAME, VIDEO, AUDIO, AUDIO_IN_VIDEO, CANVAS, CUSTOM = range(len(KINDS))
_SPECIAL = (AUDIO_IN_VIDEO, CANVAS, CUSTOM)  # whose grid does not say what they hold

MAX_TOKENS = 2**31 - 1  # of one segment
MAX_STEP = 2**40  # ids from where a segment begins: with MAX_TOKENS it keeps every sum of a row far inside int64
MAX_SECONDS = 1e9  # from one temporal grid to the next: stays finite in float32


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of tokens that is placed as one: made by `text`, `image`, `frame`, `video`, `audio`, `pad`, and for the few
    families that have them `audio_in_video`, `canvas` and `custom`.

    `grid` is the token grid (t, h, w): what the language model sees, after the spatial merge. `image_grid_thw` of a
    processor holds patch grids, before it; `Family.image` and `Family.video` convert. Text of n tokens is (1, 1, n).

    Example:
        >>> from mmrope import Segment
        >>> row = [Segment.text(3), Segment.image(h=2, w=3), Segment.text(2)]
        >>> [segment.length for segment in row]
        [3, 6, 2]
    """

    kind: str
    grid: tuple[int, int, int]
    seconds_per_grid: float | None = None
    """Of a video: seconds from one temporal grid to the next (temporal patch size / frames per second)."""
    times: tuple[float, ...] | None = None
    """Of a video whose grids are not evenly spaced: seconds of each temporal grid; only differences to the first count."""
    audio_tokens: int = 0
    """Of audio in video: tokens of its sound."""
    runs: tuple[int, ...] = ()
    """Of audio in video: how its tokens lie, where that is known: so many of the video, of its sound, of the video, ..."""
    slices: tuple[tuple[int, int], ...] = ()
    """Of a canvas: the token grids (h, w) of the detail crops, row by row."""
    columns: int = 0
    """Of a canvas: detail crops in a row."""
    newlines: int = 0
    """Of a canvas: newline tokens that follow its last marker and belong to it."""
    ids: tuple[tuple[float, ...], ...] | None = None
    """Of a custom segment: for each axis the ids of its tokens, counted from where it begins."""
    advance: float = 0
    """Of a custom segment: from where it begins to where text goes on."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown segment kind {self.kind!r}; the kinds are {', '.join(KINDS)}")
        what = f"Segment.{self.kind}"
        least = 0 if self.kind in ("text", "pad", "custom") else 1
        grid = tuple(_count(n, what, least) for n in self.grid)
        if len(grid) != 3:
            raise ValueError(f"{what}: grid must be (t, h, w), got {self.grid!r}")
        object.__setattr__(self, "grid", grid)
        if self.kind in ("video", "audio_in_video"):
            self._check_time(what)
        elif self.seconds_per_grid is not None or self.times is not None:
            raise ValueError(f"{what} takes no time: only Segment.video has seconds_per_grid or times")
        elif grid[0] != 1:
            raise ValueError(f"{what} has one temporal grid, got {grid[0]}; use Segment.video")
        if self.kind == "canvas":
            self._check_canvas(what)
        if self.kind == "custom":
            self._check_custom(what)
        if self.kind == "audio_in_video":
            object.__setattr__(self, "audio_tokens", _count(self.audio_tokens, what, 1))
            object.__setattr__(self, "runs", tuple(_count(n, what, int(i > 0)) for i, n in enumerate(self.runs)))
            if self.runs and (sum(self.runs[::2]), sum(self.runs[1::2])) != (math.prod(grid), self.audio_tokens):
                raise ValueError(
                    f"{what}: runs have {sum(self.runs[::2])} tokens of the video and {sum(self.runs[1::2])} of its sound, "
                    f"but there are {math.prod(grid)} and {self.audio_tokens}"
                )
        if self.length > MAX_TOKENS:
            raise ValueError(
                f"{what}: {grid[0]} x {grid[1]} x {grid[2]} tokens are more than {MAX_TOKENS:,}, the most of one segment"
            )

    def _check_time(self, what: str) -> None:
        if self.seconds_per_grid is not None and self.times is not None:
            raise ValueError(f"{what}: give seconds_per_grid (evenly spaced grids) or times (one for each grid), not both")
        if self.seconds_per_grid is not None:
            seconds = float(self.seconds_per_grid)
            if not 0 < seconds <= MAX_SECONDS:
                raise ValueError(
                    f"{what}: seconds_per_grid must be a positive number of seconds (at most {MAX_SECONDS:g}), got {seconds}"
                )
            object.__setattr__(self, "seconds_per_grid", seconds)
        if self.times is not None:
            times = tuple(float(second) for second in self.times)
            if len(times) != self.grid[0]:
                raise ValueError(f"{what}: {self.grid[0]} temporal grids need {self.grid[0]} times, got {len(times)}")
            if times[0] < 0 or not all(map(math.isfinite, times)) or any(b < a for a, b in itertools.pairwise(times)):
                raise ValueError(f"{what}: times must be finite seconds, from 0 up and never decreasing, got {times}")
            object.__setattr__(self, "times", times)

    def _check_canvas(self, what: str) -> None:
        slices = tuple((_count(h, what, 1), _count(w, what, 1)) for h, w in self.slices)
        columns, newlines = _count(self.columns, what, 0), _count(self.newlines, what, 0)
        if bool(slices) != bool(columns) or (columns and len(slices) % columns):
            raise ValueError(f"{what}: {len(slices)} slices do not fill rows of {columns} columns")
        for name, value in (("slices", slices), ("columns", columns), ("newlines", newlines)):
            object.__setattr__(self, name, value)

    def _check_custom(self, what: str) -> None:
        if not self.ids or any(len(axis) != self.grid[2] for axis in self.ids):
            raise ValueError(
                f"{what} needs ids for each of its {self.grid[2]} tokens on every axis; make it with Segment.custom"
            )
        for name, value in (*(("an id", x) for axis in self.ids for x in axis), ("advance", self.advance)):
            if not abs(value) <= MAX_STEP:  # nor NaN
                raise ValueError(f"{what}: {name} must be a finite number, at most {MAX_STEP:,} either way, got {value}")

    @classmethod
    def text(cls, length: int) -> Segment:
        """Text of `length` tokens, or anything else that is placed like text (markers, time stamps).

        Example:
            >>> from mmrope import Segment, position_ids
            >>> position_ids([Segment.text(3)], "qwen2_vl").ids[:, 0].tolist()  # t, h, w
            [[0, 1, 2], [0, 1, 2], [0, 1, 2]]
        """
        return cls("text", (1, 1, length))

    @classmethod
    def pad(cls, length: int) -> Segment:
        """`length` tokens of padding: they keep their place in the row and take no position.

        Example:
            >>> from mmrope import Segment, position_ids
            >>> positions = position_ids([Segment.pad(2), Segment.text(3)], "qwen2_vl")
            >>> positions.ids[0, 0].tolist(), positions.mask[0].tolist()
            ([0, 0, 0, 1, 2], [False, False, True, True, True])
        """
        return cls("pad", (1, 1, length))

    @classmethod
    def image(cls, *, h: int, w: int) -> Segment:
        """An image of h rows of w tokens.

        Example:
            >>> from mmrope import Segment, position_ids
            >>> position_ids([Segment.text(1), Segment.image(h=2, w=2)], "qwen2_vl").ids[:, 0].tolist()  # t, h, w
            [[0, 1, 1, 1, 1], [0, 1, 1, 2, 2], [0, 1, 2, 1, 2]]
        """
        return cls("image", (1, h, w))

    @classmethod
    def frame(cls, *, h: int, w: int) -> Segment:
        """One temporal grid of a video, for families that split videos into frames between text time stamps.

        Example:
            >>> from mmrope import Segment, position_ids
            >>> row = [Segment.text(2), Segment.frame(h=1, w=2), Segment.text(2), Segment.frame(h=1, w=2)]
            >>> position_ids(row, "qwen3_vl").ids[0, 0].tolist()  # t
            [0, 1, 2, 2, 4, 5, 6, 6]
        """
        return cls("frame", (1, h, w))

    @classmethod
    def video(
        cls, *, t: int, h: int, w: int, seconds_per_grid: float | None = None, times: Iterable[float] | None = None
    ) -> Segment:
        """A video of t temporal grids, each of h rows of w tokens.

        Example:
            >>> from mmrope import Segment, position_ids
            >>> video = Segment.video(t=3, h=1, w=2, seconds_per_grid=1.0)
            >>> position_ids([Segment.text(1), video], "qwen2_5_vl").ids[0, 0].tolist()  # t: 2 ids a second
            [0, 1, 1, 3, 3, 5, 5]
        """
        return cls("video", (t, h, w), seconds_per_grid, None if times is None else tuple(times))

    @classmethod
    def audio(cls, length: int) -> Segment:
        """Sound of `length` tokens.

        Example:
            >>> from mmrope import Segment, position_ids
            >>> position_ids([Segment.text(2), Segment.audio(3)], "qwen2_5_omni").ids[:, 0].tolist()
            [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
        """
        return cls("audio", (1, 1, length))

    @classmethod
    def audio_in_video(
        cls,
        *,
        t: int,
        h: int,
        w: int,
        audio: int,
        seconds_per_grid: float | None = None,
        times: Iterable[float] | None = None,
        runs: Iterable[int] = (),
    ) -> Segment:
        """A video of t x h x w tokens and its sound of `audio` tokens, interleaved by time, with the two start and the two
        end markers around them (the Qwen Omni models). `runs` may state how the tokens lie.

        Example:
            >>> from mmrope import Segment
            >>> Segment.audio_in_video(t=2, h=1, w=2, audio=5, seconds_per_grid=1.0).length  # 4 of video, 5 of audio, 4 markers
            13
        """
        times = None if times is None else tuple(times)
        return cls("audio_in_video", (t, h, w), seconds_per_grid, times, audio_tokens=audio, runs=tuple(runs))

    @classmethod
    def canvas(cls, *, h: int, w: int, slices: Iterable[tuple[int, int]] = (), columns: int = 0, newlines: int = 0) -> Segment:
        """A picture or a frame of MiniCPM-V: a thumbnail of h x w tokens between its two markers, then detail crops
        (`slices`, token grids row by row, `columns` in a row), each between two markers, with a newline token after each row
        but the last. `newlines` tokens that follow at once belong to it, too.

        Example:
            >>> from mmrope import Segment
            >>> Segment.canvas(h=2, w=2, slices=[(2, 2), (2, 2)], columns=2).length  # three times 4 tokens and 2 markers
            18
        """
        return cls("canvas", (1, h, w), slices=tuple(slices), columns=columns, newlines=newlines)

    @classmethod
    def custom(cls, ids: Any, *, advance: float) -> Segment:
        """Tokens at stated places: ids [A, n], counted from where the segment begins; text goes on `advance` after there.

        Example:
            >>> from mmrope import Segment, position_ids
            >>> twice = Segment.custom([[0, 0], [0, 1], [0, 1]], advance=2)  # ids [axes, tokens]
            >>> position_ids([Segment.text(1), twice, Segment.text(1)], "qwen2_vl").ids[:, 0].tolist()
            [[0, 1, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
        """
        table = np.asarray(ids)
        if table.ndim != 2 or table.dtype.kind not in "iuf":
            raise ValueError(f"Segment.custom: ids must be numbers [axes, tokens], got {table.dtype} {list(table.shape)}")
        return cls("custom", (1, 1, table.shape[1]), ids=tuple(map(tuple, table.tolist())), advance=advance)

    @property
    def length(self) -> int:
        """Tokens."""
        if self.kind == "audio_in_video":
            return math.prod(self.grid) + self.audio_tokens + 4
        if self.kind == "canvas":
            breaks = len(self.slices) // self.columns - 1 if self.slices else 0
            return math.prod(self.grid) + 2 + sum(h * w + 2 for h, w in self.slices) + breaks + self.newlines
        return math.prod(self.grid)

    def __repr__(self) -> str:
        t, h, w = self.grid
        if self.kind in ("text", "pad", "audio"):
            return f"Segment.{self.kind}({w})"
        if self.kind == "custom":
            return f"Segment.custom({w} tokens, advance={self.advance:g})"
        parts = [f"h={h}", f"w={w}"]
        if self.kind in ("video", "audio_in_video"):
            parts = [f"t={t}", *parts]
        if self.kind == "audio_in_video":
            parts.append(f"audio={self.audio_tokens}")
        if self.seconds_per_grid is not None:
            parts.append(f"seconds_per_grid={self.seconds_per_grid!r}")
        if self.times is not None:
            parts.append(f"times={list(self.times)}")
        if self.slices:
            parts.append(f"slices={list(self.slices)}, columns={self.columns}")
        if self.newlines:
            parts.append(f"newlines={self.newlines}")
        return f"Segment.{self.kind}({', '.join(parts)})"


def _count(value: Any, what: str, least: int) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise ValueError(f"{what}: sizes are whole numbers of tokens, got {value!r}") from None
    if count < least:
        raise ValueError(f"{what}: sizes must be at least {least}, got {count}")
    return count


def whole(value: Any, what: str) -> int:
    """A number of tokens that a user stated."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{what} must be a whole number of tokens, got {value!r}") from None


def token_mask(value: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """A mask of tokens as bool; True or 1 at those that count."""
    mask = np.asarray(value)
    if mask.shape != shape:
        raise ValueError(f"{what} must be {list(shape)} (rows, tokens), got {list(mask.shape)}")
    if mask.dtype.kind not in "bui" or ((mask != 0) & (mask != 1)).any():
        raise ValueError(
            f"{what} must be True or 1 at the tokens that count and False or 0 at the others; additive masks (0, -inf) and "
            f"sequence numbers (1, 1, 2, 2) say something else; got {mask.dtype}"
        )
    return mask.astype(bool)


def whole_grids(value: Any, what: str) -> np.ndarray:
    """Grids (t, h, w) as [n, 3] int64; n may be 0."""
    grids = np.asarray(value)
    if not grids.size:
        return np.zeros((0, 3), dtype=np.int64)
    if grids.ndim != 2 or grids.shape[1] != 3 or grids.dtype.kind not in "iu":
        raise ValueError(f"{what} must be whole numbers [n, 3] (t, h, w), got {grids.dtype} {list(grids.shape)}")
    return grids.astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Row(Sequence[Segment]):
    """A row of segments by column: the form that `segments_from_inputs` returns and the builder reads.

    It is a sequence of `Segment`s (index it, iterate over it, compare it with a list), picklable, and never changes.

    Example:
        >>> from mmrope import Segment
        >>> from mmrope.positions import Row
        >>> row = Row.of([Segment.text(3), Segment.image(h=2, w=3)])
        >>> row.length, row.lengths.tolist(), row[1].kind
        (9, [3, 6], 'image')
    """

    kind: np.ndarray
    """[n] int8, indices into KINDS."""
    grid: np.ndarray
    """[n, 3] int64, token grids (t, h, w); their product is a segment's tokens. Of `special` segments whose tokens are more
    than their grid, (1, 1, tokens)."""
    seconds: np.ndarray
    """[n] float64, seconds from one temporal grid to the next; NaN where a segment has none."""
    special: tuple[tuple[int, Segment], ...] = ()
    """(index, segment), for the segments that the columns do not say whole."""

    @classmethod
    def of(cls, segments: Row | Iterable[Segment]) -> Row:
        """The row of these segments.

        Example:
            >>> from mmrope import Segment
            >>> from mmrope.positions import Row
            >>> Row.of([Segment.text(3), Segment.pad(2)]).length
            5
        """
        if isinstance(segments, Row):
            return segments
        segments = list(segments)
        for i, segment in enumerate(segments):
            if not isinstance(segment, Segment):
                raise ValueError(
                    f"a row is a list of Segments, but item {i} is {segment!r}; "
                    "write Segment.text(5), Segment.image(h=4, w=6), ..."
                )
        kinds = [KINDS.index(segment.kind) for segment in segments]
        grids = [(1, 1, s.length) if k in _SPECIAL else s.grid for k, s in zip(kinds, segments, strict=True)]
        seconds = [math.nan if s.seconds_per_grid is None else s.seconds_per_grid for s in segments]
        return cls.of_columns(
            np.array(kinds, dtype=np.int8),
            np.array(grids, dtype=np.int64).reshape(-1, 3),
            np.array(seconds, dtype=np.float64),
            tuple((i, s) for i, s in enumerate(segments) if kinds[i] in _SPECIAL or s.times is not None),
        )

    @classmethod
    def join(cls, rows: Sequence[Row]) -> Row:
        """The segments of several rows, one after the other.

        Example:
            >>> from mmrope import Segment
            >>> from mmrope.positions import Row
            >>> prompt, answer = Row.of([Segment.text(3), Segment.image(h=2, w=3)]), Row.of([Segment.text(4)])
            >>> Row.join([prompt, answer]).lengths.tolist()
            [3, 6, 4]
        """
        if len(rows) == 1:
            return rows[0]
        cuts = itertools.accumulate((len(row.kind) for row in rows), initial=0)
        special = tuple((cut + i, segment) for cut, row in zip(cuts, rows, strict=False) for i, segment in row.special)
        if not rows:
            return cls.of([])
        return cls.of_columns(
            np.concatenate([row.kind for row in rows]),
            np.concatenate([row.grid for row in rows]),
            np.concatenate([row.seconds for row in rows]),
            special,
        )

    def only(self, which: np.ndarray) -> Row:
        """The segments at these indices [n], in their order.

        Example:
            >>> import numpy as np
            >>> from mmrope import Segment
            >>> from mmrope.positions import Row
            >>> row = Row.of([Segment.text(3), Segment.image(h=2, w=3), Segment.text(1)])
            >>> row.only(np.array([0, 2])).lengths.tolist()
            [3, 1]
        """
        special = dict(self.special)
        kept = tuple((n, special[i]) for n, i in enumerate(which.tolist()) if i in special) if special else ()
        return self.of_columns(self.kind[which], self.grid[which], self.seconds[which], kept)

    @classmethod
    def of_columns(
        cls, kind: np.ndarray, grid: np.ndarray, seconds: np.ndarray, special: tuple[tuple[int, Segment], ...]
    ) -> Row:
        """A row of these columns, which from here on cannot be written to."""
        for column in (kind, grid, seconds):
            column.flags.writeable = False
        return cls(kind, grid, seconds, special)

    @property
    def lengths(self) -> np.ndarray:
        """[n] int64, tokens of each segment."""
        return self.grid.prod(axis=1)

    @property
    def length(self) -> int:
        """Tokens of the row, padding included."""
        return int(self.lengths.sum())

    def __len__(self) -> int:
        return len(self.kind)

    @overload
    def __getitem__(self, index: int) -> Segment: ...
    @overload
    def __getitem__(self, index: slice) -> list[Segment]: ...
    def __getitem__(self, index: int | slice) -> Segment | list[Segment]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = operator.index(index)
        i = i + len(self) if i < 0 else i
        if not 0 <= i < len(self):
            raise IndexError(f"segment {index} of a row of {len(self)}")
        special = dict(self.special).get(i)
        if special is not None:
            return special
        t, h, w = self.grid[i].tolist()
        seconds = None if math.isnan(self.seconds[i]) else float(self.seconds[i])
        return Segment(KINDS[self.kind[i]], (t, h, w), seconds)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it equals lists, which have no hash

    def __repr__(self) -> str:
        return f"Row({list(self)!r})"
