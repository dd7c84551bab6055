"""The recipes of the guides run as they stand, and do what they say."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import mmrope
from mmrope import Segment
from tests.support import ROOT, public, upstream
from tests.support.released import checkpoint

GUIDE = (ROOT / "docs" / "sequences.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", GUIDE, re.DOTALL)
PYTHON = [body for language, body in BLOCKS if language == "python"]


@pytest.fixture(scope="module")
def names():
    """Everything that the guide's code has made, run from top to bottom."""
    samples = ROOT / "samples"
    photo = lambda name: {"type": "image", "image": Image.open(samples / f"{name}.jpg")}  # noqa: E731
    film = {"type": "video", "video": np.random.default_rng(0).integers(0, 255, (8, 56, 84, 3), dtype=np.uint8)}
    text = lambda words: {"type": "text", "text": words}  # noqa: E731
    contents = [
        [photo("cat"), text("What is it?")],
        [film, text("When?")],
        [photo("coffee"), text("and"), photo("cat"), text("?")],
        [text("Two and two?")],
    ]
    made = {
        "model": upstream.model(),
        "processor": upstream.processor(
            "qwen2_5_vl", image_pixels=(56 * 56, 9 * 28 * 28), video_pixels=(4 * 28 * 28, 6 * 28 * 28)
        ),
        "conversations": [[{"role": "user", "content": content}] for content in contents],
    }
    with torch.no_grad():
        exec("\n".join(PYTHON), made)
    return made


def own(names, inputs):
    """The logits of one sample by itself, with its own ids."""
    ids = mmrope.position_ids(mmrope.segments_from_inputs(inputs, names["family"]), names["family"]).ids
    with torch.no_grad():
        return names["model"](**inputs, position_ids=torch.tensor(ids)).logits[0]


