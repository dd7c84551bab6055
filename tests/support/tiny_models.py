"""Tiny models with random weights of every family that the installed transformers has, and their complete inputs.

Works with transformers 5.20 to 5.24 and 4.57, whichever is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers

from mmrope import Segment
from tests.support.upstream_ids import (
    AUDIO_END,
    IN_TRANSFORMERS,
    TEXT,
    TOKENS,
    TRANSFORMERS,
    VISION_END,
    as_inputs,
    with_tokens,
)

VOCABULARY, FIRST_SPECIAL = 256, 200
DOCUMENT, ROW_END = 5, 7  # NeoMME's
V5 = TRANSFORMERS.startswith("transformers-5")


@dataclass(frozen=True)
class Tiny:
    """A family's differences from the others."""

    cls: str
    """What its classes' names begin with."""
    sections: tuple[int, ...] = ()
    """Pairs per axis, in the order of its config."""
    fraction: float = 1.0
    """Of a head's channels that are turned."""
    text: Mapping[str, Any] = field(default_factory=dict)
    vision: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    """Of the config: ids of special tokens and what else it has."""
    patch: tuple[int, ...] = (3 * 4 * 4,)
    """Shape of a patch in pixel_values."""
    head: str = "ForConditionalGeneration"
    layers: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    """Where layers turn differently: their types, and what each changes, or None where it knows no positions. The embedding
    must be told one of those that turn: the first turns as this entry says."""
    generates: bool = True
    together: tuple[tuple[str, ...], ...] = ()
    """Kinds of media that a batch may hold at once, where the model does not take all that the family knows."""


_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_HEAD = {"head_dim": 16}
_MOE = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
_LINEAR = {
    "head_dim": 32,
    "num_hidden_layers": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_EXPERTS_OF_GLM = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}

_LATENT = {  # of 32 channels of a head 8 turn
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 32, "qk_rope_head_dim": 8},
    **{"qk_nope_head_dim": 24, "v_head_dim": 16, "q_lora_rank": 32, "kv_lora_rank": 16, "index_topk": 4096},
    **{"index_head_dim": 16, "index_n_heads": 2, "num_hidden_layers": 3},
}
_LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
_LAYERS_OF_HY = {**_LAYERS, "out_hidden_size": 64, "max_image_size": 64}
_TOWER = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": 4,
    "in_channels": 3,
    "spatial_merge_size": 2,
}
_VISION = {**_TOWER, "out_hidden_size": 64, "temporal_patch_size": 2}
_WINDOWS = {**_VISION, "window_size": 16, "fullatt_block_indexes": [1]}
_GRID = {**_VISION, "num_position_embeddings": 64}
_DEEP = {**_GRID, "deepstack_visual_indexes": [0]}
_GLM_VISION = {**_VISION, "image_size": 32}
_SOUND = {
    "num_mel_bins": 16,
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "output_dim": 64,
}

_MARKERS = {"vision_start_token_id": TOKENS.vision_start, "vision_end_token_id": VISION_END}
_QWEN = {"image_token_id": TOKENS.image, "video_token_id": TOKENS.video, **_MARKERS}
_GLM = {
    "image_token_id": TOKENS.image,
    "video_token_id": TOKENS.video,
    "image_start_token_id": TOKENS.vision_start,
    "image_end_token_id": VISION_END,
    "video_start_token_id": TOKENS.video_start,
    "video_end_token_id": TOKENS.video_end,
}
_OMNI = {**_MARKERS, "audio_start_token_id": TOKENS.audio_start, "audio_end_token_id": AUDIO_END, "user_token_id": 9}
_THETA = 100.0  # so that the slowest pairs turn, too
_FRAMES = (3 * 2 * 4 * 4,)  # a patch of two frames
_ONE_KIND = (("image",), ("frame",))
_SOUNDS = (("image", "video", "audio"), ("image", "audio", "audio_in_video"))

