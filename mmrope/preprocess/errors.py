"""What is refused of strangers' files, and how it is said."""

from __future__ import annotations

from dataclasses import dataclass


class MediaError(ValueError):
    """A file that cannot be used: unreadable, damaged, of an unknown kind, or over a limit. The message names the file,
    what is wrong, and what to do.

    Example:
        >>> from mmrope import MediaError
        >>> from mmrope.preprocess import load_image
        >>> try:
        ...     load_image("no-such-file.jpg")
        ... except MediaError as error:
        ...     print(error)
        no-such-file.jpg: no such file
    """


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest media that are opened; beyond them a MediaError is raised before pixels are decoded.

    Change one with `Processor(limits=Limits(max_image_pixels=150_000_000))`.

    Example:
        >>> import numpy as np
        >>> from mmrope import MediaError
        >>> from mmrope.preprocess import Limits, load_image
        >>> try:
        ...     load_image(np.zeros((2000, 3000, 3), np.uint8), limits=Limits(max_image_pixels=5_000_000))
        ... except MediaError as error:
        ...     print(error)
        ndarray object has 3000 x 2000 = 6 million pixels, the limit is 5 million; raise it with Limits(max_image_pixels=...)
    """

    max_image_pixels: int = 64_000_000
    """Of an image file or a video frame, before resizing. Pillow's own limit, PIL.Image.MAX_IMAGE_PIXELS, holds as well."""
    max_aspect_ratio: float = 200.0
    max_side: int = 65_536
    """Of an image or a frame after resizing, in pixels."""
    max_video_seconds: float = 24 * 3600.0
    max_video_frames: int = 6_000_000
    """Of a file, sampled or not: a day at 60 frames a second."""
    max_animation_pixels: int = 2_000_000_000
    """Of the frames of a GIF, WebP, PNG or AVIF animation that are decoded, together: to show one, all before it are decoded.
    It is checked when frames are decoded; to open an animation, none is."""
    max_visual_tokens: int = 128_000
    """Of one image or video, after the spatial merge."""
