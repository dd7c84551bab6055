"""Films that are cut off or damaged: refused, or taken with a record of what is missing; never shortened in silence."""

from __future__ import annotations

import io
import random
import re
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from mmrope import MediaError, Processor
from mmrope.preprocess.ends import missing_bytes
from mmrope.preprocess.video import open_video
from tests.support import cases
from tests.support.films import film

TIMES = [40 * n for n in range(50)]
FILMS = {  # name -> how it is made; the mp4 has its index in front, as films on the web have
    "fast start.mp4": {"container": {"movflags": "faststart"}},
    "fragments.mp4": {"container": {"movflags": "frag_keyframe+empty_moov"}},
    "film.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le", "container": {"movflags": "faststart"}},
    "film.mkv": {},
    "film.webm": {"codec": "libvpx-vp9"},
    "film.avi": {"codec": "mpeg4", "max_b_frames": 2, "tick": Fraction(1, 25)},
    "film.flv": {"codec": "flv"},
    "film.wmv": {"codec": "wmv2"},
    "film.ogv": {"codec": "libvpx", "tick": Fraction(1, 25)},
    "film.ts": {},
    "film.mpg": {"codec": "mpeg2video", "tick": Fraction(1, 25)},
    "film.mxf": {"codec": "mpeg2video", "tick": Fraction(1, 25)},
    "film.y4m": {"codec": "wrapped_avframe", "tick": Fraction(1, 25)},
}
UNKNOWABLE = {"film.ts": 188, "film.y4m": 96 * 64 * 3 // 2 + 6}
"""Containers that say nothing of their end: a cut between two of their pieces leaves a whole, shorter film."""


@pytest.fixture(scope="module", params=FILMS)
def whole(request, tmp_path_factory):
    return film(tmp_path_factory.mktemp("whole") / request.param, TIMES, moving=True, **FILMS[request.param])


def test_a_film_that_is_cut_is_refused_or_kept_with_a_record(whole):
    content, rng = whole.read_bytes(), random.Random(whole.name)
    frames = list(open_video(content).decode(range(50)).frames)
    kept = 0
    for size in (rng.randrange(len(content) // 5, len(content)) for _ in range(cases(4))):
        piece = UNKNOWABLE.get(whole.name)
        if piece and (size - content.index(b"\n") - 1 if whole.suffix == ".y4m" else size) % piece == 0:
            continue
        with pytest.raises(
            MediaError, match=r"is cut off: it lacks at least [\d,]+ bytes at its end; \d+ frames|cannot be read"
        ):
            open_video(content[:size])
        try:
            video = open_video(content[:size], damaged="keep")
        except MediaError:
            continue  # nothing can be decoded
        assert "lacks at least" in video.damage
        assert len(video.pts) <= 50
        kept += 1
        for index, frame in enumerate(video.decode(range(len(video.pts))).frames):
            if index < len(video.pts) - 3:  # the last may have been guessed by the decoder in part
                np.testing.assert_array_equal(frame, frames[index])
    assert kept


def test_an_mp4_without_its_index_is_said_to_be_cut(samples):
    content = (samples / "clip.mp4").read_bytes()
    with pytest.raises(
        MediaError, match=r"cannot be read as a video .*; it is cut off: it lacks at least [\d,]+ bytes, and its index"
    ):
        open_video(content[:9000])


def test_a_whole_film_lacks_nothing(whole):
    content = whole.read_bytes()
    assert open_video(content).damage == ""
    video = open_video(content, damaged="keep")
    assert (video.damage, len(video.pts)) == ("", 50)
    np.testing.assert_allclose(video.seconds, np.arange(50) / 25, rtol=0, atol=1e-3)


class Pipe(io.RawIOBase):
    """Where a live recording goes: nothing that was written can be changed later."""

    def __init__(self):
        super().__init__()
        self.content = b""

    def writable(self):
        return True

    def write(self, data):
        self.content += bytes(data)
        return len(data)


CLUSTERS = {"live": "1", "cluster_time_limit": "500"}


def recorded(**options):
    """A Matroska file as a browser's MediaRecorder writes it: neither its segment nor its clusters state their sizes."""
    pipe = Pipe()
    film(pipe, TIMES, moving=True, **options)
    segment, *clusters = pipe.content.split(b"\x1f\x43\xb6\x75")
    assert b"\x18\x53\x80\x67\x01" + b"\xff" * 7 in segment
    assert len(clusters) > 1
    contents = [cluster[9 - cluster[0].bit_length() :] for cluster in clusters]  # without their sizes
    return (b"\x1f\x43\xb6\x75\x01" + b"\xff" * 7).join([segment, *contents])


LIVE = {  # name -> how it is made, as `film` makes it
    "h264.mkv": {"form": "matroska", "container": CLUSTERS},
    "vp8.webm": {"form": "webm", "codec": "libvpx", "container": CLUSTERS},
    "vp9.webm": {"form": "webm", "codec": "libvpx-vp9", "container": CLUSTERS},
    "known clusters.mkv": {"form": "matroska", "max_b_frames": 2},
    "film.flv": {"form": "flv", "codec": "flv"},
    "film.wmv": {"form": "asf", "codec": "wmv2"},
    "film.mxf": {"codec": "mpeg2video", "tick": Fraction(1, 25)},
    "fragments.mp4": {"form": "mp4", "container": {"movflags": "frag_keyframe+empty_moov"}},
}


@pytest.fixture(scope="module", params=LIVE)
def live(request, tmp_path_factory):
    """A film that states no size of its own."""
    path = tmp_path_factory.mktemp("live") / request.param
    if LIVE[request.param].get("container") == CLUSTERS:
        return request.param, recorded(**LIVE[request.param])
    if path.suffix != ".mxf":
        pipe = Pipe()
        film(pipe, TIMES, moving=True, **LIVE[request.param])
        return request.param, pipe.content
    content = film(path, TIMES, moving=True, **LIVE[request.param]).read_bytes()
    footer = bytes.fromhex("060e2b34020501010d0102010104")
    return request.param, content[: content.index(footer)].replace(content.index(footer).to_bytes(8, "big"), bytes(8))


def test_a_live_recording_that_is_cut_within_a_frame(live):
    """It states the size of each piece: whatever lacks a part of a frame is told, and the whole is taken."""
    name, content = live
    whole = open_video(content)
    assert (whole.damage, len(whole.pts)) == ("", 50)
    packets, at = [], 0
    with av.open(io.BytesIO(content)) as file:
        form = file.format.name
        for packet in (packet for packet in file.demux(video=0) if packet.size):
            part = bytes(packet)[: 9 if form == "asf" else None]  # it puts marks into long ones
            at = content.index(part, at)
            packets.append(range(at + 1, at + len(part)))
    assert len(packets) == 50
    assert missing_bytes(content, form) == 0
    rng, sizes = random.Random(name), [size for inside in packets for size in inside]
    for size in [inside[-1] for inside in packets] + rng.sample(sizes, min(cases(1500), len(sizes))):
        assert missing_bytes(content[:size], form) > 0
    for size in (rng.choice(packets[n]) for n in (20, 49)):
        with pytest.raises(MediaError, match=r"is cut off: it lacks at least [\d,]+ bytes at its end|cannot be read"):
            open_video(content[:size])
        if "fragments" not in name:
            assert "lacks at least" in open_video(content[:size], damaged="keep").damage


@pytest.mark.parametrize("name", ["h264.mkv", "vp9.webm"])
def test_a_cut_between_two_blocks_cannot_be_told(name):
    """Nor can any be told in what stands behind: line breaks of an upload."""
    content = recorded(**LIVE[name])
    with av.open(io.BytesIO(content)) as file:
        data = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    end = content.index(data[29]) + len(data[29])
    for more in (b"", b"\r\n"):
        assert len(open_video(content[:end] + more).pts) == 30
    for cut in (b"\xa3", b"\xa3\x41", b"\x1f\x43", b"\xa3\x41\x00"):  # the beginning of a block, or of a cluster
        with pytest.raises(MediaError, match=r"is cut off"):
            open_video(content[:end] + cut)


@pytest.mark.parametrize("cut", [5, 6, 7, 8, 12])
def test_an_mp4_that_is_cut_within_the_head_of_a_box(cut):
    head = b"\0\0\0\x10ftypisom\0\0\0\0"
    assert missing_bytes(head + (b"\0\0\0\x20moof" + bytes(24))[:cut], "mov,mp4,m4a,3gp,3g2,mj2") > 0


@pytest.mark.parametrize(
    "container",
    ["avi", "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "asf", "flv", "ogg", "mpegts", "mpeg", "mxf", "yuv4mpegpipe"],
)
def test_the_end_of_any_bytes_is_a_number(container):
    rng = random.Random(container)
    starts = (
        b"",
        b"RIFF",
        b"\x1aE\xdf\xa3",
        b"OggS\x00",
        b"\x00\x00\x00\x18ftyp",
        b"\x47",
        b"\x00\x00\x01\xba",
        b"YUV4MPEG2 W2 H2\n",
    )
    for _ in range(cases(200)):
        content = rng.choice(starts) + rng.randbytes(rng.randrange(0, 400))
        assert missing_bytes(content, container) >= 0


def test_a_packet_that_cannot_be_decoded(tmp_path):
    path = film(tmp_path / "film.mov", TIMES, codec="png", pix_fmt="rgb24", moving=True)
    whole = path.read_bytes()
    content = bytearray(whole)
    second = content.index(b"IDAT", content.index(b"\x89PNG", content.index(b"\x89PNG") + 4))
    content[second + 4 : second + 60] = bytes(56)
    video = open_video(bytes(content))
    with pytest.raises(MediaError, match=r"what is left is taken with damaged='keep'"):
        list(video.decode([1]).frames)
    kept = open_video(bytes(content), damaged="keep")
    assert len(kept.pts) == 49
    assert kept.damage.startswith("1 of 50 packets give no whole frame")
    expected = list(open_video(whole).decode([0, 2, 49]).frames)
    for one, other in zip(kept.decode([0, 1, 48]).frames, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert kept.seconds[1] == pytest.approx(0.08)


def test_the_processor_takes_what_is_left_and_says_so(tmp_path):
    path = film(tmp_path / "film.mkv", TIMES, codec="mjpeg", pix_fmt="yuvj420p", moving=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    messages = [{"role": "user", "content": [{"type": "video", "video": path}]}]
    with pytest.raises(MediaError, match=r"is cut off"):
        Processor()(messages)
    [media] = [part.media for part in Processor(damaged="keep").parts(messages[0]["content"]) if part.media]
    assert "lacks at least" in media.damage
    with pytest.raises(ValueError, match=r"damaged must be 'refuse' or 'keep', got 'ignore'"):
        Processor(damaged="ignore")
    with pytest.raises(ValueError, match=r"damaged must be 'refuse' or 'keep'"):
        open_video(path, damaged="ignore")


@pytest.mark.parametrize("form", ["ts", "flv"])
@pytest.mark.parametrize("shift", [-30, -2, -0.48])
def test_films_that_were_joined_are_counted(tmp_path, form, shift):
    """A recorder that connects again, files behind each other: times of the second lie before, or among, those of the first."""
    if form == "flv" and shift == -0.48:
        shift = -1.48
    first = film(tmp_path / f"first.{form}", [1000 * 31 + t for t in TIMES], moving=True)
    second = film(tmp_path / f"second.{form}", [1000 * 33 + round(1000 * shift) + t for t in TIMES], moving=True)
    content = first.read_bytes() + second.read_bytes()[13 if form == "flv" else 0 :]  # an FLV's tags begin behind its head
    video = open_video(content)
    assert len(video.pts) == 100
    assert video.clock.counted
    assert (np.diff(video.seconds) > 0).all()
    np.testing.assert_allclose(video.seconds, np.arange(100) / 25, rtol=0, atol=0.05)
    one, other = (list(open_video(path).decode([0, 7, 49]).frames) for path in (first, second))
    for frame, expected in zip(video.decode([0, 7, 49, 50, 57, 99]).frames, [*one, *other], strict=True):
        np.testing.assert_array_equal(frame, expected)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("fast start.mp4", b"\r\n"),
        ("fast start.mp4", bytes(4)),
        ("fast start.mp4", b"TAG" + b"a song".ljust(125)),
        ("fast start.mp4", b"<xml>what a camera writes</xml>"),
        ("film.mkv", b"\r\n"),
        ("film.avi", b"\r\n"),
        ("film.flv", b"\r\n"),
        ("film.mxf", bytes(300)),
    ],
)
def test_what_stands_behind_the_end_says_nothing(tmp_path, name, more):
    path = film(tmp_path / name, TIMES, **FILMS[name])
    assert len(open_video(path.read_bytes() + more).pts) == 50


@pytest.mark.parametrize("size", [2**62, 2**64 - 1])
def test_sizes_that_no_file_has(tmp_path, size):
    path = film(tmp_path / "film.mp4", TIMES)
    path.write_bytes(path.read_bytes() + b"\0\0\0\1free" + size.to_bytes(8, "big"))
    with pytest.raises(MediaError, match=r"is cut off"):
        open_video(path)
    path.write_bytes(b"\0\0\0\x10ftypisom\0\0\0\0\0\0\0\1free" + size.to_bytes(8, "big"))
    with pytest.raises(MediaError, match=r"cannot be read as a video"):
        open_video(path)
    with pytest.raises(MediaError, match=r"fps must be a positive number, got -25"):
        open_video(film(tmp_path / "film.h264", TIMES), fps=-25)


def test_a_file_of_many_small_pieces_takes_no_time():
    began = time.process_time()
    assert missing_bytes(b"\xec\x80" * 2_000_000, "matroska,webm") == 0
    assert missing_bytes(b"\0\0\0\x08free" * 1_000_000, "mov,mp4,m4a,3gp,3g2,mj2") == 0
    assert time.process_time() - began < 5


@pytest.mark.parametrize("form", ["GIF", "PNG"])
def test_an_animation_that_is_cut_between_its_frames(form):
    file = io.BytesIO()
    first, *others = (Image.new("RGB", (32, 16), (25 * n, 90, 30)) for n in range(8))
    first.save(file, form, save_all=True, append_images=others, duration=100)
    content = file.getvalue()
    mark = {"GIF": b"\x21\xf9", "PNG": b"fcTL"}[form]
    at = [match.start() for match in re.finditer(re.escape(mark), content)][4] - (4 if form == "PNG" else 0)
    with pytest.raises(MediaError, match=r"is damaged at frame 4: .*; the 4 before it are taken with damaged='keep'"):
        open_video(content[:at])
    video = open_video(content[:at], damaged="keep")
    assert (len(video.pts), video.damage) == (4, "the file ends before its end mark")
    shown = [frame[0, 0].tolist() for frame in video.decode(range(4)).frames]
    assert np.abs(np.array(shown) - [[25 * n, 90, 30] for n in range(4)]).max() < 8


def test_a_damaged_film_of_hevc_is_read_the_same_each_time(tmp_path):
    """FFmpeg's decoder says nothing of a frame that came out in part, and how much of it did depends on its threads."""
    path = film(
        tmp_path / "film.mp4",
        [0],
        codec="libx265",
        moving=True,
        size=(512, 512),
        options={"x265-params": "log-level=none:wpp=1"},
    )
    content, rng, refused = path.read_bytes(), random.Random(0), 0
    begin = content.index(b"mdat") + 200
    for _ in range(cases(12)):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[rng.randrange(begin, begin + 2000)] = rng.randrange(256)
        read = [_pixels(bytes(damaged)) for _ in range(3)]
        assert read == [read[0]] * 3
        refused += read[0] is None
    assert 0 < refused < cases(12)


def _pixels(content):
    try:
        [frame] = open_video(content).decode([0]).frames
    except MediaError:
        return None
    return frame.tobytes()
