"""Media files made on purpose, sound, odd and hostile, each with what must come of it: the table is `CRAFTED`.

The number of a film's frame is written in its brightness, and the colours of an image in its four quarters, so that a wrong frame
or a wrong turn is seen.
"""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pillow_heif
from av.stream import Disposition
from PIL import Image
from skimage import data

from mmrope.preprocess.probe import PYAV_17_1
from tests.support import of_usual_priority
from tests.support.films import MILLISECONDS, grey_of, rotated, sound, trimmed

Colour = tuple[int, ...]  # RGB
os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder otherwise describes itself on stderr


@dataclass(frozen=True)
class Picture:
    """`load_image` opens it."""

    size: tuple[int, int] = (48, 64)
    """(H, W) as shown."""
    colours: Mapping[tuple[int, int], Colour] = field(default_factory=dict)
    """RGB by (row, column)."""
    within: int = 0
    """How far a colour may be off: lossy formats."""
    resized: tuple[int, int] | str = ""
    """The (H, W) to which Qwen2-VL resizes it, or the pattern of the MediaError with which it is refused then; "": not looked at."""
    animation: str = "refuse"


@dataclass(frozen=True)
class Film:
    """`open_video` opens it, and these frames come out of it at these times."""

    times_ms: Sequence[float]
    """From the first frame on."""
    frames: Sequence[int] | None = None
    """Which frame each is; None: all of them, counted from 0; (): not looked at."""
    start_ms: float = 0
    """The first frame's time in the file."""
    lasts_ms: float | None = None
    """From the first frame to the end of the last; None: not looked at."""
    size: tuple[int, int] = (96, 64)
    """(W, H) as shown."""
    corner: tuple[int, int] | None = (0, 0)
    """Where the white corner is: (bottom?, right?); None: there is none."""
    lost: Iterable[int] = ()
    """Indices of frames that cannot be decoded, each of which is refused when it is asked for."""
    colours: Mapping[tuple[int, int, int], Colour] = field(default_factory=dict)
    """RGB by (index, row, column)."""


@dataclass(frozen=True)
class Refused:
    """A MediaError with a message in which `pattern` is found."""

    pattern: str
    by: str = "video"
    """"image": load_image; "video": open_video; "frames": open_video passes, decoding every frame does not."""


@dataclass(frozen=True)
class Crafted:
    """A file, how it is made, and what comes of it."""

    name: str
    make: Callable[[Path], Any]
    """Writes the file to a path; bytes that it returns are written there, and another path or name is given in its place."""
    outcome: Picture | Film | Refused

    def written(self, folder: Path) -> Path | str:
        """The file, made in this folder."""
        path = folder / self.name
        made = self.make(path)
        if isinstance(made, bytes):
            path.write_bytes(made)
        return made if isinstance(made, str) else path


# --- films ------------------------------------------------------------------------------------------------------------

N = range(25)
EVEN = [40 * n for n in N]
UNEVEN = [0, 264, 561, 825, 1790, 3390]
AT_25 = Fraction(1, 25)
QUIET_265 = {"x265-params": "log-level=0"}


def reel(
    path: Path,
    times: Iterable[int] = EVEN,
    *,
    base: Fraction = MILLISECONDS,
    codec: str = "libx264",
    size: tuple[int, int] = (96, 64),
    pix_fmt: str = "yuv420p",
    keyframes: int = 12,
    max_b_frames: int | None = None,
    rotation: float | None = None,
    pixel_aspect: Fraction | None = None,
    audio: str | None = None,
    noise: bool = True,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
) -> Path:
    """A film whose frame n is shown at times[n], in units of `base` seconds."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        bit_rate = {} if codec == "libsvtav1" else {"b": "4M"}  # the encoder of AV1 refuses one for small frames
        stream: Any = container.add_stream(codec, rate=25, options={**bit_rate, **(options or {})})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = base
        stream.gop_size = keyframes
        if max_b_frames is not None:
            stream.max_b_frames = max_b_frames
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        sound = container.add_stream(audio, rate=48000, layout="mono") if audio else None
        for n, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered(n, size, noise=noise), format="rgb24")
            frame.pts, frame.time_base = time, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            container.mux([*sound.encode(silence()), *sound.encode()])
    of_usual_priority()
    return path if rotation is None else rotated(path, rotation)


def numbered(n: int, size: tuple[int, int], *, noise: bool = True) -> np.ndarray:
    """Frame n of a film: [H, W, 3] uint8 of its brightness, with a white corner at the top left, and below noise that no other frame
    has: it shows what was decoded from the wrong frame, and makes frames large enough for a packet each."""
    width, height = size
    pixels = np.full((height, width, 3), grey_of(n), np.uint8)
    pixels[: height // 4, : width // 4] = 255
    if noise:
        pixels[-(height // 4) :] = np.random.default_rng(n).integers(0, 200, (height // 4, width, 1), np.uint8)
    return pixels


def silence() -> Any:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
    frame.sample_rate = 48000
    return frame


def packets(path: Path) -> list[Any]:
    """Those of a file's video, as they are stored."""
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(container.streams.video[0]) if packet.size]


def copied(path: Path, *sources: Path, change: Callable[[list[Any]], list[Any]] = list) -> Path:
    """The packets of one film, or of several one after the other, changed and not encoded again."""
    with av.open(str(path), "w") as container:
        copy, end = None, 0
        for source in sources:
            with av.open(str(source)) as old:
                stream = old.streams.video[0]
                copy = copy or container.add_stream_from_template(stream)
                begin = end
                for packet in change([packet for packet in old.demux(stream) if packet.size]):
                    packet.pts, packet.dts = packet.pts + begin, packet.dts + begin
                    end = max(end, packet.pts + packet.duration)
                    packet.stream = copy
                    container.mux(packet)
    return path


def beside(path: Path, name: str) -> Path:
    """A path for a file from which another is made."""
    folder = path.parent / "sources"
    folder.mkdir(exist_ok=True)
    return folder / f"{path.stem}.{name}"