def test_packed_logits_and_loss_are_those_of_the_samples(names):
    packed = mmrope.pack(names["rows"], names["family"])
    losses = []
    for sample, a, b in zip(names["samples"], packed.cu_seqlens, packed.cu_seqlens[1:], strict=False):
        alone = own(names, sample)
        torch.testing.assert_close(names["packed_output"].logits[0, a:b], alone, rtol=0, atol=1e-5)
        target = torch.where(sample["mm_token_type_ids"][0] == 0, sample["input_ids"][0], -100)
        losses.append(
            torch.nn.functional.cross_entropy(alone[:-1], target[1:], reduction="none", ignore_index=-100)[target[1:] != -100]
        )
    torch.testing.assert_close(names["packed_output"].loss, torch.cat(losses).mean(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("how", ["no text row", "a cache"])
def test_samples_would_see_each_other_otherwise(names, how):
    """What the recipe guards against, in transformers 5.23: it reads the pack as one sequence."""
    batch = {**names["batch"], "use_cache": how == "a cache"}
    if how == "no text row":
        batch["position_ids"] = batch["position_ids"][1:]
    with torch.no_grad():
        logits = names["model"](**batch).logits
    first = names["rows"][0].length
    assert (logits - names["packed_output"].logits)[0, :first].abs().max() < 1e-5
    assert (logits - names["packed_output"].logits)[0, first:].abs().max() > 1e-3


def test_cached_decoding_equals_recomputation(names):
    generated = torch.cat(names["generated"], dim=1)
    for b, conversation in enumerate(names["conversations"]):
        sample = names["processor"].apply_chat_template(conversation, add_generation_prompt=True, **names["options"])
        for step in range(generated.shape[1]):
            logits = own(names, sample)[-1]
            assert logits.argmax() == generated[b, step]
            assert logits.topk(2).values.diff().abs() > 1e-5  # no tie that hides a difference
            sample["input_ids"] = torch.cat([sample["input_ids"], generated[b, step].reshape(1, 1)], dim=1)
            for key, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
                sample[key] = torch.nn.functional.pad(sample[key], (0, 1), value=value)
        last = names["output"].logits[b, -1]  # of the step after
        torch.testing.assert_close(last, own(names, sample)[-1], rtol=0, atol=1e-5)


def test_the_new_turn_is_where_it_would_be_in_the_whole(names):
    whole = mmrope.position_ids(names["longer"], names["family"]).ids
    n = names["longer"].length - sum(s.length for s in names["turn"])
    np.testing.assert_array_equal(names["new"].ids, whole[..., n:])


def test_chunks_that_cut_an_image_equal_the_whole(names):
    row = names["rows"][0]
    [image] = [i for i, s in enumerate(row) if s.kind == "image"]
    start = int(row.lengths[:image].sum())
    assert any(start < edge < start + row[image].length for edge in range(0, row.length, 10))
    with torch.no_grad():
        whole = (
            names["model"]
            .model(**names["samples"][0], position_ids=torch.tensor(mmrope.position_ids(row, names["family"]).ids))
            .last_hidden_state
        )
    torch.testing.assert_close(torch.cat(names["hidden"], dim=1), whole, rtol=0, atol=1e-5)


def test_what_is_cut_to_a_length_still_belongs_together(names):
    assert names["short"].row.length <= names["rows"][0].length - 8
    left = {key: value for key, value in names["cut"].items() if len(value)}
    assert left["input_ids"].shape[1] == names["short"].row.length
    assert len(names["cut"]["pixel_values"]) == sum(left.get("image_grid_thw", torch.zeros(0, 3)).prod(dim=1))
    row = mmrope.segments_from_inputs(left, names["family"])
    np.testing.assert_array_equal(
        mmrope.position_ids(row, names["family"]).ids, mmrope.position_ids(names["short"].row, names["family"]).ids
    )


def test_shards_are_of_the_pack(names):
    assert names["local_ids"].shape[1] * 2 == names["packed"].ids.shape[1]
    assert len(names["local_text_ids"]) == len(names["index"])


def test_the_message_that_is_quoted():
    rows = [Segment.text(3), Segment.video(t=6, h=2, w=3, seconds_per_grid=1.0), Segment.text(5)]
    with pytest.raises(ValueError, match=r"^position_ids are not those of qwen2_5_vl") as caught:
        mmrope.check(mmrope.position_ids(rows, "qwen2_5_vl@transformers-5.23").ids, rows, "qwen2_5_vl")
    [quoted] = re.findall(r"`(position_ids are not .*)`", GUIDE)
    beginning, end = quoted.split("...")
    assert str(caught.value).startswith(beginning)
    assert str(caught.value).endswith(end)


def test_commands_run(names, tmp_path):
    batch = {key: value.numpy() for key, value in names["inputs"].items()}
    batch["position_ids"] = mmrope.position_ids(mmrope.segments_from_inputs(batch, names["family"]), names["family"]).ids
    for name in ("batch", "trainer", "server"):
        np.savez(tmp_path / f"{name}.npz", **batch)
    commands = [line for language, body in BLOCKS if language == "sh" for line in body.splitlines()]
    assert len(commands) == 2
    for command in commands:
        program = [sys.executable, "-c", "from mmrope.cli import app; app()", *shlex.split(command)[1:]]
        done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", re.findall(r"`((?:samples|scripts|tests|mmrope|docs)/[\w/.]*)`", GUIDE))
def test_what_is_named_exists(path):
    assert (ROOT / path).exists()


def test_the_functions_that_are_named_are_there():
    known = {name for names in public.names().values() for name in names}
    assert {*re.findall(r"`(?:mmrope\.(?:\w+\.)?)?(\w+)\(", GUIDE)} <= known


# --- docs/media.md ----------------------------------------------------------------------------------------------------

MEDIA = (ROOT / "docs" / "media.md").read_text(encoding="utf-8")


def test_the_guide_to_media_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for code in re.findall(r"```python\n(.*?)```", MEDIA, re.DOTALL):
        exec(code, names)
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == "pyav [0.  0.5 1. ] (0.0, 0.5, 1.0)"
    assert second.startswith("[tensor([2.0000, 2.5000, 3.0000, 3.5000], dtype=torch.float64)] tensor([1.])")
    assert re.fullmatch(r"\[\d{3}, 'refused'\]", last)
    assert "missing.jpg: no such file" in (tmp_path / "quarantine.jsonl").read_text()
    assert str(names["types"]["pixel_values"]) == "list<item: list<item: uint8>>"
    assert names["ready"]["pixel_values"].dtype == torch.float32
    with pytest.raises(mmrope.MediaError, match="is not inside"):
        names["careful"]([{"role": "user", "content": [{"type": "image", "image": str(ROOT / "docs" / "rules.png")}]}])


@pytest.mark.parametrize("path", re.findall(r"`((?:samples|scripts|tests|mmrope|docs)/[\w/.]*)`", MEDIA))
def test_what_the_guide_to_media_names_exists(path):
    assert (ROOT / path).exists()


# --- docs/conversations.md --------------------------------------------------------------------------------------------

CONVERSATIONS = (ROOT / "docs" / "conversations.md").read_text(encoding="utf-8")


def test_the_guide_to_conversations_runs_from_top_to_bottom(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names = {}
    for code in re.findall(r"```python\n(.*?)```", CONVERSATIONS, re.DOTALL):
        code = code.replace("/path/to/video1.mp4", str(ROOT / "samples" / "clip.mp4"))
        exec(re.sub(r"/path/to/[\w/]*\.jpg", str(ROOT / "samples" / "cat.jpg"), code), names)
        if "messages1" in code:
            grids = names["inputs"]["video_grid_thw"].tolist()
            assert [grid[0] for grid in grids] == [4, 2]  # 8 s at one a second, and four frames, two a grid
            assert names["inputs"]["image_grid_thw"].tolist() == [[1, 20, 30]]
            assert names["inputs"]["second_per_grid_ts"].tolist() == [2.0, 2.0]
    assert capsys.readouterr().out.startswith(
        "<|im_start|>system\nAnswer in one word.<|im_end|>\n<|im_start|>user\n<|vision_start|>cat.jpg<|vis"
    )


@pytest.mark.parametrize("path", re.findall(r"`((?:samples|scripts|tests|mmrope|docs)/[\w/.]*)`", CONVERSATIONS))
def test_what_the_guide_to_conversations_names_exists(path):
    assert (ROOT / path).exists()


# --- docs/model.md ----------------------------------------------------------------------------------------------------

VLM = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")


def test_the_guide_to_the_model_runs_on_a_checkpoint(tmp_path, monkeypatch, samples):
    monkeypatch.chdir(ROOT)
    content = [{"type": "image", "image": samples / "cat.jpg"}, {"type": "text", "text": "What is it?"}]
    names = {"folder": checkpoint(tmp_path, "qwen3_vl"), "messages": [{"role": "user", "content": content}]}
    for code in re.findall(r"```python\n(.*?)```", VLM, re.DOTALL):
        exec(code, names)
    alone = names["model"].generate(**names["processor"](names["more"], add_generation_prompt=True), max_new_tokens=8)
    assert torch.equal(names["tokens"], alone)


def test_its_commands_run_on_checkpoints(tmp_path):
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    for folder, name in (("Qwen3-VL-4B-Instruct", "qwen3_vl"), ("Qwen2.5-VL-7B-Instruct", "qwen2_5_vl")):
        (tmp_path / "path" / "to" / folder).mkdir(parents=True)
        checkpoint(tmp_path / "path" / "to" / folder, name)
    commands = [line for body in re.findall(r"```sh\n(.*?)```", VLM, re.DOTALL) for line in body.splitlines()]
    for command in commands:
        program = [sys.executable, "-c", "from mmrope.cli import app; app()", *shlex.split(command)[1:]]
        typed = "What is it?\nsamples/coffee.jpg And this?\n\n"
        done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, check=False, input=typed)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip()
    assert len(commands) == 2


# --- docs/training.md -------------------------------------------------------------------------------------------------

TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
THEIRS = ("llamafactory", "swift", "verl", "Qwen2_5_VLProcessor")
"""What is in recipes for stacks that cannot be installed beside the tests' own; they were run where the page says so."""


@pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning")  # peft looks for transformers' files
def test_the_guide_to_training_runs_on_a_checkpoint(tmp_path, samples):
    said = [
        [({"type": "image", "image": samples / f"{name}.jpg"}), {"type": "text", "text": "What is it?"}]
        for name in ("cat", "coffee")
    ]
    said += [[{"type": "text", "text": "Two and two? " * n}] for n in (1, 4, 9)]
    names = {
        "folder": checkpoint(tmp_path, "qwen2_5_vl"),
        "out": tmp_path / "out",
        "conversations": [
            [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}] for content in said
        ],
        "print": lambda entry: losses.append(entry["loss"]),
    }
    losses = []
    for code in re.findall(r"```python\n(.*?)```", TRAINING, re.DOTALL):
        if any(name in code for name in THEIRS):
            compile(code, "a recipe", "exec")
        else:
            exec(code, names)
    assert len(names["packs"]) > 1
    assert names["short"]["input_ids"].shape[1] < names["inputs"]["input_ids"].shape[1]
    assert np.isfinite(losses).all()
    assert len(losses) == 6
    assert isinstance(names["best"], mmrope.VLM)


@pytest.mark.parametrize("path", re.findall(r"`((?:samples|scripts|tests|mmrope|docs)/[\w/.]*)`", TRAINING))
def test_what_the_guide_to_training_names_exists(path):
    assert (ROOT / path).exists()


# --- docs/small.md ----------------------------------------------------------------------------------------------------

SMALL = (ROOT / "docs" / "small.md").read_text(encoding="utf-8")


def test_the_guide_to_the_small_model_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", SMALL, re.DOTALL):
        exec(code, names)
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["0 3 2 8", "row 2, column 1['75', '10']"]
    assert names["looked"].weights.shape == (4, 6, 1, 3, 4)
    assert names["sampled"].shape[0] == 2
    assert names["vote"].answer == "3"
    assert (tmp_path / "out" / "looked.png").exists()


def test_the_commands_of_the_guide_to_the_small_model_run(tmp_path):
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    asked = [line for body in re.findall(r"```sh\n(.*?)```", SMALL, re.DOTALL) for line in body.splitlines() if "ask" in line]
    answers = []
    for command in asked:
        program = [sys.executable, "-c", "from mmrope.cli import app; app()"]
        done = subprocess.run([*program, *shlex.split(command)[1:]], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout.strip())
    assert answers == ["8", "9", "2.5 s"]


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\b(?:samples|scripts|tests|mmrope|docs)/[\w/]+\.\w+", SMALL))))
def test_what_the_guide_to_the_small_model_names_exists(path):
    assert (ROOT / path).exists()


def test_the_results_of_the_ablation_are_those_of_the_file(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from ablate_vlm import RESULTS, VARIANTS, table

    results = json.loads(RESULTS.read_text())
    assert set(results["variants"]) == set(VARIANTS)
    assert all(len(seeds) == 3 for seeds in results["variants"].values())
    assert "\n".join(table(results)) in SMALL


# --- docs/adapters.md -------------------------------------------------------------------------------------------------

ADAPTERS = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")


def test_the_guide_to_the_doors_runs_from_top_to_bottom():
    photo = {"type": "image", "image": Image.open(ROOT / "samples" / "cat.jpg")}
    film = {"type": "video", "video": np.random.default_rng(0).integers(0, 255, (8, 56, 84, 3), dtype=np.uint8)}
    contents = [[photo, {"type": "text", "text": "What is it?"}], [film, {"type": "text", "text": "When?"}]]
    names = {
        "model": upstream.model(),
        "processor": upstream.processor(
            "qwen2_5_vl", image_pixels=(56 * 56, 9 * 28 * 28), video_pixels=(4 * 28 * 28, 6 * 28 * 28)
        ),
        "conversations": [[{"role": "user", "content": content}] for content in contents],
    }
    for code in re.findall(r"```python\n(.*?)```", ADAPTERS, re.DOTALL):
        if "rotary_kernel" not in code:  # which needs the package kernels: tests/adapters/test_replace.py
            exec(code, names)
    inputs, batch = names["inputs"], names["batch"]
    assert batch["position_ids"].shape == (4, *inputs["input_ids"].shape)
    assert names["tokens"].shape[1] == inputs["input_ids"].shape[1] + 8
    assert torch.isfinite(names["loss"])
    assert torch.equal(
        names["position_ids"][:, inputs["attention_mask"] == 1], batch["position_ids"][1:, inputs["attention_mask"] == 1]
    )
    assert (list(names["ids"].shape), names["delta"]) == ([3, 40], -18)
    assert names["mask"].shape[-1] == int(names["arguments"]["cu_seqlens_q"][-1]) == names["blocks"].shape[-1]
    assert type(names["text"].rotary_emb).__name__ == "RotaryInPlace"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\b(?:samples|scripts|tests|mmrope|docs)/[\w/]+\.\w+", ADAPTERS))))
def test_what_the_guide_to_the_doors_names_exists(path):
    assert (ROOT / path).exists()


def test_the_table_of_families_is_that_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from prove_families import pages

    assert "\n".join(pages()).strip() in ADAPTERS
    assert "| `qwen3_vl` | equal |" in ADAPTERS
