"""Training: it learns, it can be killed, and several processes are one."""

from __future__ import annotations

import dataclasses
import errno
import functools
import importlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmrope import VLM
from mmrope.preprocess import pack_batches
from mmrope.vlm import VLMConfig
from mmrope.vlm import train as train_module
from mmrope.vlm.config import DecoderConfig, VisionConfig
from mmrope.vlm.data import ExactAnswers, Mix, TaskBatches, task_processor
from mmrope.vlm.manifest import write_manifest
from mmrope.vlm.train import Training, last_checkpoint, make_optimizers, sound_checkpoint, train
from tests.support import PROOF, ROOT, lowest

PROCESSOR = task_processor(padding_side="right", threads=1)
SHORT = Training(steps=6, warmup=2, save_every=3, log_every=1)
LONG = Training(steps=400, save_every=1, log_every=1)
SCHEDULE = ((0.5, Mix(images=1, side=2, tokens=30)), (1.0, Mix(images=1, films=1, sums=1, side=2, looks=5, tokens=40)))


def tiny(width=32):
    """A model of one layer. Muon's steps are the most of a training's time on a CPU that does not multiply bfloat16: they grow
    with the cube of the width."""
    torch.manual_seed(0)
    assert PROCESSOR.patches
    shape = {"hidden_size": width, "num_layers": 1, "num_heads": 2, "intermediate_size": 2 * width}
    return VLM(
        VLMConfig(
            vision=VisionConfig(patches=PROCESSOR.patches, **shape),
            decoder=DecoderConfig(vocab_size=PROCESSOR.tokenizer.size, num_kv_heads=1, head_dim=16, **shape),
        )
    )


def made(training=SHORT, *, batch_size=2, **options):
    """The batches of a training, and what says how they are made."""
    count = training.steps * training.batches_per_step
    options = {"schedule": SCHEDULE, "seed": training.seed, **options}
    batches = TaskBatches(PROCESSOR, count=count, batch_size=batch_size, **options)
    return {"batches": batches, "about": batches.about, "score": ExactAnswers()}


def run(folder, training=SHORT, *, model=None, batch_size=2, packed=False, **options):
    batches = made(training, batch_size=batch_size, packed=packed)
    return train(model or tiny(), training=training, folder=folder, processor=PROCESSOR, **batches, **options)


def weights(folder):
    return load_file(last_checkpoint(folder) / "model.safetensors")


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class Killed(Exception):
    pass


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_it_learns_to_read_a_digit(tmp_path):
    steps = 240 if PROOF else 40
    training = Training(steps=steps, warmup=5, save_every=steps, log_every=10, bfloat16=False)
    digits = made(training, batch_size=16, schedule=((1.0, Mix(images=1, side=1, tokens=16)),))
    train(tiny(96), training=training, folder=tmp_path, processor=PROCESSOR, **digits)
    entries = log(tmp_path)
    assert [entry["step"] for entry in entries] == [*range(10, steps + 1, 10)]
    assert entries[-1]["loss"] < (0.2 if PROOF else 0.4) * entries[0]["loss"]
    if PROOF:
        assert entries[-1]["exact"]["at"] > 0.4  # chance is a tenth; a third of the cells are blank


def test_the_script_trains_and_draws_its_loss(tmp_path):
    options = {"--out": tmp_path, "--steps": 1, "--batch-size": 1, "--save-every": 1, "--log-every": 1, "--device": "cpu"}
    command = [sys.executable, "-W", "error", ROOT / "scripts/train_vlm.py", *(x for pair in options.items() for x in pair)]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 1 " in done.stdout
    assert last_checkpoint(tmp_path).name == "step-000001"
    assert (tmp_path / "loss.png").stat().st_size > 10_000


@pytest.mark.parametrize("bfloat16", [True, False])
def test_a_training_that_was_killed_ends_as_one_that_was_not(tmp_path, bfloat16):
    training = dataclasses.replace(SHORT, bfloat16=bfloat16)
    run(tmp_path / "whole", training)

    def kill(entry):
        if entry["step"] == 5:  # after the checkpoint of step 3, whose next two steps are lost
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "killed", training, say=kill)
    assert last_checkpoint(tmp_path / "killed").name == "step-000003"
    resumed = []
    run(tmp_path / "killed", training, say=lambda entry: resumed.append(entry["step"]))
    assert resumed == [4, 5, 6]
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    logs = [log(tmp_path / name) for name in ("whole", "killed")]
    for entry in [*logs[0], *logs[1]]:
        assert entry.pop("seconds") >= 0
        assert entry.pop("tokens_per_second") > 0
    assert logs[0] == logs[1]


