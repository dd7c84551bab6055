"""Videos: true presentation times first, frames second.

A video is probed by reading its packets, without decoding: that gives every frame's time, exactly. Frames are then chosen
by time, never by index / fps, and decoded by decord where its times agree with the packets', by PyAV otherwise.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import av
import av.error
import numpy as np

from mmrope.preprocess.errors import Limits, MediaError
from mmrope.preprocess.image import source_name

Backend = Literal["auto", "decord", "pyav"]

# Where decord's frames were found to be PyAV's, bit for bit, whatever the keyframes. Elsewhere it returns other frames under
# right times and without a word: all of MPEG-TS, and MPEG-4 part 2 with B-frames; its FFmpeg 4 lacks AV1.
_DECORD_CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
_DECORD_CODECS = {"h264", "hevc", "vp8", "vp9"}
_ROUNDING = Fraction(1, 2000)  # seconds; Matroska rounds stamps to milliseconds, so a frame may be stamped late by half of one
_MAX_DISAGREEMENT = 1e-3  # seconds between decord's time of a frame and the packet's


@dataclass(frozen=True, eq=False)
class Video:
    """A video that has been probed: its clock and its size. Frames are decoded when asked for."""

    source: Any = field(repr=False)
    name: str
    container: str
    """FFmpeg's name of the container format."""
    codec: str
    width: int
    """As shown, after rotation, in pixels."""
    height: int
    rotation: int
    """Degrees counterclockwise by which decoded frames are turned to be upright: 0, 90, 180 or 270."""
    pts: np.ndarray = field(repr=False)
    """[n] int64, the presentation time of every frame in ticks, increasing."""
    time_base: Fraction
    """Seconds per tick."""
    duration: Fraction
    """Seconds from the first frame to the end of the last."""
    irregular: str = ""
    """What makes its keyframes bad places to start decoding from, if anything."""

    @property
    def seconds(self) -> np.ndarray:
        """[n] float64, the presentation time of every frame, from the first frame on."""
        return (self.pts - self.pts[0]) * float(self.time_base)

    def frames_at(self, times: Sequence[Fraction]) -> np.ndarray:
        """[len(times)] int64, the index of the frame that is on show at each time (seconds from the first frame)."""
        ticks = [int(self.pts[0]) + math.floor((time + _ROUNDING) / self.time_base) for time in times]
        return np.maximum(np.searchsorted(self.pts, ticks, side="right") - 1, 0)

    def sample(self, *, fps: float, min_frames: int, max_frames: int) -> list[Fraction]:
        """The times at which to look, evenly spaced: `fps` a second, or as many as fit min_frames .. max_frames.

        A video with a single frame is looked at once.
        """
        rate = Fraction(str(fps))
        if rate <= 0 or not 1 <= min_frames <= max_frames:
            raise ValueError(
                f"fps must be positive and 1 <= min_frames <= max_frames, got {fps=}, {min_frames=}, {max_frames=}"
            )
        wanted = math.ceil(self.duration * rate)
        count = 1 if len(self.pts) == 1 else min(max(wanted, min_frames), max_frames)
        step = 1 / rate if count == wanted else self.duration / count
        return [k * step for k in range(count)]

    def decode(self, indices: Sequence[int] | np.ndarray, *, backend: Backend = "auto") -> Frames:
        """The frames at these indices, which must not decrease.

        Args:
            backend: "decord" or "pyav", or "auto": decord if it is installed, knows the codec, and agrees with the
                packets on the number of frames and on their times; PyAV otherwise.

        Raises:
            MediaError: a frame cannot be decoded, or the backend that was asked for cannot be trusted with this file.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if isinstance(self.source, np.ndarray):
            return Frames("array", "given as an array", iter(self.source[wanted]))
        if backend not in ("auto", "decord", "pyav"):
            raise ValueError(f"backend must be 'auto', 'decord' or 'pyav', got {backend!r}")
        reader, doubt = (None, "asked for") if backend == "pyav" else _open_decord(self)
        if reader is not None:
            reason = "agrees with the packets on every frame's time"
            return Frames("decord", reason, _decord_frames(self, reader, wanted))
        if backend == "decord":
            raise MediaError(f"{self.name}: decord cannot be trusted with it: {doubt}; use backend='auto' or 'pyav'")
        return Frames("pyav", doubt, _pyav_frames(self, wanted))


@dataclass(frozen=True, eq=False)
class Frames:
    """Decoded frames, one after the other, and who decoded them."""

    backend: str
    reason: str
    """Why this backend."""
    frames: Iterator[np.ndarray] = field(repr=False)
    """uint8 [H, W, 3] each, upright."""


def open_video(source: Any, *, fps: float | None = None, limits: Limits | None = None) -> Video:
    """Probes a video.

    Args:
        source: path, bytes, binary file object, or uint8 array of frames [T, H, W, 3].
        fps: frames a second, for an array of frames; a file has its own clock.
        limits: the largest video to open.

    Raises:
        MediaError: missing, damaged, without video or without times, or over a limit.
    """
    limits, name = limits or Limits(), source_name(source)
    if isinstance(source, np.ndarray):
        video = _from_array(source, fps)
    elif fps is not None:
        raise ValueError(f"fps={fps} is for arrays of frames; a file has its own clock (sample it with Processor(fps=...))")
    else:
        source = source.read() if hasattr(source, "read") else source
        video = _probe(source, name)
    pixels = video.width * video.height
    if pixels > limits.max_image_pixels:
        raise MediaError(
            f"{video.name} has frames of {video.width} x {video.height} = {pixels / 1e6:.1f} million pixels, the limit is "
            f"{limits.max_image_pixels / 1e6:g} million; raise it with Limits(max_image_pixels=...)"
        )
    if video.duration > limits.max_video_seconds:
        raise MediaError(
            f"{video.name} lasts {float(video.duration):.0f} s, the limit is {limits.max_video_seconds:g}; "
            "cut it or raise it with Limits(max_video_seconds=...)"
        )
    return video


def _from_array(frames: np.ndarray, fps: float | None) -> Video:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise MediaError(f"an array of frames must be uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    if fps is None or not (math.isfinite(fps) and fps > 0):
        raise MediaError(f"an array of frames has no clock: say its frames a second, fps=, as a positive number (got {fps!r})")
    count, height, width, _ = frames.shape
    tick = 1 / Fraction(str(fps))
    return Video(frames, "array of frames", "array", "raw", width, height, 0, np.arange(count), tick, count * tick)


# --- probing ----------------------------------------------------------------------------------------------------------


def _file(source: Any) -> Any:
    return io.BytesIO(source) if isinstance(source, bytes) else str(source)


def _video_stream(container: Any, name: str) -> Any:
    for stream in container.streams.video:
        if not stream.disposition & stream.disposition.attached_pic:  # cover art is no video
            return stream
    raise MediaError(f"{name} has no video stream (only {', '.join(s.type for s in container.streams) or 'nothing'})")


def _probe(source: Any, name: str) -> Video:
    try:
        with av.open(_file(source)) as container:
            stream = _video_stream(container, name)
            form, codec = container.format.name, stream.codec.canonical_name
            rate, time_base = stream.average_rate, stream.time_base
            stamps, last_duration, irregular = _stamps(container, stream, name)
        with av.open(_file(source)) as container:
            first = next(container.decode(_video_stream(container, name)), None)
    except FileNotFoundError:
        raise MediaError(f"{name}: no such file") from None
    except (av.error.FFmpegError, UnicodeError) as error:
        raise MediaError(f"{name} cannot be read as a video: {error}") from error
    if first is None:
        raise MediaError(f"{name}: no frame of its {len(stamps)} packets can be decoded; is the file damaged?")
    rotation = round(first.rotation) % 360
    if rotation not in (0, 90, 180, 270):
        raise MediaError(f"{name} is rotated by {rotation} degrees; only quarter turns are known: re-encode it upright")
    size = (first.width, first.height) if rotation in (0, 180) else (first.height, first.width)
    last_duration = last_duration or (round(1 / rate / time_base) if rate else 0)
    duration = (stamps[-1] - stamps[0] + last_duration) * time_base
    if first.pts != stamps[0]:
        irregular = "the film starts between keyframes"
    pts = np.array(stamps, dtype=np.int64)
    return Video(source, name, form, codec, *size, rotation, pts, time_base, duration, irregular)


def _stamps(container: Any, stream: Any, name: str) -> tuple[list[int], int, str]:
    """The presentation times of all frames, sorted, and the duration of the last, in ticks: read from the packets; and what
    is irregular about the keyframes.

    Packets that an edit list cuts off are marked discard and are not shown.
    """
    shown: dict[int, int] = {}
    keyframe, irregular = None, ""
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        if packet.pts is None:
            raise MediaError(
                f"{name} ({container.format.name}) does not say when its frames are shown; convert it to mp4 or mkv"
            )
        shown[packet.pts] = packet.duration or 0
        if packet.is_keyframe:
            keyframe = packet.pts
        elif keyframe is not None and packet.pts < keyframe:
            irregular = "some frames follow a keyframe but are shown before it (open groups of pictures)"
    if not shown:
        raise MediaError(f"{name} has a video stream without packets; is the file cut off?")
    stamps = sorted(shown)
    return stamps, shown[stamps[-1]], irregular


# --- decoding ---------------------------------------------------------------------------------------------------------


def _upright(frame: np.ndarray, rotation: int) -> np.ndarray:
    return np.rot90(frame, k=rotation // 90) if rotation else frame


def _pyav_frames(video: Video, wanted: np.ndarray) -> Iterator[np.ndarray]:
    """The frames with these indices, decoded in order up to the last of them."""
    pending = list(video.pts[wanted])
    shape = (video.height, video.width, 3)
    try:
        with av.open(_file(video.source)) as container:
            # no frame threads: when a damaged file makes one of them log while the decoder is freed, each waits for the
            # other (the log callback for the GIL, the decoder for its threads); seen with PyAV 15.1
            for frame in container.decode(_video_stream(container, video.name)):
                if not pending:
                    return
                if frame.pts != pending[0]:
                    continue
                image = _upright(frame.to_ndarray(format="rgb24"), video.rotation)
                if image.shape != shape:
                    raise MediaError(
                        f"{video.name} changes its size from {shape[:2]} to {image.shape[:2]} at {frame.time:.3f} s; "
                        "re-encode it to one size"
                    )
                while pending and pending[0] == frame.pts:
                    pending.pop(0)
                    yield image
    except av.error.FFmpegError as error:
        raise MediaError(f"{video.name} is damaged: {error}") from error
    if pending:
        lost = float((int(pending[0]) - int(video.pts[0])) * video.time_base)
        raise MediaError(
            f"{video.name}: the frame at {lost:.3f} s cannot be decoded "
            f"({len(pending)} of {len(wanted)} frames are missing); is the file damaged?"
        )


def _open_decord(video: Video) -> tuple[Any, str]:
    """A decord reader for this video, or None and what speaks against it."""
    try:
        import decord
    except ImportError as error:
        return None, f"decord is not installed ({error})"
    if video.container not in _DECORD_CONTAINERS or video.codec not in _DECORD_CODECS:
        return None, f"decord is not known to decode {video.codec} in {video.container} rightly"
    if video.irregular:
        return None, f"{video.irregular}, where decord returns other frames"
    try:
        # fault_tol: decord otherwise repeats stale frames in place of those it cannot decode, without a word
        reader = decord.VideoReader(_file(video.source), ctx=decord.cpu(0), num_threads=1, fault_tol=1)
        stamps = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].astype(np.float64)
        height, width = reader[0].shape[:2]
    except _decord_errors() as error:
        return None, f"decord cannot open it: {str(error).splitlines()[0][:120]}"
    if len(stamps) != len(video.pts):
        return None, f"decord counts {len(stamps)} frames, the packets {len(video.pts)}"
    apart = float(np.abs(stamps - stamps[0] - video.seconds).max())
    if apart > _MAX_DISAGREEMENT:
        return None, f"decord's frame times are up to {apart:.3f} s off"
    if (height, width) != (video.height, video.width):
        return None, f"decord sees frames of {width} x {height}, not {video.width} x {video.height}"
    return reader, ""


def _decord_errors() -> tuple[type[Exception], ...]:
    """What decord raises: its errors derive from RuntimeError in some builds, and straight from Exception in others."""
    import decord

    return RuntimeError, decord.DECORDError, decord.DECORDLimitReachedError


def _decord_frames(video: Video, reader: Any, wanted: np.ndarray, chunk: int = 16) -> Iterator[np.ndarray]:
    """The frames with these indices, a few at a time: memory does not grow with their number."""
    for begin in range(0, len(wanted), chunk):
        try:
            yield from reader.get_batch(wanted[begin : begin + chunk]).asnumpy()
        except _decord_errors() as error:
            raise MediaError(f"{video.name} is damaged: decord says {str(error).splitlines()[0][:200]}") from error
