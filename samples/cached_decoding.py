"""Decoding by hand, with a cache and left padding: the next id of each row is all that there is to keep.

python samples/cached_decoding.py [--model FOLDER] [--device cpu]
"""

import torch
from tiny_qwen import arguments, conversation, load

import mmrope
from mmrope.adapters.transformers import generate, with_positions

options = arguments(__doc__).parse_args()
model, processor = load(options)
questions = [conversation("When is the 5 shown?", "clip.mp4"), conversation("cat.jpg", "What is it?"), conversation("Hm?")]
inputs = processor(questions)
prompt = {key: value.to(options.device) for key, value in with_positions(inputs, processor.family).items()}
following, steps = inputs["next_position"].to(options.device), 6

with torch.no_grad():
    output, mask, answer = model(**prompt, use_cache=True), prompt["attention_mask"], []
    for step in range(steps):
        answer.append(output.logits[:, -1:].argmax(dim=-1))  # [B, 1]
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        ids = (following + step).expand(3, 1, -1).mT  # [3, B, 1]
        output = model(input_ids=answer[-1], attention_mask=mask, position_ids=ids, cache=output.cache, use_cache=True)
    answer = torch.cat(answer, dim=1)  # [B, steps]

    # The same from scratch: the whole row, with the answer as text after the prompt.
    rows = mmrope.segments_from_inputs(inputs, processor.family)
    longer = mmrope.position_ids([mmrope.positions.append(row, [mmrope.Segment.text(steps)]) for row in rows], processor.family)
    whole = {
        **{key: value for key, value in prompt.items() if key not in ("position_ids", "mm_token_type_ids")},
        "input_ids": torch.cat([prompt["input_ids"], answer], dim=1),
        "attention_mask": mask,
        "position_ids": torch.from_numpy(mmrope.hf_position_ids(longer)).to(options.device),
    }
    again = model(**whole).logits
print(f"cached and recomputed logits differ by {(again[:, -1] - output.logits[:, -1]).abs().max():.1e}")
assert (again[:, -steps - 1 : -1].argmax(dim=-1) == answer).all()

# The same by transformers' own generate, which is given the ids.
own = {key: value for key, value in prompt.items() if key != "position_ids"}
assert (generate(model, own, max_new_tokens=steps, do_sample=False)[:, -steps:] == answer).all()
print(processor.decode(answer))
