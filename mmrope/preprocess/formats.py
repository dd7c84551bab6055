"""Which files are opened, and why others are not: the one table behind what Pillow may try, `mmrope formats` and docs/media.md.

Films are listed where FFmpeg's names for them stand, in probe.py. This module imports nothing heavy: the command
line reads it at every start.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from textwrap import wrap

_MEDIA = "mmrope[media]"


@dataclass(frozen=True)
class ImageFormat:
    """A format of images that is opened."""

    name: str
    plugin: str
    """Pillow's name of what decodes it."""
    endings: tuple[str, ...]
    """Of file names. They are for people: a file is known by its content."""
    why: str
    """Why it can be opened safely, and what is watched."""
    moves: bool = False
    """Whether such a file can be an animation."""
    needs: str = _MEDIA
    """The extra that brings its decoder."""


@dataclass(frozen=True)
class RefusedFormat:
    """A format that Pillow or FFmpeg may know and that is not opened."""

    name: str
    why: str


IMAGE_FORMATS = (
    ImageFormat("JPEG", "JPEG", (".jpg", ".jpeg", ".jfif", ".mpo"), "libjpeg-turbo; of the views in a phone's MPO, the first"),
    ImageFormat("PNG", "PNG", (".png", ".apng"), "zlib; a comment that unpacks to more than 1 MB is refused", moves=True),
    ImageFormat("WebP", "WEBP", (".webp",), "libwebp", moves=True),
    ImageFormat("AVIF", "AVIF", (".avif", ".avifs"), "libavif and dav1d", moves=True),
    ImageFormat("GIF", "GIF", (".gif",), "a small decoder; frames that do not fit their canvas are refused", moves=True),
    ImageFormat("BMP", "BMP", (".bmp",), "nothing but rows of pixels"),
    ImageFormat(
        "TIFF",
        "TIFF",
        (".tif", ".tiff"),
        "libtiff; fax compression from 4.7.2 on alone, because older ones show memory; of several pages, the first if told to",
    ),
    ImageFormat(
        "JPEG 2000",
        "JPEG2000",
        (".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".jpf"),
        "OpenJPEG; files of more tiles than an image needs are refused, because each tile takes memory before it is decoded",
    ),
    ImageFormat(
        "ICO",
        "ICO",
        (".ico",),
        "PNG or BMP inside: the largest picture; the sizes of all are checked first, because Pillow decodes as it opens",
    ),
    ImageFormat(
        "PNM", "PPM", (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"), "nothing but pixels, or numbers as text: as large as the file"
    ),
    ImageFormat(
        "TGA",
        "TGA",
        (".tga",),
        "a small decoder; with the footer of version 2 alone: TGA has no other mark, and noise would pass for a picture",
    ),
    ImageFormat(
        "HEIC",
        "HEIF",
        (".heic", ".heics", ".heif", ".heifs", ".hif"),
        "libheif, which is an extra of 27 MB; of a burst, its primary picture",
        needs="mmrope[heic]",
    ),
)
"""Every format of images that is opened. Whatever else Pillow can read stays closed: its decoders see no untrusted bytes."""

REFUSED_FORMATS = (
    RefusedFormat("EPS, PostScript", "a program, which Pillow would have Ghostscript run: render it first"),
    RefusedFormat("PDF, SVG", "drawings, which may name other files and have no pixels of their own: render them first"),
    RefusedFormat("WMF, EMF", "drawn by Windows alone, with its own renderer"),
    RefusedFormat("FITS, HDF5, GRIB", "measurements without a stated black and white: give an array of floats from 0 to 1"),
    RefusedFormat("PSD, XCF", "layers, of which a reader shows some: export the picture"),
    RefusedFormat("JPEG XL", "Pillow has no decoder for it"),
    RefusedFormat("TGA without a footer", "nothing says that it is one: convert it to PNG"),
    RefusedFormat("other formats of Pillow", "rare (PCX, SGI, DDS, ICNS, XBM, FLI, ...), and their decoders are little tried"),
    RefusedFormat("playlists and scripts", "m3u8, mpd, ffconcat and image sequences open other files and URLs"),
)


def listed(containers: Iterable[str], codecs: Iterable[str]) -> str:
    """All that is opened and what is refused, as text.

    Args:
        containers: FFmpeg's names of the containers of videos that are opened.
        codecs: FFmpeg's names of the codecs that are decoded.
    """
    lines = ["images"]
    for row in IMAGE_FORMATS:
        needs = "" if row.needs == _MEDIA else f" (pip install '{row.needs}')"
        lines += _entry(row.name, f"{' '.join(row.endings)}{needs}", row.why)
    lines += ["", "animations: " + ", ".join(row.name for row in IMAGE_FORMATS if row.moves)]
    lines += ["", "videos, by FFmpeg's names"]
    lines += [*_entry("containers", " ".join(containers)), *_entry("codecs", " ".join(codecs))]
    lines += ["", "refused"]
    for refused in REFUSED_FORMATS:
        lines += _entry(refused.name, refused.why)
    return "\n".join([*lines, "", f"pip install '{_MEDIA}' brings all, if nothing else is said"])


def _entry(name: str, *texts: str) -> list[str]:
    """A name on the left, and texts of several lines."""
    first, *rest = [line for text in texts for line in wrap(text, 72, break_long_words=False)]
    return [f"  {name:<24}{first}", *(f"{'':26}{line}" for line in rest)]


def tables() -> list[str]:
    """The same of images and of what is refused, as the lines of two tables of Markdown."""
    lines = ["| format | endings | why it is opened, and what is watched |", "|---|---|---|"]
    for row in IMAGE_FORMATS:
        needs = f"`pip install '{row.needs}'`: " if row.needs != _MEDIA else ""
        moves = ", also animated" if row.moves else ""
        lines.append(f"| {row.name}{moves} | {' '.join(row.endings)} | {needs}{row.why} |")
    lines += ["", "| not opened | why |", "|---|---|"]
    return lines + [f"| {refused.name} | {refused.why} |" for refused in REFUSED_FORMATS]
