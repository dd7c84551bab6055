"""What is opened, and what is not, and why: in words, for `mmrope formats` and docs/media.md."""

from __future__ import annotations

from collections.abc import Iterator

from mmrope.preprocess.image import ANIMATED, FORMATS
from mmrope.preprocess.probe import CODECS, CONTAINERS, WITHOUT_CLOCK

REFUSED = {
    "EPS, PDF, SVG": "programs and pages: to draw one is to run what a stranger wrote",
    "PSD, XCF, DDS, ICNS, FITS, PCX and other images": "rare, and their decoders have met few damaged files",
    "TGA without the footer of version 2": "nothing in it says what it is, so that any rubbish would be a picture",
    "RAW of cameras": "takes a photographer's choices: develop it to TIFF or PNG",
    "32-bit whole-number pixels, floats outside of 0 to 1": "their range is not stated: give an array from 0 to 1",
    "playlists and scripts (m3u8, ffconcat, image sequences)": "name other files and URLs to be opened in their turn",
    "codecs that are not listed": "FFmpeg has some 300 decoders; a stranger's bytes meet those that films are made with",
    "films that are turned by no quarter turn, or change their size": "re-encode them upright, to one size",
    "encrypted films": "need a key",
}


def formats() -> Iterator[tuple[str, str]]:
    """Kinds of files and what of each is opened.

    Example:
        >>> from mmrope.preprocess.formats import formats
        >>> dict(formats())["animations"]
        'GIF, WEBP, PNG, AVIF'
    """
    clocked = [container for container in CONTAINERS if container not in WITHOUT_CLOCK]
    yield "images", f"{', '.join(FORMATS)}, TGA with its footer; HEIC with pip install 'mmrope[heic]'"
    yield "animations", ", ".join(ANIMATED)
    yield "video containers", ", ".join(clocked)
    yield "without a container, with fps=", ", ".join(WITHOUT_CLOCK)
    yield "video codecs", ", ".join(CODECS)
