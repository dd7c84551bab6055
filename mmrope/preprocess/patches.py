"""Sizes to patch grids, pixels to patches: the same for images and for the frames of videos.

frames [H, W, 3] -> resize -> cut (uint8 patches) -> normalize (what models read; here, or on the device later)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from mmrope.extras import needed_for
from mmrope.preprocess.errors import Limits, MediaError
from mmrope.records import Few, Must, check_fields

if TYPE_CHECKING:
    import torch


_NO_BOUND = 2**62  # of pixels
Side = Annotated[int, Must("a whole number from 1 to 1024", lambda n: 1 <= n <= 1024)]
Mean = Annotated[float, Must("a number from -1000 to 1000", lambda x: abs(x) <= 1000)]
Std = Annotated[float, Must("a number from 0.000001 to 1000", lambda x: 1e-6 <= x <= 1000)]
Fewest = Annotated[int, Must("a whole number from 0 to 16777216", lambda n: 0 <= n <= 2**24)]
"""Pixels that every image gets, however small: a large number would fill the memory with any of them."""
Most = Annotated[int, Must("a whole number of pixels", lambda n: 1 <= n <= _NO_BOUND)]


@dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """How media become patches: to which size they are brought, how they are cut, and how their values are normalised.

    The defaults are those of transformers' Qwen2VLImageProcessor; `FAMILY_PATCHES` has those of the released checkpoints.

    Example:
        >>> from mmrope.preprocess import PatchConfig
        >>> config = PatchConfig(patch_size=16)
        >>> config.patch_dim, config.factor  # 3 channels x 2 frames x 16 x 16; 2 x 16 pixels a token
        (1536, 32)
    """

    patch_size: Side = 14
    temporal_patch_size: Few = 2
    merge_size: Few = 2
    mean: tuple[Mean, Mean, Mean] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[Std, Std, Std] = (0.26862954, 0.26130258, 0.27577711)
    image_pixels: tuple[Fewest, Most] = (56 * 56, 1280 * 28 * 28)
    """Fewest and most pixels of a resized image."""
    image_frames: Few = 1
    """How many frames an image counts as towards its pixels: GLM-4V's are bounds of temporal_patch_size copies."""
    video_pixels: tuple[Fewest, Most] | None = (128 * 28 * 28, 768 * 28 * 28)
    """Fewest and most pixels of a resized video frame; None where only those of the whole video are bounded."""
    whole_video_pixels: tuple[Fewest, Most] | None = (0, 2 * 115_200 * 28 * 28)
    """Fewest and most pixels of all frames of a video together: the more frames, the smaller each. None where only those of a
    single frame are bounded."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("image_pixels", "video_pixels", "whole_video_pixels"):
            if (bounds := getattr(self, name)) is not None and bounds[0] > bounds[1]:
                raise ValueError(f"{name} must be the fewest and the most, got {bounds}")

    @property
    def patch_dim(self) -> int:
        """Values of one patch: channels x frames x height x width."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    @property
    def factor(self) -> int:
        """Pixels along a side of a merged token: sizes are multiples of it."""
        return self.patch_size * self.merge_size


_QWEN2_VL = PatchConfig(image_pixels=(56 * 56, 16_384 * 28 * 28))
_QWEN3_VL = PatchConfig(
    patch_size=16,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    image_pixels=(64 * 32 * 32, 16_384 * 32 * 32),
    video_pixels=(0, 768 * 32 * 32),
    whole_video_pixels=(4 * 32 * 32, 24_576 * 32 * 32),
)
_GLM4V = PatchConfig(
    image_pixels=(112 * 112, 15_000 * 28 * 28),
    image_frames=2,
    video_pixels=None,
    whole_video_pixels=(112 * 112, 2 * 30_000 * 28 * 28),
)
FAMILY_PATCHES = MappingProxyType(
    {
        "qwen2_vl": _QWEN2_VL,
        "qwen2_5_vl": _QWEN2_VL,
        "qwen3_vl": _QWEN3_VL,
        "qwen3_vl_moe": _QWEN3_VL,
        "glm4v": _GLM4V,
        "glm4v_moe": _GLM4V,
    }
)
"""By family: the settings of the released checkpoints' processors (preprocessor_config.json), with the frame budget of
qwen-vl-utils that transformers 5.23 applies with cap_pixels_per_frame=True; GLM-4V's are the defaults of transformers 5.23's
Glm4vImageProcessor and Glm4vVideoProcessor."""

