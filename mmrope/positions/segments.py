"""What a sequence is made of: a row of segments, each text, an image, a frame, a video or padding.

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

KINDS = ("pad", "text", "image", "frame", "video")
"""The kinds of segments; a row's `kind` column holds indices into this tuple."""
PAD, TEXT, IMAGE, FRAME, VIDEO = range(len(KINDS))

MAX_TOKENS = 2**31 - 1  # of one segment: keeps every sum of a row far inside int64
MAX_SECONDS = 1e9  # from one temporal grid to the next: stays finite in float32


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of tokens that is placed as one: made by `text`, `image`, `frame`, `video` and `pad`.

    `grid` is the token grid (t, h, w): what the language model sees, after the spatial merge. `image_grid_thw` of a
    processor holds patch grids, before it; `Family.image` and `Family.video` convert. Text of n tokens is (1, 1, n).
    """

    kind: str
    grid: tuple[int, int, int]
    seconds_per_grid: float | None = None
    """Of a video: seconds from one temporal grid to the next (temporal patch size / frames per second)."""
    times: tuple[float, ...] | None = None
    """Of a video whose grids are not evenly spaced: seconds of each temporal grid; only differences to the first count."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown segment kind {self.kind!r}; the kinds are {', '.join(KINDS)}")
        what = f"Segment.{self.kind}"
        least = 0 if self.kind in ("text", "pad") else 1
        grid = tuple(_count(n, what, least) for n in self.grid)
        if len(grid) != 3:
            raise ValueError(f"{what}: grid must be (t, h, w), got {self.grid!r}")
        if math.prod(grid) > MAX_TOKENS:
            raise ValueError(
                f"{what}: {grid[0]} x {grid[1]} x {grid[2]} tokens are more than {MAX_TOKENS:,}, the most of one segment"
            )
        object.__setattr__(self, "grid", grid)
        if self.kind == "video":
            self._check_time(what)
        elif self.seconds_per_grid is not None or self.times is not None:
            raise ValueError(f"{what} takes no time: only Segment.video has seconds_per_grid or times")
        elif grid[0] != 1:
            raise ValueError(f"{what} has one temporal grid, got {grid[0]}; use Segment.video")

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
            if not all(math.isfinite(second) for second in times) or any(b < a for a, b in itertools.pairwise(times)):
                raise ValueError(f"{what}: times must be finite seconds that never decrease, got {times}")
            object.__setattr__(self, "times", times)

    @classmethod
    def text(cls, length: int) -> Segment:
        """Text of `length` tokens, or anything else that is placed like text (markers, time stamps)."""
        return cls("text", (1, 1, length))

    @classmethod
    def pad(cls, length: int) -> Segment:
        """`length` tokens of padding: they keep their place in the row and take no position."""
        return cls("pad", (1, 1, length))

    @classmethod
    def image(cls, *, h: int, w: int) -> Segment:
        """An image of h rows of w tokens."""
        return cls("image", (1, h, w))

    @classmethod
    def frame(cls, *, h: int, w: int) -> Segment:
        """One temporal grid of a video, for families that split videos into frames between text time stamps."""
        return cls("frame", (1, h, w))

    @classmethod
    def video(
        cls, *, t: int, h: int, w: int, seconds_per_grid: float | None = None, times: Iterable[float] | None = None
    ) -> Segment:
        """A video of t temporal grids, each of h rows of w tokens."""
        return cls("video", (t, h, w), seconds_per_grid, None if times is None else tuple(times))

    @property
    def length(self) -> int:
        """Tokens."""
        return math.prod(self.grid)

    def __repr__(self) -> str:
        t, h, w = self.grid
        if self.kind in ("text", "pad"):
            return f"Segment.{self.kind}({w})"
        if self.kind != "video":
            return f"Segment.{self.kind}(h={h}, w={w})"
        time = "" if self.seconds_per_grid is None else f", seconds_per_grid={self.seconds_per_grid!r}"
        time = time if self.times is None else f", times={list(self.times)}"
        return f"Segment.video(t={t}, h={h}, w={w}{time})"


def _count(value: Any, what: str, least: int) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise ValueError(f"{what}: sizes are whole numbers of tokens, got {value!r}") from None
    if count < least:
        raise ValueError(f"{what}: sizes must be at least {least}, got {count}")
    return count


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
    """

    kind: np.ndarray
    """[n] int8, indices into KINDS."""
    grid: np.ndarray
    """[n, 3] int64, token grids (t, h, w)."""
    seconds: np.ndarray
    """[n] float64, seconds from one temporal grid to the next; NaN where a segment has none."""
    times: tuple[tuple[int, tuple[float, ...]], ...] = ()
    """(segment index, seconds of each temporal grid), for the segments that state them."""

    @classmethod
    def of(cls, segments: Row | Iterable[Segment]) -> Row:
        """The row of these segments."""
        if isinstance(segments, Row):
            return segments
        segments = list(segments)
        for i, segment in enumerate(segments):
            if not isinstance(segment, Segment):
                raise ValueError(
                    f"a row is a list of Segments, but item {i} is {segment!r}; "
                    "write Segment.text(5), Segment.image(h=4, w=6), ..."
                )
        return cls(
            kind=np.array([KINDS.index(segment.kind) for segment in segments], dtype=np.int8),
            grid=np.array([segment.grid for segment in segments], dtype=np.int64).reshape(-1, 3),
            seconds=np.array(
                [math.nan if s.seconds_per_grid is None else s.seconds_per_grid for s in segments], dtype=np.float64
            ),
            times=tuple((i, segment.times) for i, segment in enumerate(segments) if segment.times is not None),
        )

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
        t, h, w = self.grid[i].tolist()
        seconds = None if math.isnan(self.seconds[i]) else float(self.seconds[i])
        return Segment(KINDS[self.kind[i]], (t, h, w), seconds, dict(self.times).get(i))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it equals lists, which have no hash

    def __repr__(self) -> str:
        return f"Row({list(self)!r})"
