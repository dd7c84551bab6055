"""Animations: times from headers, equal to those that decoding every frame gives; and what that costs."""

from __future__ import annotations

import io
import struct
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from mmrope import MediaError
from mmrope.preprocess import Limits, load_image, open_video
from mmrope.preprocess.animation import _of_avif
from tests.support import cases
from tests.support.crafted import chunk
from tests.support.films import grey_of

FORMS = {"GIF": {}, "PNG": {}, "WEBP": {"lossless": True}, "AVIF": {"quality": 95}}


def encoded(frames, form, **options):
    buffer, (first, *rest) = io.BytesIO(), frames
    first.save(buffer, form, save_all=True, append_images=rest, **{**FORMS[form], **options})
    return buffer.getvalue()


def grey(n, size=(24, 16)):
    return Image.new("RGB", size, (grey_of(n % 25),) * 3)


def moving(count, chance):
    """Frames of which each changes a part of the one before, some of it to nothing."""
    canvas, frames = np.zeros((16, 24, 4), np.uint8), []
    canvas[..., 3] = 255
    for _ in range(count):
        y, x = chance.integers(0, 12), chance.integers(0, 20)
        canvas[y : y + chance.integers(1, 9), x : x + chance.integers(1, 9)] = [
            *chance.integers(0, 255, 3),
            chance.choice((0, 255)),
        ]
        frames.append(Image.fromarray(canvas.copy()))
    return frames


