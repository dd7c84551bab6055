from __future__ import annotations

import io
import math
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as upstream_resize

from mmrope import Limits, MediaError, PatchConfig, Processor
from mmrope.preprocess.image import load_image
from mmrope.preprocess.patches import PRESETS, frame_size, patchify, resize, smart_resize

RED, BLUE = (200, 30, 30), (30, 30, 200)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(source, **options):
    return np.asarray(load_image(source, **options))


# --- what is seen -----------------------------------------------------------------------------------------------------


def test_every_entry_gives_the_same_pixels(tmp_path):
    image = Image.fromarray(data.coffee()[:64, :96])
    path = tmp_path / "photo.png"
    image.save(path)
    with open(path, "rb") as file:
        for source in (path, str(path), path.read_bytes(), file, image, np.asarray(image)):
            np.testing.assert_array_equal(pixels(source), np.asarray(image))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(orientation):
    """The same scene, stored in each of the eight EXIF orientations."""
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:20, :30] = RED
    turn = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
        8: lambda x: np.rot90(x, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turn(upright)))
    np.testing.assert_array_equal(pixels(encoded(stored, exif=exif)), upright)
    reopened = Image.open(io.BytesIO(encoded(stored, exif=exif)))  # a PIL image given directly is no exception
    np.testing.assert_array_equal(pixels(reopened), upright)


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
    deep = Image.fromarray(np.full((8, 8), 32768, np.uint16))
    assert pixels(encoded(deep))[0, 0].tolist() == [128, 128, 128]
    assert pixels(Image.new("L", (8, 8), 77))[0, 0].tolist() == [77] * 3
    assert pixels(Image.new("1", (8, 8), 1))[0, 0].tolist() == [255] * 3
    assert pixels(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"))[0, 0].tolist() == [255] * 3


# --- what is refused --------------------------------------------------------------------------------------------------


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
        (lambda d: "https://localhost/cat.jpg", r"is a URL: mmrope opens files only"),
        (lambda d: b"", r"0 bytes is not an image that can be opened \(known formats: JPEG, PNG"),
        (lambda d: b"<html></html>", r"13 bytes is not an image"),
        (lambda d: encoded(Image.fromarray(data.coffee()))[:20000], r"20000 bytes is damaged and cannot be decoded as PNG"),
        (lambda d: encoded(Image.fromarray(data.coffee()), "JPEG")[:9000], r"is damaged and cannot be decoded as JPEG"),
        (lambda d: encoded(Image.new("RGB", (8, 8)), "PPM"), r"is not an image that can be opened"),
        (lambda d: encoded(Image.new("L", (8, 8)), "GIF", save_all=True, append_images=[Image.new("L", (8, 8), 9)]), r"is animated \(2 frames\)"),
        (lambda d: encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), r"has F pixels, whose range is not stated"),
        (lambda d: Image.new("I", (8, 8)), r"has I pixels"),
        (lambda d: np.zeros((8, 8, 3)), r"must be uint8 \[H, W\], .* got float64 \[8, 8, 3\]; scale it to 0..255 first"),
        (lambda d: np.zeros((3, 8, 8), np.uint8), r"must be uint8 .* got uint8 \[3, 8, 8\]"),
        (lambda d: 7, r"cannot open a int"),
        (lambda d: bomb_header(), r"67 bytes is too large: .*4294836225 pixels.* \(PIL.Image.MAX_IMAGE_PIXELS\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(make, message, tmp_path):
    with pytest.raises(MediaError, match=message):
        load_image(make(tmp_path))


def test_limits_are_checked_before_pixels_are_decoded_and_can_be_raised():
    large = encoded(Image.new("L", (9000, 8000)))
    with pytest.raises(
        MediaError,
        match=r"9000 x 8000 = 72.0 million pixels, the limit is 64 million; raise it with Limits\(max_image_pixels",
    ):
        load_image(large)
    small = Limits(max_image_pixels=100)
    with pytest.raises(MediaError, match=r"the limit is 0.0001 million"):
        load_image(np.zeros((20, 20, 3), np.uint8), limits=small)
    assert load_image(np.zeros((10, 10, 3), np.uint8), limits=small).size == (10, 10)


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
    "qwen2_vl": Qwen2VLVideoProcessor(cap_pixels_per_frame=True),
    "qwen3_vl": Qwen3VLVideoProcessor(size={"shortest_edge": 4096, "longest_edge": 25165824}, cap_pixels_per_frame=True),
}