def test_a_process_that_is_killed_leaves_a_checkpoint_that_goes_on(tmp_path):
    """SIGKILL at a random moment: no time to tidy up."""
    code = f"from tests.vlm import test_train; test_train.run({str(tmp_path)!r}, test_train.LONG)"
    command = [sys.executable, "-c", code]
    with (
        (tmp_path / "output").open("w+") as output,
        subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT) as process,
    ):
        try:
            deadline = time.monotonic() + 120
            while (last := last_checkpoint(tmp_path)) is None or int(last.name[5:]) < 3:
                assert process.poll() is None, (tmp_path / "output").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
    step = int(last_checkpoint(tmp_path).name[5:])
    VLM.from_pretrained(last_checkpoint(tmp_path))

    def stop(entry):
        assert entry["step"] == step + 1
        raise Killed

    with pytest.raises(Killed):
        run(tmp_path, LONG, say=stop)


KILLED = Training(steps=40 if PROOF else 12, warmup=2, save_every=1, log_every=1, bfloat16=False)


def started(folder, *, slow_save=0.0):
    """A process that trains in a folder, whose steps of saving each wait for so many seconds, so that kills come between."""
    code = (
        "import os, time, torch\n"
        "from tests.vlm import test_train\n"
        "torch.set_num_threads(1)\n"
        "replace, fsync = os.replace, os.fsync\n"
        f"os.replace = lambda *paths: (time.sleep({slow_save}), replace(*paths))\n"
        f"os.fsync = lambda file: (time.sleep({slow_save}), fsync(file))\n"
        f"test_train.run({str(folder)!r}, test_train.KILLED)\n"
    )
    with (folder.parent / "output").open("a") as output:
        return subprocess.Popen([sys.executable, "-c", code], stdout=output, stderr=output, cwd=ROOT)


def newer(folder, step):
    """Whether there is a checkpoint of a later step."""
    last = last_checkpoint(folder)
    return last is not None and int(last.name[5:]) > step


def test_a_process_that_is_killed_again_and_again_repeats_and_loses_nothing(tmp_path, record_property):
    """SIGKILL at random moments, most of them while a checkpoint is written; every time the training is started again. The
    weights at the end, the optimizers' state and the log are those of a training that nothing happened to."""
    kills, draw = 50 if PROOF else 3, random.Random(0)
    (tmp_path / "killed").mkdir()
    with started(tmp_path / "whole") as process:
        assert process.wait(timeout=600) == 0, (tmp_path / "output").read_text()
    saving = steps = 0
    for _ in range(kills):
        last = last_checkpoint(tmp_path / "killed")
        began = -1 if last is None else int(last.name[5:])
        with started(tmp_path / "killed", slow_save=0.01) as process:
            deadline, half_written = time.monotonic() + 300, draw.random() < 0.7  # or between two
            while not (list((tmp_path / "killed").glob(".step-*")) if half_written else newer(tmp_path / "killed", began)):
                assert process.poll() is None, (tmp_path / "output").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
        saving += bool(list((tmp_path / "killed").glob(".step-*")))
        now = last_checkpoint(tmp_path / "killed")
        steps = 0 if now is None else int(now.name[5:])
        assert steps >= max(began, 0)  # nothing that was saved is lost
        if steps >= KILLED.steps - 2:
            shutil.rmtree(tmp_path / "killed")  # begin anew, to be killed more often
            (tmp_path / "killed").mkdir()
    with started(tmp_path / "killed") as process:
        assert process.wait(timeout=600) == 0, (tmp_path / "output").read_text()
    for name in ("model.safetensors", "optimizer.safetensors"):
        whole, killed = (load_file(last_checkpoint(tmp_path / each) / name) for each in ("whole", "killed"))
        assert whole.keys() == killed.keys()
        assert all(torch.equal(whole[key], killed[key]) for key in whole)
    logs = [log(tmp_path / name) for name in ("whole", "killed")]
    for entry in [*logs[0], *logs[1]]:
        assert entry.pop("seconds") >= 0
        assert entry.pop("tokens_per_second") > 0
    assert logs[0] == logs[1]  # each step once, with its loss
    assert [entry["step"] for entry in logs[1]] == [*range(1, KILLED.steps + 1)]
    record_property("tried", f"{kills} kills, {saving} of them while a checkpoint was written")
    assert saving


def test_a_save_that_was_interrupted_is_not_a_checkpoint(tmp_path):
    run(tmp_path)
    good = last_checkpoint(tmp_path)
    (tmp_path / ".step-000009.123").mkdir()
    (tmp_path / "step-x").mkdir()
    assert last_checkpoint(tmp_path) == good
    run(tmp_path)
    assert not list(tmp_path.glob(".step-*"))


