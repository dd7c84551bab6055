"""A model and its processor, asked in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from mmrope.extras import needed_for
from mmrope.positions.rules import Family
from mmrope.preprocess.messages import Messages, is_conversation
from mmrope.preprocess.processor import Processor
from mmrope.vlm.cache import KVCache
from mmrope.vlm.model import VLM

_UNFINISHED = "\ufffd"  # what the first bytes of a longer character decode to


def small_model() -> Path:
    """The folder of the small model that the package mmrope-small brings: it reads digits in pictures and films.

    Raises:
        ImportError: mmrope-small is not installed.

    Example:
        >>> from mmrope.vlm import small_model
        >>> sorted(path.name for path in small_model().glob("*.json"))
        ['config.json', 'manifest.json', 'processor_config.json', 'training.json']
    """
    with needed_for("the small model"):
        import mmrope_small
    return mmrope_small.FOLDER


@dataclass(frozen=True, eq=False)
class Assistant:
    """Answers messages with text.

    Example:
        >>> from mmrope import VLM, Processor
        >>> from mmrope.vlm import Assistant
        >>> assistant = Assistant(VLM().eval(), Processor())  # untrained; Assistant.from_pretrained() is the small model
        >>> answer = assistant.answer([{"role": "user", "content": "Hello"}], max_new_tokens=2)
        >>> isinstance(answer, str)
        True
    """

    model: VLM
    processor: Processor

    @classmethod
    def from_pretrained(
        cls, folder: str | Path | None = None, *, device: str = "cpu", dtype: torch.dtype | None = None
    ) -> Assistant:
        """A folder's model and processor: a released checkpoint, or what `save_pretrained` wrote; by default the small model.

        Args:
            device: "auto" is a GPU if there is one.
            dtype: of the weights; None for that of the files, and float32 for the small model's.

        Raises:
            ImportError: no folder, and mmrope-small is not installed.
            ValueError: as VLM.from_pretrained and Processor.from_pretrained; a device that is not there.

        Example:
            >>> import tempfile
            >>> from mmrope import VLM, Processor
            >>> from mmrope.vlm import Assistant, DecoderConfig, VisionConfig, VLMConfig
            >>> tiny = VLMConfig(vision=VisionConfig(num_layers=1), decoder=DecoderConfig(num_layers=1))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     VLM(tiny).save_pretrained(folder)
            ...     Processor().save_pretrained(folder)
            ...     assistant = Assistant.from_pretrained(folder)
            >>> assistant.processor.padding_side
            'left'
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if folder is None:
            folder, dtype = small_model(), dtype or torch.float32
        model = VLM.from_pretrained(folder, device=device, dtype=dtype)
        return cls(model, Processor.from_pretrained(folder, padding_side="left"))

    def __post_init__(self) -> None:
        rule = self.model.config.family
        if rule is not None and rule != (made := self.processor.family):
            differ = [field.name for field in fields(Family) if getattr(rule, field.name) != getattr(made, field.name)]
            raise ValueError(
                f"the model was trained with the ids of {rule}, the processor makes those of {made}: {', '.join(differ)} differ"
            )

    def stream(self, messages: Messages, *, seed: int | None = None, **options: Any) -> Iterator[str]:
        """The answer to a conversation, piece by piece.

        Args:
            messages: the last is the user's.
            seed: of the randomness at temperatures above 0; None for another answer each time.
            options: `max_new_tokens` (100 by default), `temperature`, `cache` and the others of `mmrope.vlm.generate.stream`.

        Raises:
            ValueError: several conversations.

        Example:
            >>> from mmrope import VLM, Processor
            >>> from mmrope.vlm import Assistant
            >>> assistant = Assistant(VLM().eval(), Processor())
            >>> pieces = assistant.stream([{"role": "user", "content": "Hello"}], max_new_tokens=2)
            >>> all(isinstance(piece, str) for piece in pieces)
            True
        """
        if not is_conversation(messages):
            raise ValueError("stream answers one conversation, got a list of them: use answer")
        tokens: list[int] = []
        said = ""
        for [token] in self.model.stream(**self._prepared(messages, seed), **{"max_new_tokens": 100, **options}):
            tokens.append(token)
            text = self.processor.tokenizer.decode(tokens)
            if text != said and not text.endswith(_UNFINISHED):
                yield text[len(said) :]
                said = text
        if (text := self.processor.tokenizer.decode(tokens)) != said:
            yield text[len(said) :]

    def answer(self, messages: Messages | Sequence[Messages], *, seed: int | None = None, **options: Any) -> str | list[str]:
        """The whole answer; to a list of conversations the list of answers, written as a batch. Arguments as of `stream`.

        Example:
            >>> from mmrope import VLM, Processor
            >>> from mmrope.vlm import Assistant
            >>> assistant = Assistant(VLM().eval(), Processor())
            >>> questions = [[{"role": "user", "content": text}] for text in ("Hi", "Good morning")]
            >>> len(assistant.answer(questions, max_new_tokens=2))
            2
        """
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
    """A conversation about some media, which come before its first question; others may come with later ones.

    What has been read stays in one cache: a turn computes what is new in it.

    Example:
        >>> import numpy as np
        >>> from mmrope import VLM, Processor
        >>> from mmrope.vlm import Assistant, Chat
        >>> media = [{"type": "image", "image": np.zeros((56, 56, 3), np.uint8)}]
        >>> chat = Chat(Assistant(VLM().eval(), Processor()), media)
        >>> answer = chat.answer("What is it?", max_new_tokens=2)
        >>> [message["role"] for message in chat.messages]
        ['user', 'assistant']
    """

    def __init__(self, assistant: Assistant, media: Sequence[Mapping[str, Any]] = ()) -> None:
        self.assistant, self.media = assistant, media
        self.messages: list[dict[str, Any]] = []
        """What has been said so far."""
        self.cache = KVCache()

    def answer(self, question: str, **options: Any) -> str:
        """The answer to the next question; options as of `Assistant.stream`.

        Example:
            >>> from mmrope import VLM, Processor
            >>> from mmrope.vlm import Assistant, Chat
            >>> chat = Chat(Assistant(VLM().eval(), Processor()))
            >>> for question in ("Hi", "Why?"):
            ...     answer = chat.answer(question, max_new_tokens=2)
            >>> len(chat.messages)
            4
        """
        return "".join(self.stream(question, **options))

    def stream(self, question: str, *, media: Sequence[Mapping[str, Any]] = (), **options: Any) -> Iterator[str]:
        """The same, piece by piece. An answer that is not read to its end is forgotten.

        Args:
            media: images and videos that come with this question.

        Example:
            >>> from mmrope import VLM, Processor
            >>> from mmrope.vlm import Assistant, Chat
            >>> chat = Chat(Assistant(VLM().eval(), Processor()))
            >>> said = "".join(chat.stream("Hi", max_new_tokens=2))
            >>> chat.messages[-1]["content"] == said
            True
        """
        content = [*([] if self.messages else self.media), *media, {"type": "text", "text": question}]
        messages = [*self.messages, {"role": "user", "content": content}]
        said = ""
        for piece in self.assistant.stream(messages, cache=self.cache, **options):
            said += piece
            yield piece
        self.messages = [*messages, {"role": "assistant", "content": said}]
