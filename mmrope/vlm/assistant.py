"""A model and its processor, asked in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmrope.preprocess.messages import Messages, is_conversation
from mmrope.preprocess.processor import Processor
from mmrope.vlm import SMALL
from mmrope.vlm.model import VLM

_UNFINISHED = "\ufffd"  # what the first bytes of a longer character decode to


@dataclass(frozen=True, eq=False)
class Assistant:
    """Answers messages with text."""

    model: VLM
    processor: Processor

    @classmethod
    def from_pretrained(cls, folder: str | Path = SMALL, *, device: str = "cpu") -> Assistant:
        """A model that `save_pretrained` wrote, with its processor beside it; by default the one that is shipped.

        It computes in float32 on a CPU and as it was saved elsewhere; "auto" is a GPU if there is one.

        Raises:
            ValueError: as VLM.from_pretrained and Processor.from_pretrained; a device that is not there.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device {device!r} was asked for, but torch {torch.__version__} sees no GPU; use 'cpu' or 'auto'")
        dtype = torch.float32 if device == "cpu" else None
        return cls(
            VLM.from_pretrained(folder, device=device, dtype=dtype), Processor.from_pretrained(folder, padding_side="left")
        )

    def stream(self, messages: Messages, *, seed: int | None = None, **options: Any) -> Iterator[str]:
        """The answer to a conversation, piece by piece.

        Args:
            messages: the last is the user's.
            seed: of the randomness at temperatures above 0; None for another answer each time.
            options: `max_new_tokens` (100 by default), `temperature`, `top_p`, `stop` of `mmrope.vlm.generate.stream`.
        """
        tokens: list[int] = []
        said = ""
        for [token] in self.model.stream(**self._prepared(messages, seed), **{"max_new_tokens": 100, **options}):
            tokens.append(token)
            text = self.processor.tokenizer.decode(tokens)
            if not text.endswith(_UNFINISHED):
                yield text[len(said) :]
                said = text
        if (text := self.processor.tokenizer.decode(tokens)) != said:
            yield text[len(said) :]

    def answer(self, messages: Messages | Sequence[Messages], *, seed: int | None = None, **options: Any) -> str | list[str]:
        """The whole answer; to a list of conversations the list of answers, written as a batch. Arguments as of `stream`."""
        tokens = self.model.generate(**self._prepared(messages, seed), **{"max_new_tokens": 100, **options})  # [B, n]
        written = self.processor.decode(tokens)
        return written[0] if is_conversation(messages) else written

    def _prepared(self, messages: Messages | Sequence[Messages], seed: int | None) -> dict[str, Any]:
        generator = torch.Generator(self.model.device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        return {**self.processor(messages, add_generation_prompt=True).to(self.model.device), "generator": generator}


class Chat:
    """A conversation about some media, which come before its first question."""

    def __init__(self, assistant: Assistant, media: Sequence[Mapping[str, Any]] = ()) -> None:
        self.assistant, self.media = assistant, media
        self.messages: list[dict[str, Any]] = []
        """What has been said so far."""

    def ask(self, question: str, **options: Any) -> Iterator[str]:
        """The answer to the next question, piece by piece; options as of `Assistant.stream`."""
        text = {"type": "text", "text": question}
        content = [text] if self.messages else [*self.media, text]
        messages = [*self.messages, {"role": "user", "content": content}]
        said = ""
        for piece in self.assistant.stream(messages, **options):
            said += piece
            yield piece
        self.messages = [*messages, {"role": "assistant", "content": said}]
