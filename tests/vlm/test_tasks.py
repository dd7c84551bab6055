"""The tasks of the small model: their answers are true, their handwriting is split, their films are where their files are."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrope.preprocess import open_video
from mmrope.vlm.data import (
    FULL,
    SCHEDULE,
    Mix,
    TaskBatches,
    answer_spans,
    draw_sample,
    exact_answers,
    mix_at,
    task_processor,
    to_batch,
)
from mmrope.vlm.evaluate import draw_question, exams
from mmrope.vlm.tasks import CELL, FILM_KINDS, IMAGE_KINDS, QUESTION_KINDS, QUESTIONS, Film, Grid, Sums, digits, is_known
from tests.support import cases

SEEDS = st.integers(0, 2**32 - 1)
PROCESSOR = task_processor(padding_side="right", threads=1)


# --- handwriting ------------------------------------------------------------------------------------------------------


def test_every_image_is_either_to_learn_or_held_out():
    sets = [np.concatenate(digits(split)).reshape(-1, 64) for split in ("train", "held_out")]
    assert [len(images) for images in sets] == [1438, 359]
    learned, held_out = ({image.tobytes() for image in images} for images in sets)
    assert not learned & held_out


def test_the_darkest_ink_is_black():
    """scikit-learn's images go from 0 to 16."""
    assert max(images.max() for images in digits("train")) == 255
    assert min(images.min() for images in digits("train")) == 0


@pytest.mark.parametrize(("split", "varies"), [("train", True), ("held_out", False)])
def test_pens_differ_in_training_alone(split, varies, monkeypatch):
    """With ink that is half black, what is drawn is half black, or as much as a pen gives."""
    from mmrope.vlm import tasks

    monkeypatch.setattr(tasks, "digits", lambda _: tuple(np.full((1, 8, 8), 128, np.uint8) for _ in range(10)))
    darkest = {float(tasks.write_digit(np.random.default_rng(n), 3, split).max()) for n in range(5)}
    assert (len(darkest) > 1) == varies
    assert varies or darkest == {np.float32(128 / 255)}


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_ink_is_of_the_split_alone(split, monkeypatch):
    """With the other split's images all black, nothing changes."""
    from mmrope.vlm import tasks

    real = digits
    monkeypatch.setattr(tasks, "digits", lambda s: real(s) if s == split else tuple(np.full((1, 8, 8), 255) for _ in range(10)))
    grid = Grid.draw(np.random.default_rng(0), 4, 4, split)
    monkeypatch.undo()
    assert np.array_equal(grid.image, Grid.draw(np.random.default_rng(0), 4, 4, split).image)


@pytest.fixture
def splits(monkeypatch):
    """Of which splits images are taken."""
    from mmrope.vlm import tasks

    taken = set()
    real = tasks.digits
    monkeypatch.setattr(tasks, "digits", lambda split: taken.add(split) or real(split))
    return taken


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.2, 0.5])
def test_training_takes_what_is_there_to_learn(splits, progress):
    batches = TaskBatches(PROCESSOR, count=1000, batch_size=20, seed=0)
    batches[int(1000 * progress)]
    assert splits == {"train"}


@pytest.mark.parametrize("exam", [exam for exam in exams() if exam.kinds != ("sum",)], ids=lambda exam: exam.name)
def test_exams_take_what_was_held_out(splits, exam):
    rng = np.random.default_rng(0)
    for kind in exam.kinds:
        draw_question(rng, exam, kind)
    assert splits == {"held_out"}


def test_there_are_two_splits():
    with pytest.raises(ValueError, match="split must be 'train' or 'held_out', got 'test'"):
        digits("test")
    with pytest.raises(ValueError, match="read-only"):
        digits("train")[0][0, 0, 0] = 1


# --- answers ----------------------------------------------------------------------------------------------------------


