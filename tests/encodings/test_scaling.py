"""Context extension: laws of every scaling, published values, and transformers' own modules."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mmrope import RotaryEmbedding, RotarySpec, YaRN
from mmrope.checkpoints import rotary_from_config
from mmrope.encodings import NTK, PI, DynamicNTK, Llama3, LongRoPE, Proportional, ntk_by_parts
from mmrope.encodings.scaling import frequencies

ROPE = RotarySpec.rope(128)


def ratio(scaling, spec=ROPE):
    return spec.scaled(scaling).inv_freq / spec.inv_freq


# --- laws -------------------------------------------------------------------------------------------------------------


STATIC = {
    "PI": lambda s: PI(s),
    "NTK": lambda s: NTK(s),
    "YaRN": lambda s: YaRN(s, 4096),
    "YaRN, rotations": lambda s: YaRN(s, 4096, ramp="rotations"),
    "NTK-by-parts": lambda s: ntk_by_parts(s, 4096),
    "Llama 3": lambda s: Llama3(s, 8192),
}
dims = st.sampled_from((16, 32, 64, 80, 96, 128, 256))
thetas = st.sampled_from((500.0, 1e4, 5e5, 1e6, 5e6))
factors = st.floats(1, 64)


@pytest.mark.parametrize("name", STATIC)
@given(dim=dims, theta=thetas, factor=factors)
def test_frequencies_fall_and_stay_between_the_plain_and_the_divided(name, dim, theta, factor):
    spec = RotarySpec.rope(dim, theta=theta)
    scaled = spec.scaled(STATIC[name](factor)).inv_freq.astype(np.float64)
    assert (np.diff(scaled) < 0).all()
    assert (scaled <= spec.inv_freq * (1 + 1e-6)).all()
    assert (scaled >= spec.inv_freq / factor * (1 - 1e-5)).all()


@pytest.mark.parametrize("name", STATIC)
@given(dim=dims, theta=thetas)
def test_a_factor_of_one_changes_nothing(name, dim, theta):
    spec, scaling = RotarySpec.rope(dim, theta=theta), STATIC[name](1.0)
    np.testing.assert_allclose(spec.scaled(scaling).inv_freq, spec.inv_freq, rtol=3e-7)
    assert scaling.attention_factor == 1


@given(dim=dims, theta=thetas, factor=factors)
def test_ntk_keeps_the_highest_and_divides_the_lowest(dim, theta, factor):
    changed = ratio(NTK(factor), RotarySpec.rope(dim, theta=theta))
    assert changed[0] == 1
    np.testing.assert_allclose(changed[-1], 1 / factor, rtol=1e-5)


@pytest.mark.parametrize("name", STATIC)
def test_distances_alone_count_by_every_static_scaling(name):
    torch.manual_seed(0)
    rope = RotaryEmbedding(ROPE.scaled(STATIC[name](8.0)))
    q, k = torch.randn(2, 1, 1, 1, 128, dtype=torch.float64)
    scores = []
    for shift in (0, 1, 1000, 100_000):
        ids = torch.tensor([[[3 + shift]]]), torch.tensor([[[40 + shift]]])
        scores.append((rope.rotate(q, q, ids[0])[0] * rope.rotate(k, k, ids[1])[1]).sum())
    torch.testing.assert_close(torch.stack(scores), torch.stack(scores[:1] * 4), atol=1e-5, rtol=0)


@given(st.sampled_from((2048, 4096, 100)), st.integers(1, 100_000), st.floats(1, 8))
def test_dynamic_scalings_change_nothing_up_to_the_original_length(original, length, factor):
    spec = RotarySpec.rope(64)
    for scaling in (DynamicNTK(original, factor), DynamicNTK(original)):
        scaled = spec.scaled(scaling)
        assert scaled.needs_length
        if length <= original:
            np.testing.assert_array_equal(scaled.at_length(length), spec.inv_freq)
        else:
            assert (scaled.at_length(length)[1:] < spec.inv_freq[1:]).all()
            np.testing.assert_array_equal(scaled.at_length(original), spec.inv_freq)


@given(st.integers(1, 50_000))
def test_the_module_and_the_spec_agree_at_every_length(length):
    factors = np.linspace(1, 3, 32), np.linspace(2, 9, 32)
    for scaling in (DynamicNTK(2048, 2.0), DynamicNTK(2048), LongRoPE(*factors, 2048, 8.0)):
        spec = RotarySpec.rope(64).scaled(scaling)
        rope = RotaryEmbedding(spec)
        for stated in (length, torch.tensor(length)):
            cos, sin = rope(torch.ones(1, 1, 1, dtype=torch.long), length=stated, fold=False)
            np.testing.assert_allclose(torch.atan2(sin, cos)[0, 0].numpy(), spec.at_length(length), rtol=1e-5, atol=1e-8)


def test_every_spectrum_of_a_spec_is_scaled():
    """Multimodal, partial and axial ones alike; pairs that stand still do."""
    for spec in (
        RotarySpec.mrope(128, sections=(16, 24, 24)),
        RotarySpec.mrope(128, theta=5e6, sections=(24, 20, 20), layout="interleaved"),
        RotarySpec.rope(128, rotary_dim=64),
        RotarySpec.mrope(64, kv_heads=(2, 3, 3)),
    ):
        scaled = spec.scaled(YaRN(4.0, 4096))
        np.testing.assert_array_equal(scaled.axis, spec.axis)
        plain = RotarySpec.rope(spec.rotary_dim, theta=spec.spectra.of[0][0]).scaled(YaRN(4.0, 4096))
        np.testing.assert_array_equal(scaled.inv_freq, plain.inv_freq)
    axial = RotarySpec.axial(96, axes="thw", theta=(1e4, 1e2, 1e2), dims=(32, 32, 32)).scaled(NTK(4.0))
    each = [RotarySpec.rope(32, theta=theta).scaled(NTK(4.0)).inv_freq for theta in (1e4, 1e2, 1e2)]
    np.testing.assert_array_equal(axial.inv_freq, np.concatenate(each))
    hope = RotarySpec.from_family("hope")
    assert (hope.scaled(PI(4.0)).inv_freq[hope.inv_freq == 0] == 0).all()


# --- published values -------------------------------------------------------------------------------------------------


def test_position_interpolation_divides():
    np.testing.assert_allclose(RotarySpec.rope(8).scaled(PI(4.0)).inv_freq, [0.25, 0.025, 0.0025, 0.00025], rtol=1e-6)


@pytest.mark.parametrize(("factor", "theta"), [(2, 20221.2617), (4, 40889.9424), (8, 82684.6226)])
def test_ntk_bases(factor, theta):
    assert NTK(factor).theta(128, 1e4) == pytest.approx(theta, rel=1e-8)
    if factor == 4:
        assert ratio(NTK(4))[32] == pytest.approx(0.494529, rel=1e-5)


@pytest.mark.parametrize(("length", "theta"), [(2048, 1e4), (4096, 31082.2367), (8192, 74534.8303), (16384, 163692.8412)])
def test_dynamic_ntk_bases(length, theta):
    spec = RotarySpec.rope(64).scaled(DynamicNTK(2048, 2.0))
    np.testing.assert_allclose(spec.at_length(length), frequencies(64, theta), rtol=1e-6)


@pytest.mark.parametrize(
    ("dim", "theta", "original", "low", "high"),
    [(128, 1e4, 4096, 20, 46), (128, 1e4, 2048, 16, 41), (64, 1e4, 4096, 10, 23), (64, 1e4, 2048, 8, 21), (128, 1e6, 32768, 23, 40), (128, 5e6, 262144, 29, 45)],
)  # fmt: skip
def test_yarn_ramps(dim, theta, original, low, high):
    changed = ratio(YaRN(16.0, original), RotarySpec.rope(dim, theta=theta))
    np.testing.assert_allclose(changed[: low + 1], 1, rtol=1e-6)
    np.testing.assert_allclose(changed[high:], 1 / 16, rtol=1e-6)
    assert changed[low + 1] < 1 - 1e-3
    if high < len(changed):
        assert changed[high - 1] > 1 / 16 + 1e-3


def test_yarn_values():
    scaling = YaRN(16.0, 4096)
    wanted = {21: 0.963942, 25: 0.819712, 30: 0.639423, 40: 0.278846, 45: 0.098558, 46: 0.0625}
    np.testing.assert_allclose(ratio(scaling)[list(wanted)], list(wanted.values()), rtol=2e-5)
    assert ROPE.scaled(scaling).inv_freq[63] == pytest.approx(7.217387e-6, rel=1e-5)
    short = ratio(
        YaRN(16.0, 1000), RotarySpec.rope(8, theta=10.0)
    )  # the ramp would end at pair 9: it ends at dim - 1, as in HF
    np.testing.assert_allclose(short, [1, 1, 1, 0.8125], rtol=1e-6)
    paper = ratio(YaRN(16.0, 4096, ramp="rotations"))
    np.testing.assert_allclose(paper[[21, 25, 30, 40]], [0.9923, 0.5721, 0.2952, 0.0946], atol=1e-4)
    apart = np.abs(paper / ratio(scaling) - 1)
    assert (np.argmax(apart), round(float(apart.max()), 2)) == (38, 0.67)


@pytest.mark.parametrize(
    ("factor", "magnitude"), [(2, 1.0693147), (4, 1.1386294), (8, 1.2079442), (16, 1.2772589), (32, 1.3465736)]
)
def test_yarn_attention_factors(factor, magnitude):
    assert YaRN(factor, 4096).attention_factor == pytest.approx(magnitude, rel=1e-7)
    assert YaRN(factor, 4096, mscale=0.7, mscale_all_dim=0.7).attention_factor == 1
    assert ntk_by_parts(factor, 4096).attention_factor == 1
    cos, _ = RotaryEmbedding(ROPE.scaled(YaRN(factor, 4096)))(torch.zeros(1, 1, 1))
    torch.testing.assert_close(cos, torch.full_like(cos, magnitude))
    assert (RotaryEmbedding(ROPE.scaled(YaRN(factor, 4096)))(torch.zeros(1, 1, 1), fold=False)[0] == 1).all()


def test_yarn_edges():
    low = ratio(YaRN(16.0, 64), RotarySpec.rope(32))  # 32 turns within 64 tokens: none do
    assert low[0] == 1
    np.testing.assert_allclose(low[5:], 1 / 16, rtol=1e-6)
    assert ratio(YaRN(16.0, 4096), RotarySpec.rope(128, theta=500.0))[-1] > 1 / 16  # the ramp reaches past the last pair


def test_llama_3_values():
    spec = RotarySpec.rope(128, theta=5e5)
    changed = ratio(Llama3(8.0, 8192), spec)
    np.testing.assert_allclose(changed[:29], 1, rtol=1e-6)
    between = [0.828168, 0.643743, 0.493507, 0.371122, 0.271425, 0.190211]
    np.testing.assert_allclose(changed[29:35], between, rtol=2e-5)
    np.testing.assert_allclose(changed[35:], 0.125, rtol=1e-6)
    assert spec.scaled(Llama3(8.0, 8192)).inv_freq[63] == pytest.approx(3.068926e-7, rel=1e-5)


@pytest.mark.parametrize(("factor", "magnitude"), [(8, 1.1180340), (32, 1.1902381)])
def test_longrope_attention_factors(factor, magnitude):
    scaling = LongRoPE([1.0] * 64, [2.0] * 64, 4096, factor)
    assert scaling.attention_factor == pytest.approx(magnitude, rel=1e-7)
    spec = ROPE.scaled(scaling)
    np.testing.assert_array_equal(spec.at_length(4096), ROPE.inv_freq)
    np.testing.assert_array_equal(spec.at_length(4097), ROPE.inv_freq / 2)


def test_proportional_differs_from_partial_rotary_by_the_denominator():
    half = ROPE.scaled(Proportional(0.25))
    np.testing.assert_array_equal(half.inv_freq[:16], ROPE.inv_freq[:16])
    assert (half.inv_freq[16:] == 0).all()
    assert (RotarySpec.rope(128, rotary_dim=32).inv_freq[1:] < half.inv_freq[1:16]).all()


# --- transformers -----------------------------------------------------------------------------------------------------


LISTS = {"short_factor": [1 + 0.01 * i for i in range(32)], "long_factor": [1.5 + 0.1 * i for i in range(32)]}
ORIGINAL = {"original_max_position_embeddings": 2048}
TYPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 8.0, **ORIGINAL},
    "yarn, with all options": {"factor": 8.0, "beta_fast": 24.0, "beta_slow": 2.0, "truncate": False, "mscale": 0.7, "mscale_all_dim": 1.0, **ORIGINAL},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
    "longrope": {"factor": 8.0, **LISTS, **ORIGINAL},
}  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_angles_hf_are_those_of_transformers_to_the_last_bit(kind, theta):
    rope = {"rope_type": kind.partition(",")[0], "rope_theta": theta, **TYPES[kind]}
    longest = 2048 if kind == "dynamic" else 16384
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, max_position_embeddings=longest, rope_parameters=rope)
    module = importlib.import_module("transformers.models.llama.modeling_llama").LlamaRotaryEmbedding(config)
    spec = rotary_from_config(config)
    assert spec == rotary_from_config(config.to_dict())
    ours = RotaryEmbedding(spec, angles="hf")
    for tokens in (100, 2048, 5000):
        ids = torch.arange(tokens)[None]
        cos, sin = module(torch.zeros(1), ids)
        length = {"length": tokens} if spec.needs_length else {}
        mine = ours(ids[None], **length)
        for one, other in zip((cos, sin), mine, strict=True):
            if kind == "dynamic" and tokens > 2048:  # transformers computes the base in float32
                torch.testing.assert_close(one[..., :32], other, atol=2e-3, rtol=0)
            else:
                assert torch.equal(one[..., :32], other)


def test_layers_that_differ_are_asked_for():
    config = CONFIG_MAPPING["gemma3_text"](head_dim=64)
    assert rotary_from_config(config, layer_type="sliding_attention").spectra.of == ((1e4, 64),)
    assert rotary_from_config(config, layer_type="full_attention").spectra.of == ((1e6, 64),)
    with pytest.raises(ValueError, match=r"gemma3_text: its layers differ, .*: say which by layer_type"):
        rotary_from_config(config)
    with pytest.raises(ValueError, match="say which by layer_type, not 'other'"):
        rotary_from_config(config, layer_type="other")
    with pytest.raises(ValueError, match="says nothing by type of layer; leave layer_type='full_attention' out"):
        rotary_from_config(LlamaConfig(), layer_type="full_attention")
    nope = {
        "model_type": "llama",
        "head_dim": 64,
        "rope_parameters": {"full_attention": None, "sliding_attention": {"rope_theta": 1e4}},
    }
    assert rotary_from_config(nope, layer_type="full_attention") is None


def test_gemma_3_of_transformers_4_says_it_otherwise():
    old = {
        "model_type": "gemma3_text",
        "head_dim": 64,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    assert rotary_from_config(old, layer_type="full_attention") == RotarySpec.rope(64, theta=1e6).scaled(PI(8.0))
    assert rotary_from_config(old, layer_type="sliding_attention") == RotarySpec.rope(64, theta=1e4)


def test_text_configs_of_families_are_read():
    text = {
        "model_type": "qwen2_5_vl_text",
        "head_dim": 128,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    }
    assert rotary_from_config(text) == RotarySpec.mrope(128, theta=1e6, sections=(16, 24, 24))


# --- refusals ---------------------------------------------------------------------------------------------------------


def llama(**rope):
    return {
        "model_type": "llama",
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_theta": 1e4, **rope},
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PI(0), "PI: factor must be a positive number, got 0"),
        (lambda: PI("4"), "PI: factor must be a positive number, got '4'"),
        (lambda: YaRN(4.0, 4096, beta_fast=1, beta_slow=32), "beta_fast 1 must not be below beta_slow 32"),
        (lambda: YaRN(4.0, 4096, ramp="x"), r"ramp must be 'index' \(released checkpoints\) or 'rotations' \(the paper\), got 'x'"),
        (lambda: YaRN(4.0, 4096, mscale=0.7), "mscale 0.7 and mscale_all_dim None work together; of one alone upstreams take no notice"),
        (lambda: Llama3(4.0, 4096, low_freq_factor=4.5), "high_freq_factor 4.0 must not be below low_freq_factor 4.5"),
        (lambda: LongRoPE([1.0], [0.0], 4096, 4.0), "long_factor must hold positive numbers, one for each pair"),
        (lambda: ROPE.scaled(LongRoPE([1.0], [1.0], 4096, 4.0)), "LongRoPE: short_factor has 1 factors, but 128 rotated channels are 64 pairs"),
        (lambda: Proportional(1.5), "fraction must be from 0 to 1, got 1.5"),
        (lambda: RotarySpec.rope(2).scaled(NTK(2.0)), "NTK scaling needs at least two pairs, but a spectrum of 2 channels has 1"),
        (lambda: ROPE.scaled(PI(2.0)).scaled(PI(2.0)), r"the spec is scaled already, by PI\(factor=2.0\)"),
        (lambda: RotarySpec(8, np.ones(4), "tttt", "t").scaled(PI(2.0)), "made of frequencies by hand"),
        (lambda: RotaryEmbedding(ROPE)(torch.zeros(1, 1, 1), length=5), "does not depend on the length: leave length=5 out"),
        (lambda: RotaryEmbedding(ROPE.scaled(DynamicNTK(8)))(torch.zeros(1, 1, 1)), "depends on the length of the sequence: pass length="),
        (lambda: ROPE.scaled(DynamicNTK(8)).at_length(None), "depends on the length of the sequence"),
        (lambda: rotary_from_config(llama(rope_type="ntk", factor=2.0)), "rope parameters have type ntk in .*; known are default, linear"),
        (lambda: rotary_from_config(llama(rope_type="yarn", type="linear", factor=2.0)), "have type linear, yarn in"),
        (lambda: rotary_from_config(llama(factor=2.0)), r"have keys \['factor'\] that type 'default' does not read"),
        (lambda: rotary_from_config(llama(rope_type="linear")), "rope type 'linear' needs factor, which the config does not state"),
        (lambda: rotary_from_config(llama(rope_type="llama3", factor=8.0, original_max_position_embeddings=2048)), "needs low_freq_factor"),
        (lambda: rotary_from_config(llama(rope_type="dynamic", factor=2.0, original_max_position_embeddings=2048)), "states original_max_position_embeddings 2048, but upstreams scale from max_position_embeddings 4096"),
        (lambda: rotary_from_config({**llama(rope_type="dynamic", factor=2.0, alpha=3.0), "model_type": "hunyuan_v1_dense"}), "alpha 3.0 and factor 2.0 exclude each other"),
        (lambda: rotary_from_config(llama(rope_type="dynamic", factor=1.0, alpha=3.0)), "alpha 3.0, which HunYuan's code reads, and vLLM for every model, .* delete it"),
        (lambda: rotary_from_config({**llama(), "rope_scaling": {"rope_type": "linear", "factor": 4.0}}), "has rope_parameters .* and rope_scaling .*, which differ: leave one out"),
        (lambda: rotary_from_config({**llama(), "rope_theta": 5e5}), "the config has rope_theta 500000.0, and 10000.0 in"),
        (lambda: rotary_from_config(llama(mrope_section=[16, 8, 8])), "llama: a model of text alone, whose code does not read mrope_section"),
        (lambda: rotary_from_config(llama(rope_type="linear", factor=True)), "rope parameters have factor True, which is no number"),
        (lambda: rotary_from_config(llama(rope_theta="1e4")), "rope parameters have rope_theta '1e4', which is no number"),
        (lambda: rotary_from_config(llama(rope_type="yarn", factor=2.0, original_max_position_embeddings=2048, truncate="false")), "truncate 'false', which is neither true nor false"),
        (lambda: rotary_from_config(llama(rope_type="yarn", factor=2.0, original_max_position_embeddings=2048, attention_factor=-1)), "stated_attention_factor must be a positive number, got -1"),
        (lambda: LongRoPE([1.0], [1.0], 1, 4.0), "original_max_position must be at least 2, got 1"),
        (lambda: RotarySpec.rope(8, theta=1.0).scaled(YaRN(4.0, 64)), "YaRN needs frequencies that fall, theta above 1, got 1.0"),
        (lambda: rotary_from_config({**llama(), "model_type": "nobody"}), "config has model_type 'nobody'"),
        (lambda: RotarySpec.mrope(64, kv_heads=(1, 2)), r"kv_heads must be a number of KV heads for each of the axes 'thw', got \[1, 2\]"),
        (lambda: RotarySpec.axial(64, axes="hw", theta=(1.0, 2.0), spectrum="shared"), "theta must be one number, or with spectrum='per_axis' one for each"),
    ],
)  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- heads of their own ------------------------------------------------------------------------------------------------


def test_kv_heads_turn_by_their_own_axes():
    """MHRoPE: whole heads for time, height and width, and the queries that share them."""
    spec = RotarySpec.mrope(16, kv_heads=(1, 2, 1))
    assert spec.axis_letters == "tttttttt hhhhhhhh hhhhhhhh wwwwwwww"
    rope = RotaryEmbedding(spec)
    torch.manual_seed(0)
    ids = torch.randint(0, 50, (3, 2, 5))
    q, k = torch.randn(2, 8, 5, 16), torch.randn(2, 4, 5, 16)
    cos, _ = rope(ids)
    assert cos.shape == (2, 5, 4, 8)
    turned_q, turned_k = rope.rotate(q, k, ids)
    for head, axis in enumerate((0, 1, 1, 2)):
        one = RotaryEmbedding(RotarySpec.rope(16))
        wanted_q, wanted_k = one.rotate(q[:, 2 * head : 2 * head + 2], k[:, head : head + 1], ids[axis : axis + 1])
        torch.testing.assert_close(turned_q[:, 2 * head : 2 * head + 2], wanted_q)
        torch.testing.assert_close(turned_k[:, head : head + 1], wanted_k)
    other = rope.rotate(q.transpose(1, 2), k.transpose(1, 2), ids, heads=-2)
    torch.testing.assert_close(other[0].transpose(1, 2), turned_q)
    with pytest.raises(ValueError, match=r"cos and sin are for 4 KV heads, but x \[2, 6, 5, 16\] has 6 heads"):
        rope.rotate(q[:, :6], k, ids)


def test_no_position_encoding_is_a_value():
    q = torch.randn(1, 2, 5, 16)
    turned, _ = RotaryEmbedding(RotarySpec.nope(16)).rotate(q, q, torch.arange(5)[None, None])
    assert torch.equal(turned, q)
    assert math.isclose(RotarySpec.nope(16).attention_factor, 1)
