"""Frames out of video files: by PyAV, and by decord or torchcodec where they can be trusted.

Every reader is a generator of upright frames [H, W, 3] uint8 with the given indices, one at a time: memory does not grow with
the length of the video.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import av.error
import numpy as np
from av.video.frame import PictureType

from mmrope.preprocess.errors import MediaError
from mmrope.preprocess.probe import UPRIGHT, Probed, Turn, open_container, video_stream

# --- PyAV -------------------------------------------------------------------------------------------------------------

_WORTH_A_SEEK = 8
"""Frames to be skipped from which on a jump to the next keyframe is quicker than decoding on: a decoder holds back, and loses
at a jump, up to this many."""
_SKIPPING_IS_EXACT = ("h264", "mpeg4", "mpeg2video", "mpeg1video")
"""Codecs whose frames that no other frame refers to can be left undecoded (found bit-identical); and HEVC with one layer."""
_READ_IN_ORDER = ("mpeg",)
"""Containers that store the times of some frames alone; what FFmpeg makes of the others depends on where it began to read."""


def pyav_frames(video: Probed, wanted: np.ndarray) -> Iterator[np.ndarray]:
    """By PyAV: from keyframe to keyframe where that saves decoding, in order where the keyframes cannot be trusted."""
    done = 0
    try:
        for image in _frames(video, wanted, by_keyframes=video.container not in _READ_IN_ORDER):
            yield image
            done += 1
    except _NoKeyframe:
        yield from _frames(video, wanted[done:], by_keyframes=False)


class _NoKeyframe(Exception):
    """Where a keyframe should be, there is another frame."""


def _frames(video: Probed, wanted: np.ndarray, *, by_keyframes: bool) -> Iterator[np.ndarray]:
    pending = [int(pts) for pts in video.pts[wanted]][::-1]
    needed = set(pending)
    position, landing = -1, None  # the last frame that came out, as an index; the keyframe that must come out first
    try:
        with open_container(video.source, video.width * video.height) as container:
            # no frame threads: when a damaged file makes one of them log while the decoder is freed, each waits for the
            # other (the log callback for the GIL, the decoder for its threads); seen with PyAV 15.1
            stream = video_stream(container, video.name)
            skipping = by_keyframes and _skipping_is_exact(video, stream)
            while pending:
                if by_keyframes and (key := _keyframe_ahead(video, pending[-1], position)) is not None:
                    # MPEG-TS has no index: what is found there lies near the time, and may lie behind it
                    early = round(1 / video.time_base) if video.container == "mpegts" else 0
                    container.seek(key - early, stream=stream)
                    landing = key
                for frame in _decoded(container, stream, landing, needed if skipping else None):
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
                            lost = _seconds(video, pts)
                            raise MediaError(
                                f"{video.name} is damaged: what is left of the frame at {lost:.3f} s is in part a guess"
                            )
                        image = _image(video, frame)
                        while pending and pending[-1] == pts:
                            pending.pop()
                            yield image
                        position = int(np.searchsorted(video.pts, pts))
                        if not pending or (by_keyframes and _keyframe_ahead(video, pending[-1], position) is not None):
                            break
                else:
                    break  # of packets there are no more
    except av.error.FFmpegError as error:
        if by_keyframes:
            raise _NoKeyframe from error
        raise MediaError(f"{video.name} is damaged: {error}") from error
    if pending:
        if by_keyframes:
            raise _NoKeyframe
        raise MediaError(
            f"{video.name}: the frame at {_seconds(video, pending[-1]):.3f} s cannot be decoded "
            f"({len(pending)} of {len(wanted)} frames are missing); is the file damaged?"
        )


def _seconds(video: Probed, pts: int) -> float:
    return float((pts - int(video.pts[0])) * video.time_base)


def _keyframe_ahead(video: Probed, pts: int, position: int) -> int | None:
    """The last keyframe up to the frame at `pts`, if it is worth to jump there from frame `position`."""
    key = int(np.searchsorted(video.keyframes, pts, side="right")) - 1
    if key < 1:  # the first keyframe is where decoding starts by itself
        return None
    ahead = int(np.searchsorted(video.pts, video.keyframes[key])) - position
    return int(video.keyframes[key]) if ahead > _WORTH_A_SEEK else None


def _skipping_is_exact(video: Probed, stream: Any) -> bool:
    """Whether frames that say that no other refers to them may be left undecoded."""
    if video.codec == "hevc":  # they mean their own temporal layer, so there must be only one (hvcC, ISO/IEC 14496-15)
        extra = stream.codec_context.extradata or b""
        return len(extra) > 21 and extra[0] == 1 and extra[21] >> 3 & 7 == 1
    return video.codec in _SKIPPING_IS_EXACT


def _decoded(container: Any, stream: Any, landing: int | None, needed: set[int] | None) -> Iterator[Any]:
    """Decoded frames from where the container stands, or from the keyframe `landing` on, which comes; with `needed`, frames
    that are neither needed nor referred to by others are left out."""
    context = stream.codec_context
    for packet in container.demux(stream):
        if landing is not None:
            if packet.pts != landing:
                if packet.is_keyframe and packet.pts is not None and packet.pts > landing:
                    raise _NoKeyframe
                continue
            landing = None
        if needed is not None:
            context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in needed else "NONREF"
        yield from packet.decode()


def _turned(image: np.ndarray, turn: Turn) -> np.ndarray:
    a, b, c, d = turn
    if not a:
        image = image.swapaxes(0, 1)  # [W, H, 3]
    return image[:: b + d, :: a + c]


def _image(video: Probed, frame: Any) -> np.ndarray:
    image = frame.to_ndarray(format="rgb24")
    if video.turn != UPRIGHT:
        image = np.ascontiguousarray(_turned(image, video.turn))
    if image.shape != (video.height, video.width, 3):
        raise MediaError(
            f"{video.name} changes its size from {video.width} x {video.height} to {image.shape[1]} x {image.shape[0]} "
            f"at {frame.time:.3f} s; re-encode it to one size"
        )
    return image


# --- decord and torchcodec --------------------------------------------------------------------------------------------

# Where decord's frames were found to be PyAV's, bit for bit, whatever the keyframes. Elsewhere it returns other frames under
# right times and without a word: all of MPEG-TS, and MPEG-4 part 2 with B-frames; its FFmpeg 4 lacks AV1.
_DECORD_CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
_DECORD_CODECS = {"h264", "hevc", "vp8", "vp9"}
_MAX_DISAGREEMENT = 1e-3  # seconds between a reader's time of a frame and the packet's
_CHUNK = 16  # frames that are held at once


def decord_frames(video: Probed, wanted: np.ndarray) -> Iterator[np.ndarray]:
    """By decord, if what it says about the video agrees with the packets; raises MediaError with the reason if not."""
    reader = _open_decord(video)

    def chunks() -> Iterator[np.ndarray]:
        for begin in range(0, len(wanted), _CHUNK):
            try:
                yield from reader.get_batch(wanted[begin : begin + _CHUNK]).asnumpy()
            except _decord_errors() as error:
                raise MediaError(f"{video.name} is damaged: decord says {str(error).splitlines()[0][:200]}") from error

    return chunks()


def _open_decord(video: Probed) -> Any:
    try:
        import decord
    except ImportError as error:
        raise _distrust(video, "decord", f"it is not installed ({error})") from error
    if video.container not in _DECORD_CONTAINERS or video.codec not in _DECORD_CODECS:
        raise _distrust(video, "decord", f"it is not known to decode {video.codec} in {video.container} rightly")
    if video.irregular:
        raise _distrust(video, "decord", f"{video.irregular}, where it returns other frames")
    try:
        # fault_tol: decord otherwise repeats stale frames in place of those it cannot decode, without a word
        source = io.BytesIO(video.source) if isinstance(video.source, bytes) else str(video.source)
        reader = decord.VideoReader(source, ctx=decord.cpu(0), num_threads=1, fault_tol=1)
        stamps = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].astype(np.float64)
        height, width = reader[0].shape[:2]
    except _decord_errors() as error:
        raise _distrust(video, "decord", f"it cannot open the file: {str(error).splitlines()[0][:120]}") from error
    if len(stamps) != len(video.pts):
        raise _distrust(video, "decord", f"it counts {len(stamps)} frames, the packets {len(video.pts)}")
    _check_frame(video, "decord", float(np.abs(stamps - stamps[0] - video.seconds).max()), (height, width))
    return reader


def _decord_errors() -> tuple[type[Exception], ...]:
    """What decord raises: its errors derive from RuntimeError in some builds, and straight from Exception in others."""
    import decord

    return RuntimeError, decord.DECORDError, decord.DECORDLimitReachedError


def torchcodec_frames(video: Probed, wanted: np.ndarray) -> Iterator[np.ndarray]:
    """By torchcodec, if it works here and agrees with the packets; raises MediaError with the reason if not."""
    try:
        # importing passes without FFmpeg's shared libraries; only making a decoder tells
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

        decoder = VideoDecoder(video.source, dimension_order="NHWC", seek_mode="exact", num_ffmpeg_threads=1)
        start = decoder.get_frame_at(0).pts_seconds
    except (ImportError, RuntimeError, OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
        raise _distrust(video, "torchcodec", f"it does not work here: {reason}") from error
    if len(decoder) != len(video.pts):
        raise _distrust(video, "torchcodec", f"it counts {len(decoder)} frames, the packets {len(video.pts)}")

    def one_by_one() -> Iterator[np.ndarray]:
        for index in wanted:
            try:
                frame = decoder.get_frame_at(int(index))
            except (RuntimeError, IndexError) as error:
                raise MediaError(f"{video.name} is damaged: torchcodec says {str(error).splitlines()[0][:200]}") from error
            _check_frame(video, "torchcodec", frame.pts_seconds - start - video.seconds[index], frame.data.shape[:2])
            yield frame.data.numpy()

    return one_by_one()


def _check_frame(video: Probed, reader: str, apart: float, size: tuple[int, ...]) -> None:
    if abs(apart) > _MAX_DISAGREEMENT:
        raise _distrust(video, reader, f"its frame times are up to {abs(apart):.3f} s off")
    if tuple(size) != (video.height, video.width):
        raise _distrust(video, reader, f"it sees frames of {size[1]} x {size[0]}, not {video.width} x {video.height}")


def _distrust(video: Probed, reader: str, reason: str) -> MediaError:
    return MediaError(f"{video.name}: {reader} cannot be trusted with it: {reason}; use backend='auto' or 'pyav'")
