"""Writing text: one token after the other, each at the position after the last."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmrope.records import shown
from mmrope.vlm.cache import KVCache, rest_of
from mmrope.vlm.config import VLMConfig
from mmrope.vlm.decoder import Decoder, Deep
from mmrope.vlm.inputs import check_inputs, packed_lengths
from mmrope.vlm.sampling import choose_token

_OPTIONS = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "stop",
    "generator",
    "cache",
    "prefill_chunk",
)
_NEEDED = ("input_ids", "position_ids", "attention_mask", "next_position")
_ROOM = 8192
"""For how many new tokens a cache has room from the first; it grows by quarters."""


class Writer(Protocol):
    """What can write: the model."""

    config: VLMConfig
    embedding: nn.Embedding
    decoder: Decoder
    embed: Callable[[Mapping[str, Any]], tuple[Tensor, Deep | None]]
    places: Callable[..., Tensor]
    logits: Callable[[Tensor], Tensor]


def new_tokens(model: Writer, **inputs: Any) -> Tensor:
    """What `stream` yields, together: new tokens [B, n], n <= max_new_tokens; after a row's end, the padding token."""
    return torch.tensor(list(stream(model, **inputs)), device=model.embedding.weight.device).T.contiguous()  # [B, n]


def stream(
    model: Writer,
    *,
    input_ids: Tensor,
    position_ids: Tensor,
    attention_mask: Tensor,
    next_position: Tensor,
    max_new_tokens: int = 32,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float | None = None,
    stop: Sequence[int] = (),
    generator: torch.Generator | None = None,
    cache: KVCache | None = None,
    prefill_chunk: int = 8192,
    **media: Any,
) -> Iterator[list[int]]:
    """Writes a token in each row, yields them, and goes on until every row has ended. A row that has ended is computed no more.

    The device is waited for once a token: for the token itself.

    Args:
        input_ids, position_ids, attention_mask, next_position, **media: a Processor's output, padded on the left.
            Token i of the answer has the id next_position + i on every axis.
        max_new_tokens: most tokens to write in a row.
        temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature). This and the next
            three are the model's own (config.generation) where they are None.
        top_k: draw only from the likeliest tokens, this many; 0 for all.
        top_p: draw only from the likeliest tokens that together have this probability.
        repetition_penalty: logits of tokens that the row has already are divided by it, or multiplied where they are negative.
        stop: tokens that end a row, besides the model's own; the one that did is written.
        generator: where drawing takes its randomness, on the model's device.
        cache: of one conversation, whose earlier turns it holds from the last time: what it holds is not computed again.
            What begins otherwise than it was (other tokens, positions or pixels) is.
        prefill_chunk: how many tokens of the inputs the decoder reads at a time.

    Yields:
        The new token of each row; the padding token in rows that have ended.

    Raises:
        ValueError: rows padded on the right, no tokens, tokens that the model does not know, options out of range, several
            conversations or padding with a cache, what is neither an input nor an option, or a model that computes nan.
    """
    inputs = {"input_ids": input_ids, "position_ids": position_ids, **media}
    given = {**inputs, "attention_mask": attention_mask, "next_position": next_position}
    check_inputs(given, cache=cache, needed=_NEEDED, options=_OPTIONS)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"generator must be a torch.Generator, got {shown(generator)}")
    if packed_lengths(inputs) is not None:
        raise ValueError("a pack (cu_seqlens) is for training: generate from rows that are padded on the left")
    batch, length = input_ids.shape
    vocabulary = model.config.decoder.vocab_size
    if not batch or not length:
        raise ValueError(
            f"there is nothing to continue: input_ids are {list(input_ids.shape)}, {batch} rows of {length} tokens"
        )
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty}
    how = replace(model.config.generation, **{key: value for key, value in options.items() if value is not None})
    for name, count in (("max_new_tokens", max_new_tokens), ("prefill_chunk", prefill_chunk)):
        if not isinstance(count, Integral) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} must be a whole number of tokens, at least 1; got {count!r}")
    if not isinstance(stop, Collection) or not all(isinstance(token, Integral) and 0 <= token < vocabulary for token in stop):
        raise ValueError(f"stop must be tokens of a vocabulary of {vocabulary}, such as [2], got {stop!r}")
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must be {list(input_ids.shape)}, as input_ids are, got {list(attention_mask.shape)}: with a "
            "cache, too, all tokens of the conversation are given"
        )
    least, most = input_ids.aminmax()
    if not 0 <= int(least) <= int(most) < vocabulary:
        raise ValueError(
            f"input_ids go from {int(least)} to {int(most)}, and the model knows {vocabulary} tokens from 0 on: was the text "
            "encoded with another model's tokenizer?"
        )
    if not bool(next_position.isfinite().all()):
        raise ValueError(f"next_position must be numbers, got {next_position.tolist()}")
    if not bool(attention_mask[:, -1].all()):
        raise ValueError(
            "a row ends in padding, so its next token cannot be read off: pad on the left (Processor(padding_side='left'))"
        )
    # the last token of an answer is never read back
    if next_position.dtype == torch.float32 and (largest := next_position.max().item()) > 2**24 + 2 - max_new_tokens:
        raise ValueError(
            f"the answer's ids would pass 2^24 ({largest:,.0f} + {max_new_tokens:,} tokens), where float32 gives "
            "neighbours one number: give next_position in float64, as position_ids(..., dtype=float64) has it"
        )
    padded = not bool(attention_mask.all())
    if cache is not None and (batch > 1 or padded):
        raise ValueError(f"a cache holds one conversation without padding, got {batch}{' with padding' if padded else ''}")
    eos, pad = model.config.eos_token_id, model.config.pad_token_id
    ends = {*((eos,) if isinstance(eos, int) else eos), *stop}

    @torch.no_grad()
    def steps() -> Iterator[list[int]]:
        held, unread = (KVCache(), inputs) if cache is None else (cache, rest_of(cache, inputs, model))
        mask, following = attention_mask, next_position
        held.room = max(held.room, length + min(max_new_tokens, _ROOM))
        places = model.places(position_ids, mask)  # [A, B, S]
        logits = prefill(model, unread, places, mask if padded else None, held, prefill_chunk)  # [B, vocab]
        seen = None
        if how.repetition_penalty != 1:
            seen = torch.zeros_like(logits, dtype=torch.int32).scatter_add_(1, input_ids, mask.int()) > 0  # [B, vocab]
        rows = list(range(batch))  # those that have not ended
        for n in range(1, max_new_tokens + 1):
            token = choose_token(logits.float(), how, generator, seen)  # [b]
            values = token.tolist()
            if -1 in values:
                raise ValueError(
                    f"the model computes no numbers (nan) for row {rows[values.index(-1)]}, token {n}: are its weights "
                    "damaged, or too large for their dtype?"
                )
            written = dict(zip(rows, values, strict=True))
            yield [written.get(row, pad) for row in range(batch)]
            going = [i for i, value in enumerate(values) if value not in ends]
            if not going or n == max_new_tokens:
                return
            if len(going) < len(rows):
                left, rows = torch.tensor(going).to(token.device, non_blocking=True), [rows[i] for i in going]
                held.keep(left)
                token, following, mask = token[left], following[left], mask[left]
                seen = None if seen is None else seen[left]
            if seen is not None:
                seen = seen.scatter(1, token[:, None], True)
            mask = F.pad(mask, (0, 1), value=1)  # [b, T]
            ids = (following + n - 1).expand(len(position_ids), -1)[..., None]  # [A, b, 1]
            x, places = model.embedding(token)[:, None], model.places(ids, mask)  # [b, 1, hidden], [A, b, 1]
            hidden = model.decoder(x, places, mask if padded else None, held)  # [b, 1, hidden]
            if cache is not None:
                cache.written.append((token[:, None], ids))
            logits = model.logits(hidden[:, 0])  # [b, vocab]

    return steps()


@torch.no_grad()
def prefill(
    model: Writer, inputs: Mapping[str, Any], places: Tensor, mask: Tensor | None, cache: KVCache, chunk: int
) -> Tensor:
    """The logits of the token after `inputs`, [B, vocab], which the decoder reads a chunk at a time; `places` and `mask` are of
    what the cache holds, too."""
    x, deep = model.embed(inputs)  # [B, S, hidden]
    past, hidden = cache.length, x
    for start in range(0, x.shape[1], chunk):
        part = slice(start, start + chunk)
        now = slice(past + start, min(past + start + chunk, places.shape[-1]))
        seen = None if mask is None else mask[:, : now.stop]
        some = None if deep is None else Deep(deep.slots[:, part], deep.features)
        hidden = model.decoder(x[:, part], places[..., now], seen, cache, some)  # [B, chunk, hidden]
    return model.logits(hidden[:, -1])
