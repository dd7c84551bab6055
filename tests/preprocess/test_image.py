from __future__ import annotations

import io
import math
import struct
import sys
import zlib

import numpy as np
import pillow_heif
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from transformers import (
    Glm4vImageProcessor,
    Glm4vVideoProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.glm4v.image_processing_glm4v import smart_resize as glm_resize
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as upstream_resize

from mmrope import MediaError, Processor, patch_position_ids
from mmrope.preprocess import CHATML, Limits, PatchConfig
from mmrope.preprocess.image import load_image
from mmrope.preprocess.patches import (
    FAMILY_PATCHES,
    cut_patches,
    frame_size,
    image_size,
    normalize,
    resize,
    smart_resize,
    video_patches,
)
from tests.support import cases
from tests.support.crafted import TURNS

RED, BLUE = (200, 30, 30), (30, 30, 200)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


pixels = load_image


# --- what is seen -----------------------------------------------------------------------------------------------------


def test_every_entry_gives_the_same_pixels(tmp_path):
    image = Image.fromarray(data.coffee()[:64, :96])
    path = tmp_path / "photo.png"
    image.save(path)
    with open(path, "rb") as file:
        array = np.array(image)
        tensor = torch.from_numpy(array).permute(2, 0, 1)
        for source in (path, str(path), path.read_bytes(), memoryview(path.read_bytes()), file, image, array, tensor):
            np.testing.assert_array_equal(pixels(source), array)
        assert pixels(array) is array


@pytest.mark.parametrize("compression", ["tiff_ccitt", "group3", "group4"])
def test_fax_is_refused_where_libtiff_shows_memory(compression, monkeypatch):
    content = encoded(Image.new("1", (8, 8), 1), "TIFF", compression=compression)
    monkeypatch.setattr("mmrope.preprocess.image.FAX_IS_SOUND", False)
    with pytest.raises(MediaError, match=r"is a TIFF with fax compression, which libtiff .* use Pillow 13 or newer"):
        load_image(content)
    monkeypatch.setattr("mmrope.preprocess.image.FAX_IS_SOUND", True)
    assert load_image(content).min() == 255


def test_large_images_are_copied_whole():
    """Band by band, the last of them narrower."""
    image = Image.effect_noise((2003, 1777), 90).convert("RGB")
    np.testing.assert_array_equal(pixels(image), np.asarray(image))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(orientation):
    """The same scene, stored in each of the eight EXIF orientations."""
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:20, :30] = RED
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](upright)))
    np.testing.assert_array_equal(pixels(encoded(stored, exif=exif)), upright)
    reopened = Image.open(io.BytesIO(encoded(stored, exif=exif)))  # a PIL image given directly is no exception
    np.testing.assert_array_equal(pixels(reopened), upright)


def test_an_orientation_counts_whatever_else_is_in_the_exif():
    """A text that is stored as a fraction: rewriting all of it, as Pillow's own exif_transpose does, fails."""
    entries = struct.pack(">HHII", 0x10E, 5, 1, 38) + struct.pack(">HHIHH", 0x112, 3, 1, 6, 0)
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + entries + bytes(4) + struct.pack(">II", 1, 2)
    assert pixels(encoded(Image.new("RGB", (40, 20)), "JPEG", exif=exif)).shape == (40, 20, 3)


def test_transparency_shows_the_stated_background():
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[..., :3], rgba[:4, :, 3] = RED, 255
    for source in (Image.fromarray(rgba), rgba, encoded(Image.fromarray(rgba))):
        assert pixels(source)[0, 0].tolist() == list(RED)
        assert pixels(source)[7, 0].tolist() == [255, 255, 255]
        assert pixels(source, background=BLUE)[7, 0].tolist() == list(BLUE)
    grey = Image.merge("LA", (Image.new("L", (8, 8), 100), Image.new("L", (8, 8), 0)))
    assert pixels(grey, background=BLUE)[0, 0].tolist() == list(BLUE)
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, *RED])
    assert pixels(encoded(palette, transparency=1), background=BLUE)[0, 0].tolist() == list(BLUE)
    assert pixels(encoded(palette))[0, 0].tolist() == list(RED)


