"""What checkpoints' configs say of their rotary embeddings, against the modules that transformers builds from them."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING

from mmrope import (
    FAMILIES,
    RotaryEmbedding,
    RotarySpec,
    Segment,
    explain,
    family,
    family_from_config,
    position_ids,
    rotary_from_config,
)
from mmrope.adapters.rotary import RotaryInPlace
from mmrope.checkpoints import MODELS
from mmrope.checkpoints.configs import name_of
from mmrope.checkpoints.layers import laid_out
from mmrope.encodings import Llama3, YaRN
from scripts import read_transformers
from tests.support import ROOT

RELEASED = json.loads((ROOT / "tests" / "references" / "configs" / "released.json").read_text())
MODELS_OF_UPSTREAM = Path(transformers.__file__).parent / "models"
THERE = {f"{folder}.{cls}" for folder, _, cls, _ in read_transformers.classes(MODELS_OF_UPSTREAM)}
NEWER = {name for name, model in MODELS.items() if model.source not in THERE}
"""Of the transformers that the table is made from, and not of the installed one."""
TEXT = sorted(name for name, model in MODELS.items() if not model.axes and name not in NEWER)


def test_few_models_are_newer_than_the_installed_transformers():
    assert len(NEWER) <= 20, sorted(NEWER)


def module_and_config(name: str) -> tuple[type, type]:
    """The rotary class of the installed transformers and the class of its config."""
    folder, cls = MODELS[name].source.split(".")
    module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    configs = read_transformers.config_classes(module, folder, None)
    return getattr(module, cls), next(c for c in configs if getattr(c, "model_type", None) == name)


ROTATES = {
    "zamba2": {"use_mem_rope": True},
    "granitemoehybrid": {"position_embedding_type": "rope"},
    "esm": {"position_embedding_type": "rotary"},
}


def rotating(config: type) -> Any:
    """Its class defaults, but that it rotates (Zamba2's and others' do not), all layers alike."""
    made = config()
    for key, value in ROTATES.get(made.model_type, {}).items():
        setattr(made, key, value)
    if hasattr(made, "layer_rope_theta"):
        made.layer_rope_theta = None
    return made


def frequencies(module: Any) -> dict[str, tuple[np.ndarray, float]]:
    """The frequencies and the attention factor of each type of layer, "" where all are alike."""
    found = {}
    for name, buffer in module.named_buffers():
        if name.endswith("inv_freq") and not name.endswith("original_inv_freq"):
            layer = name.removesuffix("inv_freq").rstrip("_")
            factor = getattr(module, f"{layer}_attention_scaling" if layer else "attention_scaling", 1.0)
            found[layer] = buffer.numpy(), float(factor)
    return found


def assert_equal(spec: RotarySpec | None, expected: tuple[np.ndarray, float]) -> None:
    """To the last bit with transformers' float32 arithmetic, and by exact angles but for its rounding."""
    assert spec is not None
    np.testing.assert_allclose(spec.inv_freq, expected[0], rtol=1e-6)
    np.testing.assert_allclose(RotaryEmbedding(spec, angles="hf").inv_freq, expected[0], rtol=1e-7)
    assert spec.attention_factor == pytest.approx(expected[1], abs=1e-9)


def forwards(spec: RotarySpec | None, name: str) -> RotarySpec | None:
    """Of a model whose code turns backwards by its module's frequencies, what its module has."""
    if not MODELS[name].backwards:
        return spec
    assert spec is not None
    assert spec.spectra is not None
    assert (spec.inv_freq < 0).all()
    assert RotarySpec.from_dict(spec.to_dict()) == spec
    return replace(spec, inv_freq=-spec.inv_freq, spectra=replace(spec.spectra, backwards=False))


# --- every model --------------------------------------------------------------------------------------------------------


COMPLEX = {"llama4_text", "deepseek_v2"}  # whose modules return complex numbers, by torch.polar


