"""The released models that VLM runs: what their configs say of its parts, and how their weights are called.

One row a family. Sources: transformers 5.24, models/qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe: configuration_*.py for what
configs leave out, modeling_*.py; the names are those of the released safetensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from mmrope.checkpoints.configs import family_from_config
from mmrope.checkpoints.rotary import rotary_from_config
from mmrope.preprocess.patches import FAMILY_PATCHES
from mmrope.vlm.config import DecoderConfig, VisionConfig, VLMConfig
from mmrope.vlm.sampling import end_tokens, generation_config


@dataclass(frozen=True)
class Released:
    """What a family's models have in common, as fields of the parts' configs, and what their configs leave out."""

    decoder: Mapping[str, Any]
    vision: Mapping[str, Any]
    names: Mapping[str, str]
    """The checkpoint's modules -> the model's; * is a number."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Of vision_config."""
    text_defaults: Mapping[str, Any] = field(default_factory=dict)
    tied_by_text: bool = False
    """Whether text_config's tie_word_embeddings counts, too."""


def _within(theirs: str, ours: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{theirs}.{name}": f"{ours}.{called}" for name, called in names.items()}


_TEXT = {"embed_tokens": "embedding", "norm": "decoder.norm"} | _within("layers.*", "decoder.blocks.*", {
    "input_layernorm": "norm1", "post_attention_layernorm": "norm2", "self_attn.q_proj": "q", "self_attn.k_proj": "k",
    "self_attn.v_proj": "v", "self_attn.o_proj": "out", "self_attn.q_norm": "q_norm", "self_attn.k_norm": "k_norm",
    "mlp.gate_proj": "mlp.gate", "mlp.up_proj": "mlp.up", "mlp.down_proj": "mlp.down",
})  # fmt: skip
_MIXTURE = _within("layers.*.mlp", "decoder.blocks.*.mlp", {
    "gate": "router", "experts.gate_up_proj": "gate_up", "experts.down_proj": "down",
})  # fmt: skip
_BLOCKS = {"visual.patch_embed.proj": "vision.embed"} | _within("visual.blocks.*", "vision.blocks.*", {
    "norm1": "norm1", "norm2": "norm2", "attn.qkv": "qkv", "attn.proj": "out",
})  # fmt: skip
_MERGER = _within("visual.merger", "vision.merger", {"ln_q": "norm", "mlp.0": "up", "mlp.2": "down"})
_MERGER3 = {"norm": "norm", "linear_fc1": "up", "linear_fc2": "down"}
_DEEP = {
    "visual.pos_embed": "vision.table",
    **_within("visual.merger", "vision.merger", _MERGER3),
    **_within("visual.deepstack_merger_list.*", "vision.deep_mergers.*", _MERGER3),
}


def _mlp(**names: str) -> dict[str, str]:
    return _within("visual.blocks.*.mlp", "vision.blocks.*.mlp", {theirs: ours for ours, theirs in names.items()})


_CUT = {"spatial_merge_size": 2, "temporal_patch_size": 2}
_QWEN2_VL = Released(
    decoder={"qkv_bias": True, "qk_norm": False},
    vision={"norm": "layer", "patch_bias": False},
    names={**_TEXT, **_BLOCKS, **_MERGER, **_mlp(up="fc1", down="fc2")},
    defaults={**_CUT, "depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_act": "quick_gelu",
              "patch_size": 14},
    text_defaults={"rms_norm_eps": 1e-5},
    tied_by_text=True,
)  # fmt: skip
_QWEN3_VL = Released(
    decoder={"qkv_bias": False, "qk_norm": True},
    vision={"norm": "layer", "patch_bias": True},
    names={**_TEXT, **_BLOCKS, **_DEEP, **_mlp(up="linear_fc1", down="linear_fc2")},
    defaults={"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "hidden_act": "gelu_pytorch_tanh",
              "patch_size": 16, **_CUT, "num_position_embeddings": 2304, "deepstack_visual_indexes": (8, 16, 24)},
    text_defaults={"rms_norm_eps": 1e-6, "head_dim": 128},
)  # fmt: skip
RELEASED: Mapping[str, Released] = MappingProxyType({
    "qwen2_vl": _QWEN2_VL,
    "qwen2_5_vl": replace(
        _QWEN2_VL,
        vision={"norm": "rms", "patch_bias": False, "gated_mlp": True},
        names={**_TEXT, **_BLOCKS, **_MERGER, **_mlp(gate="gate_proj", up="up_proj", down="down_proj")},
        defaults={"depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "num_heads": 16, "hidden_act": "silu",
                  "patch_size": 14, **_CUT, "window_size": 112, "fullatt_block_indexes": (7, 15, 23, 31)},
    ),
    "qwen3_vl": _QWEN3_VL,
    "qwen3_vl_moe": replace(
        _QWEN3_VL,
        names={**_QWEN3_VL.names, **_MIXTURE},
        text_defaults={"rms_norm_eps": 1e-6, "head_dim": None, "mlp_only_layers": (), "decoder_sparse_step": 1},
    ),
})  # fmt: skip
"""By model_type."""

_OWN = {
    "vision.norm": "vision.merger.norm",
    **{f"vision.merge.{i}": f"vision.merger.{name}" for i, name in ((0, "up"), (2, "down"))},
    **{f"vision.blocks.*.mlp.{i}": f"vision.blocks.*.mlp.{name}" for i, name in ((0, "up"), (2, "down"))},
    **{f"decoder.blocks.*.{name}": f"decoder.blocks.*.mlp.{name}" for name in ("gate", "up", "down")},
}
"""How `VLM.save_pretrained` called them before the model knew others."""

# where a value is another, the model computes what VLM does not
_ONLY = {
    "hidden_act": ("silu",), "use_sliding_window": (False, None), "attention_bias": (False, None), "decoder_sparse_step": (1,),
    "norm_topk_prob": (True, None),
}  # fmt: skip


def released_config(values: Mapping[str, Any], generation: Mapping[str, Any] = MappingProxyType({})) -> VLMConfig:
    """The config of a model from the values of a released `config.json`, and of its `generation_config.json`.

    Raises:
        ValueError: a model type, a value or a quantization that is not known here, or a value that is missing.

    Example:
        >>> from mmrope.vlm.released import released_config
        >>> text = {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16}
        >>> text |= {"vocab_size": 151936, "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
        >>> vision = {"out_hidden_size": 2048, "hidden_size": 1280, "spatial_merge_size": 2, "tokens_per_second": 2}
        >>> released_config({"model_type": "qwen2_5_vl", "vision_config": vision, **text}).vision.full_layers
        (7, 15, 23, 31)
    """
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in RELEASED:
        raise ValueError(f"models of model_type {kind!r} are not known here; known are {', '.join(RELEASED)}")
    if values.get("quantization_config"):
        raise ValueError("the weights are quantized (quantization_config): take the unquantized ones")
    row = RELEASED[kind]
    text = {**row.text_defaults, **(values.get("text_config") or values)}
    for key, known in _ONLY.items():
        if key in text and text[key] not in known:
            raise ValueError(f"{kind} with {key} {text[key]!r} is not known here: it must be {known[0]!r}")
    if any(layer != "full_attention" for layer in text.get("layer_types") or ()):
        raise ValueError(f"{kind} with layer_types {text['layer_types']} is not known here: all must be full_attention")
    tied = values.get("tie_word_embeddings", False) or (row.tied_by_text and text.get("tie_word_embeddings", False))
    try:
        decoder = DecoderConfig(**row.decoder, **_decoder(text), tie_word_embeddings=bool(tied))
        vision = _vision(kind, {**row.defaults, **values["vision_config"]}, decoder.hidden_size)
    except KeyError as error:
        raise ValueError(f"the config of a {kind} lacks {error}") from None
    rotary = rotary_from_config(dict(values))
    assert rotary is not None
    stated = {key: value for part in (text, values, generation) for key, value in part.items() if value is not None}
    ends = end_tokens(stated.get("eos_token_id"))
    return VLMConfig(
        vision=VisionConfig(**row.vision, **vision),
        decoder=decoder,
        rotary=rotary,
        family=family_from_config(dict(values)),
        eos_token_id=ends,
        pad_token_id=stated.get("pad_token_id", ends[0] if ends else 0),
        generation=generation_config(generation),
    )


def _decoder(text: Mapping[str, Any]) -> dict[str, Any]:
    heads, experts = text["num_attention_heads"], {}
    if count := text.get("num_experts", text.get("num_local_experts")):  # the second since transformers 5.22
        experts = {"num_experts": count, "mlp_only_layers": tuple(text["mlp_only_layers"] or ())}
        experts |= {key: text[key] for key in ("num_experts_per_tok", "moe_intermediate_size")}
    same = {key: text[key] for key in ("vocab_size", "hidden_size", "intermediate_size")}
    return {
        **same,
        **experts,
        "num_layers": text["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": text.get("num_key_value_heads") or heads,
        "head_dim": text.get("head_dim") or text["hidden_size"] // heads,
        "norm_eps": text["rms_norm_eps"],
    }


def _vision(kind: str, values: Mapping[str, Any], out: int) -> dict[str, Any]:
    size, made = values["hidden_size"], values.get("out_hidden_size")
    if "embed_dim" in values:
        size, made = values["embed_dim"], values["hidden_size"]
    rope, places = values.get("rope_parameters") or {}, values.get("num_position_embeddings") or 0
    for wrong, what in (
        (made != out, f"it makes embeddings of {made} channels, the decoder reads {out}"),
        (values.get("in_channels", values.get("in_chans", 3)) != 3, "it does not read 3 channels of color"),
        (math.isqrt(places) ** 2 != places, f"num_position_embeddings {places} is not the size of a square table"),
        (rope.get("rope_type", "axial") != "axial", f"its rope_type is {rope.get('rope_type')!r}, not 'axial'"),
    ):
        if wrong:
            raise ValueError(f"the vision encoder is not known here: {what}")
    cut = {"patch_size": "patch_size", "merge_size": "spatial_merge_size", "temporal_patch_size": "temporal_patch_size"}
    return {
        "patches": replace(FAMILY_PATCHES[kind], **{ours: values[theirs] for ours, theirs in cut.items()}),
        "hidden_size": size,
        "intermediate_size": int(size * values["mlp_ratio"]) if "mlp_ratio" in values else values["intermediate_size"],
        "num_layers": values["depth"],
        "num_heads": values["num_heads"],
        "hidden_act": values["hidden_act"],
        "theta": float(rope.get("rope_theta", 1e4)),
        "table_side": math.isqrt(places),
        "window_size": values.get("window_size") or 0,
        "full_layers": tuple(values.get("fullatt_block_indexes") or ()),
        "deepstack_layers": tuple(values.get("deepstack_visual_indexes") or ()),
    }


def renaming(kind: str | None) -> Callable[[str], str | None]:
    """From a checkpoint's names of weights to the model's; None for what the model computes itself.

    Args:
        kind: its model_type; None for folders that VLM.save_pretrained wrote.
    """
    table = _OWN if kind is None else {**RELEASED[kind].names, "lm_head": "head"}
    ending = r"(?P<ending>\.weight|\.bias|)"
    patterns = [
        (re.compile(re.escape(theirs).replace(r"\*", r"(\d+)") + ending), ours.replace("*", r"\1") + r"\g<ending>")
        for theirs, ours in table.items()
    ]

    def renamed(name: str) -> str | None:
        # before transformers 4.52 visual.* and model.layers.*, since then model.visual.* and model.language_model.layers.*
        plain = name if kind is None else re.sub(r"^(model\.)?(language_model\.)?(model\.)?", "", name)
        if plain.endswith("inv_freq"):
            return None
        found = ((pattern.fullmatch(plain), ours) for pattern, ours in patterns)
        return next((match.expand(ours) for match, ours in found if match), name)

    return renamed
