"""A video's clock: when each of its frames is shown, exactly.

Where a container stores that for every frame, its packets are read and nothing is decoded. Where it does not (AVI, program
streams, what was joined or recorded without times), or a codec may keep it to itself, the film is decoded once and its frames
are counted: a packet's time is not a frame's.
"""

from __future__ import annotations

import io
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Real
from typing import Any, Literal

import av
import av.error
import av.stream
import numpy as np
from av.sidedata.sidedata import Type as SideData

from mmrope.preprocess.ends import missing_bytes
from mmrope.preprocess.errors import Limits, MediaError

Damaged = Literal["refuse", "keep"]

CONTAINERS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mxf", "yuv4mpegpipe"),
    *("h264", "hevc", "m4v", "mpegvideo"),
)
"""FFmpeg's names of the container formats that are opened. Playlists and image sequences, which open other files and URLs in
their turn, are not among them."""
WITHOUT_CLOCK = ("h264", "hevc", "m4v", "mpegvideo")
"""Streams of a codec alone: they state no times."""
CODECS = (
    "h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "prores", "theora", "h263", "flv1",
    "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2", "wmv3", "vc1", "ffv1", "dnxhd", "png", "rawvideo", "qtrle", "gif", "dvvideo",
    "cfhd", "huffyuv", "ffvhuff",
)  # fmt: skip
"""FFmpeg's names of the codecs that are decoded: the rest of its decoders see no strangers' bytes."""
_IN_ORDER = (
    "mjpeg", "prores", "h263", "flv1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2", "ffv1", "dnxhd", "png", "rawvideo", "qtrle",
    "gif", "dvvideo", "cfhd", "huffyuv", "ffvhuff",
)  # fmt: skip
"""Codecs whose frames are stored in the order in which they are shown, one a packet."""
_ONE_FRAME_A_PACKET = (*_IN_ORDER, "h264", "hevc", "av1", "vp8", "vp9", "mpeg2video", "mpeg1video", "theora")
"""The others may have two frames in a packet, or none (MPEG-4 part 2 as DivX and XviD write it, VC-1)."""
_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_STATES_DECODING_ORDER = ("avi", "asf")
"""Containers that state no presentation times: those of decoding, in their order, are those of the frames in theirs."""
_STATES_SOME = ("mpeg", "mxf")
"""Containers that state the times of some frames alone, or of all as they are stored."""
_DECODERS = (*CODECS, "libdav1d", "libvpx", "libvpx-vp9", "libaom-av1")
_JOINED, _JOINED_ELSEWHERE = {"mpegts": Fraction(1, 10), "mpeg": Fraction(1, 10)}, Fraction(1)
"""Seconds that times go back where two films were joined, in streams that are made to be joined and in other containers; by
less, two frames have nearly one time."""
_GAP = Fraction(10)
"""Seconds that times go ahead where two such streams were joined, as the ffmpeg program has it (dts_delta_threshold)."""
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these leave transparency out
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


@dataclass(frozen=True, eq=False, kw_only=True)
class Clock:
    """What is known of a video before a frame is asked for."""

    container: str
    """FFmpeg's name of the container format; "gif", "webp", "png" or "avif" of an animation, "array" or "images"."""
    codec: str = ""
    """FFmpeg's name; empty of an animation."""
    width: int
    """As shown, after rotation, in pixels."""
    height: int
    pts: np.ndarray = field(repr=False)
    """[n] int64, the presentation time of every frame that is shown, in ticks, increasing."""
    time_base: Fraction
    """Seconds per tick."""
    duration: Fraction
    """Seconds from the first frame to the end of the last."""
    turn: Turn = UPRIGHT
    """How decoded frames are turned and mirrored to be upright."""
    stated_rate: Fraction | None = None
    """Frames a second that the container states on average, or that FFmpeg found where it states none."""
    keyframes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    """[k] int64, those of pts where decoding can start; none where frames are counted."""
    irregular: str = ""
    """What makes its keyframes bad places to start decoding from for simpler readers, if anything."""
    counted: str = ""
    """Why its frames are found by counting those that come out of the decoder, if they are."""
    damage: str = ""
    """What is missing of a film of which what is left was taken."""
    tolerant: bool = False
    """Packets that cannot be decoded are left out."""
    pixel_aspect: Fraction = Fraction(1)
    """Width of a pixel by its height, as the upright frame has them."""
    transparent: bool = False
    """Its frames have transparent pixels, or may have."""
    transfer: int = 2
    """What its values mean as light, by ITU-T H.273; 2 where it does not say."""

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
    more: dict[str, Any] = {"options" if PYAV_17_1 else "container_options": options, "metadata_errors": "ignore"}
    container = av.open(file, **more)
    for stream in container.streams.video:
        if stream.codec_context is not None:
            # FFmpeg's decoder of HEVC alone neither says that a frame came out in part nor makes up what is missing: how much
            # that is depends on its threads
            whole = {"err_detect": "explode"} if stream.codec_context.codec.canonical_name == "hevc" else {}
            stream.codec_context.options = limit | whole
    return container


