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
    """How pixels become patches. The defaults are Qwen2-VL's."""

    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def patch_dim(self) -> int:
        """Values of one patch: channels x frames x height x width."""
        return 3 * self.temporal_patch_size * self.patch_size**2


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int, limits: Limits | None = None
) -> tuple[int, int]:
    """The size (height, width) that an image is resized to: multiples of `factor` near the original size and aspect ratio,
    with min_pixels to max_pixels pixels. The rule is that of Qwen2-VL's image processor (transformers 5.23.0).

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
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if h * w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        h, w = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif h * w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        h, w = (math.ceil(side * grow / factor) * factor for side in (height, width))
    if max(h, w) > limits.max_side:
        raise MediaError(
            f"{width} x {height} pixels resize to {w} x {h}, a side over {limits.max_side}; raise Limits(max_side=...)"
        )
    return h, w


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
