"""The scripts that people start from, run as people run them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mmrope.preprocess.image import load_image
from mmrope.preprocess.video import open_video
from tests.support import PROOF, ROOT, lowest

SHORTER = {"extend_context.py": ("--steps", "4")}
"""How a script that trains for a while is made a quick one."""
RENAMED = ("is_gradient_checkpointing", "gradient_checkpointing_enable", "gradient_checkpointing_disable")
"""Names that transformers 5.24 warns of, and that TRL 1.16 and peft 0.21 use."""
SCRIPTS = sorted(path.name for path in (ROOT / "samples").glob("*.py"))


def run(*command, cwd):
    # as errors, but not of an old torch, which warns of itself
    options = () if lowest.WANTED else ("-W", "error", *(f"-Wignore:`{name}`:FutureWarning" for name in RENAMED))
    done = subprocess.run(
        [sys.executable, *options, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # tests run side by side
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_on_the_cpu_from_anywhere(script, tmp_path):
    assert run(ROOT / "samples" / script, "--device", "cpu", *SHORTER.get(script, ()), cwd=tmp_path)


TRAINERS = [
    ("finetune_qwen.py --lora --bf16", "qwen3_vl"),
    *(("finetune_qwen.py --lora --bf16", family) for family in ("", "qwen2_vl", "qwen2_5_vl")),
    *(("sft_trl.py", family) for family in ("qwen2_5_vl", "qwen3_vl")),
    *(("sft_trl.py --trl-collator", family) for family in ("", "qwen3_vl")),
    ("grpo_trl.py --lora", ""),
    ("grpo_trl.py --beta 0.1", "qwen2_5_vl"),
    ("grpo_trl.py --beta 0.1 --lora", "qwen3_vl"),
]
"""Options, and whose folder, if one."""


@pytest.mark.parametrize(("command", "family"), TRAINERS if PROOF else TRAINERS[:1])
def test_a_trainer_runs_with_its_options_and_a_checkpoint(command, family, tmp_path):
    from tests.support import released

    script, *options = command.split()
    if family:
        (tmp_path / "model").mkdir()
        options += ["--model", released.checkpoint(tmp_path / "model", family), "--steps", 2]
    assert run(ROOT / "samples" / script, "--device", "cpu", *options, cwd=tmp_path)


def test_there_are_the_scripts_that_the_readme_names():
    assert [
        *("ask_image.py", "ask_video.py", "cached_decoding.py", "context_parallel.py", "dataloader.py"),
        *("export_positions.py", "extend_context.py", "finetune_qwen.py", "finetune_vlm.py", "grpo_trl.py"),
        *(
            "image_ids.py",
            "mixed_batch.py",
            "padded_or_packed.py",
            "plug_into_qwen.py",
            "sft_trl.py",
            "tiny_processor.py",
            "tiny_qwen.py",
        ),
        *("video_ids.py", "vllm_model.py"),
    ] == SCRIPTS


def test_the_demo_keeps_its_promises(tmp_path):
    shown = run(ROOT / "scripts" / "demo.py", "--device", "cpu", "--out", tmp_path / "out", cwd=tmp_path)
    for promise in (
        "cat.jpg",
        "clip.mp4",
        "qwen2_5_vl                    video t 10..24, text after it from 25: 0 text tokens inside the video's time",
        "qwen2_5_vl@transformers-5.23  video t 10..24, text after it from 18: 7 text tokens inside the video's time",
        "8 of 8 right",
        "largest difference in ids          over 56 tokens: 0\n",
        "largest difference in cos and sin  over 56 tokens: 0\n",
        "largest difference in logits       over 56 tokens: 0\n",
    ):
        assert promise in shown
    for name in ("ids.png", "rules.png", "looked-grid.png", "looked-digits.png"):
        assert load_image(tmp_path / "out" / name).shape[1] > 1000


def test_the_files_are_what_their_readme_says(samples):
    assert load_image(samples / "cat.jpg").shape == (298, 448, 3)
    assert load_image(samples / "coffee.jpg").shape == (299, 448, 3)
    clip = open_video(samples / "clip.mp4")
    assert (clip.width, clip.height, len(clip.pts), clip.duration) == (224, 168, 64, 8)
    assert load_image(samples / "grid.png").shape == (3 * 28, 4 * 28, 3)
    assert load_image(samples / "strip.png").shape == (28, 3 * 28, 3)
    digits = open_video(samples / "digits.mp4")
    assert float(digits.duration) == pytest.approx(7.642, abs=0.002)
    assert {0.0, 0.951, 2.472, 5.031} <= set(digits.seconds.round(3).tolist())  # where the digits come


def test_the_files_are_made_by_the_script(samples, tmp_path):
    """Pixel by pixel: encoders may write other bytes in other versions."""
    import numpy as np

    run(ROOT / "scripts" / "make_samples.py", tmp_path, cwd=tmp_path)
    for name in ("cat.jpg", "coffee.jpg", "grid.png", "strip.png"):
        one, other = (np.asarray(load_image(folder / name)).astype(int) for folder in (samples, tmp_path))
        assert np.abs(one - other).mean() < 2
    for name in ("clip.mp4", "digits.mp4"):
        old, new = (open_video(folder / name) for folder in (samples, tmp_path))
        assert (old.seconds == new.seconds).all()
        some = range(0, len(old.pts), 8)
        for one, other in zip(old.decode(some).frames, new.decode(some).frames, strict=True):
            assert np.abs(one.astype(int) - other.astype(int)).mean() < 4