def damaged(path, draw):
    """A checkpoint with one of its files torn, flipped, zeroed, replaced, or gone."""
    file = draw.choice(sorted(path.iterdir()))
    data, how = bytearray(file.read_bytes()), draw.choice(["torn", "flipped", "zeroed", "gone", "empty", "noise"])
    at = draw.randrange(len(data))
    if how == "gone":
        file.unlink()
    elif how == "flipped":
        data[at] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
    elif how == "zeroed":
        page = data[at : at + 512]
        data[at : at + 512] = bytes(len(page)) if any(page) else b"\1" * len(page)
        file.write_bytes(data)
    else:
        file.write_bytes({"torn": bytes(data[:at]), "empty": b"", "noise": draw.randbytes(at + 1)}[how])
    return f"{file.name}, {how} at {at}"


@pytest.mark.parametrize("seed", range(200 if PROOF else 12))
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(whole, seed, tmp_path):
    """Torn at random places, bits flipped, pages zeroed: the weights of a training that nothing happened to."""
    shutil.copytree(whole, tmp_path / "hurt")
    last, what = last_checkpoint(tmp_path / "hurt"), damaged(last_checkpoint(tmp_path / "hurt"), random.Random(seed))
    steps = []
    with pytest.warns(UserWarning, match=f"{last.name} is damaged, and the one before it is taken"):
        run(tmp_path / "hurt", say=lambda entry: steps.append(entry["step"]))
    assert steps == [4, 5, 6], what
    assert all(torch.equal(weights(whole)[name], value) for name, value in weights(tmp_path / "hurt").items()), what
    assert [entry["step"] for entry in log(tmp_path / "hurt")] == [1, 2, 3, 4, 5, 6]
    assert sorted(path.name for path in (tmp_path / "hurt").glob("*step*")) == ["step-000003", "step-000006"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_a_training_whose_checkpoints_are_all_damaged_says_so(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "hurt")
    for path in (tmp_path / "hurt").glob("step-*"):
        (path / "optimizer.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"):
        run(tmp_path / "hurt")


def again(folder, training=SHORT, **options):
    """The steps that a training makes when it is started once more."""
    steps = []
    run(folder, training, say=lambda entry: steps.append(entry["step"]), **options)
    return steps


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("*step*"))


def test_a_checkpoint_is_of_the_step_that_its_name_says(whole, tmp_path):
    """One that was renamed is damaged, and gone when the next is there: neither continued from, nor taken for the last."""
    shutil.copytree(whole, tmp_path / "hurt")
    (tmp_path / "hurt/step-000006").rename(tmp_path / "hurt/step-000100")
    with pytest.warns(UserWarning, match=r"step-000100 is damaged.*by its training.json it is of step 6"):
        assert again(tmp_path / "hurt") == [4, 5, 6]
    assert checkpoints(tmp_path / "hurt") == ["step-000003", "step-000006"]
    assert again(tmp_path / "hurt") == []
    assert all(torch.equal(weights(whole)[name], value) for name, value in weights(tmp_path / "hurt").items())


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "training.json"])
def test_a_checkpoint_whose_manifest_leaves_out_a_file_is_damaged(whole, name, tmp_path):
    last = shutil.copytree(whole, tmp_path / "hurt") / "step-000006"
    (last / name).write_bytes((last / name).read_bytes()[:-1])
    write_manifest(last, [path.name for path in last.iterdir() if path.name not in (name, "manifest.json")])
    with pytest.warns(UserWarning, match=f"step-000006 is damaged.*manifest.json does not describe {name}"):
        assert sound_checkpoint(tmp_path / "hurt") == tmp_path / "hurt/step-000003"


def test_a_model_that_was_saved_into_a_checkpoint_makes_it_none(whole, tmp_path):
    """Its manifest describes the model alone, and a bit of the optimizer's state may be flipped."""
    last = shutil.copytree(whole, tmp_path / "hurt") / "step-000006"
    VLM.from_pretrained(last).save_pretrained(last)
    data = bytearray((last / "optimizer.safetensors").read_bytes())
    data[-2000] ^= 0x40
    (last / "optimizer.safetensors").write_bytes(data)
    with pytest.warns(UserWarning, match="step-000006 is damaged"):
        assert again(tmp_path / "hurt") == [4, 5, 6]


def test_a_damaged_checkpoint_is_none_of_the_two_that_are_kept(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "hurt")
    (tmp_path / "hurt/step-000006/optimizer.safetensors").write_bytes(b"")
    with pytest.raises(Killed), pytest.warns(UserWarning, match="step-000006 is damaged"):
        run(tmp_path / "hurt", dataclasses.replace(SHORT, save_every=1), say=killed_at(5))
    assert checkpoints(tmp_path / "hurt") == ["step-000003", "step-000004"]


