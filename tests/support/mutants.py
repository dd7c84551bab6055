"""Damaged media: mutants of small sound files, and the law that they keep, which is tried in processes that can be killed.

The law: a file is opened or refused with a MediaError, given as a path and as bytes, and if both are opened, the pixels are the
same. Nothing else is raised, nothing crashes or hangs, and memory stays within `MEGABYTES` of what a process has after its imports.
"""

from __future__ import annotations

import functools
import io
import os
import random
import re
import struct
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pillow_heif
from PIL import Image

from mmrope import MediaError
from mmrope.preprocess import Limits
from mmrope.preprocess.image import FAX_IS_SOUND, load_image
from mmrope.preprocess.isolation import isolated
from mmrope.preprocess.video import open_video
from tests.support.profiles import GRAY_PROFILE, P3_PROFILE

Kind = Literal["images", "videos"]
Named = tuple[str, bytes]
"""What a file is a mutant of, and its content."""

MEGABYTES = 300
SECONDS = {"images": 60.0, "videos": 20.0}  # for a batch
BATCH = {"images": 250, "videos": 1}
LIMITS = Limits(max_image_pixels=4_000_000, max_animation_pixels=8_000_000, max_video_frames=100_000)
"""Small ones: what a large image takes is known, and would hide what a mutant takes."""

# --- seeds ------------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 24, 16


def image_seeds() -> dict[str, bytes]:
    """Small images of every format that is opened, by name. What can be animated ends in "animated"; "profile" is in the name of
    what has an ICC profile."""
    noise = np.random.default_rng(0)
    rgba = noise.integers(0, 255, (HEIGHT, WIDTH, 4), np.uint8)
    grey = rgba[..., 0]
    colour, clear, plain = Image.fromarray(rgba[..., :3]), Image.fromarray(rgba), Image.fromarray(grey)
    deep, exact = Image.fromarray(grey.astype(np.uint16) * 257), Image.fromarray(grey.astype(np.float32) / 255)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a seed"
    film = {"save_all": True, "append_images": [colour.rotate(90), plain.convert("RGB")], "duration": [40, 0, 90]}
    comments = {"exif": exif, "icc_profile": bytes(60), "dpi": (72, 72)}

    def stored(picture: Image.Image, format: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, format, **options)
        return buffer.getvalue()

    heif, buffer = pillow_heif.from_pillow(clear), io.BytesIO()
    heif.save(buffer, exif=exif.tobytes())
    heic = buffer.getvalue()
    return {
        "heic": heic,
        "heic, burst": heic[:8] + b"msf1" + heic[12:],
        "jpeg, profile": stored(colour, "JPEG", icc_profile=P3_PROFILE),
        "jpeg, grey profile": stored(plain, "JPEG", icc_profile=GRAY_PROFILE),
        "png, profile": stored(clear, "PNG", icc_profile=P3_PROFILE),
        "webp, profile, animated": stored(colour, "WEBP", **film, icc_profile=P3_PROFILE),
        "jpeg": stored(colour, "JPEG", **comments),
        "jpeg, progressive": stored(colour, "JPEG", progressive=True),
        "jpeg, grey": stored(plain, "JPEG"),
        "jpeg, cmyk": stored(colour.convert("CMYK"), "JPEG"),
        "mpo": stored(colour, "MPO", save_all=True, append_images=[colour.rotate(90)]),
        "png": stored(colour, "PNG", **comments),
        "png, rgba": stored(clear, "PNG"),
        "png, palette": stored(colour.quantize(16), "PNG", transparency=3),
        "png, grey": stored(clear.convert("LA"), "PNG"),
        "png, 1 bit": stored(plain.convert("1"), "PNG"),
        "png, 16 bit": stored(deep, "PNG"),
        "png, animated": stored(colour, "PNG", **film),
        "png, animated behind a picture, animated": stored(colour, "PNG", **film, default_image=True, disposal=1, blend=1),
        "webp": stored(colour, "WEBP", **{key: comments[key] for key in ("exif", "icc_profile")}),
        "webp, lossless": stored(clear, "WEBP", lossless=True),
        "webp, animated": stored(colour, "WEBP", **film),
        "avif": stored(colour, "AVIF", exif=exif),
        "avif, rgba": stored(clear, "AVIF"),
        "avif, animated": stored(colour, "AVIF", **film),
        "gif": stored(colour.quantize(16), "GIF", comment=b"a seed"),
        "gif, animated": stored(colour, "GIF", **film, disposal=2, loop=0),
        "bmp": stored(colour, "BMP"),
        "bmp, palette": stored(colour.quantize(16), "BMP"),
        "bmp, 1 bit": stored(plain.convert("1"), "BMP"),
        "tiff": stored(clear, "TIFF", **comments),
        "tiff, lzw": stored(colour, "TIFF", compression="tiff_lzw"),
        "tiff, deflate": stored(deep, "TIFF", compression="tiff_adobe_deflate"),
        "tiff, packbits": stored(colour.quantize(16), "TIFF", compression="packbits"),
        "tiff, jpeg": stored(colour, "TIFF", compression="jpeg"),
        **({"tiff, group 4": stored(plain.convert("1"), "TIFF", compression="group4")} if FAX_IS_SOUND else {}),
        "tiff, float": stored(exact, "TIFF"),
        "tiff, lab": stored(Image.merge("LAB", [plain] * 3), "TIFF"),
        "tiff, two pages": stored(colour, "TIFF", save_all=True, append_images=[clear]),
        "tiff, three pages": stored(
            colour, "TIFF", save_all=True, append_images=[plain.copy(), plain.rotate(90)], compression="tiff_lzw"
        ),
        "jpeg 2000": stored(colour, "JPEG2000"),
        "jpeg 2000, rgba": stored(clear, "JPEG2000", tile_size=(16, 16), irreversible=True),
        "jpeg 2000, codestream": stored(deep, "JPEG2000", no_jp2=True),
        "ico": stored(clear, "ICO", sizes=[(WIDTH, HEIGHT), (8, 8)]),
        "ico, bitmap": stored(clear, "ICO", sizes=[(WIDTH, HEIGHT)], bitmap_format="bmp"),
        "pnm": stored(colour, "PPM"),
        "pnm, text": b"P3 # numbers\n24 8 255\n" + b" ".join(b"%d" % value for value in rgba[:8, :, :3].flat),
        "pnm, 16 bit": b"P5 24 16 65535\n" + (grey.astype(">u2") * 257).tobytes(),
        "pnm, 12 bit": b"P5 24 16 4095\n" + (grey.astype(">u2") * 16).tobytes(),
        "pnm, 1 bit": stored(plain.convert("1"), "PPM"),
        "pnm, float": stored(exact, "PPM"),
        "tga": stored(clear, "TGA"),
        "tga, run lengths": stored(plain, "TGA", compression="tga_rle"),
        "tga, palette": stored(colour.quantize(16), "TGA"),
    }


