"""JPEG by libjpeg-turbo itself, where simplejpeg is installed: the bits that Pillow gives, in half its time.

Pillow hands an image over in small pieces; simplejpeg decodes into an array. Both wheels hold libjpeg-turbo and ask it for the
same transform and the same upsampling. Whatever is not plain, or not whole, is left to Pillow, whose word holds.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

_TURNS = {  # EXIF orientation -> (rows and columns change places, rows backwards, columns backwards)
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


@cache
def _simplejpeg() -> Any:
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def jpeg_pixels(image: Any, orientation: int) -> np.ndarray | None:
    """The pixels of an opened, unread image, [H, W, 3] uint8, upright; None where Pillow is to decode it.

    Args:
        image: PIL's, of a file that begins where its bytes do.
        orientation: by EXIF.
    """
    decoder = _simplejpeg()
    if decoder is None or image.format != "JPEG" or image.mode != "RGB":
        return None
    place = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(place)
    try:
        pixels = decoder.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False, strict=True)
    except ValueError:  # not whole, or of a kind that it does not know: Pillow says what is wrong, or reads it
        return None
    if pixels.shape != (image.height, image.width, 3):
        return None
    across, rows, columns = _TURNS.get(orientation, _TURNS[1])
    pixels = pixels.swapaxes(0, 1) if across else pixels
    return np.ascontiguousarray(pixels[:: 1 - 2 * rows, :: 1 - 2 * columns])
