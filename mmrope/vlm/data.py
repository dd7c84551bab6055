"""Batches to train on: conversations about pictures, films and sums, made from a step's number alone.

Nothing is stored and nothing has to be remembered: batch n is the same whoever makes it, in whatever order and process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from mmrope.positions.families import family
from mmrope.positions.segments import MEDIA
from mmrope.preprocess.batches import pack_batches
from mmrope.preprocess.chat import CHATML
from mmrope.preprocess.patches import PatchConfig
from mmrope.preprocess.processor import Processor
from mmrope.preprocess.text import Tokenizer, WordTokenizer
from mmrope.vlm.config import DecoderConfig, VisionConfig, VLMConfig
from mmrope.vlm.tasks import CELL, QUESTION_KINDS, STEP, WORDS, Album, Asked, Film, Grid, Sample, Split, Subject, Sums

_SHARES = {"at": 2, "row": 2, "all": 2, "where": 2, "many": 3, "shown": 2, "when": 3, "after": 2, "list": 3, "sum": 1}
"""How often a kind of question is asked, of those that its media allow."""
_TURN = 10
"""Tokens that a question and its answer take besides their own."""


def task_processor(**changes: Any) -> Processor:
    """How the small model sees: a cell of CELL x CELL pixels is a token, a film is looked at every STEP and brought to one cell
    a frame, words are tokens. `changes` are a Processor's arguments."""
    cells = (CELL * CELL, 81 * CELL * CELL)
    settings: dict[str, Any] = {
        "family": family("qwen2_5_vl", frames_per_grid=1),  # a frame an id: STEP times its two ids a second is one
        "patches": PatchConfig(
            temporal_patch_size=1,
            image_pixels=cells,
            video_pixels=(CELL * CELL, CELL * CELL),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        "tokenizer": WordTokenizer(WORDS),
        "chat_template": CHATML,
        "pixels": "uint8",
        "fps": float(1 / STEP),
        "min_frames": 1,
        "sampling": "time",
    }
    return Processor(**settings | changes)


def small_config(processor: Processor) -> VLMConfig:
    """The sizes of the model that is shipped: 2.6 million parameters."""
    assert processor.patches is not None
    assert isinstance(processor.tokenizer, WordTokenizer)
    return VLMConfig(
        vision=VisionConfig(patches=processor.patches, hidden_size=128, intermediate_size=384, num_layers=3, num_heads=4),
        decoder=DecoderConfig(
            vocab_size=processor.tokenizer.size,
            hidden_size=192,
            intermediate_size=512,
            num_layers=4,
            num_heads=6,
            num_kv_heads=2,
            head_dim=32,
        ),
        family=processor.family,
    )


# --- what is asked --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mix:
    """What a phase of the training is made of."""

    images: float = 0.0
    """Shares of conversations about one image, several, a film, and sums."""
    several: float = 0.0
    films: float = 0.0
    sums: float = 0.0
    side: int = 5
    """Most rows and columns."""
    strips: int = 0
    """Most cells along a strip of one or two cells' width; 0 for no strips."""
    digits: int = 5
    """Most digits in a film."""
    looks: int = 16
    """Most looks at a film."""
    tokens: int = 150
    """About how long a conversation is: questions are added until it is full."""
    batch: int = 1
    """How many times a batch is as large as otherwise: short conversations come in greater numbers."""


FULL = Mix(images=0.5, several=0.1, films=0.3, sums=0.1, strips=9)
"""What the model is made for."""
SCHEDULE: tuple[tuple[float, Mix], ...] = (
    (0.07, Mix(images=1, side=1, tokens=16, batch=4)),
    (0.14, Mix(images=0.7, films=0.25, sums=0.05, side=2, digits=2, looks=5, tokens=60, batch=2)),
    (0.24, Mix(images=0.6, films=0.3, sums=0.1, side=3, strips=4, digits=3, looks=9, tokens=100)),
    (1.00, FULL),
)
"""Phases, each until a share of the training: digits first, then where they are, then more of them."""


def mix_at(progress: float, schedule: Sequence[tuple[float, Mix]] = SCHEDULE) -> Mix:
    """The phase of a training of which `progress` (0 to 1) is done."""
    return next(mix for until, mix in schedule if progress < until or until == schedule[-1][0])


def draw_subject(rng: np.random.Generator, mix: Mix, split: Split) -> Subject:
    """What a conversation of this mix is about."""
    shares = np.array([mix.images, mix.several, mix.films, mix.sums])
    what = rng.choice(4, p=shares / shares.sum())
    if what == 0:
        return Grid.draw(rng, *_shape(rng, mix), split)
    if what == 1:
        return Album.draw(rng, split, side=min(3, mix.side))
    if what == 2:
        return Film.draw(rng, split, most_digits=mix.digits, most_steps=mix.looks)
    return Sums()


def draw_sample(rng: np.random.Generator, mix: Mix, split: Split, tokenizer: Tokenizer) -> Sample:
    """A conversation of this mix."""
    return ask_about(rng, draw_subject(rng, mix, split), mix.tokens, tokenizer)


def ask_about(rng: np.random.Generator, subject: Subject, tokens: int, tokenizer: Tokenizer) -> Sample:
    """A conversation about a subject, of about so many tokens."""
    shares = np.array([_SHARES[kind] for kind in subject.kinds], float)
    asked: list[Asked] = []
    spent = subject.tokens
    for _ in range(50):  # there may be fewer questions than there is room for
        one = subject.ask(rng, rng.choice(subject.kinds, p=shares / shares.sum()))
        if one is None or any(one.question == other.question for other in asked):  # an answer could be copied
            continue
        spent += _TURN + len(tokenizer.encode(one.question)) + len(tokenizer.encode(one.answer))
        if asked and spent > tokens:
            break
        asked.append(one)
    return Sample.of(subject.media(rng), asked)


def _shape(rng: np.random.Generator, mix: Mix) -> tuple[int, int]:
    """Rows and columns: of a grid, or of a strip, which shows rows and columns with numbers that grids do not reach."""
    if mix.strips and rng.random() < 0.3:
        narrow, long = int(rng.integers(1, 3)), int(rng.integers(1, mix.strips + 1))
        return (narrow, long) if rng.random() < 0.5 else (long, narrow)
    least = min(2, mix.side)
    rows, columns = rng.integers(least, mix.side + 1, 2)
    return int(rows), int(columns)


# --- batches --------------------------------------------------------------------------------------------------------------


def to_batch(processor: Processor, samples: Sequence[Sample]) -> dict[str, Any]:
    """Model inputs with `labels` and `kinds`, both [B, S]: at the tokens of answers, their ends included, the token and the
    number of the question's kind in QUESTION_KINDS; elsewhere -100 and -1."""
    inputs = dict(processor([sample.messages for sample in samples], add_generation_prompt=False))
    labels = torch.full_like(inputs["input_ids"], -100)
    kinds = torch.full_like(labels, -1)
    for row, sample in enumerate(samples):
        tokens = inputs["input_ids"][row].tolist()
        answers = answer_spans(tokens, processor)
        assert len(answers) == len(sample.kinds)
        for (start, stop), kind in zip(answers, sample.kinds, strict=True):
            labels[row, start:stop] = inputs["input_ids"][row, start:stop]
            kinds[row, start:stop] = QUESTION_KINDS.index(kind)
    return inputs | {"labels": labels, "kinds": kinds}


def answer_spans(tokens: Sequence[int], processor: Processor) -> list[tuple[int, int]]:
    """Where the assistant speaks: from the first token after its name to the token that ends its turn, which belongs to it."""
    special = processor.tokenizer.special
    start_of_turn, end_of_turn = special["<|im_start|>"], special["<|im_end|>"]
    head = [start_of_turn, *processor.tokenizer.encode("assistant\n")]
    spans, at = [], 0
    while at < len(tokens):
        if tokens[at] == start_of_turn and list(tokens[at : at + len(head)]) == head:
            stop = tokens.index(end_of_turn, at) + 1
            spans.append((at + len(head), stop))
            at = stop
        else:
            at += 1
    return spans


class TaskBatches(Dataset[dict[str, Any]]):
    """Batch n of `count` of a training: padded rows, or packs."""

    def __init__(
        self,
        processor: Processor,
        *,
        count: int,
        batch_size: int = 32,
        seed: int = 0,
        schedule: Sequence[tuple[float, Mix]] = SCHEDULE,
        packed: bool = False,
    ) -> None:
        if processor.padding_side != "right":
            raise ValueError("training needs Processor(padding_side='right'): causal attention then needs no mask")
        self.processor, self.schedule = processor, schedule
        self.count, self.batch_size, self.seed, self.packed = count, batch_size, seed, packed

    @property
    def about(self) -> dict[str, Any]:
        """What decides the batches, besides their seed, for `train`."""
        phases = [[until, dataclasses.asdict(mix)] for until, mix in self.schedule]
        return {"batch_size": self.batch_size, "schedule": phases, "packed": self.packed}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, n: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, n, 0))
        mix = mix_at(n / self.count, self.schedule)
        tokenizer = self.processor.tokenizer
        samples = [draw_sample(rng, mix, "train", tokenizer) for _ in range(mix.batch * self.batch_size)]
        if self.packed:
            rows = (to_batch(self.processor, [sample]) for sample in samples)
            [batch] = pack_batches(rows, max_tokens=10**9, per_token={"kinds": -1})
        else:
            batch = to_batch(self.processor, samples)
        # padding is on the right and nobody is asked about it, so attention needs no mask but the causal one
        return {key: value for key, value in batch.items() if key in READ}