def video_seeds() -> dict[str, bytes]:
    """Small videos of every container and nearly every codec that is opened, by name."""
    from tests.support.crafted import AT_25, QUIET_265, edited, reel  # here: the processes that try mutants need no encoders

    even: dict[str, Any] = {"times": range(0, 400, 40), "size": (64, 48)}
    steps: dict[str, Any] = {**even, "times": range(10), "base": AT_25}
    rows: dict[str, dict[str, Any]] = {
        "h264.mp4": even,
        "h264 with sound, turned.mp4": {**even, "audio": "aac", "rotation": 90},
        "h264 in fragments.mp4": {**even, "muxer": {"movflags": "frag_keyframe+empty_moov"}},
        "h264.mkv": even,
        "h264.ts": even,
        "h264.flv": even,
        "h264 without b-frames.avi": {**steps, "max_b_frames": 0},
        "hevc.mp4": {**even, "codec": "libx265", "options": QUIET_265},
        "10 bit hevc.mkv": {**even, "codec": "libx265", "pix_fmt": "yuv420p10le", "options": QUIET_265},
        "av1.mp4": {**even, "codec": "libsvtav1"},
        "av1.webm": {**even, "codec": "libsvtav1"},
        "vp8.webm": {**even, "codec": "libvpx"},
        "vp9.webm": {**even, "codec": "libvpx-vp9"},
        "vp9.mp4": {**even, "codec": "libvpx-vp9"},
        "vp8.ogv": {**steps, "codec": "libvpx"},
        "mpeg4.mp4": {**even, "codec": "mpeg4", "max_b_frames": 2},
        "mpeg4.avi": {**steps, "codec": "mpeg4"},
        "mjpeg.avi": {**steps, "codec": "mjpeg", "pix_fmt": "yuvj420p"},
        "mpeg2.ts": {**steps, "codec": "mpeg2video", "max_b_frames": 2},
        "mpeg2.mpg": {**steps, "codec": "mpeg2video"},
        "mpeg1.mpg": {**steps, "codec": "mpeg1video"},
        "flv1.flv": {**even, "codec": "flv"},
        "wmv1.wmv": {**even, "codec": "wmv1"},
        "wmv2.wmv": {**even, "codec": "wmv2"},
        "msmpeg4v3.wmv": {**even, "codec": "msmpeg4"},
        "msmpeg4v2.avi": {**steps, "codec": "msmpeg4v2"},
        "h263.3gp": {**even, "codec": "h263", "size": (128, 96)},
        "prores.mov": {**even, "codec": "prores_ks", "pix_fmt": "yuv422p10le"},
        "dnxhd.mov": {**steps, "codec": "dnxhd", "size": (256, 120), "pix_fmt": "yuv422p", "options": {"profile": "dnxhr_lb"}},
        "ffv1.mkv": {**even, "codec": "ffv1"},
        "qtrle.mov": {**even, "codec": "qtrle", "pix_fmt": "rgb24"},
        "png.mov": {**even, "codec": "png", "pix_fmt": "rgb24"},
        "raw.avi": {**steps, "codec": "rawvideo", "times": range(4)},
    }  # fmt: skip
    with TemporaryDirectory() as folder:
        found = {name: reel(Path(folder) / name, **options).read_bytes() for name, options in rows.items()}
        found["edit list.mp4"] = edited(Path(folder) / "edit list.mp4", [(200, 120), (200, 0)], size=(64, 48)).read_bytes()
    return found


