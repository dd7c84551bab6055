"""Images that are cut at any byte, or of which any byte is another: pixels or MediaError, and nothing else; and what is in a file
that nobody needs decides nothing."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmrope import MediaError, Processor
from mmrope.preprocess import Limits, load_image
from mmrope.preprocess.animation import is_animation
from mmrope.preprocess.video import open_video
from tests.support import PROOF

EVERY = 1 if PROOF else 23  # bytes from one cut or change to the next
LIMITS = Limits(max_image_pixels=1_000_000, max_animation_pixels=4_000_000)


def pictures(count):
    """Frames [24, 32] with a disc that moves."""
    frames = [Image.new("RGB", (32, 24), (30, 90, 200)) for _ in range(count)]
    for n, frame in enumerate(frames):
        ImageDraw.Draw(frame).ellipse((4 + 3 * n, 4, 16 + 3 * n, 16), fill=(250, 220, 40))
    return frames


def encoded(form, count=1, **options):
    first, *others = pictures(count)
    file = io.BytesIO()
    more = {"save_all": True, "append_images": others} if count > 1 else {}
    if form in ("GIF", "WEBP", "PNG", "AVIF") and count > 1:
        more["duration"] = [40 * (n + 1) for n in range(count)]
    first.save(file, form, **more, **options)
    return file.getvalue()


def heic():
    import pillow_heif

    file = io.BytesIO()
    pillow_heif.from_pillow(pictures(1)[0]).save(file, format="HEIF")
    return file.getvalue()


def with_footer(tga):
    return tga if tga.endswith(b"TRUEVISION-XFILE.\0") else tga + bytes(8) + b"TRUEVISION-XFILE.\0"


FILES = {
    "jpeg": lambda: encoded("JPEG"),
    "progressive jpeg": lambda: encoded("JPEG", progressive=True),
    "png": lambda: encoded("PNG"),
    "apng": lambda: encoded("PNG", 3),
    "gif": lambda: encoded("GIF", 3),
    "webp": lambda: encoded("WEBP"),
    "animated webp": lambda: encoded("WEBP", 3, lossless=True),
    "avif": lambda: encoded("AVIF"),
    "animated avif": lambda: encoded("AVIF", 3),
    "tiff": lambda: encoded("TIFF"),
    "pages.tiff": lambda: encoded("TIFF", 3, compression="tiff_lzw"),
    "deflated.tiff": lambda: encoded("TIFF", compression="tiff_deflate"),
    "jpeg in tiff": lambda: encoded("TIFF", compression="jpeg"),
    "bmp": lambda: encoded("BMP"),
    "jpeg 2000": lambda: encoded("JPEG2000"),
    "ico": lambda: encoded("ICO", sizes=[(32, 24)]),
    "ppm": lambda: encoded("PPM"),
    "tga": lambda: with_footer(encoded("TGA")),
    "heic": heic,
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_or_one_kind_of_error(name):
    whole = FILES[name]()
    assert len(whole) < 4096
    assert load_image(whole, animation="first").shape == (24, 32, 3)
    counts = {"pixels": 0, "refused": 0}
    for at in range(0, len(whole), EVERY):
        flipped = bytearray(whole)
        flipped[at] ^= 0xFF
        for content in (whole[:at], bytes(flipped)):
            counts[outcome(lambda c=content: load_image(c, animation="first", limits=LIMITS))] += 1
            counts[outcome(lambda c=content: load_image(c, limits=LIMITS, color="srgb"))] += 1
            outcome(lambda c=content: is_animation(c))
    assert counts["refused"]


@pytest.mark.parametrize("name", ["gif", "apng", "animated webp", "animated avif"])
def test_frames_or_one_kind_of_error(name):
    """A cut animation is refused, or has all of its frames: never a shorter film."""
    whole = FILES[name]()
    video = open_video(whole)
    assert len(video.pts) == 3
    assert video.seconds.tolist() == pytest.approx([0, 0.04, 0.12])
    assert float(video.duration) == pytest.approx(0.24)
    for at in range(1, len(whole), EVERY):
        flipped = bytearray(whole)
        flipped[at] ^= 0xFF
        for content, cut in ((whole[:at], True), (bytes(flipped), False)):
            frames = []
            if outcome(lambda c=content, f=frames: f.extend(every_frame(c))) == "pixels" and cut:
                assert len(frames) == 3, at


def every_frame(content):
    video = open_video(content, limits=LIMITS)
    return video.decode(range(len(video.pts))).frames


def outcome(read):
    try:
        read()
    except MediaError:
        return "refused"
    return "pixels"


# --- animations -------------------------------------------------------------------------------------------------------


def long_gif(side, frames):
    """One pixel changes from frame to frame, on a canvas of side x side."""
    frame = b"\x21\xf9\x04\x00\x04\x00\x00\x00\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6) + frame * frames + b";"


@pytest.mark.parametrize(("side", "frames"), [(8000, 31), (16, 5000), (1, 100_000)])
def test_to_open_takes_what_the_file_is_long_and_not_what_it_says(side, frames):
    content = long_gif(side, frames)
    began = time.process_time()
    video = open_video(content)
    assert len(video.pts) == frames
    assert float(video.duration) == pytest.approx(0.04 * frames)
    assert time.process_time() - began < 5  # it was 18 s for the first


def test_too_many_pixels_in_all_frames_are_refused_before_one_is_decoded():
    with pytest.raises(MediaError, match=r"has over 2 thousand million pixels in its frames together"):
        open_video(long_gif(8000, 32))
    with pytest.raises(MediaError, match=r"has more than 100 frames"):
        open_video(long_gif(8, 101), limits=Limits(max_video_frames=100))


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_times_are_those_that_pillow_finds_by_decoding(form):
    content = encoded(form, 4, **({"lossless": True} if form == "WEBP" else {}))
    ends, total = [], 0.0
    with Image.open(io.BytesIO(content)) as image:
        for n in range(image.n_frames):
            image.seek(n)
            image.load()
            total += float(image.info["duration"])
            ends.append(total)
    video = open_video(content)
    assert [*video.seconds[1:].tolist(), float(video.duration)] == pytest.approx([end / 1000 for end in ends])
    for wanted in ([3], [0, 2, 2], range(4)):
        found = list(video.decode(wanted).frames)
        assert len(found) == len(list(wanted))
    for n, frame in enumerate(video.decode(range(4)).frames):
        assert np.abs(frame[10, 10 + 3 * n].astype(int) - (250, 220, 40)).max() < 12


def test_an_image_for_viewers_without_animations_is_no_frame():
    file = io.BytesIO()
    shown, *frames = pictures(3)
    shown.save(file, "PNG", save_all=True, default_image=True, append_images=frames, duration=50)
    video = open_video(file.getvalue())
    assert video.seconds.tolist() == pytest.approx([0, 0.05])
    for frame, picture in zip(video.decode([0, 1]).frames, frames, strict=True):
        np.testing.assert_array_equal(frame, np.asarray(picture))


def test_pages_are_no_film():
    pages = encoded("TIFF", 3)
    with pytest.raises(MediaError, match=r"has 3 pages: take its first with animation='first'$"):
        load_image(pages)
    np.testing.assert_array_equal(load_image(pages, animation="first"), np.asarray(pictures(1)[0]))
    assert not is_animation(pages)


# --- what nobody needs ------------------------------------------------------------------------------------------------


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    "broken",
    [
        chunk(b"eXIf", b"MM\x00*\x00\x00\x00\x08\x00\x05\x01"),
        chunk(b"eXIf", b"nonsense"),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n   99\nzz 00")),
        chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 9\nnot hexadecimal"),
        chunk(b"iCCP", b"broken\0\0" + b"no zlib"),
    ],
)
def test_broken_metadata_of_a_png_leaves_its_pixels(broken):
    whole = encoded("PNG")
    at = whole.index(b"IDAT") - 4
    np.testing.assert_array_equal(load_image(whole[:at] + broken + whole[at:]), load_image(whole))


# --- colour -----------------------------------------------------------------------------------------------------------


def profile(primaries, gamma):
    """The smallest ICC profile of a display: three colours in XYZ (of D50), and a curve."""
    tags = {b"wtpt": xyz(0.9642, 1.0, 0.8249), b"desc": b"desc\0\0\0\0\0\0\0\x02x\0" + bytes(79), b"cprt": b"text\0\0\0\0x\0"}
    tags |= {key: xyz(*colour) for key, colour in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for key, data in tags.items():
        data += bytes(-len(data) % 4)
        table += key + struct.pack(">II", at + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ") + bytes(12) + b"acsp"
    head += bytes(128 - 12 - len(head)) + b""
    head = head[:68] + struct.pack(">iii", 63190, 65536, 54061) + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + body


def xyz(*values):
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(value * 65536) for value in values))


P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))  # Display P3, adapted to D50
SRGB_OF_XYZ = np.array([[3.1339, -1.6169, -0.4906], [-0.9785, 1.9160, 0.0333], [0.0720, -0.2290, 1.4057]])  # from D50


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_wide_gamut_as_srgb(form):
    """Colours of Display P3 by a gamma of 2.2, against what matrices and the curve of sRGB make of them."""
    colours = np.array([[200, 120, 80], [90, 160, 90], [60, 80, 180], [128, 128, 128], [255, 255, 255], [0, 0, 0]], np.uint8)
    pixels = np.repeat(np.repeat(colours[None], 16, 0), 16, 1)  # [16, 96, 3]
    file = io.BytesIO()
    more = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    Image.fromarray(pixels).save(file, form, icc_profile=profile(P3, 2.2), **more)
    stored = load_image(file.getvalue())
    assert np.abs(stored.astype(int) - pixels).max() <= (3 if form == "JPEG" else 0)  # by default the profile is left alone
    shown = load_image(file.getvalue(), color="srgb")
    linear = (colours / 255) ** 2.2 @ np.array(P3) @ SRGB_OF_XYZ.T
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.clip(linear, 1e-9, 1) ** (1 / 2.4) - 0.055)
    assert np.abs(shown[8, 8::16].astype(float) - np.clip(expected, 0, 255)).max() <= (4 if form == "JPEG" else 2)
    messages = [{"role": "user", "content": [{"type": "image", "image": file.getvalue()}]}]
    one, other = (Processor(color=color, pixels="uint8")(messages)["pixel_values"] for color in ("stored", "srgb"))
    assert (one != other).any()


def test_a_damaged_profile_is_refused_only_where_it_is_asked_for():
    file = io.BytesIO()
    pictures(1)[0].save(file, "JPEG", icc_profile=b"no profile at all" * 10)
    assert load_image(file.getvalue()).shape == (24, 32, 3)
    with pytest.raises(MediaError, match=r"has an ICC profile that cannot be used: .*; color='stored' leaves it alone"):
        load_image(file.getvalue(), color="srgb")
    with pytest.raises(ValueError, match=r"color must be 'stored' or 'srgb', got 'p3'"):
        load_image(file.getvalue(), color="p3")


def test_transparency_stays_where_colours_are_converted():
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, :4], rgba[:, 4:] = (200, 120, 80, 0), (200, 120, 80, 255)
    file = io.BytesIO()
    Image.fromarray(rgba).save(file, "PNG", icc_profile=profile(P3, 2.2))
    shown = load_image(file.getvalue(), color="srgb", background=(1, 2, 3))
    assert shown[0, 0].tolist() == [1, 2, 3]
    assert shown[0, 7].tolist() == load_image(file.getvalue(), color="srgb")[0, 7].tolist() != [200, 120, 80]
