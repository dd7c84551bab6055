"""Sums of numbers with more digits than those of the training: written at once, step by step, and by a vote of many tries."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmrope.lab.encodings import OF_TEXT, counted
from mmrope.lab.harness import Cell, Experiment, Metrics, fit
from mmrope.lab.reader import Reader, sizes
from mmrope.lab.text import VOCABULARY
from mmrope.prompting import extract_answer, self_consistency

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

    @property
    def result(self) -> str:
        """What the right answer comes to, "C5B2"."""
        return self._marked(self.a + self.b)

    def answer(self, how: str) -> str:
        """ "so C5B2.", and before it, step by step, "B7+5+0=12,C4+0+1=05,"."""
        steps, carry = "", 0
        for place in range(self.digits if how == "step by step" else 0):
            x, y = (n // 10**place % 10 for n in (self.a, self.b))
            steps += f"{MARKS[self.units + place]}{x}+{y}+{carry}={x + y + carry:02d},"
            carry = (x + y + carry) // 10
        return f"{steps}{CUE} {self.result}{END}"

    def _marked(self, number: int) -> str:
        digits = str(number)
        return "".join(f"{MARKS[self.units + len(digits) - 1 - n]}{digit}" for n, digit in enumerate(digits))


def result(text: str) -> str | None:
    """What an answer comes to, if it came to an end."""
    return extract_answer(text, cue=CUE) if text.endswith(END) else None


def sum_rows(texts: Sequence[str], device: str, *, right: bool) -> Tensor:
    """[n, S], questions with new lines before them, so that they end together; answers (`right`) with END behind them."""
    length = max(map(len, texts))
    padded = (text.ljust(length, END) if right else text.rjust(length, "\n") for text in texts)
    return torch.tensor([list(text.encode()) for text in padded], device=device)


def write(model: Reader, prompts: Tensor, most: int, temperature: float, generator: torch.Generator) -> list[str]:
    """What follows each prompt [n, S], up to END."""
    tokens = model.write(prompts, most, temperature=temperature, generator=generator, end=ord(END))
    texts = [bytes(row).decode("latin-1") for row in tokens.tolist()]
    return [text[: text.find(END) + 1] if END in text else text for text in texts]


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
        asked = sum_rows([one.question for one in sums], cell.device, right=False)
        rows = torch.cat([asked, sum_rows([one.answer(how) for one in sums], cell.device, right=True)], dim=1)
        logits = model(rows[:, :-1], counted(len(rows), rows.shape[1] - 1, cell.device))
        return F.cross_entropy(logits[:, asked.shape[1] - 1 :].flatten(0, 1), rows[:, asked.shape[1] :].flatten())

    fit(model, loss, cell.steps, say=cell.say)
    metrics: Metrics = {}
    for digits in cell.tested:
        rng = random.Random(10**6 + digits)
        sums = [Sum.draw(digits, rng) for _ in range(cell.count)]
        prompts = sum_rows([one.question for one in sums], cell.device, right=False)
        most = max(len(one.answer(how)) for one in sums)
        if encoding == "learned" and prompts.shape[1] + most > longest:
            continue  # there are no embeddings of later places
        generator = torch.Generator(cell.device).manual_seed(seed)
        texts = write(model, prompts, most, 0.0, generator)
        right = [result(text) == one.result for text, one in zip(texts, sums, strict=True)]
        metrics[str(digits)] = statistics.mean(right)
        if digits in cell.voted:
            metrics[f"likeliest of those voted on at {digits}"] = statistics.mean(right[: cell.voters])
            texts = write(model, prompts[: cell.voters].repeat_interleave(cell.tries, dim=0), most, 1.0, generator)
            found = votes(texts, sums[: cell.voters], cell)
            metrics |= {f"{name} at {digits}": value for name, value in found.items()}
    return metrics


def votes(texts: Sequence[str], sums: Sequence[Sum], cell: Cell) -> Metrics:
    """Of each sum's tries, in turn: how many are right, how often votes of some of them are, and what the binomial
    distribution says of such votes if all wrong tries agreed."""
    found: dict[str, list[float]] = {}
    for n, one in enumerate(sums):
        mine = texts[n * cell.tries : (n + 1) * cell.tries]
        right = sum(result(text) == one.result for text in mine)
        found.setdefault("drawn", []).append(right / cell.tries)
        tries = iter(mine)
        for _ in range(cell.tries // cell.votes):
            vote = self_consistency(lambda prompt, tries=tries: next(tries), "", samples=cell.votes, extract=result)
            found.setdefault(f"vote of {cell.votes}", []).append(vote.answer == one.result)
        found.setdefault(f"binomial {cell.votes}", []).append(majority_of(right, cell.tries, cell.votes))
    return {name: statistics.mean(values) for name, values in found.items()}


def majority_of(right: int, tries: int, votes: int) -> float:
    """How often an odd number of votes, drawn from tries of which so many are right, has a majority that is. Over tries that
    are right with probability p its mean is `vote_accuracy(p, votes)`, which of the share of right tries it would not be."""
    least = votes // 2 + 1
    ways = sum(math.comb(right, k) * math.comb(tries - right, votes - k) for k in range(least, votes + 1))
    return ways / math.comb(tries, votes)


EXPERIMENT = Experiment(
    name="sums",
    question="Which encodings add numbers with more digits than those of the training, at once, step by step, and by votes?",
    setting="Sums of two numbers, every digit behind a letter that names its place: C4B7+B5= is 47 + 5, and which letter the "
    "units have is drawn anew for every sum. The answer is written at once, so C5B2., or after the steps of the school "
    "method, B7+5+0=12,C4+0+1=05,so C5B2. Trained on numbers of up to 5 digits; digits are those of the longer number, the "
    "other has as many or fewer. Right is an answer that ends, with every digit behind its letter. Tested by the likeliest "
    "answer; and, of the first 100 sums, by answers that are drawn at temperature 1 and by votes of five of these "
    "(self-consistency), beside what the binomial distribution says of five independent tries if all wrong ones agreed.",
    paper="Zhou et al. (arXiv 2402.09371): 2.5 times the trained digits with FIRE, random positions, reversed digits and "
    "letters for places (index hints), and large differences between seeds. Kazemnejad et al. (2305.19466): NoPE before "
    "ALiBi and RoPE; scratchpads help by their form, or do not. Self-consistency (2203.11171): 17.9 points on GSM8K, of "
    "large models.",
    variants=tuple(f"{encoding}, {how}" for how in HOW for encoding in OF_TEXT),
    full={
        **{"hidden": 64, "heads": 4, "layers": 3, "batch": 32, "steps": 900, "trained": 5, "tested": [2, 3, 4, 5, 6, 7, 8]},
        **{"count": 256, "voted": [5, 6], "voters": 100, "tries": 15, "votes": 5},
    },
    quick={
        **{"hidden": 32, "heads": 2, "layers": 1, "batch": 4, "steps": 4, "trained": 2, "tested": [2, 3], "count": 4},
        **{"voted": [2], "voters": 2, "tries": 3, "votes": 3},
    },
    cell=cell,
    x="digits",
    y="share of sums that are right",
)