@pytest.mark.parametrize("name", [name for name in TEXT if name != "glm4_moe"])  # by class defaults no rotation: ODD
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_models_own_module_can_be_replaced(name):
    """To the last bit with its float32 product, and with exact angles where float32 has them right."""
    rotary, config = module_and_config(name)
    own = rotary(rotating(config))
    if not hasattr(own, "config"):
        assert name in ("gptj", "codegen")  # which keep a table of sines and cosines, and no config
        with pytest.raises(ValueError, match="has no config"):
            RotaryInPlace(own)
        return
    ids = torch.arange(300)[None]  # [1, S]
    for angles, tolerance in (("hf", 1.2e-7 if name in COMPLEX else 0.0), ("exact", 1e-4)):
        mine = RotaryInPlace(own, angles=angles)
        for layer in mine.layers:
            theirs, ours = (module(torch.zeros(1), ids, *([layer] if layer else [])) for module in (own, mine))
            assert isinstance(ours, torch.Tensor) == (name in COMPLEX)
            for one, other in zip(*((each,) if name in COMPLEX else each for each in (theirs, ours)), strict=True):
                assert one.shape == other.shape
                assert one.dtype == other.dtype
                assert (one - other).abs().max() <= tolerance


ODD = {"glm4_moe"}  # by class defaults it rotates 21 of 42 channels, which is no rotation


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_class_defaults_are_read_as_the_models_code_reads_them(name):
    """As an object, and as its dict."""
    rotary, config = module_and_config(name)
    made = rotating(config)
    for layer, expected in frequencies(rotary(made)).items():
        for form in (made, made.to_dict()):
            if name in ODD:
                with pytest.raises(ValueError, match="rotary_dim must be even"):
                    rotary_from_config(form)
                continue
            assert_equal(forwards(rotary_from_config(form, layer_type=layer or None), name), expected)


def scaled_module(name: str, kind: str) -> tuple[Any, Any] | None:
    """A config with a scaling, and the module of it; None where the scaling is said by layer, or the code does not take it."""
    rotary, config = module_and_config(name)
    made, model = rotating(config), MODELS[name]
    rope = getattr(made, "rope_parameters", None)
    longest = made.to_dict().get("max_position_embeddings")
    if rope is None or model.layers or name in ODD or (kind == "dynamic" and (not longest or "original" in str(vars(made)))):
        return None
    scaled = {"rope_type": kind, "rope_theta": rope["rope_theta"], "factor": 4.0}
    scaled |= {"original_max_position_embeddings": 1024} if kind in ("yarn", "llama3") else {}
    scaled |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    if model.partial and "partial_rotary_factor" in rope:
        scaled["partial_rotary_factor"] = rope["partial_rotary_factor"]
    made.rope_parameters = scaled
    try:
        return made, rotary(made)
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError):
        return None