def read(cells, question):
    """An answer, worked out from the words of the question."""
    name = {**{k: str(k) for k in range(10)}, -1: "blank"}
    rows = [[name[v] for v in row] for row in cells.tolist()]
    numbers = [int(n) for n in re.findall(r"\d+", question)]
    if question.startswith("What"):
        return rows[numbers[0] - 1][numbers[1] - 1]
    if question.startswith("Read row"):
        return " ".join(rows[numbers[0] - 1])
    if question.startswith("Read all"):
        return "; ".join(" ".join(row) for row in rows)
    places = [(r + 1, c + 1) for r, row in enumerate(rows) for c, v in enumerate(row) if v == str(numbers[0])]
    if question.startswith("How many"):
        return str(len(places))
    [(row, column)] = places
    return f"row {row}, column {column}"


@given(SEEDS, st.integers(1, 6), st.integers(1, 9), st.sampled_from(IMAGE_KINDS), st.none() | st.integers(1, 3))
@settings(max_examples=cases(200))
def test_answers_about_pictures_are_true(seed, rows, columns, kind, number):
    rng = np.random.default_rng(seed)
    grid = Grid.draw(rng, rows, columns, "held_out")
    assert grid.image.shape == (rows * CELL, columns * CELL, 3)
    asked = grid.ask(rng, kind, number=number)
    if asked is None:
        assert kind == "where"
        return
    assert asked.answer == read(grid.cells, asked.question.replace(f" of image {number}", ""))
    assert is_known(asked.question)


def test_ink_is_where_the_digits_are():
    grid = Grid.draw(np.random.default_rng(3), 5, 4, "held_out")
    grey = grid.image[..., 0].reshape(5, CELL, 4, CELL).astype(int)
    dark = (grey < grey.max() - 100).sum(axis=(1, 3))
    assert ((dark > 10) == (grid.cells >= 0)).all()


@given(SEEDS, st.sampled_from(FILM_KINDS))
@settings(max_examples=cases(200))
def test_answers_about_films_are_what_is_seen(seed, kind):
    """Worked out from the frames that the model sees: which digit, if any, each shows."""
    rng = np.random.default_rng(seed)
    film = Film.draw(rng, "held_out")
    seen = [film.shown(t) for t in film.looks]
    assert set(seen) - {-1} == set(range(len(film.digits))), "a digit is never seen"
    asked = film.ask(rng, kind)
    words = re.findall(r"[\d.]*\d", asked.question)
    expected = {
        "shown": lambda: str(film.digits[n]) if (n := seen[int(2 * float(words[0]))]) >= 0 else "blank",
        "when": lambda: f"{seen.index(film.digits.index(int(words[0]))) / 2:.1f} s",
        "after": lambda: str([*film.digits, "none"][film.digits.index(int(words[0])) + 1]),
        "list": lambda: " ".join(str(film.digits[n]) for n in dict.fromkeys(seen) if n >= 0),
    }
    assert asked.answer == expected[kind]()
    assert is_known(asked.question)


def test_sums():
    rng = np.random.default_rng(0)
    for _ in range(100):
        asked = Sums().ask(rng, "sum")
        assert sum(map(int, re.findall(r"\d+", asked.question))) == int(asked.answer)
        assert is_known(asked.question)


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_examples_of_questions_are_known(question):
    assert is_known(question)
    assert not is_known(question + " Please.")


# --- films as files ---------------------------------------------------------------------------------------------------


@given(seed=SEEDS)
@settings(max_examples=cases(25), deadline=None)
def test_a_film_s_file_is_looked_at_as_its_frames(seed, tmp_path_factory):
    rng = np.random.default_rng(seed)
    film = Film.draw(rng, "train")
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    film.save(rng, path)
    video = open_video(path)
    assert len(set(np.diff(video.seconds).round(3))) > 2, "the frame rate does not vary"
    question = {"type": "text", "text": "List the digits."}
    of_file, of_frames = (
        PROCESSOR([{"role": "user", "content": [item, question]}])
        for item in ({"type": "video", "video": path}, *film.media(rng))
    )
    assert torch.equal(of_file["position_ids"], of_frames["position_ids"])
    assert torch.equal(of_file["input_ids"], of_frames["input_ids"])
    assert of_file["second_per_grid_ts"].tolist() == [0.5]
    # the file is coded and shrunk, so noise differs; strokes do not
    a, b = (x["pixel_values_videos"].float().unflatten(1, (3, -1)) for x in (of_file, of_frames))
    assert (a - b).abs().mean() < 16


