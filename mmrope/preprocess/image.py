"""Images: any file to upright RGB pixels, or one clear error."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import (  # noqa: F401  (registered)
    AvifImagePlugin,
    IcoImagePlugin,
    Image,
    ImageCms,
    Jpeg2KImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TgaImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
    features,
)

from mmrope.preprocess.access import Access, resolve
from mmrope.preprocess.errors import Limits, MediaError
from mmrope.preprocess.jpeg import jpeg_pixels

if TYPE_CHECKING:
    import torch

Animation = Literal["refuse", "first"]
Color = Literal["stored", "srgb"]

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "ICO", "PPM")
"""The formats that are opened; everything else is refused before a decoder runs."""
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
"""Those that can be films."""
_SEVERAL_VIEWS = ("MPO", "HEIF")
"""Formats of phones whose further images are views of the same photograph."""
_LIBTIFF = features.version("libtiff") or ""
FAX_IS_SOUND = [int(part) for part in re.findall(r"\d+", _LIBTIFF)] >= [4, 7, 2]
"""Whether a damaged TIFF of fax compression is decoded from its own bytes alone: an older libtiff, in the wheels of Pillow
before 13, fills what it misses with whatever the memory held before (found on mutated files)."""
_HEIC = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_TGA_FOOTER = b"TRUEVISION-XFILE.\0"

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an EXIF orientation upright."""


@contextmanager
def decoding(name: str, what: str = "") -> Iterator[None]:
    """Whatever Pillow raises on a file is the file's fault, whichever of its decoders raises what: a MediaError."""
    try:
        yield
    except MediaError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise MediaError(f"{name} is damaged and cannot be decoded{what and ' as ' + what}: {reason}") from error


def load_image(
    source: Any,
    *,
    background: tuple[int, int, int] = (255, 255, 255),
    animation: Animation = "refuse",
    color: Color = "stored",
    limits: Limits | None = None,
    access: Access | None = None,
) -> np.ndarray:
    """An image as the eye sees it: upright by its EXIF orientation, RGB, transparency laid on `background`.

    Args:
        source: path, bytes, binary file object, PIL image, numpy array (channels last: [H, W], [H, W, 1], [H, W, 3] or
            [H, W, 4]) or torch tensor (channels first: [H, W], [1, H, W], [3, H, W] or [4, H, W]). Arrays are uint8,
            uint16 (65535 is white), bool, or float from 0 (black) to 1 (white).
        background: what shows through transparent pixels, RGB.
        animation: what becomes of a file with several frames or pages: "refuse" it, or take its "first". An animation is
            opened as a film by `mmrope.preprocess.video.open_video`, with the durations of its frames.
        color: the values that are "stored", as models' own processors take them, or "srgb": converted from the ICC profile of
            the file, if it has one, by relative colorimetry with black point compensation.
        limits: the largest image to open.
        access: which paths and URLs may be opened.

    Returns:
        [H, W, 3] uint8, which is writable and may be the array that was given.

    Raises:
        MediaError: missing, damaged, of an unknown format or without a stated range of values, or over a limit.

    Example:
        >>> from PIL import Image
        >>> from mmrope.preprocess import load_image
        >>> pixels = load_image(Image.new("RGBA", (4, 2), (255, 0, 0, 0)))  # transparent: the background shows
        >>> pixels.shape, pixels[0, 0].tolist()
        ((2, 4, 3), [255, 255, 255])
    """
    if animation not in ("refuse", "first"):
        raise ValueError(f"animation must be 'refuse' or 'first', got {animation!r}")
    if color not in ("stored", "srgb"):
        raise ValueError(f"color must be 'stored' or 'srgb', got {color!r}")
    limits, name = limits or Limits(), source_name(source)
    if is_tensor(source):
        source = _channels_last(source)
    if isinstance(source, np.ndarray):
        _check_size(name, source.shape[1::-1], limits)
        return _of_array(source, background)
    if isinstance(source, Image.Image):
        _check_size(name, source.size, limits)
        return _of_image(source, background, animation, color, name)
    with open_image(source, name, limits, access) as image:
        pixels = jpeg_pixels(image, _orientation(image)) if color == "stored" else None
        return _of_image(image, background, animation, color, name) if pixels is None else pixels


