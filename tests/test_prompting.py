"""Chain of thought and self-consistency: the prompts, what counts as an answer, and the votes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrope.prompting import (
    Example,
    chain_of_thought,
    extract_answer,
    majority_vote,
    self_consistency,
    vote_accuracy,
)

ANSWERS = st.sampled_from(["1", "2", "3"])


def test_without_examples_the_prompt_asks_for_steps():
    assert chain_of_thought("What is 2 + 3?") == "Q: What is 2 + 3?\nA: Let's think step by step."


def test_examples_show_reasoning_and_the_form_of_the_answer():
    prompt = chain_of_thought("What is 2 + 3?", [Example("What is 1 + 1?", "One and one make two.", "2")])
    assert prompt == "Q: What is 1 + 1?\nA: One and one make two. The answer is 2.\n\nQ: What is 2 + 3?\nA:"
    assert extract_answer(prompt) == "2"


def test_an_empty_question():
    with pytest.raises(ValueError, match="needs a question"):
        chain_of_thought(" ")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Two and three. The answer is 5.", "5"),
        ("the answer is: 1,234.50.", "1234.5"),
        ("The answer is 4. No: the answer is +005.\nDone.", "5"),
        ("The answer is $-0.0$", "0"),
        ("The answer is \\boxed{5}.", "5"),
        ("The answer isn't 4.", None),
        ("The answer is 4. No, the answer isn't 4.", "4"),
        ("So \\boxed{4}, thus \\boxed{12}", "12"),
        (" 17 ", "17"),
        ("-3", "-3"),
        ("The answer is row 2, column 3.", "row 2, column 3"),
        ("The answer is **Paris**.", "Paris"),
        ("I counted 3 and then 4", None),
        ("The answer is", None),
        ("", None),
    ],
)
def test_answers(text, answer):
    assert extract_answer(text) == answer


@given(st.integers(-(10**9), 10**9))
def test_every_way_to_write_a_number_is_one_answer(n):
    assert {extract_answer(f"The answer is {form}.") for form in (str(n), f"{n:,}", f"{n:+}", f"{n}.0")} == {str(n)}


@given(st.lists(ANSWERS | st.none()))
def test_the_majority_wins(answers):
    vote = majority_vote(answers)
    given_ = [a for a in answers if a is not None]
    assert vote.unparsed == answers.count(None)
    assert sum(vote.counts.values()) == len(given_)
    if not given_:
        assert vote.answer is None
        assert vote.share == 0
        assert vote.tied == ()
        return
    most = max(map(given_.count, given_))
    assert given_.count(vote.answer) == most
    assert vote.share == most / len(answers)
    equals = {a for a in given_ if given_.count(a) == most}
    assert set(vote.tied) == (equals if len(equals) > 1 else set())
    assert vote.answer == next(a for a in given_ if a in equals), "of equals, the first that was given"


@given(st.lists(ANSWERS | st.none(), min_size=1), st.randoms())
def test_without_a_tie_the_order_does_not_matter(answers, random):
    vote = majority_vote(answers)
    shuffled = list(answers)
    random.shuffle(shuffled)
    if not vote.tied:
        assert majority_vote(shuffled).answer == vote.answer


def test_a_writer_is_asked_as_often_as_said():
    texts = iter(["The answer is 4.", "no idea", "The answer is 5.", "The answer is 5."])
    prompts = []

    def write(prompt):
        prompts.append(prompt)
        return next(texts)

    vote = self_consistency(write, "Q", samples=4)
    assert (vote.answer, vote.counts, vote.unparsed, vote.share) == ("5", {"5": 2, "4": 1}, 1, 0.5)
    assert prompts == ["Q"] * 4


def test_what_cannot_be_asked():
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        self_consistency(lambda prompt: "1", "Q", samples=0)
    with pytest.raises(ValueError, match="must return a text, got int"):
        self_consistency(lambda prompt: 1, "Q")
    with pytest.raises(ValueError, match="must return a text, got NoneType"):
        self_consistency(lambda prompt: None, "Q")


def test_answers_in_words_vote_as_they_are():
    assert self_consistency(lambda prompt: " row 2, column 1", "Q", samples=3).answer is None
    assert self_consistency(lambda prompt: " row 2, column 1", "Q", samples=3, extract=str.strip).answer == "row 2, column 1"


@pytest.mark.parametrize(("p", "samples", "expected"), [(0.6, 5, 0.68256), (0.6, 11, 0.7535), (0.5, 4, 0.5), (1.0, 2, 1.0)])
def test_what_voting_can_give(p, samples, expected):
    assert vote_accuracy(p, samples) == pytest.approx(expected, abs=5e-5)


def test_votes_of_simulated_writers_are_as_binomial():
    rng = np.random.default_rng(0)
    for p in (0.4, 0.6, 0.8):
        for samples in (3, 4, 9):
            wins = 0
            for _ in range(2000):
                vote = self_consistency(lambda prompt: "1" if rng.random() < p else "0", None, samples=samples)  # noqa: B023
                wins += 0.5 if vote.tied else vote.answer == "1"
            error = 4 * (0.25 / 2000) ** 0.5
            assert wins / 2000 == pytest.approx(vote_accuracy(p, samples), abs=error)


def test_probabilities():
    with pytest.raises(ValueError, match="0 <= p <= 1"):
        vote_accuracy(1.5, 3)
