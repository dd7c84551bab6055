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
from mmrope.vlm.config import DecoderConfig, GenerationConfig, VisionConfig, VLMConfig


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


_TEXT = {
    "embed_tokens": "embedding",
    "norm": "decoder.norm",
    "layers.*.input_layernorm": "decoder.blocks.*.norm1",
    "layers.*.post_attention_layernorm": "decoder.blocks.*.norm2",
    **{f"layers.*.self_attn.{theirs}": f"decoder.blocks.*.{ours}" for theirs, ours in
       {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "out", "q_norm": "q_norm", "k_norm": "k_norm"}.items()},
    **{f"layers.*.mlp.{name}_proj": f"decoder.blocks.*.mlp.{name}" for name in ("gate", "up", "down")},
}  # fmt: skip
_MIXTURE = {
    "layers.*.mlp.gate": "decoder.blocks.*.mlp.router",
    "layers.*.mlp.experts.gate_up_proj": "decoder.blocks.*.mlp.gate_up",
    "layers.*.mlp.experts.down_proj": "decoder.blocks.*.mlp.down",
}
_BLOCKS = {
    "visual.patch_embed.proj": "vision.embed",
    "visual.blocks.*.norm1": "vision.blocks.*.norm1",
    "visual.blocks.*.norm2": "vision.blocks.*.norm2",
    "visual.blocks.*.attn.qkv": "vision.blocks.*.qkv",
    "visual.blocks.*.attn.proj": "vision.blocks.*.out",
}
_MERGER = {
    "visual.merger.ln_q": "vision.merger.norm",
    "visual.merger.mlp.0": "vision.merger.up",
    "visual.merger.mlp.2": "vision.merger.down",
}
_DEEP = {
    "visual.pos_embed": "vision.table",
    **{f"visual.{merger}.{theirs}": f"vision.{called}.{ours}"
       for merger, called in {"merger": "merger", "deepstack_merger_list.*": "deep_mergers.*"}.items()
       for theirs, ours in {"norm": "norm", "linear_fc1": "up", "linear_fc2": "down"}.items()},
}  # fmt: skip


def _mlp(**names: str) -> dict[str, str]:
    return {f"visual.blocks.*.mlp.{theirs}": f"vision.blocks.*.mlp.{ours}" for ours, theirs in names.items()}


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
RELEASED: dict[str, Released] = {
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
}  # fmt: skip
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

_NEUTRAL = {
    "num_beams": 1, "num_beam_groups": 1, "penalty_alpha": 0, "min_length": 0, "min_new_tokens": 0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1, "guidance_scale": 1, "bad_words_ids": None,
    "force_words_ids": None, "suppress_tokens": None, "begin_suppress_tokens": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "sequence_bias": None, "stop_strings": None, "exponential_decay_length_penalty": None,
    "watermarking_config": None,
}  # fmt: skip
"""What else changes the tokens that transformers writes, and with what value it changes nothing."""
_NEUTRAL_DRAWN = {"min_p": 0, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "top_h": None}


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
    if kind not in RELEASED:
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
    rotary, said = rotary_from_config(dict(values)), {**text, **values, **generation}
    assert rotary is not None
    ends, pad = _tokens(said.get("eos_token_id")), said.get("pad_token_id")
    return VLMConfig(
        vision=VisionConfig(**row.vision, **vision),
        decoder=decoder,
        rotary=rotary,
        family=family_from_config(dict(values)),
        eos_token_id=ends,
        pad_token_id=pad if pad is not None else ends[0] if ends else 0,
        generation=_generation(generation),
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


def _generation(values: Mapping[str, Any]) -> GenerationConfig:
    """As in transformers: the options of drawing count with do_sample alone, and what is null is the default there."""
    drawn = bool(values.get("do_sample"))
    for key, neutral in {**_NEUTRAL, **(_NEUTRAL_DRAWN if drawn else {})}.items():
        if values.get(key, neutral) not in (neutral, None, []):
            raise ValueError(
                f"generation_config.json has {key} {values[key]!r}, which VLM does not know: it must be {neutral!r}"
            )
    kept = {"repetition_penalty": 1.0, **({"temperature": 1.0, "top_k": 50, "top_p": 1.0} if drawn else {})}
    stated = {key: values[key] if values.get(key) is not None else default for key, default in kept.items()}
    if wrong := {key: value for key, value in stated.items() if isinstance(value, bool) or not isinstance(value, (int, float))}:
        raise ValueError(f"generation_config.json must have numbers, got {wrong}")
    return GenerationConfig(**stated)


def _tokens(said: Any) -> tuple[int, ...]:
    """End tokens, of which a config states none, one, or several."""
    found = () if said is None else tuple(said) if isinstance(said, (list, tuple)) else (said,)
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in found):
        raise ValueError(f"eos_token_id must be a token or a list of tokens, got {said!r}")
    return found


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
