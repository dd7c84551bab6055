"""A rotary embedding as JSON: it comes back equal, and says all that another language needs."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from mmrope import RotaryEmbedding, RotarySpec, YaRN, rotary_from_config
from mmrope.encodings import (
    NTK,
    PI,
    PRESETS,
    DynamicNTK,
    Llama3,
    LongRoPE,
    Proportional,
    ntk_by_parts,
    preset,
)
from mmrope.encodings.scaling import Scaling, Temperature, powers
from mmrope.encodings.spec import Spectra

PLAIN = {
    "1D": RotarySpec.rope(16, theta=1e4),
    "partial, adjacent": RotarySpec.rope(16, rotary_dim=8, pairing="adjacent"),
    "M-RoPE": RotarySpec.mrope(16, theta=1e6, sections=(2, 3, 3)),
    "interleaved": RotarySpec.mrope(16, theta=5e6, sections=(4, 2, 2), layout="interleaved"),
    "block_half": RotarySpec.axial(16, axes="hw", theta=100.0, pairing="block_half"),
    "block_half of three axes, with a rest": RotarySpec.axial(28, axes="thw", dims=(8, 8, 8), pairing="block_half"),
    "KV heads": RotarySpec.mrope(16, kv_heads=(1, 2, 1)),
    "by hand": RotarySpec(8, np.array([1.5, 1e-7, 0, 3], dtype=np.float32), "twht", "thw", "adjacent"),
    "NoPE": RotarySpec.nope(16),
    "HoPE's still pairs": RotarySpec.from_family("hope"),
    "a temperature": RotarySpec.nope(16, temperature=Temperature(0.1, 8192, offset=1)),
}
SCALINGS = [
    PI(4.0),
    NTK(8.0),
    DynamicNTK(100, 2.0),
    YaRN(4.0, 4096),
    YaRN(40.0, 4096, mscale=0.7, mscale_all_dim=1.0),
    ntk_by_parts(4.0, 4096),
]
SCALINGS += [Llama3(8.0, 8192), Llama3(16.0, 8192, 1.0, 1.0), LongRoPE([1.0] * 8, [2.0] * 8, 100, 4.0), Proportional(0.5)]
SPECS = {**PLAIN, **{f"scaled by {scaling}": PLAIN["M-RoPE"].scaled(scaling) for scaling in SCALINGS}}
SPECS |= {name: preset(name) for name in PRESETS}


@pytest.mark.parametrize("name", SPECS)
def test_what_is_written_comes_back(name):
    spec = SPECS[name]
    text = json.dumps(spec.to_dict(), allow_nan=False)
    again = RotarySpec.from_dict(json.loads(text))
    assert again == spec
    assert hash(again) == hash(spec)
    assert (again.scaling, again.temperature, again.score_factor) == (spec.scaling, spec.temperature, spec.score_factor)
    np.testing.assert_array_equal(again.inv_freq, spec.inv_freq)
    assert json.dumps(again.to_dict()) == text
    if spec.spectra is not None and spec.scaling is None:
        assert again.scaled(PI(2.0)) == spec.scaled(PI(2.0))


def test_the_form_is_that_of_the_docs():
    assert RotarySpec.axial(8, axes="hw", theta=100.0, pairing="block_half").scaled(PI(2.0)).to_dict() == {
        "head_dim": 8,
        "axes": "hw",
        "axis": ["hhww"],
        "inv_freq": [0.5, float(np.float32(0.05)), 0.5, float(np.float32(0.05))],
        "pairing": "block_half",
        "blocks": 2,
        "attention_factor": 1.0,
        "score_factor": 1.0,
        "temperature": None,
        "scaling": {"type": "PI", "factor": 2.0},
        "spectra": {
            "of": [{"theta": 100.0, "dim": 4}, {"theta": 100.0, "dim": 4}],
            "which": [0, 0, 1, 1],
            "index": [0, 1, 0, 1],
        },
    }


def by_the_docs(d, x, position_ids):
    """The pseudo-code of docs/encodings.md, with nothing but the JSON: one token of one head."""
    x, pairs = list(x), len(d["inv_freq"])
    half = pairs // d["blocks"] if pairs else 0
    for p in range(pairs):
        angle = position_ids[d["axes"].index(d["axis"][0][p])] * d["inv_freq"][p]
        i = p // half * 2 * half + p % half
        a, b = x[i], x[i + half]
        x[i] = (a * math.cos(angle) - b * math.sin(angle)) * d["attention_factor"]
        x[i + half] = (b * math.cos(angle) + a * math.sin(angle)) * d["attention_factor"]
    return x


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.axis.ndim == 1 and spec.head_dim < 200])
def test_another_language_can_rotate_by_it(name):
    spec = SPECS[name]
    x = torch.randn(spec.head_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ids = list(range(3, 3 + 4 * len(spec.axes), 4))
    wanted = by_the_docs(json.loads(json.dumps(spec.to_dict())), x.tolist(), ids)
    rope = RotaryEmbedding(spec if spec.temperature is None else dataclasses.replace(spec, temperature=None))
    length = {"length": 50} if spec.needs_length else {}
    made, _ = rope.rotate(x[None, None, None], x[None, None, None], torch.tensor(ids)[:, None, None], **length)
    np.testing.assert_allclose(made[0, 0, 0].numpy(), wanted, atol=3e-6)


class Halved(Scaling):
    """A scaling of the user's own."""

    def frequencies(self, dim, theta, *, length=None, powers=powers):
        return np.float32(0.5) / powers(dim, theta)


