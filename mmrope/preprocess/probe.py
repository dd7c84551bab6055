"""A video's clock: read from its packets, exactly, without decoding."""

from __future__ import annotations

import io
from array import array
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import av.error
import av.stream
import numpy as np
from av.sidedata.sidedata import Type as SideData

from mmrope.preprocess.errors import Limits, MediaError

CONTAINERS = ("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg")
"""FFmpeg's names of the container formats that are opened. Playlists and image sequences, which open other files and URLs in
their turn, are not among them."""
CODECS = (
    "h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "prores", "theora", "h263", "flv1",
    "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2", "wmv3", "vc1", "ffv1", "dnxhd", "png", "rawvideo", "qtrle", "gif",
)  # fmt: skip
"""FFmpeg's names of the codecs that are decoded: the rest of its decoders see no strangers' bytes."""
_STAMP_EVERY_FRAME = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""Containers that store when each frame is shown; in the others FFmpeg derives what is not there, and may be wrong."""
_DECODERS = (*CODECS, "libdav1d", "libvpx", "libvpx-vp9", "libaom-av1")
_SMALL = 1 << 23  # pixels of a frame that cost little
_OPTIONS = {
    "format_whitelist": ",".join(CONTAINERS),
    "codec_whitelist": ",".join(_DECODERS),
    "protocol_whitelist": "file",
}

PYAV_17_1 = hasattr(av.stream, "Discard")
"""An older PyAV cannot leave streams unread. And options that reach a file's streams end its process where a stream turns up
late, as in MPEG program streams: files are opened without them, so that a frame of millions of pixels is decoded once, and
takes up to 2 GB, before it is refused."""

Turn = tuple[int, int, int, int]
"""How a decoded frame is turned and mirrored to be upright: (a, b, c, d), each -1, 0 or 1, moves the pixel at (x, y) to
(a x + c y, b x + d y), as the display matrix of FFmpeg's libavutil/display.h."""
UPRIGHT: Turn = (1, 0, 0, 1)


@dataclass(frozen=True, eq=False)
class Clock:
    """What the packets of a video say."""

    container: str
    codec: str
    width: int
    """As shown, after rotation, in pixels."""
    height: int
    turn: Turn
    pts: np.ndarray
    """[n] int64, the presentation time of every frame that is shown, in ticks, increasing."""
    keyframes: np.ndarray
    """[k] int64, those of them where decoding can start."""
    time_base: Fraction
    """Seconds per tick."""
    duration: Fraction
    """Seconds from the first frame to the end of the last."""
    irregular: str
    """What makes its keyframes bad places to start decoding from for simpler readers, if anything."""


@dataclass(frozen=True, eq=False)
class Probed:
    """What is known of a video before a frame of it is decoded."""

    source: Any = field(repr=False)
    """An absolute path, bytes, an array of frames [T, H, W, 3], or a list of images."""
    name: str
    container: str
    """FFmpeg's name of the container format; "gif", "webp", "png" or "avif" of an animation, "array" or "images"."""
    codec: str
    width: int
    """As shown, after rotation, in pixels."""
    height: int
    pts: np.ndarray = field(repr=False)
    """[n] int64, the presentation time of every frame in ticks, increasing."""
    time_base: Fraction
    """Seconds per tick."""
    duration: Fraction
    """Seconds from the first frame to the end of the last."""
    turn: Turn = UPRIGHT
    """How decoded frames are turned and mirrored to be upright."""
    keyframes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    """[k] int64, those of pts where decoding can start."""
    irregular: str = ""
    """What makes its keyframes bad places to start decoding from for simpler readers, if anything."""
    background: tuple[int, int, int] = (255, 255, 255)
    """What shows through transparent pixels of an animation, RGB."""

    @property
    def seconds(self) -> np.ndarray:
        """[n] float64, the presentation time of every frame, from the first frame on."""
        return (self.pts - self.pts[0]) * float(self.time_base)

    @property
    def start(self) -> Fraction:
        """The first frame's presentation time in the file, in seconds; every other time counts from there."""
        return int(self.pts[0]) * self.time_base


def open_container(source: Any, pixels: int) -> Any:
    """A file as FFmpeg's container; formats, codecs and protocols that are not known here stay closed.

    Args:
        pixels: that a frame may have, roughly: no memory is taken for one of far more. That is coarse, and before anything is
            known of the file; who wants a limit looks at the size of what comes out.
    """
    limit = {"max_pixels": str(min(2 * max(pixels, _SMALL), 2**31 - 1))}
    file, options = io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}", {**_OPTIONS, **limit}
    container = av.open(file, options=options) if PYAV_17_1 else av.open(file, container_options=options)
    for stream in container.streams.video:
        if stream.codec_context is not None:
            stream.codec_context.options = limit
    return container


def video_stream(container: Any, name: str) -> Any:
    """The first video stream; the others are not read."""
    videos = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]  # no cover art
    found = videos[0] if videos else None
    for stream in container.streams:
        if stream is not found and PYAV_17_1:
            stream.discard = av.stream.Discard.all
    if found is None:
        # of a stream of no known type, PyAV before 17 has no type to ask for: its process would end
        others = ", ".join(stream.type for stream in container.streams if type(stream) is not av.stream.Stream)
        raise MediaError(f"{name} has no video stream (only {others or 'nothing that is known'})")
    codec = found.codec_context and found.codec_context.codec.canonical_name
    if codec not in CODECS:
        raise MediaError(f"{name} is coded as {codec or 'something unknown'}, which is not opened; re-encode it as h264")
    return found


