"""The authors' own position code, run from its source: what the reference rules are held against.

A folder holds the repositories at the commits that the table of families names, as owner/name/path.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch

from mmrope.positions import Family, Segment
from tests.support.upstream_ids import TOKENS, as_inputs, function_of

_QWEN = "QwenLM/Qwen3-VL/qwen-vl-finetune/qwenvl/data/rope2d.py"
AUTHORS = {  # family -> (file, function, class)
    "qwen2_vl": (_QWEN, "get_rope_index_2", None),
    "qwen2_5_vl": (_QWEN, "get_rope_index_25", None),
    "qwen3_vl": (_QWEN, "get_rope_index_3", None),
    "qwen3_vl_moe": (_QWEN, "get_rope_index_3", None),
    "keye_vl": ("Kwai-Keye/Keye/keye-vl-8b-preview/modeling_keye.py", "get_rope_index", "KeyeForConditionalGeneration"),
    "qwen3_asr": (
        "QwenLM/Qwen3-ASR/qwen_asr/core/transformers_backend/modeling_qwen3_asr.py",
        "get_rope_index",
        "Qwen3ASRPreTrainedModelForConditionalGeneration",
    ),
    "bailing_mm": ("inclusionAI/Ming/modeling_bailing_moe_v2.py", "get_t_scale_rope_index", None),
    "isaac": ("perceptron-ai-inc/perceptron/src/perceptron/tensorstream/ops.py", "compute_mrope_pos_tensor", None),
    "hunyuan_image_3": ("Tencent-Hunyuan/HunyuanImage-3.0/hunyuan_image_3/hunyuan.py", "build_2d_rope", None),
    "omnirope": ("VectorSpaceLab/OmniGen2/omnigen2/models/transformers/repo.py", "forward", "OmniGen2RotaryPosEmbed"),
    "videorope": (
        "Wiselnn570/VideoRoPE/videorope-transformer/modeling_videorope.py",
        "get_t_scale_rope_index",
        "Qwen2VLForConditionalGeneration",
    ),
    "hope": ("hrlics/HoPE/modeling_hope.py", "get_dynamic_rope_index", "Qwen2VLForConditionalGeneration"),
    "mrope_i": ("JJJYmmm/Multimodal-RoPEs/multimodal_ropes/pos_design/mrope_i.py", "get_mrope_interleave_index", None),
    "v2pe": ("OpenGVLab/V2PE/internvl/model/internvl_chat/modeling_internvl_chat.py", "get_rope_pos_id", None),
    "vrope": ("johncaged/VRoPE/vrope.py", "VRoPE", None),
    "circle_rope": (
        "lose4578/CircleRoPE/code/modular_qwen2_5_vl_circle_rope.py",
        "get_rope_index",
        "Qwen2_5_VLForConditionalGeneration_CircleRoPE",
    ),
}
TOUCHING = ("isaac", "hunyuan_image_3", "omnirope")
"""Families whose authors' code needs no text between media."""


def authors_ids(folder: Path, family: Family, row: Sequence[Segment]) -> np.ndarray:
    """ids [A, S] of a row without padding, by the family's authors."""
    file, name, cls = AUTHORS[family.name]
    by_rows = {"vrope": _vrope, "isaac": _isaac, "hunyuan_image_3": _hunyuan_image, "omnirope": _omnirope}
    if family.name in by_rows:
        return by_rows[family.name](folder / file, row)
    function = function_of(folder / file, name, cls, random=__import__("random"))
    inputs = {key: torch.as_tensor(value) for key, value in as_inputs([row], family, types=False).items()}
    if name == "get_rope_pos_id":
        return _v2pe(function, family, inputs)
    if family.name == "qwen3_asr":
        return np.asarray(function(None, attention_mask=inputs["attention_mask"])[0][:, 0])
    if file == _QWEN:
        ids = inputs["input_ids"]
        for ours, theirs in ((TOKENS.image, 151655), (TOKENS.video, 151656), (TOKENS.vision_start, 151652)):
            ids[ids == ours] = theirs
        return np.asarray(function(family.spatial_merge, **inputs)[0][:, 0])
    model = SimpleNamespace(
        config=SimpleNamespace(
            vision_config=SimpleNamespace(spatial_merge_size=family.spatial_merge, tokens_per_second=2),
            image_token_id=TOKENS.image,
            video_token_id=TOKENS.video,
            vision_start_token_id=TOKENS.vision_start,
            circle_rope={"alpha": 0.5, "radius": 10, "method": "circle", "move_to_origin": True},
        ),
        # Ming's function gets a config in the model's place; its two start tokens only count media, by the token after them
        spatial_merge_size=family.spatial_merge,
        image_patch_token=TOKENS.image,
        video_patch_token=TOKENS.video,
        image_start_token=TOKENS.vision_start,
        video_start_token=TOKENS.vision_start,
    )
    options: dict[str, Any] = {
        "videorope": {"scale_factor": float(family.stride or 0)},
        "bailing_mm": {"scale_factor": float(family.stride or 0)},
        "hope": {"scale_factors": [float(family.stride or 0)]},
        "mrope_i": {"extra_config": SimpleNamespace(spatial_reset=True, temporal_stride=1)},
    }.get(family.name, {})
    if family.name == "circle_rope":
        scope: dict[str, Any] = {}
        exec((folder / file).with_name("circle_rope.py").read_text(encoding="utf-8"), scope)
        circle = function_of(folder / file, "_get_circle_index", cls, get_circle_rope_index=scope["get_circle_rope_index"])
        model._get_circle_index = MethodType(circle, model)
    ids, _ = function(model, **inputs, **options)
    return np.asarray(ids[:, 0])