def test_links_are_read_and_removed_and_what_they_lead_to_stays(whole, tmp_path):
    hurt = shutil.copytree(whole, tmp_path / "hurt")
    (tmp_path / "elsewhere").mkdir()
    for name in ("step-000003", "step-000006"):
        (hurt / name).rename(tmp_path / "elsewhere" / name)
        (hurt / name).symlink_to(tmp_path / "elsewhere" / name, target_is_directory=True)
    (tmp_path / "elsewhere/step-000006/optimizer.safetensors").write_bytes(b"")
    (hurt / "step-000007").symlink_to(tmp_path / "nowhere")
    (hurt / "step-000008").write_bytes(b"a file")
    (hurt / ".step-000009.1").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.warns(UserWarning, match="is damaged") as warned:
        assert again(hurt, dataclasses.replace(SHORT, save_every=1)) == [4, 5, 6]
    assert len([each for each in warned if "is damaged" in str(each.message)]) == 3
    assert checkpoints(hurt) == ["step-000005", "step-000006"]
    assert not (hurt / "step-000006").is_symlink()
    assert (tmp_path / "elsewhere/step-000003/model.safetensors").is_file()
    assert (tmp_path / "elsewhere/step-000006/model.safetensors").is_file()
    assert all(torch.equal(weights(whole)[name], value) for name, value in weights(hurt).items())