def _of_image(
    image: Image.Image, background: tuple[int, int, int], animation: Animation, color: Color, name: str
) -> np.ndarray:
    if animation == "refuse" and image.format not in _SEVERAL_VIEWS:
        with decoding(name, image.format or ""):
            several = getattr(image, "n_frames", 1) if getattr(image, "is_animated", False) else 1
        if several > 1:
            what = "frames: give it as a video, or" if image.format in ANIMATED else "pages:"
            raise MediaError(f"{name} has {several} {what} take its first with animation='first'")
    return upright_rgb(image, background, color, name)


def open_image(
    source: Any, name: str, limits: Limits, access: Access | None, formats: tuple[str, ...] = FORMATS
) -> Image.Image:
    """The image of a file, of which only the header has been read; sizes over the limits are refused."""
    source = resolve(source, access)
    if formats is FORMATS and head_of(source)[4:12] in _HEIC:
        formats = (*formats, _heif_plugin(name))
    if formats is FORMATS and _has_tga_footer(source):
        formats = (*formats, "TGA")
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(f"{name} is too large: {error} (PIL.Image.MAX_IMAGE_PIXELS)") from error
    except Exception as error:  # see decoding
        reason = "" if isinstance(error, UnidentifiedImageError) else f": {error}"  # which says the object's address
        raise MediaError(f"{name} is not an image that can be opened (known formats: {', '.join(formats)}){reason}") from error
    # what is read from a path would be mapped into memory, by other rules: a damaged file then looks otherwise than its bytes
    # do, and one that is cut while it is read ends the process
    image.filename = ""
    try:
        _check_size(name, image.size, limits)
        if not FAX_IS_SOUND and image.info.get("compression") in ("tiff_ccitt", "group3", "group4"):
            raise MediaError(
                f"{name} is a TIFF with fax compression, which libtiff {_LIBTIFF} does not decode safely; "
                "use Pillow 13 or newer, or convert it to PNG"
            )
    except MediaError:
        image.__exit__()  # closes what was opened here, and not a file that was given
        raise
    return image


def head_of(source: Any) -> bytes:
    """The first 16 bytes of a resolved source, which stands where it stood."""
    if isinstance(source, bytes):
        return source[:16]
    if isinstance(source, str):
        try:
            with open(source, "rb") as file:
                return file.read(16)
        except OSError as error:
            raise MediaError(f"{source} cannot be read: {error.strerror}") from error
    if not (hasattr(source, "seekable") and source.seekable()):
        return b""
    place = source.tell()
    source.seek(0)
    head = source.read(16)
    source.seek(place)
    return head


def _has_tga_footer(source: Any) -> bool:
    """Whether a file ends as TGA of version 2 does: of the others nothing tells what they are."""
    if isinstance(source, bytes):
        return source.endswith(_TGA_FOOTER)
    with open(source, "rb") if isinstance(source, str) else nullcontext(source) as file:
        if not (hasattr(file, "seekable") and file.seekable()):
            return False
        place, size = file.tell(), file.seek(0, os.SEEK_END)
        file.seek(max(size - len(_TGA_FOOTER), 0))
        tail = file.read()
        file.seek(place)
        return tail == _TGA_FOOTER


def _heif_plugin(name: str) -> str:
    try:
        import pillow_heif
    except ImportError as error:
        raise MediaError(
            f"{name} is HEIC, which takes pillow-heif: pip install 'mmrope[heic]', or convert it to JPEG"
        ) from error
    pillow_heif.register_heif_opener()  # a plugin of Pillow, as those that are imported above
    return "HEIF"


def upright_rgb(image: Image.Image, background: tuple[int, int, int], color: Color, name: str) -> np.ndarray:
    """The pixels of an opened image, or of the frame that it stands at: [H, W, 3] uint8."""
    with decoding(name, image.format or ""):
        image.load()
        turn = _TURNS.get(_orientation(image))
        image = image if turn is None else image.transpose(turn)
        if color == "srgb":
            image = _in_srgb(image, name)
        return _pixels(_rgb(image, background, name))


