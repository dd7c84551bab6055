"""True times and the right frames, whatever the file: each film's frames say which they are."""

from __future__ import annotations

import itertools
import math
import re
from fractions import Fraction

import av
import numpy as np
import pytest
from films import film, grey_of, numbers, sound, trimmed
from hypothesis import given
from hypothesis import strategies as st

from mmrope import Limits, MediaError
from mmrope.preprocess.video import open_video

EVEN = [40 * n for n in range(25)]
UNEVEN = [0, 264, 561, 825, 1790, 3390]


def test_brightness_tells_frames_apart():
    assert len({grey_of(n) for n in range(25)}) == 25


@pytest.mark.parametrize(
    ("name", "times", "options", "backend"),
    [
        ("even.mp4", EVEN, {}, "decord"),
        ("even.mkv", EVEN, {}, "decord"),
        ("even.webm", EVEN, {"codec": "libvpx-vp9"}, "decord"),
        ("uneven.mp4", UNEVEN, {}, "decord"),
        ("uneven.mkv", UNEVEN, {}, "decord"),
        ("late start.mkv", [5000 + t for t in EVEN], {}, "decord"),
        ("av1.mp4", EVEN, {"codec": "libsvtav1"}, "pyav"),
        ("one frame.mp4", [0], {}, "decord"),
    ],
)
def test_times_are_the_files_and_frames_are_theirs(tmp_path, name, times, options, backend):
    video = open_video(film(tmp_path / name, times, **options))
    np.testing.assert_allclose(video.seconds, (np.array(times) - times[0]) / 1000, rtol=0, atol=1e-3)
    assert (video.width, video.height) == (96, 64)
    last = len(times) - 1
    wanted = sorted({0, last // 2, last})
    for asked in ("auto", "pyav"):
        decoded = video.decode([*wanted, last], backend=asked)  # a frame may be asked for twice
        assert decoded.backend == (backend if asked == "auto" else "pyav")
        assert decoded.reason
        assert numbers(list(decoded.frames)) == [*wanted, last]


def test_both_backends_give_the_same_pixels(samples):
    video = open_video(samples / "clip.mp4")
    every = range(0, 64, 5)
    for one, other in zip(
        video.decode(every, backend="decord").frames, video.decode(every, backend="pyav").frames, strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("keyframes", [7, 20, 250])
@pytest.mark.parametrize(
    ("ending", "codec", "backend"),
    [
        ("mp4", "libx264", "decord"),
        ("mov", "libx265", "pyav"),
        ("mkv", "libx264", "decord"),
        ("webm", "libvpx-vp9", "decord"),
        # decord 0.6 returns other frames from these, or none, under the right times
        ("ts", "libx264", "pyav"),
        ("mp4", "mpeg4", "pyav"),
        ("mkv", "mpeg4", "pyav"),
        ("avi", "mjpeg", "pyav"),
    ],
)
def test_the_chosen_backend_gives_the_frames_that_pyav_gives(tmp_path, ending, codec, backend, keyframes):
    """decord is believed only where its pixels, too, are right: looked at sparsely, and with long gaps between keyframes."""
    options = {"pix_fmt": "yuvj420p"} if codec == "mjpeg" else {"max_b_frames": 2} if codec == "mpeg4" else {}
    path = film(tmp_path / f"film.{ending}", [40 * n for n in range(100)], codec=codec, keyframes=keyframes, **options)
    video = open_video(path)
    wanted = [0, 13, 14, 40, 41, 77, 99]
    decoded = video.decode(wanted)
    if codec == "libx265" and keyframes == 250:
        backend = "decord"  # a single group of pictures has no frames before its keyframe
    assert decoded.backend == backend, decoded.reason
    for one, other in zip(decoded.frames, video.decode(wanted, backend="pyav").frames, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_film_that_starts_between_keyframes(tmp_path):
    """decord shifts every frame of it; PyAV says which one is missing."""
    whole, cut = film(tmp_path / "whole.mkv", EVEN), tmp_path / "cut.mkv"
    with av.open(str(whole)) as old, av.open(str(cut), "w") as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        for packet in list(old.demux(old.streams.video[0]))[3:]:
            if packet.dts is not None:
                packet.stream = copy
                new.mux(packet)
    video = open_video(cut)
    decoded = video.decode([len(video.pts) - 1])
    assert (decoded.backend, decoded.reason) == ("pyav", "the film starts between keyframes, where decord returns other frames")
    assert numbers(list(decoded.frames)) == [24]
    with pytest.raises(MediaError, match=r"the frame at 0.000 s cannot be decoded"):
        list(video.decode([0]).frames)


def test_an_edit_list_hides_frames_and_decord_is_not_believed(tmp_path):
    """decord counts the hidden frames and repeats others; the packets know which are shown."""
    whole = film(tmp_path / "whole.mp4", EVEN)
    video = open_video(trimmed(whole, tmp_path / "trimmed.mp4", 0.32))
    assert len(video.pts) == 17
    assert float(video.duration) == pytest.approx(17 * 0.04)
    decoded = video.decode(range(17))
    assert decoded.backend == "pyav"
    assert re.fullmatch(r"decord counts \d+ frames, the packets 17", decoded.reason)
    assert numbers(list(decoded.frames)) == list(range(8, 25))
    with pytest.raises(
        MediaError,
        match=r"decord cannot be trusted with it: decord counts \d+ frames, the packets 17; use backend='auto'",
    ):
        video.decode([0], backend="decord")


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_rotated_films_stand_upright(tmp_path, rotation):
    video = open_video(film(tmp_path / "turned.mp4", EVEN, rotation=rotation))
    assert (video.width, video.height) == ((64, 96) if rotation in (90, -90) else (96, 64))
    corner = {0: (0, 0), 90: (-1, 0), 180: (-1, -1), -90: (0, -1)}[rotation]  # where the white corner goes
    for backend in ("decord", "pyav"):
        [frame] = video.decode([3], backend=backend).frames
        assert frame.shape == (video.height, video.width, 3)
        white = np.argwhere(frame.mean(axis=2) > 245)
        assert white.size
        assert all(
            (index < size / 2) == (side == 0)
            for index, size, side in zip(white.mean(axis=0), frame.shape[:2], corner, strict=True)
        )


def test_bytes_files_and_arrays(tmp_path):
    path = film(tmp_path / "film.mp4", EVEN)
    with open(path, "rb") as file:
        for source in (path, str(path), path.read_bytes(), file):
            video = open_video(source)
            assert numbers(list(video.decode([0, 7, 24]).frames)) == [0, 7, 24]
    frames = np.stack([np.full((8, 8, 3), grey_of(n), np.uint8) for n in range(10)])
    video = open_video(frames, fps=5)
    assert video.seconds.tolist() == pytest.approx([n / 5 for n in range(10)])
    assert video.duration == 2
    assert numbers(list(video.decode([1, 9]).frames)) == [1, 9]


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_frames_are_those_on_show(tmp_path):
    """Every half second of an uneven film: the frame that a viewer sees then."""
    video = open_video(film(tmp_path / "uneven.mp4", UNEVEN))
    times = video.sample(fps=2, min_frames=1, max_frames=100)
    assert [float(t) for t in times] == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    assert video.frames_at(times).tolist() == [0, 1, 3, 3, 4, 4, 4]


def test_stamps_that_the_container_rounded(tmp_path):
    """At 30 frames a second, Matroska stamps frame 20 with 667 ms; at 2/3 s it is on show."""
    video = open_video(film(tmp_path / "thirds.mkv", [round(1000 * n / 30) for n in range(25)]))
    assert video.frames_at([Fraction(n, 30) for n in range(25)]).tolist() == list(range(25))


@given(st.integers(1, 400), st.sampled_from((8, 10, 24, 25, 30, 60)), st.sampled_from((0.5, 1, 2, 2.5, 3, 29.97)))
def test_even_films_are_sampled_at_whole_steps(count, rate, fps):
    """Of a film with frames at n / rate, the frame at time t is number floor(t * rate), to half a millisecond."""
    frames = np.zeros((count, 1, 1, 3), np.uint8)
    exact = open_video(frames, fps=rate)
    times = exact.sample(fps=fps, min_frames=1, max_frames=10**6)
    assert all(t == k / Fraction(str(fps)) for k, t in enumerate(times))
    assert times[-1] < exact.duration <= times[-1] + 1 / Fraction(str(fps))
    half_a_millisecond = Fraction(1, 2000)  # how late a stamp may be
    assert exact.frames_at(times).tolist() == [min(count - 1, math.floor((t + half_a_millisecond) * rate)) for t in times]


@given(st.integers(2, 50), st.integers(1, 10), st.integers(10, 20))
def test_counts_are_within_bounds_and_evenly_spread(count, least, most):
    video = open_video(np.zeros((count, 1, 1, 3), np.uint8), fps=4)
    times = video.sample(fps=2, min_frames=least, max_frames=most)
    assert least <= len(times) <= most
    steps = {b - a for a, b in itertools.pairwise(times)}
    assert len(steps) <= 1
    assert times[0] == 0
    assert times[-1] < video.duration


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "missing.mp4", r"missing.mp4: no such file"),
        (lambda d: "https://localhost/film.mp4", r"is a URL: mmrope opens files only"),
        (lambda d: b"", r"0 bytes cannot be read as a video"),
        (lambda d: b"not a film" * 100, r"1000 bytes cannot be read as a video"),
        (lambda d: sound(d / "sound.mp4"), r"sound.mp4 has no video stream \(only audio\)"),
        (lambda d: film(d / "cut.mp4", EVEN).read_bytes()[:2000], r"2000 bytes cannot be read as a video"),
        (lambda d: np.zeros((2, 8, 8, 3)), r"an array of frames must be uint8 \[T, H, W, 3\], got float64"),
        (lambda d: np.zeros((2, 8, 8, 3), np.uint8), r"has no clock: say its frames a second, fps="),
    ],
)
def test_what_cannot_be_used_is_refused(make, message, tmp_path):
    with pytest.raises(MediaError, match=message):
        open_video(make(tmp_path))


def test_limits(samples):
    with pytest.raises(MediaError, match=r"clip.mp4 lasts 8 s, the limit is 5; .*Limits\(max_video_seconds"):
        open_video(samples / "clip.mp4", limits=Limits(max_video_seconds=5))
    with pytest.raises(MediaError, match=r"frames of 224 x 168 = 0.0 million pixels, the limit is 0.001 million"):
        open_video(samples / "clip.mp4", limits=Limits(max_image_pixels=1000))


def test_options_are_checked(samples):
    video = open_video(samples / "clip.mp4")
    with pytest.raises(ValueError, match=r"fps=25 is for arrays of frames; a file has its own clock"):
        open_video(samples / "clip.mp4", fps=25)
    with pytest.raises(ValueError, match=r"backend must be 'auto', 'decord' or 'pyav', got 'opencv'"):
        video.decode([0], backend="opencv")
    with pytest.raises(ValueError, match=r"fps must be positive and 1 <= min_frames <= max_frames, got fps=0"):
        video.sample(fps=0, min_frames=1, max_frames=4)


def test_a_film_that_breaks_off_says_where(tmp_path):
    """Packets are there, but the decoder cannot make frames of the last of them."""
    path = film(tmp_path / "film.mkv", EVEN)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(container.streams.video[0]) if p.size]
    spoiled = [p for p in packets if p.pts >= 480]
    for packet in spoiled:
        data[packet.pos + 10 : packet.pos + packet.size] = bytes(packet.size - 10)
    video = open_video(bytes(data))
    assert numbers(list(video.decode([0, 5], backend="pyav").frames)) == [0, 5]
    with pytest.raises(MediaError, match=r"is damaged|cannot be decoded \(1 of 1 frames are missing\)"):
        list(video.decode([20], backend="pyav").frames)