FULL = dataclasses.replace(SHORT, optimizer="adamw")
SMALL_FILES = """
import pathlib, resource, signal, sys
from tests.vlm import test_train
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for kind in (test_train.tiny, test_train.with_adapters):
    for size in (2_000, 20_000):
        model = kind()
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            test_train.run(pathlib.Path(sys.argv[1], kind.__name__), test_train.FULL, model=model)
        except OSError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


@pytest.mark.filterwarnings("ignore:Could not find a config file in  - will assume:UserWarning")
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    """Files of a process that may be no longer than a size, as on a disk without room: every write past it fails. Of a model,
    and of adapters, which peft writes."""
    pytest.importorskip("peft")
    for kind in (tiny, with_adapters):
        run(tmp_path / "whole" / kind.__name__, FULL, model=kind())
        shutil.copytree(tmp_path / "whole" / kind.__name__, tmp_path / kind.__name__)
        shutil.rmtree(tmp_path / kind.__name__ / "step-000006")
    command = [sys.executable, "-W", "ignore", "-c", SMALL_FILES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step-000006 could not be written") == 4, done.stdout
    for kind in (tiny, with_adapters):
        assert checkpoints(tmp_path / kind.__name__) == ["step-000003"]
        assert again(tmp_path / kind.__name__, FULL, model=kind()) == [4, 5, 6]
        folders = (tmp_path / "whole" / kind.__name__, tmp_path / kind.__name__)
        whole, full = (load_file(last_checkpoint(folder) / "optimizer.safetensors") for folder in folders)
        assert whole.keys() == full.keys()
        assert all(torch.equal(whole[name], value) for name, value in full.items())


def test_what_a_killed_process_left_is_freed_before_the_log_is_written(whole, tmp_path, monkeypatch):
    """On a disk that it filled, the log could not be written before."""
    shutil.copytree(whole, tmp_path / "full")
    (tmp_path / "full/.step-000009.1").mkdir()
    with (tmp_path / "full/log.jsonl").open("a") as file:
        file.write('{"step": 7')
    replacing = train_module.replacing

    def full(path):
        if checkpoints(tmp_path / "full") != ["step-000003", "step-000006"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replacing(path)

    monkeypatch.setattr(train_module, "replacing", full)
    assert again(tmp_path / "full") == []
    assert log(tmp_path / "full") == log(whole)


def test_the_last_two_checkpoints_are_kept(tmp_path):
    run(tmp_path, dataclasses.replace(SHORT, save_every=1))
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-000005", "step-000006"]


def test_a_finished_training_is_left_as_it_is(tmp_path):
    run(tmp_path)
    before = weights(tmp_path)
    said = []
    run(tmp_path, say=said.append)
    assert not said
    assert all(torch.equal(before[name], value) for name, value in weights(tmp_path).items())


@pytest.mark.parametrize(("change", "message"), [({"seed": 1}, "seed 0, now asked for seed 1"), ({"steps": 9}, "steps 6")])
def test_other_settings_are_refused(tmp_path, change, message):
    run(tmp_path)
    with pytest.raises(ValueError, match=message):
        run(tmp_path, dataclasses.replace(SHORT, **change))


def test_another_schedule_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match=r"was trained with about .*schedule"):
        train(tiny(), training=SHORT, folder=tmp_path, **made(schedule=SCHEDULE[:1]))


def test_a_loss_that_is_no_number_leaves_the_last_checkpoint(tmp_path):
    model = tiny()
    training = dataclasses.replace(SHORT, save_every=1)

    def spoil(entry):
        if entry["step"] == 2:
            model.embedding.weight.data.fill_(torch.nan)

    with pytest.raises(ValueError, match="the loss is nan at step 3: lower the learning rates"):
        run(tmp_path, training, model=model, say=spoil)
    assert last_checkpoint(tmp_path).name in ("step-000001", "step-000002")
    assert all(entry["step"] <= 2 for entry in log(tmp_path))


def test_a_torn_line_of_the_log_is_written_again(tmp_path):
    run(tmp_path)
    whole = (tmp_path / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text(whole + '{"step": 7, "exact": {"at": 0.5}')
    run(tmp_path)
    assert (tmp_path / "log.jsonl").read_text() == whole


@pytest.mark.parametrize(
    "damage", [bytes(30), b'{"st\xff": 1}\n', b"{}\n", b"[]\n", b'{"step": "2"}\n', b"\n", b"[" * 200 + b"\n"]
)
def test_a_damaged_line_of_the_log_is_named_and_the_others_stay(whole, damage, tmp_path):
    """Checkpoints are sound, and no weights depend on it: the training continues."""
    shutil.copytree(whole, tmp_path / "hurt")
    lines = (whole / "log.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "hurt/log.jsonl").write_bytes(
        b"".join([lines[0], damage + lines[1][30:] if damage[0] == 0 else damage, *lines[2:]])
    )
    with pytest.warns(UserWarning, match=r"line 2 of .*log.jsonl is damaged, and left out"):
        assert again(tmp_path / "hurt") == []
    assert (tmp_path / "hurt/log.jsonl").read_bytes() == b"".join([lines[0], *lines[2:]])


def test_a_log_that_is_right_is_not_written_again(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "same")
    before = (tmp_path / "same/log.jsonl").stat().st_ino
    run(tmp_path / "same")
    assert (tmp_path / "same/log.jsonl").stat().st_ino == before


def test_what_is_said_of_batches_hides_no_setting(tmp_path):
    """`about` has a key of its own: whatever it names, the settings are compared."""
    settings = Training(steps=1, optimizer="adamw", bfloat16=False)
    batch = made(batch_size=1)["batches"][0]
    about = {"seed": 7, "adam_lr": np.float64(0.5), "batches": np.int64(9), "trained": {}, "frozen": (1, None)}
    train(tiny(), [batch], settings, tmp_path, about=about)
    train(tiny(), [batch], settings, tmp_path, about=about)
    for other in ({"seed": 1}, {"adam_lr": 0.5}):
        with pytest.raises(ValueError, match=f"was trained with {next(iter(other))}"):
            train(tiny(), [batch], dataclasses.replace(settings, **other), tmp_path, about=about)
    with pytest.raises(ValueError, match="was trained with batches 1, now asked for batches 2"):
        train(tiny(), [batch] * 2, settings, tmp_path, about=about)
    with pytest.raises(ValueError, match=r"was trained with about .*'seed': 7.*now asked for about .*'seed': 8"):
        train(tiny(), [batch], settings, tmp_path, about={**about, "seed": 8})


def nested(depth):
    return functools.reduce(lambda inner, _: [inner], range(depth), [])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "nan|not JSON compliant"),
        (math.inf, "inf|not JSON compliant"),
        ({1}, r"\{1\}, a set, cannot be written as JSON"),
        (torch.zeros(1), "a Tensor, cannot be written"),
        ({(1, 2): 3}, "keys must be str"),
        (nested(200), "nested deeper than 100"),
        (nested(100_000), "recursion|nested"),
    ],
    ids=["nan", "inf", "set", "tensor", "keys", "deep", "deeper"],
)
def test_what_cannot_be_compared_is_refused_before_a_step(value, message, tmp_path):
    with pytest.raises(ValueError, match=f"what decides the weights, about= too, must be JSON.*({message})"):
        train(tiny(), [], SHORT, tmp_path / "none", about={"data": value})
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"log_every": 0}, "too small: log_every 0"),
        ({"log_every": 2, "save_every": 3}, "save_every 3 must be a multiple"),
        ({"optimizer": "sgd"}, r"optimizer must be one of \('muon', 'adamw'\), got 'sgd'"),
        ({"shard": True}, "Muon needs whole matrices.*optimizer='adamw'"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Training(**settings)


def test_padding_on_the_left_is_refused():
    with pytest.raises(ValueError, match="padding_side='right'"):
        TaskBatches(task_processor(), count=1)


def test_workers_change_nothing(tmp_path):
    run(tmp_path / "here")
    run(tmp_path / "workers", dataclasses.replace(SHORT, workers=1))
    here, there = weights(tmp_path / "here"), weights(tmp_path / "workers")
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_every_parameter_has_one_optimizer():
    model = tiny()
    held = [p for o in make_optimizers(model, SHORT) for group in o.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(model.parameters()))
    muon = {id(p) for p in make_optimizers(model, SHORT)[0].param_groups[0]["params"]}
    assert id(model.embedding.weight) not in muon
    assert id(model.decoder.blocks[0].q.weight) in muon


def test_the_learning_rate_rises_stays_and_falls():
    training = Training(steps=100, warmup=10, cooldown=0.4)
    shares = [training.lr_share(step) for step in range(100)]
    assert shares[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert set(shares[10:61]) == {1.0}
    assert shares[80] == pytest.approx(0.5)
    assert shares[99] == pytest.approx(1 / 40)


# --- the same steps, computed otherwise -------------------------------------------------------------------------------

PLAIN = dataclasses.replace(SHORT, bfloat16=False, optimizer="adamw", batches_per_step=2)


def curve(folder):
    return [entry["loss"] for entry in log(folder)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The training that others are to equal: its losses, and its last weights."""
    folder = tmp_path_factory.mktemp("plain")
    run(folder, PLAIN, batch_size=1)
    return folder


