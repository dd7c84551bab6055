"""Fine-tunes a Qwen2.5-VL with transformers' Trainer on packed images, videos and text. The collator adds the position ids.

python samples/finetune_qwen.py [--model FOLDER] [--lora] [--bf16] [--steps 8] [--device cpu]

--lora trains adapters of the language model, by peft. A folder of another family will do, too, if its models take packs.
"""

import tempfile
from functools import partial

import torch
from tiny_qwen import CONVERSATIONS, arguments, load
from transformers import Trainer, TrainingArguments

from mmrope.adapters.transformers import PositionCollator

parser = arguments(__doc__)
parser.add_argument("--lora", action="store_true", help="train adapters, not the model's own weights")
parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
parser.add_argument("--steps", type=int, default=8)
options = parser.parse_args()
model, processor = load(options)
rate = 1e-5
if options.lora:
    from peft import LoraConfig, get_peft_model

    if options.bf16:  # weights that stay; not model.bfloat16(), which rounds the frequencies of the rotation, too
        for weight in model.parameters():
            weight.data = weight.data.to(torch.bfloat16)
    # Attention and MLP of the language model. By the last names alone, the vision tower's MLP would have adapters, too.
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=r".*language_model.*_proj"))
    model.print_trainable_parameters()
    rate = 1e-4

with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=4,
            learning_rate=1e-2 if options.model is None else rate,
            lr_scheduler_type="constant",
            bf16=options.bf16,
            activation_checkpointing=True,  # gradient_checkpointing before transformers 5.24
            dataloader_num_workers=1,
            remove_unused_columns=False,  # what the collator is given is a conversation, not columns of the model's arguments
            use_cpu=options.device == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=CONVERSATIONS * 4,
        # The answers alone are learned, and each batch is one row without padding.
        data_collator=PositionCollator(partial(processor, labels=True), processor.family, packed=True),
    )
    trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print(f"loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at step {len(losses)}")
assert options.model or losses[-1] < losses[0]
