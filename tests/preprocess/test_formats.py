"""The table of formats: what it names is opened and nothing else, and the pages that show it are of it."""

from __future__ import annotations

import io
import re
import sys
import time

import numpy as np
import pillow_heif
import pytest
from PIL import Image, features

from mmrope import MediaError
from mmrope.arguments import IMAGES
from mmrope.preprocess import Limits, load_image, open_video
from mmrope.preprocess.formats import IMAGE_FORMATS, REFUSED_FORMATS, listed, tables
from mmrope.preprocess.image import ANIMATED, FORMATS
from mmrope.preprocess.probe import CODECS, CONTAINERS
from tests.support import ROOT
from tests.support.crafted import heic, image, png

NOT_READ = {"PDF", "MPO", "HEIF"}  # which Pillow alone does not read, or reads as JPEG
SCENE = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3)
KNOWN = {row.plugin for row in IMAGE_FORMATS}


def written(plugin):
    """A small file of a format of Pillow."""
    for mode in ("RGB", "L", "1", "F"):
        try:
            content = image(Image.fromarray(SCENE).convert(mode), plugin)
            Image.open(io.BytesIO(content)).load()
        except (OSError, ValueError, KeyError):
            continue
        return content
    return b""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_in_the_table_is_opened_and_nothing_else():
    """Every format that Pillow can write and read."""
    Image.init()
    files = {plugin: written(plugin) for plugin in (set(Image.SAVE) & set(Image.OPEN)) - NOT_READ}
    others = [plugin for plugin, content in files.items() if content and plugin not in KNOWN]
    assert len(others) > 8
    for plugin in KNOWN - NOT_READ:
        assert load_image(files[plugin]).any(), plugin
    for plugin in others:
        with pytest.raises(MediaError, match=r"is not an image that can be opened \(known formats: JPEG, PNG"):
            load_image(files[plugin])


def test_the_table_is_complete():
    assert set(FORMATS) == KNOWN - {"HEIF", "TGA"}
    assert set(ANIMATED) == {row.plugin for row in IMAGE_FORMATS if row.moves} == {"GIF", "PNG", "WEBP", "AVIF"}
    endings = [ending for row in IMAGE_FORMATS for ending in row.endings]
    assert len(endings) == len(set(endings))
    assert set(endings) == IMAGES
    Image.init()
    for row in IMAGE_FORMATS:  # Pillow knows each ending as this format's, where it knows it
        assert {Image.registered_extensions().get(e, row.plugin) for e in row.endings} <= {row.plugin, "MPO", "JPEG"}


def test_the_pages_are_of_the_table():
    assert "\n".join(tables()) in (ROOT / "docs" / "media.md").read_text(), "write the tables of docs/media.md anew"
    shown = " ".join(listed(CONTAINERS, CODECS).split())
    for row in IMAGE_FORMATS:
        assert f"{row.name} {' '.join(row.endings)}" in shown
        assert " ".join(row.why.split()) in shown
    for row in REFUSED_FORMATS:
        assert f"{row.name} {row.why}" in shown
    assert " ".join(CODECS) in shown
    assert " ".join(CONTAINERS) in shown
    assert re.search(r"HEIC [^;]*\(pip install 'mmrope\[heic\]'\)", shown)


# --- what is watched --------------------------------------------------------------------------------------------------


def test_tga_is_known_by_its_footer_alone(tmp_path):
    content = image(SCENE, "TGA")
    path = tmp_path / "scene.tga"
    path.write_bytes(content)
    with open(path, "rb") as file:
        file.seek(7)
        for source in (path, content, file):
            np.testing.assert_array_equal(load_image(source), SCENE)
        assert file.tell() >= 0
    with pytest.raises(MediaError, match=r"is not an image that can be opened"):
        load_image(content[:-26])
    assert Image.open(io.BytesIO(content[:-26])).format == "TGA"  # as would be much else


def test_a_stream_that_cannot_go_back():
    class Stream(io.RawIOBase):
        def __init__(self, content):
            self.left = io.BytesIO(content)

        def readable(self):
            return True

        def readinto(self, buffer):
            return self.left.readinto(buffer)

    for content in (image(SCENE), image(SCENE, "TGA"), image(SCENE, "ICO"), heic(SCENE)):
        assert load_image(Stream(content)).shape == load_image(content).shape


