"""Videos: true presentation times first, frames second.

A video is probed by reading its packets, without decoding: that gives every frame's time, exactly. Frames are then chosen
by time, never by index / fps, and decoded one after the other.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from mmrope.positions.timing import VideoTiming
from mmrope.preprocess import readers
from mmrope.preprocess.access import Access, resolve
from mmrope.preprocess.animation import animation_format, animation_frames, read_animation
from mmrope.preprocess.errors import Limits, MediaError
from mmrope.preprocess.image import (
    Color,
    as_array,
    channels_last,
    check_color,
    is_tensor,
    load_image,
    source_name,
    to_uint8,
    white_of,
)
from mmrope.preprocess.probe import Clock, Damaged, check_duration, check_frame_count, check_frame_size, read_clock
from mmrope.preprocess.sampling import check_count

VideoBackend = Literal["auto", "pyav", "decord", "torchcodec"]
BACKENDS = ("auto", "pyav", "decord", "torchcodec")

_ROUNDING = Fraction(1, 2000)  # seconds; Matroska rounds stamps to milliseconds, so a frame may be stamped late by half of one


class Video(readers.Source):
    """A video that has been probed: its clock and its size. Frames are decoded when asked for.

    Example:
        >>> import numpy as np
        >>> from mmrope.preprocess import open_video
        >>> video = open_video(np.zeros((12, 28, 28, 3), np.uint8), fps=4)
        >>> len(video.pts), float(video.duration), video.width
        (12, 3.0, 28)
    """

    @property
    def width(self) -> int:
        """As shown, after rotation, in pixels."""
        return self.clock.width

    @property
    def height(self) -> int:
        """As shown, after rotation, in pixels."""
        return self.clock.height

    @property
    def pts(self) -> np.ndarray:
        """[n] int64, the presentation time of every frame in ticks, increasing."""
        return self.clock.pts

    @property
    def time_base(self) -> Fraction:
        """Seconds per tick."""
        return self.clock.time_base

    @property
    def seconds(self) -> np.ndarray:
        """[n] float64, the presentation time of every frame, from the first frame on."""
        return self.clock.seconds

    @property
    def start(self) -> Fraction:
        """The first frame's presentation time in the file, in seconds; every other time counts from there."""
        return self.clock.start

    @property
    def duration(self) -> Fraction:
        """Seconds from the first frame to the end of the last."""
        return self.clock.duration

    @property
    def average_fps(self) -> float:
        """Frames a second on average, as decord and transformers read it from the container, where that agrees with the times
        of the frames (within half a frame, or one of 500); elsewhere frames by duration.

        Example:
            >>> import numpy as np
            >>> from mmrope.preprocess import open_video
            >>> open_video(np.zeros((12, 28, 28, 3), np.uint8), fps=4).average_fps
            4.0
        """
        count, stated = len(self.pts), self.clock.stated_rate
        if stated is not None:
            room, span = max(Fraction(1, 2), Fraction(count, 500)), int(self.pts[-1] - self.pts[0]) * self.time_base
            apart = [abs(count - stated * self.duration), abs(count - 1 - stated * span)]
            if min(apart[: 1 + (count > 1)]) <= room:
                return float(stated)
        return float(count / self.duration) if self.duration else 1.0

    @property
    def pixel_aspect(self) -> Fraction:
        """Width of a pixel by its height: what a film of 1 by 1 shows on a screen is as many times as wide."""
        return self.clock.pixel_aspect

    @property
    def damage(self) -> str:
        """What is missing of a damaged film of which what is left was taken; empty of a whole one."""
        return self.clock.damage

    def frames_at(self, times: Sequence[Fraction | float]) -> np.ndarray:
        """[len(times)] int64, the index of the frame that is on show at each time (seconds from the first frame).

        Example:
            >>> import numpy as np
            >>> from mmrope.preprocess import open_video
            >>> video = open_video(np.zeros((12, 28, 28, 3), np.uint8), fps=4)
            >>> video.frames_at([0, 0.6, 2.5]).tolist()
            [0, 2, 10]
        """
        ticks = [int(self.pts[0]) + math.floor((Fraction(time) + _ROUNDING) / self.time_base) for time in times]
        return np.maximum(np.searchsorted(self.pts, ticks, side="right") - 1, 0)

    def frames_on_grid(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """[len(indices)] int64, the frames that stand for these indices of a grid of `average_fps`, which samplers of others
        count by: of a film of even frames they are themselves, and of another the frames on show at index / average_fps, or
        rather a quarter of a frame later, as times are rounded.

        Example:
            >>> import numpy as np
            >>> from mmrope.preprocess import open_video
            >>> open_video(np.zeros((12, 28, 28, 3), np.uint8), fps=4).frames_on_grid([0, 3, 11]).tolist()
            [0, 3, 11]
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if self._is_even:
            return np.minimum(wanted, len(self.pts) - 1)
        rate = Fraction(self.average_fps)
        return self.frames_at([(int(i) + Fraction(1, 4)) / rate for i in wanted])

    @property
    def _is_even(self) -> bool:
        """Whether its frames come at a constant rate, within a quarter of a frame."""
        line = np.linspace(int(self.pts[0]), int(self.pts[-1]), len(self.pts))
        return len(line) < 3 or bool(np.abs(self.pts - line).max() <= (line[1] - line[0]) / 4)

    def _part(self, start: float | None, end: float | None) -> tuple[Fraction, Fraction]:
        """Where a part begins and how long it lasts, in seconds. How long the last of even frames lasts may have been rounded:
        it is what the others last."""
        whole, count = self.duration, len(self.pts)
        if count > 1 and self._is_even:
            even = Fraction(int(self.pts[-1] - self.pts[0]), count - 1) * self.time_base
            whole = count * even if abs(whole - count * even) <= even / 4 else whole
        begin = Fraction(0) if start is None else max(Fraction(0), Fraction(str(start)))
        return begin, (whole if end is None else min(whole, Fraction(str(end)))) - begin

    def _most(self, wanted: int, begin: Fraction, length: Fraction) -> int:
        """How many even samples of a part, `wanted` at most, show a frame each, of frames at a constant rate; of others, as
        many as at the rate at which they come fastest: there a picture that stands still is sampled again."""
        gaps = np.diff(self.pts)
        if not len(gaps):
            return 1
        if not self._is_even:
            return max(min(math.floor((length + _ROUNDING) / (int(gaps.min()) * self.time_base)), wanted), 1)
        sure = max(math.floor(length / (int(gaps.max()) * self.time_base)), 1)  # no frame lasts longer
        even = Fraction(int(gaps.sum()), len(gaps)) * self.time_base
        count = min(math.floor((length + _ROUNDING) / even), wanted)
        if count <= sure:
            return min(sure, wanted)
        shown = self.frames_at([begin + k * length / count for k in range(count)])
        return count if (np.diff(shown) > 0).all() else sure

    def sample(
        self,
        *,
        fps: float | None = None,
        num_frames: int | None = None,
        min_frames: int = 1,
        max_frames: int | None = None,
        start: float | None = None,
        end: float | None = None,
    ) -> list[Fraction]:
        """The times of sampled frames, evenly spaced over the video, in seconds from its first frame.

        Args:
            fps: sampled frames a second; if that makes fewer than min_frames or more than max_frames, as many as fit are spread
                evenly, and never more than the frames that come at a constant rate. Where they do not, a frame that stands
                still is sampled again, up to the rate at which they come fastest.
            num_frames: or how many, spread evenly; at most as many as there are.
            start: where the part begins that is sampled, in seconds from the first frame; None for the first frame.
            end: where it ends; None, or a time after the video's end, for its end.

        A video with a single frame is sampled once.

        Raises:
            ValueError: a part that holds nothing, or fewer than num_frames.

        Example:
            >>> import numpy as np
            >>> from mmrope.preprocess import open_video
            >>> video = open_video(np.zeros((12, 28, 28, 3), np.uint8), fps=4)  # 3 seconds
            >>> [float(time) for time in video.sample(fps=2)]
            [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
            >>> [float(time) for time in video.sample(num_frames=4)]
            [0.0, 0.75, 1.5, 2.25]
        """
        if (fps is None) == (num_frames is None):
            raise ValueError(f"say fps or num_frames, one of them, got {fps=}, {num_frames=}")
        begin, length = self._part(start, end)
        if length <= 0 < self.duration:
            raise ValueError(
                f"start={start} to end={end} holds nothing of {self.name}, which lasts {float(self.duration):g} s: "
                "choose a part of it"
            )
        if num_frames is not None:
            if not isinstance(num_frames, (int, np.integer)) or num_frames < 1:
                raise ValueError(f"num_frames must be a whole number, at least 1, got {num_frames!r}")
            if (there := len(self.pts)) > 1:
                first, last = self.frames_at([begin, begin + length - 2 * _ROUNDING])
                there = self._most(num_frames, begin, length) if self._is_even else int(last - first) + 1
                try:
                    check_count(num_frames, there, f"num_frames={num_frames}")
                except ValueError as error:
                    raise ValueError(f"{self.name}: {error}") from None
            count = wanted = num_frames
            rate = num_frames / length if length else Fraction(1)
        else:
            rate = Fraction(str(fps)) if isinstance(fps, numbers.Real) and math.isfinite(fps) else Fraction(0)
            if rate <= 0 or min_frames < 1 or (max_frames is not None and max_frames < min_frames):
                raise ValueError(
                    f"fps must be positive and 1 <= min_frames <= max_frames, got {fps=}, {min_frames=}, {max_frames=}"
                )
            wanted = math.ceil(length * rate)
            count = max(wanted, min_frames) if max_frames is None else min(max(wanted, min_frames), max_frames)
            count = self._most(count, begin, length)
        if len(self.pts) == 1:
            return [Fraction(0)]
        step = 1 / rate if count == wanted else length / count
        return [begin + k * step for k in range(count)]

    def timing(self, indices: Sequence[int] | np.ndarray) -> VideoTiming:
        """When the frames with these indices are shown, for position IDs.

        Example:
            >>> import numpy as np
            >>> from mmrope.preprocess import open_video
            >>> video = open_video(np.zeros((12, 28, 28, 3), np.uint8), fps=4)
            >>> video.timing([0, 2, 4]).seconds
            (0.0, 0.5, 1.0)
        """
        return VideoTiming(
            frame_indices=tuple(int(i) for i in indices), timestamps=tuple(self.seconds[np.asarray(indices)].tolist())
        )

    def decode(self, indices: Sequence[int] | np.ndarray, *, backend: VideoBackend = "auto") -> Frames:
        """The frames at these indices, which must not decrease.

        Args:
            backend: who decodes a file; arrays and lists of images are not decoded. "auto" is PyAV, which jumps from
                keyframe to keyframe where that saves work and leaves out frames that nobody needs: it reads everything that
                the others do, and was never slower (scripts/bench_media.py). "decord" and "torchcodec" are believed where they
                agree with the packets on the number of frames and on their times.

        Raises:
            MediaError: a frame cannot be decoded, or the backend that was asked for cannot be trusted with this file.

        Example:
            >>> import numpy as np
            >>> from mmrope.preprocess import open_video
            >>> video = open_video(np.zeros((12, 28, 28, 3), np.uint8), fps=4)
            >>> [frame.shape for frame in video.decode([0, 6]).frames]
            [(28, 28, 3), (28, 28, 3)]
        """
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        given = np.asarray(indices)
        wanted = given.astype(np.int64)
        inside = not len(wanted) or (given.dtype.kind in "iu" and wanted[0] >= 0 and wanted[-1] < len(self.pts))
        if wanted.ndim != 1 or not inside or (np.diff(wanted) < 0).any():
            raise ValueError(f"indices must be of the {len(self.pts)} frames of {self.name} and not decrease, got {indices}")
        container = self.clock.container
        if container == "array":
            frames, white = self.source
            return Frames("array", "given as an array", (to_uint8(frames[i], white) for i in wanted))
        if container == "images":
            return Frames("images", "given as images", (_still(self, int(i)) for i in wanted))
        if not self.clock.codec:
            if backend != "auto":
                raise MediaError(f"{self.name}: {backend} cannot be trusted with it: it is an animation; use backend='auto'")
            return Frames("pillow", "an animation", animation_frames(self, wanted))
        if backend == "decord":
            return Frames("decord", "asked for, and agrees with the packets", readers.decord_frames(self, wanted))
        if backend == "torchcodec":
            return Frames("torchcodec", "asked for, and agrees with the packets", readers.torchcodec_frames(self, wanted))
        reason = "asked for" if backend == "pyav" else "reads every format, from keyframe to keyframe where they can be trusted"
        return Frames("pyav", reason, readers.pyav_frames(self, wanted))


@dataclass(frozen=True, eq=False)
class Frames:
    """Decoded frames, one after the other, and who decoded them.

    Example:
        >>> import numpy as np
        >>> from mmrope.preprocess import open_video
        >>> frames = open_video(np.zeros((12, 28, 28, 3), np.uint8), fps=4).decode([0, 6])
        >>> frames.backend, len(list(frames.frames))
        ('array', 2)
    """

    backend: str
    reason: str
    """Why this backend."""
    frames: Iterator[np.ndarray] = field(repr=False)
    """uint8 [H, W, 3] each, upright."""


def open_video(
    source: Any,
    *,
    fps: float | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
    damaged: Damaged = "refuse",
    color: Color = "stored",
    limits: Limits | None = None,
    access: Access | None = None,
) -> Video:
    """Probes a video.

    Args:
        source: path, bytes or binary file object of a video or of an animation (GIF, WebP, PNG, AVIF); an array of frames
            [T, H, W, 3] or a torch tensor [T, 3, H, W], or the other way round where the shape does not fit that; or a list of
            images of one size. Their values are those of `load_image`; whether floats go to 1 or to 255 is decided once, by
            the largest of all frames.
        fps: frames a second, for arrays, lists, and streams without a container (raw H.264); other files have their own clock.
        background: what shows through transparent pixels, RGB.
        damaged: "refuse" a film that ends before its container says or has packets that cannot be decoded, or "keep" what is
            left of it: the film is then decoded once to know, and `damage` says what is missing. By "refuse", a frame in its
            middle that cannot be decoded is noticed when it, or one that refers to it, is asked for.
        color: "stored", or "srgb": animations and lists of images as in `load_image`, films with a high dynamic range (PQ, HLG)
            as a display shows them.
        limits: the largest video to open.
        access: which paths and URLs may be opened.

    Raises:
        MediaError: missing, damaged, without video or without times, or over a limit.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> from mmrope.preprocess import open_video
        >>> file, (first, *others) = io.BytesIO(), [Image.new("RGB", (32, 16), color) for color in ("red", "green", "blue")]
        >>> first.save(file, "GIF", save_all=True, append_images=others, duration=[100, 200, 300])
        >>> video = open_video(file)
        >>> [round(second, 3) for second in video.seconds.tolist()], float(video.duration)
        ([0.0, 0.1, 0.3], 0.6)
    """
    check_color(color)
    if damaged not in ("refuse", "keep"):
        raise ValueError(f"damaged must be 'refuse' or 'keep', got {damaged!r}")
    limits = limits or Limits()
    if is_tensor(source):
        video = _of_array(as_array(source), fps, first=True)
    elif isinstance(source, np.ndarray):
        video = _of_array(source, fps, first=False)
    elif isinstance(source, (list, tuple)):
        video = _of_images(source, fps, background, color, limits, access)
    else:
        name, source = source_name(source), resolve(source, access)
        source = whole_file(source) if hasattr(source, "read") else source
        if (form := animation_format(source)) is not None:
            if fps is not None:
                raise ValueError(
                    f"fps={fps} is for arrays of frames; {name} has its own clock (sample it with Processor(fps=...))"
                )
            clock, source = read_animation(source, name, form, limits, damaged)
        else:
            clock = read_clock(source, name, limits, damaged=damaged, fps=fps)
        video = Video(source, name, clock, background, color)
    check_frame_size(video.name, video.width, video.height, limits)
    check_duration(video.name, video.duration, limits)
    return video


# --- files ------------------------------------------------------------------------------------------------------------


def whole_file(file: Any) -> bytes:
    """All bytes of an open file, from its beginning."""
    if hasattr(file, "seekable") and file.seekable():
        file.seek(0)
    return file.read()


def has_own_clock(source: Any) -> bool:
    """Whether a source is a file: arrays of frames and lists of images have no times of their own."""
    return not (isinstance(source, (np.ndarray, list, tuple)) or is_tensor(source))


# --- arrays and images ------------------------------------------------------------------------------------------------


def _of_array(frames: np.ndarray, fps: float | None, *, first: bool) -> Video:
    frames = channels_last(frames, 4, first=first, channels=(3,))
    if frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise MediaError(
            f"an array of frames must be [T, H, W, 3], or a tensor [T, 3, H, W], got {frames.dtype} {list(frames.shape)}"
        )
    white = white_of(frames)  # refuses other values now, not halfway
    return _ticking((frames, white), "array of frames", "array", frames.shape[:3], _tick(fps, "an array of frames"))


def _of_images(
    images: Sequence[Any], fps: float | None, background: Any, color: Color, limits: Limits, access: Access | None
) -> Video:
    tick = _tick(fps, "a list of images")
    if not images:
        raise MediaError("a list of images is empty; give at least one frame")
    check_frame_count("a list of images", len(images), limits)
    arrays = (as_array(image) if is_tensor(image) else image for image in images)
    floats = [white_of(array) for array in arrays if isinstance(array, np.ndarray) and array.dtype.kind == "f"]
    options = {"background": background, "color": color, "white": max(floats, default=None)}
    options |= {"limits": limits, "access": access}
    first = load_image(images[0], **options)
    source = [(image, options) for image in images]
    return _ticking(source, f"{len(images)} images", "images", (len(images), *first.shape[:2]), tick)


def _ticking(source: Any, name: str, container: str, shape: tuple[int, int, int], tick: Fraction) -> Video:
    """A video of frames (count, height, width) that are shown one after the other for as long as each other."""
    count, height, width = shape
    clock = Clock(
        container=container,
        codec="raw",
        width=width,
        height=height,
        pts=np.arange(count),
        time_base=tick,
        duration=count * tick,
    )
    return Video(source, name, clock)


def _still(video: Video, index: int) -> np.ndarray:
    source, options = video.source[index]
    image = load_image(source, **options)
    if image.shape[:2] != (video.height, video.width):
        raise MediaError(
            f"{source_name(source)}, frame {index} of a list of images, has {image.shape[1]} x {image.shape[0]} pixels, "
            f"the first has {video.width} x {video.height}; bring them to one size"
        )
    return image


def _tick(fps: float | None, what: str) -> Fraction:
    if fps is None or not (isinstance(fps, numbers.Real) and math.isfinite(fps) and fps > 0):
        raise MediaError(f"{what} has no clock: say its frames a second, fps=, as a positive number (got {fps!r})")
    return 1 / Fraction(str(fps))
