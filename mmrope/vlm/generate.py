"""Writing text: one token after the other, each at the position after the last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmrope.vlm.decoder import KVCache

if TYPE_CHECKING:
    from mmrope.vlm.model import VLM


@torch.no_grad()
def generate(
    model: VLM,
    *,
    input_ids: Tensor,
    position_ids: Tensor,
    attention_mask: Tensor,
    next_position: Tensor,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    **media: Any,
) -> Tensor:
    """Continues each row until it ends its turn, or for `max_new_tokens`.

    Args:
        input_ids, position_ids, attention_mask, next_position, **media: a Processor's output, padded on the left.
            Token i of the answer has the id next_position + i on every axis.
        temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature).
        top_p: draw only from the likeliest tokens that together have this probability.
        generator: where drawing takes its randomness, on the model's device.

    Returns:
        [B, n] the new tokens, n <= max_new_tokens; after a row's end token, the padding token.

    Raises:
        ValueError: rows padded on the right, or options out of range.
    """
    if not bool(attention_mask[:, -1].all()):
        raise ValueError(
            "a row ends in padding, so its next token cannot be read off: pad on the left (Processor(padding_side='left'))"
        )
    if max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"need max_new_tokens >= 1, temperature >= 0 and 0 < top_p <= 1, got {max_new_tokens=}, {temperature=}, {top_p=}"
        )
    batch, length = input_ids.shape
    if next_position.shape != (batch,):
        raise ValueError(f"next_position must be [{batch}], one id a row, got {list(next_position.shape)}")
    weight = model.embedding.weight
    cache = KVCache(model.config.decoder, batch, length + max_new_tokens, device=weight.device, dtype=weight.dtype)
    mask = attention_mask.new_ones(batch, length + max_new_tokens)  # [B, T]
    mask[:, :length] = attention_mask
    ended = torch.zeros(batch, dtype=torch.bool, device=input_ids.device)
    output = model(input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, cache=cache, **media)
    tokens: list[Tensor] = []
    while True:
        token = _choose(output.logits[:, -1].float(), temperature, top_p, generator)  # [B]
        token = torch.where(ended, model.config.pad_token_id, token)
        tokens.append(token)
        ended |= token == model.config.eos_token_id
        if len(tokens) == max_new_tokens or bool(ended.all()):
            return torch.stack(tokens, dim=1)  # [B, n]
        ids = (next_position + len(tokens) - 1).expand(len(position_ids), -1)[..., None]  # [A, B, 1]
        seen = mask[:, : length + len(tokens)]
        output = model(input_ids=token[:, None], position_ids=ids, attention_mask=seen, cache=cache)


def _choose(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    """The next token of each row, from logits [B, vocab]."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    p, order = (logits / temperature).softmax(dim=-1).sort(dim=-1, descending=True)  # [B, vocab]
    p = p.masked_fill(p.cumsum(dim=-1) - p >= top_p, 0.0)  # what is likelier than the rest together is always kept
    drawn = torch.multinomial(p, 1, generator=generator)  # [B, 1]
    return order.gather(-1, drawn).squeeze(-1)  # [B]
