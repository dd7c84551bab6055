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
from tests.support.ffmpeg import Recipe, ffmpeg, md5, needs_ffmpeg, plainly, recipes, shown

DRAWS = 10
FILMS = list(itertools.islice(recipes(0), cases(23)))


@needs_ffmpeg
@pytest.mark.parametrize("recipe", FILMS, ids=lambda recipe: recipe.name)
def test_index_k_is_the_kth_frame_that_ffmpeg_shows(recipe: Recipe, tmp_path):
    # where two recordings are joined, the program goes on by the times of decoding, and here the frames do: two frames apart
    assert_shown(recipe.make(tmp_path), random.Random(recipe.name), apart=0.17 if recipe.twice else 1.001e-3)


def assert_shown(path, rng, stream="0:v:0", *, apart=1.001e-3):
    """However it is asked for: alone, in any order, after a jump, at the end. Where the program and the FFmpeg in PyAV's wheel
    differ from each other (versions 5 and 8 do in what an edit list hides of AV1, in HEVC before its first keyframe, and in
    single times of program streams), index k is the kth of the latter."""
    truth = shown(path, stream)
    if truth is None:  # cut off before its only keyframe, for instance
        with pytest.raises(MediaError):
            open_video(path)
        return
    plain_times, plain, corrupt = plainly(path) if stream == "0:v:0" else ([], [], False)
    if corrupt:
        with pytest.raises(MediaError, match="in part"):
            list(open_video(path).decode(range(len(plain))).frames)
        return
    times, sums = truth
    video = open_video(path)
    n = len(video.pts)
    if n != len(sums):
        assert n == len(plain)
        [first] = {k for k in range(len(sums) - n + 1) if all(a in b for a, b in zip(plain, sums[k : k + n], strict=True))}
        times, sums = times[first : first + n], sums[first : first + n]
    for index, second in enumerate(video.seconds):
        off = abs(float(times[index] - times[0]) - second)
        if off > apart:  # containers round to milliseconds
            assert abs(float(plain_times[index] - plain_times[0]) - second) <= apart, (index, off)
    draws = [[n - 1], [rng.randrange(n)], *(sorted(rng.choices(range(n), k=rng.randint(1, 6))) for _ in range(DRAWS - 3))]
    for wanted in (*draws, list(range(n))):
        found = [md5(frame) for frame in readers.decoded(video, np.array(wanted))]
        assert [sum in sums[index] for sum, index in zip(found, wanted, strict=True)] == [True] * len(wanted), wanted
    assert all(frame.shape == (video.height, video.width, 3) for frame in video.decode([0, n - 1]).frames)


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
