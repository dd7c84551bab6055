"""The same batch, padded and packed: the same loss, and no token for padding.

python samples/padded_or_packed.py [--model FOLDER] [--device cpu]
"""

import torch
from tiny_qwen import CONVERSATIONS, arguments, load

from mmrope.adapters.transformers import with_positions

options = arguments(__doc__).parse_args()
# On the right: where padding is on the left, the first token of a row is learned from padding.
model, processor = load(options, padding_side="right")
inputs = processor(CONVERSATIONS)
not_text = (inputs["attention_mask"] == 0) | (inputs["mm_token_type_ids"] != 0)
inputs["labels"] = inputs["input_ids"].masked_fill(not_text, -100)

losses = {}
for name, packed in (("padded", False), ("packed", True)):
    batch = {
        key: value.to(options.device) if isinstance(value, torch.Tensor) else value
        for key, value in with_positions(inputs, processor.family, packed=packed).items()
    }
    losses[name] = model(**batch).loss
    print(f"{name}: {list(batch['input_ids'].shape)} tokens, ids {list(batch['position_ids'].shape)}, loss {losses[name]:.7f}")

# Their gradients agree, too.
gradients = [torch.autograd.grad(loss, model.model.language_model.embed_tokens.weight)[0] for loss in losses.values()]
for name, (padded, packed) in {"losses": losses.values(), "gradients": gradients}.items():
    print(f"{name} differ by {(padded - packed).abs().max():.1e}")
    assert torch.allclose(padded, packed, rtol=0, atol=1e-5)