def _vrope(path: Path, row: Sequence[Segment]) -> np.ndarray:
    scope: dict[str, Any] = {}
    exec(path.read_text(encoding="utf-8"), scope)
    rope = scope["VRoPE"](half_head_dim=4, half_time_dim=0)
    for s in row:
        t, h, w = s.grid
        rope.add_shape(scope["VRoPETextShape"](w) if s.kind == "text" else scope["VRoPEVideoShape"](t, h, w))
    return np.asarray(rope()).T


def _isaac(path: Path, row: Sequence[Segment]) -> np.ndarray:
    """Of its own events, with what its rotary embedding makes of the ids of text before it turns them into angles."""
    dims = [[s.length, 1] if s.kind == "text" else list(s.grid) for s in row]
    events = [SimpleNamespace(dims=lambda d=d: d, idx_range=(0, s.length)) for s, d in zip(row, dims, strict=True)]
    stream = SimpleNamespace(streams=[events], shape=(1, sum(s.length for s in row)), device="cpu")
    ids = function_of(path, "compute_mrope_pos_tensor", itertools=itertools)(stream)
    rotary = function_of(
        path.parents[3] / "huggingface" / "modular_isaac.py",
        "forward",
        "IsaacRotaryEmbedding",
        VisionType=SimpleNamespace(image=SimpleNamespace(value=0)),
        precompute_cos_sin_3d=lambda ids, *_: (ids, None),
    )
    kinds = torch.tensor([[int(s.kind == "text") for s in row for _ in range(s.length)]])
    return np.asarray(rotary(SimpleNamespace(inv_freq=None, mrope_section=None), ids, kinds)[0][:, 0])


def _hunyuan_image(path: Path, row: Sequence[Segment]) -> np.ndarray:
    ends = list(itertools.accumulate(s.length for s in row))
    images = [(slice(end - s.length, end), s.grid[1:]) for s, end in zip(row, ends, strict=True) if s.kind == "image"]
    meshgrid = function_of(path, "get_meshgrid_nd", _to_tuple=function_of(path, "_to_tuple"))
    rope = function_of(path, "build_2d_rope", get_meshgrid_nd=meshgrid)
    return np.asarray(rope(ends[-1], 4, images, return_all_pos=True)[2][:, 0]).T


def _omnirope(path: Path, row: Sequence[Segment]) -> np.ndarray:
    """Its rows are a text, images to go by, and an image to be made."""
    from einops import repeat

    text, *images = row
    if [s.kind for s in row] != ["text", *["image"] * len(images)] or not images:
        raise ValueError(f"OmniGen2's rows are a text and then images, got {row}")
    *lengths, length = (s.length for s in images)
    *sizes, size = ((2 * s.grid[1], 2 * s.grid[2]) for s in images)
    forward = function_of(path, "forward", "OmniGen2RotaryPosEmbed", repeat=repeat)
    model = SimpleNamespace(patch_size=2, _get_freqs_cis=lambda freqs, ids: ids)
    mask = torch.ones(1, text.length, dtype=torch.long)
    return np.asarray(forward(model, None, mask, [lengths], [length], [sizes or None], [size], "cpu")[3][0]).T


def _v2pe(function: Any, family: Family, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """Its images are tiles of 256 tokens, and its stride counts in tiles."""
    tiles = [int(grid.prod()) // family.spatial_merge**2 // 256 for grid in inputs.get("image_grid_thw", [])]
    ids = inputs["input_ids"]
    markers = {"<img>": TOKENS.vision_start, "</img>": 203}
    tokenizer = SimpleNamespace(convert_tokens_to_ids=markers.__getitem__)
    found = function(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        tiles,
        torch.float32,
        rope_pos_id_version="v2pe_fix",
        rope_pos_id_stride=256 * (family.stride or 0),
        tokenizer=tokenizer,
    )
    return np.asarray(found)[None]