def by_decoding(content):
    """Every frame of Pillow on white, and how long it says that it is shown, in milliseconds."""
    frames, shown = [], []
    with Image.open(io.BytesIO(content)) as image:
        for n in range(image.n_frames):
            image.seek(n)
            image.load()
            white = Image.new("RGBA", image.size, "white")
            frames.append(np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")))
            shown.append(image.info["duration"])
    return frames, shown


def gif(size, frames):
    """Of frames of one pixel, whatever the size of the canvas."""
    content = b"GIF89a" + struct.pack("<HHBBB", *size, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    frame = b"!\xf9\4\0\x0a\0\0\0," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2\x44\1\0"
    return content + frames * frame + b";"


# --- times and frames -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@given(shown=st.lists(st.integers(0, 3000), min_size=2, max_size=6), seed=st.integers(0, 2**32))
@settings(max_examples=cases(12))
def test_times_and_frames_are_those_of_decoding_all(form, shown, seed):
    options = {"disposal": 2} if form == "GIF" and seed % 2 else {}
    content = encoded(moving(len(shown), np.random.default_rng(seed)), form, duration=shown, **options)
    frames, durations = by_decoding(content)
    if len(frames) == 1 and form != "GIF":
        return  # all were alike, and became one
    video = open_video(content)
    lasting = [duration if duration >= 11 else 100 for duration in durations]  # as browsers do
    assert video.seconds * 1000 == pytest.approx(np.cumsum([0, *lasting[:-1]]), abs=1e-3)
    assert float(video.duration) * 1000 == pytest.approx(sum(lasting), abs=1e-3)
    np.testing.assert_array_equal(list(video.decode(range(len(frames))).frames), frames)
    last = len(frames) - 1
    np.testing.assert_array_equal(list(video.decode([last, last]).frames), [frames[last]] * 2)  # by itself


@pytest.mark.parametrize(
    ("form", "codec", "pix_fmt", "ticks"),
    [("gif", "gif", "rgb8", 100), ("apng", "apng", "rgb24", 10**6), ("webp", "libwebp", "yuv420p", 1000), ("avif", "libsvtav1", "yuv420p", 10**6)],
)  # fmt: skip
def test_files_of_another_encoder(form, codec, pix_fmt, ticks):
    """FFmpeg's, of 30 frames a second, as exact as the format can say it: GIF in hundredths, WebP in thousandths."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 64, pix_fmt
        for n in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), grey_of(n), np.uint8))
            frame.pts, frame.time_base = n, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    video = open_video(buffer.getvalue())
    exact = np.arange(8) / 30
    assert video.seconds == pytest.approx(exact, abs=0.5 / ticks + 1e-6)
    assert video.clock.container == form.replace("apng", "png")
    if form != "gif":  # whose colours are few
        frames = list(video.decode(range(8)).frames)
        assert [int(frame.mean()) for frame in frames] == pytest.approx([grey_of(n) for n in range(8)], abs=3)


def test_a_picture_before_an_animated_png_is_not_of_it():
    """It is for viewers that show no animation; as an image, it is what is seen."""
    content = encoded([grey(9), grey(1), grey(2)], "PNG", default_image=True, duration=[300, 400])
    video = open_video(content)
    assert video.seconds.tolist() == [0, 0.3]
    assert float(video.duration) == 0.7
    assert [int(frame.mean()) for frame in video.decode([0, 1]).frames] == [grey_of(1), grey_of(2)]
    assert int(load_image(content, animation="first").mean()) == grey_of(9)


def test_an_animated_png_begins_on_nothing():
    """Where its first frame is transparent, the background shows, and not the picture before it."""
    red, blue = Image.new("RGBA", (24, 16), (255, 0, 0, 255)), Image.new("RGBA", (24, 16), (0, 0, 0, 0))
    blue.paste((0, 0, 255, 255), (4, 4, 8, 8))
    green = blue.copy()
    green.paste((0, 255, 0, 255), (12, 4, 16, 8))
    video = open_video(encoded([red, blue, green], "PNG", default_image=True, duration=100, blend=1), background=(9, 9, 9))
    for wanted in ([0, 1], [1]):
        *_, frame = video.decode(wanted).frames
        assert [frame[y, x].tolist() for y, x in ((0, 0), (5, 5), (5, 13))] == [[9, 9, 9], [0, 0, 255], [0, 255, 0]]
    [frame] = video.decode([0]).frames
    assert [frame[y, x].tolist() for y, x in ((0, 0), (5, 5), (5, 13))] == [[9, 9, 9], [0, 0, 255], [9, 9, 9]]


def test_an_orientation_holds_for_the_film():
    exif = Image.Exif()
    exif[0x112] = 6
    for form in ("PNG", "WEBP"):  # Pillow's encoder of AVIF crashes with several frames and an orientation
        video = open_video(encoded([grey(1), grey(2)], form, duration=100, exif=exif))
        assert (video.width, video.height) == (16, 24)
        assert [frame.shape for frame in video.decode([0, 1]).frames] == [(24, 16, 3)] * 2


@pytest.mark.parametrize(
    ("version", "clock"), [(0, struct.pack(">4xIIII", 0, 0, 600, 0)), (1, struct.pack(">4xQQIQ", 0, 0, 600, 0))]
)
def test_times_in_the_boxes_of_avif(version, clock):
    """Both versions of a clock, a track of transparency before that of pictures, sizes of 64 bits, and a last entry that holds on."""

    def box(kind, *content, long=False):
        body = b"".join(content)
        head = struct.pack(">I4sQ", 1, kind, len(body) + 16) if long else struct.pack(">I4s", len(body) + 8, kind)
        return head + body

    def track(handler, *entries):
        times = struct.pack(">4xI", len(entries)) + b"".join(struct.pack(">II", *entry) for entry in entries) + b"junk!"
        kind, table = box(b"hdlr", bytes(8), handler, bytes(13)), box(b"minf", box(b"stbl", box(b"stts", times)))
        return box(b"trak", box(b"mdia", box(b"mdhd", bytes([version]) + clock[1:]), kind, table), long=True)

    film = track(b"auxv", (5, 1)), track(b"pict", (2, 60), (1, 1), (1, 300))
    content = box(b"ftyp", b"avis") + box(b"moov", *film) + box(b"mdat") + struct.pack(">I4s", 0, b"free") + bytes(9)
    image = Image.new("RGB", (1, 1))
    image.n_frames = 6
    assert [shown / 10**12 for shown in _of_avif(content, image, "film")[0]] == pytest.approx(
        [0.1, 0.1, 1 / 600, 0.5, 0.5, 0.5]
    )
    with pytest.raises(MediaError, match=r"film is damaged: it has several frames, and no track of pictures"):
        _of_avif(content.replace(b"pict", b"soun"), image, "film")
    with pytest.raises(ValueError, match=r"it has a box of 7 bytes"):
        _of_avif(struct.pack(">I", 7) + content[4:], image, "film")


# --- cost -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_opening_decodes_nothing(form, monkeypatch):
    content = encoded([grey(n) for n in range(4)], form, duration=[40, 200, 90, 500])

    def forbidden(*_):
        raise AssertionError("it was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", forbidden)
    for plugin in ("GifImagePlugin.GifImageFile", "WebPImagePlugin.WebPImageFile", "AvifImagePlugin.AvifImageFile"):
        monkeypatch.setattr(f"PIL.{plugin}.load", forbidden, raising=False)
    assert open_video(content).seconds.tolist() == pytest.approx([0, 0.04, 0.24, 0.33])


def test_a_small_file_costs_little_whatever_it_claims():
    bomb = gif((8000, 8000), 40)
    assert len(bomb) < 1000
    began = time.process_time()
    video = open_video(bomb)
    assert len(video.pts) == 40
    with pytest.raises(
        MediaError,
        match=r"its first 40 frames of 8000 x 8000 have to be decoded, 2,560 million pixels, the limit is 2,000 million; ask for "
        r"earlier frames, make a video file of it, or raise Limits\(max_animation_pixels",
    ):
        video.decode([0, 39])
    many = gif((500, 400), 5_000)
    assert len(many) < 120_000
    assert float(open_video(many).duration) == 500
    assert time.process_time() - began < 1


def test_the_limit_is_of_what_is_decoded():
    content = encoded([grey(n, (8, 8)) for n in range(5)], "GIF", duration=100)
    video = open_video(content, limits=Limits(max_animation_pixels=3 * 64))
    assert [frame.shape for frame in video.decode([0, 2]).frames] == [(8, 8, 3)] * 2
    assert list(video.decode([]).frames) == []
    with pytest.raises(MediaError, match=r"its first 4 frames of 8 x 8 have to be decoded"):
        video.decode([3])


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gif((4, 4), 3)[:-4], r"is damaged at frame 2: the file ends in it"),
        (gif((4, 4), 3)[:-12], r"is damaged at frame 2: the file ends in it"),
        (gif((4, 4), 3)[:-22], r"is damaged at frame 2: the file ends in it"),
        (b"GIF89a" + bytes(7) + b";", r"is not an image that can be opened"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)), r"is not an image that can be opened|is damaged"),
        (encoded([grey(1), grey(2)], "PNG")[:-60], r"is damaged at frame 1: the file ends in it"),
    ],
)  # fmt: skip
def test_damage_is_told_when_it_is_opened(content, message):
    with pytest.raises(MediaError, match=message):
        open_video(content)


def test_a_gif_without_its_end_mark_may_have_been_longer():
    for missing in (1, 2):  # the last byte, and that which ends the last frame's data
        with pytest.raises(MediaError, match=r"before its end mark; the 3 before it are taken with damaged='keep'"):
            open_video(gif((4, 4), 3)[:-missing])
        assert len(open_video(gif((4, 4), 3)[:-missing], damaged="keep").pts) == 3


def test_a_png_may_lack_its_end():
    video = open_video(encoded([grey(1), grey(2)], "PNG")[:-12])
    assert [int(frame.mean()) for frame in video.decode([0, 1]).frames] == [grey_of(1), grey_of(2)]
