"""Makes the model that is shipped, small/mmrope_small, of a training's last checkpoint: weights in bfloat16, and its records.

python scripts/ship_vlm.py out/vlm        and then: python scripts/eval_vlm.py --card
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from reports import device_name, replace_marked

from mmrope import VLM, Processor
from mmrope.view.figure import save
from mmrope.view.model import plot_training
from mmrope.vlm.assistant import small_model
from mmrope.vlm.train import LOG_NAME, PROGRESS_NAME, sound_checkpoint


def main() -> None:
    small = small_model()
    folder = Path(sys.argv[1])
    checkpoint = sound_checkpoint(folder)
    if checkpoint is None:
        raise SystemExit(f"no checkpoint in {folder}")
    progress = json.loads((checkpoint / PROGRESS_NAME).read_text(encoding="utf-8"))
    settings, minutes = progress["settings"], progress["seconds"] / 60
    if progress["step"] != settings["steps"]:
        raise SystemExit(f"{checkpoint} is at step {progress['step']} of {settings['steps']}: let it end")
    VLM.from_pretrained(checkpoint).bfloat16().save_pretrained(small)
    (small / "model.safetensors").chmod(0o644)
    Processor.from_pretrained(checkpoint, padding_side="left").save_pretrained(small)
    shutil.copy(checkpoint / PROGRESS_NAME, small / PROGRESS_NAME)
    shutil.copy(folder / LOG_NAME, small / LOG_NAME)
    log = [json.loads(line) for line in (folder / LOG_NAME).read_text(encoding="utf-8").splitlines()]
    save(plot_training(log), small / "loss.png")
    said = [
        f"{settings['steps']:,} steps of {settings['about']['batch_size']} conversations and more, seed {settings['seed']}:",
        f"{minutes:.0f} minutes on {device_name('cpu')}, torch {torch.__version__}; the loss ended at {log[-1]['loss']:.3f}.",
    ]
    replace_marked(small / "README.md", "training", said)
    print("\n".join(said))


if __name__ == "__main__":
    main()
