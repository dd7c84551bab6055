"""Animated images as films: GIF, WebP, PNG and AVIF.

How long each frame is shown stands in headers, which are read without decoding a pixel: what it takes to open a file grows with
its bytes, and not with what it says of itself.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from mmrope.preprocess.errors import Limits, MediaError
from mmrope.preprocess.image import ANIMATED, Color, decoding, head_of, open_image, upright_rgb
from mmrope.preprocess.probe import Clock, check_frame_count

_MICROSECOND = Fraction(1, 1_000_000)
_SHORTEST, _INSTEAD = Fraction(11), Fraction(100)
"""Milliseconds: browsers show a frame that states less than the first for the second."""


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


def is_animation(source: str | bytes) -> bool:
    """Whether a file is an animated image, by its headers; False for what is no image at all."""
    try:
        form = animation_format(source)
        return form is not None and len(_durations(source, form, "", Limits())) > 1
    except MediaError:
        return False


def read_animation(source: str | bytes, name: str, form: str, limits: Limits) -> Clock:
    """The clock of an animation.

    Raises:
        MediaError: a still image, damaged, or over a limit.
    """
    durations = _durations(source, form, name, limits)
    with open_image(source, name, limits, None, ANIMATED) as image:
        width, height = image.size
    if len(durations) == 1 and form != "GIF":
        raise MediaError(f"{name} is a still image ({form}), not a film: give it as an image")
    if len(durations) * width * height > limits.max_animation_pixels:
        raise MediaError(
            f"{name} has over {limits.max_animation_pixels / 1e9:g} thousand million pixels in its frames together; "
            "make a video file of it, or raise Limits(max_animation_pixels=...)"
        )
    shown = [duration if duration >= _SHORTEST else _INSTEAD for duration in durations]
    ends = [round(end * 1000) for end in itertools.accumulate(shown, initial=Fraction(0))]  # microseconds
    pts = np.array(ends[:-1], dtype=np.int64)
    return Clock(
        container=form.lower(), width=width, height=height, pts=pts, time_base=_MICROSECOND, duration=ends[-1] * _MICROSECOND
    )


def animation_frames(
    source: str | bytes, name: str, wanted: np.ndarray, background: tuple[int, int, int], color: Color
) -> Iterator[np.ndarray]:
    """The frames with these indices, which do not decrease: those that a viewer shows, after disposal and blending."""
    pending = wanted.tolist()[::-1]
    with open_image(source, name, Limits(max_image_pixels=2**62), None, ANIMATED) as image:
        size, before = image.size, _hidden_frames(source) if image.format == "PNG" else 0
        index = 0
        while pending:
            with decoding(name, image.format or ""):
                image.seek(index + before)
                image.load()
            if image.size != size:  # Pillow makes the canvas of a GIF larger for a frame that does not fit
                raise MediaError(f"{name} is damaged: frame {index} is {image.width} x {image.height}, larger than the film")
            if pending[-1] == index:
                pixels = upright_rgb(image, background, color, f"frame {index} of {name}")
                while pending and pending[-1] == index:
                    pending.pop()
                    yield pixels
            index += 1


# --- headers ----------------------------------------------------------------------------------------------------------


def _durations(source: str | bytes, form: str, name: str, limits: Limits) -> list[Fraction]:
    """How long each frame is shown, in milliseconds, as the file states it."""
    if form == "AVIF":
        return _by_pillow(source, name, limits)
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    read = {"GIF": _gif, "WEBP": _webp, "PNG": _png}[form]
    durations: list[Fraction] = []
    try:
        for duration in read(content):
            durations.append(duration)
            check_frame_count(name, len(durations), limits)
    except (IndexError, struct.error) as error:
        raise MediaError(f"{name} is damaged: it ends in frame {len(durations)}, or before its end mark") from error
    except _Nonsense as error:
        raise MediaError(f"{name} is damaged: frame {len(durations)} {error}") from error
    if not durations:
        raise MediaError(f"{name} is damaged: it has no frame")
    return durations


class _Nonsense(ValueError):
    """What a frame says of itself cannot be."""


def _gif(content: bytes) -> Iterator[Fraction]:
    """Blocks of GIF89a: extensions, one of which states the time of the frame behind it, and frames, to the end mark."""
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    at, duration = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0), Fraction(0)
    while (kind := content[at]) != 0x3B:
        if kind == 0x21:
            if content[at + 1] == 0xF9 and content[at + 2] >= 4:
                duration = Fraction(10 * struct.unpack_from("<H", content, at + 4)[0])
            at += 2
        elif kind == 0x2C:
            x, y, w, h, flags = struct.unpack_from("<HHHHB", content, at + 1)
            if x + w > width or y + h > height:
                raise _Nonsense(f"is {x + w} x {y + h}, larger than the film")
            at += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)  # and the code size
        elif kind == 0:  # what some writers leave between blocks
            at += 1
            continue
        else:
            raise _Nonsense(f"is followed by a block of no known kind, {kind}")
        while length := content[at]:
            at += length + 1
        at += 1
        if kind == 0x2C:
            yield duration
            duration = Fraction(0)


def _webp(content: bytes) -> Iterator[Fraction]:
    """Chunks of WebP: of an animation one a frame (ANMF), which states its time."""
    end = 8 + struct.unpack_from("<I", content, 4)[0]
    at, frames = 12, 0
    while at + 8 <= end:
        kind, length = content[at : at + 4], struct.unpack_from("<I", content, at + 4)[0]
        content[min(at + 8 + length, end) - 1]  # it is there
        if kind == b"ANMF":
            yield Fraction(int.from_bytes(content[at + 20 : at + 23], "little"))
            frames += 1
        at += 8 + length + length % 2
    if not frames:  # a still image
        yield Fraction(0)


def _png(content: bytes) -> Iterator[Fraction]:
    """Of an animation one chunk a frame (fcTL) states its time, as a fraction of a second."""
    frames = 0
    for kind, at in _png_chunks(content):
        if kind == b"fcTL":
            over, under = struct.unpack_from(">HH", content, at + 20)
            yield Fraction(1000 * over, under or 100)
            frames += 1
    if not frames:  # a still image
        yield Fraction(0)


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Kind and place of each chunk of a PNG, to the end mark."""
    at, kind = 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, at)
        content[at + 11 + length]  # it is there
        yield kind, at + 8
        at += 12 + length


def _hidden_frames(source: str | bytes) -> int:
    """1 for a PNG whose image for viewers without animations is no frame of its animation, which Pillow counts."""
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    first = next((kind for kind, _ in _png_chunks(content) if kind in (b"fcTL", b"IDAT")), b"")
    return int(first == b"IDAT")


def _by_pillow(source: str | bytes, name: str, limits: Limits) -> list[Fraction]:
    """Of AVIF, whose frames Pillow must decode to know."""
    durations: list[Fraction] = []
    with open_image(source, name, limits, None, ANIMATED) as image, decoding(name, "AVIF"):
        for index in range(getattr(image, "n_frames", 1)):
            if (index + 1) * image.width * image.height > limits.max_animation_pixels:
                break  # refused where its frames are counted
            image.seek(index)
            image.load()
            durations.append(Fraction(image.info.get("duration") or 0).limit_denominator(1000))
            check_frame_count(name, len(durations), limits)
        else:
            return durations
    return [Fraction(0)] * getattr(image, "n_frames", 1)