def video_stream(container: Any, name: str) -> Any:
    """The video stream that players show: the one that is marked as the default, or the first; the others are not read."""
    videos = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]  # no cover art
    found = next((s for s in videos if s.disposition & s.disposition.default), videos[0] if videos else None)
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


def decoder_of(stream: Any) -> Any:
    """What decodes a stream: its own decoder, or of WebM with transparency the one that reads it."""
    context, codec = stream.codec_context, stream.codec_context.codec.canonical_name
    alpha = {key.lower(): value for key, value in stream.metadata.items()}.get("alpha_mode")
    if codec not in _WITH_ALPHA or alpha != "1":
        return context
    made = av.CodecContext.create(_WITH_ALPHA[codec], "r")
    made.extradata, made.options, made.thread_count = context.extradata, context.options, 1
    return made


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream, and the one at their end that makes the decoder give what it holds back; without those that say
    that the frame before them stays on show, which decoders do not take."""
    return (packet for packet in container.demux(stream) if packet.size or packet.dts is None)


def frames_in_order(container: Any, stream: Any, lost: list[str] | None = None) -> Iterator[Any]:
    """Every frame that comes out of the decoder, from where the container stands. Packets before the first that cannot be
    decoded are of a group of pictures whose beginning was cut off: players do not show them.

    Args:
        lost: takes what was wrong with later packets that cannot be decoded, and with frames that came out in part, which are
            left out; None to end at the first.
    """
    decoder, came, early = decoder_of(stream), False, None
    packets, flushed, ended = packets_of(container, stream), False, False
    failed = set[int]()  # the times of packets that cannot be decoded: what comes out of them is no frame
    while not ended:
        packet = None
        try:
            packet = next(packets, None)
            ended = packet is None
            if ended and flushed:
                break
            flushed = packet is None or not packet.size  # where reading failed, what the decoder holds back comes out, too
            frames = decoder.decode(packet)
        except av.error.FFmpegError as error:
            if came and lost is None:
                raise
            if came and lost is not None:
                lost.append(str(error))
            early = error
            if packet is not None and packet.pts is not None:
                failed.add(packet.pts)
            continue
        for frame in frames:
            if frame.pts in failed or (early is not None and not came and not frame.key_frame):
                continue  # the latter may have been made from the former
            came = True
            if frame.is_corrupt and lost is not None:
                lost.append("a frame is damaged in part")
                continue
            yield frame
    if early is not None and not came:
        raise early


def read_clock(source: Any, name: str, limits: Limits, *, damaged: Damaged = "refuse", fps: float | None = None) -> Clock:
    """The clock of a file.

    Args:
        source: an absolute path, or bytes.
        damaged: "refuse" a film that is cut off or holds packets that cannot be decoded, or "keep" what is left of it.
        fps: frames a second of a stream of a codec alone, which states no times.

    Raises:
        MediaError: no video, no times, damaged, or over a limit.
    """
    try:
        with open_container(source, limits.max_image_pixels) as container:
            stream = video_stream(container, name)
            check_frame_size(name, stream.codec_context.width, stream.codec_context.height, limits)
            form, codec = container.format.name, stream.codec_context.codec.canonical_name
            if fps is not None and not (isinstance(fps, Real) and math.isfinite(fps) and fps > 0):
                raise MediaError(f"{name}: fps must be a positive number, got {fps!r}")
            if (fps is None) == (form in WITHOUT_CLOCK):
                raise MediaError(
                    f"{name} is {codec} without a container, which states no times: say its frames a second, fps="
                    if fps is None
                    else f"fps={fps} is for arrays of frames and streams without a container; {name} has its own clock"
                )
            if not stream.time_base:
                raise MediaError(f"{name} does not say how long its ticks are; convert it to mp4 or mkv")
            packets = _packets(container, stream, name, limits)
        lacks = missing_bytes(source, form)
        if damaged == "refuse" and (lacks or packets.broken):
            there = packets.seconds(stream.time_base)
            what = f"is cut off: it lacks at least {lacks:,} bytes at its end" if lacks else "is damaged: a packet is not whole"
            raise MediaError(f"{name} {what}; {packets.count} frames, {there:.2f} s, are there: take them with damaged='keep'")
        with open_container(source, limits.max_image_pixels) as container:
            stream = video_stream(container, name)
            if damaged == "keep" or packets.doubt or fps is not None:
                return _counted(container, stream, name, limits, packets, damaged, lacks, fps)
            return _stated(container, stream, name, limits, packets)
    except (av.error.FFmpegError, UnicodeError, OverflowError) as error:
        lacks = missing_bytes(source, _MP4) if isinstance(error, av.error.InvalidDataError) else 0
        cut = f"; it is cut off: it lacks at least {lacks:,} bytes, and its index may be among them" if lacks else ""
        raise MediaError(
            f"{name} cannot be read as a video (known formats: mp4, mov, mkv, webm, avi, ts, mpg, flv, wmv, ogv, mxf, y4m): "
            f"{error}{cut}"
        ) from error


def _stated(container: Any, stream: Any, name: str, limits: Limits, packets: _Packets) -> Clock:
    """The clock of a film whose packets state the times of its frames."""
    first = next(frames_in_order(container, stream), None)
    if first is None:
        raise MediaError(f"{name}: no frame of its {packets.count} packets can be decoded; is the file damaged?")
    pts, keyframes, irregular = packets.pts, packets.keyframes, packets.irregular
    if first.pts is not None and first.pts > pts[0]:
        # those before need frames that were cut off: no player shows them
        irregular = "the film starts between keyframes"
        pts, keyframes = (stamps[stamps >= first.pts] for stamps in (pts, keyframes))
        if not len(pts):
            raise MediaError(f"{name}: its packets and its frames have other times; is the file damaged?")
    duration = (int(pts[-1]) - int(pts[0]) + (packets.last or _frame_ticks(stream))) * stream.time_base
    check_duration(name, duration, limits)
    return Clock(
        container=container.format.name,
        codec=stream.codec_context.codec.canonical_name,
        **_seen(first, stream, name, limits),
        pts=pts,
        time_base=stream.time_base,
        duration=duration,
        keyframes=keyframes,
        irregular=irregular,
    )


def _counted(
    container: Any, stream: Any, name: str, limits: Limits, packets: _Packets, damaged: Damaged, lacks: int, fps: float | None
) -> Clock:
    """The clock of a film that is decoded once: the frames that come out, in their order."""
    lost: list[str] | None = [] if damaged == "keep" else None
    form, tick, first = container.format.name, stream.time_base, None
    back, ahead = _JOINED.get(form, _JOINED_ELSEWHERE), _GAP if form in _JOINED else None
    times = _Times(_frame_ticks(stream) or 1, round(back / tick), None if ahead is None else round(ahead / tick))
    for frame in frames_in_order(container, stream, lost):
        if frame.is_corrupt:
            raise MediaError(
                f"{name} is damaged: frame {len(times.shown)} came out in part; take the others with damaged='keep'"
            )
        first = first or frame
        times.add(None if form in _STATES_DECODING_ORDER else frame.pts, frame.dts, frame.duration)
        check_frame_count(name, len(times.shown), limits)
    if first is None:
        raise MediaError(f"{name}: no frame of its {packets.count} packets can be decoded; is the file damaged?")
    pts, last = np.array(times.shown, dtype=np.int64), times.last
    if fps is not None:
        pts, tick, last = np.arange(len(pts)), 1 / Fraction(str(fps)), 1
    duration = (int(pts[-1]) - int(pts[0]) + last) * tick
    check_duration(name, duration, limits)
    damage = [f"it lacks at least {lacks:,} bytes at its end"] * bool(lacks)
    if lost:
        damage.append(f"{len(lost)} of {packets.count} packets give no whole frame ({lost[0]})")
    return Clock(
        container=form,
        codec=stream.codec_context.codec.canonical_name,
        **_seen(first, stream, name, limits),
        pts=pts,
        time_base=tick,
        duration=duration,
        counted=packets.doubt or "what is left of it was asked for",
        damage="; ".join(damage),
        tolerant=damaged == "keep",
    )


class _Times:
    """When frames that come one after the other are shown, as the ffmpeg program has it: which of a frame's two times is to be
    believed (libavcodec/decode.c, guess_correct_pts: the presentation time, unless these went back more often than the times of
    decoding); a frame that states none follows the one before it; one that does not come after it is shown a tick later; and
    where times jump far, as in files that were joined, they go on one frame after the last."""

    def __init__(self, step: int, back: int, ahead: int | None) -> None:
        self.step, self.back, self.ahead, self.shift, self.last = step, back, ahead, 0, 0
        self.shown, self.known = array("q"), False
        self.stated: list[int | None] = [None, None]
        self.wrong = [0, 0]

    def add(self, pts: int | None, dts: int | None, duration: int | None) -> None:
        """The next frame, in ticks."""
        stated, shown = self._believed(pts, dts), self.shown
        time = shown[-1] + self.last if stated is None and shown else (stated or 0) + self.shift
        if stated is not None and not self.known:  # those before it state none: they lead up to it
            lead = time - shown[-1] - self.last if shown else 0
            shown = array("q", (earlier + lead for earlier in shown))
            self.known, self.shown = True, shown
        beyond = bool(shown) and self.ahead is not None and time - shown[-1] > self.ahead
        if shown and (time <= shown[-1] or beyond):
            joined = beyond or shown[-1] - time >= self.back
            later = shown[-1] + (self.last if joined else 1)
            self.shift += later - time if joined else 0
            time = later
        self.last = duration or self.step
        shown.append(time)

    def _believed(self, pts: int | None, dts: int | None) -> int | None:
        for k, (stated, other) in enumerate(((pts, dts), (dts, pts))):
            before = self.stated[k]
            self.wrong[k] += stated is not None and before is not None and stated <= before
            self.stated[k] = stated if stated is not None else other if other is not None else before
        return pts if pts is not None and (dts is None or self.wrong[0] <= self.wrong[1]) else dts


def _frame_ticks(stream: Any) -> int:
    """How long a frame lasts by the stream's rate, in ticks; 0 where it states none."""
    return round(1 / stream.average_rate / stream.time_base) if stream.average_rate else 0


