"""Images and animations that are cut at any byte, or have any byte changed: pixels, or a MediaError and nothing else.

A fixed sample of the places; all of them in `make proof`. scripts/fuzz_media.py damages files in more ways.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections import Counter

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from mmrope import MediaError, Processor
from mmrope.preprocess import load_image, open_video
from mmrope.preprocess.image import is_animation
from tests.support import PROOF
from tests.support.crafted import chunk, image, png, replaced, unfiltered
from tests.support.mutants import LIMITS, image_seeds, mended

SEEDS = image_seeds()
SAMPLE = 40

# what Pillow warns of, it goes on from; as errors, as elsewhere in these tests, warnings would hide what it does then
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def _small_frames(monkeypatch):
    """Pillow's own limit, which frames of animations are under, as low as the others."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", LIMITS.max_image_pixels)


def first_frame(content):
    load_image(content, animation="first", limits=LIMITS)


def image_alone(content):
    load_image(content, limits=LIMITS)


def in_srgb(content):
    load_image(content, animation="first", color="srgb", limits=LIMITS)


def whole_film(content):
    video = open_video(content, limits=LIMITS)
    for frame in video.decode(range(len(video.pts))).frames:
        assert frame.shape == (video.height, video.width, 3)


def readers(name):
    return first_frame, image_alone, in_srgb, is_animation, *([whole_film] if name.endswith("animated") else [])


def places(name, size):
    return range(size) if PROOF else sorted(random.Random(name).sample(range(size), min(size, SAMPLE)))


def tried(name, damaged):
    """What comes of each; any other exception fails the test."""
    found = Counter()
    for content in damaged:
        for read in readers(name):
            try:
                read(content)
                found["opened"] += 1
            except MediaError:
                found["refused"] += 1
    return found


def changed(content, place):
    damaged = bytearray(content)
    damaged[place] ^= 0xFF
    return bytes(damaged)


@pytest.mark.parametrize("name", SEEDS)
def test_cut_at_any_byte(name):
    content = SEEDS[name]
    assert len(content) < 4096
    found = tried(name, (content[:place] for place in places(name, len(content))))
    assert found["refused"]


@pytest.mark.parametrize("name", SEEDS)
def test_any_byte_changed(name):
    content = SEEDS[name]
    damaged = [changed(content, place) for place in places(name, len(content))]
    if name.startswith("png"):  # a checksum that is wrong hides what lies behind it
        damaged += [mended(file) for file in damaged]
    assert tried(name, damaged).total()


def test_a_processor_raises_nothing_else():
    for content in (SEEDS["gif, animated"], SEEDS["tiff, three pages"]):
        for place in range(20, len(content), len(content) // 12):
            items = [{"type": kind, kind: content[:place]} for kind in ("image", "video")]
            for item in items:
                with pytest.raises(MediaError):
                    Processor()([{"role": "user", "content": [item]}])


def test_the_first_page_does_not_need_the_second():
    content = SEEDS["tiff, three pages"]
    pixels = load_image(content, animation="first")
    (first,) = struct.unpack_from("<I", content, 4)
    (tags,) = struct.unpack_from("<H", content, first)
    (second,) = struct.unpack_from("<I", content, first + 2 + 12 * tags)
    for junk in (b"", bytes(40), b"\xff" * 40):
        np.testing.assert_array_equal(load_image(content[:second] + junk, animation="first"), pixels)
        with pytest.raises(MediaError, match=r"has more than one page: take the first with animation='first'"):
            load_image(content[:second] + junk)


# --- metadata that nobody needs ---------------------------------------------------------------------------------------

NOT_EXIF = (
    b"no EXIF data at all",
    bytes(40),
    b"MM\0*\xff\xff\xff\xff",
    b"II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\xff\xff\xff\xff",
)
SCENE = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)


@pytest.mark.parametrize("exif", NOT_EXIF)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_broken_exif_data_count_as_none(form, exif):
    if form == "TIFF":  # its own tags are its EXIF data: an orientation of another type
        content = replaced(
            image(SCENE, form, tiffinfo={0x112: 6}), b"\x12\x01\x03\0\x01\0\0\0\x06\0", b"\x12\x01\x02\0\x01\0\0\0\x06\0"
        )
    else:
        content = image(SCENE, form, exif=b"Exif\0\0" + exif, **({"lossless": True} if form == "WEBP" else {}))
    pixels = load_image(content)
    np.testing.assert_array_equal(pixels, load_image(image(SCENE, "JPEG")) if form == "JPEG" else SCENE)


@pytest.mark.parametrize("exif", NOT_EXIF)
def test_broken_exif_data_of_a_heic(exif):
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(SCENE)).save(buffer, quality=-1, chroma=444, exif=b"Exif\0\0" + exif)
    assert np.abs(load_image(buffer.getvalue()).astype(int) - SCENE).max() <= 6


@pytest.mark.parametrize("before", [True, False], ids=["before the pixels", "behind them"])
@pytest.mark.parametrize(
    "broken",
    [
        chunk(b"eXIf", b"\0\x08\0\x02\x01\x12\0\x03no header"),
        chunk(b"tEXt", b"Raw profile type exif\0\nexif\n      20\n4578696600004d4d002aZZ\n"),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n      20\n457")),
        chunk(b"tEXt", b"Raw profile type exif\0no lines"),
    ],
    ids=["eXIf", "text that is not hexadecimal", "text of half a byte", "no text"],
)
def test_broken_exif_data_of_a_png(broken, before):
    whole = png((64, 48), unfiltered(SCENE), extra=broken if before else b"")
    content = whole if before else replaced(whole, end := chunk(b"IEND", b""), broken + end)
    np.testing.assert_array_equal(load_image(content), SCENE)
    film = image(SCENE, "PNG", save_all=True, append_images=[Image.fromarray(SCENE[::-1].copy())])
    film = film[:33] + broken + film[33:]
    for frame, expected in zip(open_video(film).decode([0, 1]).frames, (SCENE, SCENE[::-1]), strict=True):
        np.testing.assert_array_equal(frame, expected)
