"""Training: it learns, it can be killed, and several processes are one."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from mmrope import VLM
from mmrope.vlm import VLMConfig
from mmrope.vlm.config import DecoderConfig, VisionConfig
from mmrope.vlm.data import Mix, task_processor
from mmrope.vlm.train import Training, last_checkpoint, make_optimizers, train
from tests.support import PROOF, ROOT

PROCESSOR = task_processor(padding_side="right", threads=1)
SHORT = Training(steps=6, batch_size=2, warmup=2, save_every=3, log_every=1)
LONG = Training(steps=400, batch_size=1, save_every=1, log_every=1)
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


def run(folder, training=SHORT, **options):
    return train(tiny(), PROCESSOR, training, folder, schedule=SCHEDULE, **options)


def weights(folder):
    return load_file(last_checkpoint(folder) / "model.safetensors")


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class Killed(Exception):
    pass


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_it_learns_to_read_a_digit(tmp_path):
    steps = 240 if PROOF else 40
    training = Training(steps=steps, batch_size=16, warmup=5, save_every=steps, log_every=10, bfloat16=False)
    train(tiny(96), PROCESSOR, training, tmp_path, schedule=((1.0, Mix(images=1, side=1, tokens=16)),))
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


def test_a_save_that_was_interrupted_is_not_a_checkpoint(tmp_path):
    run(tmp_path)
    good = last_checkpoint(tmp_path)
    (tmp_path / ".step-000009.123").mkdir()
    (tmp_path / "step-x").mkdir()
    assert last_checkpoint(tmp_path) == good
    run(tmp_path)
    assert not list(tmp_path.glob(".step-*"))


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
    with pytest.raises(ValueError, match="was trained with schedule"):
        train(tiny(), PROCESSOR, SHORT, tmp_path)


def test_a_loss_that_is_no_number_leaves_the_last_checkpoint(tmp_path):
    model = tiny()
    training = dataclasses.replace(SHORT, save_every=1)

    def spoil(entry):
        if entry["step"] == 2:
            model.embedding.weight.data.fill_(torch.nan)

    with pytest.raises(ValueError, match="the loss is nan at step 3: lower the learning rates"):
        train(model, PROCESSOR, training, tmp_path, schedule=SCHEDULE, say=spoil)
    assert last_checkpoint(tmp_path).name in ("step-000001", "step-000002")
    assert all(entry["step"] <= 2 for entry in log(tmp_path))


def test_a_torn_line_of_the_log_is_written_again(tmp_path):
    run(tmp_path)
    whole = (tmp_path / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text(whole + '{"step": 7, "exact": {"at": 0.5}')
    run(tmp_path)
    assert (tmp_path / "log.jsonl").read_text() == whole


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"log_every": 0}, "too small: log_every 0"), ({"log_every": 2, "save_every": 3}, "save_every 3 must be a multiple")],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Training(**settings)


def test_padding_on_the_left_is_refused(tmp_path):
    with pytest.raises(ValueError, match="padding_side='right'"):
        train(tiny(), task_processor(), SHORT, tmp_path)


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


# --- several processes ------------------------------------------------------------------------------------------------

PAIR = """
import os, sys, torch, torch.distributed as dist
sys.path.insert(0, {root!r})
from tests.vlm.test_train import PROCESSOR, SCHEDULE, SHORT, tiny
from mmrope.vlm.train import train
torch.set_num_threads(1)
dist.init_process_group("gloo")


def say(entry):
    if entry["step"] == {killed}:
        os._exit(1)


model = train(tiny(), PROCESSOR, SHORT, {folder!r}, schedule=SCHEDULE, say=say)
flat = torch.cat([p.detach().flatten() for p in model.parameters()])
both = [torch.empty_like(flat) for _ in range(2)]
dist.all_gather(both, flat)
assert torch.equal(*both), "the processes' weights differ"
dist.destroy_process_group()
"""


def torchrun(folder, killed=None):
    code = folder.with_suffix(".py")
    code.write_text(PAIR.format(root=str(ROOT), folder=str(folder), killed=killed))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(code)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert (done.returncode == 0) == (killed is None), done.stderr[-3000:]


def test_two_processes_train_one_model(tmp_path):
    """On gloo. Both end with the same weights, which are those of steps along the mean of their gradients; also if they are
    killed in between."""
    torchrun(tmp_path / "two")
    two = weights(tmp_path / "two")
    torchrun(tmp_path / "killed", killed=5)
    assert last_checkpoint(tmp_path / "killed").name == "step-000003"
    torchrun(tmp_path / "killed")
    assert all(torch.equal(two[name], value) for name, value in weights(tmp_path / "killed").items())

    from mmrope.vlm.data import TaskBatches
    from mmrope.vlm.model import next_token_loss
    from mmrope.vlm.train import precision

    model = tiny().train()
    optimizers = make_optimizers(model, SHORT)
    batches = [
        TaskBatches(PROCESSOR, steps=SHORT.steps, batch_size=2, seed=0, rank=rank, schedule=SCHEDULE) for rank in range(2)
    ]
    for step in range(SHORT.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * SHORT.lr_share(step)
            optimizer.zero_grad()
        for rank in range(2):
            batch = batches[rank][step]
            labels = batch.pop("labels")
            batch.pop("kinds")
            with precision("cpu", bfloat16=True):
                logits = model(**batch).logits
            (next_token_loss(logits, labels) / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SHORT.clip)
        for optimizer in optimizers:
            optimizer.step()
    start = tiny().state_dict()
    moved = torch.cat([(value - start[name]).flatten() for name, value in model.state_dict().items()])
    apart = torch.cat([(value - two[name]).flatten() for name, value in model.state_dict().items()])
    assert apart.norm() < 0.02 * moved.norm()  # bfloat16, in another order

    assert json.loads((last_checkpoint(tmp_path / "two") / "training.json").read_text())["settings"]["processes"] == 2
    with pytest.raises(ValueError, match="processes 2, now asked for processes 1"):
        run(tmp_path / "two")