def _orientation(image: Image.Image) -> int:
    """By the EXIF of a file; 1, upright, where it has none, or one that cannot be read: nobody needs it to see the pixels."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1


def _in_srgb(image: Image.Image, name: str) -> Image.Image:
    """An image with an ICC profile, converted to sRGB; its transparency stays."""
    stored = image.info.get("icc_profile")
    if not stored or image.mode in ("I", "F", "1") or image.mode.startswith("I;16"):
        return image
    if image.mode in ("P", "PA", "LA", "La", "RGBa"):
        image = image.convert("RGBA" if "A" in image.mode.upper() or "transparency" in image.info else "RGB")
    flat, alpha = (image.convert("RGB"), image.getchannel("A")) if image.mode == "RGBA" else (image, None)
    try:
        made = ImageCms.profileToProfile(
            flat,
            ImageCms.ImageCmsProfile(io.BytesIO(stored)),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError) as error:
        raise MediaError(f"{name} has an ICC profile that cannot be used: {error}; color='stored' leaves it alone") from error
    assert made is not None
    if alpha is not None:
        made.putalpha(alpha)
    return made


_LARGE, _BAND = 1 << 23, 1 << 18
"""Bytes of an image that is copied out of Pillow band by band, and of a band."""


def _pixels(image: Image.Image) -> np.ndarray:
    """The pixels of an RGB image, [H, W, 3]. Pillow packs an image into small pieces and joins them, which takes large ones
    twice as long as bands that stay in the cache."""
    width, height = image.size
    if 3 * width * height < _LARGE:
        return np.array(image)
    out = np.empty((height, width, 3), np.uint8)
    rows = max(1, _BAND // (3 * width))
    for y in range(0, height, rows):
        out[y : y + rows] = np.asarray(image.crop((0, y, width, min(y + rows, height))))
    return out


def is_tensor(source: Any) -> bool:
    """Whether a source is a torch tensor; torch is not loaded to know."""
    return hasattr(source, "dtype") and hasattr(source, "detach")


def source_name(source: Any) -> str:
    """What to call a source in messages."""
    if isinstance(source, (str, os.PathLike)):
        name = str(os.fspath(source))
        return name.partition("?")[0] if "://" in name else f"{name[:40]}..." if name.startswith("data:") else name
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes"
    if hasattr(source, "read"):
        return str(getattr(source, "name", "file object"))
    return str(getattr(source, "filename", "")) or f"{type(source).__name__} object"


# --- arrays -----------------------------------------------------------------------------------------------------------


def _channels_last(tensor: torch.Tensor) -> np.ndarray:
    """A tensor [H, W] or [C, H, W] as an array [H, W] or [H, W, C]."""
    if tensor.ndim == 3:
        if tensor.shape[0] not in (1, 3, 4):
            raise MediaError(
                f"an image tensor has its channels first, [H, W], [1, H, W], [3, H, W] or [4, H, W], got {list(tensor.shape)}; "
                "permute it, or give a numpy array, whose channels are last"
            )
        tensor = tensor.permute(1, 2, 0)  # [H, W, C]
    if tensor.dtype.is_floating_point:
        tensor = tensor.float()  # numpy has no bfloat16
    return tensor.detach().cpu().numpy()


def to_uint8(array: np.ndarray) -> np.ndarray:
    """Values of 0 to 255: uint8 as they are, uint16 and float scaled by their stated range.

    Raises:
        MediaError: floats outside 0..1, or a type whose range is not stated.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(array.dtype, np.uint16):
        return ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise MediaError(f"{array.dtype} pixels have no stated range; give uint8, uint16, bool, or float from 0 to 1")
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not 0 <= low <= high <= 1:  # NaN is refused, too
        raise MediaError(
            f"float pixels go from 0 (black) to 1 (white), but these from {low:g} to {high:g}; scale them, or give uint8"
        )
    return (array * 255).round().astype(np.uint8)


def _of_array(array: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        raise MediaError(
            f"an image array is [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], channels last, got {list(array.shape)}; "
            "transpose it, or give a torch tensor, whose channels are first"
        )
    array = to_uint8(array)
    if array.ndim == 3 and array.shape[2] == 4:
        return np.array(_rgb(Image.fromarray(array), background, "array"))
    if array.ndim == 2 or array.shape[2] == 1:
        array = np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)  # [H, W, 3]
    return np.require(array, requirements=("C", "W"))


# --- PIL images -------------------------------------------------------------------------------------------------------


def _check_size(name: str, size: tuple[int, ...], limits: Limits) -> None:
    width, height = (*size, 0, 0)[:2]
    if width * height > limits.max_image_pixels:
        raise MediaError(
            f"{name} has {width} x {height} = {width * height / 1e6:.4g} million pixels, "
            f"the limit is {limits.max_image_pixels / 1e6:g} million; raise it with Limits(max_image_pixels=...)"
        )


def _rgb(image: Image.Image, background: tuple[int, int, int], name: str) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "F":
        try:
            return Image.fromarray(to_uint8(np.asarray(image))).convert("RGB")
        except MediaError as error:
            raise MediaError(f"{name}: {error}") from None
    if image.mode == "I":
        raise MediaError(f"{name} has 32-bit pixels, whose range is not stated; give them as a float array from 0 to 1")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")
