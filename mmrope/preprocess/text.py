"""Text as bytes: 256 tokens for the bytes of UTF-8, and a few special ones. Nothing to train, nothing is lost."""

from __future__ import annotations

from collections.abc import Iterable

SPECIAL_TOKENS = (
    "<|pad|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""The special tokens, ids 256 and up; their names are those of the Qwen tokenizers."""
PAD, IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = range(256, 256 + len(SPECIAL_TOKENS))
VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)


def encode(text: str) -> list[int]:
    """The bytes of a text. What looks like a special token in it stays text: users cannot forge markers."""
    return list(text.encode("utf-8"))


def decode(tokens: Iterable[int], *, special: bool = False) -> str:
    """The text of tokens: special tokens are left out, or shown by name; bytes that are no UTF-8 become U+FFFD."""
    data = bytearray()
    for token in tokens:
        if 0 <= token < 256:
            data.append(token)
        elif not 256 <= token < VOCAB_SIZE:
            raise ValueError(f"token {token} is not in the vocabulary of {VOCAB_SIZE}")
        elif special:
            data += SPECIAL_TOKENS[token - 256].encode()
    return data.decode("utf-8", errors="replace")