FAMILY_SAMPLING = MappingProxyType(
    {
        **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"), "qwen_vl_utils"),
        **dict.fromkeys(("glm4v", "glm4v_moe"), "Glm4vVideoProcessor"),
    }
)
"""By family: how frames of videos are sampled, a name of mmrope.preprocess.sampling.SAMPLINGS; others are sampled by "time"."""


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
    short = _checked_shape(height, width, limits)
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
    return _checked_sides(h, w, height, width, limits)


def _checked_shape(height: float, width: float, limits: Limits) -> float:
    """The shorter side of an image that is not too elongated."""
    long, short = max(height, width), min(height, width)
    if short < 1 or long / short > limits.max_aspect_ratio:
        raise MediaError(
            f"{width} x {height} pixels are more elongated than {limits.max_aspect_ratio:g}:1; "
            "crop the image or raise Limits(max_aspect_ratio=...)"
        )
    return short


def _checked_sides(h: int, w: int, height: float, width: float, limits: Limits) -> tuple[int, int]:
    if max(h, w) > limits.max_side:
        raise MediaError(
            f"{width} x {height} pixels resize to {w} x {h}, a side over {limits.max_side}; raise Limits(max_side=...)"
        )
    return h, w


def image_size(height: int, width: int, config: PatchConfig, limits: Limits | None = None) -> tuple[int, int]:
    """The size (height, width) that an image is resized to."""
    (least, most), frames = config.image_pixels, config.image_frames
    return smart_resize(height, width, factor=config.factor, min_pixels=least, max_pixels=most, frames=frames, limits=limits)


