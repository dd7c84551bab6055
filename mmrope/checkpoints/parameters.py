"""Rope parameters of a config, in whichever form: theta, what scales it, and what the keys mean. Others are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmrope.checkpoints.models import MADE_FROM
from mmrope.checkpoints.stated import Stated
from mmrope.encodings.scaling import NTK, PI, DynamicNTK, Llama3, LongRoPE, Proportional, Scaling, YaRN
from mmrope.records import is_number, shown

SECTIONS = {"mrope_section", "mrope_interleaved", "xdrope_section"}
_GENERAL = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "interleaved", *SECTIONS}
_OF_TYPE: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor", "alpha", "original_max_position_embeddings"},
    "yarn": {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "truncate"}
    | {"mscale", "mscale_all_dim", "llama_4_scaling_beta"},
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "longrope": {"factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"}
    | {"short_mscale", "long_mscale"},
    "proportional": {"factor"},
}
_IGNORED = {  # keys of released configs that no code reads: they are read past
    "dynamic": {"beta_fast", "beta_slow", "mscale", "mscale_all_dim"},  # HunyuanOCR: with alpha, theta alone is stretched
    "yarn": {"max_position_embeddings", "finetuned"},  # Ministral 3; Yarn-Llama-2, whose authors' code asks whether to scale
}
_RENAMED = {"original_max_position_embedding": "original_max_position_embeddings"}
_ALIASES = {"mrope": "default", "su": "longrope", "xdrope": "dynamic"}


def rope_parameters(text: Stated, layer_type: str | None) -> dict[str, Any] | None:
    """The rope parameters of a config (of a layer type), whichever form it has, with theta and `rope_type` in them; None where
    it says that layers of this type do not rotate."""
    layers, defaults = text.model.layers, text.model.rope if text.model.layers else {}
    new, old = text.part("rope_parameters"), text.part("rope_scaling")
    if new and old and new != old:
        raise text.wrong(f"the config has rope_parameters {new} and rope_scaling {old}, which differ: leave one out")
    if old and not new and "rope_scaling" in text.model.ignores:
        raise text.wrong(f"its code does not read rope_scaling {old}: state rope_parameters, or delete it for what it computes")
    rope = _by_layer(text) or new or old
    types = list(rope) if any(isinstance(value, Mapping) for value in rope.values()) else []
    local = text.get("local_theta")
    if layers or types or local is not None:
        known = types or layers or ("full_attention", "sliding_attention")
        if layer_type not in known:
            raise text.wrong(
                f"its layers differ, {', '.join(map(repr, known))}: say which by layer_type"
                + (f", not {layer_type!r}" if layer_type else "")
            )
    elif layer_type is not None and layer_type not in (text.get("layer_types") or ()):
        raise text.wrong(f"the config says nothing by type of layer; leave layer_type={layer_type!r} out")
    if types:
        assert layer_type is not None
        rope = rope[layer_type]
        if rope is None:
            return None
        if not isinstance(rope, Mapping):
            raise text.wrong(f"rope parameters of {layer_type!r} must be a dict, got {rope!r}")
    elif layers or local is not None:  # one form for all layers: its scaling is of those that see all
        if layer_type != "full_attention":
            rope = {"rope_type": "default"} if local is None else {"rope_type": "default", "rope_theta": local}
        elif layers and not defaults.get(layer_type):
            return None
    rope = dict(rope)
    of_class = {} if text.model.axes else class_default(text, layer_type)
    if not rope and of_class:
        scaled, theta = of_class.get("rope_type", "default") != "default", of_class["rope_theta"]
        by_itself = text.get(text.model.names.get("rope_theta", "")) is None and text.get("rope_theta") not in (None, theta)
        if by_itself and (scaled or "rope_theta" in text.model.ignores):
            raise text.wrong(
                f"the config has rope_theta {text['rope_theta']} without rope_parameters, and {MADE_FROM} then takes those "
                f"of its class, {dict(of_class)}: state rope_parameters"
            )
        if scaled:
            rope = dict(text.default("rope_parameters", dict(of_class)))
    alike = len({part["rope_theta"] for part in defaults.values() if part}) == 1  # one theta for all types of layers
    stated = {key: text.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    for key, value in stated.items():
        outside_is_of_others = layers and layer_type != "full_attention" and key == "rope_theta" and not alike
        if value is None or types or outside_is_of_others:
            continue
        if rope.setdefault(key, value) != value:
            raise text.wrong(f"the config has {key} {value}, and {rope[key]} in {rope}: correct one of them")
    if rope.get("rope_theta") is None:
        if of_class.get("rope_theta") is None:
            raise text.wrong("the config has no rope_theta")
        rope["rope_theta"] = text.default("rope_theta", of_class["rope_theta"])
    return _checked(text, rope)


def class_default(text: Stated, layer_type: str | None) -> Mapping[str, Any]:
    """The rope parameters that its class has by default."""
    return (text.model.rope.get(layer_type or "") or {}) if text.model.layers else text.model.rope


def _by_layer(text: Stated) -> dict[str, Any]:
    """Of a config whose rope_theta is a list, one for each layer (Step-3.5), what its types of layers have."""
    if not isinstance(text.get("rope_theta"), (list, tuple)):
        return {}
    thetas, fractions = text.numbers("rope_theta") or [], text.numbers("partial_rotary_factors") or []
    types, scaling = text.get("layer_types") or [], text.part("rope_scaling")
    scaled = scaling.get("yarn_only_types") or text.get("yarn_only_types") or ["full_attention"]
    found: dict[str, Any] = {}
    for kind in dict.fromkeys(types):
        mine = [i for i, each in enumerate(types) if each == kind]
        for key, values in (("rope_theta", thetas), ("partial_rotary_factor", fractions)):
            different = {values[i] for i in mine if i < len(values)}
            if len(different) > 1:
                raise text.wrong(f"layers of type {kind!r} have {key} {sorted(different)}, not one: make a spec for each")
            if different:
                found.setdefault(kind, {"rope_type": "default"})[key] = different.pop()
        if kind in scaled and kind in found:
            found[kind] |= {key: value for key, value in scaling.items() if key != "yarn_only_types"}
    if not found:
        raise text.wrong("the config has a rope_theta for each layer, and no layer_types that say which are alike")
    return found


def _checked(text: Stated, rope: dict[str, Any]) -> dict[str, Any]:
    """Rope parameters whose keys and values mean something."""
    flags, lists = ("truncate", "mrope_interleaved", "interleaved", "finetuned"), ("short_factor", "long_factor")
    for key, value in rope.items():
        if key in ("rope_type", "type") or value is None:
            continue
        if key in flags and not isinstance(value, bool):
            raise text.wrong(f"rope parameters have {key} {value!r}, which is neither true nor false")
        if key in (*lists, *SECTIONS - set(flags)):
            if not isinstance(value, (list, tuple)) or not all(map(is_number, value)):
                raise text.wrong(f"rope parameters have {key} {value!r}, which is no list of numbers")
        elif key not in flags and not is_number(value):
            raise text.wrong(f"rope parameters have {key} {value!r}, which is no number")
    stated = {_ALIASES.get(str(rope[key]), str(rope[key])) for key in ("rope_type", "type") if rope.get(key) is not None}
    if len(stated) > 1 or not stated <= set(_OF_TYPE):
        raise text.wrong(f"rope parameters have type {', '.join(sorted(stated))} in {rope}; known are {', '.join(_OF_TYPE)}")
    rope["rope_type"] = kind = stated.pop() if stated else "default"
    rope = {key: value for key, value in rope.items() if value is not None and key not in _IGNORED.get(kind, ())}
    unknown_keys = sorted(set(rope) - _GENERAL - _OF_TYPE[kind])
    if renamed := [key for key in unknown_keys if _RENAMED.get(key) in _OF_TYPE[kind]]:
        key = renamed[0]
        raise text.wrong(
            f"rope parameters have {key} {rope[key]}, which no code of {MADE_FROM} reads: it goes on as if the key "
            f"were not there. Delete {key} for what it computes, or rename it to {_RENAMED[key]} for what {key} seems to say; "
            "the two differ, and who trained the model knows which"
        )
    if kind == "yarn" and "attn_factor" in rope:
        _check_attn_factor(text, rope)
        del rope["attn_factor"]
        unknown_keys.remove("attn_factor")
    if unknown_keys:
        raise text.wrong(
            f"rope parameters have keys {unknown_keys} that type {kind!r} does not read, in {rope}: correct "
            "the config. Nothing was ignored"
        )
    return rope


def _checked_mscale(text: Stated, rope: Mapping[str, Any]) -> dict[str, Any]:
    """YaRN's rope parameters without an mscale that changes nothing: one of the two keys alone.

    Source: transformers 5.24, _compute_yarn_parameters and yarn_apply_mscale; DeepSeek-V3's own code and vLLM, whose defaults
    are mscale 1 and mscale_all_dim 0.
    """
    one, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    left = {key: value for key, value in rope.items() if key not in ("mscale", "mscale_all_dim")}
    if (one and all_dim) or (one is None and all_dim is None):
        return dict(rope)
    log = 0.1 * math.log(max(rope.get("factor") or 1.0, 1.0))
    theirs, authors = log + 1, (log * (1 if one is None else one) + 1) / (log * (all_dim or 0) + 1)
    if text.model.score and (all_dim or not math.isclose(theirs, authors)):
        raise text.wrong(
            f"rope parameters have mscale {one} and mscale_all_dim {all_dim}: of one alone {MADE_FROM} multiplies cos and sin "
            f"by {theirs:.6g}, and DeepSeek's own code and vLLM by {authors:.6g} (missing, they are 1 and 0). State both"
        )
    return left


def _check_attn_factor(text: Stated, rope: Mapping[str, Any]) -> None:
    """That attn_factor, which transformers does not read, and YaRN's authors' code and vLLM multiply by the factor of the
    scale, changes nothing.

    Source: jquesnelle/yarn, LlamaYaRNScaledRotaryEmbedding; vLLM 0.33, yarn_scaling_rope.py.
    """
    factor, stated = rope.get("factor", 1.0), rope.get("attention_factor")
    of_scale = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    theirs = of_scale if stated is None else stated
    product = of_scale * rope["attn_factor"]
    if math.isclose(theirs, product, rel_tol=1e-6) or stated == rope["attn_factor"]:
        return
    raise text.wrong(
        f"rope parameters have attn_factor {rope['attn_factor']}, which no code of {MADE_FROM} reads. Delete attn_factor for "
        f"what that computes, cos and sin times {theirs:.6g}, or rename it to attention_factor for cos and sin times "
        f"{rope['attn_factor']:.6g}; YaRN's authors' code and vLLM multiply it by that of the scale: state attention_factor "
        f"{product:.6g} for theirs. They differ, and who trained the model knows which"
    )


def scaling_of(text: Stated, rope: Mapping[str, Any]) -> Scaling | None:
    """What scales the frequencies; None where nothing does."""
    kind, longest = rope["rope_type"], text.count("max_position_embeddings")
    original = rope.get("original_max_position_embeddings") or text.count("original_max_position_embeddings")

    def need(key: str, value: Any = None) -> Any:
        value = rope.get(key) if value is None else value
        if value is None:
            raise text.wrong(f"rope type {kind!r} needs {key}, which the config does not state")
        return value

    if kind == "default":
        return None
    if kind == "linear":
        return PI(need("factor"))
    if kind == "proportional":
        return Proportional(rope.get("partial_rotary_factor", 1.0), rope.get("factor", 1.0))
    if kind == "dynamic":
        if rope.get("alpha"):
            if "alpha" not in text.model.reads:
                raise text.wrong(
                    f"rope parameters have alpha {rope['alpha']}, which HunYuan's code reads, and vLLM for every model, and "
                    "this model's does not: delete it for what that computes"
                )
            if rope.get("factor", 1) != 1:
                raise text.wrong(f"alpha {rope['alpha']} and factor {rope['factor']} exclude each other")
            return NTK(rope["alpha"])
        if original is not None and longest is not None and original != longest:
            raise text.wrong(
                f"dynamic scaling states original_max_position_embeddings {original}, but upstreams scale from "
                f"max_position_embeddings {longest}; make them equal"
            )
        return DynamicNTK(text.size("max_position_embeddings"), need("factor"))
    if original is None and rope.get("factor") is not None:
        original = longest  # as transformers has it where no original length is stated
    original = need("original_max_position_embeddings", original)
    if not original > 0:
        raise text.wrong(f"original_max_position_embeddings must be a number of tokens, above 0, got {shown(original)}")
    if kind == "llama3":
        return Llama3(need("factor"), original, need("low_freq_factor"), need("high_freq_factor"))
    factor = rope.get("factor")
    if factor is None:
        factor = text.size("max_position_embeddings") / original
    if kind == "longrope":
        stated = rope.get("attention_factor")
        if "mscale" in text.model.reads and {"short_mscale", "long_mscale"} & set(rope):
            if rope.get("short_mscale") != rope.get("long_mscale"):
                raise text.wrong(
                    f"short_mscale {rope.get('short_mscale')} and long_mscale {rope.get('long_mscale')} differ, and "
                    "mmrope has one factor for both lengths: make two specs"
                )
            stated = rope["short_mscale"]
        lists = need("short_factor"), need("long_factor")
        return LongRoPE(*lists, original, factor, stated_attention_factor=stated)
    rope = _checked_mscale(text, rope)
    options = {key: rope[key] for key in ("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim") if key in rope}
    return YaRN(factor, original, stated_attention_factor=rope.get("attention_factor"), **options)
