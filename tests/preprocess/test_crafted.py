"""Every crafted file has its stated outcome; and what is hostile or long costs neither memory nor time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import av
import numpy as np
import pytest

from mmrope import MediaError
from mmrope.preprocess.image import load_image
from mmrope.preprocess.patches import FAMILY_PATCHES, image_size
from mmrope.preprocess.probe import PYAV_17_1
from mmrope.preprocess.video import open_video
from tests.support import ROOT
from tests.support.crafted import CRAFTED, Film, Picture, Refused, long_film, playlist
from tests.support.films import grey_of

SPARSE = 7  # every seventh frame, the first and the last


def number_of(frame):
    """Which of 25 frames it is, by the brightness of its middle."""
    height, width, _ = frame.shape
    middle = float(frame[height // 2 - 2 : height // 2 + 2, width // 2 - 2 : width // 2 + 2].mean())
    return min(range(25), key=lambda n: abs(grey_of(n) - middle))


@pytest.mark.parametrize("crafted", CRAFTED, ids=lambda crafted: crafted.name)
def test_outcomes(crafted, tmp_path):
    source = crafted.written(tmp_path)
    {Picture: assert_picture, Film: assert_film, Refused: assert_refused}[type(crafted.outcome)](source, crafted.outcome)


def assert_picture(source, outcome):
    pixels = load_image(source, animation=outcome.animation)
    np.testing.assert_array_equal(pixels, load_image(source.read_bytes(), animation=outcome.animation))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (*outcome.size, 3)
    for (row, column), colour in outcome.colours.items():
        assert np.abs(pixels[row, column].astype(int) - colour).max() <= outcome.within, (row, column, pixels[row, column])
    if isinstance(outcome.resized, tuple):
        assert image_size(*outcome.size, FAMILY_PATCHES["qwen2_vl"]) == outcome.resized
    elif outcome.resized:
        with pytest.raises(MediaError, match=outcome.resized):
            image_size(*outcome.size, FAMILY_PATCHES["qwen2_vl"])


def assert_film(source, outcome):
    video = open_video(source)
    count = len(outcome.times_ms)
    np.testing.assert_allclose(video.seconds * 1000, outcome.times_ms, rtol=0, atol=1)
    assert float(video.start) * 1000 == pytest.approx(outcome.start_ms, abs=1)
    assert outcome.lasts_ms is None or float(video.duration) * 1000 == pytest.approx(outcome.lasts_ms, abs=1)
    assert (video.width, video.height) == outcome.size
    lost = set(outcome.lost)
    for index in lost:
        at = rf"the frame at {outcome.times_ms[index] / 1000:.3f} s (cannot be decoded|is in part a guess)"
        with pytest.raises(MediaError, match=rf"{at}|is damaged: .*Invalid data"):
            list(video.decode([index]).frames)
    there = [index for index in range(count) if index not in lost]
    frames = dict(zip(there, video.decode(there).frames, strict=True))
    numbers = range(count) if outcome.frames is None else outcome.frames
    assert not numbers or [number_of(frames[index]) for index in there] == [numbers[index] for index in there]
    for frame in frames.values():
        assert frame.shape == (video.height, video.width, 3)
        if outcome.corner is not None:
            corners = frame[[[1, 1], [-2, -2]], [[1, -2], [1, -2]]].mean(axis=-1)
            assert np.argwhere(corners > 240).tolist() == [list(outcome.corner)]
    for (index, row, column), colour in outcome.colours.items():
        assert np.abs(frames[index][row, column].astype(int) - colour).max() <= 2
    sparse = sorted({there[0], there[-1], *there[::SPARSE]})
    for index, frame in zip(sparse, video.decode(sparse).frames, strict=True):
        np.testing.assert_array_equal(frame, frames[index])
    for index in sparse:
        [frame] = video.decode([index]).frames
        np.testing.assert_array_equal(frame, frames[index])


def assert_refused(source, outcome):
    if outcome.by == "image":
        with pytest.raises(MediaError, match=outcome.pattern) as refusal:
            load_image(source)
    elif outcome.by == "video":
        with pytest.raises(MediaError, match=outcome.pattern) as refusal:
            open_video(source)
    else:
        video = open_video(source)
        with pytest.raises(MediaError, match=outcome.pattern) as refusal:
            list(video.decode(range(len(video.pts))).frames)
    assert os.path.basename(source) in str(refusal.value)


def test_the_table():
    names = [crafted.name for crafted in CRAFTED]
    assert len(set(names)) == len(names) > 150


def test_a_playlist_is_never_followed(tmp_path):
    """FFmpeg by itself would ask the server that the playlist names."""
    path = tmp_path / "list.m3u8"
    with socket.create_server(("127.0.0.1", 0)) as server:
        path.write_bytes(playlist(f"http://127.0.0.1:{server.getsockname()[1]}/part.ts"))
        asked = threading.Event()

        def answer():
            connection, _ = server.accept()
            asked.set()
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        for source in (path, path.read_bytes()):
            with pytest.raises(MediaError, match="cannot be read as a video"):
                open_video(source)
        assert not asked.is_set()
        with pytest.raises(av.error.FFmpegError):
            av.open(str(path), options={"protocol_whitelist": "file,http,tcp"}, timeout=5)
        thread.join(10)
        assert asked.is_set()


# --- memory and time --------------------------------------------------------------------------------------------------

IMPORTS = r"""
import re, sys, time
from pathlib import Path
import av, numpy, PIL.Image
from mmrope import MediaError
from mmrope.preprocess.image import load_image
from mmrope.preprocess.video import open_video