MODELS: dict[str, Tiny] = {
    "qwen2_vl": Tiny(
        cls="Qwen2VL",
        sections=(2, 3, 3),
        vision={**_TOWER, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "temporal_patch_size": 2},
        more=_QWEN,
        patch=_FRAMES,
    ),
    "qwen2_5_vl": Tiny(
        cls="Qwen2_5_VL", sections=(2, 3, 3), vision={**_WINDOWS, "tokens_per_second": 2}, more=_QWEN, patch=_FRAMES
    ),
    "qwen3_vl": Tiny(cls="Qwen3VL", sections=(4, 2, 2), text=_HEAD, vision=_DEEP, more=_QWEN, patch=_FRAMES),
    "hy_v4_vl": Tiny(cls="HYV4VL", sections=(2, 1, 1), text=_LATENT, vision=_LAYERS_OF_HY, more=_QWEN, patch=(3 * 4 * 4,)),
    "qwen3_vl_moe": Tiny(cls="Qwen3VLMoe", sections=(4, 2, 2), text={**_HEAD, **_MOE}, vision=_DEEP, more=_QWEN, patch=_FRAMES),
    "qwen3_5": Tiny(cls="Qwen3_5", sections=(2, 1, 1), fraction=0.25, text=_LINEAR, vision=_GRID, more=_QWEN, patch=_FRAMES),
    "qwen3_5_moe": Tiny(
        cls="Qwen3_5Moe",
        sections=(2, 1, 1),
        fraction=0.25,
        text={**_LINEAR, **_MOE, "shared_expert_intermediate_size": 32},
        vision=_GRID,
        more=_QWEN,
        patch=_FRAMES,
    ),
    "qwen4_exp": Tiny(
        cls="Qwen4Exp",
        sections=(2, 1, 1),
        fraction=0.25,
        text={
            **_LINEAR,
            **_MOE,
            "shared_expert_intermediate_size": 32,
            "hc_count": 2,
            "hc_lowrank": 16,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 1024,
            "indexer_compress_ratio": 4,
        },
        vision=_GRID,
        more=_QWEN,
        patch=_FRAMES,
    ),
    "cohere_compass": Tiny(
        cls="CohereCompass",
        sections=(4, 2, 2),
        vision=_DEEP,
        more=_QWEN,
        patch=_FRAMES,
        layers={"sliding_attention": {}, "full_attention": None},
    ),
    "cosmos3_omni": Tiny(cls="Cosmos3Omni", sections=(4, 2, 2), text=_HEAD, vision=_DEEP, more=_QWEN, patch=_FRAMES),
    "cosmos3_edge": Tiny(
        cls="Cosmos3Edge",
        sections=(4, 2, 2),
        text=_HEAD,
        vision={**_LAYERS, "num_patches": 64, "spatial_merge_size": 2},
        more={**_QWEN, "projector_hidden_size": 64},
    ),
    "glm4v": Tiny(
        cls="Glm4v", sections=(1, 1, 2), fraction=0.5, vision=_GLM_VISION, more=_GLM, together=_ONE_KIND, patch=_FRAMES
    ),
    "glm46v": Tiny(
        cls="Glm46V", sections=(1, 1, 2), fraction=0.5, vision=_GLM_VISION, more=_GLM, together=_ONE_KIND, patch=_FRAMES
    ),
    "glm4v_moe": Tiny(
        cls="Glm4vMoe",
        sections=(1, 1, 2),
        fraction=0.5,
        text={**_HEAD, **_EXPERTS_OF_GLM},
        vision=_GLM_VISION,
        more=_GLM,
        together=_ONE_KIND,
        patch=_FRAMES,
    ),
    "glm_ocr": Tiny(
        cls="GlmOcr",
        sections=(1, 1, 2),
        fraction=0.5,
        text=_HEAD,
        vision=_GLM_VISION,
        more=_GLM,
        together=_ONE_KIND,
        patch=_FRAMES,
    ),
    "glm_image": Tiny(
        cls="GlmImage",
        sections=(2, 3, 3),
        text={"vision_vocab_size": VOCABULARY},
        vision={**_TOWER, "image_size": 32, "spatial_merge_size": 1},
        more={
            "vq_config": {"embed_dim": 16, "num_embeddings": 128, "latent_channels": 32},
            "image_token_id": TOKENS.image,
            "image_start_token_id": TOKENS.image_start,
            "image_end_token_id": TOKENS.image_end,
        },
    ),
    "ernie4_5_vl_moe": Tiny(
        cls="Ernie4_5_VLMoe",
        sections=(3, 3, 2),
        text={
            "moe_intermediate_size": [32, 32],
            "moe_k": 2,
            "moe_num_experts": 4,
            "moe_num_shared_experts": 1,
            "mlp_layer_types": ["dense", "sparse"],
        },
        vision={**_TOWER, "temporal_merge_size": 2},
        more=_GLM,
    ),
    "paddleocr_vl": Tiny(
        cls="PaddleOCRVL",
        sections=(2, 3, 3),
        text=_HEAD,
        vision={**_LAYERS, "image_size": 32, "spatial_merge_size": 2},
        more=_QWEN,
        together=(("image",),),
        patch=(3, 4, 4),
    ),
    "hunyuan_vl": Tiny(
        cls="HunYuanVL",
        sections=(2, 2, 2, 2),
        text=_HEAD,
        vision={**_LAYERS, "spatial_merge_size": 2, "text_hidden_size": 64, "out_hidden_size": 64, "max_image_size": 64},
        more={
            "image_token_id": TOKENS.image,
            "im_start_id": TOKENS.vision_start,
            "im_end_id": VISION_END,
            "im_newline_id": 204,
        },
    ),
    "qwen2_5_omni": Tiny(
        cls="Qwen2_5OmniThinker",
        sections=(2, 3, 3),
        vision=_WINDOWS,
        more={
            **_OMNI,
            "image_token_index": TOKENS.image,
            "video_token_index": TOKENS.video,
            "audio_token_index": TOKENS.audio,
            "position_id_per_seconds": 25,
            "seconds_per_chunk": 2,
            "audio_config": _SOUND,
        },
        together=_SOUNDS,
        patch=_FRAMES,
    ),
    "qwen3_omni_moe": Tiny(
        cls="Qwen3OmniMoeThinker",
        sections=(4, 2, 2),
        text={**_HEAD, **_MOE},
        vision=_DEEP,
        more={
            **_OMNI,
            "image_token_id": TOKENS.image,
            "video_token_id": TOKENS.video,
            "audio_token_id": TOKENS.audio,
            "position_id_per_seconds": 13,
            "audio_config": {**_SOUND, "n_window": 50, "downsample_hidden_size": 8},
        },
        together=_SOUNDS if V5 else (("image", "audio"), ("video", "audio"), ("audio", "audio_in_video")),
        patch=_FRAMES,
    ),
    "minicpmv4_7": Tiny(
        cls="MiniCPMV4_7",
        sections=(2, 1, 1),
        fraction=0.25,
        text={**_LINEAR, "model_type": "qwen3_5_text"},
        vision={**_LAYERS, "image_size": 32},
        more={
            "insert_layer_id": 0,
            "image_token_id": TOKENS.image,
            "video_token_id": TOKENS.video,
            "image_start_id": TOKENS.image_start,
            "image_end_id": TOKENS.image_end,
            "slice_start_id": TOKENS.slice_start,
            "slice_end_id": TOKENS.slice_end,
            "newline_id": TOKENS.newline,
        },
        patch=(3, 4, 4),
    ),
    "neomme": Tiny(
        cls="NeoMME",
        fraction=0.25,
        text={
            **_HEAD,
            "embedding_rank": 32,
            "patch_size": 4,
            "document_token_id": DOCUMENT,
            "image_token_id": TOKENS.image,
        },
        head="ForMaskedLM",
        layers={"full_attention": {}, "sliding_attention": {"partial_rotary_factor": 1.0}},
        generates=False,
    ),
}
MODELS = {name: tiny for name, tiny in MODELS.items() if name in IN_TRANSFORMERS}
"""Of the installed transformers, by family; of the Omni models their thinkers."""