def test_a_burst_of_heic_is_its_primary_picture(monkeypatch):
    heif = pillow_heif.from_pillow(Image.fromarray(SCENE))
    heif.add_from_pillow(Image.fromarray(255 - SCENE))
    heif.save(buffer := io.BytesIO(), quality=-1, chroma=444)
    content = buffer.getvalue()
    for brand in (b"msf1", b"hevc", b"heix", b"mif1"):
        pixels = load_image(content[:8] + brand + content[12:])
        assert np.abs(pixels.astype(int) - SCENE).max() <= 6
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(MediaError, match=r"is HEIC, which takes pillow-heif: pip install 'mmrope\[heic\]'"):
        load_image(content[:8] + b"msf1" + content[12:])
    avif = image(SCENE, "AVIF")
    assert b"mif1" in avif[:32]
    assert load_image(avif[:8] + b"mif1" + avif[12:]).shape == SCENE.shape  # AVIF, by its other brands


def test_icons_are_measured_before_they_are_decoded():
    icon = image(Image.fromarray(SCENE), "ICO", sizes=[(24, 16)])
    at = icon.index(b"\x89PNG")
    bomb = png((9000, 9000), bytes(9000 * 1126), depth=1, kind=0)
    for inside in (bomb, b"\x28\0\0\0" + (9000).to_bytes(4, "little") + (18000).to_bytes(4, "little") + bytes(40)):
        with pytest.raises(MediaError, match=r"has 9000 x 9000 = 81 million pixels, the limit is 64 million"):
            load_image(icon[:at] + inside)
    old = b"\x0c\0\0\0" + (24).to_bytes(2, "little") + (32).to_bytes(2, "little") + b"\1\0\x18\0" + bytes(8 * 24 * 16)
    assert load_image(icon[:at] + old, limits=Limits(max_image_pixels=24 * 16)).shape == (16, 24, 3)
    with pytest.raises(MediaError, match=r"the limit is"):
        load_image(icon[:at] + old, limits=Limits(max_image_pixels=24 * 16 - 1))


@pytest.mark.skipif(not features.check("jpg_2000"), reason="a Pillow without OpenJPEG")
def test_tiles_of_jpeg_2000_are_counted():
    for options in ({}, {"no_jp2": True}):
        content = image(np.zeros((512, 512, 3), np.uint8), "JPEG2000", tile_size=(4, 4), **options)
        with pytest.raises(MediaError, match=r"has 16,384 tiles of 4 x 4 in 3 channels, which take too much memory"):
            load_image(content)
    whole = image(SCENE, "JPEG2000")
    with pytest.raises(MediaError, match=r"is damaged: a JPEG 2000 box of 3 bytes"):
        load_image(whole[:12] + b"\0\0\0\3" + whole[16:])


@pytest.mark.parametrize("white", [1, 100, 254, 4095, 65534])
def test_pnm_of_any_white(white):
    """Rounded to the nearest; values above white are white. Pillow's own reading takes a microsecond a value."""
    stored = np.random.default_rng(white).integers(0, min(white + 2, 65536), (16, 24, 3))
    written = stored.astype(np.uint8 if white < 256 else ">u2").tobytes()
    expected = np.floor(stored.clip(0, white) * 255 / white + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(load_image(b"P6 24 16 %d\n" % white + written), expected)
    with pytest.raises(MediaError, match=r"is damaged and cannot be decoded as PPM: the file ends in its pixels"):
        load_image(b"P6 24 16 %d\n" % white + written[:-1])
    with pytest.raises(MediaError, match=r"is damaged and cannot be decoded as PPM: the file ends in its pixels"):
        load_image(b"P6 24 16 %d\n" % white + written[:-3])
    began = time.process_time()
    assert load_image(b"P5 1000 1000 %d\n" % white + bytes(2_000_000)).shape == (1000, 1000, 3)
    assert time.process_time() - began < 0.5


def test_pages_are_no_film():
    pages = image(Image.fromarray(SCENE), "TIFF", save_all=True, append_images=[Image.fromarray(255 - SCENE)])
    with pytest.raises(MediaError, match=r"has more than one page: take the first with animation='first'"):
        load_image(pages)
    np.testing.assert_array_equal(load_image(pages, animation="first"), SCENE)
    with pytest.raises(MediaError, match=r"cannot be read as a video"):
        open_video(pages)
