"""Films of other people's encoders: index k is the k-th frame that the ffmpeg program shows, bit for bit, at its time."""

from __future__ import annotations

import itertools
import random

import av
import numpy as np
import pytest

from mmrope import MediaError
from mmrope.preprocess import readers
from mmrope.preprocess.video import open_video
from tests.support import cases
from tests.support.ffmpeg import Recipe, ffmpeg, md5, needs_ffmpeg, recipes, shown

DRAWS = 10
FILMS = list(itertools.islice(recipes(0), cases(23)))


@needs_ffmpeg
@pytest.mark.parametrize("recipe", FILMS, ids=lambda recipe: recipe.name)
def test_index_k_is_the_kth_frame_that_ffmpeg_shows(recipe: Recipe, tmp_path):
    assert_shown(recipe.make(tmp_path), random.Random(recipe.name))


def assert_shown(path, rng, stream="0:v:0"):
    """However it is asked for: alone, in any order, after a jump, at the end."""
    truth = shown(path, stream)
    if truth is None:  # cut off before its only keyframe, for instance
        with pytest.raises(MediaError):
            open_video(path)
        return
    times, sums = truth
    video = open_video(path)
    assert len(video.pts) == len(sums)
    there = [float(time - times[0]) for time in times]
    np.testing.assert_allclose(video.seconds, there, rtol=0, atol=1.001e-3)  # containers round to milliseconds
    n = len(sums)
    draws = [[n - 1], [rng.randrange(n)], *(sorted(rng.choices(range(n), k=rng.randint(1, 6))) for _ in range(DRAWS - 3))]
    for wanted in (*draws, list(range(n))):
        found = [md5(frame) for frame in readers.decoded(video, np.array(wanted))]
        assert [sum in sums[index] for sum, index in zip(found, wanted, strict=True)] == [True] * len(wanted), wanted
    assert all(frame.shape == (video.height, video.width, 3) for frame in video.decode([0, n - 1]).frames)


@needs_ffmpeg
def test_an_edit_list_of_av1(tmp_path):
    """What it hides is not shown: FFmpeg 5 shows it, from FFmpeg 6 on it does not. The frames that are shown are its last."""
    encode = ("testsrc2=size=128x96:rate=24", "-t", "2.5", "-pix_fmt", "yuv420p", "-c:v", "libaom-av1", "-cpu-used", "8")
    path = Recipe("av1.mp4", encode, (("-ss", "0.963", "-i"),)).make(tmp_path)
    times, sums = shown(path) or ([], [])
    video = open_video(path)
    n = len(video.pts)
    assert n == 36
    assert len(sums) in (36, 60)
    np.testing.assert_allclose(video.seconds, [float(time - times[-n]) for time in times[-n:]], rtol=0, atol=1e-3)
    found = [md5(frame) for frame in readers.decoded(video, np.arange(n))]
    assert all(sum in known for sum, known in zip(found, sums[-n:], strict=True))


@needs_ffmpeg
def test_the_stream_that_is_marked_as_the_default(tmp_path):
    sources = [part for kind in ("testsrc2", "mandelbrot") for part in ("-f", "lavfi", "-i", f"{kind}=size=96x64:rate=25")]
    marks = ("-disposition:v:0", "0", "-disposition:v:1", "default")
    path = tmp_path / "two.mp4"
    ffmpeg(*sources, "-t", "1", "-map", "0", "-map", "1", "-pix_fmt", "yuv420p", "-c:v", "libx264", *marks, path)
    assert_shown(path, random.Random(0), "0:v:1")


@needs_ffmpeg
def test_frames_that_are_not_shown_in_packets_of_their_own(tmp_path):
    encode = ("mandelbrot=size=128x96:rate=25", "-t", "3", "-pix_fmt", "yuv420p", "-c:v", "libvpx-vp9", "-b:v", "150k")
    alt = ("-auto-alt-ref", "1", "-lag-in-frames", "25")
    path = Recipe(
        "film.webm", (*encode, *alt), (("-i", "-fflags", "-autobsf", "-bsf:v", "vp9_superframe_split"),), passes=2
    ).make(tmp_path)
    with av.open(str(path)) as container:
        stored = sum(1 for packet in container.demux(video=0) if packet.size)
    assert stored > len(open_video(path).pts) == 75
    assert_shown(path, random.Random(0))


@needs_ffmpeg
@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4", "mpeg2video"])
def test_a_stream_without_a_container_takes_its_clock_from_the_caller(tmp_path, codec):
    form = {"libx264": "h264", "libx265": "hevc", "mpeg4": "m4v", "mpeg2video": "m2v"}[codec]
    path = tmp_path / f"film.{form}"
    source = ("-f", "lavfi", "-i", "testsrc2=size=128x96:rate=25", "-t", "2", "-pix_fmt", "yuv420p")
    ffmpeg(*source, "-c:v", codec, "-bf", "2", "-f", {"m2v": "mpeg2video"}.get(form, form), path)
    with pytest.raises(MediaError, match=r"without a container, which states no times: say its frames a second, fps="):
        open_video(path)
    video = open_video(path, fps=12.5)
    np.testing.assert_allclose(video.seconds, np.arange(50) / 12.5)
    _, sums = shown(path) or ([], [])
    found = [md5(frame) for frame in readers.decoded(video, np.arange(50))]
    assert all(sum in known for sum, known in zip(found, sums, strict=True))
