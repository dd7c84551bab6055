"""Sums of numbers with more digits than those of the training: written at once, step by step, and by a vote of many tries."""

from __future__ import annotations

import random
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmrope.lab.encodings import OF_TEXT, counted
from mmrope.lab.harness import Cell, Experiment, Metrics, fit
from mmrope.lab.reader import Reader, sizes
from mmrope.lab.text import VOCABULARY
from mmrope.prompting import extract_answer, self_consistency, vote_accuracy

MARKS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Names of places: units have any of them, tens the next one, and so on. Every one is seen in training."""
CUE, END = "so", "."
HOW = ("at once", "step by step")


@dataclass(frozen=True)
class Sum:
    """a + b, of at most `digits` digits; units are named MARKS[units]."""

    a: int
    b: int
    digits: int
    units: int

    @classmethod
    def draw(cls, digits: int, rng: random.Random) -> Sum:
        """One number has so many digits, the other as many or fewer."""
        sizes = [digits, rng.randint(1, digits)]
        rng.shuffle(sizes)
        a, b = (rng.randrange(10 ** (size - 1) if size > 1 else 0, 10**size) for size in sizes)
        return cls(a, b, digits, rng.randrange(len(MARKS) - digits))

    @property
    def question(self) -> str:
        """ "C4B7+B5=" asks for 47 + 5 if units are named B."""
        return f"\n{self._marked(self.a)}+{self._marked(self.b)}="

    def answer(self, how: str) -> str:
        """ "so C5B2.", and before it, step by step, "B7+5+0=12,C4+0+1=05,"."""
        steps, carry = "", 0
        for place in range(self.digits if how == "step by step" else 0):
            x, y = (n // 10**place % 10 for n in (self.a, self.b))
            steps += f"{MARKS[self.units + place]}{x}+{y}+{carry}={x + y + carry:02d},"
            carry = (x + y + carry) // 10
        return f"{steps}{CUE} {self._marked(self.a + self.b)}{END}"

    def _marked(self, number: int) -> str:
        digits = str(number)
        return "".join(f"{MARKS[self.units + len(digits) - 1 - n]}{digit}" for n, digit in enumerate(digits))


def result(text: str) -> str | None:
    """The number that an answer comes to."""
    said = extract_answer(text, cue=CUE)
    return said and re.sub(f"[{MARKS}]", "", said)


def rows_of(texts: Sequence[str], device: str, *, right: bool) -> Tensor:
    """[n, S], questions with new lines before them, so that they end together; answers (`right`) with END behind them."""
    length = max(map(len, texts))
    padded = (text.ljust(length, END) if right else text.rjust(length, "\n") for text in texts)
    return torch.tensor([list(text.encode()) for text in padded], device=device)


def write(model: Reader, prompts: Tensor, most: int, temperature: float, generator: torch.Generator) -> list[str]:
    """What follows each prompt [n, S], up to END."""
    tokens = model.write(prompts, most, temperature=temperature, generator=generator, end=ord(END))
    return [bytes(row).decode("latin-1").partition(END)[0] + END for row in tokens.tolist()]


def cell(variant: str, seed: int, cell: Cell) -> Metrics:
    """The share of sums that are right, by digits: of the likeliest answers, of answers that are drawn, of votes of some of
    these; and what the binomial distribution says of such votes."""
    encoding, how = variant.split(", ")
    nines = 10**cell.trained - 1
    most_trained = Sum(nines, nines, cell.trained, 0)
    longest = len(most_trained.question + most_trained.answer(how))
    built = OF_TEXT[encoding](cell.hidden, cell.heads, cell.hidden // cell.heads, longest)
    model = Reader(built, sizes(cell.hidden, cell.heads, cell.layers), VOCABULARY).to(cell.device)
    rng = random.Random(seed)

    def loss(step: int) -> Tensor:
        digits = rng.randint(1, cell.trained)
        sums = [Sum.draw(digits, rng) for _ in range(cell.batch)]
        asked = rows_of([one.question for one in sums], cell.device, right=False)
        rows = torch.cat([asked, rows_of([one.answer(how) for one in sums], cell.device, right=True)], dim=1)
        logits = model(rows[:, :-1], counted(len(rows), rows.shape[1] - 1, cell.device))
        return F.cross_entropy(logits[:, asked.shape[1] - 1 :].flatten(0, 1), rows[:, asked.shape[1] :].flatten())

    fit(model, loss, cell.steps, say=cell.say)
    metrics: Metrics = {}
    for digits in cell.tested:
        rng = random.Random(10**6 + digits)
        sums = [Sum.draw(digits, rng) for _ in range(cell.count)]
        prompts = rows_of([one.question for one in sums], cell.device, right=False)
        most = max(len(one.answer(how)) for one in sums)
        if encoding == "learned" and prompts.shape[1] + most > longest:
            continue  # there are no embeddings of later places
        generator = torch.Generator(cell.device).manual_seed(seed)
        right = [str(one.a + one.b) for one in sums]
        likeliest = map(result, write(model, prompts, most, 0.0, generator))
        metrics[str(digits)] = sum(x == y for x, y in zip(likeliest, right, strict=True)) / len(sums)
        if digits in cell.voted:
            texts = write(model, prompts[: cell.voters].repeat_interleave(cell.tries, dim=0), most, 1.0, generator)
            metrics |= {f"{name} at {digits}": value for name, value in votes(texts, right[: cell.voters], cell)}
    return metrics


def votes(texts: Sequence[str], right: Sequence[str], cell: Cell) -> Iterator[tuple[str, float]]:
    """Of each sum's tries, in turn: how many are right, how often votes of some of them are, and what the binomial
    distribution says of such votes, given each sum's own share of right tries, if all wrong ones agreed."""
    tries: dict[str, list[float]] = {}
    for n, number in enumerate(right):
        mine = texts[n * cell.tries : (n + 1) * cell.tries]
        share = sum(result(text) == number for text in mine) / cell.tries
        tries.setdefault("drawn", []).append(share)
        for size in cell.votes:
            some = iter(mine)
            for _ in range(cell.tries // size):
                vote = self_consistency(lambda prompt, some=some: next(some), "", samples=size, extract=result)
                tries.setdefault(f"vote of {size}", []).append(vote.answer == number)
            tries.setdefault(f"binomial {size}", []).append(vote_accuracy(share, size))
    return ((name, statistics.mean(values)) for name, values in tries.items())


EXPERIMENT = Experiment(
    name="sums",
    question="Which encodings add numbers with more digits than those of the training, at once, step by step, and by votes?",
    setting="Sums of two numbers, every digit behind a letter that names its place: C4B7+B5= is 47 + 5, and which letter the "
    "units have is drawn anew for every sum. The answer is written at once, so C5B2., or after the steps of the school "
    "method, B7+5+0=12,C4+0+1=05,so C5B2. Trained on numbers of up to 5 digits. Tested by the likeliest answer; by answers "
    "that are drawn at temperature 1; and by votes of five of these (self-consistency), beside what the binomial "
    "distribution says of five independent tries, given each sum's own share of right ones, if all wrong ones agreed.",
    paper="Zhou et al. (arXiv 2402.09371): 2.5 times the trained digits with FIRE, random positions, reversed digits and "
    "letters for places (index hints), and large differences between seeds. Kazemnejad et al. (2305.19466): NoPE before "
    "ALiBi and RoPE; scratchpads help by their form, or do not. Self-consistency (2203.11171): 17.9 points on GSM8K, of "
    "large models.",
    variants=tuple(f"{encoding}, {how}" for how in HOW for encoding in OF_TEXT),
    full={
        **{"hidden": 64, "heads": 4, "layers": 3, "batch": 32, "steps": 1000, "trained": 5, "tested": [2, 3, 4, 5, 6, 7, 8]},
        **{"count": 256, "voted": [3, 5, 6, 7], "voters": 40, "tries": 25, "votes": [5]},
    },
    quick={
        **{"hidden": 32, "heads": 2, "layers": 1, "batch": 4, "steps": 4, "trained": 2, "tested": [2, 3], "count": 4},
        **{"voted": [2], "voters": 2, "tries": 3, "votes": [3]},
    },
    cell=cell,
    x="digits",
    y="share of sums that are right",
)
