"""Images and videos, opened, sampled, measured and cut into patches: several at a time."""

from __future__ import annotations

import dataclasses
import itertools
import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from mmrope.extras import needed_for
from mmrope.positions.families import Family
from mmrope.positions.families import family as find_family
from mmrope.positions.timing import VideoTiming
from mmrope.preprocess.access import Access
from mmrope.preprocess.errors import Limits, MediaError
from mmrope.preprocess.messages import SAMPLING_KEYS, SIZE_KEYS, brief, is_jpeg_list, items_of, shared, source_of
from mmrope.preprocess.patches import (
    FAMILY_PATCHES,
    FAMILY_SAMPLING,
    PatchConfig,
    frame_size,
    image_patches,
    image_size,
    keyed_frame_size,
    keyed_image_size,
    listed_frame_size,
    normalize,
    video_patches,
)
from mmrope.preprocess.sampling import BY_TIME, HAS_NUM_FRAMES, SAMPLING_RULES, SAMPLINGS, FrameChoice

if TYPE_CHECKING:
    import torch

    from mmrope.preprocess.image import Animation, Color
    from mmrope.preprocess.video import VideoBackend

_PROCESS = os.getpid()
"""The process that loaded this module: another one that runs it is a fork."""
_CHOICES = {
    "pixels": ("float32", "uint8"),
    "animation": ("refuse", "first"),
    "color": ("stored", "srgb"),
    "video_backend": ("auto", "pyav", "decord", "torchcodec"),
    "damaged": ("refuse", "keep"),
    "aspect": ("stored", "square"),
}
_MOST_THREADS = 8  # of which each may use all of torch's


@dataclass(frozen=True, eq=False)
class Media:
    """An image or a video that has been opened and measured.

    Example:
        >>> import numpy as np
        >>> from mmrope import Processor
        >>> image = np.zeros((56, 84, 3), np.uint8)
        >>> [media] = [part.media for part in Processor().parts([{"type": "image", "image": image}]) if part.media]
        >>> media.kind, media.patch_grid
        ('image', (1, 4, 6))
    """

    kind: Literal["image", "video"]
    patch_grid: tuple[int, int, int]
    """(t, h, w) in patches."""
    name: str = ""
    """Of its file; empty where only the size is known."""
    times: Sequence[Fraction] = ()
    """When the frames of a video were sampled, in seconds from its first frame, filled up to whole temporal grids: as the rule
    of `Processor.sampling` states it, index / average frames a second for all but "time"."""
    seconds_per_grid: float | None = None
    """From one temporal grid to the next, as the rule states it; None for uneven "times", which `timing` has."""
    timing: VideoTiming | None = None
    seconds: np.ndarray | None = None
    """The presentation times of the sampled frames, in seconds from the first frame of the file."""
    patches: torch.Tensor | None = None
    """uint8 [P, values], its pixels, if they were asked for."""
    damage: str = ""
    """What is missing of a damaged film of which what is left was taken."""


class _Plan(NamedTuple):
    """Which frames of a video are sampled."""

    indices: np.ndarray
    times: list[Fraction]
    """As the rule states them, in seconds from the first frame."""
    seconds_per_grid: float | None


def _numbers(values: Any, count: int) -> bool:
    """Whether these are so many numbers: settings come from files."""
    return isinstance(values, (tuple, np.ndarray)) and len(values) == count and all(isinstance(x, numbers.Real) for x in values)


