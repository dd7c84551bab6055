"""What a checkpoint's config says of its rotary embedding, scaling included. What cannot be read is refused."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from mmrope.checkpoints.configs import config_dict, family_of, name_of, unknown
from mmrope.checkpoints.models import ALIKE, MADE_FROM, MODELS, TEXT_PARTS, Model, text_part
from mmrope.encodings.scaling import NTK, PI, DynamicNTK, Llama3, LongRoPE, Proportional, Scaling, Temperature, YaRN
from mmrope.encodings.spec import RotarySpec
from mmrope.positions.families import FAMILIES
from mmrope.positions.rules import Family


def rotary_from_config(
    config: Any, *, layer_type: str | None = None, layer: int | None = None, revision: str | None = None
) -> RotarySpec | None:
    """The rotary embedding of a checkpoint's language model; of a layer that has none, None.

    Of the families of the table the layout and the pairing are the family's; of the models of text and audio in `MODELS` what
    their code does with the config is data, made by running it (scripts/read_transformers.py). Both forms are read:
    `rope_parameters` (transformers 5) and `rope_theta` with `rope_scaling` (4). Of a composite config the part that is a
    language model is found by itself.

    Args:
        config: a Hugging Face config object, its dict, or the path of a `config.json` or of the folder that holds it.
        layer_type: of models whose layers differ, which: "full_attention", "sliding_attention", ...
        layer: the same by the number of the layer, where the config lists the types of its layers, or which layers rotate.
        revision: of families, whose rule, for example "transformers-5.23"; None for the reference.

    Raises:
        ValueError: an unknown model or scaling, keys that are missing, unknown or change the numbers where the model's code
            does not read them, and combinations that upstreams ignore or change silently.

    Warns:
        UserWarning: what the config leaves to class defaults, which are taken then.

    Example:
        >>> from mmrope import rotary_from_config
        >>> rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
        >>> spec = rotary_from_config({"model_type": "llama", "head_dim": 128, "rope_parameters": rope})
        >>> spec
        RotarySpec(head_dim 128, 64 pairs: t 64; pairing half; PI(factor=4.0))
    """
    text, model, name = _language_model(config_dict(config), revision)
    layer_type = _layer_type(text, model, name, layer_type, layer)
    if layer_type == _STILL:
        return None
    if isinstance(model, Family):
        return _of_family(model, text, layer_type)
    return _of_model(model, text, layer_type, name)


def _language_model(config: dict[str, Any], revision: str | None) -> tuple[dict[str, Any], Family | Model, str]:
    """What a config says of its language model, that model's family or record, and its name."""
    stated = str(config.get("model_type"))
    known = ALIKE.get(stated, stated)
    of = name_of(known) or name_of(known.removesuffix("_text"))
    if of and (known not in MODELS or MODELS[known].axes):
        family, text = family_of(known, revision), dict(config)
        for part in ("thinker_config" if "thinker_config" in text else "talker_config", "text_config"):
            text = {**text, **(text.get(part) or {})}
        return text, family, str(family)
    if known in MODELS and not MODELS[known].axes:
        return config, MODELS[known], stated
    inner = text_part(config)
    if inner is not None:
        return _language_model(inner[1], revision)
    near = "".join(f" ({name!r} is)" for name in difflib.get_close_matches(stated, [*MODELS, *FAMILIES], n=1))
    raise ValueError(
        unknown(stated, config).partition("; known are")[0]
        + f": no model of text or audio of {MADE_FROM} or row of mmrope.FAMILIES is called so{near}. Pass the part of the "
        f"config that is the language model, with its own model_type (it is looked for in {', '.join(TEXT_PARTS)}), or state a "
        "RotarySpec"
    )


# --- layers -----------------------------------------------------------------------------------------------------------

_STILL = "(a layer without rotation)"
_WITHOUT_ATTENTION = ("linear_attention", "conv", "mamba", "mamba2", "recurrent")
_NOTHING_ROTATES = {"alibi": True, "position_embedding_type": "nope", "use_mem_rope": False}


