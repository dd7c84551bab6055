"""Images: any file to upright RGB pixels, or one clear error."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, Image, ImageOps, TiffImagePlugin, WebPImagePlugin  # noqa: F401  (plugins register formats)

from mmrope.preprocess.errors import Limits, MediaError

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
"""The formats that are opened; everything else is refused before a decoder runs."""

# what Pillow's decoders raise on damaged files (tried on mutated files); anything else is a bug and passes through
_DECODER_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    SyntaxError,
    EOFError,
    struct.error,
)


def load_image(source: Any, *, background: tuple[int, int, int] = (255, 255, 255), limits: Limits | None = None) -> Image.Image:
    """An image as the eye sees it: upright by its EXIF orientation, RGB, transparency laid on `background`.

    Args:
        source: path, bytes, binary file object, PIL image, or uint8 array [H, W], [H, W, 3] or [H, W, 4].
        background: what shows through transparent pixels, RGB.
        limits: the largest image to open.

    Raises:
        MediaError: missing, damaged, animated, of an unknown format or without a stated range of values, or over a limit.
    """
    limits, name = limits or Limits(), source_name(source)
    if isinstance(source, np.ndarray):
        image = _from_array(source)
    else:
        image = source if isinstance(source, Image.Image) else _open(source, name)
    _check_size(name, image.size, limits)
    if image.format != "MPO" and getattr(image, "is_animated", False):  # a phone's MPO holds views of one photograph
        raise MediaError(
            f"{name} is animated ({getattr(image, 'n_frames', 0)} frames); "
            "give one of its frames, or convert it to a video file"
        )
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        return _rgb(image, background, name)
    except MediaError:
        raise
    except _DECODER_ERRORS as error:
        raise MediaError(f"{name} is damaged and cannot be decoded as {image.format}: {error}") from error


def _open(source: Any, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except FileNotFoundError:
        raise MediaError(f"{name}: no such file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(f"{name} is too large: {error} (PIL.Image.MAX_IMAGE_PIXELS)") from error
    except _DECODER_ERRORS as error:
        raise MediaError(f"{name} is not an image that can be opened (known formats: {', '.join(FORMATS)}): {error}") from error


def source_name(source: Any) -> str:
    """What to call a source in messages; refuses what is not a file."""
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        if "://" in str(name):
            raise MediaError(f"{name} is a URL: mmrope opens files only; download it first")
        if Path(name).is_dir():
            raise MediaError(f"{name} is a folder, not a file")
        return str(name)
    if isinstance(source, bytes):
        return f"{len(source)} bytes"
    if isinstance(source, (np.ndarray, Image.Image)):
        return str(getattr(source, "filename", "")) or f"{type(source).__name__} object"
    if hasattr(source, "read"):
        return str(getattr(source, "name", "file object"))
    raise MediaError(f"cannot open a {type(source).__name__}; give a path, bytes, a binary file or an array")


def _from_array(array: np.ndarray) -> Image.Image:
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or (array.ndim == 3 and array.shape[2] not in (3, 4))
        or not array.size
    ):
        raise MediaError(
            f"an image array must be uint8 [H, W], [H, W, 3] or [H, W, 4], got {array.dtype} {list(array.shape)}; "
            "scale it to 0..255 first"
        )
    return Image.fromarray(array)


def _check_size(name: str, size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_image_pixels:
        raise MediaError(
            f"{name} has {width} x {height} = {width * height / 1e6:.1f} million pixels, "
            f"the limit is {limits.max_image_pixels / 1e6:g} million; raise it with Limits(max_image_pixels=...)"
        )


def _rgb(image: Image.Image, background: tuple[int, int, int], name: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray(((np.asarray(image).astype(np.float64) / 65535) * 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise MediaError(
            f"{name} has {image.mode} pixels, whose range is not stated; scale it to 0..255 and give a uint8 array"
        )
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")
