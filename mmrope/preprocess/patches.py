"""Sizes to patch grids, pixels to patches: the same for images and for the frames of videos."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmrope.preprocess.errors import Limits, MediaError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """How media become patches: to which size they are brought, how they are cut, and how their values are normalised.

    The defaults are Qwen2-VL's; `PRESETS` has those of other families.
    """

    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    image_pixels: tuple[int, int] = (56 * 56, 1280 * 28 * 28)
    """Fewest and most pixels of a resized image."""
    video_pixels: tuple[int, int] = (128 * 28 * 28, 768 * 28 * 28)
    """Fewest and most pixels of a resized video frame."""
    whole_video_pixels: tuple[int, int] = (0, 2 * 115_200 * 28 * 28)
    """Fewest and most pixels of all frames of a video together: the more frames, the smaller each."""

    @property
    def patch_dim(self) -> int:
        """Values of one patch: channels x frames x height x width."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    @property
    def factor(self) -> int:
        """Pixels along a side of a merged token: sizes are multiples of it."""
        return self.patch_size * self.merge_size


_QWEN2_VL = PatchConfig()
_QWEN3_VL = PatchConfig(
    patch_size=16,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    image_pixels=(64 * 32 * 32, 16_384 * 32 * 32),
    video_pixels=(0, 768 * 32 * 32),
    whole_video_pixels=(4 * 32 * 32, 24_576 * 32 * 32),
)
PRESETS = {"qwen2_vl": _QWEN2_VL, "qwen2_5_vl": _QWEN2_VL, "qwen3_vl": _QWEN3_VL}
"""By family: the settings of the released checkpoints' processors (preprocessor_config.json), with the frame budget of
qwen-vl-utils that transformers 5.23 applies with cap_pixels_per_frame=True."""


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int, frames: int = 1, limits: Limits | None = None
) -> tuple[int, int]:
    """The size (height, width) that an image, or a video's frames, are resized to: multiples of `factor` near the original
    size and aspect ratio, such that all `frames` together have min_pixels to max_pixels pixels.

    The rules are those of Qwen2-VL's image processor (one frame) and Qwen3-VL's video processor (more), transformers 5.23.0.

    Raises:
        MediaError: an aspect ratio or a side over the limits.
    """
    limits = limits or Limits()
    long, short = max(height, width), min(height, width)
    if short < 1 or long / short > limits.max_aspect_ratio:
        raise MediaError(
            f"{width} x {height} pixels are more elongated than {limits.max_aspect_ratio:g}:1; "
            "crop the image or raise Limits(max_aspect_ratio=...)"
        )
    counted = 1  # a video's frames count in pairs
    if frames > 1:
        counted = round(frames / 2) * 2
        if short < factor:
            height, width = (int(side * (factor / short)) for side in (height, width))
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if counted * h * w > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        h, w = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif counted * h * w < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        h, w = (math.ceil(side * grow / factor) * factor for side in (height, width))
    if max(h, w) > limits.max_side:
        raise MediaError(
            f"{width} x {height} pixels resize to {w} x {h}, a side over {limits.max_side}; raise Limits(max_side=...)"
        )
    return h, w


def image_size(height: int, width: int, config: PatchConfig, limits: Limits | None = None) -> tuple[int, int]:
    """The size (height, width) that an image is resized to."""
    least, most = config.image_pixels
    return smart_resize(height, width, factor=config.factor, min_pixels=least, max_pixels=most, limits=limits)


def frame_size(height: int, width: int, frames: int, config: PatchConfig, limits: Limits | None = None) -> tuple[int, int]:
    """The size (height, width) that each of the sampled frames of a video is resized to."""
    (least, most), (whole_least, whole_most) = config.video_pixels, config.whole_video_pixels
    most = max(min(most, whole_most // frames), int(1.05 * max(least, whole_least)))
    if least == 0 and frames > 1:  # the least is of the whole video
        return smart_resize(
            height,
            width,
            factor=config.factor,
            min_pixels=whole_least,
            max_pixels=most * frames,
            frames=frames,
            limits=limits,
        )
    return smart_resize(height, width, factor=config.factor, min_pixels=least or whole_least, max_pixels=most, limits=limits)


# --- pixels -----------------------------------------------------------------------------------------------------------


def resize(frames: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """Frames [N, H, W, 3] uint8, resized to (height, width), bicubic with antialiasing: [N, 3, height, width] uint8."""
    import torch
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as tv  # seconds to import, so only once there are pixels

    x = torch.tensor(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)  # [N, 3, H, W]
    return tv.resize(x, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)


def patchify(frames: Iterable[torch.Tensor], config: PatchConfig) -> torch.Tensor:
    """Frames, resized, to patches: [P, patch_dim] float32, normalised, the patches of a merged token next to each other.

    Args:
        frames: uint8 [N, 3, H, W] each, the frames of one image or video in order. Their number together is filled up
            to a multiple of the temporal patch size with copies of the last.
    """
    import torch
    from einops import rearrange

    x = torch.cat(list(frames))  # [N, 3, H, W]
    missing = -len(x) % config.temporal_patch_size
    x = torch.cat((x, x[-1:].expand(missing, -1, -1, -1))) if missing else x
    mean, std = (torch.tensor(c).mul(255)[:, None, None] for c in (config.mean, config.std))  # [3, 1, 1]
    x = x.float().sub_(mean).div_(std)
    return rearrange(
        x,
        "(t f) c (h mh ph) (w mw pw) -> (t h w mh mw) (c f ph pw)",
        f=config.temporal_patch_size,
        mh=config.merge_size,
        mw=config.merge_size,
        ph=config.patch_size,
        pw=config.patch_size,
    )  # [P, patch_dim]
