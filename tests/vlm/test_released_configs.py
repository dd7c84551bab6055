"""The configs of released checkpoints, as published: every weight has the name and the shape that it has in the file and in
transformers' model. Nothing is allocated: models are built on the meta device."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import transformers

from mmrope import VLM
from mmrope.vlm.released import released_config, renaming

CHECKPOINTS = json.loads((Path(__file__).parents[1] / "references" / "checkpoints" / "qwen_vl.json").read_text())
BYTES = {"Qwen/Qwen2.5-VL-3B-Instruct": 7509245952, "Qwen/Qwen3-VL-30B-A3B-Instruct": 62141508064}
"""Of all weights in bfloat16: total_size in the published model.safetensors.index.json."""


def ours(name):
    with torch.device("meta"):
        model = VLM(released_config(CHECKPOINTS[name]["config"], CHECKPOINTS[name]["generation_config"] or {}))
    return model, {name: list(weight.shape) for name, weight in model.state_dict().items()}


def as_ours(shape):
    """A convolution of patches as a matrix."""
    return [shape[0], math.prod(shape[1:])] if len(shape) == 5 else list(shape)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_weights_have_the_published_names_and_shapes(name):
    model, expected = ours(name)
    stated, rename = CHECKPOINTS[name], renaming(CHECKPOINTS[name]["config"]["model_type"])
    layers = {
        "layers.N": model.config.decoder.num_layers,
        "blocks.N": model.config.vision.num_layers,
        "deepstack_merger_list.N": len(model.config.vision.deepstack_layers),
    }
    found = {}
    for pattern, shape in stated["weights"].items():
        for n in range(next((count for part, count in layers.items() if part in pattern), 1)):
            found[rename(pattern.replace(".N.", f".{n}."))] = as_ours(shape)
    assert found == expected
    if name in BYTES:
        assert 2 * sum(math.prod(shape) for shape in expected.values()) == BYTES[name]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_weights_have_the_names_and_shapes_of_transformers(name):
    _, expected = ours(name)
    values = json.loads(json.dumps(CHECKPOINTS[name]["config"]))
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    rename, found = renaming(config.model_type), {}
    for theirs, weight in model.named_parameters():  # a tied head is not among them
        shape = as_ours(weight.shape)
        found[rename(theirs)] = [shape[0], *shape[:0:-1]] if len(shape) == 3 else shape  # its experts are the other way round
    assert found == expected


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_values_that_shape_no_weight(name):
    """Against the config that transformers makes of the same values."""
    values = json.loads(json.dumps(CHECKPOINTS[name]["config"]))
    theirs = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    text, vision = theirs.get_text_config(), theirs.vision_config
    model, _ = ours(name)
    config = model.config
    assert config.decoder.norm_eps == text.rms_norm_eps
    assert config.decoder.num_experts_per_tok == getattr(text, "num_experts_per_tok", 0)
    assert (config.decoder.num_heads, config.decoder.num_kv_heads) == (text.num_attention_heads, text.num_key_value_heads)
    assert config.vision.hidden_act == vision.hidden_act
    assert config.vision.num_heads == vision.num_heads
    assert config.vision.patches.patch_size == vision.patch_size
    assert config.vision.window_size == getattr(vision, "window_size", 0)
    assert list(config.vision.full_layers) == list(getattr(vision, "fullatt_block_indexes", []))
    assert list(config.vision.deepstack_layers) == list(getattr(vision, "deepstack_visual_indexes", []))
    assert config.vision.theta == vision.rope_parameters["rope_theta"]
    rope = text.rope_parameters
    assert config.rotary.spectra.of[0][0] == rope["rope_theta"]
    assert [config.rotary.axis_letters.count(axis) for axis in "thw"] == list(rope["mrope_section"])
    generation = CHECKPOINTS[name]["generation_config"]
    if generation:
        assert config.eos_token_id == tuple(generation["eos_token_id"]) == (151645, 151643)
        assert config.pad_token_id == 151643
        assert config.generation.temperature == generation.get("temperature", 1.0)
        assert config.generation.top_k == generation.get("top_k", 50)
    else:
        assert config.eos_token_id == (values.get("eos_token_id") or values["text_config"]["eos_token_id"],)
