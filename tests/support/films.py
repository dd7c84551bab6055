"""Small video files with known frames and times, made with PyAV."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

MILLISECONDS = Fraction(1, 1000)


def grey_of(n: int) -> int:
    """The brightness of frame n, far enough from its neighbours' to survive coding."""
    return 30 + n * 37 % 200


def film(
    path: Any,
    times_ms: Sequence[int],
    *,
    form: str | None = None,
    codec: str = "libx264",
    size: tuple[int, int] = (96, 64),
    rotation: float | None = None,
    keyframes: int = 12,
    pix_fmt: str = "yuv420p",
    max_b_frames: int | None = None,
    moving: bool = False,
    options: dict[str, str] | None = None,
    tick: Fraction = MILLISECONDS,
    container: dict[str, str] | None = None,
    pixel_aspect: Fraction | None = None,
    rate: Fraction = Fraction(25),
) -> Any:
    """A video whose frame n has brightness grey_of(n) and is shown at times_ms[n]; its top left corner is white. With `moving`
    it is a texture that wanders instead, so that every frame is coded from others. `rate` is what the container states. A file
    that is no path takes it, too, in FFmpeg's `form`."""
    texture = np.random.default_rng(0).integers(0, 255, (size[1] // 8, size[0] // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path) if form is None else path, "w", form, options=container or {}) as file:
        stream = file.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = tick
        stream.gop_size = keyframes
        if max_b_frames is not None:
            stream.max_b_frames = max_b_frames
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        for n, time in enumerate(times_ms):
            pixels = np.full((size[1], size[0], 3), grey_of(n), np.uint8)
            if moving:
                pixels[:] = np.roll(texture, (2 * n, 3 * n), axis=(0, 1))
            pixels[: size[1] // 4, : size[0] // 4] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time * MILLISECONDS / tick), tick
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path if rotation is None else rotated(path, rotation)


def trimmed(source: Path, path: Path, seconds: float) -> Path:
    """The same video, cut at `seconds` without encoding it again: what lies before is hidden by an edit list."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        shift = round(Fraction(str(seconds)) / stream.time_base)
        for packet in old.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                new.mux(packet)
    return path


def sound(path: Path) -> Path:
    """A file with audio alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(frames: Sequence[np.ndarray]) -> list[int]:
    """Which of 25 frames these are, by their brightness."""
    return [min(range(25), key=lambda n: abs(grey_of(n) - float(frame[-8:, -8:].mean()))) for frame in frames]


def rotated(path: Path, degrees: float) -> Path:
    """The same mp4, to be shown rotated counterclockwise, with the matrix of FFmpeg's av_display_rotation_set: PyAV before 17.1
    cannot ask for it."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return with_matrix(path, (cos, -sin, sin, cos))


def with_matrix(path: Path, turn: tuple[float, float, float, float]) -> Path:
    """The same mp4 with another display matrix (a, b, c, d) in its track header, ISO/IEC 14496-12."""
    data = bytearray(path.read_bytes())
    place = data.find(b"tkhd") + 44
    a, b, c, d = (round(value * 65536) for value in turn)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path
