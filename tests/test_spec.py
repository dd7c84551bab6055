from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from mmrope import RotarySpec
from mmrope.encodings.spec import axis_of_pairs, frequencies

# --- frequencies ------------------------------------------------------------------------------------------------------


def test_published_frequencies():
    """METHODS.md 2.3: theta 1e4."""
    np.testing.assert_allclose(frequencies(8, 1e4), [1, 0.1, 0.01, 0.001], rtol=1e-6)
    np.testing.assert_allclose(frequencies(64, 1e4)[[1, 31]], [0.749894209, 1.33352143e-4], rtol=1e-6)
    np.testing.assert_allclose(frequencies(128, 1e4)[[1, 32, 63]], [0.865964323, 0.01, 1.15478198e-4], rtol=1e-6)
    np.testing.assert_allclose(frequencies(40, 1e4)[-1], 1.58489e-4, rtol=1e-5)  # an axis of Qwen2-VL's tower, head 80


@given(st.integers(1, 128).map(lambda n: 2 * n), st.sampled_from((1e2, 1e4, 5e5, 1e6, 5e6, 1e8)))
def test_frequencies_are_the_exact_powers_but_for_float32(dim, theta):
    exact = np.power(theta, -np.arange(0, dim, 2) / dim)
    np.testing.assert_allclose(frequencies(dim, theta), exact, rtol=1e-6)
    assert frequencies(dim, theta)[0] == 1


def test_frequencies_are_those_that_models_train_with():
    """Equal to transformers' float32 tensors, but for the few powers that torch itself rounds to the other side."""
    for dim in (16, 32, 64, 80, 128, 256):
        for theta in (1e4, 5e5, 1e6, 5e6):
            upstream = (1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))).numpy()
            ours = frequencies(dim, theta)
            assert (ours != upstream).mean() <= 0.02
            np.testing.assert_allclose(ours, upstream, rtol=1.2e-7)


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_published_layouts():
    """METHODS.md 2.5 and FAMILIES.md 3."""
    assert axis_of_pairs((16, 24, 24), "contiguous") == "t" * 16 + "h" * 24 + "w" * 24
    assert axis_of_pairs((24, 20, 20), "interleaved") == "thw" * 20 + "tttt"
    assert axis_of_pairs((11, 11, 10), "interleaved") == "thw" * 10 + "th"


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.sampled_from(("contiguous", "interleaved")))
def test_sections_are_counts_or_refused(t, h, w, layout):
    try:
        letters = axis_of_pairs((t, h, w), layout)
    except ValueError:
        # upstream takes the slices 1::3 and 2::3 up to 3 * section, which run out of pairs
        assert layout == "interleaved"
        upstream = ["t"] * (t + h + w)
        for axis, n in ((1, h), (2, w)):
            upstream[axis : 3 * n : 3] = ["thw"[axis]] * len(upstream[axis : 3 * n : 3])
        assert upstream.count("h") < h or upstream.count("w") < w
    else:
        assert [letters.count(letter) for letter in "thw"] == [t, h, w]


def test_axial_is_one_block_an_axis():
    spec = RotarySpec.axial(64, axes="hw")
    assert spec.axis_letters == "h" * 16 + "w" * 16
    np.testing.assert_array_equal(spec.inv_freq, np.tile(frequencies(32, 1e4), 2))
    wide = RotarySpec.axial(128, axes="thw", dims=(44, 42, 42))  # Wan: METHODS.md 2.4
    assert wide.axis_letters == "t" * 22 + "h" * 21 + "w" * 21
    np.testing.assert_allclose(wide.inv_freq[[21, 63]], [1.5199e-4, 1.5506e-4], rtol=1e-4)
    partial = RotarySpec.axial(80, axes="thw", dims=(26, 26, 26))  # the rest passes through
    assert partial.rotary_dim == 78


def test_a_shared_spectrum_is_dealt_to_the_axes_in_turn():
    """Pixtral: even frequencies to h, odd ones to w."""
    spec = RotarySpec.axial(64, axes="hw", spectrum="shared")
    np.testing.assert_array_equal(spec.inv_freq, np.concatenate([frequencies(64, 1e4)[0::2], frequencies(64, 1e4)[1::2]]))
    assert spec.axis_letters == "h" * 16 + "w" * 16


def test_any_axis_a_pair():
    letters = "hw" * 24 + "t" * 16  # VideoRoPE's allocation
    spec = RotarySpec.mrope(128, theta=1e6, axis=letters)
    assert spec.axis_letters == letters
    assert spec == RotarySpec(128, frequencies(128, 1e6), np.array(["thw".index(c) for c in letters]), "thw")
    assert spec != RotarySpec.mrope(128, theta=1e6, sections=(16, 24, 24))
    assert hash(spec) == hash(RotarySpec.mrope(128, theta=1e6, axis=letters))


def test_specs_are_values():
    spec = RotarySpec.mrope(16, sections=(2, 3, 3))
    with pytest.raises(ValueError, match="read-only"):
        spec.inv_freq[0] = 2
    assert repr(spec) == "RotarySpec(head_dim 16, 8 pairs: t 2, h 3, w 3; pairing half)"
    assert spec.__eq__(3) is NotImplemented


# --- configs ----------------------------------------------------------------------------------------------------------

TEXT = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 64,
    "vocab_size": 99,
}


