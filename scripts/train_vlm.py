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
from mmrope.vlm.data import small_config, task_processor
from mmrope.vlm.train import LOG_NAME, Training, last_checkpoint, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Training()
    parser.add_argument("--out", type=Path, default=Path("out/vlm"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--float32", action="store_true", help="instead of bfloat16")
    parser.add_argument("--threads", type=int, help="of torch, on a CPU")
    for name in ("steps", "batch_size", "seed", "muon_lr", "adam_lr", "save_every", "log_every", "workers"):
        default = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{default}")
    options = vars(parser.parse_args())
    out, device, threads = options.pop("out"), options.pop("device"), options.pop("threads")
    training = Training(bfloat16=not options.pop("float32"), **options)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if threads:
        torch.set_num_threads(threads)
    new_figure(1, 1)  # says what is missing before the training, not after it
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)

    processor = task_processor(padding_side="right", threads=1)
    torch.manual_seed(training.seed)
    model = VLM(small_config(processor))
    first = not several or dist.get_rank() == 0
    if first:
        tqdm.write(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters on {device}, into {out}")
    with tqdm(total=training.steps, disable=None if first else True, unit="step") as bar:

        def say(entry: dict[str, Any]) -> None:
            exact = "  ".join(f"{kind} {share:.1%}" for kind, share in entry["exact"].items())
            bar.update(entry["step"] - bar.n)
            tqdm.write(f"step {entry['step']}  {entry['seconds']:.0f} s  loss {entry['loss']:.3f}  {exact}")

        train(model, processor, training, out, device=device, say=say)
    if first:
        log = [json.loads(line) for line in (out / LOG_NAME).read_text(encoding="utf-8").splitlines()]
        save(plot_training(log), out / "loss.png")
        tqdm.write(f"wrote {last_checkpoint(out)} and {out / 'loss.png'}")
    if several:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