@pytest.mark.parametrize("name", VIDEO_PROCESSORS)
@given(frames=st.integers(2, 768), height=st.integers(16, 3000), width=st.integers(16, 3000))
def test_frame_sizes_are_those_of_transformers(name, frames, height, width):
    """The more frames, the smaller each: with the budget of qwen-vl-utils that released checkpoints were used with."""
    processor, config = VIDEO_PROCESSORS[name], PRESETS[name]
    video = torch.empty(1, frames, 3, height, width, dtype=torch.uint8, device="meta")
    options = {"factor": config.factor, "temporal_factor": 2, "cap_pixels_per_frame": True}
    try:
        resized = processor.resize(video, processor.size, None, **options)
    except ValueError:
        with pytest.raises(MediaError, match=r"more elongated than 200:1"):
            frame_size(height, width, frames, config)
    else:
        assert frame_size(height, width, frames, config, Limits(max_side=10**6)) == tuple(resized.shape[-2:])
        assert frames // 2 * math.prod(resized.shape[-2:]) // config.factor**2 <= 128_000


@given(st.integers(20, 3000), st.integers(20, 3000))
def test_sizes_keep_to_the_bounds_and_near_the_shape(height, width):
    h, w = smart_resize(height, width, **QWEN)
    assert h % 28 == w % 28 == 0
    assert 56 * 56 <= h * w <= 28 * 28 * 1280 or min(h, w) == 28
    if min(h, w) >= 112:
        assert 0.7 < (h / w) / (height / width) < 1.4


def test_long_sides_are_refused():
    with pytest.raises(MediaError, match=r"resize to 56 x 9996, a side over 8192; raise Limits\(max_side"):
        smart_resize(10_000, 60, factor=28, min_pixels=1, max_pixels=10**9)
    assert smart_resize(10_000, 60, factor=28, min_pixels=1, max_pixels=10**9, limits=Limits(max_side=10_000))[0] == 9996


# --- patches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chelsea", "coffee", "astronaut", "rocket"])
def test_pixels_are_those_of_transformers(name):
    image = Image.fromarray(getattr(data, name)())
    upstream = Qwen2VLImageProcessor()(image, return_tensors="pt")
    inputs = Processor(family="qwen2_vl")([{"role": "user", "content": [{"type": "image", "image": image}]}])
    assert torch.equal(inputs["image_grid_thw"], upstream["image_grid_thw"])
    torch.testing.assert_close(inputs["pixel_values"], upstream["pixel_values"], rtol=0, atol=1e-6)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_patches_hold_the_pixels_where_their_positions_say(frames, h, w):
    """Each patch names its own pixels: patch p of the packed order covers the place that patch_position_ids gives it."""
    from mmrope import patch_position_ids

    config = PatchConfig(patch_size=2, mean=(0, 0, 0), std=(1, 1, 1))
    height, width = 4 * h, 4 * w
    code = np.arange(frames * height * width).reshape(frames, 1, height, width) % 251
    patches = patchify([torch.from_numpy(np.repeat(code, 3, axis=1).astype(np.uint8))], config)
    grids = -(-frames // 2)
    ids = patch_position_ids([[grids, 2 * h, 2 * w]], axes="thw", order="blocks", merge=2)
    for p, (t, row, column) in enumerate(ids.T.tolist()):
        held = (patches[p].reshape(3, 2, 2, 2) * 255).round()  # [channels, frames, height, width]
        for f in range(2):
            frame = min(2 * t + f, frames - 1)  # the last frame fills the last temporal patch
            expected = code[frame, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_array_equal(held[1, f].numpy(), expected)


def test_resizing_keeps_frames_and_order():
    frames = np.stack([np.full((30, 50, 3), value, np.uint8) for value in (10, 200)])
    result = resize(frames, (28, 56))
    assert result.shape == (2, 3, 28, 56)
    assert result.dtype == torch.uint8
    assert [int(x) for x in result.float().mean(dim=(1, 2, 3))] == [10, 200]
