"""Rotary embeddings of vision towers and of diffusion models, by name, as released: a table, a row each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from mmrope.encodings.scaling import powers
from mmrope.encodings.spec import RotarySpec, Spectra


@dataclass(frozen=True)
class Preset:
    """A rotary embedding that released models share.

    Example:
        >>> from mmrope.encodings import PRESETS
        >>> PRESETS["wan"].spec().axes
        'thw'
        >>> PRESETS["wan"].ids
        't, h, w of the latent patches, from 0'
    """

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


def _ltx_video(channels: int) -> RotarySpec:
    """All heads together: each of the frequencies pi / 2 to pi / 2 theta for t, h, w in turn, after pairs that stand still."""
    count, still = channels // 6, channels % 6 // 2
    exponent = np.linspace(0, 1, count).astype(np.float32)  # upstream's precision
    inv_freq = math.pi / 2 * 1e4 ** exponent.astype(np.float64)
    axis = np.array([0] * still + [0, 1, 2] * count)
    return RotarySpec(channels, np.append(np.zeros(still), np.repeat(inv_freq, 3)), axis, "thw", pairing="adjacent")


def _moonvit() -> RotarySpec:
    """w and h in turn, each with the whole spectrum."""
    spectra = Spectra(((1e4, 36),), np.zeros(36, dtype=np.int64), np.repeat(np.arange(18), 2))
    return RotarySpec(72, spectra.frequencies(None), np.tile([1, 0], 18), "hw", pairing="adjacent", spectra=spectra)


_FROM_0 = "t, h, w of the latent patches, from 0"
_CENTRED = "row - ceil(rows / 2), column - ceil(columns / 2)"
_LTX_IDS = (
    "2 x - 1 on each axis, where x is frame / frames a second / 20, row / 2048, column / 2048 of the first pixel of a latent "
    "patch: frame t * 8 (by LTXConditionPipeline max(t * 8 - 7, 0)), row h * 32, column w * 32; queries and keys are rotated "
    "before they are split into heads, as one of {} channels; text is not rotated"
)
_DIFFUSERS = "diffusers 0.42.1, models/"
_PRESETS = {
    "qwen2_vl_vision": Preset(
        lambda: RotarySpec.axial(80),
        "h, w of the patches, from 0, in merge blocks: patch_position_ids",
        "transformers 5.23.0, models/qwen2_vl/modeling_qwen2_vl.py, Qwen2VLVisionRotaryEmbedding",
    ),
    "pixtral": Preset(
        lambda: RotarySpec.axial(64, spectrum="shared"),
        'h, w of the patches, from 0: patch_position_ids(..., order="raster")',
        "transformers 5.23.0, models/pixtral/modeling_pixtral.py, PixtralVisionRotaryEmbedding",
    ),
    "dinov3": Preset(
        _dinov3,
        'h, w from -1 to 1: patch_position_ids(..., order="raster", normalize="separate")',
        "DINOv3 (arXiv 2508.10104); transformers 5.23.0, models/dinov3_vit, DINOv3ViTRopePositionEmbedding",
    ),
    "rope_vit_axial": Preset(
        lambda: RotarySpec.axial(64, axes="wh", theta=100.0, pairing="adjacent"),
        'w, h of the patches, from 0, in this order: patch_position_ids(..., order="raster")[[1, 0]]; not of the class token',
        "RoPE-ViT (arXiv 2403.13298), naver-ai/rope-vit ce85c2e, models/vit_rope.py, compute_axial_cis",
    ),
    "moonvit": Preset(
        _moonvit,
        'h, w of the patches, from 0, the same in each frame: patch_position_ids(..., order="raster")',
        "Kimi-VL (arXiv 2504.07491), modeling_kimi_vl.py, Rope2DPosEmb, as in sglang 0.5.23, srt/models/kimi_vl_moonvit.py; "
        'transformers 5.23.0, models/kimi_k25, permutes the weights: replace(preset("moonvit"), pairing="half")',
    ),
    "croco": Preset(
        lambda: RotarySpec.axial(64, theta=100.0, pairing="block_half"),
        'h, w of the patches, from 0: patch_position_ids(..., order="raster")',
        'CroCo v2, DUSt3R, MASt3R: naver/croco d7de070, models/pos_embed.py, RoPE2D, "RoPE100"',
    ),
    "vggt": Preset(
        lambda: RotarySpec.axial(64, theta=100.0, pairing="block_half"),
        'h, w of the patches, from 1: patch_position_ids(..., order="raster", offset=1); 0, 0 of camera and register tokens',
        "facebookresearch/vggt 40eb1c5, vggt/layers/rope.py, RotaryPositionEmbedding2D; ids in vggt/models/aggregator.py",
    ),
    "gemma4_vision": Preset(
        lambda: RotarySpec.axial(64, axes="wh", theta=100.0, pairing="block_half"),
        'w, h of the patches, from 0, in this order: patch_position_ids(..., order="raster")[[1, 0]]; -1, -1 of padding',
        "transformers 5.23.0, models/gemma4/modeling_gemma4.py, Gemma4VisionRotaryEmbedding, apply_multidimensional_rope",
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
    "hunyuan_video_15": Preset(
        lambda: RotarySpec.axial(128, axes="thw", dims=(16, 56, 56), theta=256.0, pairing="adjacent"),
        f"{_FROM_0}; text is not rotated",
        f"{_DIFFUSERS}transformers/transformer_hunyuan_video15.py, HunyuanVideo15RotaryPosEmbed",
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
    "qwen_image": Preset(
        lambda: RotarySpec.axial(128, axes="thw", dims=(16, 56, 56), pairing="adjacent"),
        f"t, h, w of the latent patches: t the number of the image, from 0 (-1 of the last one, the condition, by "
        f"Qwen-Image-Layered), h and w {_CENTRED}; token n of text has m + n on all axes, where m is the largest "
        "floor(rows / 2) or floor(columns / 2) of all images (by Qwen-Image-Layered at least their number - 1)",
        f"{_DIFFUSERS}transformers/transformer_qwenimage.py, QwenEmbedRope, QwenEmbedLayer3DRope",
    ),
    "qwen_image_21": Preset(
        lambda: RotarySpec.axial(128, axes="thw", dims=(16, 56, 56), pairing="adjacent"),
        "text counts on all axes; of an image, t is the count reached, at which text goes on max(rows, columns) later, h and w "
        f"{_CENTRED}",
        f"{_DIFFUSERS}transformers/transformer_qwenimage21.py, QwenImage21Rope",
    ),
    "lumina2": Preset(
        lambda: RotarySpec.axial(96, axes="thw", dims=(32, 32, 32), pairing="adjacent"),
        "n, 0, 0 of token n of the caption; its length, row and column of the latent patches",
        f"{_DIFFUSERS}transformers/transformer_lumina2.py, Lumina2RotaryPosEmbed",
    ),
    "ltx_video": Preset(
        lambda: _ltx_video(2048),
        _LTX_IDS.format(2048),
        f"{_DIFFUSERS}transformers/transformer_ltx.py, LTXVideoRotaryPosEmbed",
    ),
    "ltx_video_13b": Preset(
        lambda: _ltx_video(4096),
        _LTX_IDS.format(4096),
        f"{_DIFFUSERS}transformers/transformer_ltx.py, LTXVideoRotaryPosEmbed",
    ),
}
PRESETS: Mapping[str, Preset] = MappingProxyType(_PRESETS)
"""By name. It cannot be written to."""
# LTX-2 is not here: it pairs the halves of each head, and each head has frequencies of its own, which inv_freq [P] cannot say.


def preset(name: str) -> RotarySpec:
    """The rotary embedding `name` of PRESETS, which says what its ids are.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> from mmrope.encodings import preset
        >>> spec = preset("wan")
        >>> spec.head_dim, spec.axes, spec.pairing
        (128, 'thw', 'adjacent')
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
    return PRESETS[name].spec()