@dataclass(frozen=True, kw_only=True)
class MediaProcessor:
    """How images and videos become patches: the settings of a Processor that are about media, and what is done by them.

    Example:
        >>> import numpy as np
        >>> from mmrope.preprocess.measure import MediaProcessor
        >>> MediaProcessor(family="qwen2_vl").measure({"type": "image", "image": np.zeros((56, 84, 3), np.uint8)}).patch_grid
        (1, 4, 6)
    """

    family: Family | str = "qwen2_5_vl"
    patches: PatchConfig | None = None
    """How pixels become patches; None for the family's own way (mmrope.preprocess.patches.FAMILY_PATCHES)."""
    image_pixels: tuple[int, int] | None = None
    """Fewest and most pixels of a resized image; None for those of `patches`."""
    video_pixels: tuple[int, int] | None = None
    """Fewest and most pixels of a resized video frame; None for those of `patches`."""
    fps: float = 2.0
    """Sampled frames of a video per second."""
    num_frames: int | None = None
    """Sampled frames of a video, evenly spread, instead of `fps`."""
    min_frames: int = 4
    max_frames: int = 768
    sampling: str | None = None
    """Which frames are sampled, a name of mmrope.preprocess.sampling.SAMPLINGS: "time", even times and the frames on show then,
    or the rule of "qwen_vl_utils" or of a video processor of transformers. None for the family's own: "qwen_vl_utils" for
    Qwen's, "Glm4vVideoProcessor" for GLM-4V's, "time" for others."""
    background: tuple[int, int, int] = (255, 255, 255)
    """What shows through transparent pixels, RGB."""
    animation: Animation = "refuse"
    """What becomes of an animated file that is given as an image: "refuse" it, or take its "first" frame. Given as a video it
    is a film."""
    color: Color = "stored"
    """"stored": values as files hold them, as the models' own processors read them; "srgb": images and animations converted by
    their ICC profile, and films with a high dynamic range as a display shows them."""
    pixels: Literal["float32", "uint8"] = "float32"
    """pixel_values as models read them, or as bytes, an eighth of the size for images, to be turned into the former on the
    device by `normalize`, or by a model that does it itself, as `mmrope.VLM`."""
    video_backend: VideoBackend = "auto"
    damaged: Literal["refuse", "keep"] = "refuse"
    """What becomes of a film that is cut off or has packets that cannot be decoded: it is refused, or what is left is taken;
    `Media.damage` says what is missing."""
    aspect: Literal["stored", "square"] = "stored"
    """Frames as they are stored, as the models' own processors take them, or with pixels that are not square (DVDs, broadcasts)
    as wide as a screen shows them."""
    threads: int | None = None
    """Media that are prepared at a time; None for as many as torch uses (one in the workers of a DataLoader), 8 at most."""
    limits: Limits = Limits()
    access: Access = Access()
    """Which paths and URLs may be opened."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", find_family(self.family))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {getattr(self, name)!r}")
        for name in ("image_pixels", "video_pixels", "background"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))  # as it comes back from a file
        for name in ("image_pixels", "video_pixels"):
            if (bounds := getattr(self, name)) is not None and not (_numbers(bounds, 2) and 0 <= bounds[0] <= bounds[1] > 0):
                raise ValueError(f"{name} must be the fewest and the most, got {bounds}")
        few, most = self.min_frames, self.max_frames
        if not (_numbers((self.fps, few, most), 3) and 0 < self.fps < math.inf and 1 <= few <= most):
            raise ValueError(
                "fps must be positive and 1 <= min_frames <= max_frames, got "
                f"fps={self.fps!r}, min_frames={few!r}, max_frames={most!r}"
            )
        if self.num_frames is not None:
            self._check_count(self.num_frames)
        if self.sampling is not None and self.sampling not in list(SAMPLINGS):
            raise ValueError(f"sampling must be {' or '.join(map(repr, SAMPLINGS))} or None, got {self.sampling!r}")
        if not _numbers(self.background, 3) or not all(0 <= value <= 255 for value in self.background):
            raise ValueError(f"background must be red, green and blue from 0 to 255, got {self.background}")
        if self.threads is not None and not (_numbers((self.threads,), 1) and self.threads >= 1):
            raise ValueError(f"threads must be at least 1, or None for as many as torch uses, got {self.threads!r}")
        config = self.patches or FAMILY_PATCHES.get(self._family.name)
        if config and self._family.spatial_merge != config.merge_size:
            raise ValueError(
                f"{self.family} merges {self._family.spatial_merge} x {self._family.spatial_merge} patches, "
                f"but patches.merge_size is {config.merge_size}: they must agree"
            )
        if config and self._family.frames_per_grid != config.temporal_patch_size:
            raise ValueError(
                f"{self.family} makes a temporal grid of {self._family.frames_per_grid} frames, "
                f"but patches.temporal_patch_size is {config.temporal_patch_size}: they must agree"
            )

    @property
    def _family(self) -> Family:
        return find_family(self.family)

    @property
    def patch_size(self) -> int:
        """Pixels along a side of a patch."""
        return self._patches.patch_size

    @property
    def _patches(self) -> PatchConfig:
        """The patch settings with this processor's own pixel bounds."""
        config = self.patches or FAMILY_PATCHES.get(self._family.name)
        if config is None:
            raise ValueError(
                f"how {self.family} cuts pixels into patches is not known here (known: {', '.join(FAMILY_PATCHES)}); "
                "say it with patches=PatchConfig(...)"
            )
        own = {"image_pixels": self.image_pixels, "video_pixels": self.video_pixels}
        return dataclasses.replace(config, **{key: value for key, value in own.items() if value is not None})

    @property
    def _sampling(self) -> str:
        return self.sampling or FAMILY_SAMPLING.get(self._family.name, BY_TIME)

    # --- items ---

    def prepare_media(self, items: Sequence[Mapping[str, Any]]) -> list[Media]:
        """The media of items, with their pixels. What threads must not share goes through one of them, in turn."""
        groups: dict[Any, list[int]] = {}
        for n, item in enumerate(items):
            groups.setdefault(shared(item) or (n,), []).append(n)
        made: dict[int, Media] = {}

        def prepare(group: list[int]) -> None:
            for n in group:
                made[n] = self.measure(items[n], pixels=True)

        self._together(prepare, list(groups.values()))
        return [made[n] for n in range(len(items))]

    def _together(self, function: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        """The function of each item, several at a time: decoding and resizing leave Python's lock."""
        import torch

        if os.getpid() != _PROCESS:
            # a fork has none of its parent's threads, and torch would wait for them for ever; DataLoader does the same
            torch.set_num_threads(1)
        threads = min(self.threads or min(torch.get_num_threads(), _MOST_THREADS), len(items))
        if threads < 2:
            return [function(item) for item in items]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, items))

    def join_pixels(self, media: Sequence[Media]) -> torch.Tensor:
        """The patches of all media, one after the other: [P, values]."""
        import torch

        patches: list[torch.Tensor] = [item.patches for item in media if item.patches is not None]
        if self.pixels == "uint8":
            return torch.cat(patches)
        # written to their places right away: what is joined is four bytes a value, and often twice
        out = torch.empty(sum(map(len, patches)), self._patches.patch_dim)
        places = out.split([len(item) for item in patches])
        self._together(lambda n: normalize(patches[n], self._patches, out=places[n]), range(len(patches)))
        return out

    def measure(self, item: Mapping[str, Any], *, pixels: bool = False) -> Media:
        """An item's image or video: its patch grid, its times, and with `pixels` its patches."""
        [item] = items_of([item])
        if "grid" in item:
            media = self._stated(item)
            if pixels:
                raise ValueError("an item with 'grid' has positions but no pixels; give the file instead")
            return media
        return self._measure_image(item, pixels) if item["type"] == "image" else self._measure_video(item, pixels)

    @property
    def _options(self) -> dict[str, Any]:
        """What images and videos are opened with."""
        return {"background": self.background, "color": self.color, "limits": self.limits, "access": self.access}

    def _measure_image(self, item: Mapping[str, Any], pixels: bool) -> Media:
        with needed_for("an image"):
            from mmrope.preprocess.image import load_image, source_name  # Pillow is loaded once there is a file

        source, config = source_of(item), self._patches
        image = load_image(source, animation=self.animation, **self._options)
        if any(key in item for key in SIZE_KEYS):
            size = keyed_image_size(image.shape[0], image.shape[1], item, config, bounds=self.image_pixels, limits=self.limits)
        else:
            size = image_size(image.shape[0], image.shape[1], config, self.limits)
        grid = self._checked_grid(1, size)
        patches = image_patches(image, size, config) if pixels else None
        return Media("image", grid, source_name(source), patches=patches)

    def _measure_video(self, item: Mapping[str, Any], pixels: bool) -> Media:
        with needed_for("a video"):
            from mmrope.preprocess.video import has_own_clock, open_video  # and FFmpeg

        source, config = source_of(item), self._patches
        rate = None if has_own_clock(source) else self._rate_of_frames(item)
        video = open_video(source, fps=rate, damaged=self.damaged, **self._options)
        plan, patch = self._plan(item, video, rate), config.temporal_patch_size
        width = round(video.width * video.pixel_aspect) if self.aspect == "square" else video.width
        size = self._frame_size(item, video.height, width, len(plan.times))
        grid = self._checked_grid(len(plan.times), size)
        patches = None
        if pixels:
            frames = video.decode(plan.indices, backend=self.video_backend).frames
            patches = video_patches(frames, len(plan.indices), size, config)
        timing = None
        if plan.seconds_per_grid is None:
            since = tuple(float(time - plan.times[0]) for time in plan.times)
            timing = VideoTiming(frame_indices=tuple(plan.indices.tolist()), timestamps=since)
        times = [*plan.times, *plan.times[-1:] * (-len(plan.times) % patch)]
        seconds = video.seconds[plan.indices]
        return Media("video", grid, video.name, times, plan.seconds_per_grid, timing, seconds, patches, video.damage)

    def _frame_size(self, item: Mapping[str, Any], height: int, width: int, frames: int) -> tuple[int, int]:
        """The size (height, width) of the sampled frames of a video item: by its keys, or by this processor's bounds."""
        config, limits, bounds = self._patches, self.limits, self.video_pixels
        keyed, listed = any(key in item for key in SIZE_KEYS), isinstance(item.get("video"), (list, tuple))
        if listed and (keyed or self._sampling == "qwen_vl_utils"):  # which first sizes each of a list of frames as an image
            height, width = listed_frame_size(height, width, item, config, bounds=bounds, limits=limits)
        if not keyed:
            return frame_size(height, width, frames, config, limits)
        frames += -frames % config.temporal_patch_size
        return keyed_frame_size(height, width, frames, item, config, bounds=bounds, limits=limits)

    def _rate_of_frames(self, item: Mapping[str, Any]) -> float:
        """How many a second the frames of a list or an array are: as the item says, or 2 (`fps`) as in qwen-vl-utils, but 1 in
        the form of vLLM, whose own default that is."""
        return item.get("sample_fps", item.get("fps", 1.0 if is_jpeg_list(item.get("video")) else self.fps))

    def _plan(self, item: Mapping[str, Any], video: Any, rate: float | None) -> _Plan:
        """Which frames of a video are sampled, as its item says, or as this processor does."""
        patch = self._patches.temporal_patch_size
        if "times" in item:
            return self._at_times(video, self._stated_times(item, video), patch)
        count = item.get("num_frames")
        if count is None and not any(key in item for key in SAMPLING_KEYS) and self._sampling not in HAS_NUM_FRAMES:
            count = self.num_frames
        if count is not None:
            self._check_count(count)
            return self._at_times(video, video.sample(num_frames=count), patch)
        if rate is not None:
            self._check_whole(item, len(video.pts), patch)
            # to qwen-vl-utils the copies that fill the last grid are frames that follow
            count = len(video.pts) + (-len(video.pts) % patch if self._sampling == "qwen_vl_utils" else 0)
            times = [Fraction(k / item.get("raw_fps", rate)) for k in range(count)]
            return _Plan(np.arange(len(video.pts)), times, float(np.float32(patch / rate)))
        return self._by_rule(item, video, patch)

    def _by_rule(self, item: Mapping[str, Any], video: Any, patch: int) -> _Plan:
        """Which frames of a film are sampled by a rule: qwen-vl-utils', where its item has a key of qwen-vl-utils."""
        keyed, name = any(key in item for key in SAMPLING_KEYS), self._sampling
        start, end = item.get("video_start"), item.get("video_end")
        settings = {key: item.get(key, getattr(self, key)) for key in ("fps", "min_frames", "max_frames")}
        if not (isinstance(settings["fps"], (int, float, np.number)) and 0 < settings["fps"] < math.inf):
            raise ValueError(f"fps must be positive, got {brief(item)}")
        count = item.get("nframes", None if keyed else self.num_frames)
        if name == BY_TIME:
            if count is not None:
                self._check_count(count)
                return self._at_times(video, video.sample(num_frames=count, start=start, end=end), patch)
            settings["min_frames"] = min(settings["min_frames"], settings["max_frames"])
            return self._at_times(video, video.sample(**settings, start=start, end=end), patch)
        if len(video.pts) == 1 and not keyed:  # of which some rules make nothing
            return self._at_times(video, [Fraction(0)], patch)
        choice = FrameChoice(**settings, num_frames=count, start=start, end=end, temporal_patch_size=patch)
        rule = SAMPLING_RULES["qwen_vl_utils" if keyed else name]
        try:
            sampled = rule(len(video.pts), fps := video.average_fps, choice)
        except ValueError as error:
            raise ValueError(f"{video.name}: {error}") from None
        times = [Fraction(int(i) / fps) for i in sampled.indices]
        return _Plan(video.frames_on_grid(sampled.indices), times, float(np.float32(patch / sampled.fps)))

    def _at_times(self, video: Any, times: list[Fraction], patch: int) -> _Plan:
        """The frames on show at these times."""
        steps = {b - a for a, b in itertools.pairwise(times)} or {1 / Fraction(str(self.fps))}
        even = _seconds_per_grid(steps.pop(), patch) if len(steps) == 1 and steps != {0} else None
        return _Plan(video.frames_at(times), times, even)

    def _stated_times(self, item: Mapping[str, Any], video: Any) -> list[Fraction]:
        given = item["times"]
        if "fps" in item and video.clock.container not in ("array", "images"):
            raise ValueError(f"a video is sampled by fps or times, one of them, got {brief(item)}")
        if isinstance(given, str) or not hasattr(given, "__iter__") or not all(isinstance(t, numbers.Real) for t in given):
            raise ValueError(f"times must be a list of seconds, got {given!r}")
        times = [Fraction(repr(float(time))) for time in given]
        if not times or any(b < a for a, b in itertools.pairwise(times)) or times[0] < 0 or times[-1] > video.duration:
            raise ValueError(
                f"times must be seconds from the video's first frame that do not decrease, up to its end at "
                f"{float(video.duration):g}, got {item['times']}"
            )
        return times

    def _check_whole(self, item: Mapping[str, Any], frames: int, patch: int) -> None:
        """Refuses keys that would sample a list of frames, which is taken whole."""
        filled, why = frames + -frames % patch, ""
        if "nframes" in item and item["nframes"] not in (frames, filled):
            why = f"nframes={item['nframes']}"
        elif (most := item.get("max_frames", filled)) < frames:
            why = f"max_frames={most}"
        elif clip := [f"{key}={item[key]}" for key in ("video_start", "video_end") if key in item]:
            why = " and ".join(clip)
        if why:
            raise ValueError(
                f"a list or an array of frames is taken whole, its {frames} frames, but its item says {why}: leave out frames, "
                "or sample within it with num_frames= or times="
            )

    def _check_count(self, frames: Any) -> None:
        if not isinstance(frames, (int, np.integer)) or frames < 1:
            raise ValueError(f"num_frames must be a whole number, at least 1, got {frames!r}")
        if frames > self.limits.max_visual_tokens:  # each makes tokens
            raise MediaError(
                f"num_frames={frames} is more than Limits(max_visual_tokens={self.limits.max_visual_tokens}) lets a video have"
            )

    def _stated(self, item: Mapping[str, Any]) -> Media:
        """An item that states its size in tokens."""
        if item["type"] == "image":
            return Media("image", (1, *self._patch_grid(item, "hw")))
        grid, patch = self._patch_grid(item, "thw"), self._family.frames_per_grid
        fps = item.get("fps")
        if not isinstance(fps, (int, float)) or not 0 < fps < math.inf:
            raise ValueError(f"a video grid needs fps, the frames sampled per second, as a positive number: got {brief(item)}")
        times = [Fraction(k / fps) for k in range(grid[0] * patch)]
        return Media("video", grid, "", times, float(np.float32(patch * self._family.temporal_merge / fps)))

    def _patch_grid(self, item: Mapping[str, Any], axes: str) -> tuple[Any, ...]:
        """A grid that is stated in tokens, in patches."""
        grid: tuple[Any, ...] = tuple(item["grid"]) if isinstance(item["grid"], (tuple, list)) else ()
        if len(grid) != len(axes) or not all(isinstance(n, int) and n > 0 for n in grid):
            raise ValueError(f"grid is the size in tokens ({', '.join(axes)}), got {brief(item)}")
        self._check_tokens(math.prod(grid), f"grid {'x'.join(map(str, grid))} states")
        f, (*t, h, w) = self._family, grid
        if w <= f.row_token:
            raise ValueError(f"each row of an image of {f} ends in a token of its own: w must be at least 2, got {brief(item)}")
        return (*(n * f.temporal_merge for n in t), h * f.spatial_merge, (w - f.row_token) * f.spatial_merge)

    def _checked_grid(self, frames: int, size: tuple[int, int]) -> tuple[int, int, int]:
        """The patch grid of frames of this size in pixels (height, width)."""
        p = self._patches
        grid = -(-frames // p.temporal_patch_size), size[0] // p.patch_size, size[1] // p.patch_size
        tokens = math.prod(grid) // p.merge_size**2
        self._check_tokens(tokens, f"{frames} frame(s) of {size[1]} x {size[0]} pixels make")
        return grid

    def _check_tokens(self, tokens: int, what: str) -> None:
        if tokens > self.limits.max_visual_tokens:
            raise MediaError(
                f"{what} {tokens:,} tokens, the limit is {self.limits.max_visual_tokens:,}; "
                "lower fps, max_frames, image_pixels or video_pixels, or raise Limits(max_visual_tokens=...)"
            )


def _seconds_per_grid(step: Fraction, temporal_patch_size: int) -> float:
    # float32, as processors hand it on in a tensor: ids from the inputs then equal ids from the parts
    return float(np.float32(float(step * temporal_patch_size)))
