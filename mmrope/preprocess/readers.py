"""Frames out of video files: by PyAV, and by decord or torchcodec where they can be trusted.

Every reader is a generator of upright frames [H, W, 3] uint8 with the given indices, one at a time: memory does not grow with
the length of the video.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import av.error
import numpy as np
from av.video.frame import PictureType
from PIL import Image

from mmrope.preprocess import hdr
from mmrope.preprocess.errors import MediaError
from mmrope.preprocess.probe import (
    UPRIGHT,
    Clock,
    Turn,
    decoder_of,
    frames_in_order,
    is_transparent,
    open_container,
    packets_of,
    video_stream,
)


@dataclass(frozen=True, eq=False)
class Source:
    """A video whose clock is known."""

    source: Any = field(repr=False)
    """An absolute path, bytes, an array of frames [T, H, W, 3] with its white, a list of images, or an animation's file."""
    name: str
    clock: Clock
    """When each frame is shown, and what else is known before one is decoded."""
    background: tuple[int, int, int] = (255, 255, 255)
    """What shows through transparent pixels, RGB."""
    color: Literal["stored", "srgb"] = "stored"
    """Frames of a high dynamic range as they are stored, or as sRGB."""


# --- PyAV -------------------------------------------------------------------------------------------------------------

_WORTH_A_SEEK = 8
"""Frames to be skipped from which on a jump to the next keyframe is quicker than decoding on: a decoder holds back, and loses
at a jump, up to this many."""
_SKIPPING_IS_EXACT = ("h264", "mpeg4", "mpeg2video", "mpeg1video")
"""Codecs whose frames that no other frame refers to can be left undecoded (found bit-identical); and HEVC with one layer."""


def pyav_frames(file: Source, wanted: np.ndarray) -> Iterator[np.ndarray]:
    """By PyAV: from keyframe to keyframe where that saves decoding, in order where the keyframes cannot be trusted, and by
    counting where packets do not say when frames are shown."""
    return (_image(file, frame) for frame in decoded(file, wanted))


def decoded(file: Source, wanted: np.ndarray) -> Iterator[Any]:
    """PyAV's frames, as the decoder gives them."""
    if file.clock.counted:
        yield from _by_count(file, wanted)
        return
    done = 0
    try:
        for frame in by_time(file, wanted, by_keyframes=True):
            yield frame
            done += 1
    except _NoKeyframe:
        yield from by_time(file, wanted[done:], by_keyframes=False)


def _by_count(file: Source, wanted: np.ndarray) -> Iterator[Any]:
    """From the first frame on, each by the number of those before it."""
    pending, clock = wanted.tolist()[::-1], file.clock
    try:
        with open_container(file.source, clock.width * clock.height) as container:
            frames = frames_in_order(container, video_stream(container, file.name), [] if clock.tolerant else None)
            for index, frame in enumerate(frames):
                while pending and pending[-1] == index:
                    pending.pop()
                    yield frame
                if not pending:
                    return
    except av.error.FFmpegError as error:
        raise MediaError(f"{file.name} is damaged: {error}") from error
    if pending:
        raise MediaError(f"{file.name} has changed since it was probed: frame {pending[-1]} is missing")


class _NoKeyframe(Exception):
    """Where a keyframe should be, there is another frame."""


def by_time(file: Source, wanted: np.ndarray, *, by_keyframes: bool) -> Iterator[Any]:
    """Each by the time that its packet states; with jumps to keyframes, or in order."""
    name, clock = file.name, file.clock
    pending = [int(pts) for pts in clock.pts[wanted]][::-1]
    needed = set(pending)
    position, landing = -1, None  # the last frame that came out, as an index; the keyframe that must come out first
    try:
        with open_container(file.source, clock.width * clock.height) as container:
            # no frame threads: when a damaged file makes one of them log while the decoder is freed, each waits for the
            # other (the log callback for the GIL, the decoder for its threads); seen with PyAV 15.1
            stream = video_stream(container, name)
            decoder = decoder_of(stream)
            by_keyframes = by_keyframes and decoder is stream.codec_context  # a jump flushes that one alone
            skipping = by_keyframes and _skipping_is_exact(clock, stream)
            while pending:
                if by_keyframes and (key := _keyframe_ahead(clock, pending[-1], position)) is not None:
                    if position < 0:
                        _prime(container, stream)
                    # MPEG-TS has no index: what is found there lies near the time, and may lie behind it
                    early = round(1 / clock.time_base) if clock.container == "mpegts" else 0
                    container.seek(key - early, stream=stream)
                    landing = key
                frames = (
                    _from_keyframe(container, stream, landing, needed if skipping else None)
                    if by_keyframes
                    else frames_in_order(container, stream)
                )
                for frame in frames:
                    pts = frame.pts
                    if pts is None:
                        continue
                    if landing is not None:
                        if pts < landing:
                            continue  # of an open group of pictures: it refers to frames before the keyframe
                        # another frame, or one that gets refreshed step by step, is no place to start from
                        if pts > landing or not (frame.key_frame and frame.pict_type == PictureType.I):
                            raise _NoKeyframe
                        landing = None
                    if pts == pending[-1]:
                        if frame.is_corrupt and by_keyframes:
                            raise _NoKeyframe
                        if frame.is_corrupt:
                            lost = _seconds(clock, pts)
                            raise MediaError(
                                f"{name} is damaged: what is left of the frame at {lost:.3f} s is in part a guess{_LEFT}"
                            )
                        while pending and pending[-1] == pts:
                            pending.pop()
                            yield frame
                        position = int(np.searchsorted(clock.pts, pts))
                        if not pending or (by_keyframes and _keyframe_ahead(clock, pending[-1], position) is not None):
                            break
                else:
                    break  # of packets there are no more
    except av.error.FFmpegError as error:
        if by_keyframes:
            raise _NoKeyframe from error
        raise MediaError(f"{name} is damaged: {error}{_LEFT}") from error
    if pending:
        if by_keyframes:
            raise _NoKeyframe
        raise MediaError(
            f"{name}: the frame at {_seconds(clock, pending[-1]):.3f} s cannot be decoded "
            f"({len(pending)} of {len(wanted)} frames are missing); is the file damaged?{_LEFT}"
        )


