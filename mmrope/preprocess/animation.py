"""Animations: when their frames are shown, read from their headers without decoding a pixel; and the frames, when asked for.

Opening takes as long as the file is large, whatever its header claims. GIF, PNG, WebP and AVIF state how long each frame lasts.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, repeat
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from mmrope.preprocess.errors import Limits, MediaError
from mmrope.preprocess.image import ANIMATED, decoding, head_of, open_image, orientation_of, upright_rgb
from mmrope.preprocess.probe import Clock, Damaged, check_duration, check_frame_count
from mmrope.preprocess.readers import Source

_SECOND = 10**12
"""Durations are whole picoseconds: their sums are quick, and right to far below a microsecond."""
_MILLISECOND, _MICROSECOND = _SECOND // 10**3, _SECOND // 10**6
_SHORTEST, _INSTEAD = 11 * _MILLISECOND, 100 * _MILLISECOND
"""Browsers show a frame that states less than the first for the second."""
_METADATA = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
"""What Pillow calls what may hold an orientation. Without any of it Pillow would decode a PNG to look for more."""
_TICK = Fraction(1, 10**6)
"""Seconds, of the times of frames."""


@dataclass(frozen=True, eq=False)
class Animated:
    """The file of an animation, and how its frames are to be decoded."""

    source: str | bytes = field(repr=False)
    """An absolute path, or bytes."""
    before: int
    """Pictures before the first frame: an animated PNG may begin with one for viewers that show no animation."""
    limits: Limits


def animation_format(source: str | bytes) -> str | None:
    """Which of the image formats that can be animated a file begins as, if any."""
    head = head_of(source)
    if head[:4] == b"GIF8":
        return "GIF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    return "AVIF" if head[4:12] in (b"ftypavis", b"ftypavif") else None


def read_animation(source: str | bytes, name: str, form: str, limits: Limits, damaged: Damaged) -> tuple[Clock, Animated]:
    """The clock of an animation, and what its frames are decoded from.

    Args:
        source: an absolute path, or bytes.
        form: what `animation_format` says of it.

    Raises:
        MediaError: a still image, damaged, or over a limit.
    """
    with open_image(source, name, limits, None, ANIMATED) as image, decoding(name, "is damaged"):
        if form != "GIF" and not getattr(image, "is_animated", False):
            raise _still(name, form)
        durations, cut = _DURATIONS[form](_content(source), image, name)
        turned = bool(_METADATA & set(image.info)) and orientation_of(image) in (5, 6, 7, 8)
        width, height = image.size[::-1] if turned else image.size
        before = _before(image)
    if cut and damaged == "refuse":
        raise MediaError(
            f"{name} is damaged at frame {len(durations)}: the file ends in it, or before its end mark; the {len(durations)} "
            "before it are taken with damaged='keep'"
        )
    if len(durations) == 1 and not cut and form != "GIF":
        raise _still(name, form)
    if not durations:
        raise MediaError(f"{name} is damaged: it has no frame")
    check_frame_count(name, len(durations), limits)
    exact = accumulate((shown if shown >= _SHORTEST else _INSTEAD for shown in durations), initial=0)
    ends = [(end + _MICROSECOND // 2) // _MICROSECOND for end in exact]
    duration = ends[-1] * _TICK
    check_duration(name, duration, limits)
    pts = np.array(ends[:-1], dtype=np.int64)
    damage = "the file ends before its end mark" if cut else ""
    clock = Clock(
        container=form.lower(), width=width, height=height, pts=pts, time_base=_TICK, duration=duration, damage=damage
    )
    return clock, Animated(source, before, limits)


def _still(name: str, form: str) -> MediaError:
    return MediaError(f"{name} is a still image ({form}), not a film: give it as an image")


def animation_frames(video: Source, wanted: np.ndarray) -> Iterator[np.ndarray]:
    """The frames at these indices, which do not decrease, as a viewer shows them: after disposal and blending.

    Raises:
        MediaError: damaged, or more pixels to decode than the limit.
    """
    count, clock = int(wanted[-1]) + 1 if len(wanted) else 0, video.clock
    pixels, limit = count * clock.width * clock.height, video.source.limits.max_animation_pixels
    if pixels > limit:
        raise MediaError(
            f"{video.name}: its first {count:,} frames of {clock.width} x {clock.height} have to be decoded, "
            f"{pixels / 1e6:,.6g} million pixels, the limit is {limit / 1e6:,.6g} million; ask for earlier frames, make a "
            "video file of it, or raise Limits(max_animation_pixels=...)"
        )
    return _frames_of(video, video.source, wanted.tolist())


def _frames_of(video: Source, file: Animated, wanted: list[int]) -> Iterator[np.ndarray]:
    name, shape, shown, pixels = video.name, (video.clock.height, video.clock.width, 3), -1, np.zeros(0)
    with open_image(file.source, name, file.limits, None, ANIMATED) as image:
        if file.before:
            _begin_on_nothing(image)
        for index in wanted:
            if index != shown:
                with decoding(name, f"is damaged at frame {index}"):
                    image.seek(file.before + index)
                pixels = upright_rgb(image, video.background, f"frame {index} of {name}", video.color)
                if pixels.shape != shape:
                    size = f"{pixels.shape[1]} x {pixels.shape[0]}"
                    raise MediaError(f"{name} is damaged: frame {index} is {size}, the film {shape[1]} x {shape[0]}")
                shown = index
            yield pixels


def _begin_on_nothing(image: Any) -> None:
    """Has Pillow take away the picture before an animated PNG, on which it would lay the first frame."""
    image.dispose_op, image.dispose_extent = PngImagePlugin.Disposal.OP_BACKGROUND, (0, 0, *image.size)


def _before(image: Image.Image) -> int:
    return int(getattr(image, "default_image", False))


def _content(source: str | bytes) -> bytes:
    return source if isinstance(source, bytes) else Path(source).read_bytes()


# --- durations, in picoseconds ----------------------------------------------------------------------------------------


def _of_gif(content: bytes, image: Image.Image, name: str) -> tuple[list[int], bool]:
    """From the graphic control before each frame; and whether the file ends before its end mark."""
    durations, shown, at = [], 0, 13 + _palette(content[10])
    try:
        while at < len(content) and content[at] != ord(";"):
            if content[at] == ord("!"):
                if content[at + 1] == 0xF9 and content[at + 2]:
                    shown = struct.unpack_from("<xHx", content, at + 3)[0] * 10 * _MILLISECOND
                at = _behind_blocks(content, at + 2)
            elif content[at] == ord(","):
                left, top, width, height, flags = struct.unpack_from("<4HB", content, at + 1)
                if durations and (left + width > image.width or top + height > image.height):
                    size = f"{max(left + width, image.width)} x {max(top + height, image.height)}"
                    raise MediaError(f"{name} is damaged: frame {len(durations)} is {size}, larger than the film")
                at = _behind_blocks(content, at + 11 + _palette(flags))  # a byte of LZW stands before the blocks
                durations.append(shown)
                shown = 0
            else:  # bytes that mean nothing are passed over, by Pillow and browsers
                found = _BLOCK.search(content, at)
                at = found.start() if found else len(content)
    except (IndexError, struct.error):
        return durations, True
    return durations, at >= len(content)


_BLOCK = re.compile(rb"[!,;]")


def _palette(flags: int) -> int:
    """Bytes of the palette that flags of a GIF announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _behind_blocks(content: bytes, at: int) -> int:
    """Where the blocks of a GIF end that begin here: each has its size before it, and behind the last stands a zero, which may
    be missing at the end of a file."""
    if at > len(content):
        raise IndexError
    while at < len(content) and (size := content[at]):
        at += 1 + size
        if at > len(content):
            raise IndexError
    return at + 1


