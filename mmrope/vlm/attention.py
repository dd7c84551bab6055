"""Who attends to whom, and the kernels that compute it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""What queries [B, N, S, D] get from keys and values [B, K, T, D]: [B, N, S, D]."""
_QUERIES = 256
"""That go through a masked kernel at once: it computes all keys that it is given, so each part gets those behind it alone."""


def causal_attention(length: int, past: int, attention_mask: Tensor | None, device: torch.device) -> Attend:
    """Of `length` tokens after `past` others in a cache; arguments as of `causal_mask`."""
    if attention_mask is None and (not past or length == 1):
        return attend  # a whole row is causal as it is, and a last token sees all: no mask, and the fastest kernels
    mask = causal_mask(length, past, attention_mask, device)  # [1 or B, 1, S, T]
    if length == 1:
        return partial(attend, mask=mask)

    def in_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        done = []
        for start in range(0, length, _QUERIES):
            rows, keys = slice(start, start + _QUERIES), past + min(start + _QUERIES, length)
            done.append(attend(q[:, :, rows], k[:, :, :keys], v[:, :, :keys], mask[:, :, rows, :keys]))
        return torch.cat(done, dim=2)  # [B, N, S, D]

    return in_parts


def causal_mask(length: int, past: int, attention_mask: Tensor | None, device: torch.device) -> Tensor:
    """Who may look at whom, bool [1 or B, 1, S, T]: no token ahead, no padding; a padding token looks at itself."""
    keys = torch.arange(past + length, device=device)
    queries = keys[past:, None]  # [S, 1]
    seen = (keys <= queries)[None, None]  # [1, 1, S, T]
    if attention_mask is None:
        return seen
    if attention_mask.shape[-1] != past + length:
        raise ValueError(
            f"attention_mask has {attention_mask.shape[-1]} columns, but there are {past} cached and {length} new tokens"
        )
    return seen & attention_mask[:, None, None, :].bool() | (keys == queries)  # [B, 1, S, T]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Grouped-query attention of q [B, N, S, D] to k and v [B, K, T, D], [B, N, S, D].

    mask [B, 1 or N, S, T] is bool, or what is added to scores; without one no token looks ahead, and a single one sees all.
    """
    if q.shape[2] == 1 and (mask is None or mask.shape[1] == 1):
        # one query a head: the heads that share keys stand in one matrix, and read them once
        grouped = rearrange(q, "b (k g) 1 d -> b k g d", k=k.shape[1])
        return rearrange(F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask), "b k g d -> b (k g) 1 d")
    if mask is not None and q.is_cuda:  # where kernels take a mask or grouped heads, not both
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))  # [B, N, T, D]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)


def attend_packed(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Full attention inside each of the packed sequences: q, k, v [P, N, D], lengths sum up to P, result [P, N, D].

    Neighbours of equal length (the frames of a video) go through attention as one batch.
    """
    parts, start = [], 0
    for length, group in groupby(lengths):
        stop = start + length * len(list(group))
        q_, k_, v_ = (rearrange(x[start:stop], "(b l) n d -> b n l d", l=length) for x in (q, k, v))
        parts.append(rearrange(F.scaled_dot_product_attention(q_, k_, v_), "b n l d -> (b l) n d"))
        start = stop
    return torch.cat(parts)  # [P, N, D]
