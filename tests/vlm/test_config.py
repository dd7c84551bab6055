"""What a config states, it states whole: the user's own rotary embedding, scaling and rule come back as they were."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from mmrope import VLM, Processor, RotaryEmbedding, RotarySpec, YaRN, family
from mmrope.encodings import NTK, PI, Scaling, Temperature
from mmrope.vlm import Assistant, DecoderConfig, VisionConfig, VLMConfig

SIZES = {
    "vision": VisionConfig(hidden_size=16, num_layers=1, num_heads=1, intermediate_size=16),
    "decoder": DecoderConfig(hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=16),
}
MROPE = RotarySpec.mrope(16, theta=1e4, sections=(4, 2, 2), layout="interleaved")


class Halved(Scaling):
    """One of the user's own."""

    def frequencies(self, dim, theta, *, length=None, powers=None):
        return (theta ** -(np.arange(0, dim, 2) / dim) / 2).astype(np.float32)


SPECS = {
    "default": MROPE,
    "another base": RotarySpec.mrope(16, theta=5e6, sections=(2, 3, 3), layout="contiguous"),
    "by hand": RotarySpec(16, np.geomspace(1, 1e-3, 8).astype(np.float32), "twhhwtth", "thw"),
    "adjacent": RotarySpec.mrope(16, theta=1e4, sections=(4, 2, 2), pairing="adjacent"),
    "partial": RotarySpec.mrope(16, theta=1e4, sections=(2, 1, 1), rotary_dim=8),
    "an axis a head": RotarySpec(16, np.geomspace(1, 1e-3, 8).astype(np.float32), np.zeros((1, 8), np.int64), "thw"),
    "PI": MROPE.scaled(PI(4.0)),
    "NTK": MROPE.scaled(NTK(4.0)),
    "YaRN": MROPE.scaled(YaRN(factor=4.0, original_max_position=64)),
    "own scaling": MROPE.scaled(Halved()),
}


def inputs_of(processor):
    return processor([[{"role": "user", "content": "Where is each token?"}]])


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_spec_of_ones_own_comes_back(spec, tmp_path):
    torch.manual_seed(0)
    config = VLMConfig(**SIZES, rotary=spec, family="qwen2_vl")
    assert VLMConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    model = VLM(config).eval()
    model.save_pretrained(tmp_path)
    loaded = VLM.from_pretrained(tmp_path)
    assert loaded.config == config
    assert loaded.decoder.rotary.spec == spec
    inputs = inputs_of(Processor(family="qwen2_vl"))
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_rotary_embedding_that_was_replaced_is_saved(spec, tmp_path):
    model = VLM(VLMConfig(**SIZES)).eval()
    model.decoder.rotary = RotaryEmbedding(spec)
    model.save_pretrained(tmp_path)
    inputs = inputs_of(Processor())
    assert torch.equal(VLM.from_pretrained(tmp_path)(**inputs).logits, model(**inputs).logits)


def test_what_a_config_cannot_state_is_not_saved(tmp_path):
    for part, rotary, message in (
        ("decoder", RotaryEmbedding(MROPE, angles="hf"), "saved is a RotaryEmbedding\\(spec\\) with exact angles"),
        ("decoder", torch.nn.Identity(), "saved is a RotaryEmbedding"),
        ("decoder", type("Mine", (RotaryEmbedding,), {})(MROPE), "saved is a RotaryEmbedding"),
        (
            "vision",
            RotaryEmbedding(RotarySpec.axial(16, axes="hw", theta=7.0)),
            "the vision encoder's rotary embedding cannot be saved",
        ),
    ):
        model = VLM(VLMConfig(**SIZES))
        getattr(model, part).rotary = rotary
        with pytest.raises(ValueError, match=message):
            model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotary": RotarySpec.rope(32)}, "rotary is of heads of 32 channels, the decoder's have 16"),
        ({"rotary": dataclasses.replace(MROPE, score_factor=1.5)}, "its scores are not scaled"),
        ({"rotary": dataclasses.replace(RotarySpec.rope(16), temperature=Temperature(0.1, 64))}, "its scores are not scaled"),
        ({"family": "qwen9"}, "unknown family 'qwen9'"),
        ({"family": "vrope"}, "vrope has ids of the axes 'abcd', but rotary rotates by 'thw': give the one that reads them"),
    ],
)
def test_configs_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        VLMConfig(**SIZES, **options)


def test_a_processor_of_another_rule_is_refused():
    model = VLM(VLMConfig(**SIZES, family="qwen2_vl"))
    Assistant(model, Processor(family="qwen2_vl"))
    with pytest.raises(ValueError, match="trained with the ids of qwen2_vl, the processor makes those of qwen2_5_vl"):
        Assistant(model, Processor())
    changed = dataclasses.replace(family("qwen2_vl"), pad_value=7)
    with pytest.raises(ValueError, match="the ids of qwen2_vl, the processor makes those of qwen2_vl: pad_value differ"):
        Assistant(model, Processor(family=changed))


def test_numbers_of_numpy_and_lists_are_saved_as_numbers(tmp_path):
    """Settings are often computed, or come from a file."""
    processor = Processor(fps=np.float32(1.5), num_frames=np.int64(8), background=[0, 0, 0], image_pixels=[784, 7840])
    processor.save_pretrained(tmp_path)
    assert Processor.from_pretrained(tmp_path) == processor
    model = VLM(VLMConfig(**SIZES, eos_token_id=np.int64(3)))
    model.save_pretrained(tmp_path)
    assert VLM.from_pretrained(tmp_path).config == model.config
