"""The model that is shipped: it answers, from the command line too, and it is right as often as its card says."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from mmrope.preprocess.image import load_image
from mmrope.prompting import extract_answer, self_consistency
from mmrope.vlm import VLMConfig
from mmrope.vlm.assistant import Assistant, Chat, small_model
from mmrope.vlm.data import small_config, task_processor
from mmrope.vlm.evaluate import answers, draw_question, examine, exams
from mmrope.vlm.looks import attention_weights, looked_at
from tests.support import ROOT

EXAMS = {exam.name: exam for exam in exams()}
MMROPE = [sys.executable, "-c", "from mmrope.cli import app; app(prog_name='mmrope')"]


def mmrope(*arguments, typed=None, cwd=None):
    return subprocess.run(
        [*MMROPE, *map(str, arguments)], capture_output=True, text=True, timeout=120, input=typed, cwd=cwd, check=False
    )


@pytest.fixture(scope="module")
def assistant():
    return Assistant.from_pretrained()


@pytest.fixture(scope="module")
def grid(samples):
    return {"type": "image", "image": samples / "grid.png"}


def user(*content):
    return [{"role": "user", "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}]


# --- how good it is ---------------------------------------------------------------------------------------------------

SMALL = small_model()
CARD = (SMALL / "README.md").read_text(encoding="utf-8")
RESULTS = {
    (exam, kind): int(right) / int(of)
    for exam, kind, right, of in re.findall(r"^\| ([^|]+) \| (\w+) \| (\d+) \| (\d+) \|", CARD, re.MULTILINE)
}


@pytest.mark.parametrize("name", EXAMS)
def test_it_is_right_as_often_as_its_card_says(assistant, name):
    """On other questions than the card's, and fewer: chance may take four standard errors."""
    count = 40
    counts = examine(assistant.model, assistant.processor, EXAMS[name], count=count, seed=17)
    for kind, (right, _) in counts.items():
        share = RESULTS[name, kind]
        assert right / count >= share - 4 * (share * (1 - share) / count) ** 0.5 - 1 / count, (kind, counts)


def test_without_right_ids_it_cannot_answer(assistant):
    """The same tokens and pixels: with the rows' ids in the columns' place, as flat text, and with the time standing still."""
    rng = np.random.default_rng(0)
    for name, kind, spoil in (
        ("2 x 2 to 5 x 5", "at", lambda ids: ids[[0, 2, 1]]),
        ("2 x 2 to 5 x 5", "at", lambda ids: torch.arange(ids.shape[-1]).expand_as(ids)),
        ("films", "shown", lambda ids: torch.where(ids[:1] != ids[1:2], ids[1:2], ids)),
    ):
        right = dict.fromkeys(("true", "spoiled"), 0)
        for _ in range(20):
            media, asked = draw_question(rng, EXAMS[name], kind)
            inputs = assistant.processor(user(*media, asked.question))
            for key, ids in (("true", inputs["position_ids"]), ("spoiled", spoil(inputs["position_ids"]))):
                tokens = assistant.model.generate(**{**inputs, "position_ids": ids})
                right[key] += assistant.processor.decode(tokens) == [asked.answer]
        assert right["true"] >= 18
        assert right["spoiled"] <= 12, (name, right)


def test_batched_or_one_by_one_the_answers_are_the_same(assistant, tmp_path):
    rng = np.random.default_rng(5)
    drawn = [
        draw_question(rng, exam, kind, tmp_path / f"{exam.name}-{kind}.mp4") for exam in EXAMS.values() for kind in exam.kinds
    ]
    batched = answers(assistant.model, assistant.processor, drawn)
    assert batched == [answer for one in drawn for answer in answers(assistant.model, assistant.processor, [one])]


# --- its files --------------------------------------------------------------------------------------------------------


