"""The Qwen2.5-VL that the other scripts run: a checkpoint's, or by default a tiny one with random weights.

python samples/tiny_qwen.py [--model FOLDER] [--device cpu]
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import mmrope
from mmrope.preprocess.text import IMAGE_PAD, PAD, VIDEO_PAD, VISION_END, VISION_START, VOCAB_SIZE

SAMPLES = Path(__file__).parent
SIZES = {
    "image_pixels": (56 * 56, 16 * 28 * 28),
    "video_pixels": (4 * 28 * 28, 6 * 28 * 28),
    "padding_side": "left",
}  # for generation
TINY = {
    "text_config": {
        **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "vocab_size": VOCAB_SIZE, "tie_word_embeddings": False},
        **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": PAD},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    },
    "vision_config": {
        **{"depth": 2, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64, "num_heads": 2},
        **{"tokens_per_second": 2, "fullatt_block_indexes": [1]},
    },
    **{"image_token_id": IMAGE_PAD, "video_token_id": VIDEO_PAD},
    **{"vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END},
}


def arguments(about):
    """A parser with the options of every script here."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder with a Qwen2.5-VL checkpoint; tiny and random without it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def load(options, **settings):
    """The model on its device, and a processor for it."""
    settings = {**SIZES, **settings}
    if options.model:
        model = AutoModelForImageTextToText.from_pretrained(options.model, dtype=torch.float32)
        return model.eval().to(options.device), mmrope.Processor.from_pretrained(options.model, **settings)
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**TINY))
    return model.eval().to(options.device), mmrope.Processor(family=mmrope.family_from_config(model.config), **settings)


def conversation(*content, answer=None):
    """One question, and its answer if it has one: strings are text, names of files images and videos."""
    kinds = {".jpg": "image", ".png": "image", ".mp4": "video"}
    items = []
    for item in content:
        kind = kinds.get(Path(item).suffix, "text")
        items.append({"type": kind, kind: item if kind == "text" else SAMPLES / item})
    said = [] if answer is None else [{"role": "assistant", "content": answer}]
    return [{"role": "user", "content": items}, *said]


CONVERSATIONS: Any = [
    conversation("cat.jpg", "What is it?", answer="A cat."),
    conversation("When is the 5 shown?", "clip.mp4", answer="At 5 s."),
    conversation("coffee.jpg", "cat.jpg", "Which can be drunk?", answer="The first."),
    conversation("Two and two?", answer="Four."),
]

if __name__ == "__main__":
    model, processor = load(arguments(__doc__).parse_args())
    inputs = processor(CONVERSATIONS)
    count = sum(weight.numel() for weight in model.parameters())
    print(f"{count:,} parameters, {processor.family}, {list(inputs['input_ids'].shape)} tokens")
