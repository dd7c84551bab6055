"""When the frames of a video were shown: what ids in seconds are computed from."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class VideoTiming:
    """The frames of a video that a model sees, and when each is shown.

    Made by hand, or by `from_metadata` from what Hugging Face's video processors return. Where true presentation times are
    known (`timestamps`), they are used; otherwise the frames are taken to be evenly spaced.

    Raises:
        ValueError: frames out of order, rates that are not positive, times that do not fit the frames, or no clock at all.
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
        indices = tuple(operator.index(i) for i in self.frame_indices)
        if not indices or indices[0] < 0 or any(b < a for a, b in itertools.pairwise(indices)):
            raise ValueError(f"frame_indices must be at least one index, from 0 up and never decreasing, got {_brief(indices)}")
        object.__setattr__(self, "frame_indices", indices)
        for name in ("original_fps", "sampled_fps"):
            rate = getattr(self, name)
            if rate is not None and not (math.isfinite(rate) and rate > 0):
                raise ValueError(f"{name} must be a positive number of frames a second, got {rate!r}")
        if self.timestamps is not None:
            times = tuple(float(t) for t in self.timestamps)
            if len(times) != len(indices):
                raise ValueError(f"timestamps must be one for each of the {len(indices)} sampled frames, got {len(times)}")
            if not all(map(math.isfinite, times)) or any(b < a for a, b in itertools.pairwise(times)):
                raise ValueError(f"timestamps must be finite seconds that never decrease, got {_brief(times)}")
            object.__setattr__(self, "timestamps", times)
        if self.timestamps is None and self.original_fps is None and self.sampled_fps is None:
            raise ValueError(
                "a VideoTiming needs a clock: original_fps, sampled_fps or the timestamps of its frames; there is no default"
            )

    @classmethod
    def from_metadata(cls, metadata: Any, *, timestamps: Any = None) -> VideoTiming:
        """From a Hugging Face `VideoMetadata` (transformers 4.57 to 5.23), or a dict with its keys `frames_indices`, `fps`
        and `total_num_frames`; `timestamps` adds true presentation times, in seconds."""
        get = metadata.get if isinstance(metadata, Mapping) else lambda key: getattr(metadata, key, None)
        indices, fps, total = get("frames_indices"), get("fps"), get("total_num_frames")
        if indices is None:
            raise ValueError("the metadata have no frames_indices: which frames were sampled is needed, and is not guessed")
        indices = tuple(operator.index(i) for i in indices)
        sampled = len(indices) / total * fps if fps and total else None
        return cls(frame_indices=indices, original_fps=fps, sampled_fps=sampled, timestamps=timestamps)

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
        return -(-len(self.frame_indices) // frames_per_grid)

    def grid_times(self, frames_per_grid: int) -> tuple[float, ...]:
        """The time of each temporal grid: that of its first frame."""
        return self.seconds[::frames_per_grid]

    def seconds_per_grid(self, frames_per_grid: int) -> float | None:
        """From one temporal grid to the next, for frames that are evenly sampled; None where only true times are known."""
        if self.timestamps is not None or self.sampled_fps is None:
            return None
        return frames_per_grid / self.sampled_fps


def _brief(values: tuple[Any, ...]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:6])
    return f"({shown}{', ...' if len(values) > 6 else ''})"