def upstream_case(name):
    if name == "qwen3_vl":
        rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
        config = Qwen3VLConfig(text_config={**TEXT, "head_dim": 16, "rope_parameters": rope})
        return config, Qwen3VLTextRotaryEmbedding(config.text_config)
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    make, module = {
        "qwen2_vl": (Qwen2VLConfig, Qwen2VLRotaryEmbedding),
        "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLRotaryEmbedding),
    }[name]
    config = make(text_config={**TEXT, "rope_parameters": rope}, vision_config={"tokens_per_second": 2} if "5" in name else {})
    return config, module(config.text_config)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_config_gives_the_rotation_of_the_models_own_module(name):
    """Each pair's frequency and axis, read off transformers' module by moving one axis at a time."""
    config, module = upstream_case(name)
    spec = RotarySpec.from_config(config)
    assert spec == RotarySpec.from_config(config.to_dict())
    for a in range(3):
        ids = torch.zeros(3, 1, 1, dtype=torch.long)
        ids[a] = 3
        cos, sin = module(torch.zeros(1, dtype=torch.float32), ids)
        angle = torch.atan2(sin, cos)[0, 0, : len(spec.inv_freq)].numpy()
        np.testing.assert_allclose(angle, np.where(spec.axis == a, 3 * spec.inv_freq, 0), atol=1e-6)


def test_released_configs_of_both_forms():
    old = {
        "model_type": "qwen2_vl",
        "hidden_size": 1536,
        "num_attention_heads": 12,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {"spatial_merge_size": 2},
    }
    new = {
        "model_type": "qwen2_vl",
        "text_config": {
            "hidden_size": 1536,
            "num_attention_heads": 12,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "vision_config": {"spatial_merge_size": 2},
    }
    expected = RotarySpec.mrope(128, theta=1e6, sections=(16, 24, 24))
    assert RotarySpec.from_config(old) == RotarySpec.from_config(new) == expected


def config_with(**rope):
    rope = {"rope_theta": 1e4, "mrope_section": [4, 2, 2], **rope}
    text = {"head_dim": 16, "rope_parameters": {k: v for k, v in rope.items() if v is not None}}
    return {"model_type": "qwen3_vl", "text_config": text, "vision_config": {"spatial_merge_size": 2}}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RotarySpec.from_config(config_with(rope_type="yarn", factor=4.0)), r"rope parameters have type yarn .* Nothing was ignored"),
        (lambda: RotarySpec.from_config(config_with(rope_thta=1.0)), r"unknown keys \['rope_thta'\]"),
        (lambda: RotarySpec.from_config(config_with(rope_theta=None)), r"the config has no rope_theta"),
        (lambda: RotarySpec.from_config(config_with(mrope_section=None)), r"no mrope_section; released checkpoints have \[24, 20, 20\]"),
        (lambda: RotarySpec.from_config(config_with(mrope_section=[4, 2, 1])), r"sections \(4, 2, 1\) make 7 pairs, but 16 rotated channels are 8"),
        (lambda: RotarySpec.from_config(config_with(mrope_section=[2, 4, 2])), r"interleaved sections \[2, 4, 2\]: h has 4 pairs, but only 3 places"),
        (lambda: RotarySpec.from_config(config_with(mrope_interleaved=False)), r"says mrope_interleaved=False, but the model's code always rotates interleaved"),
        (lambda: RotarySpec.mrope(16), r"say either sections .* or axis"),
        (lambda: RotarySpec.mrope(16, sections=(2, 3, 3), axis="t" * 8), r"say either sections"),
        (lambda: RotarySpec.mrope(16, axis="txw"), r"letters that are not among the axes 'thw': \['x'\]|axis makes 3 pairs"),
        (lambda: RotarySpec.mrope(16, axis="xxxxxxxx"), r"letters that are not among the axes 'thw': \['x'\]"),
        (lambda: RotarySpec.mrope(16, sections=(4, 4)), r"sections must be a number of pairs for each of the axes 'thw', got \[4, 4\]"),
        (lambda: RotarySpec.mrope(16, sections=(2, 3, 3), layout="zigzag"), r"layout must be one of"),
        (lambda: RotarySpec.rope(15), r"rotary_dim must be even and at most head_dim \(15\), got 15"),
        (lambda: RotarySpec.rope(16, rotary_dim=18), r"at most head_dim \(16\), got 18"),
        (lambda: RotarySpec.rope(16, theta=0), r"theta must be a positive number, got 0"),
        (lambda: RotarySpec.axial(80, axes="thw"), r"does not give 3 axes \(thw\) equal numbers of pairs; say dims="),
        (lambda: RotarySpec.axial(80, axes="hw", dims=(40, 39)), r"dims must be an even number of channels for each"),
        (lambda: RotarySpec.axial(64, axes="hw", dims=(40, 24), spectrum="shared"), r"all dims must be equal"),
        (lambda: RotarySpec.axial(64, spectrum="odd"), r"spectrum must be 'per_axis' or 'shared'"),
        (lambda: RotarySpec(8, np.ones(4), np.zeros(3, int), "t"), r"axis has 3 entries for 4 pairs"),
        (lambda: RotarySpec(8, np.ones(8), np.zeros(8, int), "t"), r"8 pairs rotate 16 channels, but head_dim is 8; inv_freq has one entry per pair"),
        (lambda: RotarySpec(8, np.ones(4), np.ones(4, int), "t"), r"axis indices must be 0 .. 0 for the axes 't', got \[1\]"),
        (lambda: RotarySpec(8, np.full(4, np.nan), np.zeros(4, int), "t"), r"inv_freq must be one finite number per pair"),
        (lambda: RotarySpec(8, np.ones(4), np.zeros(4, int), "tt"), r"axes must be different letters"),
        (lambda: RotarySpec(8, np.ones(4), np.zeros(4, int), "t", "interleaved"), r"pairing must be one of \('half', 'adjacent'\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