@pytest.mark.parametrize(("kind", "least"), [("linear", 110), ("yarn", 105), ("llama3", 110), ("dynamic", 100)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scalings_are_read_as_the_models_code_reads_them(kind, least):
    """Of every model whose code takes them; dynamic frequencies are, up to the original length, those of the base."""
    compared = 0
    for name in TEXT:
        built = scaled_module(name, kind)
        if built is not None:
            assert_equal(forwards(rotary_from_config(built[0]), name), frequencies(built[1])[""])
            compared += 1
    assert compared >= least


@pytest.mark.parametrize("name", sorted(MODELS.keys() - NEWER))
def test_the_table_is_what_the_script_makes_of_the_installed_transformers(name):
    """Pairing, width, partial rotation: found by running the class, anew."""
    rotary, config = module_and_config(name)
    folder = MODELS[name].source.split(".")[0]
    module = importlib.import_module(rotary.__module__)
    base = read_transformers.frequencies(rotary, config)
    assert base is not None
    made = type(MODELS[name]).of(read_transformers.entry_of(folder, module, rotary, config, base))
    differ = [
        f
        for f in ("pairing", "width", "head_dim", "partial", "interleave", "layers")
        if getattr(made, f) != getattr(MODELS[name], f)
    ]
    assert not differ, (made, MODELS[name])


# --- released configs ---------------------------------------------------------------------------------------------------


def released_module(config: dict[str, Any]) -> tuple[Any, Any] | None:
    """The config object that transformers makes of a released config, and the rotary module of its language model."""
    model_type = config["model_type"]
    if model_type not in CONFIG_MAPPING:
        return None
    config = {**config, "sliding_window_pattern": 4} if config.get("sliding_window_pattern") == "LLLG" else config  # the same
    made = CONFIG_MAPPING[model_type](**{key: value for key, value in config.items() if key != "model_type"})
    text = made
    for part in ("thinker_config", "text_config", "vlm_config"):
        text = getattr(text, part, None) or text
    if "text_config" in getattr(text, "sub_configs", {}):
        text = text.text_config
    if text.model_type not in MODELS:
        return None
    folder, cls = MODELS[text.model_type].source.split(".")
    module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    return made, getattr(module, cls)(text)


@pytest.mark.parametrize("released", RELEASED, ids=lambda released: released["name"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_released_configs_are_read(released, tmp_path):
    """As a dict, as a folder, and as an object; against transformers' module, or where there is none by the authors' formula."""
    config, expected = released["config"], released.get("expected")
    (tmp_path / "config.json").write_text(json.dumps(config))
    if "refused" in released:
        with pytest.raises(ValueError, match=rf"{released['refused']} .* Delete .* or rename it"):
            rotary_from_config(config)
        return
    built = None if expected else released_module(config)
    for layer in released["layer_types"]:
        spec = rotary_from_config(config, layer_type=layer)
        assert spec is not None
        assert rotary_from_config(tmp_path, layer_type=layer) == spec
        assert rotary_from_config(tmp_path / "config.json", layer_type=layer) == spec
        if expected:
            n = expected["channels"]
            np.testing.assert_allclose(spec.inv_freq.max(), 1.0)
            pairs = expected["theta"] ** (-np.arange(0, n, 2) / n)
            np.testing.assert_allclose(np.sort(spec.inv_freq)[::-1], pairs, rtol=1e-6)
            assert sorted(np.bincount(spec.axis).tolist()) == sorted(expected["axis"])
            assert spec.pairing == expected["pairing"]
            assert spec.attention_factor == 1
        else:
            assert built is not None, "no module, and no expected values either"
            made, module = built
            inv_freq, factor = frequencies(module)[layer or ""]
            if config["model_type"] == "phimoe":  # which takes the stated factor when it runs
                factor = module(torch.zeros(1, 1, 1), torch.zeros(1, 1))[0].max().item()
                assert factor == pytest.approx(1.243163, rel=1e-6)
                factor = spec.attention_factor if abs(factor - spec.attention_factor) < 1e-6 else factor
            assert_equal(spec, (inv_freq, factor))
            assert rotary_from_config(made, layer_type=layer) == spec


OF_FAMILY = {  # by configs that state no scaling of their own
    "qwen2_vl": "Qwen2-VL-7B as released",
    "qwen3_5": "Qwen3.5 rope_parameters",
    "qwen3_5_moe": "Qwen3.5-35B-A3B",
    "qwen3_omni_moe": "Qwen3-Omni thinker (interleaved key)",
    "glm4v": "GLM-4.1V-9B",
    "glm_ocr": "GLM-OCR",
    "ernie4_5_vl_moe": "ERNIE-4.5-VL-28B remote-code config",
    "hunyuan_vl": "HunyuanOCR v1.0 xdrope",
}
WITH_SCALING = {"qwen2_5_vl": "Qwen2.5-VL README YaRN", "qwen3_vl": "Qwen3-VL README YaRN 1M"}


def test_rows_that_name_a_released_config_have_what_it_says():
    by_name = {released["name"]: released["config"] for released in RELEASED}
    named = {row.name for row in FAMILIES.values() if row.rotary.released}
    assert named == {*OF_FAMILY, *WITH_SCALING}
    for name, config in OF_FAMILY.items():
        assert rotary_from_config(by_name[config]) == RotarySpec.from_family(name), name
    for name, config in WITH_SCALING.items():
        spec = rotary_from_config(by_name[config])
        assert spec is not None
        assert spec.scaling is not None
        assert RotarySpec.from_family(name).scaled(spec.scaling) == spec


# --- layers, defaults, refusals -----------------------------------------------------------------------------------------


def test_layers_without_rotation_have_none():
    scout = next(released["config"] for released in RELEASED if released["name"].startswith("Llama-4"))
    assert [rotary_from_config(scout, layer=n) is None for n in range(8)] == [False, False, False, True] * 2
    smol = {
        "model_type": "smollm3",
        "hidden_size": 256,
        "num_attention_heads": 4,
        "rope_theta": 1e6,
        "no_rope_layers": [1, 0, 1],
    }
    assert [rotary_from_config(smol, layer=n) is None for n in range(3)] == [False, True, False]
    with pytest.raises(ValueError, match="smollm3 has 3 layers, numbered from 0 up, and none is 3"):
        rotary_from_config(smol, layer=3)
    exaone = next(released["config"] for released in RELEASED if released["name"] == "EXAONE-4.0")
    assert rotary_from_config(exaone, layer_type="full_attention") is None
    small = {**exaone, "sliding_window": None, "layer_types": ["full_attention"]}  # without windows all layers rotate
    assert rotary_from_config(small, layer_type="full_attention") == rotary_from_config(exaone)
    mixed = {**exaone, "layer_types": ["sliding_attention", "full_attention"]}
    assert [rotary_from_config(mixed, layer=n) is None for n in range(2)] == [False, True]
    with pytest.raises(ValueError, match="state layer_type or layer, not both"):
        rotary_from_config(mixed, layer=0, layer_type="full_attention")


@pytest.mark.parametrize(
    ("config", "layer_type"),
    [
        ({"model_type": "afmoe", "head_dim": 64, "rope_theta": 1e4}, "full_attention"),
        ({"model_type": "kolibri1", "head_dim": 64, "rope_theta": 1e4}, "full_attention"),
        ({"model_type": "falcon", "alibi": True, "rope_theta": 1e4}, None),
        ({"model_type": "granitemoehybrid", "position_embedding_type": "nope", "rope_theta": 1e4}, None),
        ({"model_type": "lfm2", "head_dim": 64, "rope_theta": 1e4}, "conv"),
        (RELEASED[5]["config"], "linear_attention"),
    ],
)
def test_what_does_not_rotate_has_none(config, layer_type):
    assert rotary_from_config(config, layer_type=layer_type) is None


def test_latent_attention_that_is_switched_off_rotates_whole_heads():
    """DeepSeek-VL2 and DeepSeek-OCR."""
    config = {
        "model_type": "deepseek_v2",
        "hidden_size": 1280,
        "num_attention_heads": 10,
        "qk_rope_head_dim": 0,
        "use_mla": False,
    }
    wrapped = {"model_type": "deepseek_vl_v2", "language_config": {**config, "rope_theta": 1e4}}
    assert rotary_from_config(wrapped) == RotarySpec.rope(128, theta=1e4)


def test_what_is_left_to_class_defaults_is_named():
    minimal = {"model_type": "gemma3_text", "hidden_size": 2560, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spec = rotary_from_config(minimal, layer_type="sliding_attention")
    said = [str(warning.message) for warning in caught]
    assert "gemma3_text: the config has no rope_theta and leaves it to the class default, 10000.0 in transformers" in said[0]
    assert "gemma3_text: the config has no head_dim and leaves it to the class default, 256 in transformers" in said[1]
    assert spec == RotarySpec.rope(256, theta=1e4)


def test_a_partial_factor_counts_where_the_models_code_reads_it():
    for name, channels in (("llama", 128), ("qwen3", 128), ("phi", 32), ("stablelm", 32)):
        config = {"model_type": name, "head_dim": 128, "rope_theta": 1e4, "partial_rotary_factor": 0.25}
        config |= {"hidden_size": 512, "num_attention_heads": 4}
        spec = rotary_from_config(config)
        assert spec is not None
        assert 2 * len(spec.inv_freq) == channels, name
    scaled = {"model_type": "llama", "head_dim": 128, "partial_rotary_factor": 0.25}
    scaled["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(
        ValueError, match="makes frequencies of a part and rotates whole heads by them, which fails: delete the key"
    ):
        rotary_from_config(scaled)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "nonesuch"},
            r"model_type 'nonesuch', which no model .* llm_config.*RotarySpec",
        ),
        (
            {"model_type": "nonesuch", "vision_config": {"model_type": "clip"}},
            "Pass the part of the config that is the language",
        ),
    ],
)
def test_what_is_not_known_is_refused_with_what_to_do(config, message):
    with pytest.raises(ValueError, match=message):
        rotary_from_config(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama"}, r"model_type 'llama', whose tokens have one position each.*family\('rope'\)"),
        ({"model_type": "llava_onevision", "text_config": {"model_type": "qwen2"}}, "one position each"),
        ({"model_type": "internvl_chat", "llm_config": {"model_type": "qwen2"}}, "one position each"),
        ({"model_type": "gemma3", "text_config": {}}, "one position each"),
        ({"model_type": "qwen3_vl_text"}, "A full config is needed, not its text or vision part"),
    ],
)
def test_models_of_one_position_a_token_are_told_so(config, message):
    with pytest.raises(ValueError, match=message):
        family_from_config(config)


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-VL-7B-Instruct", "./Qwen2.5-VL"])
def test_a_checkpoints_name_is_no_family(name):
    with pytest.raises(ValueError, match=r"looks like a checkpoint: mmrope.family_from_config"):
        family(name)


