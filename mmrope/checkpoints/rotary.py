"""What a checkpoint's config says of its rotary embedding, scaling included. What cannot be read is refused."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmrope.checkpoints.configs import config_dict, family_of, name_of, of_file
from mmrope.checkpoints.layers import STILL, layer_of
from mmrope.checkpoints.models import ALIKE, MADE_FROM, MODELS, PARTS, TEXT_PARTS, UNREAD, WITHOUT, Model, text_part
from mmrope.checkpoints.parameters import SECTIONS, class_default, rope_parameters, scaling_of
from mmrope.checkpoints.stated import Stated
from mmrope.encodings.scaling import Proportional, Temperature
from mmrope.encodings.spec import RotarySpec
from mmrope.positions.families import FAMILIES
from mmrope.positions.rules import Family
from mmrope.records import is_number, shown


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
    text, spec = as_module(config, layer_type=layer_type, layer=layer, revision=revision)
    if text.model.backwards and spec is not None and spec.spectra is not None:
        spec = replace(spec, inv_freq=-spec.inv_freq, spectra=replace(spec.spectra, backwards=True))
    for key, value in text.left_out.items():
        warnings.warn(
            f"{text.name}: the config has no {key} and leaves it to the class default, {value} in {MADE_FROM}; that of another "
            f"version may differ: state {key} in the config",
            UserWarning,
            stacklevel=2,
        )
    return spec


def as_module(
    config: Any, *, layer_type: str | None = None, layer: int | None = None, revision: str | None = None
) -> tuple[Stated, RotarySpec | None]:
    """What a config says, and what the rotary module of its model computes of it; where the model's code turns backwards by
    what the module has, that is not how it rotates."""
    with of_file(config):
        text, family = _language_model(config_dict(config), revision)
        layer_type = layer_of(text, layer_type, layer)
        if layer_type == STILL:
            return text, None
        return text, _of_model(text, layer_type) if family is None else _of_family(text, family, layer_type)


def _language_model(config: dict[str, Any], revision: str | None) -> tuple[Stated, Family | None]:
    """What a config says of its language model, and that model's family if it has one."""
    stated = str(config.get("model_type"))
    known = ALIKE.get(stated, stated)
    of = name_of(known) or name_of(known.removesuffix("_text"))
    if of and (known not in MODELS or MODELS[known].axes):
        family, text = family_of(known, revision), dict(config)
        for part in ("thinker_config" if "thinker_config" in text else "talker_config", "text_config"):
            text = {**text, **Stated(text, stated, None).part(part)}
        record = MODELS.get(str(text.get("model_type"))) or MODELS.get(f"{family.name}_text")
        return Stated(text, str(family), record), family
    if known in MODELS and not MODELS[known].axes:
        return Stated(config, stated, MODELS[known]), None
    inner = text_part(config)
    if inner is not None:
        return _language_model(inner[1], revision)
    if stated in PARTS and (of_text := next((PARTS[stated][key] for key in TEXT_PARTS if key in PARTS[stated]), None)):
        return _language_model({**config, "model_type": of_text}, revision)  # flat, as Fuyu's
    if stated in WITHOUT:
        return Stated(config, stated, Model(source="", pairing="half", still_if={"model_type": (stated,)})), None
    why = UNREAD.get(stated)
    near = "".join(f" ({name!r} is)" for name in difflib.get_close_matches(stated, [*MODELS, *FAMILIES], n=1))
    raise ValueError(
        f"config has model_type {stated!r}, which "
        + (f"is not read: {why}. " if why else f"no model of text or audio of {MADE_FROM} read here has, nor a family{near}. ")
        + "Pass the part of the config that is the language model, with its own model_type (it is looked for in "
        f"{', '.join(TEXT_PARTS)}), or state a RotarySpec"
    )


# --- families ---------------------------------------------------------------------------------------------------------


def _fraction(text: Stated, rope: Mapping[str, Any]) -> float | None:
    """How much of a head is rotated, where it is stated."""
    stated = rope.get("partial_rotary_factor")
    if stated is not None and not (is_number(stated) and 0 <= stated <= 1):
        raise text.wrong(f"the config has partial_rotary_factor {shown(stated)}, which is no share of a head's channels")
    return stated