def test_its_files_are_small_and_told_in_its_card():
    assert sum(path.stat().st_size for path in SMALL.iterdir() if path.is_file()) < 12e6
    assert set(RESULTS) == {(exam.name, kind) for exam in EXAMS.values() for kind in exam.kinds}
    assert {value.dtype for value in load_file(SMALL / "model.safetensors").values()} == {torch.bfloat16}
    training = json.loads((SMALL / "training.json").read_text(encoding="utf-8"))
    settings = training["settings"]
    assert training["step"] == settings["steps"]
    batch_size = settings.get("about", settings)["batch_size"]  # among the others in trainings of before
    assert f"{settings['steps']:,} steps of {batch_size} conversations" in CARD.replace("\n", " ")
    log = [json.loads(line) for line in (SMALL / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert log[-1]["step"] == settings["steps"]
    assert f"the loss ended at {log[-1]['loss']:.3f}" in CARD


def test_it_is_what_the_training_script_makes(assistant):
    assert assistant.model.config == small_config(task_processor())
    made = task_processor(padding_side="left")
    assert assistant.processor.family == made.family
    assert assistant.processor.patches == made.patches
    assert assistant.processor.tokenizer == made.tokenizer


# --- the assistant ----------------------------------------------------------------------------------------------------


def test_an_answer_is_its_pieces(assistant, grid):
    messages = user(grid, "Read all.")
    pieces = list(assistant.stream(messages))
    assert "".join(pieces) == assistant.answer(messages) == "blank 6 6 8; 5 7 8 2; 0 3 2 8"
    assert len(pieces) > 10


def test_a_list_of_conversations_is_answered_as_a_batch(assistant, grid, samples):
    strip = {"type": "image", "image": samples / "strip.png"}
    questions = [user(grid, strip, "What is at row 1, column 3 of image 2?"), user("What is 27 + 48?")]
    assert assistant.answer(questions) == [assistant.answer(question) for question in questions] == ["9", "75"]


def test_a_chat_remembers(assistant, grid):
    chat = Chat(assistant, [grid])
    assert chat.answer("What is at row 2, column 3?") == "8"
    assert "".join(chat.stream("Where is the 5?")) == "row 2, column 1"
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2
    assert chat.messages[0]["content"][0] is grid
    assert chat.messages[2]["content"] == [{"type": "text", "text": "Where is the 5?"}]


def test_several_conversations_are_no_stream(assistant):
    with pytest.raises(ValueError, match="stream answers one conversation, got a list of them: use answer"):
        list(assistant.stream([user("What is 1 + 1?")] * 2))


def test_a_seed_is_an_answer(assistant, grid):
    messages = user(grid, "Read all.")
    one, again, other = (assistant.answer(messages, temperature=3.0, seed=seed) for seed in (1, 1, 2))
    assert one == again != other
    assert "".join(assistant.stream(messages, temperature=3.0, seed=1)) == one


def test_letters_of_several_tokens_come_whole():
    """A model that writes the bytes of UTF-8: pieces never hold half a letter."""

    class Scripted:
        device = torch.device("cpu")
        config = VLMConfig()

        def __init__(self, written):
            self.written = written

        def stream(self, **inputs):
            yield from ([byte] for byte in self.written)

    def pieces(written):
        return list(Assistant(Scripted(written), task_processor()).stream(user("Hi")))  # pyright: ignore

    assert pieces("naïve 🙂".encode()) == list("naïve 🙂")
    assert pieces("a🙂".encode()[:-1]) == ["a", "\ufffd"]  # cut off by max_new_tokens


@pytest.mark.parametrize(
    ("question", "extract", "answer"),
    [("How many 8s are there?", extract_answer, "3"), ("Where is the 5?", str.strip, "row 2, column 1")],
)
def test_answers_vote(assistant, grid, question, extract, answer):
    seeds = iter(range(5))
    vote = self_consistency(
        lambda prompt: assistant.answer(prompt, temperature=0.5, seed=next(seeds)),
        user(grid, question),
        samples=5,
        extract=extract,
    )
    assert vote.answer == answer
    assert sum(vote.counts.values()) == 5


@pytest.mark.parametrize("device", ["cuda:99", "gpu", ""])
def test_a_device_that_is_not_there(device):
    with pytest.raises(ValueError, match=rf"torch .* cannot use the device '{device}': .*; try 'cpu'"):
        Assistant.from_pretrained(device=device)


def test_auto_is_a_gpu_if_there_is_one():
    assert Assistant.from_pretrained(device="auto").model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


# --- where it looks ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_weights_are_those_of_the_attention(assistant, grid, monkeypatch):
    """The fast kernel, fed with one-hot values, hands the same weights out."""
    inputs = assistant.processor([user("What is 1 + 1?"), user(grid, "Where is the 5?")])
    weights = attention_weights(assistant.model, inputs)
    seen = []
    real = F.scaled_dot_product_attention

    def spied(q, k, v, **options):
        if options.get("attn_mask") is not None:  # the decoder's, of a padded batch
            eye = torch.eye(k.shape[-2]).expand(*k.shape[:2], -1, -1)
            seen.append(real(q, k, eye, **options)[:, :, -1])
        return real(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spied)
    assistant.model(**inputs)
    torch.testing.assert_close(weights, torch.stack(seen), rtol=0, atol=1e-5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), rtol=0, atol=1e-5)
    assert weights[:, 0, :, inputs["attention_mask"][0] == 0].abs().max() == 0


def test_it_looks_at_what_it_is_asked_about(assistant, grid, samples):
    strip = {"type": "image", "image": samples / "strip.png"}
    film = {"type": "video", "video": samples / "digits.mp4"}
    looked = looked_at(assistant.model, assistant.processor, user(strip, film, grid, "Where is the 5 of image 2?"))
    assert [one.pixels.shape for one in looked] == [(1, 28, 84, 3), (16, 28, 28, 3), (1, 84, 112, 3)]
    assert [one.weights.shape[2:] for one in looked] == [(1, 1, 3), (16, 1, 1), (1, 3, 4)]
    assert (looked[2].pixels[0] == load_image(samples / "grid.png")).all()
    [alone] = looked_at(assistant.model, assistant.processor, user(grid, "Where is the 5?"))
    place = alone.weights[:, :, 0, 1, 0]  # row 2, column 1
    assert place.max() > 0.7


def test_looks_need_bytes():
    assistant = Assistant(Assistant.from_pretrained().model, task_processor(pixels="float32"))
    with pytest.raises(ValueError, match="they need a Processor\\(pixels='uint8'\\)"):
        looked_at(assistant.model, assistant.processor, user("Hi"))


# --- mmrope ask -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "question", "answer"),
    [
        (["grid.png"], "What is at row 2, column 3?", "8"),
        (["grid.png", "strip.png"], "What is at row 1, column 3 of image 2?", "9"),
        (["digits.mp4"], "When does the 5 appear?", "2.5 s"),
        ([], "What is 27 + 48?", "75"),
    ],
)
def test_ask(samples, files, question, answer):
    done = mmrope("ask", *(samples / name for name in files), question, "--device", "cpu")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{answer}\n", "")


