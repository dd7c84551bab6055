"""Time, in one place: when the frames of a video were shown, and how many ids later a temporal grid is for that.

A video states seconds from one temporal grid to the next (`seconds_per_grid`), or the seconds of each grid (`times`); a
`VideoTiming` gives one or the other. `time_steps` makes ids of them, by the rule that a family's row names.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmrope.positions.stated import LARGEST, several, whole, whole_numbers
from mmrope.records import is_number, shown

MAX_STEP = 2**40  # ids from where a segment begins: with MAX_TOKENS of one it keeps every sum of a row far inside int64
MAX_SECONDS = 1e9  # from one temporal grid to the next: stays finite in float32
EXACT = 2**24  # up to here float32 has all whole numbers

# --- checks -----------------------------------------------------------------------------------------------------------


def check_seconds(seconds: Any, what: str) -> float:
    """Seconds from one temporal grid to the next, as a user stated them."""
    if not is_number(seconds) or not 0 < seconds <= MAX_SECONDS:
        raise ValueError(f"{what} must be positive seconds (at most {MAX_SECONDS:g}), got {shown(seconds)}")
    return float(seconds)


def check_times(times: Any, what: str, count: int, of: str) -> tuple[float, ...]:
    """The seconds of `count` frames or grids, which never decrease."""
    times = tuple(several(times, what))
    if not all(map(is_number, times)):
        raise ValueError(f"{what} must be finite seconds, from 0 up and never decreasing, got {shown(times)}")
    times = tuple(map(float, times))
    if len(times) != count:
        raise ValueError(f"{what} must be one for each of the {count} {of}, got {len(times)}")
    if times[0] < 0 or any(b < a for a, b in itertools.pairwise(times)):
        raise ValueError(f"{what} must be finite seconds, from 0 up and never decreasing, got {_brief(times)}")
    return times


def one_clock(seconds_per_grid: Any, other: Any, what: str, name: str = "times") -> None:
    """Refuses two clocks of one video."""
    if seconds_per_grid is not None and other is not None:
        raise ValueError(f"{what}: give seconds_per_grid (evenly spaced grids) or {name}, not both")


def no_clock(family: Any, how: str) -> ValueError:
    """The error of a video without its seconds. There is no default: a wrong one would not be noticed."""
    return ValueError(f"{family} places videos by time: {how}; there is no default")


# --- fractional ids ---------------------------------------------------------------------------------------------------


def rounded(x: Any) -> Any:
    """To float32, in which upstreams add fractional ids; past 2^24, where it has no room for whole ids, float64 as it is."""
    if isinstance(x, np.ndarray):
        return np.where(np.abs(x) <= EXACT, x.astype(np.float32), x)
    return float(np.float32(x)) if abs(x) <= EXACT else float(x)


# --- seconds to ids ---------------------------------------------------------------------------------------------------

Time = Literal["index", "seconds", "seconds_rate_first", "seconds_float64", "whole_seconds", "fractional_seconds"]

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


def time_steps(
    time: Time, i: np.ndarray, seconds: Any, times: Sequence[float] | None, rate: float, *, fractional: bool
) -> np.ndarray:
    """The ids that temporal grids `i` of a video lie after its first, where time is in seconds: int64; of fractional families
    float32, and past 2^24 float64. `seconds` lie from one grid to the next, or `times` are those of all grids; `rate` is ids
    per second."""
    if times is None:
        seconds = np.asarray(seconds, dtype=np.float64)
        found, exact = _TIME_STEPS[time](i, seconds, rate), i * seconds * rate
    else:
        since_first = np.asarray(times, dtype=np.float64)[i] - times[0]
        found, exact = since_first.astype(_F32) * _F32(rate), since_first * rate
    if not fractional:
        return found if times is None else _floor(found)
    past = np.abs(exact) > EXACT
    return np.where(past, check_steps(exact), found) if past.any() else found


def _floor(x: np.ndarray) -> np.ndarray:
    return np.floor(check_steps(x)).astype(np.int64)


def check_steps(x: np.ndarray) -> np.ndarray:
    """Time ids that are not too far up."""
    if not (x <= MAX_STEP).all():
        raise ValueError(
            f"a video's time ids go more than {MAX_STEP:,} up: its seconds, ids per second or stride are too large"
        )
    return x


# --- when frames were shown -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class VideoTiming:
    """The frames of a video that a model sees, and when each is shown.

    Made by hand, or by `from_metadata` from what Hugging Face's video processors return. Where true presentation times are
    known (`timestamps`), they are used; otherwise the frames are taken to be evenly spaced.

    Raises:
        ValueError: frames out of order, rates that are not positive, times that do not fit the frames, or no clock at all.

    Example:
        >>> import mmrope
        >>> timing = mmrope.VideoTiming(frame_indices=range(0, 240, 60), original_fps=30.0, sampled_fps=0.5)
        >>> timing.seconds, timing.grid_times(2), timing.seconds_per_grid(2)
        ((0.0, 2.0, 4.0, 6.0), (0.0, 4.0), 4.0)
    """

    frame_indices: tuple[int, ...]
    """The sampled frames, as indices into the original video; they may repeat, and never decrease."""
    original_fps: float | None = None
    """Frames a second of the original video."""
    sampled_fps: float | None = None
    """Frames a second that were sampled: those that are seen, not those that were asked for."""
    timestamps: tuple[float, ...] | None = None
    """The presentation time of each sampled frame, in seconds from the video's start."""

    def __post_init__(self) -> None:
        indices = whole_numbers(self.frame_indices, "frame_indices", of="")
        if not indices or indices[0] < 0 or any(b < a for a, b in itertools.pairwise(indices)):
            raise ValueError(f"frame_indices must be at least one index, from 0 up and never decreasing, got {_brief(indices)}")
        if indices[-1] > MAX_STEP:
            raise ValueError(f"frame_indices must be at most {MAX_STEP:,}, got {indices[-1]:,}")
        object.__setattr__(self, "frame_indices", indices)
        for name in ("original_fps", "sampled_fps"):
            rate = getattr(self, name)
            if rate is not None and not (is_number(rate) and 0 < rate < LARGEST):
                raise ValueError(f"{name} must be a positive number of frames a second, got {shown(rate)}")
        if self.timestamps is not None:
            times = check_times(self.timestamps, "timestamps", len(indices), "sampled frames")
            object.__setattr__(self, "timestamps", times)
        if self.timestamps is None and self.original_fps is None and self.sampled_fps is None:
            raise ValueError(
                "a VideoTiming needs a clock: original_fps, sampled_fps or the timestamps of its frames; there is no default"
            )
        self._check_rates()

    def _check_rates(self) -> None:
        """Refuses a rate at which frames were asked for, but not sampled, and one for frames that are unevenly spaced."""
        n, frames = len(self.frame_indices), self.frame_indices[-1] - self.frame_indices[0]
        if self.sampled_fps is None or self.timestamps is not None or n == 1:
            return
        if self.original_fps is None:
            if not self._even:
                raise ValueError(
                    f"frames {_brief(self.frame_indices)} are not evenly spaced, so sampled_fps does not say when they are "
                    "shown: state original_fps or timestamps"
                )
            return
        # a clip of N frames that is sampled at n places from its first to its last counts as N / n frames apart, where they are
        # (N - 1) / (n - 1); and the first and the last place are rounded to frames
        apart, stated = frames / (n - 1), self.original_fps / self.sampled_fps
        slack = 1 / (n - 1) + 1e-3 * apart
        if not apart * (n - 1) / n - slack <= stated <= apart + slack:
            raise ValueError(
                f"frames {_brief(self.frame_indices)} lie {apart:g} apart, which is {apart / self.original_fps:g} s at "
                f"original_fps={self.original_fps:g}, but {1 / self.sampled_fps:g} s at sampled_fps={self.sampled_fps:g}: "
                "state the rate at which they were sampled, not one that was asked for, or leave it out"
            )

    @property
    def _even(self) -> bool:
        """Whether the frames are evenly spaced, but for rounding to whole frames."""
        gaps = [b - a for a, b in itertools.pairwise(self.frame_indices)]
        return max(gaps, default=0) - min(gaps, default=0) <= 1

    @classmethod
    def from_metadata(cls, metadata: Any, *, timestamps: Any = None) -> VideoTiming:
        """From a Hugging Face `VideoMetadata` (transformers 4.57 to 5.23), or a dict with its keys `frames_indices`, `fps`
        and `total_num_frames`; `timestamps` adds true presentation times, in seconds.

        Of frames all over the clip the sampled rate is total_num_frames over their number, as processors count; of a part of
        the clip it follows from the indices.

        Example:
            >>> from mmrope import VideoTiming
            >>> metadata = {"frames_indices": [0, 15, 30, 45], "fps": 30.0, "total_num_frames": 60}
            >>> VideoTiming.from_metadata(metadata).seconds
            (0.0, 0.5, 1.0, 1.5)
        """
        get = metadata.get if isinstance(metadata, Mapping) else lambda key: getattr(metadata, key, None)
        indices, fps, total = get("frames_indices"), get("fps"), get("total_num_frames")
        if indices is None:
            raise ValueError("the metadata have no frames_indices: which frames were sampled is needed, and is not guessed")
        timing = cls(frame_indices=indices, original_fps=fps, timestamps=timestamps)
        if not fps or not total:
            return timing
        if not isinstance(total, (int, float, np.number)) or not 0 < total <= MAX_STEP:  # nor NaN
            raise ValueError(f"total_num_frames must be a number of frames, at most {MAX_STEP:,}, got {total!r}")
        first, apart, last = timing.frame_indices[0], total / len(timing.frame_indices), timing.frame_indices[-1]
        all_over = first <= apart and last >= total - 1 - apart
        return dataclasses.replace(timing, sampled_fps=fps / apart) if all_over else timing

    @property
    def seconds(self) -> tuple[float, ...]:
        """The time of each sampled frame: its timestamp, or what its index and the rate make of it."""
        if self.timestamps is not None:
            return self.timestamps
        if self.original_fps is not None:
            return tuple(i / self.original_fps for i in self.frame_indices)
        assert self.sampled_fps is not None
        return tuple(n / self.sampled_fps for n in range(len(self.frame_indices)))

    def grids(self, frames_per_grid: int) -> int:
        """Temporal grids of `frames_per_grid` frames each; the last is filled up with its last frame."""
        return -(-len(self.frame_indices) // whole(frames_per_grid, "frames_per_grid", least=1, of=""))

    def grid_times(self, frames_per_grid: int) -> tuple[float, ...]:
        """The time of each temporal grid: that of its first frame."""
        return self.seconds[:: whole(frames_per_grid, "frames_per_grid", least=1, of="")]

    def seconds_per_grid(self, frames_per_grid: int) -> float | None:
        """From one temporal grid to the next, where frames are evenly spaced; None where they are not, or where true times
        are known."""
        frames_per_grid = whole(frames_per_grid, "frames_per_grid", least=1, of="")
        if self.timestamps is not None or not self._even:
            return None
        if self.sampled_fps is not None:
            return frames_per_grid / self.sampled_fps
        gaps = {b - a for a, b in itertools.pairwise(self.frame_indices)}
        if len(gaps) != 1 or gaps == {0} or self.original_fps is None:
            return None
        return frames_per_grid * gaps.pop() / self.original_fps


def _brief(values: tuple[Any, ...]) -> str:
    shown = ", ".join(str(value) if isinstance(value, int) else f"{value:g}" for value in values[:6])
    return f"({shown}{', ...' if len(values) > 6 else ''})"