def read_clock(source: Any, name: str, limits: Limits) -> Clock:
    """The clock of a file.

    Args:
        source: an absolute path, or bytes.

    Raises:
        MediaError: no video, no times, damaged, or over a limit.
    """
    try:
        with open_container(source, limits.max_image_pixels) as container:
            stream = video_stream(container, name)
            check_frame_size(name, stream.codec_context.width, stream.codec_context.height, limits)
            form, codec, rate = container.format.name, stream.codec_context.codec.canonical_name, stream.average_rate
            time_base = stream.time_base
            if not time_base:
                raise MediaError(f"{name} does not say how long its ticks are; convert it to mp4 or mkv")
            pts, keyframes, last, irregular = _stamps(container, stream, name, limits)
            duration = (int(pts[-1]) - int(pts[0]) + (last or (round(1 / rate / time_base) if rate else 0))) * time_base
            check_duration(name, duration, limits)
        with open_container(source, limits.max_image_pixels) as container:
            first = next(container.decode(video_stream(container, name)), None)
    except (av.error.FFmpegError, UnicodeError, OverflowError) as error:
        raise MediaError(
            f"{name} cannot be read as a video (known formats: mp4, mov, mkv, webm, avi, ts, mpg, flv, wmv, ogv): {error}"
        ) from error
    if first is None:
        raise MediaError(f"{name}: no frame of its {len(pts)} packets can be decoded; is the file damaged?")
    turn = _turn(first, name)
    size = (first.width, first.height) if turn[0] else (first.height, first.width)
    check_frame_size(name, *size, limits)
    if first.pts is not None and first.pts > pts[0]:
        # those before need frames that were cut off: no player shows them
        irregular = "the film starts between keyframes"
        duration -= (first.pts - int(pts[0])) * time_base
        pts, keyframes = (stamps[stamps >= first.pts] for stamps in (pts, keyframes))
        if not len(pts):
            raise MediaError(f"{name}: its packets and its frames have other times; is the file damaged?")
    return Clock(form, codec, *size, turn, pts, keyframes, time_base, duration, irregular)


def _turn(frame: Any, name: str) -> Turn:
    data = frame.side_data.get(SideData.DISPLAYMATRIX)
    if data is None:
        return UPRIGHT
    matrix = np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2].astype(np.int64)
    signs = np.sign(matrix) * (np.abs(matrix) > np.abs(matrix).max() / 50)  # a stretch is not applied, as elsewhere
    if (np.abs(signs).sum(axis=0) != 1).any() or (np.abs(signs).sum(axis=1) != 1).any():
        raise MediaError(f"{name} is rotated by {frame.rotation:g} degrees; only quarter turns are known: re-encode it upright")
    a, b, c, d = signs.flatten().tolist()
    return a, b, c, d


def check_frame_size(name: str, width: int, height: int, limits: Limits) -> None:
    """Refuses frames of too many pixels."""
    if width * height > limits.max_image_pixels:
        raise MediaError(
            f"{name} has frames of {width} x {height} = {width * height / 1e6:.4g} million pixels, the limit is "
            f"{limits.max_image_pixels / 1e6:g} million; raise it with Limits(max_image_pixels=...)"
        )


def check_duration(name: str, duration: Fraction, limits: Limits) -> None:
    """Refuses films that last too long."""
    if duration > limits.max_video_seconds:
        raise MediaError(
            f"{name} lasts {float(duration):.0f} s, the limit is {limits.max_video_seconds:g}; "
            "cut it or raise it with Limits(max_video_seconds=...)"
        )


def check_frame_count(name: str, count: int, limits: Limits) -> None:
    """Refuses films of too many frames."""
    if count > limits.max_video_frames:
        raise MediaError(
            f"{name} has more than {limits.max_video_frames:,} frames; cut it or raise it with Limits(max_video_frames=...)"
        )


def _stamps(container: Any, stream: Any, name: str, limits: Limits) -> tuple[np.ndarray, np.ndarray, int, str]:
    """The presentation times of all frames and of the keyframes, sorted; the duration of the last, in ticks; and what is
    irregular about the keyframes.

    Packets that an edit list cuts off are marked discard and are not shown.
    """
    shown, keyframes = array("q"), array("q")  # a 10-hour film has a million packets: no Python object each
    irregular, newest, last = "", None, 0
    form, context = container.format.name, stream.codec_context
    unknown = f"{name} ({form}) does not say when its frames are shown"
    if form == "avi" and context.codec.canonical_name in ("h264", "hevc") and context.has_b_frames:
        raise MediaError(
            f"{unknown}: avi stores in which order they are decoded, and B-frames are shown in another; convert it"
        )
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        pts = packet.pts
        if pts is None and form == "matroska,webm" and len(shown) == 1:
            continue  # where a film was cut: they follow the first keyframe, but are shown before it, and cannot be
        if pts is None:
            raise MediaError(f"{unknown}; convert it to mp4 or mkv")
        if packet.is_keyframe:
            keyframes.append(pts)
        elif keyframes and pts < keyframes[-1]:
            irregular = "some frames follow a keyframe but are shown before it (open groups of pictures)"
        if newest is None or pts >= newest:
            newest, last = pts, packet.duration or 0
        shown.append(pts)
        if len(shown) > limits.max_video_frames:
            check_frame_count(name, len(shown), limits)
    if not shown:
        raise MediaError(f"{name} has a video stream without packets; is the file cut off?")
    pts, times = np.unique(np.frombuffer(shown, dtype=np.int64), return_counts=True)
    keys = np.setdiff1d(np.frombuffer(keyframes or shown[:1], dtype=np.int64), pts[times > 1])  # two frames, one place to land
    if len(pts) < len(shown) and form not in _STAMP_EVERY_FRAME:
        raise MediaError(
            f"{unknown}: {len(shown) - len(pts)} have the times of others (joined files?); convert it to mp4 or mkv"
        )
    return pts, keys, last, irregular