def _layer_type(
    text: Mapping[str, Any], model: Family | Model, name: str, layer_type: str | None, layer: int | None
) -> str | None:
    """The type of the layer that is asked for; `_STILL` if it does not rotate."""
    if layer is not None:
        if layer_type is not None:
            raise ValueError(f"{name}: state layer_type or layer, not both")
        if isinstance(model, Model) and model.no_rope_layers:
            rotates = text.get("no_rope_layers") or [(n + 1) % _interval(text) != 0 for n in range(_count(text, layer))]
            if not 0 <= layer < len(rotates):
                raise ValueError(f"{name} has {len(rotates)} layers, from 0 up, not layer {layer}")
            return None if rotates[layer] else _STILL
        types = text.get("layer_types")
        if not types:
            if isinstance(model, Model) and (model.layers or model.still):
                raise ValueError(f"{name}: the config has no layer_types; state layer_type instead of layer={layer}")
            return None
        if not 0 <= layer < len(types):
            raise ValueError(f"{name} has {len(types)} layers, from 0 up, not layer {layer}")
        layer_type = types[layer]
    if layer_type in _WITHOUT_ATTENTION:
        return _STILL
    read = model.reads if isinstance(model, Model) else ()
    if any(key in read and text.get(key) == value for key, value in _NOTHING_ROTATES.items()):
        return _STILL
    if isinstance(model, Model) and len(set(text.get("layer_rope_theta") or ())) > 1:
        raise ValueError(
            f"{name}: the config has layer_rope_theta, a theta for each layer, which is not read: make a spec for each"
        )
    if isinstance(model, Model) and layer_type in model.still:
        return None if "sliding_window" in read and text.get("sliding_window", 1) is None else _STILL
    return layer_type


def _interval(text: Mapping[str, Any]) -> int:
    return text.get("no_rope_layer_interval") or 4


def _count(text: Mapping[str, Any], layer: int) -> int:
    return text.get("num_hidden_layers") or layer + 1


# --- families ---------------------------------------------------------------------------------------------------------