def _seen(first: Any, stream: Any, name: str, limits: Limits) -> dict[str, Any]:
    """What the first frame shows: the sizes, how it is turned, and the shape of its pixels."""
    turn = _turn(first, name)
    width, height = (first.width, first.height) if turn[0] else (first.height, first.width)
    check_frame_size(name, width, height, limits)
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
    aspect = aspect if aspect > 0 else Fraction(1)
    aspect = aspect if turn[0] else 1 / aspect
    return {
        "width": width,
        "height": height,
        "turn": turn,
        "pixel_aspect": aspect,
        "transparent": is_transparent(first),
        "stated_rate": stream.average_rate or stream.guessed_rate or None,
        "transfer": int(stream.codec_context.color_trc),
    }


def is_transparent(frame: Any) -> bool:
    """Whether the pixels of PyAV's frame say how much shows through them."""
    return any(component.is_alpha for component in frame.format.components)


def _turn(frame: Any, name: str) -> Turn:
    try:
        data = frame.side_data.get(SideData.DISPLAYMATRIX)
    except ValueError as error:  # PyAV lists all or none of what its FFmpeg states beside a frame
        raise MediaError(
            f"{name} has data beside its frames that PyAV {av.__version__} does not know ({error}), such as EXIF data, so how "
            "they are turned cannot be read: open a picture with load_image, re-encode a film"
        ) from error
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