def test_other_modes_are_scaled_not_clipped():
    deep = np.full((8, 8), 32768, np.uint16)
    for source in (encoded(Image.fromarray(deep)), encoded(Image.fromarray(deep), "TIFF"), deep, deep.astype(">u2")):
        assert pixels(source)[0, 0].tolist() == [128, 128, 128]
    assert pixels(np.repeat(deep[..., None], 3, axis=2))[0, 0].tolist() == [128, 128, 128]
    light = np.full((8, 8), 0.2, np.float32)
    for source in (encoded(Image.fromarray(light), "TIFF"), light, light.astype(np.float64), torch.from_numpy(light)):
        assert pixels(source)[0, 0].tolist() == [51, 51, 51]
    assert pixels(torch.full((3, 8, 8), 0.5, dtype=torch.bfloat16))[0, 0].tolist() == [128, 128, 128]
    assert pixels(np.ones((8, 8), bool))[0, 0].tolist() == [255] * 3
    assert pixels(np.full((8, 8, 1), 9, np.uint8))[0, 0].tolist() == [9] * 3
    assert pixels(Image.new("L", (8, 8), 77))[0, 0].tolist() == [77] * 3
    assert pixels(Image.new("1", (8, 8), 1))[0, 0].tolist() == [255] * 3
    assert pixels(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"))[0, 0].tolist() == [255] * 3


# --- what is refused --------------------------------------------------------------------------------------------------


def animated(format="GIF"):
    return encoded(Image.new("RGB", (8, 8), RED), format, save_all=True, append_images=[Image.new("RGB", (8, 8), BLUE)])


def bomb_header():
    """A PNG whose header says 65535 x 65535, in 67 bytes."""
    png = bytearray(encoded(Image.new("L", (1, 1))))
    png[16:24] = struct.pack(">II", 65535, 65535)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    return bytes(png)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "missing.jpg", r"missing.jpg: no such file"),
        (lambda d: d, r"is a folder, not a file"),
