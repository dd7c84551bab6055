"""When frames are shown: stated, derived, or refused, and never guessed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.video_utils import VideoMetadata

from mmrope import VideoTiming


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12).map(sorted), st.floats(0.5, 120), st.integers(1, 4))
def test_times_come_from_indices_and_the_original_rate(indices, fps, per_grid):
    timing = VideoTiming(frame_indices=indices, original_fps=fps)
    assert timing.seconds == tuple(i / fps for i in indices)
    assert timing.grids(per_grid) == math.ceil(len(indices) / per_grid) == len(timing.grid_times(per_grid))
    assert timing.grid_times(per_grid) == timing.seconds[::per_grid]
    assert timing.seconds_per_grid(per_grid) is None  # frames at stated places need not be evenly spaced


@given(st.integers(1, 12), st.floats(0.5, 120), st.integers(1, 4))
def test_evenly_sampled_frames_have_seconds_per_grid(n, fps, per_grid):
    timing = VideoTiming(frame_indices=range(n), sampled_fps=fps)
    assert timing.seconds_per_grid(per_grid) == per_grid / fps
    assert timing.seconds == pytest.approx([i / fps for i in range(n)])


def test_true_times_come_first():
    timing = VideoTiming(frame_indices=(0, 4, 9), original_fps=25, sampled_fps=2, timestamps=(0, 0.2, 0.41))
    assert timing.seconds == (0, 0.2, 0.41)
    assert timing.grid_times(2) == (0, 0.41)
    assert timing.seconds_per_grid(2) is None


def test_from_what_video_processors_return():
    metadata = VideoMetadata(total_num_frames=100, fps=25.0, frames_indices=[0, 25, 50, 75])
    timing = VideoTiming.from_metadata(metadata)
    assert timing == VideoTiming(frame_indices=(0, 25, 50, 75), original_fps=25.0, sampled_fps=1.0)
    assert timing.seconds_per_grid(2) == 2.0
    stated = {"frames_indices": [0, 25, 50, 75], "fps": 25.0, "total_num_frames": 100}
    assert VideoTiming.from_metadata(stated) == timing
    assert VideoTiming.from_metadata(stated, timestamps=[0, 1, 2, 4]).grid_times(2) == (0, 2)
    with pytest.raises(ValueError, match=r"the metadata have no frames_indices: which frames were sampled is needed"):
        VideoTiming.from_metadata(VideoMetadata(total_num_frames=100, fps=25.0))
    with pytest.raises(ValueError, match=r"a VideoTiming needs a clock: .*there is no default"):
        VideoTiming.from_metadata({"frames_indices": [0, 25]})


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"frame_indices": ()}, r"frame_indices must be at least one index"),
        ({"frame_indices": (3, 2)}, r"never decreasing, got \(3, 2\)"),
        ({"frame_indices": (-1, 2)}, r"from 0 up and never decreasing, got \(-1, 2\)"),
        ({"frame_indices": range(9)}, r"needs a clock: original_fps, sampled_fps or the timestamps of its frames; there is no default"),
        ({"frame_indices": (0,), "sampled_fps": 0}, r"sampled_fps must be a positive number of frames a second, got 0"),
        ({"frame_indices": (0,), "original_fps": math.nan}, r"original_fps must be a positive number of frames a second, got nan"),
        ({"frame_indices": (0,), "sampled_fps": -2.0}, r"sampled_fps must be a positive"),
        ({"frame_indices": (0, 1), "timestamps": (0,)}, r"timestamps must be one for each of the 2 sampled frames, got 1"),
        ({"frame_indices": (0, 1), "timestamps": (1, 0)}, r"timestamps must be finite seconds that never decrease, got \(1, 0\)"),
        ({"frame_indices": (0, 1), "timestamps": (0, math.inf)}, r"timestamps must be finite seconds"),
        ({"frame_indices": range(9), "timestamps": (2,) * 8 + (1,)}, r"got \(2, 2, 2, 2, 2, 2, ...\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(facts, message):
    with pytest.raises(ValueError, match=message):
        VideoTiming(**facts)
