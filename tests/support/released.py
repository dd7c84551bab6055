"""Random models of transformers like those that VLM runs, with every branch on, and random inputs for them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

import mmrope
from mmrope import VLM, Segment
from mmrope.vlm.released import RELEASED
from tests.support import checkpoints, tiny_models
from tests.support.upstream_ids import with_tokens

_DEEPER = {"depth": 5, "num_heads": 2}
_WINDOWED = {**_DEEPER, "window_size": 16, "fullatt_block_indexes": [1, 4]}
_STACKED = {**_DEEPER, "deepstack_visual_indexes": [0, 2, 3], "num_position_embeddings": 49}
_TEXT = {"num_hidden_layers": 4}
_YARN = {"rope": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3}

OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "qwen2_vl": {
        "plain": {"vision": _DEEPER},
        "tied": {"more": {"tie_word_embeddings": True}},
        "one key head": {"num_key_value_heads": 1},
        "as many key heads": {"num_key_value_heads": 4, "rms_norm_eps": 1e-2},
        "wider mlp": {"vision": {**_DEEPER, "mlp_ratio": 3}},
        "yarn": _YARN,
    },
    "qwen2_5_vl": {
        "windows": {"vision": _WINDOWED},
        "wide windows": {"vision": {**_WINDOWED, "window_size": 24}},
        "windows alone": {"vision": {**_WINDOWED, "fullatt_block_indexes": []}},
        "whole images alone": {"vision": {**_WINDOWED, "fullatt_block_indexes": [0, 1, 2, 3, 4]}},
        "tied": {"more": {"tie_word_embeddings": True}, "vision": _WINDOWED},
        "yarn": {**_YARN, "vision": _WINDOWED},
    },
    "qwen3_vl": {
        "deepstack": {"vision": _STACKED},
        "no deepstack": {"vision": {**_STACKED, "deepstack_visual_indexes": []}},
        "deepstack to the last layer": {"num_hidden_layers": 3, "vision": _STACKED},
        "tied": {"more": {"tie_word_embeddings": True}, "vision": _STACKED},
        "heads wider than the model": {"head_dim": 16, "num_attention_heads": 8, "vision": _STACKED},
        "a table of one": {"vision": {**_STACKED, "num_position_embeddings": 1}},
    },
    "qwen3_vl_moe": {
        "experts": {"vision": _STACKED, **_EXPERTS},
        "all experts": {"num_experts": 3, "num_experts_per_tok": 3, "vision": _STACKED},
        "one expert of many": {"num_experts": 16, "num_experts_per_tok": 1},
        "some layers without": {"mlp_only_layers": [0, 2], "vision": _STACKED, **_EXPERTS},
        "tied": {"more": {"tie_word_embeddings": True}, "vision": _STACKED, **_EXPERTS},
    },
}
CASES = [(name, option) for name, options in OPTIONS.items() for option in options]
assert set(OPTIONS) == set(RELEASED)


def upstream(name: str, option: str) -> Any:
    """A model of transformers, weights, biases and norms drawn wide."""
    changes = {**_TEXT, **OPTIONS[name][option]}
    model = tiny_models.model(name, **changes)
    model.generation_config.suppress_tokens = None
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight), alpha=0.3)
    return model


def ours(model: Any, folder: Path) -> VLM:
    """The same model in VLM, by way of the folder that transformers saves."""
    model.save_pretrained(folder)
    return VLM.from_pretrained(folder)


def segment(draw: random.Random) -> Segment:
    """A text, an image or a video."""
    side = lambda: draw.randint(1, 7)  # noqa: E731
    kind = draw.choice(["text", "text", "image", "video"])
    if kind == "text":
        return Segment.text(draw.randint(1, 9))
    if kind == "image":
        return Segment.image(h=side(), w=side())
    return Segment.video(t=draw.randint(1, 4), h=side(), w=side(), seconds_per_grid=1.0)


def batch(name: str, *, seed: int, rows: int, side: Literal["left", "right"] = "left", revision: str = "") -> dict[str, Any]:
    """What a processor would give for random rows, with mmrope's positions for them, padded on a side.

    Args:
        revision: whose rule the positions are by; the reference's if there is none.
    """
    draw, family = random.Random(seed), with_tokens(name + revision)
    made = [[Segment.text(2), *[segment(draw) for _ in range(draw.randint(0, 6))], Segment.text(3)] for _ in range(rows)]
    if rows == 1:
        clips = [Segment.video(t=t, h=h, w=w, seconds_per_grid=1.0) for t, h, w in ((2, 2, 3), (3, 4, 4))]
        made[0][1:1] = [Segment.image(h=3, w=5), *clips]
    videos = [s.grid for row in made for s in row if s.kind == "video"]
    padded = mmrope.collate([[piece for s in row for piece in written(name, s)] for row in made], pad_side=side)
    positions = mmrope.position_ids(padded, family)
    inputs = tiny_models.inputs(name, padded, seed=seed)
    if videos:  # as a processor counts them: one grid a video, whatever stands between its frames
        m = family.spatial_merge
        inputs["video_grid_thw"] = torch.tensor([[t, h * m, w * m] for t, h, w in videos])
    return {**inputs, **positions.torch()}


def written(name: str, one: Segment) -> list[Segment]:
    """A segment as the family's processor writes it, between markers: Qwen3-VL has each frame of a video between them."""
    if one.kind != "video" or not name.startswith("qwen3"):
        return [Segment.text(1), one, Segment.text(1)]
    t, h, w = one.grid
    return [piece for _ in range(t) for piece in (Segment.text(2), Segment.frame(h=h, w=w), Segment.text(1))]


def without_positions(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """For transformers, which makes its own."""
    return {key: value for key, value in inputs.items() if key not in ("position_ids", "next_position")}


# --- folders ----------------------------------------------------------------------------------------------------------


def checkpoint(path: Path, name: str, **saving: Any) -> Path:
    """Writes a checkpoint's folder as `checkpoints.folder` does, with the weights of a random model of transformers.

    Args:
        name: one of `checkpoints.CHECKPOINTS`.
        saving: of save_pretrained, such as max_shard_size; `dtype`.
    """
    dtype, tied = saving.pop("dtype", torch.float32), saving.pop("tied", False)
    checkpoints.folder(path, name)
    stated = json.loads((path / "config.json").read_text())
    kind, tokens = stated["model_type"], checkpoints.small_tokenizer(name)
    ends = [tokens.token_to_id("<|im_end|>"), tokens.token_to_id(checkpoints.PAD)]
    patch = checkpoints.CHECKPOINTS[name]["image"]["patch_size"]
    model = tiny_models.model(
        kind,
        vocab_size=tokens.get_vocab_size(),
        eos_token_id=ends[0],
        vision={"patch_size": patch, "window_size": 112} if kind == "qwen2_5_vl" else {"patch_size": patch},
        more={key: value for key, value in stated.items() if key.endswith("_token_id")} | {"tie_word_embeddings": tied},
    ).to(dtype)
    said = model.generation_config
    said.eos_token_id, said.pad_token_id, said.suppress_tokens = ends, ends[1], None
    model.save_pretrained(path, **saving)
    return path
