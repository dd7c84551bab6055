"""Asking a model to reason, and several times: chain-of-thought prompts, and votes over sampled answers.

Nothing here knows a model: a writer is any function from a prompt to a text.

Sources: chain of thought, Wei et al. 2022 (arXiv 2201.11903); "Let's think step by step", Kojima et al. 2022 (2205.11916);
self-consistency, Wang et al. 2022 (2203.11171), whose best or equal rule is the plain majority.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Prompt = TypeVar("Prompt")

STEP_BY_STEP = "Let's think step by step."
ANSWER_CUE = "The answer is"


@dataclass(frozen=True)
class Example:
    """A question with its reasoning and its answer, to show a model how.

    Example:
        >>> from mmrope.prompting import Example, chain_of_thought
        >>> shown = Example("What is 2 + 3?", "Two and three make five.", "5")
        >>> print(chain_of_thought("What is 4 + 4?", [shown]))
        Q: What is 2 + 3?
        A: Two and three make five. The answer is 5.
        <BLANKLINE>
        Q: What is 4 + 4?
        A:
    """

    question: str
    reasoning: str
    answer: str


def chain_of_thought(
    question: str, examples: Sequence[Example] = (), *, cue: str = STEP_BY_STEP, answer_cue: str = ANSWER_CUE
) -> str:
    """A prompt that asks for reasoning before the answer.

    With examples, it shows them and leaves the last answer open (few-shot, Wei et al.); without, it ends with the cue
    (zero-shot, Kojima et al.).

    Raises:
        ValueError: an empty question.

    Example:
        >>> from mmrope.prompting import chain_of_thought
        >>> print(chain_of_thought("How many digits are in the picture?"))
        Q: How many digits are in the picture?
        A: Let's think step by step.
    """
    if not question.strip():
        raise ValueError("a prompt needs a question, got an empty one")
    shown = [f"Q: {e.question}\nA: {e.reasoning} {answer_cue} {e.answer}.\n" for e in examples]
    return "\n".join([*shown, f"Q: {question}\nA:" + ("" if examples else f" {cue}")])


def extract_answer(text: str, *, cue: str = ANSWER_CUE) -> str | None:
    """The answer that a text comes to, or None if it has none: nothing is guessed.

    What follows the last cue, up to the end of its line or sentence; else the last \\boxed{...}; else, if the whole text is
    a number, that. Short answers that are no numbers need another function, such as `str.strip`. Numbers lose their
    thousands separators, a plus sign and zeros that say nothing, so that equal ones vote together.

    Example:
        >>> from mmrope.prompting import extract_answer
        >>> extract_answer("Three rows of four. The answer is 12.")
        '12'
        >>> extract_answer("I do not know") is None
        True
    """
    _, *after = re.split(rf"{re.escape(cue)}(?!\w):?[ \t]*", text, flags=re.IGNORECASE)
    said = re.split(r"\.(?:\s|$)|\n", after[-1], maxsplit=1)[0] if after else text
    if boxed := re.findall(r"\\boxed\{([^{}]*)\}", said):
        answer = boxed[-1]
    elif after:
        answer = said
    elif _number(text.strip()) is not None:
        answer = text
    else:
        return None
    answer = answer.strip().strip("*$`\"'").strip()
    return _number(answer) or answer or None


def _number(text: str) -> str | None:
    """A number in its shortest form, or None if it is none."""
    match = re.fullmatch(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?", text)
    if not match:
        return None
    sign, whole, rest = match[1], match[2].replace(",", "").lstrip("0") or "0", (match[3] or "").rstrip("0").rstrip(".")
    return f"{'-' if sign == '-' and (whole != '0' or rest) else ''}{whole}{rest}"


@dataclass(frozen=True)
class Vote:
    """The outcome of a vote.

    Example:
        >>> from mmrope.prompting import majority_vote
        >>> vote = majority_vote(["4", "4", "5", None])
        >>> vote.answer, vote.share, vote.unparsed
        ('4', 0.5, 1)
    """

    answer: str | None
    """The answer with the most votes; of several, the one that was given first. None if no text had an answer."""
    counts: dict[str, int]
    """Votes for each answer, most first."""
    unparsed: int
    """Texts without an answer: they do not vote."""
    tied: tuple[str, ...]
    """The answers with the most votes, if they are several."""

    @property
    def share(self) -> float:
        """The winner's share of all texts, those without an answer included; 0 if there is none."""
        total = sum(self.counts.values()) + self.unparsed
        return max(self.counts.values(), default=0) / total if total else 0.0


def majority_vote(answers: Iterable[str | None]) -> Vote:
    """The most frequent answer; None stands for a text without one.

    Example:
        >>> from mmrope.prompting import majority_vote
        >>> majority_vote(["4", "5", "4"]).answer
        '4'
        >>> majority_vote(["4", "5"]).tied
        ('4', '5')
    """
    answers = list(answers)
    counts = Counter(answer for answer in answers if answer is not None)
    ordered = dict(counts.most_common())  # of equals, the first that was given comes first
    most = max(ordered.values(), default=0)
    first = [answer for answer, votes in ordered.items() if votes == most]
    return Vote(first[0] if first else None, ordered, answers.count(None), tuple(first) if len(first) > 1 else ())


def self_consistency(
    write: Callable[[Prompt], str],
    prompt: Prompt,
    *,
    samples: int = 5,
    extract: Callable[[str], str | None] = extract_answer,
) -> Vote:
    """Asks several times and lets the answers vote.

    Args:
        write: a text for a prompt, another at each call: sampled at a temperature above 0.
        prompt: what `write` takes: a string, or messages.
        samples: how many texts.
        extract: the answer of a text, or None.

    Raises:
        ValueError: fewer than one sample, or a writer that does not return text.

    Example:
        >>> from mmrope.prompting import self_consistency
        >>> answers = iter(["The answer is 12.", "The answer is 7.", "So the answer is 12."])  # a model's, sampled
        >>> vote = self_consistency(lambda prompt: next(answers), "3 x 4?", samples=3)
        >>> vote.answer, vote.counts
        ('12', {'12': 2, '7': 1})
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    texts = [write(prompt) for _ in range(samples)]
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"write must return a text, got {type(wrong[0]).__name__}")
    return majority_vote(map(extract, texts))


def vote_accuracy(p: float, samples: int) -> float:
    """How often a majority of independent answers is right, when each is right with probability p and all wrong ones agree
    (the worst case): the binomial tail, half of it where votes are equal.

    Raises:
        ValueError: p is no probability, or fewer than one sample.

    Example:
        >>> from mmrope.prompting import vote_accuracy
        >>> [round(vote_accuracy(0.7, samples), 3) for samples in (1, 5, 15)]
        [0.7, 0.837, 0.95]
    """
    if not 0 <= p <= 1 or samples < 1:
        raise ValueError(f"need 0 <= p <= 1 and samples >= 1, got {p=}, {samples=}")
    chance = [math.comb(samples, k) * p**k * (1 - p) ** (samples - k) for k in range(samples + 1)]
    return sum(chance[samples // 2 + 1 :]) + (chance[samples // 2] / 2 if samples % 2 == 0 else 0.0)