def assert_same(folder, other, *, atol=1e-5):
    assert curve(folder) == pytest.approx(curve(other), abs=2e-4)
    found, expected = weights(folder), weights(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("packed", [False, True])
def test_blocks_that_are_computed_twice_teach_the_same(packed, tmp_path):
    training = dataclasses.replace(SHORT, bfloat16=False)
    run(tmp_path / "kept", training, packed=packed)
    run(tmp_path / "recomputed", dataclasses.replace(training, recompute=True), packed=packed)
    assert_same(tmp_path / "recomputed", tmp_path / "kept")


def test_packs_teach_what_padded_rows_teach(tmp_path):
    training = dataclasses.replace(SHORT, bfloat16=False, optimizer="adamw")
    run(tmp_path / "padded", training, batch_size=4)
    run(tmp_path / "packed", training, batch_size=4, packed=True)
    assert_same(tmp_path / "packed", tmp_path / "padded", atol=1e-4)
    assert [entry["exact"] for entry in log(tmp_path / "packed")] == [entry["exact"] for entry in log(tmp_path / "padded")]


def test_two_batches_a_step_are_one_of_both(tmp_path):
    """Every token counts alike, however they are dealt out: here one of three tokens to learn beside one of thirty."""
    said = [[{"role": "user", "content": "one"}, {"role": "assistant", "content": text}] for text in ("1 2", "3 " * 30)]
    rows = [PROCESSOR(messages, labels=True) for messages in said]
    [both] = pack_batches(rows, max_tokens=10_000)
    alone = [pack for row in rows for pack in pack_batches([row], max_tokens=10_000)]
    settings = {"steps": 3, "bfloat16": False, "optimizer": "adamw", "log_every": 1, "save_every": 3}
    train(tiny(), [both], Training(**settings), tmp_path / "one")
    train(tiny(), alone, Training(**settings, batches_per_step=2), tmp_path / "two")
    assert_same(tmp_path / "two", tmp_path / "one")


def test_batches_may_come_as_they_are_made(tmp_path):
    rows = [
        PROCESSOR([{"role": "user", "content": "one"}, {"role": "assistant", "content": "1 " * n}], labels=True)
        for n in range(1, 9)
    ]
    packs = lambda: pack_batches(rows, max_tokens=max(row["input_ids"].shape[1] for row in rows))  # noqa: E731
    count = len(list(packs()))
    training = Training(steps=count, bfloat16=False, log_every=1, save_every=1)
    train(tiny(), list(packs()), training, tmp_path / "list")
    with pytest.raises(Killed):
        train(tiny(), packs(), training, tmp_path / "stream", say=killed_at(3))
    train(tiny(), packs(), training, tmp_path / "stream")
    assert all(torch.equal(value, weights(tmp_path / "list")[name]) for name, value in weights(tmp_path / "stream").items())
    with pytest.raises(ValueError, match=f"the batches end within step {count + 1} of {count + 1} steps of 1"):
        train(tiny(), packs(), dataclasses.replace(training, steps=count + 1), tmp_path / "short")
    train(tiny(), list(packs()), dataclasses.replace(training, steps=count + 1, save_every=1), tmp_path / "again")
    with pytest.raises(ValueError, match="there are no batches"):
        train(tiny(), [], training, tmp_path / "none")


def killed_at(step):
    def say(entry):
        if entry["step"] == step:
            raise Killed

    return say


def test_weights_in_half_precision_are_not_trained(tmp_path):
    with pytest.raises(ValueError, match=r"\d+ weights to train are not float32, .* for one.*dtype=torch.float32"):
        run(tmp_path, model=tiny().bfloat16())


def test_compiled_blocks_teach_the_same(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "compile", functools.partialmethod(torch.nn.Module.compile, backend="eager"))
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)  # Dynamo looks
        run(tmp_path, dataclasses.replace(PLAIN, compile=True), batch_size=1)
    assert_same(tmp_path, plain)


