"""The models of text and audio that are read, as data: models.json, made by scripts/read_transformers.py, which runs each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from mmrope.positions.rules import Pairing


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a model's code does with the rope of its config.

    Example:
        >>> from mmrope.checkpoints import MODELS
        >>> MODELS["gemma3_text"].pairing, MODELS["gemma3_text"].layers
        ('half', ('full_attention', 'sliding_attention'))
    """

    source: str
    """Its folder of transformers' models/, and its class."""
    pairing: Pairing
    width: Literal["head", "hidden", "twice", "apart"] = "head"
    """What the width of its rotation is: head_dim, or hidden_size over num_attention_heads where there is none; the latter
    alone; head_dim, or twice the latter; or qk_rope_head_dim."""
    head_dim: int | None = None
    """Where a config leaves it out; None where it then is hidden_size over num_attention_heads."""
    partial: bool = False
    """Whether it reads partial_rotary_factor; the code of the others rotates whole heads, whatever the config says."""
    interleave: bool | None = None
    """Where the config says by `rope_interleave` whether neighbours are pairs: what it is by default."""
    layers: tuple[str, ...] = ()
    """The types of its layers that have frequencies of their own."""
    every: Mapping[str, Any] = field(default_factory=dict)
    """How its code lays out two `types` of layers where a config does not list them: every n-th, at a place (`laid_out`), is of
    the second type; n is what the config says at `key`, if there is one."""
    still: tuple[str, ...] = ()
    """The types of its layers that do not rotate."""
    still_if: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys of a config -> the values by which no layer rotates (None: where it is missing)."""
    no_rope_layers: bool = False
    """Whether its config lists, by layer, which rotate."""
    layer_theta: Literal["", "theta", "rotates"] = ""
    """What the numbers of layer_rope_theta are, of which 0 is no rotation: each layer's theta, or only whether it rotates."""
    backwards: bool = False
    """Whether it turns pairs by the negative angle."""
    score: bool = False
    """Whether its attention multiplies scores by YaRN's second factor."""
    temperature: bool = False
    """Whether its attention multiplies queries by a temperature (`llama_4_scaling_beta`)."""
    reads: tuple[str, ...] = ()
    """Keys that its code, or its authors', reads besides: "rotary_dim" of a config, channels that rotate; "sliding_window",
    without which still layers rotate, too; "prefix_dense_sliding_window_pattern", by which still layers of dense blocks do;
    "rope_theta" of rope parameters, without which no layer rotates; "mscale" of them, LongRoPE's factor; "alpha", by which
    theta is stretched."""
    ignores: tuple[str, ...] = ()
    """Forms of configs that its class does not read: "rope_theta" by itself, without rope parameters; "rope_scaling"."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What its config calls sizes, theta and the like otherwise ("a.b": in its part a); `local_theta` is that of layers with a
    window."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """The class defaults of sizes and lengths."""
    rope: Mapping[str, Any] = field(default_factory=dict)
    """The class default of its rope parameters, by type of layer where there are `layers`."""
    axes: str = ""
    """The axes of an M-RoPE; empty for one position a token."""

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> Model:
        stated = {key: tuple(value) if isinstance(value, list) else value for key, value in stated.items()}
        stated["still_if"] = {key: tuple(values) for key, values in stated.get("still_if", {}).items()}
        return cls(source=stated.pop("class"), **stated)


_TABLE = json.loads(Path(__file__).with_name("models.json").read_text(encoding="utf-8"))
MADE_FROM: str = _TABLE["made_from"]
MODELS: Mapping[str, Model] = MappingProxyType({name: Model.of(stated) for name, stated in _TABLE["models"].items()})
"""By the `model_type` of their configs."""
PARTS: Mapping[str, Mapping[str, str]] = MappingProxyType(_TABLE["parts"])
TEXT_PARTS = (
    *("text_config", "llm_config", "language_config", "thinker_config", "vlm_config", "talker_config", "decoder_config"),
    *("llm", "language_model", "decoder"),
)
UNREAD: Mapping[str, str] = MappingProxyType(_TABLE["unread"])
"""Model types that rotate and are not read -> why."""
WITHOUT: frozenset[str] = frozenset(_TABLE["without"])
"""Model types whose code rotates nothing."""
ALIKE: Mapping[str, str] = MappingProxyType(_TABLE["alike"])
"""Model types of authors' own code -> the model type that rotates as they do."""


def text_part(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The part of a composite config that is a language model, and its key; its model type is its class' if it states none."""
    for key in TEXT_PARTS:
        if isinstance(part := config.get(key), Mapping):
            named = {**part, "model_type": part.get("model_type") or PARTS.get(str(config.get("model_type")), {}).get(key)}
            if named["model_type"] is not None or text_part(named):
                return key, named
    return None
