"""Writing text: one token after the other, each at the position after the last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mmrope.vlm.config import VLMConfig
from mmrope.vlm.decoder import KVCache
from mmrope.vlm.inputs import check_inputs

_OPTIONS = ("max_new_tokens", "temperature", "top_p", "stop", "generator")


class Writer(Protocol):
    """What can write: the model."""

    config: VLMConfig
    embedding: nn.Embedding

    def __call__(self, **inputs: Any) -> Any:
        """What has the `logits` [B, S, vocab] of a Processor's output."""
        ...


def new_tokens(model: Writer, **inputs: Any) -> Tensor:
    """Continues each row until it ends its turn, or for `max_new_tokens`: what `stream` yields, together.

    Returns:
        [B, n] the new tokens, n <= max_new_tokens; after a row's end, the padding token.
    """
    return torch.tensor(list(stream(model, **inputs)), device=model.embedding.weight.device).T.contiguous()  # [B, n]


@torch.no_grad()
def stream(
    model: Writer,
    *,
    input_ids: Tensor,
    position_ids: Tensor,
    attention_mask: Tensor,
    next_position: Tensor,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop: Sequence[int] = (),
    generator: torch.Generator | None = None,
    **media: Any,
) -> Iterator[list[int]]:
    """Writes a token in each row, yields them, and goes on until every row has ended.

    The device is waited for once a token: for the token itself.

    Args:
        input_ids, position_ids, attention_mask, next_position, **media: a Processor's output, padded on the left.
            Token i of the answer has the id next_position + i on every axis.
        max_new_tokens: most tokens to write in a row.
        temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature).
        top_p: draw only from the likeliest tokens that together have this probability.
        stop: tokens that end a row, besides the model's own; the one that did is written.
        generator: where drawing takes its randomness, on the model's device.

    Yields:
        The new token of each row; the padding token in rows that have ended.

    Raises:
        ValueError: rows padded on the right, options out of range, or what is neither an input nor an option.
    """
    check_inputs({"input_ids": input_ids, "position_ids": position_ids, **media}, options=_OPTIONS)
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
    if len(stop) and not all(0 <= token < model.config.decoder.vocab_size for token in stop):
        raise ValueError(f"stop must be tokens of a vocabulary of {model.config.decoder.vocab_size}, got {list(stop)}")
    ends, pad = {model.config.eos_token_id, *stop}, model.config.pad_token_id
    weight = model.embedding.weight
    cache = KVCache(model.config.decoder, batch, length + max_new_tokens, device=weight.device, dtype=weight.dtype)
    mask = attention_mask.new_ones(batch, length + max_new_tokens)  # [B, T]
    mask[:, :length] = attention_mask
    output = model(input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, cache=cache, **media)
    ended = [False] * batch
    for n in range(1, max_new_tokens + 1):
        token = choose_token(output.logits[:, -1].float(), temperature, top_p, generator)  # [B]
        written = [pad if over else t for t, over in zip(token.tolist(), ended, strict=True)]
        yield written
        ended = [over or t in ends for t, over in zip(written, ended, strict=True)]
        if all(ended) or n == max_new_tokens:
            return
        # a row that has ended goes on unread: what it writes reaches no other
        ids = (next_position + n - 1).expand(len(position_ids), -1)[..., None]  # [A, B, 1]
        output = model(input_ids=token[:, None], position_ids=ids, attention_mask=mask[:, : length + n], cache=cache)


def choose_token(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    """The next token of each row, from logits [B, vocab]."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    p, order = (logits / temperature).softmax(dim=-1).sort(dim=-1, descending=True)  # [B, vocab]
    p = p.masked_fill(p.cumsum(dim=-1) - p >= top_p, 0.0)  # what is likelier than the rest together is always kept
    # the first of exponential clocks of these rates to ring: draws as torch.multinomial does, which may wait for the device
    drawn = (p / torch.empty_like(p).exponential_(generator=generator)).argmax(dim=-1, keepdim=True)  # [B, 1]
    return order.gather(-1, drawn).squeeze(-1)  # [B]
