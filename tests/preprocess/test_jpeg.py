"""JPEG by simplejpeg: the bits that Pillow gives, and on damaged files Pillow's outcome."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image
from skimage import data

from mmrope import MediaError
from mmrope.preprocess import jpeg, load_image
from tests.support import cases

COFFEE = Image.fromarray(data.coffee())
KINDS = [
    {"quality": quality, "subsampling": subsampling, "progressive": progressive, "restart_marker_rows": restart}
    for quality in (30, 75, 90, 100)
    for subsampling in (0, 1, 2)
    for progressive in (False, True)
    for restart in (0, 2)
]


def encoded(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def by_both(monkeypatch, content):
    """What load_image makes of it with simplejpeg, and by Pillow alone: pixels, or the message."""
    found = []
    for without in (False, True):
        with monkeypatch.context() as patch:
            if without:
                patch.setattr(jpeg, "_simplejpeg", lambda: None)
            try:
                found.append(load_image(content))
            except MediaError as error:
                found.append(str(error))
    return found


def test_it_is_installed_here_and_used(monkeypatch):
    used, content = [], encoded(COFFEE)
    assert jpeg._simplejpeg() is not None
    monkeypatch.setattr(Image.Image, "load", lambda image: used.append(image))
    assert load_image(content).shape == (400, 600, 3)
    assert not used  # Pillow has decoded nothing


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_the_bits_are_pillows(options, monkeypatch):
    rng = random.Random(str(options))
    for size in ((600, 400), (1, 1), (rng.randrange(1, 80), rng.randrange(1, 80)), (17, 33)):
        one, other = by_both(monkeypatch, encoded(COFFEE.resize(size), **options))
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright(orientation, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = orientation
    one, other = by_both(monkeypatch, encoded(COFFEE.resize((60, 40)), exif=exif))
    np.testing.assert_array_equal(one, other)
    assert one.flags.writeable


@pytest.mark.parametrize("mode", ["L", "CMYK", "1", "YCbCr"])
def test_what_is_not_plain_is_pillows(mode, monkeypatch):
    one, other = by_both(monkeypatch, encoded(COFFEE.resize((60, 40)).convert(mode)))
    np.testing.assert_array_equal(one, other)


def test_rgb_that_is_stored_as_such(monkeypatch):
    one, other = by_both(monkeypatch, encoded(COFFEE.resize((60, 40)), keep_rgb=True))
    np.testing.assert_array_equal(one, other)


def test_damaged_files_come_out_as_by_pillow(monkeypatch):
    rng = random.Random(0)
    outcomes = set()
    for options in ({"quality": 80}, {"quality": 80, "progressive": True}):
        whole = encoded(COFFEE.resize((120, 80)), **options)
        for _ in range(cases(60)):
            content, at = bytearray(whole), rng.randrange(len(whole))
            if rng.random() < 0.5:
                content = content[:at]
            else:
                content[at] = rng.randrange(256)
            one, other = by_both(monkeypatch, bytes(content))
            outcomes.add(isinstance(other, str))
            assert type(one) is type(other)
            assert one == other if isinstance(one, str) else np.array_equal(one, other)
    assert outcomes == {True, False}