def _count(image: Any) -> int:
    """How many frames the header of an animated PNG, WebP or AVIF announces."""
    return image.n_frames


def _of_png(content: bytes, image: Image.Image, name: str) -> tuple[list[int], bool]:
    """From the frame controls, as many as frames are announced; and whether there are fewer."""
    durations, at, kind = [], 8, b""
    while at < len(content) - 8 and kind != b"IEND":
        size, kind = struct.unpack_from(">I4s", content, at)
        if kind == b"fcTL" and size >= 24 and at + 32 <= len(content):
            shown, of = struct.unpack_from(">HH", content, at + 28)
            durations.append(shown * _SECOND // (of or 100))
        at += 12 + size
    announced = _count(image) - _before(image)
    whole = durations[: len(durations) - (at > len(content))][:announced]
    return whole, len(whole) < announced


def _of_webp(content: bytes, image: Image.Image, name: str) -> tuple[list[int], bool]:
    """From the header of each frame; Pillow opens none that is cut."""
    durations = []
    for kind, begin, end in _chunks(content, 12, min(len(content), 8 + int.from_bytes(content[4:8], "little"))):
        if kind == b"ANMF" and end - begin >= 16:
            durations.append(int.from_bytes(content[begin + 12 : begin + 15], "little") * _MILLISECOND)
    if len(durations) != (count := _count(image)):
        raise MediaError(f"{name} is damaged: it has {count} frames, and durations of {len(durations)}")
    return durations, False


def _chunks(content: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The chunks of a RIFF file: their name, and where their content begins and ends."""
    while at + 8 <= end:
        kind, size = struct.unpack_from("<4sI", content, at)
        yield kind, at + 8, min(at + 8 + size, end)
        at += 8 + size + size % 2


def _of_avif(content: bytes, image: Image.Image, name: str) -> tuple[list[int], bool]:
    """From the times of samples in the track of pictures (ISO/IEC 14496-12)."""
    count, (begin, end) = _count(image), _picture_track(content, name)
    header, _ = next(_boxes(content, begin, end, b"mdia", b"mdhd"))
    (ticks,) = struct.unpack_from(">I", content, header + (20 if content[header] else 12))
    if not ticks:
        raise MediaError(f"{name} is damaged: there are no ticks in a second")
    table, end = next(_boxes(content, begin, end, b"mdia", b"minf", b"stbl", b"stts"))
    (entries,) = struct.unpack_from(">I", content, table + 4)
    durations, shown = [], 0
    for times, delta in struct.iter_unpack(">II", content[table + 8 : min(end, table + 8 + 8 * entries)]):
        shown = delta * _SECOND // ticks
        durations += repeat(shown, min(times, count - len(durations)))
    return durations + [shown] * (count - len(durations)), False  # the last holds on, as in libavif


def _picture_track(content: bytes, name: str) -> tuple[int, int]:
    """Where the track of pictures begins and ends; transparency has one of its own."""
    for begin, end in _boxes(content, 0, len(content), b"moov", b"trak"):
        handler, _ = next(_boxes(content, begin, end, b"mdia", b"hdlr"))
        if content[handler + 8 : handler + 12] == b"pict":
            return begin, end
    raise MediaError(f"{name} is damaged: it has several frames, and no track of pictures")


def _boxes(content: bytes, begin: int, end: int, kind: bytes, *inside: bytes) -> Iterator[tuple[int, int]]:
    """Where the content of boxes begins and ends: of those of a kind, those of the next kind in them, and so on."""
    while begin + 8 <= end:
        size, name = struct.unpack_from(">I4s", content, begin)
        header, size = (16, struct.unpack_from(">Q", content, begin + 8)[0]) if size == 1 else (8, size or end - begin)
        if not header <= size <= end - begin:
            raise ValueError(f"it has a box of {size} bytes")
        if name == kind and inside:
            yield from _boxes(content, begin + header, begin + size, *inside)
        elif name == kind:
            yield begin + header, begin + size
        begin += size


_DURATIONS = {"GIF": _of_gif, "PNG": _of_png, "WEBP": _of_webp, "AVIF": _of_avif}