def _of_family(text: Stated, family: Family, layer_type: str | None) -> RotarySpec | None:
    facts, rope = family.rotary, rope_parameters(text, layer_type)
    if rope is None:
        return None
    # of latent attention, what is rotated is apart
    head_dim = text.size("qk_rope_head_dim") if text.get("qk_rope_head_dim") is not None else _head_dim(text, layer_type)
    fraction = _fraction(text, rope)
    if facts.rotary_fraction != 1 and fraction is None:
        raise text.wrong(
            "the config has no partial_rotary_factor, and class defaults differ between models; released checkpoints "
            f"have {facts.rotary_fraction}"
        )
    interleaved = rope.get("mrope_interleaved", rope.get("interleaved"))
    if bool(facts.layout == "interleaved" if interleaved is None else interleaved) != (facts.layout == "interleaved"):
        raise text.wrong(
            f"the config says mrope_interleaved={interleaved}, but the model's code always rotates "
            f"{facts.layout} and does not read the flag; correct the config"
        )
    order, sections = facts.section_order or family.axes, rope.get("mrope_section", rope.get("xdrope_section"))
    width = int(head_dim * float(fraction or 1))
    if len(order) == 1:
        sections = [width // 2]
    if sections is None and text.get("freq_allocation") is not None:  # ERNIE's own config: pairs of t, h and w share the rest
        of_t = text.count("freq_allocation") or 0
        of_h = (width // 2 - of_t) // 2
        sections = [{"t": of_t, "h": of_h, "w": width // 2 - of_t - of_h}[axis] for axis in order]
    if sections is None or len(sections) != len(order):
        released = [facts.sections[family.axes.index(axis)] for axis in order] if facts.sections else "none"
        raise text.wrong(
            "the config has "
            + ("no mrope_section" if sections is None else f"mrope_section {sections}, not one number each for {order}")
            + f"; released checkpoints have {released}"
        )
    by_axis = [sections[order.index(axis)] for axis in family.axes]
    how = {"layout": facts.layout, "axes": family.axes, "rotary_dim": width, "pairing": facts.pairing}
    try:
        spec = RotarySpec.mrope(head_dim, theta=rope["rope_theta"], sections=by_axis, **how)
    except ValueError as error:
        of = "" if len(order) == 1 else f" and mrope_section {shown(sections)}"
        raise text.wrong(
            f"with rope_theta {shown(rope['rope_theta'])}, a head of {shown(width)} channels{of}: {error}"
        ) from error
    scaling = scaling_of(text, rope)
    return spec if scaling is None else replace(spec.scaled(scaling), score_factor=1.0)


# --- models of text and audio -----------------------------------------------------------------------------------------


def _of_model(text: Stated, layer_type: str | None) -> RotarySpec | None:
    model, rope = text.model, rope_parameters(text, layer_type)
    if rope is None:
        return None
    if SECTIONS & set(rope):
        raise text.wrong("a model of text alone, whose code does not read mrope_section: correct the config")
    scaling, width = scaling_of(text, rope), _width(text, layer_type)
    if model.width == "apart" or (scaling is None and not model.partial):
        fraction = None  # whole heads, whatever the config says; or a part that is apart already
    else:
        fraction = _fraction(text, rope)
        of_class = class_default(text, layer_type).get("partial_rotary_factor", 1)
        if fraction is None and model.partial and of_class != 1:
            fraction = text.default("partial_rotary_factor", of_class)
    if fraction is not None and not model.partial and not isinstance(scaling, Proportional) and float(fraction) != 1:
        raise text.wrong(
            f"the config has partial_rotary_factor {fraction} with a scaling, for which its code makes frequencies of "
            "a part and rotates whole heads by them, which fails: delete the key"
        )
    # proportional rotary turns a fraction of the pairs by itself
    rotary_dim = width if isinstance(scaling, Proportional) or fraction is None else int(width * float(fraction))
    if "rotary_dim" in model.reads and (fraction is None or text.get("rotary_dim") is not None):
        rotary_dim = text.size("rotary_dim") if "rotary_dim" in model.sizes else text.count("rotary_dim") or rotary_dim
    pairing = model.pairing
    if model.interleave is not None:
        pairing = "adjacent" if text.get("rope_interleave", model.interleave) else "half"
    if model.width == "apart" and not text.get("use_mla", True):
        pairing = "half"  # DeepSeek-VL2 and -OCR: whole heads of a Llama
    if rotary_dim < 2:
        raise text.wrong(f"the config leaves {rotary_dim} channels of a head to rotate")
    spec = RotarySpec.rope(width, theta=rope["rope_theta"], rotary_dim=rotary_dim, pairing=pairing)
    if scaling is not None:
        scaled = spec.scaled(scaling)
        spec = scaled if model.score else replace(scaled, score_factor=1.0)
    if model.temperature and rope.get("llama_4_scaling_beta") is not None:
        floor = rope.get("original_max_position_embeddings") or text.size("max_position_embeddings")
        spec = replace(spec, temperature=Temperature(rope["llama_4_scaling_beta"], int(floor)))
    return spec


def _width(text: Stated, layer_type: str | None) -> int:
    """The channels of a head, or of the part of it that is rotated apart."""
    width = text.model.width
    if width == "apart" and text.get("use_mla", True):
        return text.size("qk_rope_head_dim")
    if width == "hidden" or (width == "twice" and "head_dim" not in text):
        return (text.size("hidden_size") * (1 if width == "hidden" else 2)) // text.size("num_attention_heads")
    return _head_dim(text, layer_type)


def _head_dim(text: Stated, layer_type: str | None) -> int:
    # Gemma 4's full attention has heads of its own size
    of_full = text.get("global_head_dim") or text.model.sizes.get("global_head_dim")
    key = "global_head_dim" if layer_type == "full_attention" and of_full else "head_dim"
    layers = text.part("per_layer_config")
    by_layer = {int(n): part["head_dim"] for n, part in layers.items() if isinstance(part, Mapping) and "head_dim" in part}
    if by_layer:  # Gemma 4 of transformers 5: by number of layer
        types = text.get("layer_types") or []
        sizes = {by_layer.get(n, text.get("head_dim")) for n, kind in enumerate(types) if kind == layer_type}
        if len(sizes) != 1 or None in sizes:
            raise text.wrong(f"layers of type {layer_type!r} have heads of {sorted(map(str, sizes))} channels, not of one size")
        text["head_dim"], key = sizes.pop(), "head_dim"
    stated = text.count(key)
    if stated is not None:
        return stated
    if key == "global_head_dim":
        return text.size(key)
    if text.model.head_dim is not None and not layers and "head_dim" not in text:  # null is hidden over heads
        return text.default("head_dim", text.model.head_dim)
    return text.size("hidden_size") // text.size("num_attention_heads")
