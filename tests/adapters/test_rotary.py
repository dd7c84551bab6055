"""mmrope's rotary embedding in the place of a model's own: the same call, the same shapes, the same numbers where these are right."""

from __future__ import annotations

import copy

import pytest
import torch

from mmrope import RotaryEmbedding, RotarySpec, Segment, YaRN
from mmrope.adapters.rotary import RotaryInPlace, spec_of
from tests.support import tiny_models
from tests.support.proof import UNEQUAL_ROTATION, given, logits, put_rotary, real

NAMES = sorted(set(tiny_models.MODELS) - UNEQUAL_ROTATION.keys())


def own_module(name, **rope):
    return tiny_models.rotary_holder(tiny_models.model(name, rope=rope)).rotary_emb


def layers(module):
    """What it is told besides: each of its types of layer that turn."""
    return [(name,) for name in module.layers] if module.layers != [""] else [()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_hf_angles_equal_the_models_module_to_the_last_bit(name, dtype):
    own = own_module(name)
    ours = RotaryInPlace(own, angles="hf")
    x, axes = torch.zeros(2, 9, 4, dtype=dtype), len(ours.by_layer[next(iter(ours.by_layer))].spec.axes)
    for ids in (torch.randint(0, 10**6, (axes, 2, 9)), torch.arange(9).expand(1, 2, 9)):
        for layer in layers(ours):
            for mine, theirs in zip(ours(x, ids, *layer), own(x, ids, *layer), strict=True):
                assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
                assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_exact_angles_are_right_far_out(name):
    """Where the model's own are not."""
    own = own_module(name)
    ours, far = RotaryInPlace(own), 3_000_017
    for layer in layers(ours):
        rotary = ours.by_layer[layer[0] if layer else "all"]
        ids = torch.full((len(rotary.spec.axes), 1, 1), far)
        cos, _ = ours(torch.zeros(1), ids, *layer)
        half = ours.halves  # as its module writes them down
        pairs = cos[0, 0, : len(rotary.inv_freq)] if half else cos[0, 0, ::2]
        right = torch.tensor(far * rotary.inv_freq.astype(float)).cos().float()
        assert (pairs - right).abs().max() < 1e-6
        theirs, _ = own(torch.zeros(1), ids, *layer)
        assert (theirs - cos).abs().max() > 1e-3


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
        {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_scalings_are_read_of_the_modules_config(scaling):
    own = own_module("qwen2_5_vl", **scaling)
    ours = RotaryInPlace(own)
    for length in (50, 6000):  # within and past max_position_embeddings, from where on "dynamic" scales
        ids = torch.arange(length).expand(3, 1, -1)
        for mine, theirs in zip(ours(torch.zeros(1), ids), own(torch.zeros(1), ids), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-3)


def test_tables_of_every_axis_as_in_transformers_4_57():
    """[A, B, S, R], of which the model's own code takes each channel of its axis: all three of ours are right there."""
    installed = own_module("qwen2_vl")
    spec = spec_of(installed)

    class Qwen2VLRotaryEmbedding(type(installed)):
        rate = 1.0

        def forward(self, x, position_ids):
            angle = position_ids[..., None] * self.inv_freq * torch.tensor([1.0, self.rate, 1.0])[:, None, None, None]
            return tuple(torch.cat((table, table), dim=-1).to(x.dtype) for table in (angle.cos(), angle.sin()))

    own = Qwen2VLRotaryEmbedding(installed.config)
    ids = torch.randint(0, 100, (3, 2, 9))
    tables = RotaryInPlace(own, angles="hf")(torch.zeros(1), ids)
    of_channel = torch.tensor([*spec.axis, *spec.axis])
    for mine, theirs in zip(tables, own(torch.zeros(1), ids), strict=True):
        assert mine.shape == theirs.shape == (3, 2, 9, 2 * len(spec.axis))
        assert all(torch.equal(mine[0], each) for each in mine)
        torch.testing.assert_close(mine[0], theirs.gather(0, of_channel.expand(1, *mine.shape[1:]))[0])
    Qwen2VLRotaryEmbedding.rate = 2.0  # of h
    with pytest.raises(ValueError, match="Qwen2VLRotaryEmbedding computes other angles than RotarySpec"):
        RotaryInPlace(Qwen2VLRotaryEmbedding(installed.config))


def test_two_dimensional_ids_are_text():
    ours = RotaryInPlace(own_module("qwen3_vl"))
    ids = torch.arange(5)[None]
    for one, other in zip(ours(torch.zeros(1), ids), ours(torch.zeros(1), ids.expand(3, 1, -1)), strict=True):
        assert torch.equal(one, other)


def test_it_has_no_weights_and_survives_casts_and_copies():
    model = tiny_models.model("qwen2_vl")
    before = set(model.state_dict())
    put_rotary(model)
    assert set(model.state_dict()) == before
    rotary = model.model.language_model.rotary_emb
    assert not list(rotary.parameters())
    ids, x = torch.randint(0, 10**5, (3, 1, 9)), torch.zeros(1)
    expected = rotary(x, ids)
    for again in (copy.deepcopy(rotary), rotary.to(torch.bfloat16)):
        for one, other in zip(again(x, ids), expected, strict=True):
            assert torch.equal(one, other)


def test_a_cast_model_gets_right_angles_back():
    """`.to(bfloat16)` rounds the model's own frequencies; the module that replaces it is read of the config."""
    rows = [[Segment.text(60)]]
    cast = tiny_models.model("qwen2_vl").to(torch.bfloat16).to(torch.float32)
    whole = tiny_models.model("qwen2_vl")
    whole.load_state_dict(cast.state_dict())
    inputs, mask = given("qwen2_vl", rows), real(rows)
    expected = logits(whole, inputs)[mask]
    assert (logits(cast, inputs)[mask] - expected).abs().max() > 1e-3
    put_rotary(cast)
    torch.testing.assert_close(logits(cast, inputs)[mask], expected, rtol=0, atol=1e-5)


def test_another_embedding_can_be_stated():
    """A context extension, for one."""
    own = own_module("qwen2_5_vl")
    longer = spec_of(own).scaled(YaRN(factor=4.0, original_max_position=1024))
    ours = RotaryInPlace(own, spec=longer)
    ids = torch.arange(9).expand(3, 1, -1)
    cos, _ = RotaryEmbedding(longer)(ids)
    assert torch.equal(ours(torch.zeros(1), ids)[0], torch.cat([cos, cos], dim=-1))
    assert (ours(torch.zeros(1), ids)[0] - own(torch.zeros(1), ids)[0]).abs().max() > 1e-2


def test_a_module_that_was_changed_by_hand_is_found():
    for change in ("inv_freq", "attention_scaling"):
        own = own_module("qwen2_vl")
        setattr(own, change, getattr(own, change) / 4)
        with pytest.raises(ValueError, match=rf"Qwen2VLRotaryEmbedding.{change} is not what its config says: it was changed"):
            RotaryInPlace(own)
        RotaryInPlace(own, spec=spec_of(own))  # said so, it goes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("theta", [1e4, 1e6, 1e7])
def test_casts_are_no_changes(theta, dtype):
    from transformers import Qwen2_5_VLConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

    rope = {"rope_type": "default", "rope_theta": theta, "mrope_section": [16, 24, 24]}
    own = Qwen2_5_VLRotaryEmbedding(Qwen2_5_VLConfig(text_config={"head_dim": 128, "rope_parameters": rope}).text_config)
    RotaryInPlace(own.to(dtype))


def test_a_spec_that_the_models_code_cannot_apply_is_refused():
    own = own_module("glm4v")
    for spec, what in (
        (
            RotarySpec.mrope(16, theta=100.0, sections=(1, 1, 2), rotary_dim=8),
            "pairing 'half', but the model's code has 'adjacent'",
        ),
        (RotarySpec.mrope(16, sections=(2, 3, 3), pairing="adjacent"), "rotated channels 16, but the model's code has 8"),
        (RotarySpec.rope(8, pairing="adjacent"), "axes 't', but the model's code has 'thw'"),
    ):
        with pytest.raises(ValueError, match=what):
            RotaryInPlace(own, spec=spec)


def test_a_module_may_have_the_whole_config():
    own = own_module("qwen2_vl")
    expected = spec_of(own)
    own.config = {"model_type": "qwen2_vl", "text_config": own.config.to_dict()}
    assert spec_of(own) == expected


def test_a_call_that_cannot_be_right():
    ours = RotaryInPlace(own_module("qwen2_vl"))
    with pytest.raises(
        ValueError, match=r"position_ids must be \[3, B, S\], or \[B, S\] of text, got \[4, 1, 2\]; a row of text"
    ):
        ours(torch.zeros(1), torch.zeros(4, 1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"layer_type is 'full_attention', but there are layers of types \[''\]"):
        ours(torch.zeros(1), torch.zeros(3, 1, 2, dtype=torch.long), "full_attention")


def test_refusals():
    own = own_module("qwen2_vl")
    with pytest.raises(ValueError, match="Linear has no config: pass the rotary module of a transformers model"):
        RotaryInPlace(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"has layers of types \[''\]: give a spec for each, not \['full_attention'\]"):
        RotaryInPlace(own, spec={"full_attention": RotarySpec.rope(16)})
    with pytest.raises(ValueError, match=r"has layers of types \[''\], not 'full_attention'"):
        spec_of(own, "full_attention")
    with pytest.raises(
        ValueError, match=r"HunYuanVLRotaryEmbedding computes other angles than RotarySpec.* which its config says"
    ):
        RotaryInPlace(own_module("hunyuan_vl"))
    bare = torch.nn.Module()
    bare.config = tiny_models.model("qwen2_vl").config
    with pytest.raises(ValueError, match="Module has no inv_freq: pass the rotary module of a transformers model"):
        RotaryInPlace(bare)