# --- batches ----------------------------------------------------------------------------------------------------------


def test_batch_n_is_batch_n():
    def batches(**changes):
        return TaskBatches(PROCESSOR, **{"count": 100, "batch_size": 3, "seed": 1, **changes})

    one, again = batches()[90], batches()[90]
    assert one.keys() == again.keys()
    assert all(torch.equal(one[key], again[key]) for key in one)
    for other in (batches()[91], batches(seed=2)[90]):
        assert not (other["input_ids"].shape == one["input_ids"].shape and torch.equal(other["input_ids"], one["input_ids"]))


@pytest.mark.parametrize("mix", [*(mix for _, mix in SCHEDULE), Mix(several=1), Mix(sums=1)], ids=str)
def test_labels_are_the_answers_and_nothing_else(mix):
    rng = np.random.default_rng(0)
    samples = [draw_sample(rng, mix, "train", PROCESSOR.tokenizer) for _ in range(20)]
    batch = to_batch(PROCESSOR, samples)
    assert (batch["attention_mask"][:, 0] == 1).all()
    for row, sample in enumerate(samples):
        tokens, labels, kinds = (batch[key][row] for key in ("input_ids", "labels", "kinds"))
        answers = [message["content"] for message in sample.messages if message["role"] == "assistant"]
        spans = answer_spans(tokens.tolist(), PROCESSOR)
        assert [PROCESSOR.tokenizer.decode(tokens[a:b].tolist(), special=True) for a, b in spans] == [
            f"{answer}<|im_end|>" for answer in answers
        ]
        learned = torch.cat([torch.arange(a, b) for a, b in spans])
        assert (labels >= 0).nonzero().flatten().tolist() == learned.tolist()
        assert torch.equal(labels[learned], tokens[learned])
        assert [QUESTION_KINDS[int(kinds[a])] for a, _ in spans] == list(sample.kinds)
        assert ((kinds >= 0) == (labels >= 0)).all()


def test_no_question_is_asked_twice():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sample = draw_sample(rng, FULL, "train", PROCESSOR.tokenizer)
        asked = [m["content"][-1]["text"] for m in sample.messages if m["role"] == "user"]
        assert len(set(asked)) == len(asked)


def test_phases_follow_each_other():
    untils = [until for until, _ in SCHEDULE]
    assert untils == sorted(untils)
    assert untils[-1] == 1
    assert mix_at(0.0) is SCHEDULE[0][1]
    assert mix_at(untils[0]) is SCHEDULE[1][1]
    assert mix_at(1.0) is FULL


@given(SEEDS)
@settings(max_examples=cases(20), deadline=None)
def test_exact_answers_counts_answers_that_are_right_throughout(seed):
    rng = np.random.default_rng(seed)
    batch = to_batch(PROCESSOR, [draw_sample(rng, FULL, "train", PROCESSOR.tokenizer) for _ in range(4)])
    labels, kinds = batch["labels"], batch["kinds"]
    guesses = torch.where(torch.from_numpy(rng.random(labels.shape)) < 0.9, labels, 7).clamp_min(0)
    logits = torch.nn.functional.one_hot(guesses.roll(-1, dims=1), PROCESSOR.tokenizer.size).float()
    expected: dict[str, list[int]] = {}
    for row in range(len(labels)):
        for start, stop in answer_spans(batch["input_ids"][row].tolist(), PROCESSOR):
            count = expected.setdefault(QUESTION_KINDS[int(kinds[row, start])], [0, 0])
            count[0] += bool((guesses[row, start:stop] == labels[row, start:stop]).all())
            count[1] += 1
    counts = dict(zip(QUESTION_KINDS, exact_answers(logits, batch).tolist(), strict=True))
    assert {kind: count for kind, count in counts.items() if count[1]} == expected
