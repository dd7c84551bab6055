"""Right positions for a Qwen2.5-VL in two lines, and the proof: ids, cos and sin, logits, generation.

python samples/plug_into_qwen.py [--model FOLDER] [--device cpu]
"""

import torch
from tiny_qwen import arguments, conversation, load

import mmrope
from mmrope.adapters.rotary import RotaryInPlace
from mmrope.adapters.transformers import RopeIndex, generate, with_positions

options = arguments(__doc__).parse_args()
model, processor = load(options)
family = mmrope.family_from_config(model.config)
inputs = processor(
    [conversation("What is shown last?", "clip.mp4"), conversation("cat.jpg", "coffee.jpg", "What do they share?")]
)

# One line for the ids, which model(...) takes as they are.
batch = with_positions(inputs, family)
batch = {key: value.to(options.device) for key, value in batch.items()}
with torch.no_grad():
    logits = model(**batch).logits

    # Where it matters: text after the video. The model's own ids put it into the video's time (transformers 5.23).
    own = {key: value for key, value in batch.items() if key != "position_ids"}
    theirs = model(**own).logits
print(
    mmrope.diff(
        mmrope.position_ids(mmrope.segments_from_inputs(inputs, family), family), model.model.get_rope_index(**own)[0].cpu()
    )
)
print(f"images: logits differ by {(logits - theirs)[1].abs().max():.1e}; video: by {(logits - theirs)[0].abs().max():.1e}")

# The same call as the model's method, by the rule of its weights or by transformers' own.
upstream = RopeIndex(mmrope.family_from_config(model.config, revision="transformers-5.23"))
assert all((a == b).all() for a, b in zip(upstream(**own), model.model.get_rope_index(**own), strict=True))

# One line for the angles: right at every position, where the model's own are off by 2e-3 at 100,000.
text = model.model.language_model
text.rotary_emb = RotaryInPlace(text.rotary_emb)  # pyright: ignore[reportAttributeAccessIssue]
with torch.no_grad():
    print(f"own rotary or mmrope's: logits differ by {(model(**batch).logits - logits).abs().max():.1e}")

# Generation with the ids at the prompt and at every step.
tokens = generate(model, own, max_new_tokens=8, do_sample=False)
print(processor.decode(tokens[:, inputs["input_ids"].shape[1] :]), "(random weights)" if options.model is None else "")