# --- adapters ---------------------------------------------------------------------------------------------------------


def with_adapters():
    """LoRA on a frozen model in bfloat16, as peft makes it."""
    peft = importlib.import_module("peft")
    torch.manual_seed(1)
    targets = r"decoder\.blocks\.\d+\.(q|k|v|out|mlp\.(up|gate|down))"
    return peft.get_peft_model(tiny().bfloat16(), peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=targets))


def adapter(folder):
    return load_file(last_checkpoint(folder) / "adapter_model.safetensors")


@pytest.mark.filterwarnings("ignore:Could not find a config file in  - will assume:UserWarning")
def test_adapters_learn_and_go_on_to_the_bit(tmp_path):
    """Dropout included: a step's randomness is its own."""
    training = dataclasses.replace(SHORT, optimizer="adamw", adam_lr=1e-2, recompute=True)
    model, before = with_adapters(), with_adapters().state_dict()
    run(tmp_path / "whole", training, model=model, packed=True)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert curve(tmp_path / "whole")[-1] < curve(tmp_path / "whole")[0]
    with pytest.raises(Killed):
        run(tmp_path / "killed", training, model=with_adapters(), packed=True, say=killed_at(5))
    run(tmp_path / "killed", training, model=with_adapters(), packed=True)
    whole, killed = adapter(tmp_path / "whole"), adapter(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert sum(path.stat().st_size for path in last_checkpoint(tmp_path / "whole").iterdir()) < 300_000


def test_an_adapter_of_another_name_is_refused_before_a_step(tmp_path):
    """peft would write it into a folder of its own."""
    peft = importlib.import_module("peft")
    config = peft.LoraConfig(r=2, target_modules=["q"])
    training = dataclasses.replace(SHORT, optimizer="adamw")
    two = peft.get_peft_model(tiny(), config)
    two.add_adapter("other", config)
    for model, name in ((peft.get_peft_model(tiny(), config, adapter_name="mine"), "mine"), (two, "other")):
        with pytest.raises(
            ValueError, match=f"the model has an adapter '{name}'.*named 'default' as by peft: leave adapter_name"
        ):
            run(tmp_path, training, model=model)
        assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:Could not find a config file in  - will assume:UserWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_alpha": 80}, "adapters .*'lora_alpha': 8.*now asked for"),
        ({"use_rslora": True}, "adapters"),
        ({"target_modules": r"decoder\.blocks\.\d+\.(q|k)"}, "trained, adapters|trained .*adapters"),
        ({}, "frozen '"),
    ],
    ids=["alpha", "rslora", "targets", "base"],
)
def test_adapters_go_on_with_the_same_alone(change, message, tmp_path):
    """Another scale, other targets, another base."""
    peft = importlib.import_module("peft")
    training = dataclasses.replace(SHORT, optimizer="adamw", steps=3)
    config = {"r": 4, "lora_alpha": 8, "target_modules": r"decoder\.blocks\.\d+\.(q|v)"}
    run(tmp_path, training, model=peft.get_peft_model(tiny(), peft.LoraConfig(**config)))
    base = tiny()
    if not change:
        base.decoder.blocks[0].mlp.up.weight.data.add_(0.1)
    with pytest.raises(ValueError, match=message):
        run(tmp_path, training, model=peft.get_peft_model(base, peft.LoraConfig(**{**config, **change})))