class Growing(Halved):
    @property
    def needs_length(self):
        return True


def test_a_scaling_of_ones_own_is_kept_by_its_numbers():
    spec = PLAIN["M-RoPE"].scaled(Halved())
    again = RotarySpec.from_dict(spec.to_dict())
    assert again == spec
    assert again.scaling is None
    with pytest.raises(ValueError, match="made of frequencies by hand"):
        again.scaled(PI(2.0))  # it is scaled already
    with pytest.raises(
        ValueError, match=r"Growing is not one of mmrope's scalings, PI, NTK, .*: JSON cannot say what it computes"
    ):
        PLAIN["M-RoPE"].scaled(Growing()).to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theta": 1.0}, r"missing \[\], unknown \['theta'\]"),
        ({"blocks": 3}, "pairing 'half' over the axes 'tttttttt' has 1 blocks, not 3"),
        ({"pairing": "thirds"}, "pairing must be one of"),
        ({"axis": ["tttx"]}, "letters that are not among the axes"),
        ({"scaling": {"type": "Magic"}}, "scaling has type 'Magic'; known are PI, NTK"),
        ({"scaling": {"type": "PI", "factr": 2.0}}, r"scaling PI has no \['factr'\]; its fields are \['factor'\]"),
        ({"scaling": {"type": "PI"}}, "scaling.factor is missing"),
        ({"scaling": {"type": "DynamicNTK", "original_max_position": 8}, "spectra": None}, "starts from spectra, and the JSON has none"),
        ({"attention_factor": 0}, "attention_factor must be a positive number, got 0"),
        ({"temperature": {"scale": 1.0}}, "temperature.floor is missing"),
        ({"spectra": {"of": [{"theta": 1e4}]}}, r"spectra.of\[0\].dim is missing"),
        ({"axis": None}, "axis must be a list, got None"),
        ({"inv_freq": [0.5] * 8}, "inv_freq is not what the spectra and None make"),
        ({"scaling": {"type": "YaRN", "factor": 4.0, "original_max_position": 64}}, "is not what the spectra and YaRN"),
        ({"score_factor": None}, "score_factor must be a positive number, got None"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        RotarySpec.from_dict({**PLAIN["1D"].to_dict(), **change})


def test_a_key_that_is_missing_is_named():
    stated = PLAIN["1D"].to_dict()
    del stated["pairing"]
    with pytest.raises(ValueError, match=r"missing \['pairing'\], unknown \[\]"):
        RotarySpec.from_dict(stated)


# --- what a spec says ----------------------------------------------------------------------------------------------------


def test_specs_are_equal_if_their_numbers_are():
    one, other = RotarySpec.rope(16), RotarySpec(16, RotarySpec.rope(16).inv_freq, "t" * 8, "t")
    assert one == other
    assert one != RotarySpec.rope(16, pairing="adjacent")
    assert one != dataclasses.replace(one, attention_factor=2.0)
    assert one.scaled(DynamicNTK(100, 2.0)) != one.scaled(DynamicNTK(100))
    assert one.scaled(DynamicNTK(100)) == one.scaled(DynamicNTK(100, 1.0))
    assert one.scaled(PI(1.0)) == one
    # of those that depend on the length, what they start from counts, too
    few = RotarySpec.rope(16, theta=100.0).scaled(DynamicNTK(100, 2.0))
    same = dataclasses.replace(few, spectra=Spectra(((100.0, 16),), np.zeros(8, dtype=np.int64), np.arange(8)))
    assert few == same
    assert few != dataclasses.replace(few, spectra=Spectra(((1e4, 32),), np.zeros(8, dtype=np.int64), np.arange(8)))
    # one KV head is all of them
    assert RotarySpec.mrope(16, kv_heads=(1, 0, 0)).axis.shape == (8,)


def test_deepseeks_factor_of_the_scores():
    """yarn_apply_mscale of transformers' DeepSeek-V3, whose released config has factor 40 and both scales 1."""
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import yarn_apply_mscale

    for mscale, both in ((1.0, 1.0), (0.707, 0.707)):
        spec = RotarySpec.rope(64).scaled(YaRN(40.0, 4096, mscale=mscale, mscale_all_dim=both))
        stated = {"rope_type": "yarn", "factor": 40.0, "mscale": mscale, "mscale_all_dim": both}
        assert 192**-0.5 * spec.score_factor == pytest.approx(yarn_apply_mscale(stated, 192**-0.5), rel=1e-12)
        assert spec.attention_factor == 1
    assert round(RotarySpec.rope(64).scaled(YaRN(40.0, 4096, mscale=1, mscale_all_dim=1)).score_factor, 3) == 1.874
    assert RotarySpec.rope(64).scaled(YaRN(40.0, 4096)).score_factor == 1


def test_models_that_do_not_read_it_have_none():
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "original_max_position_embeddings": 4096,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    config = {"model_type": "qwen3", "head_dim": 64, "rope_parameters": rope}
    spec = rotary_from_config(config)
    assert spec.scaling == YaRN(4.0, 4096, mscale=1.0, mscale_all_dim=1.0)
    assert spec.score_factor == 1


def test_llama_4s_equal_factors():
    """No frequency is between: transformers divides by their difference there, and finds none."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 16.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(head_dim=128, rope_parameters=rope)
    upstream, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    ours = RotarySpec.rope(128, theta=5e5).scaled(Llama3(16.0, 8192, low_freq_factor=1.0, high_freq_factor=1.0)).inv_freq
    np.testing.assert_allclose(ours, upstream.numpy(), rtol=2e-7)
    ratio = ours / RotarySpec.rope(128, theta=5e5).inv_freq
    assert set(np.round(ratio, 4).tolist()) == {1.0, 0.0625}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RotarySpec.axial(16, axes="hw", dims=(4, 12), pairing="block_half"), r"a block of pairs for each axis, all of one size, got blocks of \[2, 6\]"),
        (lambda: RotarySpec.mrope(16, sections=(4, 2, 2), layout="interleaved", pairing="block_half"), r"got blocks of \[1, 1"),
        (lambda: RotarySpec.mrope(16, kv_heads=(1, 1, 1), pairing="block_half"), "got axes by KV head"),
        (lambda: Temperature(0, 8192), "Temperature: scale must be a positive number, got 0"),
    ],
)  # fmt: skip
def test_blocks_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
