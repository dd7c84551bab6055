"""Trains a Qwen2.5-VL with TRL's GRPOTrainer on images, with mmrope's ids in the rollouts and in the log-probabilities.

python samples/grpo_trl.py [--model FOLDER] [--lora] [--beta 0] [--steps 2] [--device cpu]

GRPOTrainer hands on no ids: the model makes them by its `get_rope_index`, which can be set. It takes images, no videos.
"""

import tempfile
from typing import Any

from datasets import Dataset, Image, List
from tiny_processor import load_processor, trl_row
from tiny_qwen import arguments, conversation, load
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

from mmrope.adapters.transformers import RopeIndex

parser = arguments(__doc__)
parser.add_argument("--lora", action="store_true", help="train adapters, not the model's own weights")
parser.add_argument("--beta", type=float, default=0.0, help="weight of the divergence from the model as it was; with a FOLDER")
parser.add_argument("--steps", type=int, default=2)
options = parser.parse_args()
model, _ = load(options)
questions = [conversation("cat.jpg", "What is it?"), conversation("coffee.jpg", "cat.jpg", "Which can be drunk?")]
rows = [{"prompt": row["messages"], "images": row["images"]} for row in map(trl_row, questions)]
adapters, lengths = None, []
if options.lora:
    from peft import LoraConfig

    adapters = LoraConfig(r=8, lora_alpha=16, target_modules=r".*language_model.*_proj")


class Noted(RopeIndex):
    """RopeIndex, and of how many tokens the rows were that it was called with. Training needs RopeIndex(model.config) alone."""

    def __call__(self, input_ids, **inputs):
        lengths.append(input_ids.shape[1])
        return super().__call__(input_ids, **inputs)


def many_vowels(completions: list[Any], **_: Any) -> list[float | None]:
    """A reward, from 0 to 1."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in texts]


with tempfile.TemporaryDirectory() as folder:
    backbone: Any = model.model
    backbone.get_rope_index = Noted(model.config)
    trainer = GRPOTrainer(
        model,
        many_vowels,
        GRPOConfig(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=8,
            generation_kwargs={"suppress_tokens": [model.config.image_token_id, model.config.video_token_id]},  # no pixels
            beta=options.beta,
            activation_checkpointing=True,
            use_cpu=options.device == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=Dataset.from_list(rows * 4, on_mixed_types="use_json").cast_column("images", List(Image())),
        processing_class=load_processor(options),
        peft_config=adapters,
    )
    reference: Any = trainer.ref_model
    if reference is not None:  # with beta, and without adapters: loaded anew from the folder
        reference.model.get_rope_index = backbone.get_rope_index
    trainer.train()
print(f"mmrope's ids for rows of {lengths} tokens: prompts to complete, and prompts with completions")
assert len(lengths) == options.steps * (3 if options.beta else 2)