(lambda d: "https://localhost/cat.jpg", r"https://localhost/cat.jpg is a URL, and URLs are off"),
        (lambda d: b"", r"0 bytes is not an image that can be opened \(known formats: JPEG, PNG"),
        (lambda d: b"<html></html>", r"13 bytes is not an image"),
        (lambda d: encoded(Image.fromarray(data.coffee()))[:20000], r"20000 bytes is damaged and cannot be decoded as PNG"),
        (lambda d: encoded(Image.fromarray(data.coffee()), "JPEG")[:9000], r"is damaged and cannot be decoded as JPEG"),
        (lambda d: encoded(Image.new("RGB", (8, 8)), "PCX"), r"is not an image that can be opened"),
        (lambda d: animated(), r"has 2 frames: give it as a video, or take its first with animation='first'"),
        (lambda d: encoded(Image.fromarray(np.full((8, 8), 7, np.float32)), "TIFF"), r"float pixels go from 0 \(black\) to 1 \(white\), but these from 7 to 7"),
        (lambda d: np.full((8, 8, 3), np.nan), r"but these from nan to nan"),
        (lambda d: np.full((8, 8, 3), -0.5), r"but these from -0.5 to -0.5"),
        (lambda d: Image.new("I", (8, 8)), r"has 32-bit pixels, whose range is not stated"),
        (lambda d: np.full((8, 8, 3), 256, np.int64), r"int64 pixels go from 0 \(black\) to 255 \(white\), but these from 256 to 256"),
        (lambda d: np.zeros((5, 8, 8), np.uint8), r"or has these channels first, got \[5, 8, 8\]"),
        (lambda d: np.full((8, 8, 3), 255.5), r"float64 pixels go from 0 \(black\) to 1 or 255 \(white\), but these from 255.5"),
        (lambda d: np.zeros((0, 8, 3), np.uint8), r"an image array is .* got \[0, 8, 3\]"),
        (lambda d: torch.zeros(8, 8, 5), r"an image array is .* got \[8, 8, 5\]"),
        (lambda d: open(d / "text.txt", "w+"), r"text.txt is open as text; open it with mode 'rb'"),  # noqa: SIM115
        (lambda d: 7, r"cannot open a int"),
        (lambda d: bomb_header(), r"67 bytes is too large: .*4294836225 pixels.* \(PIL.Image.MAX_IMAGE_PIXELS\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(make, message, tmp_path):
    source = make(tmp_path)
    try:
        with pytest.raises(MediaError, match=message):
            load_image(source)
    finally:
        if hasattr(source, "close"):
            source.close()


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF"])
def test_what_moves_is_refused_or_its_first_frame_is_taken(format):
    for source in (animated(format), Image.open(io.BytesIO(animated(format)))):
        what = "2 pages: take its first" if format == "TIFF" else "2 frames: give it as a video, or take its first"
        with pytest.raises(MediaError, match=f"has {what} with animation='first'"):
            load_image(source)
        assert np.abs(load_image(source, animation="first")[0, 0].astype(int) - RED).max() < 12
    with pytest.raises(ValueError, match=r"animation must be 'refuse' or 'first', got 'last'"):
        load_image(animated(), animation="last")


def test_a_phones_heic(tmp_path, monkeypatch):
    """With pillow-heif it is a photograph as any other, burst and thumbnails left aside; without, the way to it is told."""
    photo = data.coffee()[:64, :96]
    file = pillow_heif.from_pillow(Image.fromarray(photo))
    file.add_from_pillow(Image.fromarray(photo[::-1]))
    file.save(tmp_path / "photo.heic", quality=-1, chroma=444)
    for source in (tmp_path / "photo.heic", (tmp_path / "photo.heic").read_bytes()):
        assert np.abs(pixels(source).astype(int) - photo).max() <= 4
    with open(tmp_path / "photo.heic", "rb") as opened:
        assert pixels(opened).shape == (64, 96, 3)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(MediaError, match=r"photo.heic is HEIC, which takes pillow-heif: pip install 'mmrope\[heic\]'"):
        pixels(tmp_path / "photo.heic")


def test_limits_are_checked_before_pixels_are_decoded_and_can_be_raised():
    large = encoded(Image.new("L", (9000, 8000)))
    with pytest.raises(
        MediaError,
        match=r"9000 x 8000 = 72 million pixels, the limit is 64 million; raise it with Limits\(max_image_pixels",
    ):
        load_image(large)
    small = Limits(max_image_pixels=100)
    with pytest.raises(MediaError, match=r"the limit is 0.0001 million"):
        load_image(np.zeros((20, 20, 3), np.uint8), limits=small)
    assert load_image(np.zeros((10, 10, 3), np.uint8), limits=small).shape == (10, 10, 3)


def test_arrays_in_either_layout_and_range():
    """The documented layout wins where both fit; floats go to 1, or to 255 if one of them does."""
    photo = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    for other in (np.moveaxis(photo, 2, 0), torch.from_numpy(photo), torch.from_numpy(photo).permute(2, 0, 1)):
        np.testing.assert_array_equal(load_image(other), photo)
    for array in (photo.astype(np.float32), photo.astype(np.float64), photo.astype(np.int64), torch.from_numpy(photo).half()):
        np.testing.assert_array_equal(load_image(array), photo)
    square = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    np.testing.assert_array_equal(load_image(square), square)
    np.testing.assert_array_equal(load_image(torch.from_numpy(square)), np.moveaxis(square, 0, 2))
    dark = np.ones((8, 8, 3), np.float32)
    assert load_image(dark)[0, 0].tolist() == [255, 255, 255]
    assert load_image(dark, white=255)[0, 0].tolist() == [1, 1, 1]
    with pytest.raises(MediaError, match=r"float pixels go from 0 \(black\) to 1 \(white\), but these from 2 to 2"):
        load_image(2 * dark, white=1)


# --- sizes ------------------------------------------------------------------------------------------------------------

QWEN = {"factor": 28, "min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280}


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_sizes_are_those_of_transformers(height, width):
    try:
        expected = upstream_resize(height, width)
    except ValueError:
        with pytest.raises(MediaError, match=r"more elongated than 200:1"):
            smart_resize(height, width, **QWEN)
    else:
        assert smart_resize(height, width, **QWEN) == expected


VIDEO_PROCESSORS = {
    "qwen2_vl": lambda: Qwen2VLVideoProcessor(cap_pixels_per_frame=True),
    "qwen3_vl": lambda: Qwen3VLVideoProcessor(
        size={"shortest_edge": 4096, "longest_edge": 25165824}, cap_pixels_per_frame=True
    ),
    "glm4v": lambda: Glm4vVideoProcessor(),
}


@pytest.mark.parametrize("name", VIDEO_PROCESSORS)
@given(frames=st.integers(2, 768), height=st.integers(16, 3000), width=st.integers(16, 3000))
def test_frame_sizes_are_those_of_transformers(name, frames, height, width):
    """The more frames, the smaller each: with the budget of qwen-vl-utils that released checkpoints were used with."""
    processor, config = VIDEO_PROCESSORS[name](), FAMILY_PATCHES[name]
    video = torch.empty(1, frames, 3, height, width, dtype=torch.uint8, device="meta")
    options = {"factor": config.factor, "temporal_factor": 2, "cap_pixels_per_frame": True, "resample": None}
    try:
        resized = processor.resize(video, processor.size, **options)
    except ValueError:
        with pytest.raises(MediaError, match=r"more elongated than 200:1"):
            frame_size(height, width, frames, config)
    else:
        assert frame_size(height, width, frames, config, Limits(max_side=10**6)) == tuple(resized.shape[-2:])
        assert name == "glm4v" or frames // 2 * math.prod(resized.shape[-2:]) // config.factor**2 <= 128_000


@given(st.integers(1, 6000), st.integers(1, 6000))
def test_sizes_are_those_of_glm(height, width):
    """Whose bounds are of the two copies that fill a temporal patch."""
    bounds = {"min_pixels": 112 * 112, "max_pixels": 28 * 28 * 15000}
    try:
        expected = glm_resize(2, height, width, **bounds)
    except ValueError:
        with pytest.raises(MediaError, match=r"more elongated than 200:1"):
            image_size(height, width, FAMILY_PATCHES["glm4v"])
    else:
        assert image_size(height, width, FAMILY_PATCHES["glm4v"]) == expected


@given(st.integers(20, 3000), st.integers(20, 3000))
def test_sizes_keep_to_the_bounds_and_near_the_shape(height, width):
    h, w = smart_resize(height, width, **QWEN)
    assert h % 28 == w % 28 == 0
    assert 56 * 56 <= h * w <= 28 * 28 * 1280 or min(h, w) == 28
    if min(h, w) >= 112:
        assert 0.7 < (h / w) / (height / width) < 1.4


def test_long_sides_are_refused():
    with pytest.raises(MediaError, match=r"resize to 56 x 9996, a side over 9000; raise Limits\(max_side"):
        smart_resize(10_000, 60, factor=28, min_pixels=1, max_pixels=10**9, limits=Limits(max_side=9000))
    assert smart_resize(10_000, 60, factor=28, min_pixels=1, max_pixels=10**9)[0] == 9996


def test_no_side_is_refused_that_transformers_takes():
    """A long page of 690 x 15420 as Qwen3-VL's processor takes it."""
    assert image_size(15420, 690, FAMILY_PATCHES["qwen3_vl"]) == (15424, 704)


# --- patches ----------------------------------------------------------------------------------------------------------


HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
IMAGE_PROCESSORS = {
    "qwen2_vl": lambda: Qwen2VLImageProcessor(),
    "qwen2_5_vl": lambda: Qwen2VLImageProcessor(),
    "qwen3_vl": lambda: Qwen2VLImageProcessor(patch_size=16, size={"shortest_edge": 65536, "longest_edge": 16777216}, **HALF),
    "glm4v": lambda: Glm4vImageProcessor(),
}


@pytest.mark.parametrize("name", IMAGE_PROCESSORS)
@pytest.mark.parametrize("photograph", ["chelsea", "coffee", "astronaut", "rocket"])
def test_pixels_are_those_of_transformers(name, photograph):
    image = Image.fromarray(getattr(data, photograph)())
    upstream = IMAGE_PROCESSORS[name]()(image, return_tensors="pt")
    content = [{"role": "user", "content": [{"type": "image", "image": image}]}]
    inputs = Processor(family=name, chat_template=CHATML)(content)
    assert torch.equal(inputs["image_grid_thw"], upstream["image_grid_thw"])
    torch.testing.assert_close(inputs["pixel_values"], upstream["pixel_values"], rtol=0, atol=1e-6)
    raw = Processor(family=name, pixels="uint8", chat_template=CHATML)
    packed = raw(content)["pixel_values"]
    assert packed.dtype == torch.uint8
    assert packed.nbytes * 8 == inputs["pixel_values"].nbytes
    assert torch.equal(raw.normalize({"pixel_values": packed})["pixel_values"], inputs["pixel_values"])


@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from(("qwen2_vl", "qwen3_vl", "glm4v")))
@settings(max_examples=cases(40))
def test_pixels_are_those_of_transformers_at_every_size(height, width, name):
    image = np.tile(data.rocket(), (2, 2, 1))[:height, :width]
    content = [{"role": "user", "content": [{"type": "image", "image": image}]}]
    try:
        upstream = IMAGE_PROCESSORS[name]()(Image.fromarray(image), return_tensors="pt")
    except ValueError:
        with pytest.raises(MediaError, match=r"more elongated than 200:1"):
            Processor(family=name, chat_template=CHATML)(content)
    else:
        inputs = Processor(family=name, chat_template=CHATML)(content)
        assert torch.equal(inputs["image_grid_thw"], upstream["image_grid_thw"])
        torch.testing.assert_close(inputs["pixel_values"], upstream["pixel_values"], rtol=0, atol=1e-6)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_patches_hold_the_pixels_where_their_positions_say(frames, h, w):
    """Each patch names its own pixels: patch p of the packed order covers the place that patch_position_ids gives it."""
    config = PatchConfig(patch_size=2, mean=(0, 0, 0), std=(1, 1, 1))
    height, width = 4 * h, 4 * w
    code = (np.arange(frames * height * width).reshape(frames, height, width) % 251).astype(np.uint8)
    film = list(np.repeat(code[..., None], 3, axis=3))
    patches = video_patches(iter(film), frames, (height, width), config)
    grids = -(-frames // 2)
    ids = patch_position_ids([[grids, 2 * h, 2 * w]], axes="thw", order="blocks", merge=2)
    for p, (t, row, column) in enumerate(ids.T.tolist()):
        held = patches[p].reshape(3, 2, 2, 2)  # [channels, frames, height, width]
        for f in range(2):
            frame = min(2 * t + f, frames - 1)  # the last frame fills the last temporal patch
            expected = code[frame, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_array_equal(held[1, f].numpy(), expected)


def test_an_image_fills_its_temporal_patch_when_it_is_normalised():
    config = PatchConfig(patch_size=2, merge_size=1)
    frame = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    one, film = (torch.from_numpy(cut_patches(frames, config)) for frames in ([frame], [frame, frame]))
    assert one.shape == (2, 12)
    assert torch.equal(normalize(one, config), normalize(film, config))
    with pytest.raises(
        ValueError, match=r"patches must be uint8 \[P, 24\] \(or \[P, 12\] of images\), got torch.float32 \[2, 24\]"
    ):
        normalize(normalize(one, config), config)


def test_resizing():
    frame = np.full((30, 50, 3), 200, np.uint8)
    result = resize(frame, (28, 56))
    assert result.shape == (28, 56, 3)
    assert (result == 200).all()
    assert resize(result, (28, 56)) is result
    turned = np.rot90(np.arange(30 * 50 * 3, dtype=np.uint8).reshape(30, 50, 3))
    np.testing.assert_array_equal(resize(turned, (28, 28)), resize(turned.copy(), (28, 28)))
