"""What a sequence is made of: a row of segments, each text, an image, a frame, a video, audio or padding.

Positions are computed from segments, never from single tokens, so a sequence of 100,000 tokens is a handful of numbers.
`Segment` is what people write and read. `Row` holds the same as plain tuples, which is what the builder reads: a row of three
segments costs a microsecond, and the frames of a video with its time stamps, hundreds of segments, are one item.

Data flows on from here: inputs.py makes rows of what processors and servers have, build.py places rows by the rule of a family
(rules.py), sequences.py appends, truncates, pads and packs them. A kind of media that only some families have is a class of its
own, in a file of its own (omni.py, canvas.py).
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, overload

import numpy as np

from mmrope.positions.stated import numbers, several, whole, whole_numbers
from mmrope.positions.timing import MAX_STEP, check_seconds, check_times, one_clock
from mmrope.records import is_number, shown

KINDS = ("pad", "text", "image", "frame", "video", "audio", "custom")
"""The kinds of segments that are known here."""
MAX_TOKENS = 2**31 - 1  # of one segment


@dataclass(frozen=True)
class MediaKind:
    """What a processor calls a kind of media."""

    name: str
    token_type: int
    """In `mm_token_type_ids`; 0 is text."""
    pixels: str
    """The key of its pixels, or of its features."""
    grids: str
    """The key of its sizes: patch grids [n, 3], of audio a mask of the frames of its spectrogram."""


MEDIA = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            MediaKind("image", 1, "pixel_values", "image_grid_thw"),
            MediaKind("video", 2, "pixel_values_videos", "video_grid_thw"),
            MediaKind("audio", 3, "input_features", "feature_attention_mask"),
        )
    }
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of tokens that is placed as one: made by `text`, `image`, `frame`, `video`, `audio`, `pad` and `custom`. Kinds
    of their own, as `AudioInVideo` and `Canvas`, derive from it.

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

    def __post_init__(self) -> None:
        if type(self) is Segment and (not isinstance(self.kind, str) or self.kind not in KINDS):
            raise ValueError(f"unknown segment kind {shown(self.kind)}; the kinds are {', '.join(KINDS)}")
        what = self._what
        grid = tuple(whole(n, f"{what}: each size", least=self._least) for n in several(self.grid, f"{what}: grid"))
        if len(grid) != 3:
            raise ValueError(f"{what}: grid must be (t, h, w), got {shown(self.grid)}")
        object.__setattr__(self, "grid", grid)
        if self.kind in ("text", "pad", "audio", "custom") and grid[:2] != (1, 1):
            raise ValueError(f"{what} is a line of tokens, (1, 1, n), got {grid}")
        if self.has_time:
            one_clock(self.seconds_per_grid, self.times, what)
            if self.seconds_per_grid is not None:
                seconds = check_seconds(self.seconds_per_grid, f"{what}: seconds_per_grid")
                object.__setattr__(self, "seconds_per_grid", seconds)
            if self.times is not None:
                object.__setattr__(self, "times", check_times(self.times, f"{what}: times", grid[0], "temporal grids"))
        elif self.seconds_per_grid is not None or self.times is not None:
            raise ValueError(f"{what} takes no time: only Segment.video has seconds_per_grid or times")
        elif grid[0] != 1:
            raise ValueError(f"{what} has one temporal grid, got {grid[0]}; use Segment.video")
        if type(self) is Segment and self.kind == "custom":
            raise ValueError(f"{what} needs ids for each of its {grid[2]} tokens on every axis; make it with Segment.custom")
        if self.length > MAX_TOKENS:
            raise ValueError(
                f"{what}: {grid[0]} x {grid[1]} x {grid[2]} tokens are more than {MAX_TOKENS:,}, the most of one segment"
            )

    @property
    def _what(self) -> str:
        """How it is made, for messages."""
        return f"Segment.{self.kind}"

    @property
    def has_time(self) -> bool:
        """Whether its ids may depend on seconds."""
        return self.kind == "video"

    @property
    def _least(self) -> int:
        """Of each size."""
        return 0 if self.kind in ("text", "pad", "custom") else 1

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
        return cls("video", (t, h, w), seconds_per_grid, times)  # pyright: ignore[reportArgumentType]  (made a tuple there)

    @classmethod
    def audio(cls, length: int) -> Segment:
        """Audio of `length` tokens.

        Example:
            >>> from mmrope import Segment, position_ids
            >>> position_ids([Segment.text(2), Segment.audio(3)], "qwen2_5_omni").ids[:, 0].tolist()
            [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
        """
        return cls("audio", (1, 1, length))

    @classmethod
    def custom(cls, ids: Any, *, advance: float) -> Custom:
        """Tokens at stated places: ids [A, n], counted from where the segment begins; text goes on `advance` after there.

        Example:
            >>> from mmrope import Segment, position_ids
            >>> twice = Segment.custom([[0, 0], [0, 1], [0, 1]], advance=2)  # ids [axes, tokens]
            >>> position_ids([Segment.text(1), twice, Segment.text(1)], "qwen2_vl").ids[:, 0].tolist()
            [[0, 1, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
        """
        table = numbers(ids, "Segment.custom: ids", shape=" [axes, tokens]")
        if table.ndim != 2:
            raise ValueError(f"Segment.custom: ids must be numbers [axes, tokens], got {table.dtype} {list(table.shape)}")
        return Custom("custom", (1, 1, table.shape[1]), ids=tuple(map(tuple, table.tolist())), advance=advance)

    @property
    def length(self) -> int:
        """Tokens."""
        return math.prod(self.grid)

    @property
    def size(self) -> str:
        """Its token grid, in words for tables."""
        t, h, w = self.grid
        if self.kind in ("image", "frame"):
            return f"{h} x {w}"
        if not self.has_time:
            return str(w)
        return f"{t} x {h} x {w}" + ("" if self.seconds_per_grid is None else f", {self.seconds_per_grid:g} s apart")

    @property
    def parts(self) -> tuple[str, ...]:
        """The kinds of media that it is of."""
        return (self.kind,)

    def __repr__(self) -> str:
        t, h, w = self.grid
        if self.kind in ("text", "pad", "audio"):
            return f"{self._what}({w})"
        parts = [f"h={h}", f"w={w}"]
        if self.has_time:
            parts = [f"t={t}", *parts]
        parts += self._more()
        if self.seconds_per_grid is not None:
            parts.append(f"seconds_per_grid={self.seconds_per_grid!r}")
        if self.times is not None:
            parts.append(f"times={list(self.times)}")
        return f"{self._what}({', '.join(parts)})"

    def _more(self) -> list[str]:
        """What a kind of its own has besides, as arguments."""
        return []


@dataclass(frozen=True, slots=True, repr=False)
class Custom(Segment):
    """Tokens at stated places; made by `Segment.custom`."""

    ids: tuple[tuple[float, ...], ...] = ()
    """For each axis the ids of its tokens, counted from where it begins."""
    advance: float = 0
    """From where it begins to where text continues."""

    def __post_init__(self) -> None:
        Segment.__post_init__(self)
        for name, value in (*(("an id", x) for axis in self.ids for x in axis), ("advance", self.advance)):
            if not is_number(value) or abs(value) > MAX_STEP:
                raise ValueError(
                    f"Segment.custom: {name} must be a finite number, at most {MAX_STEP:,} either way, got {shown(value)}"
                )

    def __repr__(self) -> str:
        return f"Segment.custom({self.grid[2]} tokens, advance={self.advance:g})"


# --- numbers that users state -----------------------------------------------------------------------------------------


def token_mask(value: Any, shape: tuple[int, ...], what: str) -> np.ndarray | None:
    """A mask of tokens as bool, True or 1 at those that count; None where all do."""
    mask = numbers(value, what, "buif", " 1 and 0")
    if mask.shape != shape:
        raise ValueError(f"{what} has shape {mask.shape}, the tokens {shape}: it must be [rows, tokens] like them")
    others = mask != 1
    some = np.count_nonzero(others)
    additive = mask.dtype.kind == "f" and some == mask.size > 0  # 0 everywhere may be one that adds nothing
    if additive or (some and np.count_nonzero(mask[others])):
        raise ValueError(
            f"{what} must be 1 at real tokens and 0 at padding, or True and False; packed sequences (1, 1, 2, 2, ...) and "
            f"additive masks (0, -inf) say something else: give rows one by one, each with its own mask. It is {mask.dtype}"
        )
    return ~others if some else None


def whole_grid(value: Any, what: str) -> tuple[int, int, int]:
    """A grid (t, h, w) that a user stated."""
    try:
        t, h, w = whole_numbers(value, what, count=3)
    except ValueError:
        raise ValueError(f"{what} must be three whole numbers (t, h, w), got {shown(value)}") from None
    return t, h, w


def whole_grids(value: Any, what: str) -> np.ndarray:
    """Grids (t, h, w) as [n, 3] int64; n may be 0."""
    grids = numbers(value, what, asked="whole numbers [n, 3] (t, h, w)")
    if not grids.size:
        return np.zeros((0, 3), dtype=np.int64)
    if grids.ndim != 2 or grids.shape[1] != 3 or grids.dtype.kind not in "iu":
        raise ValueError(f"{what} must be whole numbers [n, 3] (t, h, w), got {grids.dtype} {list(grids.shape)}")
    return grids.astype(np.int64, copy=False)


# --- rows -------------------------------------------------------------------------------------------------------------

Item = tuple[str, tuple[int, int, int], int, Any]
"""(kind, token grid, tokens, more): more is a video's seconds per grid or the times of its grids, of a kind of its own the
Segment, and None of the rest. Frames with equally many text tokens between them, ("frames", (n, h, w), all tokens, text tokens
between two), are one item."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Row(Sequence[Segment]):
    """A row of segments: the form that `segments_from_inputs` returns and the builder reads.

    It is a sequence of `Segment`s (index it, iterate over it, compare it with a list), picklable, and never changes.

    Example:
        >>> from mmrope import Segment
        >>> from mmrope.positions import Row
        >>> row = Row.of([Segment.text(3), Segment.image(h=2, w=3)])
        >>> row.length, row.lengths.tolist(), row[1].kind
        (9, [3, 6], 'image')
    """

    items: tuple[Item, ...]
    length: int
    """Tokens of the row, padding included."""

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
        items: list[Item] = []
        for i, segment in enumerate(several(segments, "a row", "a list of Segments")):
            if not isinstance(segment, Segment):
                raise ValueError(
                    f"a row is a list of Segments, but item {i} is {segment!r}; "
                    "write Segment.text(5), Segment.image(h=4, w=6), ..."
                )
            if segment.kind == "frame":
                add_frame(items, segment.grid)
            else:
                more = segment if type(segment) is not Segment else segment.times or segment.seconds_per_grid
                items.append((segment.kind, segment.grid, segment.length, more))
        return cls.of_items(items)

    @classmethod
    def of_items(cls, items: Iterable[Item]) -> Row:
        """The row of these items."""
        items = tuple(items)
        return cls(items, sum(tokens for _, _, tokens, _ in items))

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
        return cls(tuple(itertools.chain.from_iterable(row.items for row in rows)), sum(row.length for row in rows))

    @property
    def singles(self) -> Iterator[Item]:
        """Its items, one for each segment."""
        for item in self.items:
            if item[0] == "frames":
                yield from frame_by_frame(item)
            else:
                yield item

    @property
    def lengths(self) -> np.ndarray:
        """[n] int64, tokens of each segment."""
        return np.array([tokens for _, _, tokens, _ in self.singles], dtype=np.int64)

    def __len__(self) -> int:
        return sum(1 if kind != "frames" else n + (n - 1) * (more > 0) for kind, (n, _, _), _, more in self.items)

    def __iter__(self) -> Iterator[Segment]:
        return map(as_segment, self.singles)

    @overload
    def __getitem__(self, index: int) -> Segment: ...
    @overload
    def __getitem__(self, index: slice) -> list[Segment]: ...
    def __getitem__(self, index: int | slice) -> Segment | list[Segment]:
        items = self.items if len(self) == len(self.items) else tuple(self.singles)
        if isinstance(index, slice):
            return list(map(as_segment, items[index]))
        i = operator.index(index)
        if not -len(items) <= i < len(items):
            raise IndexError(f"segment {index} of a row of {len(items)}")
        return as_segment(items[i])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Row):
            return self.items == other.items or list(self) == list(other)
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it equals lists, which have no hash

    def __repr__(self) -> str:
        return f"Row({list(self)!r})"


def as_segment(item: Item) -> Segment:
    """The segment that an item stands for."""
    kind, grid, _, more = item
    if isinstance(more, Segment):
        return more
    return Segment(kind, grid, None, more) if isinstance(more, tuple) else Segment(kind, grid, more)


def text(tokens: int) -> Item:
    """Text as an item."""
    return "text", (1, 1, tokens), tokens, None


def pad(tokens: int) -> Item:
    """Padding as an item."""
    return "pad", (1, 1, tokens), tokens, None


def add_frame(items: list[Item], grid: tuple[int, int, int]) -> None:
    """Appends a frame; as one item with those before it, if they are alike and equally far apart."""
    _, h, w = grid
    gap = items[-1][2] if items and items[-1][0] == "text" else 0
    before = -2 if gap else -1
    if len(items) >= -before:
        kind, (n, *sides), tokens, between = items[before]
        if sides == [h, w] and (kind == "frame" or (kind == "frames" and between == gap)):
            items[before:] = [("frames", (n + 1, h, w), tokens + gap + h * w, gap)]
            return
    items.append(("frame", grid, h * w, None))


def frame_by_frame(item: Item) -> Iterator[Item]:
    """An item of frames as single ones, and the text between them."""
    _, (n, h, w), _, gap = item
    for i in range(n):
        if i and gap:
            yield text(gap)
        yield "frame", (1, h, w), h * w, None
