"""What a checkpoint says: Hugging Face configs to rotary embeddings, their scaling included. What cannot be read is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmrope.encodings.scaling import NTK, PI, DynamicNTK, Llama3, LongRoPE, Proportional, Scaling, YaRN
from mmrope.encodings.spec import RotarySpec
from mmrope.positions.families import config_dict, family_of
from mmrope.positions.rules import Family, Pairing

TEXT_MODELS: dict[Pairing, str] = {
    "half": "apertus arcee bitnet gemma gemma2 gemma3_text gemma4_text glm4_moe granite llama mistral mixtral nemotron olmo "
    "olmo2 persimmon phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe seed_oss stablelm starcoder2",
    "adjacent": "cohere ernie4_5 ernie4_5_moe glm glm4 helium",
}
"""Models of text alone, by which channels form a pair in their code (transformers 5.23, `rotate_half` of each). Not among them
are those of which some layers have no rotary embedding, or whose configs say it in words of their own."""
_PAIRING: dict[str, Pairing] = {name: pairing for pairing, names in TEXT_MODELS.items() for name in names.split()}
_PARTIAL = {"glm", "glm4", "glm4_moe", "nemotron", "persimmon", "phi", "stablelm"}
"""Of these, class defaults rotate a part of the channels: the config must say which."""


def rotary_from_config(config: Any, *, layer_type: str | None = None, revision: str | None = None) -> RotarySpec | None:
    """The rotary embedding of a checkpoint's language model; of a layer type that has none, None.

    Of the families of the table the layout and the pairing are the family's, of models of text alone the pairing is the
    model's; theta, sections, head_dim and scaling are the config's. Both forms are read: `rope_parameters` (transformers 5) and
    `rope_theta` with `rope_scaling` (4).

    Args:
        config: a Hugging Face config object, its dict, or the path of a `config.json` or of the folder that holds it; the whole
            config, or of models of text alone the text config.
        layer_type: of models whose layers differ, which: "full_attention", "sliding_attention", ...
        revision: whose rule, for example "transformers-5.23"; None for the reference.

    Raises:
        ValueError: an unknown model or scaling, keys that are missing, unknown, or that the model's code does not read, and
            combinations that upstreams ignore or change silently.

    Example:
        >>> from mmrope.encodings import rotary_from_config
        >>> rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
        >>> spec = rotary_from_config({"model_type": "llama", "head_dim": 128, "rope_parameters": rope})
        >>> spec
        RotarySpec(head_dim 128, 64 pairs: t 64; pairing half; PI(factor=4.0))
    """
    text = config_dict(config)
    stated = str(text.get("model_type"))
    family = None if stated in _PAIRING else family_of(stated, revision)
    for part in ("thinker_config", "text_config"):
        text = {**text, **(text.get(part) or {})}
    name = str(family or stated)
    rope = _rope_parameters(text, layer_type, name)
    if rope is None:
        return None
    head_dim = _head_dim(text, layer_type, name)
    scaling = _scaling(rope, text, name)
    fraction = rope.get("partial_rotary_factor")
    partial = stated in _PARTIAL if family is None else family.rotary.rotary_fraction != 1
    if partial and fraction is None:
        released = f"; released checkpoints have {family.rotary.rotary_fraction}" if family else ""
        raise ValueError(f"{name}: the config has no partial_rotary_factor, and class defaults differ between models{released}")
    if family is None and {"mrope_section", "mrope_interleaved", "xdrope_section"} & set(rope):
        raise ValueError(f"{name} is a model of text alone, whose code does not read mrope_section: correct the config")
    # proportional rotary turns a fraction of the pairs by itself
    rotary_dim = head_dim if isinstance(scaling, Proportional) or fraction is None else int(head_dim * float(fraction))
    theta = rope["rope_theta"]
    if family is None:
        spec = RotarySpec.rope(head_dim, theta=theta, rotary_dim=rotary_dim, pairing=_PAIRING[stated])
    else:
        spec = _of_family(family, rope, head_dim, rotary_dim, theta)
    # DeepSeek's factor of the scores, which no model that is read here has in its code
    return spec if scaling is None else replace(spec.scaled(scaling), score_factor=1.0)


def _of_family(family: Family, rope: Mapping[str, Any], head_dim: int, rotary_dim: int, theta: float) -> RotarySpec:
    if bool(rope.get("mrope_interleaved", family.rotary.layout == "interleaved")) != (family.rotary.layout == "interleaved"):
        raise ValueError(
            f"{family}: the config says mrope_interleaved={rope['mrope_interleaved']}, but the model's code always rotates "
            f"{family.rotary.layout} and does not read the flag; correct the config"
        )
    order = family.rotary.section_order or family.axes
    sections = rope.get("mrope_section", rope.get("xdrope_section"))
    if sections is None or len(sections) != len(order):
        released = [family.rotary.sections[family.axes.index(axis)] for axis in order] if family.rotary.sections else "none"
        raise ValueError(
            f"{family}: the config has "
            + ("no mrope_section" if sections is None else f"mrope_section {sections}, not one number each for {order}")
            + f"; released checkpoints have {released}"
        )
    return RotarySpec.mrope(
        head_dim,
        theta=theta,
        sections=[sections[order.index(axis)] for axis in family.axes],
        layout=family.rotary.layout,
        axes=family.axes,
        rotary_dim=rotary_dim,
        pairing=family.rotary.pairing,
    )


def _head_dim(text: Mapping[str, Any], layer_type: str | None, name: str) -> int:
    # Gemma 4's full attention has heads of its own size
    key = "global_head_dim" if layer_type == "full_attention" and text.get("global_head_dim") else "head_dim"
    by_layer = {int(n): part["head_dim"] for n, part in (text.get("per_layer_config") or {}).items() if "head_dim" in part}
    if by_layer:  # Gemma 4 of transformers 5: by number of layer
        types = text.get("layer_types") or []
        sizes = {by_layer.get(n, text.get("head_dim")) for n, kind in enumerate(types) if kind == layer_type}
        if len(sizes) != 1 or None in sizes:
            raise ValueError(
                f"{name}: layers of type {layer_type!r} have heads of {sorted(map(str, sizes))} channels, not of one size"
            )
        [size] = sizes
        return int(size or 0)
    if text.get(key):
        return text[key]
    if text.get("hidden_size") is None or not text.get("num_attention_heads"):
        raise ValueError(f"{name}: the config has neither head_dim nor hidden_size and num_attention_heads")
    return text["hidden_size"] // text["num_attention_heads"]


# --- rope parameters --------------------------------------------------------------------------------------------------

_GENERAL = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved", "xdrope_section"}
_OF_TYPE: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor", "alpha", "original_max_position_embeddings"},
    "yarn": {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "truncate"}
    | {"mscale", "mscale_all_dim"},
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "longrope": {"factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"},
    "proportional": {"factor"},
}
_ALIASES = {"mrope": "default", "su": "longrope", "xdrope": "dynamic"}


def _rope_parameters(text: Mapping[str, Any], layer_type: str | None, name: str) -> dict[str, Any] | None:
    """The rope parameters of a config (of a layer type), whichever form it has, with theta and `rope_type` in them."""
    new, old = text.get("rope_parameters"), text.get("rope_scaling")
    if new and old and new != old:
        raise ValueError(f"{name}: the config has rope_parameters {new} and rope_scaling {old}, which differ: leave one out")
    rope: Any = new or old or {}
    if text.get("rope_local_base_freq") is not None:  # Gemma 3, transformers 4
        local = {"rope_type": "default", "rope_theta": text["rope_local_base_freq"]}
        rope = {"full_attention": {"rope_theta": text.get("rope_theta"), **rope}, "sliding_attention": local}
    types = [key for key, value in rope.items() if isinstance(value, Mapping)]
    if types:
        if layer_type not in rope:
            raise ValueError(
                f"{name}: its layers differ, {', '.join(map(repr, rope))}: say which by layer_type"
                + (f", not {layer_type!r}" if layer_type else "")
            )
        rope = rope[layer_type]
    elif layer_type is not None:
        raise ValueError(f"{name}: the config says nothing by type of layer; leave layer_type={layer_type!r} out")
    if rope is None:
        return None
    rope = dict(rope)
    if not types:
        for key in ("rope_theta", "partial_rotary_factor"):
            if text.get(key) is not None and rope.setdefault(key, text[key]) != text[key]:
                raise ValueError(f"{name}: the config has {key} {text[key]}, and {rope[key]} in {rope}: correct one of them")
    if rope.get("rope_theta") is None:
        raise ValueError(f"{name}: the config has no rope_theta")
    for key, value in rope.items():
        numbers = key not in ("rope_type", "type", "truncate", "mrope_interleaved") and not isinstance(value, (list, tuple))
        if numbers and value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"{name}: rope parameters have {key} {value!r}, which is no number")
        if key in ("truncate", "mrope_interleaved") and value is not None and not isinstance(value, bool):
            raise ValueError(f"{name}: rope parameters have {key} {value!r}, which is neither true nor false")
    stated = {_ALIASES.get(str(rope[key]), str(rope[key])) for key in ("rope_type", "type") if rope.get(key) is not None}
    if len(stated) > 1 or not stated <= set(_OF_TYPE):
        raise ValueError(
            f"{name}: rope parameters have type {', '.join(sorted(stated))} in {rope}; known are {', '.join(_OF_TYPE)}"
        )
    rope["rope_type"] = stated.pop() if stated else "default"
    known = _OF_TYPE[rope["rope_type"]]
    rope = {key: value for key, value in rope.items() if value is not None}
    unknown = sorted(set(rope) - _GENERAL - known)
    if unknown:
        raise ValueError(
            f"{name}: rope parameters have keys {unknown} that type {rope['rope_type']!r} does not read, in {rope}: correct "
            "the config. Nothing was ignored"
        )
    return rope


def _scaling(rope: Mapping[str, Any], text: Mapping[str, Any], name: str) -> Scaling | None:
    kind, longest = rope["rope_type"], text.get("max_position_embeddings")
    original = rope.get("original_max_position_embeddings", text.get("original_max_position_embeddings"))

    def need(key: str, value: Any = None) -> Any:
        value = rope.get(key) if value is None else value
        if value is None:
            raise ValueError(f"{name}: rope type {kind!r} needs {key}, which the config does not state")
        return value

    if kind == "default":
        return None
    if kind == "linear":
        return PI(need("factor"))
    if kind == "proportional":
        return Proportional(rope.get("partial_rotary_factor", 1.0), rope.get("factor", 1.0))
    if kind == "dynamic":
        if rope.get("alpha"):
            if rope.get("factor", 1) != 1:
                raise ValueError(f"{name}: alpha {rope['alpha']} and factor {rope['factor']} exclude each other")
            return NTK(rope["alpha"])
        if original is not None and longest is not None and original != longest:
            raise ValueError(
                f"{name}: dynamic scaling states original_max_position_embeddings {original}, but upstreams scale from "
                f"max_position_embeddings {longest}; make them equal"
            )
        return DynamicNTK(need("max_position_embeddings", longest), need("factor"))
    original = need("original_max_position_embeddings", original)
    if kind == "llama3":
        return Llama3(need("factor"), original, need("low_freq_factor"), need("high_freq_factor"))
    factor = rope.get("factor")
    if factor is None:
        factor = need("max_position_embeddings", longest) / original
    if kind == "longrope":
        lists = need("short_factor"), need("long_factor")
        return LongRoPE(*lists, original, factor, stated_attention_factor=rope.get("attention_factor"))
    options = {key: rope[key] for key in ("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim") if key in rope}
    return YaRN(factor, original, stated_attention_factor=rope.get("attention_factor"), **options)
