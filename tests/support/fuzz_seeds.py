"""Sound inputs for each target of tests/support/targets.py, from which scripts/fuzz.py begins: made here, or from the references."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from mmrope import RotarySpec, YaRN
from mmrope.encodings import DynamicNTK, LongRoPE
from mmrope.positions.omni import OmniReading
from mmrope.preprocess import Processor
from mmrope.vlm import VLMConfig
from tests.support import ROOT
from tests.support.conversations import TOOLS
from tests.support.mutants import image_seeds, video_seeds
from tests.support.strategies import RULES

REFERENCES = ROOT / "tests" / "references"


def seeds(target: str) -> Iterator[bytes]:
    """The seeds of a target."""
    for made in _MAKERS[target]():
        yield made if isinstance(made, bytes) else json.dumps(made).encode()


def _tokenizers() -> Iterator[dict[str, Any]]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = {letter: n for n, letter in enumerate(alphabet)}
    merged = {**letters, "ab": 256, "Ġa": 257, "Ġab": 258}
    by_bytes = Tokenizer(models.BPE(merged, [("a", "b"), ("Ġ", "a"), ("Ġ", "ab")]))
    by_bytes.pre_tokenizer, by_bytes.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    by_bytes.normalizer = normalizers.NFC()
    words = Tokenizer(models.WordLevel({"cat": 0, "dog": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("▁a", -2.0), ("cat", -3.0)], unk_id=0))
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Metaspace(prepend_scheme="never"), decoders.Metaspace()
    fallback = {f"<0x{n:02X}>": n for n in range(256)}
    llama = Tokenizer(models.BPE({**fallback, "▁": 256, "a": 257, "▁a": 258}, [("▁", "a")], byte_fallback=True, fuse_unk=True))
    llama.normalizer = normalizers.Replace(" ", "▁")
    llama.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    wordpiece = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    for tokenizer in (words, pieces, wordpiece, llama, by_bytes):
        tokenizer.add_special_tokens([AddedToken("<|pad|>", special=True), AddedToken("<|im_end|>", special=True)])
        tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
        config = {"pad_token": "<|pad|>", "eos_token": {"content": "<|im_end|>"}, "added_tokens_decoder": {"3": "<|im_end|>"}}
        config |= {"extra_special_tokens": {"image_token": "<|pad|>"}, "additional_special_tokens": ["<|im_end|>"]}
        stated = {"tokenizer.json": json.loads(tokenizer.to_str()), "tokenizer_config.json": config}
        yield {**stated, "text": "a cat <|im_end|> ab é🙂"}
    yield {"special_tokens_map.json": {"eos_token": "<|im_end|>"}, **stated, "text": "<think>"}
    yield {"words": [" row", "row", "é"], "text": "a row of é"}


def _configs() -> Iterator[dict[str, Any]]:
    for case in json.loads((REFERENCES / "configs" / "released.json").read_text()):
        yield {"config.json": case["config"]}
    drawn = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "eos_token_id": [5, 6], "pad_token_id": 5}
    for case in json.loads((REFERENCES / "checkpoints" / "qwen_vl.json").read_text()).values():
        yield {"config.json": case["config"], "generation_config.json": drawn}
    for spec in (
        RotarySpec.mrope(8, sections=(2, 1, 1)),
        RotarySpec.axial(8, axes="hw"),
        RotarySpec.rope(8).scaled(YaRN(factor=4.0, original_max_position=64)),
        RotarySpec.rope(8).scaled(DynamicNTK(factor=4.0, original_max_position=64)),
        RotarySpec.rope(8).scaled(LongRoPE((1.0,) * 4, (2.0,) * 4, original_max_position=64, factor=2.0)),
    ):
        yield {"spec": spec.to_dict()}
    for rule in RULES:
        yield {"family": rule.to_dict()}
        if type(rule.reading) is not OmniReading and not rule.place and not rule.revision:
            yield {"family": rule.replace(name="mine").to_dict()}
    yield {"vlm": json.loads(json.dumps(VLMConfig(family="qwen2_vl").to_dict()))}
    images = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14}
    images |= {"temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    sizes = {"size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16, "do_resize": True, "resample": 3}
    films = {"video_processor_type": "Qwen3VLVideoProcessor", **sizes, "fps": 2, "min_frames": 4, "max_frames": 768}
    config = {"model_type": "qwen3_vl", "image_token_id": 5, "vision_config": {"spatial_merge_size": 2}}
    yield {
        "preprocessor_config.json": {**images, "processor_class": "Qwen2_5_VLProcessor"},
        "chat_template.json": {"chat_template": "x"},
    }
    yield {"config.json": config, "preprocessor_config.json": {**images, **sizes}, "video_preprocessor_config.json": films}
    yield {
        "processor_config.json": {"image_processor": {**images, **sizes}, "video_processor": films},
        "chat_template.jinja": "x",
    }
    yield _saved(Processor(family="qwen2_vl"))


def _saved(processor: Processor) -> dict[str, Any]:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        return {path.name: json.loads(path.read_text()) for path in Path(folder).glob("*.json")}


def _conversations() -> Iterator[dict[str, Any]]:
    for case in json.loads((REFERENCES / "messages" / "examples.json").read_text()):
        yield {"messages": case["messages"]}
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is <|im_end|>?"}]
    said += [{"role": "assistant", "content": [{"type": "text", "text": "A marker."}]}]
    call = {"type": "function", "function": {"name": "zoom", "arguments": {"box": [0.5, 1]}}}
    called = [*said, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "done"}]
    yield {"messages": said, "prompt": True}
    for path in sorted((REFERENCES / "chat_templates").glob("*.jinja")):
        yield {"messages": said, "template": path.read_text()}
        yield {"messages": called, "template": path.read_text(), "variables": {"tools": TOOLS[1:]}}
    small = "{% for m in messages %}<|im_start|>{% generation %}{{ m.content | trim }}{% endgeneration %}{% endfor %}"
    yield {"messages": said[1:], "template": small}
    item = {"type": "video", "video": "a.mp4", "fps": "2", "min_pixels": 100, "max_frames": 8, "video_start": 0.5}
    yield {"messages": [{"role": "user", "content": [item, {"type": "image", "base64": "aGk="}]}]}
    listed = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "auto"}}
    grids = [{"type": "video", "grid": [2, 4, 4], "fps": 2.0}, {"type": "video", "video": ["a.jpg"], "sample_fps": "1"}]
    yield {"messages": [{"role": "user", "content": [listed, *grids]}]}


def _segments() -> Iterator[bytes]:
    chance = random.Random(0)
    for n in range(600):
        yield bytes([n % 6, chance.randrange(256)]) + bytes(
            chance.choice((chance.randrange(256), chance.randrange(8))) for _ in range(n % 120)
        )


_MAKERS: dict[str, Callable[[], Iterator[Any]]] = {
    "images": lambda: iter(image_seeds().values()),
    "videos": lambda: iter(video_seeds().values()),
    "tokenizers": _tokenizers,
    "configs": _configs,
    "conversations": _conversations,
    "segments": _segments,
}
