from __future__ import annotations

import copy
import dataclasses
import importlib
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING

from mmrope import FAMILIES, RotaryEmbedding, RotarySpec, YaRN
from mmrope.checkpoints import rotary_from_config
from mmrope.encodings.scaling import NTK, frequencies
from mmrope.encodings.spec import Spectra, axis_of_pairs
from tests.support.upstream_ids import IN_TRANSFORMERS

# --- frequencies ------------------------------------------------------------------------------------------------------


def test_published_frequencies():
    """RoFormer, theta 1e4."""
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
    """As the models allocate them."""
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
    wide = RotarySpec.axial(128, axes="thw", dims=(44, 42, 42))  # Wan
    assert wide.axis_letters == "t" * 22 + "h" * 21 + "w" * 21
    np.testing.assert_allclose(wide.inv_freq[[21, 63]], [1.5199e-4, 1.5506e-4], rtol=1e-4)
    partial = RotarySpec.axial(80, axes="thw", dims=(26, 26, 26))  # the rest passes through
    assert partial.rotary_dim == 78
    bare = RotarySpec.axial(8, axes="thw", dims=(0, 4, 4))  # an axis may have no channels
    assert bare.axis_letters == "hhww"


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


BORROWED = {"glm46v": "glm4v", "cosmos3_omni": "qwen3_vl", "minicpmv4_7": "qwen3_5"}  # whose text model they run
PER_LAYER = ("cohere_compass", "neomme")  # their configs state rope parameters for each type of layer
APART = "hy_v4_vl"  # whose config wants sections of a part of a head; test_proof has its own module
SECTIONS = {
    "contiguous": {"t": 2, "h": 3, "w": 3},
    "interleaved": {"t": 3, "h": 3, "w": 2},
    "alternating": {"t": 2, "h": 3, "w": 3},
}


def upstream_case(name, **scaling):
    """A small config of a family, and transformers' own rotary module for it; 8 pairs."""
    row = FAMILIES[name]
    head_dim = int(16 / row.rotary.rotary_fraction)
    sections = [SECTIONS[row.rotary.layout][axis] for axis in row.rotary.section_order or row.axes]
    rope = {"rope_type": "default", "rope_theta": row.rotary.theta, "mrope_section": sections}
    rope |= scaling
    if row.rotary.rotary_fraction != 1:
        rope["partial_rotary_factor"] = row.rotary.rotary_fraction
    text = {**TEXT, "head_dim": head_dim, "hidden_size": 4 * head_dim, "rope_parameters": rope}
    config = CONFIG_MAPPING[name](
        **({"thinker_config": {"text_config": text}} if row.reading.states_audio else {"text_config": text})
    )
    module = importlib.import_module("transformers.models.{0}.modeling_{0}".format(BORROWED.get(name, name)))
    names = [key for key in vars(module) if key.endswith("RotaryEmbedding") and not re.search("Vision|Talker|DiT", key)]
    [cls] = [key for key in names if "Thinker" in key] or names
    return config, getattr(module, cls)(getattr(config, "thinker_config", config).text_config)


@pytest.mark.parametrize("name", sorted(set(IN_TRANSFORMERS) - {"hunyuan_vl", APART, *PER_LAYER}))
def test_a_config_gives_the_rotation_of_the_models_own_module(name):
    """Each pair's frequency and axis, read off transformers' module by moving one axis at a time."""
    config, module = upstream_case(name)
    spec = rotary_from_config(config)
    assert spec == rotary_from_config(config.to_dict())
    for a in range(3):
        ids = torch.zeros(3, 1, 1, dtype=torch.long)
        ids[a] = 3
        cos, sin = module(torch.zeros(1, dtype=torch.float32), ids)
        angle = torch.atan2(sin, cos)[0, 0].numpy()
        if spec.pairing == "adjacent":
            np.testing.assert_array_equal(angle[::2], angle[1::2])
            angle = angle[::2]
        np.testing.assert_allclose(angle[: len(spec.inv_freq)], np.where(spec.axis == a, 3 * spec.inv_freq, 0), atol=1e-6)


@pytest.mark.parametrize("name", PER_LAYER)
def test_parameters_for_each_type_of_layer_need_the_type(name):
    with pytest.raises(ValueError, match=r"the config has no rope_theta|its layers differ, .*: say which by layer_type"):
        rotary_from_config(CONFIG_MAPPING[name]())


def test_hunyuan_turns_by_pairs_and_what_transformers_does_is_refused():
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2, 2]}
    config = CONFIG_MAPPING["hunyuan_vl"](text_config={**TEXT, "head_dim": 16, "rope_parameters": rope})
    assert rotary_from_config(config).axis_letters == "ppwwhhii"
    with pytest.raises(ValueError, match=r"'by_channel' gives the two channels of a pair to different axes"):
        rotary_from_config(config, revision="transformers-5.23")
    released = {**config.to_dict()}
    scaled = {"type": "xdrope", "alpha": 1000.0, "factor": 1.0, "xdrope_section": [16] * 4}
    released["text_config"] = {**TEXT, "head_dim": 128, "rope_theta": 1e4, "rope_scaling": scaled}
    spec = rotary_from_config(released)
    assert spec.axis_letters == "p" * 16 + "w" * 16 + "h" * 16 + "i" * 16
    assert spec.scaling == NTK(1000.0)
    np.testing.assert_array_equal(spec.inv_freq, frequencies(128, 1e4 * 1000 ** (128 / 126)))


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
    assert rotary_from_config(old) == rotary_from_config(new) == expected