# --- mutations --------------------------------------------------------------------------------------------------------

EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def mutants(seeds: dict[str, bytes], number: int, stop: int, begin: int = 0) -> Iterator[Named]:
    """Mutants `begin` to `stop` of the seeds, in turn; each is known by the number of the run and its own."""
    names = list(seeds)
    for n in range(begin, stop):
        chance = random.Random(f"{number} {n}")
        name = names[n % len(names)]
        content = bytearray(seeds[name])
        for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
            chance.choice(MUTATIONS)(content, chance, seeds)
        # a checksum that is wrong hides what lies behind it
        yield name, mended(content) if name.startswith("png") and chance.random() < 0.7 else bytes(content)


def place(content: bytearray, chance: random.Random) -> int:
    """Anywhere; half of the times near an end, where headers are."""
    size = max(1, len(content))
    return chance.choice(
        (
            chance.randrange(size),
            chance.randrange(min(size, 200)),
            chance.randrange(size),
            size - 1 - chance.randrange(min(size, 200)),
        )
    )


def block(content: bytearray, chance: random.Random) -> slice:
    begin = place(content, chance)
    return slice(begin, begin + chance.choice((1, 4, chance.randint(1, 64), chance.randint(1, max(1, len(content))))))


def flip(content: bytearray, chance: random.Random, seeds: Any) -> None:
    for _ in range(chance.choice((1, 1, 2, 8)) if content else 0):
        content[place(content, chance)] ^= 1 << chance.randrange(8)


def overwrite(content: bytearray, chance: random.Random, seeds: Any) -> None:
    where = block(content, chance)
    size = len(content[where])
    content[where] = chance.choice((bytes(size), b"\xff" * size, chance.randbytes(size)))


def cut(content: bytearray, chance: random.Random, seeds: Any) -> None:
    del content[place(content, chance) :]


def remove(content: bytearray, chance: random.Random, seeds: Any) -> None:
    del content[block(content, chance)]


def repeat(content: bytearray, chance: random.Random, seeds: Any) -> None:
    piece = bytes(content[block(content, chance)])
    at = place(content, chance)
    content[at:at] = piece * chance.choice((1, 1, 3))


def swap(content: bytearray, chance: random.Random, seeds: Any) -> None:
    size, one, other = chance.randint(1, 64), place(content, chance), place(content, chance)
    content[one : one + size], content[other : other + size] = content[other : other + size], content[one : one + size]


def integer(content: bytearray, chance: random.Random, seeds: Any) -> None:
    at, size, order = place(content, chance), chance.choice((1, 2, 4, 4, 8)), chance.choice(("big", "little"))
    value = chance.choice((*EXTREMES, chance.getrandbits(16))) & ((1 << 8 * size) - 1)
    content[at : at + size] = value.to_bytes(size, order)


def splice(content: bytearray, chance: random.Random, seeds: dict[str, bytes]) -> None:
    other = bytearray(seeds[chance.choice(list(seeds))])
    content[place(content, chance) :] = other[place(other, chance) :]


MUTATIONS = (flip, flip, overwrite, cut, remove, repeat, swap, integer, integer, integer, splice)


def mended(content: bytearray) -> bytes:
    """A PNG file whose checksums are right again, as far as it has chunks."""
    content, at = bytearray(content), 8
    while at + 12 <= len(content):
        (size,) = struct.unpack_from(">I", content, at)
        end = at + 8 + size
        if end + 4 > len(content):
            break
        struct.pack_into(">I", content, end, zlib.crc32(content[at + 4 : end]))
        at = end + 4
    return bytes(content)


# --- the law ----------------------------------------------------------------------------------------------------------


def megabytes() -> float:
    """What this process took at its peak; getrusage would tell its parent's, if that is larger."""
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # pyright: ignore[reportOptionalSubscript]


AFTER_IMPORTS = megabytes()


