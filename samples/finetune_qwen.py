"""Fine-tunes a Qwen2.5-VL with transformers' Trainer on packed images, videos and text. The collator adds the position ids.

python samples/finetune_qwen.py [--model FOLDER] [--steps 8] [--device cpu]
"""

import tempfile

from tiny_qwen import CONVERSATIONS, arguments, load
from transformers import Trainer, TrainingArguments

from mmrope.adapters.transformers import PositionCollator

parser = arguments(__doc__)
parser.add_argument("--steps", type=int, default=8)
options = parser.parse_args()
model, processor = load(options)


class Collate:
    """Conversations to a padded batch with labels, as any processor makes it."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, conversations):
        """Learn the text, not what stands for pixels. (Who trains on answers alone masks the questions, too.)"""
        inputs = self.processor(conversations)
        not_text = (inputs["attention_mask"] == 0) | (inputs["mm_token_type_ids"] != 0)
        return {**inputs, "labels": inputs["input_ids"].masked_fill(not_text, -100)}


with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=4,
            learning_rate=1e-2 if options.model is None else 1e-5,
            lr_scheduler_type="constant",
            dataloader_num_workers=1,
            remove_unused_columns=False,  # what the collator is given is a conversation, not columns of the model's arguments
            use_cpu=options.device == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=CONVERSATIONS * 4,
        data_collator=PositionCollator(Collate(processor), processor.family, packed=True),
    )
    trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print(f"loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at step {len(losses)}")
assert losses[-1] < losses[0]
