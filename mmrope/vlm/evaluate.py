"""How often the small model is right: fresh layouts of held-out handwriting, films as files, answers written token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mmrope.preprocess.processor import Processor
from mmrope.vlm.model import VLM
from mmrope.vlm.tasks import QUESTION_KINDS, Album, Asked, Film, Grid, Sample, Subject, Sums


@dataclass(frozen=True)
class Exam:
    """Questions about subjects of a sort."""

    name: str
    draw: Callable[[np.random.Generator], Subject]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of questions."""
        return self.draw(np.random.default_rng(0)).kinds


def exams() -> list[Exam]:
    """What the model was trained for, and two sizes of pictures that it never saw."""

    def grid(rows: tuple[int, int], columns: tuple[int, int]) -> Callable[[np.random.Generator], Subject]:
        return lambda rng: Grid.draw(rng, int(rng.integers(*rows)), int(rng.integers(*columns)), "held_out")

    return [
        Exam("2 x 2 to 5 x 5", grid((2, 6), (2, 6))),
        Exam("two or three images", lambda rng: Album.draw(rng, "held_out")),
        Exam("films", lambda rng: Film.draw(rng, "held_out")),
        Exam("sums", lambda rng: Sums()),
        Exam("6 x 6", grid((6, 7), (6, 7))),
        Exam("3 x 9", grid((3, 4), (9, 10))),
    ]


def examine(
    model: VLM,
    processor: Processor,
    exam: Exam,
    *,
    kinds: Sequence[str] = (),
    count: int = 500,
    seed: int = 1,
    batch_size: int = 50,
) -> dict[str, tuple[int, int]]:
    """By kind of question: how many answers are right to the letter, of how many.

    The same seed asks the same; `kinds` are all by default. Questions stand alone, each in a conversation of its own.
    """
    counts = {}
    for kind in kinds or exam.kinds:
        rng = np.random.default_rng((seed, QUESTION_KINDS.index(kind)))
        right = 0
        for start in range(0, count, batch_size):
            with TemporaryDirectory() as folder:
                drawn = [
                    draw_question(rng, exam, kind, Path(folder) / f"{n}.mp4")
                    for n in range(start, min(start + batch_size, count))
                ]
                written = answers(model, processor, drawn)
            right += sum(text == asked.answer for (_, asked), text in zip(drawn, written, strict=True))
        counts[kind] = (right, count)
    return counts


def draw_question(
    rng: np.random.Generator, exam: Exam, kind: str, path: Path | None = None
) -> tuple[list[dict[str, Any]], Asked]:
    """Media and a question of a kind about them; a film is written to a file, of a variable frame rate, if there is a path."""
    while True:
        subject = exam.draw(rng)
        if (asked := subject.ask(rng, kind)) is None:
            continue
        if isinstance(subject, Film) and path is not None:
            subject.save(rng, path, scale=2)
            return [{"type": "video", "video": path}], asked
        return subject.media(rng), asked


def answers(model: VLM, processor: Processor, asked: Sequence[tuple[list[dict[str, Any]], Asked]]) -> list[str]:
    """What the model answers, greedily, to a batch of questions."""
    conversations = [Sample.of(media, [question]).messages[:1] for media, question in asked]
    inputs = processor(conversations, add_generation_prompt=True).to(model.device)
    written = processor.decode(model.generate(**inputs, max_new_tokens=100))
    assert isinstance(written, list)
    return written


def score_table(results: dict[str, dict[str, tuple[int, int]]]) -> Iterator[str]:
    """A Markdown table of `examine`'s results by exam."""
    yield "| | kind | right | of | |"
    yield "|---|---|---|---|---|"
    for exam, counts in results.items():
        for kind, (right, of) in counts.items():
            yield f"| {exam} | {kind} | {right} | {of} | {right / of:.1%} |"