def _prime(container: Any, stream: Any) -> None:
    """Shows the decoder the first packet, before a jump over it: some streams say there alone how all must be decoded (x264
    before build 151, whose 4:4:4 is not as the standard has it, which version it is)."""
    stream.codec_context.decode(next(packets_of(container, stream)))


_LEFT = "; what is left is taken with damaged='keep'"


def _seconds(clock: Clock, pts: int) -> float:
    return float((pts - int(clock.pts[0])) * clock.time_base)


def _keyframe_ahead(clock: Clock, pts: int, position: int) -> int | None:
    """The last keyframe up to the frame at `pts`, if it is worth to jump there from frame `position`."""
    key = int(np.searchsorted(clock.keyframes, pts, side="right")) - 1
    if key < 1:  # the first keyframe is where decoding starts by itself
        return None
    ahead = int(np.searchsorted(clock.pts, clock.keyframes[key])) - position
    return int(clock.keyframes[key]) if ahead > _WORTH_A_SEEK else None


def _skipping_is_exact(clock: Clock, stream: Any) -> bool:
    """Whether frames that say that no other refers to them may be left undecoded."""
    if clock.codec == "hevc":  # they mean their own temporal layer, so there must be only one (hvcC, ISO/IEC 14496-15)
        extra = stream.codec_context.extradata or b""
        return len(extra) > 21 and extra[0] == 1 and extra[21] >> 3 & 7 == 1
    return clock.codec in _SKIPPING_IS_EXACT


def _from_keyframe(container: Any, stream: Any, landing: int | None, needed: set[int] | None) -> Iterator[Any]:
    """Decoded frames from where the container stands, or from the keyframe `landing` on, which comes; with `needed`, frames
    that are neither needed nor referred to by others are left out."""
    context = stream.codec_context
    for packet in packets_of(container, stream):
        if landing is not None:
            if packet.pts != landing:
                if packet.is_keyframe and packet.pts is not None and packet.pts > landing:
                    raise _NoKeyframe
                continue
            landing = None
        if needed is not None:
            context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in needed else "NONREF"
        yield from packet.decode()


# --- pixels -----------------------------------------------------------------------------------------------------------


def _image(file: Source, frame: Any) -> np.ndarray:
    """[H, W, 3] uint8, upright, transparent pixels on the background."""
    clock = file.clock
    if file.color == "srgb" and clock.transfer in (hdr.PQ, hdr.HLG):
        image = hdr.to_srgb(frame.to_ndarray(format="rgb48le", src_colorspace=frame.colorspace), clock.transfer)
    elif is_transparent(frame):
        image = _on_background(frame.to_ndarray(format="rgba"), file.background)
    else:
        image = frame.to_ndarray(format="rgb24")
    if clock.turn != UPRIGHT:
        image = np.ascontiguousarray(_turned(image, clock.turn))
    if image.shape != (clock.height, clock.width, 3):
        raise MediaError(
            f"{file.name} changes its size from {clock.width} x {clock.height} to {image.shape[1]} x {image.shape[0]} "
            f"at {frame.time or 0:.3f} s; re-encode it to one size"
        )
    return image