@pytest.mark.parametrize("name", ["llama", "llava", "internvl", "gemma3"])
def test_models_of_one_position_a_token_are_no_family(name):
    with pytest.raises(ValueError, match=r"Llama, LLaVA, InternVL, Gemma 3, Pixtral, ...\), are 'rope'"):
        family(name)


def test_a_wrapper_is_looked_into():
    wrapped = next(released["config"] for released in RELEASED if released["name"].startswith("ColQwen2.5"))
    assert family_from_config(wrapped).key == "qwen2_vl"
    assert name_of("colqwen2") == ""


def test_an_object_of_class_defaults_is_refused_as_a_dict_without_them_is():
    from transformers import Qwen2_5_VLConfig

    with pytest.raises(ValueError, match="tokens_per_second 4, which is the class default, and released checkpoints have 2"):
        family_from_config(Qwen2_5_VLConfig())
    assert family_from_config(Qwen2_5_VLConfig(vision_config={"tokens_per_second": 2})).ids_per_second == 2


# --- what configs leave out, by every model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [{}, {"head_dim": None}, {"head_dim": 80}], ids=str)
@pytest.mark.parametrize("name", TEXT)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_a_config_leaves_out_is_as_its_class_has_it(name, changed):
    """Nothing but the model type, or the head's size, too: frequencies and factors are those of the class."""
    rotary, config = module_and_config(name)
    stated = {**ROTATES.get(name, {}), **changed}
    if (name in ODD and not changed.get("head_dim")) or (changed and MODELS[name].width == "apart"):
        return
    try:
        made = config(**stated)
    except (StrictDataclassError, AttributeError):  # a head's size that the class does not take
        assert changed
        return
    if changed and made.to_dict().get(config.attribute_map.get("head_dim", "head_dim")) != changed["head_dim"]:
        return  # its class has another way to the size
    for layer, value in frequencies(rotary(made)).items():
        assert_equal(forwards(rotary_from_config({"model_type": name, **stated}, layer_type=layer or None), name), value)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_scaling_of_the_class_is_not_dropped():
    small = {"model_type": "gpt_oss", "hidden_size": 2880, "num_attention_heads": 64, "head_dim": 64, "rope_theta": 150000.0}
    spec = rotary_from_config(small)
    assert spec is not None
    assert isinstance(spec.scaling, YaRN)
    assert spec.attention_factor == pytest.approx(1.3465735902799727)
    with pytest.raises(ValueError, match=r"rope_theta 5.0 without rope_parameters, .* then takes those of its class, .*yarn"):
        rotary_from_config({**small, "rope_theta": 5.0})