def test_ask_talks(samples):
    done = mmrope("ask", samples / "grid.png", typed="Where is the 5?\nWhat is at row 3, column 2?\n\nRead all.\n")
    assert (done.returncode, done.stdout) == (0, "row 2, column 1\n3\n")


def test_ask_takes_files_in_a_conversation_and_goes_on_after_mistakes(samples, tmp_path):
    (tmp_path / "my grid.png").write_bytes((samples / "grid.png").read_bytes())
    (tmp_path / "broken.jpg").write_bytes((samples / "cat.jpg").read_bytes()[:100])
    typed = "'my grid.png' Where is the 5?\nbroken.jpg What is it?\nmy\\ grid.png\nWhat's at row 3?\nWhat is at row 3, column 2?\n\n"
    done = mmrope("ask", samples / "strip.png", typed=typed, cwd=tmp_path)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 3  # an answer to each that could be asked
    assert "broken.jpg" in done.stderr
    assert "the question is empty" in done.stderr


def test_ask_says_what_the_model_knows(samples):
    done = mmrope("ask", samples / "grid.png", "What is it?")
    assert done.returncode == 0
    assert done.stderr.startswith(
        "the shipped model has learned these questions alone: What is at row 2, column 3?  Read row 2."
    )


@pytest.mark.parametrize(
    ("files", "question", "why"),
    [
        (["clip.mp4"], "When does the 5 appear?", "the shipped model has learned handwritten digits alone"),
        (["cat.jpg"], "Read all.", "the shipped model has learned handwritten digits alone"),
        (["grid.png"], "When does the 5 appear?", "no video is given, and the question is about one"),
        ([], "Read all.", "no image is given, and the question is about one"),
    ],
)
def test_ask_says_when_it_guesses(samples, files, question, why):
    done = mmrope("ask", *(samples / name for name in files), typed=f"{question}\n" * 2) if files else mmrope("ask", question)
    assert done.returncode == 0
    assert done.stderr.startswith(f"the answer is a guess: {why}")
    assert done.stderr.count("\n") == 1  # once in a conversation


def test_ask_draws(samples, tmp_path):
    done = mmrope("ask", samples / "digits.mp4", "List the digits.", "--figure", tmp_path / "looked.png")
    assert done.stderr.endswith("wrote " + str(tmp_path / "looked.png") + "\n")
    with Image.open(tmp_path / "looked.png") as image:
        assert image.size[0] > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["What is 1 + 1?", "samples/grid.png"], "files come first, then one question"),
        (["samples/no.png", "Read all."], "no.png"),
        (["What is 1 + 1?", "--figure", "x.png"], "--figure draws where the decoder looked in a file: give one"),
        (["What is 1 + 1?", "--model", "nowhere"], "no config.json in nowhere"),
        (["What is 1 + 1?", "--device", "gpu"], "cannot use the device 'gpu'"),
        (["What is 1 + 1?", "--dtype", "int8"], "'int8' is not one of 'float32', 'bfloat16', 'float16'"),
        (["What is 1 + 1?", "--max-new-tokens", "0"], "0 is not in the range x>=1"),
    ],
)
def test_what_cannot_be_asked(arguments, message):
    done = mmrope("ask", *arguments, cwd=ROOT)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