def _on_background(rgba: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """[H, W, 4] to [H, W, 3], as animations are laid on it."""
    if rgba[..., 3].min(initial=255) == 255:
        return np.ascontiguousarray(rgba[..., :3])
    canvas = Image.new("RGBA", rgba.shape[1::-1], (*background, 255))
    return np.array(Image.alpha_composite(canvas, Image.fromarray(rgba)).convert("RGB"))


def _turned(image: np.ndarray, turn: Turn) -> np.ndarray:
    a, b, c, d = turn
    if not a:
        image = image.swapaxes(0, 1)  # [W, H, 3]
    return image[:: b + d, :: a + c]


# --- decord and torchcodec --------------------------------------------------------------------------------------------

# Where decord's frames were found to be PyAV's, bit for bit, whatever the keyframes. Elsewhere it returns other frames under
# right times and without a word: all of MPEG-TS, and MPEG-4 part 2 with B-frames; its FFmpeg 4 lacks AV1.
_DECORD_CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
_DECORD_CODECS = {"h264", "hevc", "vp8", "vp9"}
_MAX_DISAGREEMENT = 1e-3  # seconds between a reader's time of a frame and the packet's
_CHUNK = 16  # frames that are held at once


def decord_frames(file: Source, wanted: np.ndarray) -> Iterator[np.ndarray]:
    """By decord, if what it says about the video agrees with the packets; raises MediaError with the reason if not."""
    reader = _open_decord(file)

    def chunks() -> Iterator[np.ndarray]:
        for begin in range(0, len(wanted), _CHUNK):
            try:
                yield from reader.get_batch(wanted[begin : begin + _CHUNK]).asnumpy()
            except _decord_errors() as error:
                raise MediaError(f"{file.name} is damaged: decord says {str(error).splitlines()[0][:200]}") from error

    return chunks()


def _open_decord(file: Source) -> Any:
    try:
        import decord
    except ImportError as error:
        raise _distrust(file, "decord", f"it is not installed ({error})") from error
    if file.clock.container not in _DECORD_CONTAINERS or file.clock.codec not in _DECORD_CODECS:
        raise _distrust(file, "decord", f"it is not known to decode {file.clock.codec} in {file.clock.container} rightly")
    _check_kind(file, "decord")
    if file.clock.irregular:
        raise _distrust(file, "decord", f"{file.clock.irregular}, where it returns other frames")
    try:
        # fault_tol: decord otherwise repeats stale frames in place of those it cannot decode, without a word
        source = io.BytesIO(file.source) if isinstance(file.source, bytes) else str(file.source)
        reader = decord.VideoReader(source, ctx=decord.cpu(0), num_threads=1, fault_tol=1)
        stamps = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].astype(np.float64)
        height, width = reader[0].shape[:2]
    except _decord_errors() as error:
        raise _distrust(file, "decord", f"it cannot open the file: {str(error).splitlines()[0][:120]}") from error
    if len(stamps) != len(file.clock.pts):
        raise _distrust(file, "decord", f"it counts {len(stamps)} frames, the packets {len(file.clock.pts)}")
    _check_frame(file, "decord", float(np.abs(stamps - stamps[0] - file.clock.seconds).max()), (height, width))
    return reader


def _decord_errors() -> tuple[type[Exception], ...]:
    """What decord raises: its errors derive from RuntimeError in some builds, and straight from Exception in others."""
    import decord

    return RuntimeError, decord.DECORDError, decord.DECORDLimitReachedError


def torchcodec_frames(file: Source, wanted: np.ndarray) -> Iterator[np.ndarray]:
    """By torchcodec, if it works here and agrees with the packets; raises MediaError with the reason if not."""
    try:
        # importing passes without FFmpeg's shared libraries; only making a decoder tells
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

        decoder = VideoDecoder(file.source, dimension_order="NHWC", seek_mode="exact", num_ffmpeg_threads=1)
        start = decoder.get_frame_at(0).pts_seconds
    except (ImportError, RuntimeError, OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
        raise _distrust(file, "torchcodec", f"it does not work here: {reason}") from error
    _check_kind(file, "torchcodec")
    if len(decoder) != len(file.clock.pts):
        raise _distrust(file, "torchcodec", f"it counts {len(decoder)} frames, the packets {len(file.clock.pts)}")

    def one_by_one() -> Iterator[np.ndarray]:
        for index in wanted:
            try:
                frame = decoder.get_frame_at(int(index))
            except (RuntimeError, IndexError) as error:
                raise MediaError(f"{file.name} is damaged: torchcodec says {str(error).splitlines()[0][:200]}") from error
            _check_frame(file, "torchcodec", frame.pts_seconds - start - file.clock.seconds[index], frame.data.shape[:2])
            yield frame.data.numpy()

    return one_by_one()


def _check_kind(file: Source, reader: str) -> None:
    if file.clock.counted:
        raise _distrust(file, reader, f"{file.clock.counted}, where it returns other frames")
    if file.clock.transparent or file.color != "stored":
        raise _distrust(file, reader, "it knows neither transparency nor color='srgb'")


def _check_frame(file: Source, reader: str, apart: float, size: tuple[int, ...]) -> None:
    if abs(apart) > _MAX_DISAGREEMENT:
        raise _distrust(file, reader, f"its frame times are up to {abs(apart):.3f} s off")
    if tuple(size) != (file.clock.height, file.clock.width):
        raise _distrust(file, reader, f"it sees frames of {size[1]} x {size[0]}, not {file.clock.width} x {file.clock.height}")


def _distrust(file: Source, reader: str, reason: str) -> MediaError:
    return MediaError(f"{file.name}: {reader} cannot be trusted with it: {reason}; use backend='auto' or 'pyav'")