def test_types_that_do_not_rotate_have_none_and_others_say_why():
    assert all(rotary_from_config({"model_type": name}) is None for name in ("bloom", "gpt2", "mamba2", "bert"))
    with pytest.raises(ValueError, match="deepseek_v4', which is not read: two kinds of attention"):
        rotary_from_config({"model_type": "deepseek_v4"})
    flat = {"model_type": "fuyu", "hidden_size": 4096, "num_attention_heads": 64, "partial_rotary_factor": 0.5}
    assert rotary_from_config({**flat, "rope_theta": 25000.0}) == RotarySpec.rope(64, theta=25000.0, rotary_dim=32)


def test_one_mscale_alone():
    """Read past where nothing reads it or all agree; refused where transformers and the authors differ, with both numbers."""
    base = {"model_type": "deepseek_v3", "qk_rope_head_dim": 64, "rope_theta": 1e4}
    yarn = {"type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096}
    plain = rotary_from_config({**base, "rope_scaling": yarn})
    assert rotary_from_config({**base, "rope_scaling": {**yarn, "mscale": 1.0, "mscale_all_dim": 0}}) == plain
    for lone in ({"mscale_all_dim": 1.0}, {"mscale": 0.7}):
        with pytest.raises(
            ValueError, match=r"multiplies cos and sin by 1.36889, and DeepSeek's own code and vLLM by 1(\.258\d*)? "
        ):
            rotary_from_config({**base, "rope_scaling": {**yarn, **lone}})
    llama = {"model_type": "llama", "head_dim": 64, "rope_theta": 1e4}
    assert rotary_from_config({**llama, "rope_scaling": {**yarn, "mscale": 0.7}}) == rotary_from_config(
        {**llama, "rope_scaling": yarn}
    )


# --- what configs say otherwise, and what they list by layer ------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.* no (rope_theta|num_attention_heads|head_dim) and leaves")
def test_sizes_that_a_config_leaves_out_are_those_of_the_class():
    """LLaVA-1.5-7B and -13B as released."""
    small = {"model_type": "llava", "text_config": {"model_type": "llama", "max_position_embeddings": 4096}}
    with pytest.warns(UserWarning, match="no hidden_size and leaves it to the class default, 4096 in transformers"):
        assert rotary_from_config(small) == RotarySpec.rope(128, theta=1e4)
    large = {"model_type": "llama", "hidden_size": 5120, "num_attention_heads": 40}
    assert rotary_from_config({"model_type": "llava", "text_config": large}) == RotarySpec.rope(128, theta=1e4)
    for missing in ({"model_type": "deepseek_v3", "rope_theta": 1e4}, {"model_type": "gptj", "n_embd": 4096, "n_head": 16}):
        with pytest.warns(UserWarning, match="leaves it to the class default, 64"):
            spec = rotary_from_config(missing)
        assert spec is not None
        assert spec.rotary_dim == 64


@pytest.mark.parametrize(
    ("config", "spec"),
    [
        # values as published, with their own names
        (
            {"model_type": "nomic_bert", "n_embd": 768, "n_head": 12, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0},
            RotarySpec.rope(64, theta=1e3),
        ),
        (
            {"model_type": "gptj", "n_embd": 4096, "n_head": 16, "rotary_dim": 64, "rope_theta": 1e4},
            RotarySpec.rope(256, theta=1e4, rotary_dim=64, pairing="adjacent"),
        ),
        (
            {"model_type": "dbrx", "d_model": 6144, "n_heads": 48, "attn_config": {"rope_theta": 500000, "kv_n_heads": 8}},
            RotarySpec.rope(128, theta=5e5),
        ),
        (
            {"model_type": "esm", "hidden_size": 1280, "num_attention_heads": 20, "position_embedding_type": "rotary"},
            RotarySpec.rope(64, theta=1e4),
        ),
        ({"model_type": "esm", "hidden_size": 1280, "num_attention_heads": 20}, None),
        (
            {"model_type": "zamba2", "hidden_size": 2560, "num_attention_heads": 32, "use_mem_rope": True, "rope_theta": 1e4},
            RotarySpec.rope(160, theta=1e4),
        ),
        ({"model_type": "zamba2", "hidden_size": 2560, "num_attention_heads": 32, "rope_theta": 1e4}, None),
        (
            {
                "model_type": "stablelm_epoch",
                "hidden_size": 2560,
                "num_attention_heads": 32,
                "rope_pct": 0.25,
                "rope_theta": 1e4,
            },
            RotarySpec.rope(80, theta=1e4, rotary_dim=20),
        ),
        (
            {"model_type": "RefinedWebModel", "hidden_size": 4544, "n_head": 71, "alibi": False, "rope_theta": 1e4},
            RotarySpec.rope(64, theta=1e4),
        ),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else None,
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_configs_with_names_of_their_own(config, spec):
    assert rotary_from_config(config) == spec


STEP = {  # Step-3.5's way: everything by layer
    "model_type": "step3p5",
    "head_dim": 128,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "rope_theta": [5e6, 1e4, 1e4, 5e6, 5e6],
    "partial_rotary_factors": [0.5, 1.0, 1.0, 0.5, 0.5],
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 2.0,
        "original_max_position_embeddings": 131072,
        "low_freq_factor": 1.0,
        "high_freq_factor": 32.0,
    },
}


def test_thetas_listed_by_layer():
    full = RotarySpec.rope(128, theta=5e6, rotary_dim=64).scaled(Llama3(2.0, 131072, 1.0, 32.0))
    sliding = RotarySpec.rope(128, theta=1e4)
    assert [rotary_from_config(STEP, layer=n) for n in range(4)] == [full, sliding, sliding, full]
    assert rotary_from_config(STEP, layer_type="sliding_attention") == sliding
    with pytest.raises(ValueError, match=r"its layers differ, 'full_attention', 'sliding_attention'"):
        rotary_from_config(STEP)
    with pytest.raises(ValueError, match=r"layers of type 'full_attention' have rope_theta \[1000000.0, 5000000.0\], not one"):
        rotary_from_config({**STEP, "rope_theta": [1e6, 1e4, 1e4, 5e6]}, layer=0)

    granite = {"model_type": "granite_swa", "hidden_size": 2560, "num_attention_heads": 20, "num_hidden_layers": 4}
    granite |= {"rope_theta": 1e6, "layer_rope_theta": [1e6, 1e4, 0, 1e4]}
    thetas = [spec and spec.spectra.of[0][0] for spec in (rotary_from_config(granite, layer=n) for n in range(4))]
    assert thetas == [1e6, 1e4, None, 1e4]
    with pytest.raises(
        ValueError, match=r"its layers have thetas \[10000.0, 1000000.0\] by layer_rope_theta: say which by layer"
    ):
        rotary_from_config(granite)
    muse = {"model_type": "muse_glimmer_text", "head_dim": 128, "rope_theta": 1e5, "layer_rope_theta": [7.0, 7.0, 0]}
    assert [rotary_from_config(muse, layer=n) for n in range(3)] == [RotarySpec.rope(128, theta=1e5)] * 2 + [None]


@pytest.mark.parametrize("name", sorted(name for name, model in MODELS.items() if model.every and name not in NEWER))
@pytest.mark.parametrize("layers", [5, 12, 13])
def test_types_of_layers_are_laid_out_as_the_class_lays_them_out(name, layers):
    """By its own pattern, and by what a config says of it."""
    _, config = module_and_config(name)
    every = MODELS[name].every
    for more in ({}, {every["key"]: 3}) if "key" in every else ({},):
        theirs = config(num_hidden_layers=layers, **more).to_dict()["layer_types"]
        assert laid_out(layers, more.get(every.get("key"), every["n"]), every["place"], *every["types"]) == theirs


def test_layers_are_told_apart_by_the_pattern_where_a_config_does_not_list_them():
    gemma = {"model_type": "gemma3_text", "head_dim": 256, "rope_theta": 1e6, "rope_local_base_freq": 1e4}
    gemma |= {"num_hidden_layers": 7, "sliding_window_pattern": 3}
    thetas = [spec and spec.spectra.of[0][0] for spec in (rotary_from_config(gemma, layer=n) for n in range(7))]
    assert thetas == [1e4, 1e4, 1e6, 1e4, 1e4, 1e6, 1e4]
    cohere = {"model_type": "cohere2", "hidden_size": 512, "num_attention_heads": 4, "rope_theta": 1e4}
    assert [rotary_from_config({**cohere, "num_hidden_layers": 5}, layer=n) is None for n in range(5)] == [False] * 3 + [
        True,
        False,
    ]
    qwen = {"model_type": "qwen3_next", "head_dim": 256, "rope_theta": 1e7, "partial_rotary_factor": 0.25}
    qwen |= {"num_hidden_layers": 4, "full_attention_interval": 2}
    assert [rotary_from_config(qwen, layer=n) is None for n in range(4)] == [True, False] * 2  # the others are recurrent
    moe = {"model_type": "cohere2_moe", "head_dim": 128, "rope_theta": 1e4, "mlp_layer_types": ["dense", "sparse"]}
    moe |= {"layer_types": ["full_attention"] * 2}
    assert [rotary_from_config(moe, layer=n) is None for n in range(2)] == [False, True]  # full, but dense


@pytest.mark.parametrize("layer", [99, -1, "3", True, 1.0, None])
def test_layers_that_are_none_are_refused(layer):
    config = {"model_type": "llama", "head_dim": 128, "rope_theta": 1e4, "num_hidden_layers": 32}
    if layer is None:
        assert rotary_from_config(config, layer=31) == rotary_from_config(config)
        return
    with pytest.raises(ValueError, match="llama has 32 layers, numbered from 0 up, and none is"):
        rotary_from_config(config, layer=layer)


def test_what_turns_backwards_is_turned_as_its_code_does():
    from transformers.models.nanochat.modeling_nanochat import NanoChatConfig, NanoChatRotaryEmbedding, apply_rotary_pos_emb

    config = NanoChatConfig(hidden_size=64, num_attention_heads=4)
    ids, q, k = torch.arange(9)[None], torch.randn(1, 4, 9, 16), torch.randn(1, 4, 9, 16)
    expected = apply_rotary_pos_emb(q, k, *NanoChatRotaryEmbedding(config)(q, ids))
    spec = rotary_from_config(config)
    assert spec is not None
    for one, other in zip(RotaryEmbedding(spec).rotate(q, k, ids[None]), expected, strict=True):
        torch.testing.assert_close(one, other)


YARN = {"model_type": "qwen3", "head_dim": 128, "rope_theta": 1e6}
YARN["rope_scaling"] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def with_rope(**more):
    return {**YARN, "rope_scaling": {**YARN["rope_scaling"], **more}}


def test_a_factor_that_changes_nothing_is_read_past_and_another_says_what_it_would_do():
    assert rotary_from_config(with_rope(attn_factor=1.0)) == rotary_from_config(YARN)
    both = with_rope(attn_factor=0.9, attention_factor=0.9)
    assert rotary_from_config(both) == rotary_from_config(with_rope(attention_factor=0.9))
    assert rotary_from_config(with_rope(finetuned=True)) == rotary_from_config(YARN)  # Yarn-Llama-2
    with pytest.raises(
        ValueError,
        match=r"attn_factor 0.8782.* Delete .* times 1.13863, or rename it .* times 0.878249; .* attention_factor 1 for",
    ):
        rotary_from_config(with_rope(attn_factor=0.8782488562869419))


STRANGE = [None, "x", "", -1, 0, 1, 1.5, 128.0, True, [], [1], ["x"], {}, {"a": 1}, float("nan"), float("inf"), 4096]
KEYS = [
    *("head_dim", "rope_theta", "partial_rotary_factor", "layer_types", "rope_scaling", "rope_parameters", "num_hidden_layers"),
    *("no_rope_layers", "layer_rope_theta", "mlp_layer_types", "per_layer_config", "sliding_window_pattern", "rotary_dim"),
    *("qk_rope_head_dim", "max_position_embeddings", "original_max_position_embeddings", "text_config", "model_type"),
    *("freq_allocation", "global_head_dim", "num_attention_heads", "hidden_size", "vision_config", "thinker_config"),
]


def places(config: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in config.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


@pytest.mark.parametrize("released", RELEASED, ids=lambda released: released["name"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_strange_values_are_errors_for_users_or_read(released):
    """Any value in any place: never another exception than ValueError."""
    for path in [*places(released["config"]), *((key,) for key in KEYS)]:
        for value in STRANGE:
            config = copy.deepcopy(released["config"])
            inner = config
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = value
            for read in (
                lambda config=config: rotary_from_config(config, layer_type=released["layer_types"][0]),
                lambda config=config: rotary_from_config(config, layer=1),
                lambda config=config: family_from_config(config),
            ):
                with contextlib.suppress(ValueError):
                    read()


def test_the_script_knows_every_condition_of_the_installed_transformers():
    """Under which rotary embeddings are called: one that is not in its table was not read."""
    for folder, stem, name, _ in read_transformers.classes(MODELS_OF_UPSTREAM):
        if name not in read_transformers.UNREAD and not any(part in name for part in read_transformers.VISION):
            source = (MODELS_OF_UPSTREAM / folder / f"{stem}.py").read_text(encoding="utf-8")
            assert read_transformers.conditions(source) <= set(read_transformers.CONDITIONS), folder


def test_explain_says_that_facts_are_unverified():
    said = explain(position_ids([Segment.text(2)], "neomme"))
    assert said.endswith("how neomme rotates by these ids is unverified: no released config was at hand")
    assert "unverified" not in explain(position_ids([Segment.text(2)], "qwen2_vl"))
    assert "unverified" not in explain(position_ids([Segment.text(2)], "rope"))


def test_a_family_makes_its_spec():
    assert family("qwen3_5").rotary_spec() == RotarySpec.from_family("qwen3_5")
    assert family("qwen3_5").rotary_spec().spectra.of == ((1e7, 64),)