def edited(path: Path, edits: Sequence[tuple[int, int]], **options: Any) -> Path:
    """A film of even frames with this edit list: (milliseconds on show, milliseconds into the film, or -1 for nothing) each."""
    reel(path, **options)
    content = path.read_bytes()
    at = content.index(b"elst") - 4
    size, _, _, _, _, delay = struct.unpack_from(">I4s4sIIi", content, at)
    rate = packets(path)[0].time_base.denominator
    rows = [(shown, -1 if start < 0 else delay + start * rate // 1000) for shown, start in edits]
    box = b"elst" + struct.pack(">II", 0, len(rows)) + b"".join(struct.pack(">IiI", *row, 1 << 16) for row in rows)
    changed = bytearray(content[:at] + struct.pack(">I", len(box) + 4) + box + content[at + size :])
    for parent in (b"edts", b"trak", b"moov"):
        place = content.rindex(parent, 0, at) - 4
        struct.pack_into(">I", changed, place, struct.unpack_from(">I", changed, place)[0] + len(box) + 4 - size)
    path.write_bytes(changed)
    return path


def first_part(path: Path) -> bytes:
    """The first 60 % of a file, in which 14 of 25 frames are whole."""
    content = path.read_bytes()
    return content[: len(content) * 6 // 10]


def without(path: Path, *gone: int) -> Path:
    """A film with keyframes at 0, 12 and 24 of which these frames are gone."""

    def change(stored: list[Any]) -> list[Any]:
        return [packet for n, packet in enumerate(stored) if n not in gone]

    return copied(path, reel(beside(path, f"whole{path.suffix}"), **STEADY), change=change)


def with_a_time_twice(path: Path, number: int) -> Path:
    """Two frames of one time: this one has that of the one before it."""

    def change(stored: list[Any]) -> list[Any]:
        stored[number].pts = stored[number].dts = stored[number - 1].pts
        return stored

    return copied(path, reel(beside(path, "whole.mkv"), **STEADY), change=change)


def spoiled(path: Path, number: int) -> Path:
    """A film of which one packet holds noise."""
    reel(path, codec="mpeg4", keyframes=25)
    content = bytearray(path.read_bytes())
    packet = packets(path)[number]
    at = content.index(bytes(packet))
    content[at + 8 : at + packet.size] = random.Random(0).randbytes(packet.size - 8)
    path.write_bytes(content)
    return path


def too_large(path: Path, *numbers: int) -> Path:
    """A film of which these frames say that they are 16000 x 16000."""
    reel(path, N, base=AT_25, codec="dnxhd", size=(256, 120), pix_fmt="yuv422p", options={"profile": "dnxhr_lb"})
    content, stored = bytearray(path.read_bytes()), packets(path)
    for number in numbers:
        struct.pack_into(">HH", content, content.index(bytes(stored[number])) + 24, 16000, 16000)
    path.write_bytes(content)
    return path


def two_joined(path: Path, first: dict[str, Any], second: dict[str, Any]) -> bytes:
    """Two files as one: the bytes of the second behind those of the first."""
    return b"".join(
        reel(beside(path, f"{n}{path.suffix}"), **options).read_bytes() for n, options in enumerate((first, second))
    )


def two_sizes(path: Path, **options: Any) -> Path:
    small, large = (reel(beside(path, f"{size[0]}{path.suffix}"), size=size, **options) for size in ((96, 64), (128, 96)))
    return copied(path, small, large)


def with_cover(path: Path, audio: str) -> Path:
    """Sound with a picture attached to it."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream(audio, rate=48000, layout="mono")
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = Disposition.attached_pic.value
        frame = av.VideoFrame.from_ndarray(numbered(0, (32, 32)), format="rgb24")
        frame.pts = 0
        container.mux([*cover.encode(frame), *cover.encode()])
        container.mux([*sound.encode(silence()), *sound.encode()])
    return path


def playlist(address: str) -> bytes:
    """An HLS playlist of one piece that lies somewhere else."""
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n{address}\n#EXT-X-ENDLIST\n".encode()


def ffconcat(path: Path) -> bytes:
    return f"ffconcat version 1.0\nfile '{reel(beside(path, 'part.mp4'))}'\n".encode()


def by_protocol(path: Path) -> str:
    """A name that FFmpeg takes for the protocol that joins two files."""
    return f"concat:{reel(beside(path, 'a.ts'))}|{reel(beside(path, 'b.ts'))}"


def named_like_a_protocol(path: Path) -> None:
    reel(beside(path, "whole.mp4")).rename(path)


def long_film(path: Path, frames: int, *, seconds: int = 1, size: tuple[int, int] = (32, 32)) -> Path:
    """A film of a frame each so many seconds, quickly: one group of ten frames, over and over."""
    with av.open(str(reel(beside(path, "ten.mkv"), EVEN[:10], size=size, max_b_frames=0, noise=False))) as old:
        stream = old.streams.video[0]
        group = [packet for packet in old.demux(stream) if packet.size]
        with av.open(str(path), "w") as container:
            copy = container.add_stream_from_template(stream)
            for n in range(frames):
                packet = group[n % 10]
                packet.stream, packet.time_base, packet.duration = copy, MILLISECONDS, 1000 * seconds
                packet.pts = packet.dts = 1000 * seconds * n
                container.mux(packet)
    return path


# --- animations -------------------------------------------------------------------------------------------------------

PAUSES = (40, 200, 90, 500)
UNEVEN_PAUSES = Film([0, 40, 240, 330], lasts_ms=830, size=(24, 16))


def animation(path: Path, pauses: Sequence[int] = PAUSES, **options: Any) -> None:
    """Each frame for so many milliseconds."""
    first, *rest = [Image.fromarray(numbered(n, (24, 16))) for n in range(len(pauses))]
    first.save(path, save_all=True, append_images=rest, duration=list(pauses), **options)


def clock_of_zero(path: Path) -> bytes:
    """Its ticks are so long that there are none in a second."""
    animation(path)
    content = bytearray(path.read_bytes())
    version = content[at := content.index(b"mdhd") + 4]
    struct.pack_into(">I", content, at + (20 if version else 12), 0)
    return bytes(content)


def gif_with_disposal(path: Path) -> None:
    """Over a full first frame a dot appears, is taken away with what is below it, and another appears: what is no longer
    covered is transparent."""
    frames = []
    for n, dot in enumerate([None, (0, 0), (0, 16)]):
        frame = np.full((16, 24), 0 if n == 0 else 2, np.uint8)  # of the palette; 2 is transparent
        if dot:
            frame[dot[0] : dot[0] + 8, dot[1] : dot[1] + 8] = 1
        frames.append(Image.fromarray(frame).convert("P"))
        frames[-1].putpalette([*[grey_of(0)] * 3, *RED, 0, 255, 0])
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=100, transparency=2, disposal=[1, 2, 1], optimize=False
    )


# --- images -----------------------------------------------------------------------------------------------------------

RED, GREEN, BLUE, YELLOW, WHITE = (220, 30, 30), (30, 160, 60), (30, 60, 200), (240, 210, 40), (255, 255, 255)
SCENE = np.zeros((48, 64, 3), np.uint8)  # [H, W, 3], a colour in each quarter
SCENE[:24, :32], SCENE[:24, 32:], SCENE[24:, :32], SCENE[24:, 32:] = RED, GREEN, BLUE, YELLOW
SEEN = {(12, 16): RED, (12, 48): GREEN, (36, 16): BLUE, (36, 48): YELLOW}
EXACT, LOSSY = Picture(colours=SEEN), Picture(colours=SEEN, within=12)
HIDDEN = Picture(colours={(9, 9): RED, (9, 48): (142, 157, 227), (36, 48): WHITE}, within=1)
GREYS = np.linspace(0, 1, 64)[None].repeat(48, axis=0)  # [H, W], black on the left to white on the right
GREYS_SEEN = {(0, column): (round(column / 63 * 255),) * 3 for column in (0, 1, 30, 31, 32, 63)}
TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
}
"""How the scene is stored for each EXIF orientation."""


def image(pixels: np.ndarray | Image.Image = SCENE, format: str = "PNG", **options: Any) -> bytes:
    """The content of an image file."""
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, format, **options)
    return buffer.getvalue()


def turned(orientation: int, format: str, **options: Any) -> bytes:
    """The scene, stored so that it has to be turned to be upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return image(np.ascontiguousarray(TURNS[orientation](SCENE)), format, exif=exif, **options)


def hidden(mode: str) -> Image.Image:
    """Red on the left; on the right blue that is half transparent above, and wholly below."""
    rgba = np.zeros((48, 64, 4), np.uint8)
    rgba[:, :32], rgba[:24, 32:], rgba[24:, 32:] = (*RED, 255), (*BLUE, 128), (*BLUE, 0)
    return Image.fromarray(rgba).convert(mode)


def palette(**options: Any) -> bytes:
    indices = np.zeros((48, 64), np.uint8)
    indices[:, 32:] = 1
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette([*RED, *BLUE])
    return image(picture, **options)


def chunk(kind: bytes, body: bytes) -> bytes:
    """Of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(size: tuple[int, int], rows: bytes, *, depth: int = 8, kind: int = 2, interlace: int = 0, extra: bytes = b"") -> bytes:
    """A PNG file of (W, H) pixels; `rows` is what it compresses, and `extra` other chunks before that."""
    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def unfiltered(pixels: np.ndarray) -> bytes:
    """Rows of pixels [H, W, C], each with a zero before it."""
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def interlaced() -> bytes:
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = b"".join(unfiltered(SCENE[y::down, x::right]) for y, x, down, right in passes)
    return png((64, 48), rows, interlace=1)


def text_bomb() -> bytes:
    """A comment that unpacks to 100 MB."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(100)) + packer.flush()
    return png((1, 1), bytes(4), extra=chunk(b"zTXt", b"Comment\0\0" + packed))


def big_endian_tiff() -> bytes:
    deep = (GREYS * 65535).round().astype(">u2")
    return image(Image.frombytes("I;16B", (64, 48), deep.tobytes()), "TIFF")


def lab_tiff() -> bytes:
    """A grey of half the lightness; a and b of no colour are 128."""
    return image(Image.merge("LAB", [Image.new("L", (64, 48), value) for value in (136, 128, 128)]), "TIFF")


def several(format: str, **options: Any) -> bytes:
    first, second = Image.fromarray(SCENE), Image.fromarray(255 - SCENE)
    return image(first, format, save_all=True, append_images=[second], **options)


def damaged_exif() -> bytes:
    """The scene, with noise in its EXIF block."""
    content, block = image(format="JPEG", quality=95), b"Exif\0\0" + random.Random(0).randbytes(40)
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + content[2:]


def heic(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(buffer, quality=95)
    return buffer.getvalue()


def second_frame(change: Callable[[bytearray, int], None]) -> bytes:
    """A GIF whose second frame's header, which begins at the given place, was changed."""
    content = bytearray(several("GIF"))
    change(content, content.rindex(b"\0,\0\0") + 1)
    return bytes(content)


def larger(size: int) -> Callable[[bytearray, int], None]:
    return lambda content, at: struct.pack_into("<HH", content, at + 5, size, size)


def ending(content: bytearray, at: int) -> None:
    del content[at + 10 :]


def replaced(content: bytes, old: bytes, new: bytes) -> bytes:
    assert content.count(old) == 1
    return content.replace(old, new)


def of(photograph: np.ndarray, within: int = 0) -> Picture:
    height, width, _ = photograph.shape
    points = [(height // 7 * k, width // 7 * j) for k in range(7) for j in range(7)]
    return Picture((height, width), {point: tuple(photograph[point].tolist()) for point in points}, within)


PHOTOGRAPH = data.chelsea()
SOFT = np.asarray(Image.fromarray(PHOTOGRAPH).resize((56, 37)).resize((451, 300), Image.Resampling.BICUBIC))

NO_VIDEO = r"cannot be read as a video \(known formats: mp4, mov"
NO_IMAGE = r"is not an image that can be opened \(known formats: JPEG, PNG"

IMAGES = (
    # upright, whatever the camera's
    *(Crafted(f"orientation {n}.jpg", lambda p, n=n: turned(n, "JPEG", quality=95), LOSSY) for n in TURNS),
    Crafted("orientation 6.png", lambda p: turned(6, "PNG"), EXACT),
    Crafted("orientation 8.webp", lambda p: turned(8, "WEBP", lossless=True), EXACT),
    Crafted("orientation 5.tiff", lambda p: turned(5, "TIFF"), EXACT),
    Crafted("orientation 3.avif", lambda p: turned(3, "AVIF", quality=95), LOSSY),
    Crafted("damaged exif.jpg", lambda p: damaged_exif(), LOSSY),
    # transparent
    *(
        Crafted(name, make, HIDDEN)
        for name, make in {
            "rgba with hidden colours.png": lambda p: image(hidden("RGBA")),
            "rgba with hidden colours.webp": lambda p: image(hidden("RGBA"), "WEBP", lossless=True),
            "rgba with hidden colours.tiff": lambda p: image(hidden("RGBA"), "TIFF"),
        }.items()
    ),
    Crafted("la.png", lambda p: image(hidden("LA")), Picture(colours={(9, 9): (86,) * 3, (9, 48): (162,) * 3, (36, 48): WHITE}, within=1)),
    Crafted("p.png", lambda p: palette(), Picture(colours={(9, 9): RED, (9, 48): BLUE})),
    Crafted("p with transparency.png", lambda p: palette(transparency=1), Picture(colours={(9, 9): RED, (9, 48): WHITE})),
    Crafted("p with transparency.gif", lambda p: palette(format="GIF", transparency=1), Picture(colours={(9, 9): RED, (9, 48): WHITE})),
    Crafted("rgb with a transparent colour.png", lambda p: image(transparency=BLUE), Picture(colours={**SEEN, (36, 16): WHITE})),
    # other modes and depths
    Crafted("l.png", lambda p: image((GREYS * 255).round().astype(np.uint8)), Picture(colours=GREYS_SEEN)),
    Crafted("1.png", lambda p: image(GREYS > 0.5), Picture(colours={(0, 0): (0, 0, 0), (0, 63): WHITE})),
    Crafted("grey.jpg", lambda p: image((GREYS * 255).astype(np.uint8), "JPEG"), Picture(colours=GREYS_SEEN, within=4)),
    Crafted("cmyk.jpg", lambda p: image(Image.fromarray(SCENE).convert("CMYK"), "JPEG", quality=95), LOSSY),
    Crafted("a strip that ends early.tiff", lambda p: replaced(image(np.full((48, 64), 200, np.uint8), "TIFF"), b"\x16\x01\x04\0\x01\0\0\0\x30", b"\x16\x01\x04\0\x01\0\0\0\x01"), Picture(colours={(0, 16): (200,) * 3, (36, 16): (0, 0, 0)})),
    Crafted("cmyk.tiff", lambda p: image(Image.fromarray(SCENE).convert("CMYK"), "TIFF"), EXACT),
    Crafted("lab.tiff", lambda p: lab_tiff(), Picture(colours={(9, 9): (127, 127, 127)}, within=3)),
    Crafted("16 bit grey.png", lambda p: image((GREYS * 65535).round().astype(np.uint16)), Picture(colours=GREYS_SEEN)),
    Crafted("16 bit grey.tiff", lambda p: image((GREYS * 65535).round().astype(np.uint16), "TIFF"), Picture(colours=GREYS_SEEN)),
    Crafted("16 bit big-endian.tiff", lambda p: big_endian_tiff(), Picture(colours=GREYS_SEEN)),
    Crafted("16 bit rgb.png", lambda p: png((64, 48), unfiltered((SCENE.astype(np.uint16) * 257).astype(">u2")), depth=16), EXACT),
    Crafted("float.tiff", lambda p: image(GREYS.astype(np.float32), "TIFF"), Picture(colours=GREYS_SEEN, within=1)),
    Crafted("float of another range.tiff", lambda p: image(GREYS.astype(np.float32) * 255, "TIFF"), Refused(r"float pixels go from 0 \(black\) to 1 \(white\), but these from 0 to 255", "image")),
    Crafted("32 bit.tiff", lambda p: image((GREYS * 1e6).astype(np.int32), "TIFF"), Refused(r"has 32-bit pixels, whose range is not stated", "image")),
    # formats
    Crafted("photograph.png", lambda p: image(PHOTOGRAPH), of(PHOTOGRAPH)),
    Crafted("photograph.webp", lambda p: image(PHOTOGRAPH, "WEBP", lossless=True), of(PHOTOGRAPH)),
    Crafted("progressive.jpg", lambda p: image(SOFT, "JPEG", progressive=True, quality=95), of(SOFT, 12)),
    Crafted("photograph.avif", lambda p: image(SOFT, "AVIF", quality=95), of(SOFT, 12)),
    Crafted("photograph.heic", lambda p: heic(SOFT), of(SOFT, 12)),
    Crafted("scene.bmp", lambda p: image(format="BMP"), EXACT),
    Crafted("scene.webp", lambda p: image(format="WEBP", quality=95), Picture(colours=SEEN, within=16)),
    Crafted("lzw.tiff", lambda p: image(format="TIFF", compression="tiff_lzw"), EXACT),
    Crafted("jpeg.tiff", lambda p: image(format="TIFF", compression="jpeg", quality=95), LOSSY),
    Crafted("one frame.gif", lambda p: image(format="GIF"), Picture(colours=SEEN, within=1)),
    Crafted("scene.jp2", lambda p: image(format="JPEG2000"), EXACT),
    Crafted("scene.j2k", lambda p: image(format="JPEG2000", no_jp2=True, quality_layers=[20], irreversible=True), LOSSY),
    Crafted("16 bit grey.jp2", lambda p: image((GREYS * 65535).round().astype(np.uint16), "JPEG2000"), Picture(colours=GREYS_SEEN)),
    Crafted("two sizes.ico", lambda p: image(format="ICO", sizes=[(64, 48), (16, 12)]), EXACT),
    Crafted("bitmap.ico", lambda p: image(format="ICO", sizes=[(64, 48)], bitmap_format="bmp"), EXACT),
    Crafted("rgba with hidden colours.ico", lambda p: image(hidden("RGBA"), "ICO", sizes=[(64, 48)]), HIDDEN),
    Crafted("scene.ppm", lambda p: image(format="PPM"), EXACT),
    Crafted("numbers.pgm", lambda p: b"P2 # as text\n64 48 100\n" + b" ".join(b"%d" % round(100 * grey) for grey in GREYS.flat), Picture(colours=GREYS_SEEN, within=2)),
    Crafted("16 bit.pgm", lambda p: b"P5 64 48 65535\n" + (GREYS * 65535).round().astype(">u2").tobytes(), Picture(colours=GREYS_SEEN)),
    Crafted("12 bit.pgm", lambda p: b"P5 64 48 4095\n" + (GREYS * 4095).round().astype(">u2").tobytes(), Picture(colours=GREYS_SEEN)),
    Crafted("16 bit.ppm", lambda p: b"P6 64 48 65535\n" + (SCENE.astype(np.uint16) * 257).astype(">u2").tobytes(), EXACT),
    Crafted("1 bit.pbm", lambda p: image(GREYS > 0.5, "PPM"), Picture(colours={(0, 0): (0, 0, 0), (0, 63): WHITE})),
    Crafted("floats.pfm", lambda p: image(Image.fromarray(GREYS.astype(np.float32)), "PPM"), Picture(colours=GREYS_SEEN, within=1)),
    Crafted("scene.tga", lambda p: image(format="TGA"), EXACT),
    Crafted("rgba with hidden colours.tga", lambda p: image(hidden("RGBA"), "TGA", compression="tga_rle"), HIDDEN),
    Crafted("interlaced.png", lambda p: interlaced(), EXACT),
    Crafted("gamma.png", lambda p: png((64, 48), unfiltered(SCENE), extra=chunk(b"gAMA", struct.pack(">I", 100000))), EXACT),
    Crafted("icc.png", lambda p: image(icc_profile=bytes(200)), EXACT),
    Crafted("junk behind it.jpg", lambda p: image(format="JPEG", quality=95) + b"<html>" * 99, LOSSY),
    Crafted("two views.mpo", lambda p: several("MPO", quality=95), LOSSY),
    # sizes
    Crafted("1x1.png", lambda p: image(SCENE[:1, :1]), Picture((1, 1), {(0, 0): RED}, resized=(56, 56))),
    Crafted("1000x4.png", lambda p: image(np.zeros((4, 1000), np.uint8)), Picture((4, 1000), resized=r"4 x 1000|more elongated than 200:1")),
    Crafted("1000x1.png", lambda p: image(np.zeros((1, 1000), np.uint8)), Picture((1, 1000), resized=r"more elongated than 200:1")),
    Crafted("5600x28.png", lambda p: image(np.zeros((28, 5600), np.uint8)), Picture((28, 5600), resized=(28, 5600))),
    Crafted("65535x65535.png", lambda p: png((65535, 65535), b"", kind=0), Refused(r"is too large: .*4294836225 pixels", "image")),
    Crafted("12000x12000.png", lambda p: png((12000, 12000), bytes(12000 * 1501), depth=1, kind=0), Refused(r"144000000 pixels|12000 x 12000 = 144 million pixels, the limit is 64 million", "image")),
    Crafted("9000x9000.png", lambda p: png((9000, 9000), bytes(9000 * 1126), depth=1, kind=0), Refused(r"9000 x 9000 = 81 million pixels, the limit is 64 million; raise it with Limits\(max_image_pixels", "image")),
    Crafted("text bomb.png", lambda p: text_bomb(), Refused(NO_IMAGE + ".*Decompressed data too large", "image")),
    # what moves
    Crafted("first of two.gif", lambda p: several("GIF"), Picture(colours=SEEN, within=1, animation="first")),
    Crafted("first of two.webp", lambda p: several("WEBP", lossless=True), Picture(colours=SEEN, animation="first")),
    Crafted("first of two.png", lambda p: several("PNG"), Picture(colours=SEEN, animation="first")),
    Crafted("first of two.avif", lambda p: several("AVIF", quality=95), Picture(colours=SEEN, within=12, animation="first")),
    Crafted("first of two.tiff", lambda p: several("TIFF"), Picture(colours=SEEN, animation="first")),
    *(
        Crafted(
            f"moving.{form.lower()}",
            lambda p, form=form: several(form),
            Refused(r"has 2 frames: give it as a video, or take its first with animation='first'", "image"),
        )
        for form in ("GIF", "WEBP", "PNG", "AVIF")
    ),
    Crafted("two pages.tiff", lambda p: several("TIFF"), Refused(r"has more than one page: take the first with animation='first'", "image")),
    # damaged, or something else
    Crafted("cut off.jpg", lambda p: image(PHOTOGRAPH, "JPEG")[:9000], Refused(r"is damaged and cannot be decoded as JPEG", "image")),
    Crafted("cut off.png", lambda p: image(PHOTOGRAPH)[:20000], Refused(r"is damaged and cannot be decoded as PNG", "image")),
    Crafted("cut off.webp", lambda p: image(PHOTOGRAPH, "WEBP")[:5000], Refused(r"is not an image|is damaged", "image")),
    Crafted("cut off.gif", lambda p: image(PHOTOGRAPH, "GIF")[:9000], Refused(r"is damaged and cannot be decoded as GIF", "image")),
    Crafted("fractional offset.tiff", lambda p: replaced(image(format="TIFF"), b"\x11\x01\x04\0", b"\x11\x01\x0b\0"), Refused(r"is damaged and cannot be decoded as TIFF", "image")),
    Crafted("zero bytes.jpg", lambda p: b"", Refused(NO_IMAGE, "image")),
    Crafted("junk.jpg", lambda p: random.Random(1).randbytes(5000), Refused(NO_IMAGE, "image")),
    Crafted("page.jpg", lambda p: b"<!doctype html><html><body>404 Not Found</body></html>", Refused(NO_IMAGE, "image")),
    Crafted("drawing.svg", lambda p: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', Refused(NO_IMAGE, "image")),
    Crafted("no more than a header.heic", lambda p: struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(200), Refused(NO_IMAGE, "image")),
    Crafted("scene.eps", lambda p: image(format="EPS"), Refused(NO_IMAGE, "image")),
    Crafted("scene.pcx", lambda p: image(format="PCX"), Refused(NO_IMAGE, "image")),
    Crafted("scene without a footer.tga", lambda p: image(format="TGA")[:-26], Refused(NO_IMAGE, "image")),
)  # fmt: skip

EVENLY = Film(EVEN, lasts_ms=1000)
OPEN_GROUPS = {"x264-params": "open-gop=1:bframes=3:b-pyramid=normal"}
CUT_OFF = Film(EVEN[:13], N[12:], start_ms=480)
GAP = Film([t for t in EVEN if t != 480], [n for n in N if n != 12], lost=range(12, 22))
STEADY = {"max_b_frames": 0, "options": {"sc_threshold": "0"}}  # keyframes at 0, 12 and 24 alone, frames stored as shown
OF_TWO_SIZES = Refused(r"changes its size from 96 x 64 to 128 x 96 at [12].\d+ s; re-encode it to one size", "frames")

FILMS = (
    # times
    Crafted("even.mp4", reel, EVENLY),
    Crafted("even.mkv", reel, EVENLY),
    Crafted("even.webm", lambda p: reel(p, codec="libvpx-vp9"), EVENLY),
    *(Crafted(f"uneven.{form}", lambda p: reel(p, UNEVEN), Film(UNEVEN)) for form in ("mp4", "mkv")),
    Crafted("uneven.webm", lambda p: reel(p, UNEVEN, codec="libvpx-vp9"), Film(UNEVEN)),
    Crafted("late start.mp4", lambda p: reel(p, [5000 + t for t in EVEN]), Film(EVEN, start_ms=5000)),
    Crafted("late start.mkv", lambda p: reel(p, [5000 + t for t in EVEN]), Film(EVEN, start_ms=5000)),
    Crafted("early start.mkv", lambda p: reel(p, [t - 200 for t in EVEN], max_b_frames=0), EVENLY),
    Crafted("before zero is hidden.mp4", lambda p: reel(p, [t - 200 for t in EVEN], max_b_frames=0), Film(EVEN[:20], N[5:])),
    Crafted("before zero is shown.mp4", lambda p: reel(p, [t - 200 for t in EVEN], max_b_frames=0, muxer={"use_editlist": "0"}), EVENLY),
    Crafted("times below zero.mkv", lambda p: reel(p, [t - 200 for t in EVEN], max_b_frames=0, muxer={"avoid_negative_ts": "disabled"}), Film(EVEN, start_ms=-200)),
    Crafted("29.97.mp4", lambda p: reel(p, [1001 * n for n in N], base=Fraction(1, 30000)), Film([1001 * n / 30 for n in N])),
    Crafted("59.94.ts", lambda p: reel(p, [1001 * n for n in N], base=Fraction(1, 60000), max_b_frames=0), Film([1001 * n / 60 for n in N])),
    Crafted("59.94.mkv", lambda p: reel(p, [1001 * n for n in N], base=Fraction(1, 60000)), Film([1001 * n / 60 for n in N])),
    Crafted("an hour between frames.mp4", lambda p: reel(p, [0, 40, 80, 3600080, 3600120]), Film([0, 40, 80, 3600080, 3600120])),
    Crafted("an hour between frames.mkv", lambda p: reel(p, [0, 40, 80, 3600080, 3600120]), Film([0, 40, 80, 3600080, 3600120])),
    Crafted("slides for two hours.mp4", lambda p: reel(p, [300_000 * n for n in N]), Film([300_000 * n for n in N])),
    *(
        Crafted(
            f"{what} has the time of another.mkv",
            lambda p, n=n: with_a_time_twice(p, n),
            Film([t if t != 40 * n else t - 39 for t in EVEN]),  # both are shown, one a tick later
        )
        for what, n in {"a frame": 6, "a keyframe": 12, "the last frame": 24}.items()
    ),
    Crafted("a day and more.mkv", lambda p: reel(p, [0, 90_000_000]), Refused(r"lasts 90000 s, the limit is 86400; cut it or raise it with Limits\(max_video_seconds")),
    # edit lists
    Crafted("starts in a group.mp4", lambda p: trimmed(reel(beside(p, "whole.mp4")), p, 0.32), Film(EVEN[:17], N[8:])),
    Crafted("starts at a keyframe.mp4", lambda p: trimmed(reel(beside(p, "whole.mp4")), p, 0.48), Film(EVEN[:13], N[12:])),
    Crafted("first half.mp4", lambda p: edited(p, [(500, 0)]), Film(EVEN[:13])),
    Crafted("without its middle.mp4", lambda p: edited(p, [(200, 0), (400, 600)], max_b_frames=0), Film(EVEN[:15], [*N[:5], *N[15:]])),
    Crafted("in another order.mp4", lambda p: edited(p, [(200, 480), (200, 0)], max_b_frames=0), Film(EVEN[:10], [*N[12:17], *N[:5]])),
    Crafted("shown late.mp4", lambda p: edited(p, [(2000, -1), (1000, 0)]), Film(EVEN, start_ms=2000)),
    Crafted("nothing of it.mp4", lambda p: edited(p, [(400, 90_000)]), Refused(r"has a video stream without packets; is the file cut off\?")),
    # groups of pictures
    Crafted("every frame a keyframe.mp4", lambda p: reel(p, keyframes=1), EVENLY),
    Crafted("one keyframe.mp4", lambda p: reel(p, keyframes=250, options={"sc_threshold": "0"}), EVENLY),
    Crafted("without b-frames.mp4", lambda p: reel(p, max_b_frames=0), EVENLY),
    Crafted("many b-frames.mp4", lambda p: reel(p, max_b_frames=8, keyframes=25, options={"sc_threshold": "0", "x264-params": "b-adapt=0:b-pyramid=normal"}), EVENLY),
    Crafted("refreshed step by step.mp4", lambda p: reel(p, options={"x264-params": "intra-refresh=1"}), EVENLY),
    Crafted("refreshed step by step.mkv", lambda p: reel(p, options={"x264-params": "intra-refresh=1"}), EVENLY),
    Crafted("open groups.mp4", lambda p: reel(p, options=OPEN_GROUPS), EVENLY),
    Crafted("open groups.mkv", lambda p: reel(p, options=OPEN_GROUPS), EVENLY),
    Crafted("open groups hevc.mp4", lambda p: reel(p, codec="libx265", options={"x265-params": "log-level=0:open-gop=1:bframes=4"}), EVENLY),
    Crafted("open groups hevc.mkv", lambda p: reel(p, codec="libx265", options={"x265-params": "log-level=0:open-gop=1:bframes=4"}), EVENLY),
    Crafted("one frame.mp4", lambda p: reel(p, [0]), Film([0])),
    Crafted("one frame.mkv", lambda p: reel(p, [0]), Film([0])),
    Crafted("two frames.mp4", lambda p: reel(p, [0, 40]), Film([0, 40], lasts_ms=80)),
    Crafted("begins between keyframes.mkv", lambda p: without(p, 0, 1, 2), CUT_OFF),
    Crafted("begins between keyframes hevc.mkv", lambda p: copied(p, reel(beside(p, "whole.mkv"), codec="libx265", max_b_frames=0, options={"x265-params": "log-level=0:bframes=0:scenecut=0"}), change=lambda stored: stored[3:]), CUT_OFF),
    Crafted("a keyframe is gone.mkv", lambda p: without(p, 12), GAP),
    Crafted("a keyframe is gone.mp4", lambda p: without(p, 12), GAP),
    Crafted("no keyframes.mkv", lambda p: without(p, 0, 12, 24), Refused(r"no frame of its 22 packets can be decoded; is the file damaged")),
    Crafted("noise in a frame.mkv", lambda p: spoiled(p, 8), Refused(r"is damaged: frame 8 came out in part; take the others with damaged='keep'")),
    # upright
    Crafted("turned by 0.mp4", lambda p: reel(p, rotation=0), EVENLY),
    Crafted("turned by 90.mp4", lambda p: reel(p, rotation=90), Film(EVEN, size=(64, 96), corner=(1, 0))),
    Crafted("turned by 180.mp4", lambda p: reel(p, rotation=180), Film(EVEN, corner=(1, 1))),
    Crafted("turned by 270.mp4", lambda p: reel(p, rotation=270), Film(EVEN, size=(64, 96), corner=(0, 1))),
    Crafted("turned by 90.mkv", lambda p: copied(p, reel(beside(p, "turned.mp4"), rotation=90)), Film(EVEN, size=(64, 96), corner=(1, 0))),
    Crafted("turned by 45.mp4", lambda p: reel(p, rotation=45), Refused(r"is rotated by 45 degrees; only quarter turns are known: re-encode it upright")),
    # codecs and containers
    Crafted("hevc.mp4", lambda p: reel(p, codec="libx265", options=QUIET_265), EVENLY),
    Crafted("10 bit hevc.mp4", lambda p: reel(p, codec="libx265", pix_fmt="yuv420p10le", options=QUIET_265), EVENLY),
    Crafted("10 bit.mp4", lambda p: reel(p, pix_fmt="yuv420p10le"), EVENLY),
    Crafted("vp8.webm", lambda p: reel(p, codec="libvpx"), EVENLY),
    Crafted("vp9.mp4", lambda p: reel(p, codec="libvpx-vp9"), EVENLY),
    Crafted("vp8.ogv", lambda p: reel(p, N, base=AT_25, codec="libvpx"), EVENLY),
    Crafted("av1.mp4", lambda p: reel(p, codec="libsvtav1"), EVENLY),
    Crafted("av1.webm", lambda p: reel(p, codec="libsvtav1"), EVENLY),
    Crafted("mpeg4.mp4", lambda p: reel(p, codec="mpeg4", max_b_frames=2), EVENLY),
    Crafted("mpeg4.avi", lambda p: reel(p, N, base=AT_25, codec="mpeg4"), EVENLY),
    Crafted("mpeg4 with b-frames.avi", lambda p: reel(p, N, base=AT_25, codec="mpeg4", max_b_frames=2), Film(EVEN, start_ms=40)),
    Crafted("mjpeg.avi", lambda p: reel(p, N, base=AT_25, codec="mjpeg", pix_fmt="yuvj420p"), EVENLY),
    Crafted("h264.avi", lambda p: reel(p, N, base=AT_25, max_b_frames=0), EVENLY),
    Crafted("h264 with b-frames.avi", lambda p: reel(p, N, base=AT_25), Film(EVEN, start_ms=80)),
    Crafted("h264.ts", lambda p: reel(p, max_b_frames=0), EVENLY),
    Crafted("b-frames.ts", reel, Film(EVEN, start_ms=80)),
    Crafted("mpeg2.ts", lambda p: reel(p, N, base=AT_25, codec="mpeg2video", max_b_frames=2), Film(EVEN, start_ms=40)),
    *(
        Crafted(
            f"{codec} with {b} b-frames.mpg",
            lambda p, codec=codec, b=b: reel(p, N, base=AT_25, codec=codec, size=(352, 288), max_b_frames=b),
            Film(EVEN, start_ms=540, size=(352, 288)),
        )
        for codec in ("mpeg1video", "mpeg2video")
        for b in (0, 2)
    ),
    Crafted("small frames.mpg", lambda p: reel(p, N, base=AT_25, codec="mpeg2video", max_b_frames=0, noise=False), Film(EVEN, start_ms=540)),
    Crafted("tiny frames.mpg", lambda p: reel(p, N, base=AT_25, codec="mpeg2video", max_b_frames=2, noise=False, options={"b": "0"}), Film([*EVEN[:21], 800, 800, 840, 880], start_ms=540, corner=None)),  # as ffmpeg has it: the last state times of others
    Crafted("h264.mpg", lambda p: reel(p, N, base=AT_25), Film(EVEN, start_ms=580)),
    Crafted("h264.flv", lambda p: reel(p, max_b_frames=0), EVENLY),
    Crafted("flv1.flv", lambda p: reel(p, codec="flv"), EVENLY),
    Crafted("wmv2.wmv", lambda p: reel(p, codec="wmv2"), EVENLY),
    Crafted("msmpeg4.wmv", lambda p: reel(p, codec="msmpeg4"), EVENLY),
    Crafted("prores.mov", lambda p: reel(p, codec="prores_ks", pix_fmt="yuv422p10le"), EVENLY),
    Crafted("ffv1.mkv", lambda p: reel(p, codec="ffv1"), EVENLY),
    Crafted("h263.3gp", lambda p: reel(p, codec="h263", size=(176, 144)), Film(EVEN, size=(176, 144))),
    Crafted("fragments.mp4", lambda p: reel(p, max_b_frames=0, muxer={"movflags": "frag_keyframe+empty_moov"}), EVENLY),
    Crafted("snow.mkv", lambda p: reel(p, codec="snow"), Refused(r"is coded as snow, which is not opened; re-encode it as h264")),
    Crafted("magicyuv.avi", lambda p: reel(p, codec="magicyuv"), Refused(r"is coded as magicyuv, which is not opened")),  # CVE-2026-8461
    # sizes
    Crafted("97x63.mp4", lambda p: reel(p, size=(97, 63), pix_fmt="yuv444p"), Film(EVEN, size=(97, 63))),
    Crafted("98x66.mp4", lambda p: reel(p, size=(98, 66)), Film(EVEN, size=(98, 66))),
    Crafted("97x63.webm", lambda p: reel(p, size=(97, 63), codec="libvpx-vp9"), Film(EVEN, size=(97, 63))),
    Crafted("pixels twice as wide.mp4", lambda p: reel(p, pixel_aspect=Fraction(2)), EVENLY),
    Crafted("two sizes.mkv", lambda p: two_sizes(p, codec="mjpeg", pix_fmt="yuvj420p"), OF_TWO_SIZES),
    Crafted("two sizes.webm", lambda p: two_sizes(p, codec="libvpx-vp9"), OF_TWO_SIZES),
    Crafted("two sizes.ts", lambda p: two_joined(p, {}, {"times": [2000 + t for t in EVEN], "size": (128, 96)}), OF_TWO_SIZES),
    Crafted("two recordings of one time.ts", lambda p: two_joined(p, {}, {}), Film([40 * n for n in range(50)], [*N, *N], start_ms=80)),
    Crafted("frames of 256 million pixels.mov", lambda p: too_large(p, *N), Refused(NO_VIDEO if PYAV_17_1 else r"has frames of 16000 x 16000 = 256 million pixels")),
    Crafted("one frame of 256 million pixels.mov", lambda p: too_large(p, 12), Refused(r"is damaged", "frames")),
    # other streams
    Crafted("with sound.mp4", lambda p: reel(p, audio="aac"), EVENLY),
    Crafted("with sound.mkv", lambda p: reel(p, audio="aac"), EVENLY),
    Crafted("with sound.ts", lambda p: reel(p, audio="aac", max_b_frames=0), EVENLY),
    Crafted("sound.m4a", sound, Refused(r"has no video stream \(only audio\)")),
    Crafted("sound with a cover.mp4", lambda p: with_cover(p, "aac"), Refused(r"has no video stream \(only audio, video\)")),
    Crafted("sound with a cover.mp3", lambda p: with_cover(p, "libmp3lame"), Refused(NO_VIDEO)),
    # animations
    Crafted("uneven.gif", animation, UNEVEN_PAUSES),
    Crafted("uneven animation.webp", lambda p: animation(p, lossless=True), UNEVEN_PAUSES),
    Crafted("uneven animation.png", animation, UNEVEN_PAUSES),
    Crafted("uneven animation.avif", animation, UNEVEN_PAUSES),
    Crafted("without pauses.gif", lambda p: animation(p, [0, 0, 0]), Film([0, 100, 200], lasts_ms=300, size=(24, 16))),
    Crafted("too short pauses.gif", lambda p: animation(p, [10, 20, 10]), Film([0, 100, 120], lasts_ms=220, size=(24, 16))),
    Crafted("too short pauses.webp", lambda p: animation(p, [10, 11, 10], lossless=True), Film([0, 100, 111], lasts_ms=211, size=(24, 16))),
    Crafted("disposal.gif", gif_with_disposal, Film([0, 100, 200], (), size=(24, 16), corner=None, colours={(0, 0, 0): (30,) * 3, (1, 0, 0): RED, (1, 0, 20): (30,) * 3, (2, 0, 0): WHITE, (2, 0, 20): RED})),
    Crafted("one picture.gif", lambda p: animation(p, [500]), Film([0], lasts_ms=500, size=(24, 16))),
    *(
        Crafted(
            f"still.{form.lower()}",
            lambda p, form=form: image(format=form),
            Refused(rf"is a still image \({form}\), not a film: give it as an image"),
        )
        for form in ("PNG", "WEBP", "AVIF")
    ),
    Crafted("still.jpg", lambda p: image(format="JPEG"), Refused(NO_VIDEO)),
    Crafted("cut off animation.gif", lambda p: several("GIF")[:-40], Refused(r"is damaged")),
    Crafted("cut off in a header.gif", lambda p: second_frame(ending), Refused(r"is damaged at frame 1")),
    Crafted("a frame too large.gif", lambda p: second_frame(larger(100)), Refused(r"is damaged: frame 1 is 100 x 100, larger than the film")),
    Crafted("a frame far too large.gif", lambda p: second_frame(larger(65535)), Refused(r"is damaged: frame 1 is 65535 x 65535, larger than the film")),
    Crafted("a clock that stands still.avif", lambda p: clock_of_zero(p), Refused(r"is damaged: there are no ticks in a second")),
    # files that name others
    Crafted("local.m3u8", lambda p: playlist(str(reel(beside(p, "part.ts")))), Refused(NO_VIDEO)),
    Crafted("remote.m3u8", lambda p: playlist("http://127.0.0.1:9/part.ts"), Refused(NO_VIDEO)),
    Crafted("list.ffconcat", ffconcat, Refused(NO_VIDEO)),
    Crafted("joined by a protocol.ts", by_protocol, Refused(r"no such file")),
    Crafted("concat:a.mp4|b.mp4", named_like_a_protocol, EVENLY),
    # damaged, or something else
    Crafted("cut off.mp4", lambda p: reel(beside(p, "whole.mp4")).read_bytes()[:2000], Refused(NO_VIDEO)),
    Crafted("cut off.mkv", lambda p: reel(beside(p, "whole.mkv"), codec="mjpeg", pix_fmt="yuvj420p").read_bytes()[:10_000], Refused(r"is cut off: it lacks at least [\d,]+ bytes at its end; 5 frames, 0.20 s, are there: take them with damaged='keep'")),
    Crafted("zero bytes.mp4", lambda p: b"", Refused(NO_VIDEO)),
    Crafted("junk.mp4", lambda p: random.Random(1).randbytes(5000), Refused(NO_VIDEO)),
    Crafted("text.mp4", lambda p: b"It was a dark and stormy night.\n" * 50, Refused(NO_VIDEO)),
    Crafted("page.mp4", lambda p: b"<!doctype html><html><body>404 Not Found</body></html>", Refused(NO_VIDEO)),
)  # fmt: skip

CRAFTED = (*IMAGES, *FILMS)
