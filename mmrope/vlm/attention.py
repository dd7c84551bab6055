"""Who attends to whom, and the kernels that compute it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F


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


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Grouped-query attention of q [B, N, S, D] to k and v [B, K, T, D]; mask as of `DecoderBlock`."""
    if q.shape[2] > 1 or (mask is not None and mask.shape[1] > 1):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)  # [B, N, S, D]
    # one query a head: the heads that share keys stand in one matrix, and read them once
    grouped = rearrange(q, "b (k g) 1 d -> b k g d", k=k.shape[1])
    return rearrange(F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask), "b k g d -> b (k g) 1 d")


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
