"""Rotary embeddings of vision towers and of diffusion models, by name, as released: a table, a row each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmrope.encodings.scaling import powers
from mmrope.encodings.spec import RotarySpec


@dataclass(frozen=True)
class Preset:
    """A rotary embedding that released models share."""

    spec: Callable[[], RotarySpec]
    ids: str
    """What its position ids are."""
    source: str


def _dinov3(head_dim: int = 64, theta: float = 100.0) -> RotarySpec:
    """Half of the pairs for h, half for w, each with periods theta^(4 i / head_dim) of coordinates from -1 to 1."""
    inv_freq = np.float32(2 * math.pi) / powers(head_dim // 2, theta)
    return RotarySpec(head_dim, np.tile(inv_freq, 2), np.repeat([0, 1], len(inv_freq)), "hw")


def _cosmos() -> RotarySpec:
    """Bases grown per axis by the NTK rule, for twice as many frames."""
    dims, ratios = (44, 42, 42), (2.0, 1.0, 1.0)
    thetas = [1e4 * ratio ** (dim / (dim - 2)) for dim, ratio in zip(dims, ratios, strict=True)]
    return RotarySpec.axial(128, axes="thw", dims=dims, theta=thetas)


_FROM_0 = "t, h, w of the latent patches, from 0"
_DIFFUSERS = "diffusers 0.42.1, models/"
PRESETS: dict[str, Preset] = {
    "qwen2_vl_vision": Preset(
        lambda: RotarySpec.axial(80),
        "h, w of the patches, from 0, in merge blocks: patch_position_ids",
        "transformers 5.23.0, models/qwen2_vl/modeling_qwen2_vl.py, Qwen2VLVisionRotaryEmbedding",
    ),
    "pixtral": Preset(
        lambda: RotarySpec.axial(64, spectrum="shared"),
        "h, w of the patches, from 0",
        "transformers 5.23.0, models/pixtral/modeling_pixtral.py, PixtralVisionRotaryEmbedding",
    ),
    "dinov3": Preset(
        _dinov3,
        'h, w from -1 to 1: patch_position_ids(..., order="raster", normalize="separate")',
        "DINOv3 (arXiv 2508.10104); transformers 5.23.0, models/dinov3_vit, DINOv3ViTRopePositionEmbedding",
    ),
    "rope_vit_axial": Preset(
        lambda: RotarySpec.axial(64, axes="wh", theta=100.0, pairing="adjacent"),
        "w, h of the patches, from 0, in this order",
        "RoPE-ViT (arXiv 2403.13298), naver-ai/rope-vit, models/vit_rope.py, compute_axial_cis",
    ),
    "wan": Preset(
        lambda: RotarySpec.axial(128, axes="thw", dims=(44, 42, 42), pairing="adjacent"),
        _FROM_0,
        f"{_DIFFUSERS}transformers/transformer_wan.py, WanRotaryPosEmbed",
    ),
    "cogvideox": Preset(
        lambda: RotarySpec.axial(64, axes="thw", dims=(16, 24, 24), pairing="adjacent"),
        f"{_FROM_0}; text is not rotated",
        f"{_DIFFUSERS}embeddings.py, get_3d_rotary_pos_embed",
    ),
    "hunyuan_video": Preset(
        lambda: RotarySpec.axial(128, axes="thw", dims=(16, 56, 56), theta=256.0, pairing="adjacent"),
        f"{_FROM_0}; text is not rotated",
        f"{_DIFFUSERS}transformers/transformer_hunyuan_video.py, HunyuanVideoRotaryPosEmbed",
    ),
    "flux": Preset(
        lambda: RotarySpec.axial(128, axes="thw", dims=(16, 56, 56), pairing="adjacent"),
        "0, row and column of the latent patches; 0, 0, 0 of text",
        f"{_DIFFUSERS}transformers/transformer_flux.py, FluxPosEmbed",
    ),
    "flux2": Preset(
        lambda: RotarySpec.axial(128, axes="thwl", dims=(32, 32, 32, 32), theta=2000.0, pairing="adjacent"),
        "t, h, w of images and l of text, each 0 elsewhere",
        f"{_DIFFUSERS}transformers/transformer_flux2.py, Flux2PosEmbed",
    ),
    "cosmos": Preset(
        _cosmos,
        "h, w of the latent patches, from 0, and t * 24 / frames a second",
        f"{_DIFFUSERS}transformers/transformer_cosmos.py, CosmosRotaryPosEmbed",
    ),
}


def preset(name: str) -> RotarySpec:
    """The rotary embedding `name` of PRESETS, which says what its ids are.

    Raises:
        ValueError: an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
    return PRESETS[name].spec()
