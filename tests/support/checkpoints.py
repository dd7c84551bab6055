"""Folders like those of released checkpoints, without weights: the published chat templates and settings, and a small tokenizer
with the real special tokens. Both transformers and mmrope read them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEMPLATES = Path(__file__).parents[1] / "references" / "chat_templates"
_QWEN_SPLIT = (  # how the tokenizers of Qwen cut a text into words
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
PAD = "<|endoftext|>"
_CUT = {"temporal_patch_size": 2, "merge_size": 2}


def _named(special: str, ordinary: str) -> list[tuple[str, bool]]:
    return [(name, True) for name in special.split()] + [(name, False) for name in ordinary.split()]


_QWEN2_VL = _named(
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> "
    "<|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>",
    "",
)
_QWEN2_5_VL = [*_QWEN2_VL, *_named("", "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>")]  # fmt: skip
_QWEN3_VL = [*_QWEN2_5_VL, *_named("", "<tool_response> </tool_response> <think> </think>")]
_GLM4V = _named(
    "<|endoftext|> [MASK] [gMASK] [sMASK] <sop> <eop> <|system|> <|user|> <|assistant|> <|observation|> <|begin_of_image|> "
    "<|end_of_image|> <|begin_of_video|> <|end_of_video|> <|image|> <|video|>",
    "",
)
_GLM4V_MOE = _GLM4V[:14] + _named(
    "<|begin_of_audio|> <|end_of_audio|> <|begin_of_transcription|> <|end_of_transcription|>",
    "<|code_prefix|> <|code_middle|> <|code_suffix|> <think> </think> <tool_call> </tool_call> <tool_response> </tool_response> "
    "<arg_key> </arg_key> <arg_value> </arg_value> /nothink <|begin_of_box|> <|end_of_box|> <|image|> <|video|>",
)
_QWEN_IMAGES = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    **_CUT,
    **_CLIP,
}
_QWEN3_IMAGES = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    **_CUT,
    **_HALF,
}
_QWEN3_VIDEOS = {
    "video_processor_type": "Qwen3VLVideoProcessor",
    "size": {"longest_edge": 25165824, "shortest_edge": 4096},
    "patch_size": 16,
    **_CUT,
    **_HALF,
}
_GLM_CUT = {"do_rescale": True, "patch_size": 14, **_CUT, **_CLIP}
_GLM_IMAGES = {
    "image_processor_type": "Glm4vImageProcessor",
    "size": {"shortest_edge": 12544, "longest_edge": 9633792},
    **_GLM_CUT,
}
_GLM_VIDEOS = {
    "video_processor_type": "Glm4vVideoProcessor",
    "size": {"shortest_edge": 12544, "longest_edge": 47040000},
    **_GLM_CUT,
}
_QWEN3_VL_ROW = {
    "processor": transformers.Qwen3VLProcessor,
    "tokens": _QWEN3_VL,
    "image": _QWEN3_IMAGES,
    "video": _QWEN3_VIDEOS,
}

CHECKPOINTS: dict[str, dict[str, Any]] = {
    # the template of Qwen2-VL is byte for byte that of Qwen2.5-VL
    "qwen2_vl": {"processor": transformers.Qwen2VLProcessor, "template": "qwen2_5_vl", "tokens": _QWEN2_VL, "image": _QWEN_IMAGES, "video": None},
    "qwen2_5_vl": {"processor": transformers.Qwen2_5_VLProcessor, "tokens": _QWEN2_5_VL, "image": _QWEN_IMAGES, "video": None},
    "qwen3_vl": _QWEN3_VL_ROW,
    "qwen3_vl_thinking": {**_QWEN3_VL_ROW, "model_type": "qwen3_vl"},
    "glm4v": {"processor": transformers.Glm4vProcessor, "tokens": _GLM4V, "image": _GLM_IMAGES, "video": _GLM_VIDEOS},
    "glm4v_moe": {"processor": transformers.Glm4vProcessor, "tokens": _GLM4V_MOE, "image": _GLM_IMAGES, "video": _GLM_VIDEOS},
    "glm46v": {
        "processor": transformers.Glm46VProcessor,
        "tokens": _GLM4V_MOE,
        "image": {**_GLM_IMAGES, "image_processor_type": "Glm46VImageProcessor"},
        "video": {**_GLM_VIDEOS, "video_processor_type": "Glm46VVideoProcessor"},
    },
}  # fmt: skip
"""By name: the values of the released folders (Qwen2-VL-7B-Instruct, Qwen2.5-VL-7B-Instruct, Qwen3-VL-8B-Instruct and -Thinking,
GLM-4.1V-9B-Thinking, GLM-4.5V, GLM-4.6V), but for the ids of tokens. Of the last two the settings are those of GLM-4.1V, and which of
their later tokens are special could not be verified."""
WITH_TOOLS = ("qwen3_vl", "qwen3_vl_thinking", "glm4v_moe", "glm46v")
"""Those whose templates write tools."""


@cache
def small_tokenizer(name: str) -> Tokenizer:
    """A byte-level BPE that is trained on a page of text, with the special tokens of a checkpoint, flagged as there."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    words = trainers.BpeTrainer(vocab_size=800, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([json.__doc__ or "", Path(json.__file__).read_text()], words)
    for token, special in CHECKPOINTS[name]["tokens"]:
        tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])
    return tokenizer


def template_of(name: str) -> str:
    """The published chat template of a checkpoint."""
    return (TEMPLATES / f"{CHECKPOINTS[name].get('template', name)}.jinja").read_text(encoding="utf-8")


def folder(path: Path, name: str, *, template: str | None = None, form: str = "jinja", **config: Any) -> Path:
    """Writes a checkpoint's folder.

    Args:
        path: an empty folder.
        name: its model_type.
        template: another chat template than its own.
        form: where it stands: "jinja" (chat_template.jinja), "json" (chat_template.json), "tokenizer", "list" (the latter by
            name) or "none".
        config: more of tokenizer_config.json.
    """
    row, tokenizer = CHECKPOINTS[name], small_tokenizer(name)
    text = template_of(name) if template is None else template
    tokenizer.save(str(path / "tokenizer.json"))
    stated = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": "<|im_end|>" if name.startswith("qwen") else PAD,
        "padding_side": "left",
    }
    stated |= {"tokenizer": {"chat_template": text}, "list": {"chat_template": [{"name": "default", "template": text}, {"name": "x", "template": ""}]}}.get(form, {})  # fmt: skip
    write = {"tokenizer_config.json": stated | config}
    write["preprocessor_config.json"] = row["image"] | {"processor_class": row["processor"].__name__}
    if row["video"]:
        write["video_preprocessor_config.json"] = row["video"] | {"processor_class": row["processor"].__name__}
    if form == "json":
        write["chat_template.json"] = {"chat_template": text}
    elif form == "jinja":
        (path / "chat_template.jinja").write_text(text)
    ids = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    if name.startswith("glm"):
        ids = {"image_token_id": "<|image|>", "video_token_id": "<|video|>", "image_start_token_id": "<|begin_of_image|>", "image_end_token_id": "<|end_of_image|>", "video_start_token_id": "<|begin_of_video|>", "video_end_token_id": "<|end_of_video|>"}  # fmt: skip
    write["config.json"] = {
        "model_type": row.get("model_type", name),
        **{key: tokenizer.token_to_id(token) for key, token in ids.items()},
    }
    write["config.json"]["vision_config"] = {"spatial_merge_size": 2, "temporal_patch_size": 2, "tokens_per_second": 2}
    for file, content in write.items():
        (path / file).write_text(json.dumps(content))
    return path