READ = {
    *("input_ids", "position_ids", "mm_token_type_ids", "cu_seqlens", "labels", "kinds"),
    *(key for kind in ("image", "video") for key in (MEDIA[kind].pixels, MEDIA[kind].grids)),
}
"""What is read of a batch in training."""


def exact_answers(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """How many answers are right in every token, given the tokens before (teacher forcing), and how many there are.

    Nothing waits for the device.

    Args:
        logits: [B, S, vocab], of a batch of `to_batch`.

    Returns:
        [kinds, 2] int64: right, and all, of each kind in QUESTION_KINDS.
    """
    labels, kinds = batch["labels"][:, 1:], batch["kinds"][:, 1:]  # what the logits before predict
    wrong = ((logits[:, :-1].argmax(dim=-1) != labels) & (labels != -100)).flatten().long()
    begins = (kinds >= 0) & (F.pad(kinds[:, :-1], (1, 0), value=-1) < 0)  # answers never touch
    begins, kinds = begins.flatten(), kinds.flatten().clamp_min(0)
    which = begins.cumsum(0)  # the number of the answer that a token is of, or follows
    errors = torch.zeros(len(which) + 1, dtype=torch.long, device=labels.device).index_add_(0, which, wrong)
    both = torch.stack((begins & (errors[which] == 0), begins), dim=1).long()  # [tokens, 2]
    return torch.zeros(len(QUESTION_KINDS), 2, dtype=torch.long, device=labels.device).index_add_(0, kinds, both)


class ExactAnswers:
    """The score of a training on these batches, by kind of question."""

    names = QUESTION_KINDS
    count = staticmethod(exact_answers)