def frame_size(height: int, width: int, frames: int, config: PatchConfig, limits: Limits | None = None) -> tuple[int, int]:
    """The size (height, width) that each of the sampled frames of a video is resized to."""
    options = {"factor": config.factor, "limits": limits}
    if config.whole_video_pixels is None:
        least, most = config.video_pixels or (0, _NO_BOUND)
        return smart_resize(height, width, min_pixels=least, max_pixels=most, **options)
    whole_least, whole_most = config.whole_video_pixels
    if config.video_pixels is None:
        frames = max(frames, config.temporal_patch_size)
        return smart_resize(height, width, frames=frames, min_pixels=whole_least, max_pixels=whole_most, **options)
    least, most = config.video_pixels
    most = max(min(most, whole_most // frames), int(1.05 * max(least, whole_least)))
    if least == 0 and frames > 1:  # the least is of the whole video
        return smart_resize(height, width, frames=frames, min_pixels=whole_least, max_pixels=most * frames, **options)
    return smart_resize(height, width, min_pixels=least or whole_least, max_pixels=most, **options)


# --- sizes by the keys of qwen-vl-utils -------------------------------------------------------------------------------

_IMAGE_TOKENS = (4, 16_384)
"""Fewest and most tokens of an image: the constants of qwen-vl-utils 0.0.14, vision_process.py, as the next two."""
_FRAME_TOKENS = (128, 768)
_MODEL_LENGTH = 128_000


def keyed_image_size(
    height: int,
    width: int,
    keys: Mapping[str, Any],
    config: PatchConfig,
    *,
    bounds: tuple[int, int] | None = None,
    limits: Limits | None = None,
) -> tuple[int, int]:
    """The size (height, width) of an image whose item has qwen-vl-utils' keys: min_pixels and max_pixels, or resized_height and
    resized_width, as fetch_image of qwen-vl-utils 0.0.14 has it; where that gives a side of 0, a side is config.factor.

    Args:
        keys: the item, or its keys.
        bounds: fewest and most pixels where the keys do not say; None for qwen-vl-utils' 4 and 16,384 tokens.

    Raises:
        MediaError: an aspect ratio or a side over the limits.
        ValueError: max_pixels below min_pixels.

    Example:
        >>> from mmrope.preprocess.patches import PatchConfig, keyed_image_size
        >>> keyed_image_size(1000, 2000, {"max_pixels": 50176}, PatchConfig()), 140 * 308
        ((140, 308), 43120)
    """
    return _keyed_size(height, width, keys, config.factor, bounds, limits or Limits())


def keyed_frame_size(
    height: int,
    width: int,
    frames: int,
    keys: Mapping[str, Any],
    config: PatchConfig,
    *,
    bounds: tuple[int, int] | None = None,
    limits: Limits | None = None,
) -> tuple[int, int]:
    """The size (height, width) of each of the sampled frames of a video whose item has qwen-vl-utils' keys: min_pixels and
    max_pixels of a frame, total_pixels of all together, or resized_height and resized_width; as fetch_video of
    qwen-vl-utils 0.0.14 has it.

    Args:
        frames: how many, filled up to whole temporal grids.
        keys, bounds: as of `keyed_image_size`; without `bounds` 128 and 768 tokens a frame.

    Raises:
        MediaError: an aspect ratio or a side over the limits.
        ValueError: max_pixels below min_pixels.

    Example:
        >>> from mmrope.preprocess.patches import PatchConfig, keyed_frame_size
        >>> keyed_frame_size(360, 640, 16, {"max_pixels": 151200}, PatchConfig())
        (280, 504)
    """
    factor = config.factor
    least, most = bounds or tuple(tokens * factor * factor for tokens in _FRAME_TOKENS)
    least = keys.get("min_pixels", least)
    together = keys.get("total_pixels", _MODEL_LENGTH * factor * factor * 0.9)
    most = max(min(most, together / frames * config.temporal_patch_size), int(least * 1.05))
    most = min(keys.get("max_pixels", most), most)
    sides = {key: keys[key] for key in ("resized_height", "resized_width") if key in keys}
    return _keyed_size(height, width, sides, factor, (least, most), limits or Limits())


def listed_frame_size(
    height: int,
    width: int,
    keys: Mapping[str, Any],
    config: PatchConfig,
    *,
    bounds: tuple[int, int] | None = None,
    limits: Limits | None = None,
) -> tuple[int, int]:
    """The size (height, width) to which qwen-vl-utils 0.0.14 brings each image of a list of frames, before the list as a video
    is sized by `keyed_frame_size`: as an image whose sides are multiples of twice config.factor.

    Example:
        >>> from mmrope.preprocess.patches import PatchConfig, keyed_frame_size, listed_frame_size
        >>> first = listed_frame_size(420, 700, {}, PatchConfig())
        >>> first, keyed_frame_size(*first, 8, {}, PatchConfig())
        ((448, 672), (448, 672))
    """
    return _keyed_size(height, width, keys, 2 * config.factor, bounds, limits or Limits())


def _keyed_size(
    height: float, width: float, keys: Mapping[str, Any], factor: int, bounds: tuple[float, float] | None, limits: Limits
) -> tuple[int, int]:
    """smart_resize of qwen-vl-utils 0.0.14, of the sides that the keys state, or of the real ones."""
    own: tuple[float, float] = (_IMAGE_TOKENS[0] * factor**2, _IMAGE_TOKENS[1] * factor**2)
    least, most = bounds or own
    if "resized_height" in keys:
        height, width, (least, most) = keys["resized_height"], keys["resized_width"], own
    else:
        least, most = keys.get("min_pixels", least), keys.get("max_pixels", most)
    if most < least:
        raise ValueError(
            f"an item's most pixels, {most:g}, are fewer than its fewest, {least:g}: raise max_pixels, or lower min_pixels "
            "(without that key it is the processor's, or qwen-vl-utils' constant)"
        )
    _checked_shape(height, width, limits)
    h, w = (max(factor, round(side / factor) * factor) for side in (height, width))
    if h * w > most:
        shrink = math.sqrt((height * width) / most)
        h, w = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif h * w < least:
        grow = math.sqrt(least / (height * width))
        h, w = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return _checked_sides(h, w, height, width, limits)


# --- pixels -----------------------------------------------------------------------------------------------------------

_ROWS = 128
"""Patches that are normalised at a time: they stay in the cache."""


def resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A frame [H, W, 3] uint8, resized to (height, width), bicubic with antialiasing: [height, width, 3] uint8."""
    import torch
    from torch.nn.functional import interpolate

    if frame.shape[:2] == size:
        return frame
    # the channels stay last, in a view: torch has a kernel for that, and needs twice the time for planes
    frame = np.require(frame, requirements=("C", "W"))
    x = torch.from_numpy(frame)[None].permute(0, 3, 1, 2)  # [1, 3, H, W]
    x = interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=True)  # [1, 3, height, width]
    return x[0].permute(1, 2, 0).numpy()  # [height, width, 3]


def cut_patches(frames: list[np.ndarray], config: PatchConfig) -> np.ndarray:
    """Frames of one size [H, W, 3] uint8, those of one temporal grid (or one for an image), to patches: [P, 3 * frames *
    patch_size^2] uint8, the patches of a merged token next to each other."""
    height, width, _ = frames[0].shape
    m, p = config.merge_size, config.patch_size
    h, w = height // (m * p), width // (m * p)
    out = np.empty((h, w, m, m, 3, len(frames), p, p), np.uint8)
    for k, frame in enumerate(frames):
        x = frame.reshape(h, m, p, w, m, p, 3)
        out[:, :, :, :, :, k] = x.transpose(0, 3, 1, 4, 6, 2, 5)  # [h, w, m, m, 3, p, p]
    return out.reshape(h * w * m * m, 3 * len(frames) * p * p)  # [P, patch_dim of these frames]


def normalize(patches: torch.Tensor, config: PatchConfig, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Patches as models read them, from uint8 patches, on their device.

    Args:
        patches: uint8 [P, patch_dim], or [P, patch_dim / temporal_patch_size] of images, whose one frame fills the temporal
            patch.
        out: float32 [P, patch_dim] to write to.

    Returns:
        [P, patch_dim] float32, (value / 255 - mean) / std of each channel.

    Raises:
        ValueError: patches of another type or width.
    """
    with needed_for("pixels"):
        import torch

    frames, area = config.temporal_patch_size, config.patch_size**2
    if patches.dtype != torch.uint8 or patches.ndim != 2 or patches.shape[1] not in (config.patch_dim, 3 * area):
        raise ValueError(
            f"patches must be uint8 [P, {config.patch_dim}] (or [P, {3 * area}] of images), "
            f"got {patches.dtype} {list(patches.shape)}"
        )
    mean, std = (torch.tensor(c).repeat_interleave(frames * area) for c in (config.mean, config.std))  # [patch_dim]
    scale, shift = (1 / (255 * std)).to(patches.device), (-mean / std).to(patches.device)
    out = torch.empty(len(patches), config.patch_dim, device=patches.device) if out is None else out
    x, y = patches.view(len(patches), 3, -1, area), out.view(len(patches), 3, frames, area)  # [P, 3, frames, area]
    rows = _ROWS if patches.device.type == "cpu" else max(len(patches), 1)
    for i in range(0, len(patches), rows):
        y[i : i + rows] = x[i : i + rows]  # to float, and to every frame
        out[i : i + rows].mul_(scale).add_(shift)
    return out


def image_patches(frame: np.ndarray, size: tuple[int, int], config: PatchConfig) -> torch.Tensor:
    """The patches of an image [H, W, 3] uint8 that is brought to (height, width): uint8 [P, 3 * patch_size^2]."""
    import torch

    return torch.from_numpy(cut_patches([resize(frame, size)], config))


def video_patches(frames: Iterable[np.ndarray], count: int, size: tuple[int, int], config: PatchConfig) -> torch.Tensor:
    """The patches of a video, frame by frame: no more than a temporal grid of frames is held at once.

    Args:
        frames: uint8 [H, W, 3] each, in order; `count` of them.
        size: (height, width) that they are brought to. The last temporal grid is filled up with copies of the last frame.

    Returns:
        uint8 [P, patch_dim].
    """
    import torch

    grids, rows = -(-count // config.temporal_patch_size), size[0] * size[1] // config.patch_size**2
    out, t = torch.empty(grids * rows, config.patch_dim, dtype=torch.uint8), 0
    for group in _groups((resize(frame, size) for frame in frames), config.temporal_patch_size):
        out[t * rows : (t + 1) * rows] = torch.from_numpy(cut_patches(group, config))
        t += 1
    assert t == grids, f"{count} frames were announced, {t} of {grids} temporal grids came"
    return out


def _groups(frames: Iterator[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """The frames in groups of `size`, the last filled up with its last."""
    group: list[np.ndarray] = []
    for frame in frames:
        group.append(frame)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group + group[-1:] * (size - len(group))
