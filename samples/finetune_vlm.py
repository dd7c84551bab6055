"""Fine-tunes mmrope's own model by LoRA on packs of images, videos and text; the base stays in bfloat16 and does not change.

python samples/finetune_vlm.py [--model FOLDER] [--steps 8] [--device cpu] [--out FOLDER]
torchrun --nproc-per-node 2 samples/finetune_vlm.py ...      each process takes its share of every step's packs
"""

import os
import tempfile
from pathlib import Path

import peft
import torch
import torch.distributed as dist
from tiny_qwen import CONVERSATIONS, arguments, load

import mmrope
from mmrope.preprocess import pack_batches
from mmrope.vlm.train import Training, last_checkpoint, train

parser = arguments(__doc__)
parser.add_argument("--steps", type=int, default=8)
parser.add_argument("--out", type=Path, help="continues from the checkpoint that is there")
options = parser.parse_args()
with tempfile.TemporaryDirectory() as scratch:
    folder = options.model or Path(scratch) / "tiny"
    if options.model is None:  # a tiny random checkpoint, as transformers saves it
        tiny, processor = load(options)
        tiny.bfloat16().save_pretrained(folder)
    else:
        processor = mmrope.Processor.from_pretrained(folder)
    torch.manual_seed(0)  # all processes begin with the same adapters
    base = mmrope.VLM.from_pretrained(folder, dtype=torch.bfloat16)
    layers = r"decoder\.blocks\.\d+\.(q|k|v|out|mlp\.(up|gate|down))"
    model = peft.get_peft_model(base, peft.LoraConfig(r=8, lora_alpha=16, target_modules=layers))

    packs = list(pack_batches((processor(messages, labels=True) for messages in CONVERSATIONS), max_tokens=160))
    training = Training(
        steps=options.steps,
        batches_per_step=2,
        optimizer="adamw",
        adam_lr=3e-2 if options.model is None else 1e-4,
        warmup=1,
        recompute=True,  # gradient checkpointing
        log_every=1,
        save_every=options.steps,
    )
    if "WORLD_SIZE" in os.environ:
        if options.device == "cuda":
            options.device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(options.device)
        dist.init_process_group("nccl" if options.device.startswith("cuda") else "gloo")
    out, losses = options.out or Path(scratch) / "out", []
    train(model, packs, training, out, device=options.device, say=lambda entry: losses.append(entry["loss"]))
    if losses:  # of the first process
        print(f"loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at step {options.steps}")
        assert losses[-1] < losses[0]
        best = str(last_checkpoint(out))
        adapted = peft.PeftModel.from_pretrained(mmrope.VLM.from_pretrained(folder), best).merge_and_unload()
        print(f"merged: {type(adapted).__name__}, {sum(p.numel() for p in adapted.parameters()):,} parameters")
if dist.is_initialized():
    dist.destroy_process_group()