def _of_family(family: Family, text: dict[str, Any], layer_type: str | None) -> RotarySpec | None:
    name, facts = str(family), family.rotary
    rope = _rope_parameters(text, layer_type, name, theta=None)
    if rope is None:
        return None
    head_dim = _head_dim(text, layer_type, name)
    fraction = rope.get("partial_rotary_factor")
    if facts.rotary_fraction != 1 and fraction is None:
        raise ValueError(
            f"{name}: the config has no partial_rotary_factor, and class defaults differ between models; released checkpoints "
            f"have {facts.rotary_fraction}"
        )
    interleaved = rope.get("mrope_interleaved", rope.get("interleaved"))
    if bool(facts.layout == "interleaved" if interleaved is None else interleaved) != (facts.layout == "interleaved"):
        raise ValueError(
            f"{family}: the config says mrope_interleaved={interleaved}, but the model's code always rotates "
            f"{facts.layout} and does not read the flag; correct the config"
        )
    order, sections = facts.section_order or family.axes, rope.get("mrope_section", rope.get("xdrope_section"))
    width = int(head_dim * float(fraction or 1))
    if sections is None and text.get("freq_allocation") is not None:  # ERNIE's own config: pairs of t, h and w share the rest
        of_t = text["freq_allocation"]
        of_h = (width // 2 - of_t) // 2
        sections = [{"t": of_t, "h": of_h, "w": width // 2 - of_t - of_h}[axis] for axis in order]
    if sections is None or len(sections) != len(order):
        released = [facts.sections[family.axes.index(axis)] for axis in order] if facts.sections else "none"
        raise ValueError(
            f"{family}: the config has "
            + ("no mrope_section" if sections is None else f"mrope_section {sections}, not one number each for {order}")
            + f"; released checkpoints have {released}"
        )
    spec = RotarySpec.mrope(
        head_dim,
        theta=rope["rope_theta"],
        sections=[sections[order.index(axis)] for axis in family.axes],
        layout=facts.layout,
        axes=family.axes,
        rotary_dim=width,
        pairing=facts.pairing,
    )
    scaling = _scaling(rope, text, name)
    return spec if scaling is None else replace(spec.scaled(scaling), score_factor=1.0)


# --- models of text and audio -----------------------------------------------------------------------------------------


def _of_model(model: Model, text: dict[str, Any], layer_type: str | None, name: str) -> RotarySpec | None:
    if model.names:
        text = {**text, **{key: text[theirs] for key, theirs in model.names.items() if theirs in text}}
    default = _class_default(model, layer_type)
    rope = _rope_parameters(
        text,
        layer_type,
        name,
        theta=default.get("rope_theta"),
        layers=model.layers,
        defaults=model.rope if model.layers else {},
    )
    if rope is None:
        return None
    if _SECTIONS & set(rope):
        raise ValueError(f"{name} is a model of text alone, whose code does not read mrope_section: correct the config")
    scaling, width = _scaling(rope, text, name, mscale="mscale" in model.reads), _width(model, text, layer_type, name)
    if model.width == "apart" or (scaling is None and not model.partial):
        fraction = None  # whole heads, whatever the config says; or a part that is apart already
    else:
        fraction = rope.get("partial_rotary_factor")
        if fraction is None and model.partial and default.get("partial_rotary_factor", 1) != 1:
            fraction = default["partial_rotary_factor"]
            _warn(name, "partial_rotary_factor", fraction)
    if fraction is not None and not model.partial and not isinstance(scaling, Proportional) and float(fraction) != 1:
        raise ValueError(
            f"{name}: the config has partial_rotary_factor {fraction} with a scaling, for which its code makes frequencies of "
            "a part and rotates whole heads by them, which fails: delete the key"
        )
    # proportional rotary turns a fraction of the pairs by itself
    rotary_dim = width if isinstance(scaling, Proportional) or fraction is None else int(width * float(fraction))
    if "rotary_dim" in model.reads and text.get("rotary_dim") is not None:
        rotary_dim = text["rotary_dim"]
    pairing = model.pairing
    if model.interleave is not None:
        pairing = "adjacent" if text.get("rope_interleave", model.interleave) else "half"
    if model.width == "apart" and not text.get("use_mla", True):
        pairing = "half"  # DeepSeek-VL2 and -OCR: whole heads of a Llama
    if rotary_dim < 2:
        raise ValueError(f"{name}: the config leaves {rotary_dim} channels of a head to rotate")
    spec = RotarySpec.rope(width, theta=rope["rope_theta"], rotary_dim=rotary_dim, pairing=pairing)
    if scaling is not None:
        scaled = spec.scaled(scaling)
        spec = scaled if model.score else replace(scaled, score_factor=1.0)
    if model.temperature and rope.get("llama_4_scaling_beta") is not None:
        floor = int(rope.get("original_max_position_embeddings") or text["max_position_embeddings"])
        spec = replace(spec, temperature=Temperature(rope["llama_4_scaling_beta"], floor))
    return spec


def _class_default(model: Model, layer_type: str | None) -> Mapping[str, Any]:
    if not model.layers:
        return model.rope
    return model.rope.get(layer_type or "") or {}


def _warn(name: str, key: str, value: Any) -> None:
    warnings.warn(
        f"{name}: the config has no {key} and leaves it to the class default, {value} in {MADE_FROM}; that of another version "
        f"may differ: state {key} in the config",
        UserWarning,
        stacklevel=5,
    )


def _width(model: Model, text: Mapping[str, Any], layer_type: str | None, name: str) -> int:
    """The channels of a head, or of the part of it that is rotated apart."""
    if model.width == "rotary_dim":
        return _need(text, "rotary_dim", name)
    if model.width == "apart" and text.get("use_mla", True):
        return _need(text, "qk_rope_head_dim", name)
    if model.width == "hidden":
        text = {key: value for key, value in text.items() if key != "head_dim"}
    if model.head_dim is not None and text.get("head_dim") is None and not text.get("per_layer_config"):
        _warn(name, "head_dim", model.head_dim)
        return model.head_dim
    return _head_dim(text, layer_type, name)


def _need(text: Mapping[str, Any], key: str, name: str) -> int:
    if text.get(key) is None:
        raise ValueError(f"{name}: the config has no {key}, which is the width of its rotation")
    return _channels(text[key], key, name)


def _channels(value: Any, key: str, name: str) -> int:
    """A number of channels or heads."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: the config has {key} {value!r}, which is no number of channels or heads")
    return value


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
    if text.get(key) is not None:
        return _channels(text[key], key, name)
    if text.get("hidden_size") is None or not text.get("num_attention_heads"):
        raise ValueError(f"{name}: the config has neither head_dim nor hidden_size and num_attention_heads")
    hidden, heads = (_channels(text[key], key, name) for key in ("hidden_size", "num_attention_heads"))
    return hidden // heads


# --- rope parameters --------------------------------------------------------------------------------------------------

_SECTIONS = {"mrope_section", "mrope_interleaved", "xdrope_section"}
_GENERAL = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "interleaved", *_SECTIONS}
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
    "yarn": {"max_position_embeddings"},  # Ministral 3
}
_RENAMED = {"attn_factor": "attention_factor", "original_max_position_embedding": "original_max_position_embeddings"}
_ALIASES = {"mrope": "default", "su": "longrope", "xdrope": "dynamic"}
_LOCAL_THETA = ("rope_local_base_freq", "local_rope_theta", "swa_rope_theta")  # of layers with a window
_THETA = ("rope_theta", "global_rope_theta", "rotary_emb_base")
_PARTIAL = ("partial_rotary_factor", "rotary_pct", "rope_pct", "rope_percent")


def _first(text: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((text[key] for key in keys if text.get(key) is not None), None)


def _rope_parameters(
    text: Mapping[str, Any],
    layer_type: str | None,
    name: str,
    *,
    theta: float | None,
    layers: tuple[str, ...] = (),
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any] | None:
    """The rope parameters of a config (of a layer type), whichever form it has, with theta and `rope_type` in them.

    Args:
        theta: the class default, for configs that leave it out.
        layers: the types of layers that the model tells apart; `defaults` are their class defaults.
    """
    new, old = text.get("rope_parameters"), text.get("rope_scaling")
    if new and old and new != old:
        raise ValueError(f"{name}: the config has rope_parameters {new} and rope_scaling {old}, which differ: leave one out")
    rope: Any = new or old or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"{name}: rope parameters must be a dict, got {rope!r}")
    types = [key for key, value in rope.items() if isinstance(value, Mapping)]
    types = types and list(rope)
    local = _first(text, _LOCAL_THETA)
    if layers or types or local is not None:
        known = types or layers or ("full_attention", "sliding_attention")
        if layer_type not in known:
            raise ValueError(
                f"{name}: its layers differ, {', '.join(map(repr, known))}: say which by layer_type"
                + (f", not {layer_type!r}" if layer_type else "")
            )
    elif layer_type is not None and layer_type not in (text.get("layer_types") or ()):
        raise ValueError(f"{name}: the config says nothing by type of layer; leave layer_type={layer_type!r} out")
    if types:
        rope = rope[layer_type]
        if rope is None:
            return None
        rope = dict(rope)
    elif layers or local is not None:  # one form for all layers: its scaling is of those that see all
        windowed = layer_type != "full_attention"
        if windowed:
            rope = {"rope_type": "default"}
            if local is not None:
                rope["rope_theta"] = local
        elif layers and not defaults.get(layer_type or ""):
            return None
        rope = dict(rope)
    else:
        rope = dict(rope)
    alike = len({part["rope_theta"] for part in defaults.values() if part}) == 1  # one theta for all types of layers
    stated = {"rope_theta": _first(text, _THETA), "partial_rotary_factor": _first(text, _PARTIAL)}
    for key, value in stated.items():
        outside_is_of_others = layers and layer_type != "full_attention" and key == "rope_theta" and not alike
        if value is None or types or outside_is_of_others:
            continue
        if rope.setdefault(key, value) != value:
            raise ValueError(f"{name}: the config has {key} {value}, and {rope[key]} in {rope}: correct one of them")
    if rope.get("rope_theta") is None:
        if theta is None:
            raise ValueError(f"{name}: the config has no rope_theta")
        rope["rope_theta"] = theta
        _warn(name, "rope_theta", theta)
    return _checked(rope, name)


def _checked(rope: dict[str, Any], name: str) -> dict[str, Any]:
    """Rope parameters whose keys and values mean something."""
    flags = ("truncate", "mrope_interleaved", "interleaved")
    for key, value in rope.items():
        numbers = key not in ("rope_type", "type", *flags) and not isinstance(value, (list, tuple))
        if numbers and value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"{name}: rope parameters have {key} {value!r}, which is no number")
        if key in flags and value is not None and not isinstance(value, bool):
            raise ValueError(f"{name}: rope parameters have {key} {value!r}, which is neither true nor false")
    stated = {_ALIASES.get(str(rope[key]), str(rope[key])) for key in ("rope_type", "type") if rope.get(key) is not None}
    if len(stated) > 1 or not stated <= set(_OF_TYPE):
        raise ValueError(
            f"{name}: rope parameters have type {', '.join(sorted(stated))} in {rope}; known are {', '.join(_OF_TYPE)}"
        )
    rope["rope_type"] = kind = stated.pop() if stated else "default"
    rope = {key: value for key, value in rope.items() if value is not None and key not in _IGNORED.get(kind, ())}
    unknown_keys = sorted(set(rope) - _GENERAL - _OF_TYPE[kind])
    if renamed := [key for key in unknown_keys if _RENAMED.get(key) in _OF_TYPE[kind]]:
        key = renamed[0]
        raise ValueError(
            f"{name}: rope parameters have {key} {rope[key]}, which no code of {MADE_FROM} reads: it goes on as if the key "
            f"were not there. Delete {key} for what it computes, or rename it to {_RENAMED[key]} for what {key} seems to say; "
            "the two differ, and who trained the model knows which"
        )
    if unknown_keys:
        raise ValueError(
            f"{name}: rope parameters have keys {unknown_keys} that type {kind!r} does not read, in {rope}: correct "
            "the config. Nothing was ignored"
        )
    return rope


def _scaling(rope: Mapping[str, Any], text: Mapping[str, Any], name: str, *, mscale: bool = False) -> Scaling | None:
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
    if original is None and rope.get("factor") is not None:
        original = longest  # as transformers has it where no original length is stated
    original = need("original_max_position_embeddings", original)
    if kind == "llama3":
        return Llama3(need("factor"), original, need("low_freq_factor"), need("high_freq_factor"))
    factor = rope.get("factor")
    if factor is None:
        factor = need("max_position_embeddings", longest) / original
    if kind == "longrope":
        stated = rope.get("attention_factor")
        if mscale and {"short_mscale", "long_mscale"} & set(rope):
            if rope.get("short_mscale") != rope.get("long_mscale"):
                raise ValueError(
                    f"{name}: short_mscale {rope.get('short_mscale')} and long_mscale {rope.get('long_mscale')} differ, and "
                    "mmrope has one factor for both lengths: make two specs"
                )
            stated = rope["short_mscale"]
        lists = need("short_factor"), need("long_factor")
        return LongRoPE(*lists, original, factor, stated_attention_factor=stated)
    options = {key: rope[key] for key in ("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim") if key in rope}
    return YaRN(factor, original, stated_attention_factor=rope.get("attention_factor"), **options)
