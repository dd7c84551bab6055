"""Trains the small model of small/mmrope_small: digits, pictures, films and sums.

python scripts/train_vlm.py [--steps 7000] [--device cpu] [--out out/vlm]
torchrun --nproc-per-node 2 scripts/train_vlm.py ...      several processes, each with its batches

Killed, it goes on from its last checkpoint when it is started again with the same settings.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from mmrope import VLM
from mmrope.view.figure import new_figure, save
from mmrope.view.model import plot_training
from mmrope.vlm.data import ExactAnswers, TaskBatches, small_config, task_processor
from mmrope.vlm.train import LOG_NAME, Training, last_checkpoint, train


def main() -> None:
    several = int(os.environ.get("WORLD_SIZE", "1"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Training()
    parser.add_argument("--out", type=Path, default=Path("out/vlm"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--float32", action="store_true", help="instead of bfloat16")
    parser.add_argument("--threads", type=int, help="of torch, on a CPU")
    parser.add_argument("--batch-size", type=int, default=32, help="conversations a batch: 32")
    parser.add_argument("--batches-per-step", type=int, default=several, help="shared by the processes: as many as these")
    parser.add_argument("--packed", action="store_true", help="packs instead of padded rows")
    for name in ("steps", "seed", "muon_lr", "adam_lr", "save_every", "log_every", "workers"):
        default = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{default}")
    for name in ("recompute", "compile", "shard"):
        parser.add_argument(f"--{name}", action="store_true", help="as of mmrope.vlm.train.Training")
    options = vars(parser.parse_args())
    out, device, threads = options.pop("out"), options.pop("device"), options.pop("threads")
    making = {name: options.pop(name) for name in ("batch_size", "packed")}
    optimizer = "adamw" if options["shard"] else "muon"
    training = Training(bfloat16=not options.pop("float32"), optimizer=optimizer, **options)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if threads:
        torch.set_num_threads(threads)
    new_figure(1, 1)  # says what is missing before the training, not after it
    if several > 1:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)

    processor = task_processor(padding_side="right", threads=1)
    torch.manual_seed(training.seed)
    model = VLM(small_config(processor))
    count = training.steps * training.batches_per_step
    batches = TaskBatches(processor, count=count, seed=training.seed, **making)
    first = several == 1 or dist.get_rank() == 0
    if first:
        tqdm.write(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters on {device}, into {out}")
    with tqdm(total=training.steps, disable=None if first else True, unit="step") as bar:

        def say(entry: dict[str, Any]) -> None:
            exact = "  ".join(f"{kind} {share:.1%}" for kind, share in entry["exact"].items())
            bar.update(entry["step"] - bar.n)
            tqdm.write(f"step {entry['step']}  {entry['seconds']:.0f} s  loss {entry['loss']:.3f}  {exact}")

        more = {"processor": processor, "device": device, "about": batches.about, "score": ExactAnswers()}
        train(model, batches, training, out, say=say, **more)
    if first:
        log = [json.loads(line) for line in (out / LOG_NAME).read_text(encoding="utf-8").splitlines()]
        save(plot_training(log), out / "loss.png")
        tqdm.write(f"wrote {last_checkpoint(out)} and {out / 'loss.png'}")
    if several > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
