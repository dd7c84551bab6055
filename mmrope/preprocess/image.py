"""Images: any file to upright RGB pixels, or one clear error."""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from PIL import (  # noqa: F401  (registered)
    AvifImagePlugin,
    IcoImagePlugin,
    Image,
    ImageCms,
    Jpeg2KImagePlugin,
    PngImagePlugin,
    TgaImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
    features,
)

from mmrope.preprocess.access import Access, resolve
from mmrope.preprocess.errors import Limits, MediaError
from mmrope.preprocess.formats import IMAGE_FORMATS
from mmrope.preprocess.jpeg import jpeg_pixels

if TYPE_CHECKING:
    import torch

Animation = Literal["refuse", "first"]
Color = Literal["stored", "srgb"]

_ON_A_CONDITION = ("HEIF", "TGA")
FORMATS = tuple(row.plugin for row in IMAGE_FORMATS if row.plugin not in _ON_A_CONDITION)
"""Pillow's names of the formats that are tried on every file; everything else is refused before a decoder runs."""
ANIMATED = tuple(row.plugin for row in IMAGE_FORMATS if row.moves)
"""Those that can be films."""
_SEVERAL_VIEWS = ("MPO", "HEIF")
"""Formats of phones whose further images are views of the same photograph."""
_LIBTIFF = features.version("libtiff") or ""
FAX_IS_SOUND = [int(part) for part in re.findall(r"\d+", _LIBTIFF)] >= [4, 7, 2]
"""Whether a damaged TIFF of fax compression is decoded from its own bytes alone: an older libtiff, in the wheels of Pillow
before 13, fills what it misses with whatever the memory held before (found on mutated files)."""
_HEIC = {
    *(b"ftypheic", b"ftypheix", b"ftypheim", b"ftypheis", b"ftyphevc", b"ftyphevx", b"ftyphevm", b"ftyphevs"),
    *(b"ftypmif1", b"ftypmsf1"),  # of a picture, and of a burst, whatever their codec
}
_TGA_FOOTER = b"TRUEVISION-XFILE.\0"
_ICON = b"\0\0\1\0"
_CODESTREAM = b"\xff\x4f\xff\x51"
_MOST_TILES = 20_000
"""Tiles times channels of a JPEG 2000 file: OpenJPEG takes 4 kB for each before it decodes any. In tiles of 128 x 128, which
are small ones, the largest image of `Limits()` has 12,000."""

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


def load_image(
    source: Any,
    *,
    background: tuple[int, int, int] = (255, 255, 255),
    animation: Animation = "refuse",
    color: Color = "stored",
    white: Literal[1, 255] | None = None,
    limits: Limits | None = None,
    access: Access | None = None,
) -> np.ndarray:
    """An image as the eye sees it: upright by its EXIF orientation, RGB, transparency laid on `background`.

    Args:
        source: path, bytes, binary file object, PIL image, numpy array (channels last: [H, W], [H, W, 1], [H, W, 3] or
            [H, W, 4]) or torch tensor (channels first: [H, W], [1, H, W], [3, H, W] or [4, H, W]). Where the shape does not fit
            that, but has 1, 3 or 4 channels at the other end, it is read so. Arrays are uint8, uint16 (65535 is white), bool,
            other integers from 0 to 255, or float from 0 (black) to 1 or 255 (white).
        background: what shows through transparent pixels, RGB.
        animation: what becomes of a file with several frames or pages: "refuse" it, or take the "first". An animation is opened
            as a video by `mmrope.preprocess.open_video`, with the durations of its frames.
        color: "stored", the values that the file holds, as the models' own processors read them, which ignore ICC profiles; or
            "srgb", converted by the ICC profile in the file, if it has one, as browsers show it.
        white: the value of white in an array of floats; None for 1 if no value is above 1, and 255 otherwise.
        limits: the largest image to open.
        access: which paths and URLs may be opened.

    Returns:
        [H, W, 3] uint8, which is writable and may be the array that was given.

    Raises:
        MediaError: missing, damaged, of an unknown format or without a stated range of values, or over a limit; with "srgb"
            also an ICC profile that is damaged or of other channels than the pixels.

    Example:
        >>> from PIL import Image
        >>> from mmrope.preprocess import load_image
        >>> pixels = load_image(Image.new("RGBA", (4, 2), (255, 0, 0, 0)))  # transparent: the background shows
        >>> pixels.shape, pixels[0, 0].tolist()
        ((2, 4, 3), [255, 255, 255])
    """
    if animation not in ("refuse", "first"):
        raise ValueError(f"animation must be 'refuse' or 'first', got {animation!r}")
    check_color(color)
    limits, name = limits or Limits(), source_name(source)
    if is_tensor(source):
        source = channels_last(as_array(source), 3, first=True)
    if isinstance(source, np.ndarray):
        source = channels_last(source, 3, first=False)
        _check_size(name, source.shape[1::-1], limits)
        return _of_array(source, background, white)
    if isinstance(source, Image.Image):
        _check_size(name, source.size, limits)
        return _of_image(source, background, animation, color, name)
    with open_image(source, name, limits, access) as image:
        pixels = jpeg_pixels(image, orientation_of(image)) if color == "stored" else None
        return _of_image(image, background, animation, color, name) if pixels is None else pixels