@functools.cache
def prepare() -> None:
    """For workers. FFmpeg's and libtiff's warnings go nowhere; how a worker crashes is told by its exit code. Pillow's limit,
    which holds for the frames of an animation, is as low as the others."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    Image.MAX_IMAGE_PIXELS = LIMITS.max_image_pixels


def judged(batch: tuple[str, list[Named]]) -> tuple[list[tuple[str, str]], float]:
    """For each file what came of it ("opened", "refused", "bug" or "memory") and what the bug is; and the megabytes taken at the
    peak. The first of the batch is a path that may be written to."""
    prepare()
    path, files = batch
    verdicts, most = [], 0.0
    for name, content in files:
        verdicts.append(verdict(name, content, path))
        taken = megabytes() - AFTER_IMPORTS
        most = max(most, taken)
        if taken >= MEGABYTES:
            verdicts[-1] = "memory", f"{taken:.0f} MB"
            Path("/proc/self/clear_refs").write_text("5")  # the next is measured anew
    return verdicts, most


def verdict(name: str, content: bytes, path: str) -> tuple[str, str]:
    Path(path).write_bytes(content)
    opened = False
    for read in readers(name):
        results = []
        for source in (path, content):
            try:
                results.append(read(source))
            except MediaError:
                continue
            except BlockingIOError:  # no thread has room for its stack: of the limits of this process, not of the file
                return "memory", traceback.format_exc()
            except Exception:  # whatever it is, it is reported
                return "bug", traceback.format_exc()
        if len(results) == 2 and results[0] != results[1]:
            return "bug", f"other pixels from the path than from the bytes, by {read.__name__}"
        opened |= bool(results)
    return ("opened" if opened else "refused"), ""


def readers(name: str) -> list[Callable[[str | bytes], list[Any]]]:
    """How a file of this name is read."""
    if "." in name:
        return [film]
    return [image, *([in_srgb] if "profile" in name else []), *([film] if name.endswith("animated") else [])]


def in_srgb(source: str | bytes) -> list[Any]:
    """The colours, by the ICC profile."""
    pixels = load_image(source, animation="first", color="srgb", limits=LIMITS)
    return [pixels.shape, zlib.crc32(pixels.tobytes())]


def image(source: str | bytes) -> list[Any]:
    """What tells images apart."""
    pixels = load_image(source, animation="first", limits=LIMITS)
    assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
    return [pixels.shape, zlib.crc32(pixels.tobytes())]


def film(source: str | bytes) -> list[Any]:
    """What tells films apart: their times, and the first frame, the one in the middle, and the last."""
    video = open_video(source, limits=LIMITS)
    count = len(video.pts)
    assert (np.diff(video.pts) > 0).all()
    assert 0 <= video.duration <= LIMITS.max_video_seconds
    wanted, frames = sorted({0, count // 2, count - 1}), []
    for frame in video.decode(wanted).frames:
        assert frame.shape == (video.height, video.width, 3)
        frames.append(zlib.crc32(frame.tobytes()))
    assert len(frames) == len(wanted)
    return [video.pts.tolist(), video.time_base, frames]


@dataclass
class Findings:
    """What came of many mutants."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """By seed: how many were opened and refused, and how many broke the law: "bug", "crash", "timeout" or "memory"."""
    broken: list[tuple[str, bytes, str]] = field(default_factory=list)
    """What broke the law: the seed, the content, and how."""
    megabytes: float = 0.0
    """What the largest of the processes took beyond its imports."""


def tried(
    files: Iterable[Named], kind: Kind, *, judge: Callable[[Any], Any] = judged, seconds: float = 0.0
) -> Iterator[tuple[int, Findings]]:
    """Tries the law on each file. After each batch: how many files were in it, and the findings so far, which grow."""
    found, files = Findings(), iter(files)
    limits = {"seconds": seconds or SECONDS[kind], "memory": 1 << 30}
    with TemporaryDirectory() as folder:
        path = str(Path(folder) / "mutant")
        batches = iter(lambda: list(islice(files, BATCH[kind])), [])
        for outcome in isolated(judge, ((path, batch) for batch in batches), **limits):
            batch = outcome.item[1]
            outcomes = [outcome]
            if outcome.kind and len(batch) > 1:  # one of them did it
                outcomes = list(isolated(judge, [(path, [file]) for file in batch], **limits))
            for one in outcomes:
                verdicts, taken = one.value or ([(one.kind, one.error)], 0.0)
                found.megabytes = max(found.megabytes, taken)
                for (name, content), (what, how) in zip(one.item[1], verdicts, strict=True):
                    found.counts.setdefault(name, Counter())[what] += 1
                    if what not in ("opened", "refused"):
                        found.broken.append((name, content, f"{what}: {how}"))
            yield len(batch), found
