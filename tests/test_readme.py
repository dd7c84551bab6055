"""The README's code runs, and what it shows is what comes out."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
import torch
from PIL import Image

import mmrope
from tests.support import ROOT, upstream
from tests.support.checkpoints import folder
from tests.support.conversations import TOOLS
from tests.support.released import checkpoint

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def test_python_runs_from_top_to_bottom(capsys, monkeypatch, samples, tmp_path):
    """One session, as a reader would type it; the processor, messages and model that it is given are transformers' own."""
    monkeypatch.chdir(ROOT)
    processor = upstream.processor("qwen2_5_vl", image_pixels=(56 * 56, 20 * 28 * 28), video_pixels=(4 * 28 * 28, 20 * 28 * 28))
    content = [{"type": "image", "image": Image.open(samples / "cat.jpg")}, {"type": "text", "text": "What is it?"}]
    names = {"processor": processor, "messages": [{"role": "user", "content": content}], "model": upstream.model()}
    code = [body for language, body in BLOCKS if language == "python"]
    assert len(code) == 11
    exec(code[0], names)
    shown = capsys.readouterr().out
    table = next(body for language, body in BLOCKS if language == "")
    assert shown.startswith(table)
    assert shown.rstrip().endswith("[17 18 19]")
    by_hand = names["positions"]
    exec(code[1], names)
    own = names["model"](**names["inputs"]).logits.detach()
    assert torch.equal(names["output"].logits, own)  # no video: the rules agree
    exec(code[2], names)
    assert names["video"].seconds_per_grid == 2
    exec(code[3], names)
    assert torch.equal(names["logits"], own)
    assert names["tokens"].shape[1] == own.shape[1] + 32
    torch.testing.assert_close(names["model"](**names["inputs"]).logits, own, rtol=0, atol=1e-5)  # with the other rotary
    exec(code[4], names)
    assert [segment.kind for segment in names["row"]] == ["text", "image", "text", "image", "text"]
    exec(code[5], names)
    assert names["packed"].ids.shape == (3, 90)
    assert names["packed"].cu_seqlens.tolist() == [0, 60, 90]
    assert names["batch"].ids.shape == (3, 2, 60)
    assert names["shard"].shape == (3, 45)
    exec(code[6], names)
    assert names["inputs"]["position_ids"].shape[0] == 3
    talk = {**names, "tools": TOOLS, "messages": [*names["messages"], {"role": "assistant", "content": "A cat."}]}
    exec(code[7].replace("path/to/Qwen3-VL-8B-Instruct", str(folder(tmp_path, "qwen3_vl"))), talk)
    answer = talk["inputs"]["labels"][0]
    assert talk["processor"].decode(answer[answer != -100]) == "A cat.\n"
    (tmp_path / "checkpoint").mkdir()
    exec(code[8].replace("path/to/Qwen3-VL-4B-Instruct", str(checkpoint(tmp_path / "checkpoint", "qwen3_vl"))), dict(names))
    later = {**names, "positions": by_hand}
    exec(code[9], later)
    exec(code[10], later)


def test_commands_run(tmp_path):
    commands = [
        line for language, body in BLOCKS if language == "sh" for line in body.splitlines() if line.startswith("mmrope")
    ]
    assert len(commands) == 6
    (tmp_path / "path/to/Qwen3-VL-8B-Instruct").mkdir(parents=True)
    folder(tmp_path / "path/to/Qwen3-VL-8B-Instruct", "qwen3_vl")
    (tmp_path / "path/to/Qwen3-VL-4B-Instruct").mkdir()
    checkpoint(tmp_path / "path/to/Qwen3-VL-4B-Instruct", "qwen3_vl")
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    for command in commands:
        program = [sys.executable, "-c", "from mmrope.cli import app; app()"]
        done = subprocess.run([*program, *shlex.split(command)[1:]], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "ids.png").exists()


def test_make_has_the_targets_that_are_named():
    text = README + (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / ".ci" / "run").read_text()
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make (\w+)`|^make (\w+)", text, re.MULTILINE))
    assert {a or b for a, b in named} <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_every_family_is_in_the_table():
    for row in mmrope.FAMILIES.values():
        assert f"`{row.name}`" in README


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)|`((?:samples|scripts|tests|mmrope|docs)/[\w/.]*)`", README))
def test_what_is_linked_exists(path):
    assert (ROOT / (path[0] or path[1])).exists()


def test_the_message_that_is_quoted():
    types = [[1] * 4 + [0] * 13 + [1] * 16 + [0] * 8]
    inputs = {"input_ids": types, "mm_token_type_ids": types, "image_grid_thw": [[1, 4, 4], [1, 8, 12]]}
    with pytest.raises(
        ValueError,
        match=re.escape("row 0: the 16 image tokens at 17..32 do not fit their grids: image 1 needs 24 tokens"),
    ):
        mmrope.segments_from_inputs(inputs, "qwen2_vl")
