"""MiniCPM-V's canvas, whole: a picture as a thumbnail and detail crops, each between markers.

Its segment, how it is found among the tokens, and how it is placed. Nothing else in positions/ knows of it: the family that has
it names its reading and its placement in its row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmrope.positions.rules import Family, Reading
from mmrope.positions.segments import MEDIA, Row, Segment
from mmrope.positions.stated import several, whole, whole_numbers

CANVAS = "canvas"
_SIZES = {MEDIA["image"].token_type: "target_sizes", MEDIA["video"].token_type: "target_sizes_videos"}


# --- the segment ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class Canvas(Segment):
    """A picture or a frame of MiniCPM-V: a thumbnail, whose token grid is `grid`, between its two markers, then detail crops,
    each between two markers, with a newline token after each row but the last; made by `make`.

    Example:
        >>> from mmrope.positions import Canvas
        >>> Canvas.make(h=2, w=2, slices=[(2, 2), (2, 2)], columns=2).length  # three times 4 tokens and 2 markers
        18
    """

    slices: tuple[tuple[int, int], ...] = ()
    """The token grids (h, w) of the detail crops, row by row."""
    columns: int = 0
    """Detail crops in a row."""
    newlines: int = 0
    """Newline tokens that follow its last marker and belong to it."""

    @classmethod
    def make(cls, *, h: int, w: int, slices: Iterable[tuple[int, int]] = (), columns: int = 0, newlines: int = 0) -> Canvas:
        """A picture whose thumbnail has h x w tokens.

        Raises:
            ValueError: sizes that cannot be, crops that do not fill rows of `columns`.

        Example:
            >>> from mmrope.positions import Canvas
            >>> Canvas.make(h=2, w=3, newlines=1)
            Canvas.make(h=2, w=3, newlines=1)
        """
        return cls(CANVAS, (1, h, w), slices=slices, columns=columns, newlines=newlines)  # pyright: ignore[reportArgumentType]

    def __post_init__(self) -> None:
        each = f"{self._what}: sizes"
        slices = tuple(whole_numbers(size, each, count=2, least=1) for size in several(self.slices, f"{self._what}: slices"))
        columns, newlines = whole(self.columns, each, least=0), whole(self.newlines, each, least=0)
        if bool(slices) != bool(columns) or (columns and len(slices) % columns):
            raise ValueError(f"{self._what}: {len(slices)} slices do not fill rows of {columns} columns")
        for name, value in (("slices", slices), ("columns", columns), ("newlines", newlines)):
            object.__setattr__(self, name, value)
        Segment.__post_init__(self)  # which counts all of its tokens

    @property
    def length(self) -> int:
        """Tokens."""
        breaks = len(self.slices) // self.columns - 1 if self.slices and self.columns else 0
        return math.prod(self.grid) + 2 + sum(h * w + 2 for h, w in self.slices) + breaks + self.newlines

    @property
    def size(self) -> str:
        """Its thumbnail and its crops, in words for tables."""
        return f"{self.grid[1]} x {self.grid[2]}" + (f", {len(self.slices)} crops" if self.slices else "")

    @property
    def _what(self) -> str:
        return "Canvas.make"

    def _more(self) -> list[str]:
        crops = [f"slices={list(self.slices)}, columns={self.columns}"] if self.slices else []
        return crops + ([f"newlines={self.newlines}"] if self.newlines else [])


# --- how it is found --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CanvasReading(Reading):
    """A crop is a run of image or video tokens. It is a detail of the picture before it where a slice marker stands in front of
    it, and otherwise the thumbnail of a new one (transformers 5.23.0, models/minicpmv4_7, _group_visual_frames)."""

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(_SIZES.values())

    def image(self, h: int, w: int) -> Segment:
        """An image without detail crops."""
        return Canvas.make(h=h, w=w)

    def rows(
        self,
        host: Mapping[str, np.ndarray],
        given: Mapping[str, Any],
        types: np.ndarray,
        mask: np.ndarray | None,
        family: Family,
        *,
        timed: bool,
    ) -> list[Row]:
        other = [kind.grids for kind in MEDIA.values() if kind.grids in host]
        if other or timed:
            what = ", ".join(other) or "video_timings"
            raise ValueError(
                f"{what} given, but {family} places pictures and frames by {' and '.join(_SIZES.values())}, without times"
            )
        for kind in (MEDIA["image"], MEDIA["video"]):
            if given.get(kind.pixels) is not None and _SIZES[kind.token_type] not in host:
                raise ValueError(
                    f"inputs have {kind.pixels} but no {_SIZES[kind.token_type]}: the sizes of the media are needed"
                )
        markers = family.checkpoint.token_ids
        if None in (markers.image_start, markers.image_end, markers.slice_start, markers.slice_end, markers.newline):
            raise ValueError(
                f"{family} is read by the ids of its markers (image_start_id, image_end_id, slice_start_id, slice_end_id, "
                "newline_id of its config): take it from family_from_config(model.config)"
            )
        sizes = {kind: _Crops(host.get(key), key, family) for kind, key in _SIZES.items()}
        rows = []
        for b, (ids, kinds) in enumerate(zip(host["input_ids"], types, strict=True)):
            real = np.ones(len(ids), dtype=bool) if mask is None else mask[b]
            segments = list(_segments(ids[real].tolist(), kinds[real].tolist(), sizes, family, f"row {b}"))
            rows.append(_with_padding(segments, real))
        for crops in sizes.values():
            crops.end()
        return rows


class _Crops:
    """The token grids (h, w) of crops, handed out in their order."""

    def __init__(self, sizes: np.ndarray | None, key: str, family: Family) -> None:
        self.key, self.family, self.used = key, family, 0
        patches = np.zeros((0, 2), dtype=np.int64) if sizes is None else sizes.reshape(-1, sizes.shape[-1])
        if patches.shape[1] != 2 or patches.dtype.kind not in "iu":
            raise ValueError(f"{key} must be whole numbers [crops, 2] (h, w), got {patches.dtype} {list(patches.shape)}")
        with_t = np.concatenate([np.ones_like(patches[:, :1]), patches], axis=1)
        self.grids = [(h, w) for _, h, w in family.token_grids(with_t, f"{key} row")]

    def next(self, tokens: int, where: str) -> tuple[int, int]:
        """The grid of the next crop, which has this many tokens."""
        if self.used == len(self.grids):
            raise ValueError(f"{where} are more than the {len(self.grids)} crop(s) of {self.key}; is one missing?")
        h, w = self.grids[self.used]
        if h * w != tokens:
            raise ValueError(
                f"{where} do not fit crop {self.used} of {self.key}: it needs {h * w} ({h} x {w} after merge "
                f"{self.family.spatial_merge}). Was the row truncated, or made with another downsample_mode?"
            )
        self.used += 1
        return h, w

    def end(self) -> None:
        """Refuses crops that no tokens stand for."""
        if self.used < len(self.grids):
            raise ValueError(f"{self.key} has {len(self.grids)} crops, but the tokens end before crop {self.used}")


def _segments(ids: list[int], kinds: list[int], sizes: Mapping[int, _Crops], family: Family, where: str) -> Iterator[Segment]:
    """The segments of a row without its padding."""
    m = family.checkpoint.token_ids
    runs = [(kind, [i for i, _ in run]) for kind, run in itertools.groupby(enumerate(kinds), key=lambda pair: pair[1])]
    crops = [(kind, run[0], run[-1] + 1) for kind, run in runs if kind]
    done, n = 0, 0
    while n < len(crops):
        details = n + 1
        while details < len(crops) and ids[crops[details][1] - 1] == m.slice_start:
            details += 1
        picture, n = crops[n:details], details
        begin = picture[0][1] - 1
        _expect(ids, begin, m.image_start, where, "the marker before a picture")
        (h, w), *slices = [
            sizes[kind].next(stop - start, f"{where}: the {stop - start} crop tokens at {start}..{stop - 1}")
            for kind, start, stop in picture
        ]
        at, breaks = picture[0][2], []
        _expect(ids, at, m.image_end, where, "the marker after a thumbnail")
        at += 1
        for k, (_, start, stop) in enumerate(picture[1:]):
            if k and ids[at : at + 1] == [m.newline]:
                at, breaks = at + 1, [*breaks, k]
            _expect(ids, at, m.slice_start, where, "the marker before a detail crop")
            if at + 1 != start:
                raise ValueError(f"{where}: tokens {at + 1}..{start - 1} stand between a marker and its crop")
            _expect(ids, stop, m.slice_end, where, "the marker after a detail crop")
            at = stop + 1
        columns = breaks[0] if breaks else len(slices)
        if breaks != list(range(columns, len(slices), columns or 1)) or (columns and len(slices) % columns):
            raise ValueError(
                f"{where}: a newline stands after {', '.join(map(str, breaks))} of the {len(slices)} detail crops from token "
                f"{picture[1][1]} on, but one is needed after each row of {columns}"
            )
        newlines = next((i for i in range(at, len(ids)) if ids[i] != m.newline), len(ids)) - at
        if begin > done:
            yield Segment.text(begin - done)
        yield Canvas.make(h=h, w=w, slices=slices, columns=columns, newlines=newlines)
        done = at + newlines
    if done < len(ids):
        yield Segment.text(len(ids) - done)


def _expect(ids: list[int], at: int, token: int | None, where: str, what: str) -> None:
    if not 0 <= at < len(ids) or ids[at] != token:
        found = ids[at] if 0 <= at < len(ids) else "nothing"
        raise ValueError(f"{where}: token {at} should be {what} ({token}), but is {found}; was the row truncated?")


def _with_padding(segments: list[Segment], real: np.ndarray) -> Row:
    """The row with padding where the mask has it, which must not be inside a segment."""
    row: list[Segment] = []
    rest = list(segments)
    for is_real, run in itertools.groupby(real.tolist()):
        left = len(list(run))
        if not is_real:
            row.append(Segment.pad(left))
            continue
        while left:
            segment = rest.pop(0)
            if segment.length > left:
                if segment.kind != "text":
                    raise ValueError(f"padding stands inside {segment!r}")
                rest.insert(0, Segment.text(segment.length - left))
                segment = Segment.text(left)
            row.append(segment)
            left -= segment.length
    return Row.of(row)


# --- how it is placed -------------------------------------------------------------------------------------------------


def on_canvas(segment: Canvas, start: Any, family: Family) -> tuple[np.ndarray, Any]:
    """MiniCPM-V 4.7: all tokens of a picture have one t; the detail crops tile a canvas, over which the thumbnail is
    stretched, and the markers stand at corners (transformers 5.23.0, models/minicpmv4_7, get_rope_index)."""
    _, h, w = segment.grid
    rows = len(segment.slices) // segment.columns if segment.slices else 0
    slice_h, slice_w = segment.slices[0] if segment.slices else (0, 0)
    height, width = (rows * slice_h, segment.columns * slice_w) if rows else (h, w)
    halo = max(start - 1, 0) - start
    hw = [_point(halo, halo), _grid(_stretched(h, height), _stretched(w, width)), _point(height, width)]
    for n, (this_h, this_w) in enumerate(segment.slices):
        row, column = divmod(n, segment.columns)
        top, left = row * slice_h, column * slice_w
        if n and column == 0:
            hw.append(_point(top - 1, width))  # the newline, past the right edge of the row that it ends
        hw += [_point(top, left), _grid(top + np.arange(this_h), left + np.arange(this_w))]
        hw.append(_point(top + this_h - 1, left + this_w - 1))
    hw.append(np.zeros((2, segment.newlines), dtype=np.int64))
    h_and_w = np.concatenate(hw, axis=1)
    return start + np.concatenate([np.zeros_like(h_and_w[:1]), h_and_w]), start + max(height, width) + 1


def _point(h: int, w: int) -> np.ndarray:
    return np.array([[h], [w]], dtype=np.int64)


def _grid(h: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.stack(np.broadcast_arrays(h[:, None], w)).reshape(2, -1)


def _stretched(n: int, size: int) -> np.ndarray:
    """n coordinates from 0 to size - 1, evenly spaced and rounded: torch.linspace(0, size - 1, n).round(), in float32 and
    counted from both ends, as torch does."""
    if n == 1:
        return np.zeros(1, dtype=np.int64)
    i, last = np.arange(n, dtype=np.float32), np.float32(size - 1)
    step = last / np.float32(n - 1)
    return np.where(i < n // 2, step * i, last - step * i[::-1]).round().astype(np.int64)