def peak():  # MB; getrusage would tell the parent's, if that is larger
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

start, began = peak(), time.perf_counter()
"""
MEASURES = "\nprint(peak() - start, time.perf_counter() - began)\n"
REFUSED = """
try:
    if sys.argv[2] == "image":
        load_image(sys.argv[1])
    else:
        video = open_video(sys.argv[1])
        for frame in video.decode(range(len(video.pts))).frames:
            pass
except MediaError:
    pass
else:
    raise SystemExit("it was opened")
"""
PROBED = "video = open_video(sys.argv[1])\nassert (len(video.pts), video.duration) == (36_000, 36_000)"
DECODED = """
video = open_video(sys.argv[1])
assert sum(1 for _ in video.decode(range(len(video.pts))).frames) == int(sys.argv[2])
"""


def cost(code, *arguments):
    """What code takes in a new process beyond its imports: MB at the peak, and seconds."""
    command = [sys.executable, "-W", "ignore", "-c", IMPORTS + code + MEASURES, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [float(number) for number in done.stdout.split()]


BOMBS = (
    *("65535x65535.png", "12000x12000.png", "text bomb.png"),
    *("frames of 256 million pixels.mov", "one frame of 256 million pixels.mov"),
)


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_cost_little(name, tmp_path):
    [bomb] = [crafted for crafted in CRAFTED if crafted.name == name]
    megabytes, _ = cost(REFUSED, bomb.written(tmp_path), bomb.outcome.by)
    assert megabytes < (100 if PYAV_17_1 or not name.startswith("frames") else 600)


def test_ten_hours_are_probed_at_once(tmp_path):
    path = long_film(tmp_path / "ten hours.mkv", 36_000)
    megabytes, seconds = cost(PROBED, path)
    assert megabytes < 300
    assert seconds < 2
    video = open_video(path)
    wanted = [0, 18_003, 35_999]
    assert [number_of(frame) for frame in video.decode(wanted).frames] == [0, 3, 9]


def test_memory_does_not_grow_with_the_length(tmp_path):
    """Of 3,000 frames, 230 kB each once decoded."""
    size = (320, 240)
    short, long = (cost(DECODED, long_film(tmp_path / f"{n}.mkv", n, size=size), n)[0] for n in (300, 3_000))
    assert long - short < 150
