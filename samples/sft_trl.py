"""Fine-tunes a Qwen2.5-VL with TRL's SFTTrainer on packed images, videos and text, and checks the ids that the model is given.

python samples/sft_trl.py [--model FOLDER] [--trl-collator] [--steps 4] [--device cpu]

Conversations are read by mmrope's Processor, or with --trl-collator by TRL's own collator, without the video, as transformers
wants torchcodec for those. Either way one line adds the ids, and packs, which TRL itself does not with images.
"""

import tempfile

from datasets import Dataset, Image, List
from tiny_processor import load_processor, trl_row
from tiny_qwen import CONVERSATIONS, arguments, load
from trl import SFTConfig, SFTTrainer, prepare_multimodal_messages  # pyright: ignore[reportPrivateImportUsage]

import mmrope
from mmrope.adapters.transformers import PositionCollator

parser = arguments(__doc__)
parser.add_argument("--trl-collator", action="store_true", help="read conversations by TRL's collator, images and text alone")
parser.add_argument("--steps", type=int, default=4)
options = parser.parse_args()
model, processor = load(options)
rows = [trl_row(conversation) for conversation in CONVERSATIONS * 4]
if options.trl_collator:
    rows = [row for row in rows if all(item["type"] != "video" for item in row["messages"][0]["content"])]


def collate(rows):
    """Rows to a padded batch; the answers alone are learned."""
    return processor([prepare_multimodal_messages(row["messages"], row["images"]) for row in rows], labels=True)


checked = []


def check(model, args, inputs):
    """Raises if a forward pass has other ids than mmrope's."""
    mmrope.check(inputs["position_ids"], inputs, processor.family, sync=True)
    checked.append(int((inputs["position_ids"][0] == 0).sum()))


with tempfile.TemporaryDirectory() as folder:
    trainer = SFTTrainer(
        model,
        SFTConfig(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=4,
            learning_rate=1e-2 if options.model is None else 1e-5,
            lr_scheduler_type="constant",
            max_length=None,  # 1024 by default: it cuts through images
            assistant_only_loss=options.trl_collator,
            activation_checkpointing=True,
            use_cpu=options.device == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=Dataset.from_list(rows, on_mixed_types="use_json").cast_column("images", List(Image())),
        processing_class=load_processor(options),
        data_collator=None if options.trl_collator else collate,
    )
    trainer.data_collator = PositionCollator(trainer.data_collator, model.config, packed=True)
    model.model.register_forward_pre_hook(check, with_kwargs=True)
    trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print(f"loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at step {len(losses)}")
print(f"mmrope's ids in {len(checked)} passes, of {checked} sequences")
assert len(checked) >= options.steps