# --- packets ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Packets:
    """What the packets of a video say."""

    pts: np.ndarray
    """[n] int64, the presentation times, sorted; of packets that state none, none."""
    keyframes: np.ndarray
    """[k] int64, those where decoding can start."""
    last: int
    """How long the last frame lasts, in ticks."""
    count: int
    irregular: str
    doubt: str
    """Why these may not be the times of the frames that come out, if so."""
    broken: bool
    """A packet is not whole."""

    def seconds(self, tick: Fraction) -> float:
        """From the first time to the end of the last."""
        return float((int(self.pts[-1]) - int(self.pts[0]) + self.last) * tick) if len(self.pts) else 0.0


def _packets(container: Any, stream: Any, name: str, limits: Limits) -> _Packets:
    """What the packets say. Those that an edit list cuts off are marked discard and are not shown."""
    shown, keyframes = array("q"), array("q")  # a 10-hour film has a million packets: no Python object each
    count, irregular, newest, last, broken = 0, "", None, 0, False
    form, codec = container.format.name, stream.codec_context.codec.canonical_name
    without, jumps, before = 0, 0, None
    gap = _GAP / stream.time_base if form in _JOINED else None
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard or _is_hidden(packet, codec):
            continue
        # in MPEG-TS the mark says that packets before it are missing, as where files were joined
        broken = broken or (packet.is_corrupt and form != "mpegts")
        count += 1
        if count > limits.max_video_frames:
            check_frame_count(name, count, limits)
        if before is not None and packet.dts is not None:
            jumps += packet.dts < before or (gap is not None and packet.dts - before > gap)
        before = packet.dts if packet.dts is not None else before
        pts = packet.pts if packet.pts is not None or codec not in _IN_ORDER else packet.dts
        if pts is None:
            without += 1
            continue
        if packet.is_keyframe:
            keyframes.append(pts)
        elif keyframes and pts < keyframes[-1]:
            irregular = "some frames follow a keyframe but are shown before it (open groups of pictures)"
        if newest is None or pts >= newest:
            newest, last = pts, packet.duration or 0
        shown.append(pts)
    if not count:
        raise MediaError(f"{name} has a video stream without packets; is the file cut off?")
    pts, keys = (np.unique(np.array(stamps, dtype=np.int64)) for stamps in (shown, keyframes or shown[:1]))
    doubts = {
        f"{form} states in which order frames are decoded, and not when they are shown": codec not in _IN_ORDER
        and form in (*_STATES_DECODING_ORDER, *_STATES_SOME),
        f"a packet of {codec} may hold two frames, or none": codec not in _ONE_FRAME_A_PACKET,
        f"{without} packets state no time": without > 0,
        f"times jump {jumps} times, as where films were joined": jumps > 0,
        f"{len(shown) - len(pts)} packets have the times of others": len(pts) < len(shown),
    }
    return _Packets(pts, keys, last, count, irregular, next((why for why, holds in doubts.items() if holds), ""), broken)


def _is_hidden(packet: Any, codec: str) -> bool:
    """Whether a packet of VP8 or VP9 holds no frame that is shown: one that others refer to (RFC 6386, 9.1; VP9 bitstream
    specification, 6.2, and its annex B on packets of several frames)."""
    if codec == "vp8":
        return not memoryview(packet)[0] >> 4 & 1
    if codec != "vp9":
        return False
    data = memoryview(packet)
    mark = data[-1]
    size, frames = (mark >> 3 & 3) + 1, (mark & 7) + 1
    index = 2 + size * frames
    begins = [0]
    if mark & 0xE0 == 0xC0 and len(data) > index and data[-index] == mark:
        sizes = [int.from_bytes(data[k : k + size], "little") for k in range(len(data) - index + 1, len(data) - 1, size)]
        begins = [sum(sizes[:n]) for n in range(frames) if sizes[n]]
    return not any(begin < len(data) and _vp9_shows(data[begin]) for begin in begins)


def _vp9_shows(head: int) -> bool:
    """From the first byte of a frame: profile 3 has a bit more before what is looked for."""
    head = head if head & 0x30 != 0x30 else head << 1
    return bool(head & 8 or head & 2)
