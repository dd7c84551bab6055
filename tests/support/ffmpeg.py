"""Films made by the ffmpeg program with its own encoders, and what it shows of them: the truth that readers are held against."""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import pytest

FFMPEG = shutil.which("ffmpeg")
needs_ffmpeg = pytest.mark.skipif(FFMPEG is None, reason="the ffmpeg program is not installed (apt-get install ffmpeg)")


def ffmpeg(*arguments: Any) -> str:
    """What the program writes to its output.

    Raises:
        RuntimeError: it failed, with what it said.
    """
    done = subprocess.run(
        [str(FFMPEG), "-v", "error", "-nostdin", "-y", *map(str, arguments)], capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        raise RuntimeError(f"ffmpeg {' '.join(map(str, arguments))}: {done.stderr[-400:]}")
    return done.stdout


def shown(path: Path, stream: str = "0:v:0") -> tuple[list[Fraction], list[set[str]]] | None:
    """None where ffmpeg shows nothing; or the times in seconds of each frame that ffmpeg shows, and its MD5 in the decoder's own pixel format: by default, and with
    FFmpeg's exact inverse transforms (a version may choose another for speed, which differs by one in a few values)."""
    passed = ("-map", stream, "-fps_mode", "passthrough", "-enc_time_base", "-1", "-f", "framemd5", "-")
    times, sums = [], []
    for options in ((), ("-flags", "+bitexact"), ("-flags", "+bitexact", "-idct", "simple")):
        try:
            text = ffmpeg("-err_detect", "ignore_err", *options, "-i", path, *passed)
        except RuntimeError:
            return None
        tick = Fraction(re.findall(r"#tb 0: (\d+/\d+)", text)[0])
        rows = [[field.strip() for field in line.split(",")] for line in text.splitlines() if not line.startswith("#")]
        times = [int(row[2]) * tick for row in rows]
        sums.append([row[5] for row in rows])
    return times, [set(each) for each in zip(*sums, strict=True)]


def md5(frame: Any) -> str:
    """Of PyAV's frame, as ffmpeg's rawvideo lays it out: the planes without what fills up their rows."""
    digest = hashlib.md5(usedforsecurity=False)
    depth = max(component.bits for component in frame.format.components)
    packed = len(frame.planes) == 1
    for plane in frame.planes:
        row = plane.width * (frame.format.padded_bits_per_pixel // 8 if packed else -(-depth // 8))
        pixels = np.frombuffer(plane, np.uint8)[: plane.height * plane.line_size].reshape(plane.height, plane.line_size)
        digest.update(np.ascontiguousarray(pixels[:, :row]))
    return digest.hexdigest()


def plainly(path: Path) -> tuple[list[Fraction | None], list[str], bool]:
    """The same by the FFmpeg in PyAV's wheel, in order and without anything of mmrope's: times, MD5s, and whether a frame came
    out in part. Two versions of FFmpeg may differ; this shows where they do."""
    frames = []
    with av.open(str(path), metadata_errors="ignore") as container:
        for packet in container.demux(video=0):
            with contextlib.suppress(av.error.FFmpegError):  # of what was cut off before the first keyframe
                frames += [(frame.pts, frame.time_base, md5(frame), frame.is_corrupt) for frame in packet.decode()]
    times = [None if pts is None else pts * tick for pts, tick, _, _ in frames]
    return times, [digest for _, _, digest, _ in frames], any(corrupt for *_, corrupt in frames)


# --- films of the world -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How a film is made."""

    name: str
    encode: tuple[str, ...]
    """ffmpeg's arguments of its video."""
    copies: tuple[tuple[str, ...], ...] = ()
    """Then copied without encoding, with these arguments before the file and behind it."""
    cut: tuple[int, int] | None = None
    """Of MPEG-TS: the first and the last packet of 188 bytes that are left, in per cent."""
    twice: bool = False
    """The file, and the file again behind it."""
    passes: int = 1

    def make(self, folder: Path) -> Path:
        """The file."""
        path = folder / self.name
        first = folder / f"whole{path.suffix}" if self.copies or self.cut or self.twice else path
        log = folder / "passes"
        for n in range(1, self.passes + 1):
            more = ("-pass", n, "-passlogfile", log) if self.passes > 1 else ()
            target = ("-f", "null", "-") if n < self.passes else (first,)
            ffmpeg("-f", "lavfi", "-i", *self.encode, *more, *target)
        for n, arguments in enumerate(self.copies):
            last = n == len(self.copies) - 1
            target = path if last else folder / f"copy{n}{path.suffix}"
            before = arguments[: arguments.index("-i")]
            ffmpeg(*before, "-i", first, "-c", "copy", *arguments[len(before) + 1 :], target)
            first = target
        if self.cut is not None:
            packets = first.stat().st_size // 188
            begin, end = (packets * part // 100 * 188 for part in self.cut)
            path.write_bytes(first.read_bytes()[begin:end])
        if self.twice:
            path.write_bytes(first.read_bytes() * 2)
        return path


def _source(rng: random.Random) -> str:
    size, rate = rng.choice(("96x64", "128x96", "130x98")), rng.choice(("25", "30000/1001", "24", "12"))
    kind = rng.choice(("testsrc2", "mandelbrot", "life"))
    life = ":ratio=0.4:seed=7:mold=9" if kind == "life" else ""
    return f"{kind}=size={size}:rate={rate}{life}"


_LENGTH = ("-t", "2.5", "-pix_fmt", "yuv420p")
_H264, _HEVC = ("-c:v", "libx264"), ("-c:v", "libx265", "-x265-params")


def _codecs(rng: random.Random) -> list[tuple[str, tuple[str, ...], tuple[str, ...], int]]:
    """(what, arguments, containers, passes): drawn anew for each film."""
    gop, b, pick = str(rng.choice((1, 5, 12, 30, 250))), str(rng.choice((0, 1, 2, 3))), rng.choice
    x264 = pick(("open-gop=1", "intra-refresh=1", "b-pyramid=strict", "interlaced=1", "weightp=2", "sliced-threads=1:slices=4"))
    x265 = f"log-level=none:{pick(('open-gop=1', 'open-gop=0'))}:bframes={b}:keyint={gop}"
    group = ("-g", gop, "-bf", b)
    alt = ("-auto-alt-ref", "1", "-lag-in-frames", pick(("8", "16", "25")), "-b:v", "200k", "-g", gop)
    return [
        ("h264", (*_H264, *group, "-x264-params", x264), ("mp4", "mkv", "mov", "ts", "flv", "avi", "asf"), 1),
        ("h264 444", (*_H264, *group, "-pix_fmt", "yuv444p"), ("mp4", "mkv"), 1),
        ("h264 10 bit", (*_H264, *group, "-pix_fmt", "yuv420p10le"), ("mp4", "mkv", "ts"), 1),
        ("hevc", (*_HEVC, x265), ("mp4", "mkv", "ts"), 1),
        ("xvid", ("-c:v", "libxvid", *group, "-q:v", "5"), ("avi", "mp4", "mkv"), 1),
        ("mpeg4", ("-c:v", "mpeg4", *group, "-q:v", "5"), ("avi", "mp4", "mkv", "ts"), 1),
        ("vp8", ("-c:v", "libvpx", *alt), ("webm", "mkv", "ogv"), 2),
        ("vp9", ("-c:v", "libvpx-vp9", *alt), ("webm", "mp4"), 2),
        ("av1", ("-c:v", "libaom-av1", "-cpu-used", "8", "-b:v", "200k", "-g", gop), ("mkv", "mp4"), 1),
        ("mpeg2", ("-c:v", "mpeg2video", *group, "-q:v", "5"), ("mpg", "vob", "ts", "mkv", "avi", "mxf"), 1),
        ("mpeg2 interlaced", ("-c:v", "mpeg2video", *group, "-flags", "+ilme+ildct", "-q:v", "5"), ("mpg", "ts"), 1),
        ("mpeg1", ("-c:v", "mpeg1video", *group, "-q:v", "5"), ("mpg",), 1),
        ("wmv1", ("-c:v", "wmv1", "-g", gop, "-q:v", "5"), ("wmv", "avi"), 1),
        ("wmv2", ("-c:v", "wmv2", "-g", gop, "-q:v", "5"), ("wmv", "avi"), 1),
        ("msmpeg4", ("-c:v", "msmpeg4v3", "-g", gop, "-q:v", "5"), ("avi", "wmv"), 1),
        ("flv1", ("-c:v", "flv1", "-g", gop, "-q:v", "5"), ("flv",), 1),
        ("theora", ("-c:v", "libtheora", "-g", gop, "-q:v", "5"), ("ogv",), 1),
        ("mjpeg", ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p", "-q:v", "5"), ("avi", "mov", "mkv"), 1),
        ("prores", ("-c:v", "prores_ks", "-pix_fmt", "yuv422p10le"), ("mov", "mkv"), 1),
        ("ffv1", ("-c:v", "ffv1"), ("mkv", "avi"), 1),
        ("huffyuv", ("-c:v", "huffyuv", "-pix_fmt", "yuv422p"), ("avi", "mkv"), 1),
        ("qtrle", ("-c:v", "qtrle", "-pix_fmt", "rgb24"), ("mov",), 1),
        ("cineform", ("-c:v", "cfhd", "-pix_fmt", "yuv422p10le"), ("mov",), 1),
    ]


def recipes(seed: int) -> Iterator[Recipe]:
    """Films drawn over codecs, containers, B-frames, groups of pictures, edit lists, start times and cuts, without end; the
    first of them go once through the codecs."""
    rng, n = random.Random(seed), 0
    while True:
        kinds = _codecs(rng)
        what, codec, containers, passes = kinds[n % len(kinds)]
        form = rng.choice(containers)
        source = _source(rng)
        if form in ("avi", "mpg", "vob", "ts", "mxf") and "rate=12" in source:
            source = source.replace("rate=12", "rate=25")  # of MPEG-1 and 2, which know some rates alone
        if "mpeg" in what:
            source = source.replace("rate=12", "rate=25")
        if what == "cineform" or "interlaced=1" in codec:
            source = re.sub(r"size=\d+x\d+", "size=128x96", source)  # of which these want multiples
        uneven = ("-vf", "select='not(mod(n,3))+not(mod(n,7))'", "-fps_mode", "vfr")
        varied = uneven if form in ("mp4", "mkv", "webm", "mov") and rng.random() < 0.3 and passes == 1 else ()
        copies: tuple[tuple[str, ...], ...] = ()
        if rng.random() < 0.5 and form in ("mp4", "mov", "mkv", "webm", "ts", "flv"):
            copies = rng.choice(
                (
                    (("-ss", f"{rng.uniform(0.2, 1.5):.3f}", "-i"),),
                    (("-i", "-output_ts_offset", f"{rng.uniform(0.5, 9):.3f}"),),
                    (("-ss", f"{rng.uniform(0.2, 1.5):.3f}", "-i", "-t", "0.7"),),
                )
            )
        if what == "vp9" and rng.random() < 0.5:
            copies = (
                *copies,
                ("-i", "-fflags", "-autobsf", "-bsf:v", "vp9_superframe_split"),
            )  # frames that are not shown in packets of their own
        if form == "mp4" and what != "vp9" and rng.random() < 0.3:
            copies = (*copies, ("-i", "-movflags", "+frag_keyframe+empty_moov"))
        cut = (rng.randrange(5, 40), 100) if form == "ts" and rng.random() < 0.3 else None
        yield Recipe(
            f"{n} {what}.{form}",
            (source, *_LENGTH, *varied, *codec),
            copies,
            cut,
            form == "ts" and cut is None and rng.random() < 0.2,
            passes,
        )
        n += 1
