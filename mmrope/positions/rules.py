"""What a row of the table of families says: where a family of models puts its tokens, and which axis turns which frequency."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from mmrope.positions.segments import KINDS, MAX_STEP, Segment, whole_grids
from mmrope.positions.timing import VideoTiming

Time = Literal["index", "seconds", "seconds_rate_first", "seconds_float64", "whole_seconds", "fractional_seconds"]
Advance = Literal["max", "spatial", "time", "tokens"]
Origin = Literal["next", "zero"]
Ordinal = Literal["row", "batch"]
Dtype = Literal["int64", "float32"]
Layout = Literal["contiguous", "interleaved", "alternating", "by_channel"]
Pairing = Literal["half", "adjacent", "block_half"]
Placement = Callable[[Segment, Any, "Family"], tuple[np.ndarray, Any]]
"""(segment, the id that it begins at, family) -> (ids [A, n], the id that text goes on at)."""

_F32 = np.float32
_TIME_STEPS: dict[Time, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    # (index i of a temporal grid, seconds per grid, ids per second) -> the ids that grid i lies after grid 0; the order of
    # float32 operations decides at whole numbers (0.7 s, 0.3 s, ...), so it is part of the rule
    "seconds": lambda i, seconds, rate: _floor((i.astype(_F32) * seconds.astype(_F32)) * _F32(rate)),
    "seconds_rate_first": lambda i, seconds, rate: _floor(i.astype(_F32) * (seconds * rate).astype(_F32)),
    "seconds_float64": lambda i, seconds, rate: _floor(i * (seconds.astype(_F32).astype(np.float64) * rate)),
    "whole_seconds": lambda i, seconds, rate: _floor(i * np.floor(seconds) * rate),
    "fractional_seconds": lambda i, seconds, rate: (i.astype(_F32) * seconds.astype(_F32)) * _F32(rate),
}


def _floor(x: np.ndarray) -> np.ndarray:
    return np.floor(_bounded(x)).astype(np.int64)


def _bounded(x: np.ndarray) -> np.ndarray:
    if not (x <= MAX_STEP).all():
        raise ValueError(
            f"a video's time ids go more than {MAX_STEP:,} up: its seconds, ids per second or stride are too large"
        )
    return x


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """Ids of the special tokens that say where media are: from a checkpoint's config, for inputs without token types.

    Example:
        >>> import mmrope
        >>> from mmrope.positions import TokenIds
        >>> family = mmrope.family("qwen2_vl", token_ids=TokenIds(image=9))
        >>> inputs = {"input_ids": [[5, 9, 9, 7]], "image_grid_thw": [[1, 2, 4]]}  # without mm_token_type_ids
        >>> [segment.kind for segment in mmrope.segments_from_inputs(inputs, family)[0]]
        ['text', 'image', 'text']
    """

    image: int | None = None
    video: int | None = None
    audio: int | None = None
    vision_start: int | None = None
    audio_start: int | None = None
    video_start: int | None = None
    video_end: int | None = None
    image_start: int | None = None
    image_end: int | None = None
    slice_start: int | None = None
    slice_end: int | None = None
    newline: int | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class Family:
    """A row of the table: where a family of models puts its tokens, and which axis turns which frequency.

    Change a fact with `family(name, ids_per_second=4)`, anything else with `dataclasses.replace`.

    Example:
        >>> import dataclasses
        >>> import mmrope
        >>> mine = dataclasses.replace(mmrope.family("qwen2_vl"), name="mine", stride=2)  # time ids two apart
        >>> mmrope.position_ids([mmrope.Segment.video(t=3, h=1, w=1)], mine).ids[0, 0].tolist()
        [0, 2, 4]
    """

    name: str
    revision: str = ""
    """Whose rule it is; empty for the reference."""
    source: str
    """Where the rule stands: paper section, or file and version."""

    # where is each token
    axes: str = "thw"
    """One letter an axis: t, h, w are a token's place in its grid, p counts the tokens of the row, i the media of the row;
    other letters are filled by `place`."""
    dtype: Dtype = "int64"
    """float32 where ids are fractional."""
    pad_value: int = 0
    """What padding tokens carry."""
    media: tuple[str, ...] = ("image", "video")
    """The kinds of segments that it places besides text, padding and custom ones."""
    spatial_merge: int = 2
    """Patches per token along h and along w."""
    temporal_merge: int = 1
    """Temporal grids of a video per token along t."""
    frames_per_grid: int = 2
    """Frames that the processor makes one temporal grid of (`temporal_patch_size`)."""
    row_token: bool = False
    """A token more ends each row of an image, and stands in column w."""
    markers: int = 0
    """Tokens of an image's run around its grid that are placed like text."""
    targets: bool = False
    """Its processor lists the grids of images that are yet to be made, too, behind those of each prompt."""
    recurrent: bool = False
    """Whether some layers carry a state from token to token (linear attention), so that sequences of a pack run into each other
    unless their kernels are told the boundaries."""
    time: Time = "index"
    """The step of temporal grid i: "index" i * stride; "seconds" floor((i * seconds) * ids_per_second), "seconds_rate_first"
    floor(i * (ids_per_second * seconds)), "fractional_seconds" as "seconds" without floor, all in float32 in this order;
    "seconds_float64" floor(i * (seconds * ids_per_second)) in float64; "whole_seconds" i * floor(seconds) * ids_per_second."""
    ids_per_second: float | None = None
    """Ids a second, for the families whose time is in seconds (`tokens_per_second`, `position_id_per_seconds` of a config)."""
    seconds_per_chunk: float | None = None
    """Seconds of video, then of its sound, and so on, for the families that interleave the two in chunks."""
    stride: float | None = 1
    """Ids from one temporal grid to the next ("index"), on axis p from one vision token to the next; None where authors leave
    it to the user, who states it."""
    origin: Origin = "next"
    """Where h and w of vision are counted from: the next id, or zero."""
    center: bool = False
    """h and w are counted from the middle of the grid, (n - 1) // 2."""
    couple: bool = False
    """The time step is added to h and w, too."""
    advance: Advance = "max"
    """Where text goes on after vision that starts at p: "max" the largest step on any axis + 1 further; "spatial" at
    p + max(h, w), however long the video; "time" the last t + 1; "tokens" as many ids further as there are tokens, times
    stride."""
    ordinal: Ordinal = "row"
    """Over what axis i counts the media."""
    place: Mapping[str, Placement] = field(default_factory=dict, hash=False)
    """Functions for the kinds of segments that these fields cannot place."""
    audio_tokens: Callable[[np.ndarray], np.ndarray] | None = None
    """Frames of a sound's spectrogram -> its tokens."""

    # how the model feels it
    layout: Layout = "contiguous"
    """How the axes share the pairs: "contiguous" t..t h..h w..w, "interleaved" t h w t h w ... then t, "alternating" h w h w
    ... then t; "by_channel" contiguous over channels instead of pairs, which is no rotation."""
    sections: tuple[int, ...] = ()
    """Pairs per axis, of the released checkpoints; empty where one axis has all."""
    section_order: str = ""
    """The order in which a config lists the sections, where it is not that of `axes`."""
    still: str = ""
    """Axes whose pairs are not turned at all."""
    theta: float = 1e4
    pairing: Pairing = "half"
    rotary_fraction: float = 1.0

    # a checkpoint
    token_ids: TokenIds = TokenIds()
    config: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Facts of a checkpoint -> where its config states them ("a.b|c": a.b, or else c; "?" at the end: may be missing)."""
    model_types: tuple[str, ...] = ()
    """What its configs call it, besides its name."""

    def __post_init__(self) -> None:
        literals = {
            **{"time": Time, "advance": Advance, "origin": Origin, "ordinal": Ordinal, "dtype": Dtype},
            **{"layout": Layout, "pairing": Pairing},
        }
        for name, allowed in literals.items():
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{self}: {name} must be one of {get_args(allowed)}, got {getattr(self, name)!r}")
        for name in ("media", "place"):
            unknown = set(getattr(self, name)) - set(KINDS[2:])
            if unknown:
                raise ValueError(f"{self}: {name} must be among {KINDS[2:]}, got {sorted(unknown)}")
        by_function = {"audio_in_video", "canvas"} if set(self.axes) <= set("thwpi") else {"image", "frame", "video", "canvas"}
        unplaced = (set(self.media) & by_function) - set(self.place)
        if unplaced:
            raise ValueError(
                f"{self}: no field says where {sorted(unplaced)} go on the axes {self.axes}: name functions in place"
            )
        for name in ("spatial_merge", "temporal_merge", "frames_per_grid"):
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, operator.index(value))
            except TypeError:
                raise ValueError(f"{self}: {name} must be a whole number, got {value!r}") from None
            if value < 1:
                raise ValueError(f"{self}: {name} must be at least 1, got {value!r}")
        if self.uses_seconds != (self.ids_per_second is not None):
            raise ValueError(
                f"{self}: ids_per_second belongs to the families whose time is in seconds "
                f"(time={self.time!r}, ids_per_second={self.ids_per_second!r})"
            )
        for name in ("ids_per_second", "seconds_per_chunk", "stride"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float, np.number)) and math.isfinite(value) and value > 0):
                raise ValueError(f"{self}: {name} must be a positive number, got {value!r}")
        if not self.fractional and self.stride is not None and self.stride != int(self.stride):
            raise ValueError(f"{self}: its ids are whole numbers, so stride must be one, got {self.stride!r}")

    @property
    def uses_seconds(self) -> bool:
        """Whether a video's ids depend on its seconds, so that it must state them."""
        return self.time != "index"

    @property
    def split_frames(self) -> bool:
        """Whether a video is a list of frames with text time stamps between them, and each frame is placed like an image."""
        return "frame" in self.media and "video" not in self.media

    @property
    def fractional(self) -> bool:
        """Whether ids may be fractions."""
        return self.dtype.startswith("float")

    @property
    def key(self) -> str:
        """The name with its revision, as `family` takes it."""
        return f"{self.name}@{self.revision}" if self.revision else self.name

    def has(self, fact: str) -> bool:
        """Whether a fact of checkpoints means something to the family."""
        return {
            "spatial_merge": bool({"image", "frame", "video", "canvas"} & set(self.media)),
            "temporal_merge": "video" in self.media,
            "frames_per_grid": bool({"frame", "video"} & set(self.media)),
            "ids_per_second": self.uses_seconds,
            "seconds_per_chunk": self.seconds_per_chunk is not None,
            "stride": self.stride != 1,
            "token_ids": True,
        }[fact]

    def steps(self, i: np.ndarray, seconds: Any, times: Sequence[float] | None = None) -> np.ndarray:
        """The ids that temporal grids `i` of a video lie after its first: int64, or float32 where ids are fractional.

        Args:
            i: indices of temporal grids, whole numbers of any shape.
            seconds: from one temporal grid to the next, a number or an array like `i`; unused where time is an index.
            times: instead, the seconds of each of the video's temporal grids.
        """
        if not self.uses_seconds:
            return _bounded(i * ((self.stride or 0) if self.fractional else int(self.stride or 0)))
        rate = float(self.ids_per_second or 0)
        if times is None:
            return _TIME_STEPS[self.time](i, np.asarray(seconds, dtype=np.float64), rate)
        since_first = np.asarray(times, dtype=np.float64)[i] - times[0]
        if self.fractional:
            return since_first.astype(_F32) * _F32(rate)
        return _floor(since_first.astype(_F32) * _F32(rate))

    def image(self, patch_grid: Sequence[int]) -> Segment:
        """The segment of an image, from its patch grid (a row of `image_grid_thw`, [3]); of families with a canvas, of an
        image without detail crops.

        Example:
            >>> import mmrope
            >>> mmrope.family("qwen2_vl").image((1, 8, 12)).grid  # a row of image_grid_thw; two patches a token on each side
            (1, 4, 6)
        """
        t, h, w = self.token_grids([patch_grid])[0].tolist()
        if t != 1:
            raise ValueError(f"{self}: an image has one temporal grid, got patch grid {tuple(patch_grid)}; use Family.video")
        return Segment.canvas(h=h, w=w) if "canvas" in self.media else Segment.image(h=h, w=w)

    def video(
        self,
        patch_grid: Sequence[int],
        *,
        seconds_per_grid: float | None = None,
        times: Sequence[float] | None = None,
        timing: VideoTiming | None = None,
    ) -> Segment:
        """The segment of a video, from its patch grid (a row of `video_grid_thw`, [3]) and its times: seconds from one
        temporal grid to the next, or of each temporal grid (after the temporal merge), or a VideoTiming.

        Example:
            >>> import mmrope
            >>> segment = mmrope.family("qwen2_5_vl").video((4, 8, 12), seconds_per_grid=0.5)
            >>> segment.grid, segment.seconds_per_grid
            ((4, 4, 6), 0.5)
        """
        t, h, w = self.token_grids([patch_grid], video=True)[0].tolist()
        if self.split_frames:
            raise ValueError(
                f"{self} splits videos: list text (the time stamp) and Segment.frame(h={h}, w={w}) alternately, {t} times"
            )
        if timing is not None:
            if seconds_per_grid is not None or times is not None:
                raise ValueError("give a video's timing, or seconds_per_grid, or times: one of them")
            seconds_per_grid, times = self.grid_seconds(timing, patch_grid[0], f"the video of patch grid {tuple(patch_grid)}")
        return Segment.video(t=t, h=h, w=w, seconds_per_grid=seconds_per_grid, times=times)

    def grid_seconds(self, timing: VideoTiming, grids: int, what: str) -> tuple[float | None, tuple[float, ...] | None]:
        """seconds_per_grid and times, one of which is None, of a video with `grids` temporal patch grids.

        Raises:
            ValueError: the timing is that of another number of frames.
        """
        frames_per_token = self.frames_per_grid * self.temporal_merge
        expected = timing.grids(frames_per_token) * self.temporal_merge  # the last is filled up
        if expected != grids:
            raise ValueError(
                f"{what} has {grids} temporal grids, but its timing lists {len(timing.frame_indices)} sampled frames, "
                f"which make {expected} at {self.frames_per_grid} frames a grid: "
                "pass the timing of the frames that this processor was given"
            )
        seconds = timing.seconds_per_grid(frames_per_token)
        return seconds, None if seconds is not None else timing.grid_times(frames_per_token)

    def token_grids(self, patch_grids: Any, what: str = "patch grid", *, video: bool = False) -> np.ndarray:
        """Token grids [n, 3] of patch grids [n, 3]: h and w divided by the spatial merge, and t of a video by the temporal
        merge, which must divide them."""
        grids, m = whole_grids(patch_grids, f"{self}: {what}s"), self.spatial_merge
        per_token = np.array((1, m, m))
        tokens = grids // per_token
        fits = (tokens >= 1) & (tokens * per_token == grids)
        if not fits.all():
            i = int(np.argmin(fits.all(axis=1)))
            t, h, w = grids[i].tolist()
            raise ValueError(
                f"{what} {i} is {t} x {h} x {w}, but {self} merges {m} x {m} patches to a token: h and w must be positive "
                f"multiples of {m}. Was it made with another merge size, or is it a token grid already?"
            )
        if self.row_token:
            tokens[:, 2] += 1
        if video and self.temporal_merge > 1:
            uneven = (grids[:, 0] % self.temporal_merge != 0) & (grids[:, 0] != 1)
            if uneven.any():
                i = int(np.argmax(uneven))
                raise ValueError(
                    f"{what} {i} has {grids[i, 0]} temporal grids, but {self} merges {self.temporal_merge} of a video's to a "
                    "token: the processor fills them up to a multiple"
                )
            tokens[:, 0] = np.maximum(grids[:, 0] // self.temporal_merge, 1)
        return tokens

    def __str__(self) -> str:
        return self.key

    def __repr__(self) -> str:
        return f"Family({self.key!r})"
