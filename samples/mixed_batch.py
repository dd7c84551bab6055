"""A batch of unequal conversations, with images, a video and text alone: padded, positioned, and read by a model.

python samples/mixed_batch.py [--device cpu]
"""

import argparse
from pathlib import Path

import torch

import mmrope

parser = argparse.ArgumentParser()
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
device = parser.parse_args().device
here = Path(__file__).parent


def user(*content):
    """A conversation of one message: strings are text, paths are images or videos by their ending."""
    kinds = {".jpg": "image", ".mp4": "video"}
    items = [
        {"type": "text", "text": item} if isinstance(item, str) else {"type": kinds[item.suffix], kinds[item.suffix]: item}
        for item in content
    ]
    return [{"role": "user", "content": items}]


processor = mmrope.Processor(
    family="qwen2_5_vl",
    image_pixels=(56 * 56, 64 * 28 * 28),
    video_pixels=(4 * 28 * 28, 16 * 28 * 28),
    padding_side="left",
)
inputs = processor(
    [
        user(here / "cat.jpg", here / "coffee.jpg", "What do the pictures share?"),
        user("When is the 5 shown?", here / "clip.mp4"),
        user("Two and two?"),
    ]
)
print({name: list(value.shape) for name, value in inputs.items() if hasattr(value, "shape")})

# Padding keeps its place, takes no position, and changes no other token's.
rows = mmrope.segments_from_inputs(inputs, processor.family)
positions = mmrope.position_ids(rows, processor.family)
assert (positions.ids == inputs["position_ids"].numpy()).all()
print(mmrope.explain(positions))

# The small model reads the batch as it is. Its weights are random here: what it writes means nothing yet.
torch.manual_seed(0)
model = mmrope.VLM().to(device).eval()
tokens = model.generate(**inputs.to(device), max_new_tokens=8)
print(f"{list(tokens.shape)} new tokens on {device}, from ids {positions.next.tolist()} on (random weights)")

# A training step: labels are the tokens themselves, but for padding and for what stands for pixels. (Who trains on answers
# alone masks the questions, too.)
not_text = (inputs["attention_mask"] == 0) | (inputs["mm_token_type_ids"] != 0)
labels = inputs["input_ids"].masked_fill(not_text, -100)
loss = model.train()(**inputs.to(device), labels=labels.to(device)).loss
loss.backward()
print(f"loss {loss.item():.3f} (chance is {torch.tensor(model.config.decoder.vocab_size).log().item():.3f})")