def config_with(**rope):
    rope = {"rope_theta": 1e4, "mrope_section": [4, 2, 2], **rope}
    text = {"head_dim": 16, "rope_parameters": {k: v for k, v in rope.items() if v is not None}}
    return {"model_type": "qwen3_vl", "text_config": text, "vision_config": {"spatial_merge_size": 2}}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rotary_from_config(config_with(rope_type="yarn", factor=4.0)), r"rope type 'yarn' needs original_max_position_embeddings, which the config does not state"),
        (lambda: rotary_from_config(config_with(rope_thta=1.0)), r"rope parameters have keys \['rope_thta'\] that type 'default' does not read, .* Nothing was ignored"),
        (lambda: rotary_from_config(config_with(rope_theta=None)), r"the config has no rope_theta"),
        (lambda: rotary_from_config(config_with(mrope_section=None)), r"no mrope_section; released checkpoints have \[24, 20, 20\]"),
        (lambda: rotary_from_config(config_with(mrope_section=[4, 2, 1])), r"sections \(4, 2, 1\) make 7 pairs, but 16 rotated channels are 8"),
        (lambda: rotary_from_config(config_with(mrope_section=[2, 4, 2])), r"interleaved sections \[2, 4, 2\]: h has 4 pairs, but only 3 places"),
        (lambda: rotary_from_config(config_with(mrope_interleaved=False)), r"says mrope_interleaved=False, but the model's code always rotates interleaved"),
        (lambda: rotary_from_config({**config_with(), "model_type": "glm4v"}), r"no partial_rotary_factor, and class defaults differ between models; released checkpoints have 0.5"),
        (lambda: rotary_from_config({**config_with(mrope_section=[4, 4]), "model_type": "ernie4_5_vl_moe", "spatial_conv_size": 2, "temporal_conv_size": 2}), r"mrope_section \[4, 4\], not one number each for hwt; released checkpoints have \[22, 22, 20\]"),
        (lambda: RotarySpec.mrope(16, sections=(2, 4, 2), layout="alternating"), r"alternating sections \[2, 4, 2\]: hw take turns, so each must have as many pairs"),
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
        (lambda: RotarySpec.axial(64, spectrum="odd"), r"spectrum must be one of"),
        (lambda: RotarySpec(8, np.ones(4), np.zeros(3, int), "t"), r"axis has 3 entries for 4 pairs"),
        (lambda: RotarySpec(8, np.ones(8), np.zeros(8, int), "t"), r"8 pairs rotate 16 channels, but head_dim is 8; inv_freq has one entry per pair"),
        (lambda: RotarySpec(8, np.ones(4), np.ones(4, int), "t"), r"axis indices must be 0 .. 0 for the axes 't', got \[1\]"),
        (lambda: RotarySpec(8, np.full(4, np.nan), np.zeros(4, int), "t"), r"inv_freq must be one finite number per pair"),
        (lambda: RotarySpec(8, np.ones(4), np.zeros(4, int), "tt"), r"axes must be different letters"),
        (lambda: RotarySpec(8, np.ones(4), np.zeros(4, int), "t", "interleaved"), r"pairing must be one of \('half', 'adjacent', 'block_half'\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_published_bound_of_rotary_scores():
    """The mean over i of |sum of e^(i r theta_l), l < i| (RoFormer, arXiv 2104.09864, section 3.4.3): it falls on average only."""
    inv_freq = RotarySpec.rope(128).inv_freq.astype(np.float64)

    def bound(r):
        return np.abs(np.cumsum(np.exp(1j * r * inv_freq))).mean()

    wanted = {
        0: 32.5,
        1: 31.538,
        2: 28.956,
        5: 20.845,
        10: 17.954,
        20: 15.242,
        50: 12.629,
        100: 10.227,
        200: 7.245,
        500: 6.190,
        1000: 4.471,
    }
    np.testing.assert_allclose([bound(r) for r in wanted], list(wanted.values()), atol=2e-3)
    rises = (np.diff([bound(r) for r in range(1001)]) > 0).sum()
    assert rises == 483


COPIES = {
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "replace": lambda x: dataclasses.replace(x),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_spec_stays_frozen_through_copies(name):
    spec = RotarySpec.mrope(32, sections=(6, 5, 5), layout="interleaved").scaled(YaRN(4.0, 4096))
    for made in (
        COPIES[name](spec),
        copy.deepcopy(RotaryEmbedding(spec)).spec,
        pickle.loads(pickle.dumps(RotaryEmbedding(spec))).spec,
    ):
        assert made == spec
        assert made.spectra.to_dict() == spec.spectra.to_dict()
        for array in (made.inv_freq, made.axis, made.spectra.which, made.spectra.index):
            with pytest.raises(ValueError, match="read-only"):
                array[:] = 0


def test_a_spec_does_not_change_with_the_arrays_that_it_was_made_of():
    which, index = np.zeros(4, int), np.arange(4)
    spectra = Spectra(((1e4, 8),), which, index)
    which[:], index[:] = -1, 0
    assert spectra.to_dict() == Spectra.one(8, 1e4).to_dict()