NOT_INSTANTIABLE: dict[str, str] = {}
"""Families without a model that takes position ids, and why."""


# --- models -----------------------------------------------------------------------------------------------------------


def model(name: str, **overrides: Any) -> Any:
    """A tiny model of the family, on the CPU in float32.

    Its matrices are random numbers of unit gain: with those of the usual initialization attention is nearly uniform, and
    where tokens stand makes no difference to what it says. generate() writes text only, and never stops early.

    Args:
        overrides: of the text config; `rope` (a dict) of its rope parameters; `vision` of the vision config, `more` of the whole
            one; `attn_implementation`.
    """
    tiny = MODELS[name]
    attention = overrides.pop("attn_implementation", "eager" if name == "hy_v4_vl" else "sdpa")
    vision, top = overrides.pop("vision", {}), {**tiny.more, **overrides.pop("more", {})}
    text = {**_TEXT, **tiny.text, **_rope(tiny, overrides.pop("rope", {})), **overrides}
    torch.manual_seed(0)
    if tiny.vision:
        config = _class(tiny, "Config")(text_config=text, vision_config={**tiny.vision, **vision}, **top)
    else:  # NeoMME's has no others within it, and no tokens that begin and end
        config = _class(tiny, "Config")(**{key: value for key, value in text.items() if not key.startswith(("bos", "eos"))})
    config._attn_implementation = attention
    built = _class(tiny, tiny.head)(config).eval()
    with torch.no_grad():
        for weight in built.parameters():
            if weight.ndim > 1:
                each = weight[0].numel() if weight.ndim > 3 else weight.shape[-1]  # numbers that one is made of; 3: experts
                weight.normal_(std=each**-0.5)
    if tiny.generates:
        said = built.generation_config
        said.bos_token_id, said.eos_token_id, said.pad_token_id = None, None, 0
        said.suppress_tokens = [*range(TEXT), *range(FIRST_SPECIAL, VOCABULARY)]
    return built