@pytest.mark.filterwarnings("ignore:Could not find a config file in  - will assume:UserWarning")
def test_an_adapter_of_the_head_learns_and_one_of_a_tied_embedding_is_refused(tmp_path):
    peft = importlib.import_module("peft")
    base, training = tiny(), dataclasses.replace(SHORT, optimizer="adamw", adam_lr=1e-2)
    tied = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["embedding", "q"]))
    with pytest.raises(ValueError, match=r"the embedding is the head, too.*modules_to_save=\['embedding'\]"):
        run(tmp_path, training, model=tied)
    decoder = dataclasses.replace(tiny().config.decoder, tie_word_embeddings=False)
    untied = VLM(dataclasses.replace(tiny().config, decoder=decoder))
    model = peft.get_peft_model(untied, peft.LoraConfig(r=2, target_modules=["head"]))
    run(tmp_path, training, model=model)
    assert all(p.abs().max() > 0 for name, p in model.named_parameters() if "lora_B" in name)
    whole = peft.get_peft_model(tiny(), peft.LoraConfig(r=2, target_modules=["q"], modules_to_save=["embedding"]))
    run(tmp_path / "whole", training, model=whole)
    assert any("embedding" in name for name in adapter(tmp_path / "whole"))


def test_what_has_no_part_in_the_loss_is_named(tmp_path):
    model = tiny()
    model.unused = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"2 weights to train had no part in the loss, unused.weight for one: freeze them"):
        run(tmp_path, model=model)
    with pytest.raises(ValueError, match="nothing of the model requires a gradient"):
        run(tmp_path, model=tiny().requires_grad_(False))
    [batch] = pack_batches([PROCESSOR([{"role": "user", "content": "one"}])], max_tokens=100)
    with pytest.raises(ValueError, match="a batch has no labels, so there is nothing to learn"):
        train(tiny(), [batch], SHORT, tmp_path)


def test_a_part_that_is_frozen_in_bfloat16_goes_on(tmp_path):
    def frozen():
        model = tiny()
        model.vision.requires_grad_(False).bfloat16()
        return model

    whole = run(tmp_path / "whole", model=frozen())
    with pytest.raises(Killed):
        run(tmp_path / "killed", model=frozen(), say=killed_at(5))
    killed = run(tmp_path / "killed", model=frozen())
    assert killed.vision.embed.weight.dtype == torch.bfloat16
    assert all(torch.equal(value, killed.state_dict()[name]) for name, value in whole.state_dict().items())


# --- several processes ------------------------------------------------------------------------------------------------

PAIR = """
import dataclasses, os, sys, torch, torch.distributed as dist
sys.path.insert(0, {root!r})
from tests.vlm import test_train
torch.set_num_threads(1)
dist.init_process_group("gloo")


def say(entry):
    if entry["step"] == {killed}:
        os._exit(1)


for name, changes in {runs!r}.items():
    training = dataclasses.replace(test_train.PLAIN, **changes)
    model = test_train.tiny()
    if dist.get_rank() and name.startswith("own"):
        torch.nn.init.normal_(model.embedding.weight)  # the first process's weights are what counts
    test_train.run({folder!r} + "/" + name, training, model=model, batch_size=1, say=say)
    if training.shard:
        try:
            test_train.run({folder!r} + "/again", training, model=model, batch_size=1)
        except ValueError as error:
            assert "the model is sharded already" in str(error)
        else:
            raise AssertionError("a sharded model was trained again")
    if not training.shard:
        flat = torch.cat([p.detach().flatten() for p in model.parameters()])
        both = [torch.empty_like(flat) for _ in range(2)]
        dist.all_gather(both, flat)
        assert torch.equal(*both), "the processes' weights differ"
    del model
dist.destroy_process_group()
"""


def torchrun(folder, runs, killed=None):
    code = folder / "pair.py"
    code.write_text(PAIR.format(root=str(ROOT), folder=str(folder), runs=runs, killed=killed))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(code)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert (done.returncode == 0) == (killed is None), done.stderr[-3000:]


@lowest.newer_torch("FSDP2 on CPUs")
def test_two_processes_are_one(plain, tmp_path):
    """On gloo, DDP and FSDP2: the losses and the last weights of one process that takes all the batches; also of two that were
    killed in between. Some batches are text alone in one process, and hold media in the other."""
    runs = {"ddp": {}, "own fsdp": {"shard": True, "recompute": True}, **({"fsdp": {"shard": True}} if PROOF else {})}
    torchrun(tmp_path, runs)
    for name in runs:
        assert_same(tmp_path / name, plain)
    torchrun(tmp_path, {"killed": {"shard": True}}, killed=5)
    assert last_checkpoint(tmp_path / "killed").name == "step-000003"
    run(tmp_path / "killed", PLAIN, batch_size=1)  # as one process
    assert_same(tmp_path / "killed", plain)


def test_processes_share_whole_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="2 processes cannot share steps of 3 batches: batches_per_step must be a multiple"):
        run(tmp_path, dataclasses.replace(SHORT, batches_per_step=3))
