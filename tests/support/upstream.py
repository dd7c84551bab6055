"""Hugging Face processors and models that need no download: a byte tokenizer with our ids, and tiny random weights."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from mmrope.preprocess.text import IMAGE_PAD, SPECIAL_TOKENS, VIDEO_PAD, VISION_END, VISION_START, VOCAB_SIZE

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for item in message.content %}"
    "{% if item.type == 'text' %}{{ item.text }}{% else %}<|vision_start|><|{{ item.type }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Token n is byte n, and the special tokens follow, as in mmrope.preprocess.text."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # the bytes that ByteLevel shows as themselves
    shown = {byte: chr(byte) for byte in printable}
    for n, byte in enumerate(byte for byte in range(256) if byte not in shown):
        shown[byte] = chr(256 + n)
    tokenizer = Tokenizer(models.BPE(vocab={char: byte for byte, char in shown.items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>", padding_side="left")


def processor(name: str, **sizes: Any) -> Any:
    """Qwen2-VL's, Qwen2.5-VL's or Qwen3-VL's processor with the constants of its released checkpoints; sizes:
    image_pixels, and video_pixels of a frame, as (fewest, most)."""
    make = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor, "qwen3_vl": Qwen3VLProcessor}[name]
    size = {kind: {"shortest_edge": least, "longest_edge": most} for kind, (least, most) in sizes.items()}
    if name == "qwen3_vl":
        half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        released = {"image_pixels": {"shortest_edge": 65536, "longest_edge": 16777216}}
        images = Qwen2VLImageProcessor(patch_size=16, size={**released, **size}["image_pixels"], **half)
        videos = Qwen3VLVideoProcessor(
            size={"shortest_edge": 4096, "longest_edge": 25165824}, do_sample_frames=False, cap_pixels_per_frame=True
        )
    else:
        images = Qwen2VLImageProcessor(size=size.get("image_pixels"))
        videos = Qwen2VLVideoProcessor(size=size.get("video_pixels"), cap_pixels_per_frame=True)
    return make(image_processor=images, tokenizer=byte_tokenizer(), video_processor=videos, chat_template=CHAT_TEMPLATE)


def model(**rope: Any) -> Any:
    """A tiny Qwen2.5-VL with random weights, on the patches of the real processor."""
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": VOCAB_SIZE,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3], **rope},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 64,
            "num_heads": 2,
            "tokens_per_second": 2,
            "fullatt_block_indexes": [1],
        },
        image_token_id=IMAGE_PAD,
        video_token_id=VIDEO_PAD,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()