def _class(tiny: Tiny, ending: str) -> Any:
    return getattr(transformers, tiny.cls + ending)


def _rope(tiny: Tiny, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a text config that says how it turns."""
    rope = {"rope_type": "default", "rope_theta": _THETA, "partial_rotary_factor": tiny.fraction, **changes}
    if tiny.sections:
        rope["mrope_section"] = list(tiny.sections)
    if not V5:
        return {**{key: rope.pop(key) for key in ("rope_theta", "partial_rotary_factor")}, "rope_scaling": rope}
    if not tiny.layers:
        return {"rope_parameters": rope}
    each = {kind: None if change is None else {**rope, **change} for kind, change in tiny.layers.items()}
    return {"rope_parameters": each, "layer_types": list(each)}


def rotary_holder(model: Any) -> Any:
    """What has the rotary embedding of a model's text, `rotary_emb`."""
    return getattr(model.model, "language_model", model.model)


# --- inputs -----------------------------------------------------------------------------------------------------------


def inputs(name: str, rows: Sequence[Sequence[Segment]], *, seed: int = 0) -> dict[str, Any]:
    """What the family's processor would give the model for these rows of one length: random text, pixels and sounds.

    `Tiny.together` says which media a batch may hold. Around each of Hunyuan's images there is text, at least three tokens
    between two: the token before and the one behind become its marks, which the model fills. The same goes for the two tokens
    before a page of NeoMME, of which a row has one; its position ids are not made. Each row of GLM-Image also asks for an image
    of 4 x 4 tokens.
    """
    tiny = MODELS[name]
    made = {
        key: torch.as_tensor(value) for key, value in as_inputs(rows, with_tokens(f"{name}@{TRANSFORMERS}"), types=V5).items()
    }
    random = torch.Generator().manual_seed(seed)
    ids = made["input_ids"]
    text = torch.randint(TEXT, FIRST_SPECIAL, ids.shape, generator=random)
    made["input_ids"] = torch.where(ids == TEXT, text, ids)
    for grids, pixels in _PIXELS.items():
        if grids in made:
            made[pixels] = torch.randn((int(made[grids].prod(-1).sum()), *tiny.patch), generator=random)
    if "audio_seqlens" in made:
        frames = made.pop("audio_seqlens")
        made["feature_attention_mask"] = (torch.arange(int(frames.max())) < frames[:, None]).long()
        bins = tiny.more["audio_config"]["num_mel_bins"]
        made["input_features"] = torch.randn((len(frames), bins, int(frames.max())), generator=random)
    if name in _BESIDES:
        _BESIDES[name](made, rows)
    return made


_PIXELS = {"image_grid_thw": "pixel_values", "video_grid_thw": "pixel_values_videos", "target_sizes": "pixel_values"}


def _omni(made: dict[str, Any], rows: Sequence[Sequence[Segment]]) -> None:
    made.pop("mm_token_type_ids", None)
    if any(s.kind == "audio_in_video" for row in rows for s in row):
        made["use_audio_in_video"] = True


def _ernie(made: dict[str, Any], rows: Sequence[Sequence[Segment]]) -> None:
    """For its experts, markers are vision, too."""
    markers = (made["input_ids"] == TOKENS.vision_start) | (made["input_ids"] == VISION_END)
    made["moe_mm_token_type_ids"] = made["mm_token_type_ids"].masked_fill(markers, 1)


def _hunyuan(made: dict[str, Any], rows: Sequence[Sequence[Segment]]) -> None:
    """The placeholders of an image are two more than its grid."""
    for b, start, end in _images(rows):
        marks = [start - 1, end]
        made["input_ids"][b, marks], made["mm_token_type_ids"][b, marks] = TOKENS.image, 1


def _glm_image(made: dict[str, Any], rows: Sequence[Sequence[Segment]]) -> None:
    """The grid of the image to be made stands behind those that are shown."""
    shown = made.get("image_grid_thw", torch.zeros((0, 3), dtype=torch.long))
    wanted = torch.tensor([[1, 4, 4]])
    made["image_grid_thw"] = torch.cat([torch.cat([g, wanted]) for g in shown.split(made["images_per_sample"].tolist())])
    made["images_per_sample"] += 1
    del made["mm_token_type_ids"]


def _minicpm(made: dict[str, Any], rows: Sequence[Sequence[Segment]]) -> None:
    """Patches stand side by side in one long picture."""
    if "pixel_values" in made:
        made["pixel_values"] = made["pixel_values"].permute(1, 2, 0, 3).flatten(2)[None]


def _neomme(made: dict[str, Any], rows: Sequence[Sequence[Segment]]) -> None:
    """A page opens with two marks, and each of its rows ends with one."""
    for b, start, end in _images(rows):
        width = next(s.grid[2] for s in rows[b] if s.kind == "image")
        made["input_ids"][b, start - 2 : start] = torch.tensor([DOCUMENT, TOKENS.image])
        made["input_ids"][b, start + width - 1 : end : width] = ROW_END
    for key in ("mm_token_type_ids", "image_grid_thw"):
        made.pop(key, None)


def _images(rows: Sequence[Sequence[Segment]]) -> list[tuple[int, int, int]]:
    """(row, first token, token behind the last) of each image."""
    found = []
    for b, row in enumerate(rows):
        ends = np.cumsum([s.length for s in row]).tolist()
        found += [(b, end - s.length, end) for s, end in zip(row, ends, strict=True) if s.kind == "image"]
    return found


_BESIDES = {
    "qwen2_5_omni": _omni,
    "qwen3_omni_moe": _omni,
    "ernie4_5_vl_moe": _ernie,
    "hunyuan_vl": _hunyuan,
    "glm_image": _glm_image,
    "minicpmv4_7": _minicpm,
    "neomme": _neomme,
}
"""What else the processors of some families write."""
