"""Rules: where ids go on after a film, by Qwen2-VL's paper and by transformers 5.23. Does it matter, and when?"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mmrope.lab.harness import Cell, Experiment, Metrics, fit
from mmrope.positions.families import family
from mmrope.preprocess.processor import Processor
from mmrope.vlm.assistant import small_model
from mmrope.vlm.data import READ, ask_about, task_processor, to_batch
from mmrope.vlm.evaluate import answers
from mmrope.vlm.model import VLM, next_token_loss
from mmrope.vlm.tasks import Asked, Film, Split
from mmrope.vlm.train import Training

RULES = MappingProxyType({"reference": "qwen2_5_vl", "transformers 5.23": "qwen2_5_vl@transformers-5.23"})
"""By name: the row of the table of families whose rule it is."""
PLACES = (("one film", 1, 0), ("the first of two films", 2, 0), ("the second of two films", 2, 1))
"""What is asked about: of how many films which."""


@dataclass(frozen=True, eq=False)
class Reel:
    """Films one after the other, no digit in two of them: a question about a digit is about one film."""

    films: tuple[Film, ...]

    @classmethod
    def draw(cls, rng: np.random.Generator, split: Split, *, films: int, least: int = 4, most: int) -> Reel:
        """One film or two, of `least` to `most` looks each. One is drawn as the first of two, so that both are of a kind."""
        while True:
            two = [Film.draw(rng, split, most_digits=4, least_steps=least, most_steps=most) for _ in range(2)]
            if not set(two[0].digits) & set(two[1].digits):
                return cls(tuple(two[:films]))

    kinds: ClassVar[tuple[str, ...]] = ("when", "after")

    @property
    def tokens(self) -> int:
        """Of all films."""
        return sum(film.tokens for film in self.films)

    def media(self, rng: np.random.Generator) -> list[dict[str, Any]]:
        """The films."""
        return [item for film in self.films for item in film.media(rng)]

    def ask(self, rng: np.random.Generator, kind: str, *, film: int | None = None) -> Asked:
        """A question about one of them."""
        return self.films[rng.integers(len(self.films)) if film is None else film].ask(rng, kind)


def cell(seed: int, cell: Cell) -> dict[str, Metrics]:
    """The share of right answers, by looks at a film: of the model that is shipped, and of what more training with each rule
    makes of it, each read by its own rule and by the other."""
    models = {"shipped": shipped(cell), **{trained: trained_by(trained, seed, cell) for trained in RULES}}
    read: dict[str, Metrics] = {}
    for trained, model in models.items():
        for rule in RULES:
            own = rule == ("reference" if trained == "shipped" else trained)
            read[trained if own else f"{trained}, read by the other"] = answered(model, rule, seed, cell)
    return read


def shipped(cell: Cell) -> VLM:
    """Trained with the reference, one film at a time."""
    return VLM.from_pretrained(small_model(), device=cell.device, dtype=torch.float32)


def trained_by(rule: str, seed: int, cell: Cell) -> VLM:
    """The shipped model, trained on with a rule for ids, on conversations about one film or two."""
    processor, model = processor_of(rule, padding_side="right"), shipped(cell)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((seed, step))
        reels = [Reel.draw(rng, "train", films=int(rng.integers(1, 3)), most=cell.looks) for _ in range(cell.batch)]
        batch = to_batch(processor, [ask_about(rng, reel, cell.tokens, processor.tokenizer) for reel in reels])
        batch = {key: value.to(cell.device) for key, value in batch.items() if key in READ and key != "kinds"}
        labels = batch.pop("labels")
        with torch.autocast(torch.device(cell.device).type, dtype=torch.bfloat16):
            logits = model(**batch).logits
        return next_token_loss(logits, labels)

    own = Training()  # what it was trained with before
    lr = {"muon_lr": cell.lr_share * own.muon_lr, "adam_lr": cell.lr_share * own.adam_lr}
    fit(model, loss, cell.steps, **lr, say=lambda line: cell.say(f"{rule}, {line}"))
    return model


def processor_of(rule: str, **changes: Any) -> Processor:
    """The small model's, with another rule for ids."""
    return task_processor(family=family(RULES[rule], frames_per_grid=1), threads=1, **changes)


def answered(model: VLM, rule: str, seed: int, cell: Cell) -> Metrics:
    """The share of right answers, by kind of question, what it is about, and looks at a film."""
    processor, metrics = processor_of(rule, padding_side="left"), {}
    for kind in Reel.kinds:
        for name, films, about in PLACES:
            for looks in cell.tested:
                rng, right = np.random.default_rng((seed, looks)), []
                for _ in range(cell.count // cell.batch):
                    asked = [_question(rng, kind, films, about, looks) for _ in range(cell.batch)]
                    written = answers(model, processor, asked)
                    right += [text == one.answer for text, (_, one) in zip(written, asked, strict=True)]
                metrics[f"{kind}, {name} at {looks}"] = sum(right) / len(right)
    return metrics


def _question(rng: np.random.Generator, kind: str, films: int, about: int, looks: int) -> tuple[list[dict[str, Any]], Asked]:
    """Media and a question; that no digit comes after one, the answer to half of such questions, is not asked for."""
    while True:
        reel = Reel.draw(rng, "held_out", films=films, least=looks, most=looks)
        if (asked := reel.ask(rng, kind, film=about)).answer != "none":
            return reel.media(rng), asked


EXPERIMENT = Experiment(
    name="rules",
    question="Text and films after a film: does it matter where their ids go on, by the paper or by transformers 5.23?",
    setting="The small model that is shipped, asked about one film or two, of 4 to 16 looks at each, a token a look: when "
    "does a digit appear, and which one comes after it? (That none does is not asked for in the tests.) Its ids go on after "
    "the last frame (reference: Qwen2-VL, section 2.1), or where transformers 5.23 puts them, after the longer side of a "
    "frame, which here is one id after the first frame: what follows shares its times with the film. It was trained with the "
    "reference on one film at a time, of up to 16 looks; and it is trained on with each rule on one or two films of up to 8 "
    "looks, from where the reference has a start. Each model is read by its rule, and by the other.",
    paper="Qwen2-VL (arXiv 2409.12191), section 2.1: ids go on from the largest, plus 1. transformers up to 4.57 does, 5.23 "
    "does not (get_rope_index). No paper compares the two.",
    variants=tuple(f"{name}{read}" for name in ("shipped", *RULES) for read in ("", ", read by the other")),
    full={"steps": 400, "batch": 32, "lr_share": 0.3, "looks": 8, "tokens": 120, "tested": [4, 8, 16], "count": 96},
    quick={"steps": 1, "batch": 1, "lr_share": 0.3, "looks": 4, "tokens": 40, "tested": [4], "count": 1},
    cell=cell,
    together=True,
    x="looks at a film",
    y="share of answers that are right",
)