def check_color(color: str) -> None:
    """Refuses what is no choice of colours."""
    if color not in ("stored", "srgb"):
        raise ValueError(f"color must be 'stored' or 'srgb', got {color!r}")


def _of_image(image: Image.Image, background: Any, animation: Animation, color: Color, name: str) -> np.ndarray:
    if animation == "refuse":
        _refuse_several(image, name)
    return upright_rgb(image, background, name, color)


def _refuse_several(image: Image.Image, name: str) -> None:
    with decoding(name, f"is damaged and cannot be decoded as {image.format}"):
        if not has_several(image):
            return
        if image.format == "TIFF":  # pages are not counted: that reads every one's tags, and a small file can have many
            raise MediaError(f"{name} has more than one page: take the first with animation='first'")
        count = getattr(image, "n_frames", 0)
    raise MediaError(f"{name} has {count} frames: give it as a video, or take its first with animation='first'")


def has_several(image: Image.Image) -> bool:
    """Whether there are frames or pages behind the first; to be asked inside `decoding`."""
    return image.format not in _SEVERAL_VIEWS and bool(getattr(image, "is_animated", False))


@contextmanager
def decoding(name: str, what: str) -> Iterator[None]:
    """Around everything that Pillow does with a file: whatever it raises becomes a MediaError.

    Its decoders have no list of errors: damaged bytes make them trip over anything, from AssertionError to ZeroDivisionError,
    and a list of the types that were seen was never complete.

    Args:
        name: the file's.
        what: what is wrong with it, as its name continues.
    """
    try:
        yield
    except (MediaError, ImportError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(f"{name} is too large: {error} (PIL.Image.MAX_IMAGE_PIXELS)") from error
    except UnidentifiedImageError as error:  # which says an object's address
        raise MediaError(f"{name} {what}") from error
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise MediaError(f"{name} {what}: {reason}") from error


# --- opening ----------------------------------------------------------------------------------------------------------


def open_image(
    source: Any, name: str, limits: Limits, access: Access | None, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """The image of a file, of which only the header has been read; sizes over the limits are refused."""
    source = resolve(source, access)
    if hasattr(source, "read"):
        source = _seekable(source, name)
    with decoding(name, "cannot be read"), _reading(source) as file:
        head, tail = file.read(64), _tail_of(file)
    formats = formats or _formats_of(head, tail, name)
    with decoding(name, f"is not an image that can be opened (known formats: {', '.join(formats)})"):
        if head[:4] == _ICON:
            _check_icon(source, name, limits)
        if head[:4] == _CODESTREAM or head[4:8] == b"jP  ":
            _check_tiles(source, name)
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
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


def _seekable(file: Any, name: str) -> Any:
    """An open file in which one can go back, or all of its bytes."""
    with decoding(name, "cannot be read"):
        return file if hasattr(file, "seekable") and file.seekable() else file.read()


@contextmanager
def _reading(source: Any) -> Iterator[BinaryIO]:
    """A resolved source as a file; one that was given stands afterwards where it stood."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif isinstance(source, str):
        with open(source, "rb") as file:
            yield file
    else:
        place = source.tell()
        try:
            source.seek(0)
            yield source
        finally:
            source.seek(place)


def head_of(source: Any) -> bytes:
    """The first 16 bytes of a resolved source, which stands where it stood."""
    with decoding(source_name(source), "cannot be read"), _reading(source) as file:
        return file.read(16)


def _tail_of(file: BinaryIO) -> bytes:
    file.seek(max(0, file.seek(0, os.SEEK_END) - len(_TGA_FOOTER)))
    return file.read()


def _formats_of(head: bytes, tail: bytes, name: str) -> tuple[str, ...]:
    """Which of Pillow's formats may be tried on a file that begins and ends so."""
    if head[4:12] in _HEIC and not re.search(b"avif|avis", head[: int.from_bytes(head[:4], "big")]):  # among the brands
        return (*FORMATS, _heif_plugin(name))
    return (*FORMATS, "TGA") if tail == _TGA_FOOTER else FORMATS


def _heif_plugin(name: str) -> str:
    try:
        import pillow_heif
    except ImportError as error:
        raise MediaError(
            f"{name} is HEIC, which takes pillow-heif: pip install 'mmrope[heic]', or convert it to JPEG"
        ) from error
    pillow_heif.register_heif_opener()  # a plugin of Pillow, as those that are imported above
    return "HEIF"


def _check_icon(source: Any, name: str, limits: Limits) -> None:
    """Refuses icons with a picture over the limits: Pillow decodes the largest as soon as it opens the file."""
    with _reading(source) as file:
        file.seek(len(_ICON))
        (count,) = struct.unpack("<H", file.read(2))
        for (offset,) in struct.iter_unpack("<12xI", file.read(16 * count)):
            file.seek(offset)
            head = file.read(24)
            if len(head) == 24:  # where there is less, there is no picture
                _check_size(name, _size_in_icon(head), limits)


def _size_in_icon(head: bytes) -> tuple[int, int]:
    """Width and height of a picture in an icon, a PNG or a bitmap that begins so."""
    if head[:4] == b"\x89PNG":
        return struct.unpack(">II", head[16:])
    old = head[:4] == b"\x0c\0\0\0"  # a header of 12 bytes
    width, height = struct.unpack("<HH", head[4:8]) if old else struct.unpack("<ii", head[4:12])
    return abs(width), abs(height) // 2  # the lower half says what is transparent


def _check_tiles(source: Any, name: str) -> None:
    """Refuses JPEG 2000 files of more tiles than an image needs."""
    with _reading(source) as file:
        file.seek(_codestream(file, name) + 8)
        right, down, _, _, width, height, left, top, channels = struct.unpack(">8IH", file.read(34))
    tiles = -(-(right - left) // max(1, width)) * -(-(down - top) // max(1, height))
    if tiles * channels > _MOST_TILES:
        raise MediaError(
            f"{name} has {tiles:,} tiles of {width} x {height} in {channels} channels, which take too much memory; "
            "store it in larger tiles, or convert it to PNG"
        )


def _codestream(file: BinaryIO, name: str) -> int:
    """Where in a JPEG 2000 file the codestream begins: at once, or in a box."""
    at = 0
    while True:
        file.seek(at)
        head = file.read(16)
        if head[:4] == _CODESTREAM:
            return at
        size, kind = struct.unpack(">I4s", head[:8])
        header, size = (16, struct.unpack(">Q", head[8:])[0]) if size == 1 else (8, size)
        if size < header and kind != b"jp2c":  # whose size may be left open
            raise MediaError(f"{name} is damaged: a JPEG 2000 box of {size} bytes")
        at += header if kind == b"jp2c" else size


# --- pixels -----------------------------------------------------------------------------------------------------------


def upright_rgb(image: Image.Image, background: Any, name: str, color: Color = "stored") -> np.ndarray:
    """The pixels of an opened image, or of the frame that it stands at: [H, W, 3] uint8."""
    with decoding(name, f"is damaged and cannot be decoded as {image.format}"):
        image = _scaled_pnm(image) if image.format == "PPM" else image
        image.load()
        turn = _TURNS.get(orientation_of(image))
        image = image if turn is None else image.transpose(turn)
        return _pixels(_rgb(image, background, name, color))


def _scaled_pnm(image: Any) -> Image.Image:
    """A PNM image whose white is another number than 255 or 65535. Pillow takes its values one by one in Python, which is 20 s
    for 12 million of them."""
    if [tile[0] for tile in image.tile] != ["ppm"]:
        return image
    _, _, offset, (mode, white) = image.tile[0]
    stored = np.dtype(np.uint8 if white < 256 else ">u2")
    table = ((510 * np.arange(white + 1) + white) // (2 * white)).astype(np.uint8)  # rounded
    values = np.empty(image.width * image.height * Image.getmodebands(mode), np.uint8)
    image.fp.seek(offset)
    for begin in range(0, len(values), _BAND):
        band = values[begin : begin + _BAND]
        content = image.fp.read(band.size * stored.itemsize)
        if len(content) < band.size * stored.itemsize:
            raise EOFError("the file ends in its pixels")
        band[:] = table.take(np.frombuffer(content, stored), mode="clip")
    return Image.frombytes(mode, image.size, values.tobytes())


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an opened image; 1, which is upright, where there is none."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # of EXIF data that are no EXIF data, as in `decoding`: nobody needs them to see the pixels
        return 1


def is_animation(source: Any) -> bool:
    """Whether a file is an animated image, from its header; False for what is no image at all."""
    try:
        with open_image(source, "", Limits(), None, ANIMATED) as image, decoding("", "is damaged"):
            return has_several(image)
    except MediaError:
        return False


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


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor of any device and type as an array of its shape."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype.is_floating_point else tensor).numpy()  # numpy has no bfloat16


def channels_last(array: np.ndarray, ndim: int, *, first: bool, channels: tuple[int, ...] = (1, 3, 4)) -> np.ndarray:
    """An array with its channels at its end, of one that has them there, or before its height and width: where both fit, the
    latter if `first`. Without channels, or of another shape, it is as it was."""
    if array.ndim != ndim:
        return array
    ahead, behind = array.shape[-3] in channels, array.shape[-1] in channels
    return np.moveaxis(array, -3, -1) if ahead and (first or not behind) else array


def white_of(array: np.ndarray) -> Literal[1, 255]:
    """The value of white in an array of floats, 1 if no value is above 1, and 255 otherwise; 255 of integers.

    Raises:
        MediaError: values outside 0..255, or a type without numbers.
    """
    if array.dtype == np.bool_ or any(np.issubdtype(array.dtype, known) for known in (np.uint8, np.uint16)):
        return 255
    if array.dtype.kind not in "iuf":
        raise MediaError(
            f"{array.dtype} pixels have no stated range; give uint8, uint16, bool, or numbers from 0 to 1 or to 255"
        )
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not 0 <= low <= high <= 255:  # NaN is refused, too
        raise MediaError(
            f"{array.dtype} pixels go from 0 (black) to {'1 or ' * (array.dtype.kind == 'f')}255 (white), but these from "
            f"{low:g} to {high:g}; scale them, or give uint8"
        )
    return 1 if array.dtype.kind == "f" and high <= 1 else 255


def to_uint8(array: np.ndarray, white: float | None = None) -> np.ndarray:
    """Values of 0 to 255: uint8 as they are, uint16 and float scaled by their range, other integers from 0 to 255.

    Args:
        white: the value of white in an array of floats; None to take `white_of` it.

    Raises:
        MediaError: values outside their range, or a type without numbers.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(array.dtype, np.uint16):
        return ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if array.dtype.kind == "f" and white == 1 and not (array.min() >= 0 and array.max() <= 1):
        low, high = float(array.min()), float(array.max())
        raise MediaError(f"float pixels go from 0 (black) to 1 (white), but these from {low:g} to {high:g}; scale them")
    found = white_of(array)
    if array.dtype.kind != "f" or (white or found) == 255:
        return array.round().astype(np.uint8)
    return (array * 255).round().astype(np.uint8)


def _of_array(array: np.ndarray, background: tuple[int, int, int], white: float | None) -> np.ndarray:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        raise MediaError(
            f"an image array is [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], or has these channels first, got {list(array.shape)}"
        )
    array = to_uint8(array, white)
    if array.ndim == 3 and array.shape[2] == 4:
        return np.array(_rgb(Image.fromarray(np.ascontiguousarray(array)), background, "array", "stored"))
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


def _rgb(image: Image.Image, background: Any, name: str, color: Color) -> Image.Image:
    profile = image.info.get("icc_profile") if color == "srgb" else None
    image = _eight_bits(image, name)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
    if profile:
        image = _to_srgb(image, profile, name)
    if image.mode in ("RGBA", "LA"):
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """An image of 16 bits or floats as one of 8."""
    if image.mode.startswith("I;16") or image.mode == "F" or (image.mode == "I" and image.format == "PPM"):
        values = np.asarray(image)
        try:
            # Pillow scales PPM to 65535; floats in files are 0 to 1
            return Image.fromarray(to_uint8(values.astype(np.uint16) if image.mode == "I" else values, white=1))
        except MediaError as error:
            raise MediaError(f"{name}: {error}") from None
    if image.mode == "I":
        raise MediaError(f"{name} has 32-bit pixels, whose range is not stated; give them as a float array from 0 to 1")
    return image


# --- colours ----------------------------------------------------------------------------------------------------------

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
"""Of the pixels that ICC profiles of these colour spaces are for."""


def _to_srgb(image: Image.Image, profile: bytes, name: str) -> Image.Image:
    """The colours of an image by its ICC profile, as sRGB, with its transparency as it was. The rendering intent is perceptual,
    as in Firefox, and in Chrome, which takes the profile's table for it; in profiles of a matrix all intents are one."""
    srgb = ImageCms.createProfile("sRGB")
    with decoding(name, "has a damaged ICC profile, which color='stored' ignores"):
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = getattr(given.profile, "xcolor_space", "").strip()
        own = {"L": "GRAY", "LA": "GRAY", "1": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}.get(image.mode, "RGB")
        if space != own and (space, own) != ("RGB", "GRAY"):  # grey is red, green and blue alike
            raise MediaError(f"{name} has {own} pixels and an ICC profile of {space}; color='stored' ignores the profile")
        shown = ImageCms.profileToProfile(
            image.convert(_MODES[space]), given, srgb, renderingIntent=ImageCms.Intent.PERCEPTUAL, outputMode="RGB"
        )
        if shown is None:  # that is for a transform in place
            raise TypeError("no image was made")
    if image.mode in ("RGBA", "LA"):
        shown.putalpha(image.getchannel("A"))
    return shown
