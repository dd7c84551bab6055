"""When frames are shown: stated, derived, or refused, and never guessed."""

from __future__ import annotations

import itertools
import math

import numpy as np
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
    gaps = {b - a for a, b in itertools.pairwise(indices)}
    expected = per_grid * max(gaps) / fps if len(gaps) == 1 and gaps != {0} else None
    assert timing.seconds_per_grid(per_grid) == expected  # the one way or the other, evenly spaced frames have one clock


@given(st.integers(2, 64), st.integers(0, 5000), st.sampled_from((24.0, 25.0, 29.97, 30.0, 60.0)))
def test_what_processors_sample_is_believed(n, more, fps):
    """Places from the first frame to the last, rounded, and the rate as they count it: frames of the clip over those sampled."""
    total = n + more
    for places in (np.linspace(0, total - 1, n).round(), np.arange(n) * (total / n) // 1):
        metadata = {"frames_indices": places.astype(int), "fps": fps, "total_num_frames": total}
        timing = VideoTiming.from_metadata(metadata)
        assert timing.sampled_fps == pytest.approx(n / total * fps)
        assert timing.seconds_per_grid(2) == 2 / timing.sampled_fps


def test_a_part_of_a_clip_is_timed_by_its_indices():
    metadata = {"frames_indices": range(3000, 3240, 30), "fps": 30.0, "total_num_frames": 18000}
    timing = VideoTiming.from_metadata(metadata)
    assert timing.seconds_per_grid(2) == 2.0
    assert timing.grid_times(2) == (100, 102, 104, 106)


def test_unevenly_spaced_frames_have_times_of_their_own():
    timing = VideoTiming(frame_indices=[0, 1, 2, 3, 200, 201, 202, 203], original_fps=30.0)
    assert timing.seconds_per_grid(2) is None
    assert timing.grid_times(2) == pytest.approx([0, 2 / 30, 200 / 30, 202 / 30])


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
        ({"frame_indices": (0, 1), "timestamps": (1, 0)}, r"timestamps must be finite seconds, from 0 up and never decreasing, got \(1, 0\)"),
        ({"frame_indices": (0, 1), "timestamps": (0, math.inf)}, r"timestamps must be finite seconds"),
        ({"frame_indices": (0, 1), "timestamps": (-3, -1)}, r"timestamps must be finite seconds, from 0 up"),
        ({"frame_indices": (0.0, 1.0), "sampled_fps": 1}, r"frame_indices: each must be a whole number, got 0.0"),
        ({"frame_indices": (0, 1), "sampled_fps": "2"}, r"sampled_fps must be a positive number of frames a second, got '2'"),
        # the rate that was asked for, not the one that was sampled
        ({"frame_indices": range(0, 240, 30), "original_fps": 30.0, "sampled_fps": 7.0}, r"frames \(0, 30, .*\) lie 30 apart, which is 1 s at original_fps=30, but 0.142857 s at sampled_fps=7: state the rate at which"),
        ({"frame_indices": range(0, 240, 30), "original_fps": 30.0, "sampled_fps": 30.0}, r"but 0.0333333 s at sampled_fps=30"),
        ({"frame_indices": (0, 1, 2, 300), "sampled_fps": 1.0}, r"frames \(0, 1, 2, 300\) are not evenly spaced, so sampled_fps does not say when they are shown"),
        ({"frame_indices": range(9), "timestamps": (2,) * 8 + (1,)}, r"got \(2, 2, 2, 2, 2, 2, ...\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(facts, message):
    with pytest.raises(ValueError, match=message):
        VideoTiming(**facts)
