"""Who attends to whom, and the kernels that compute it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, groupby
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""What queries [B, N, S, D] get from keys and values [B, K, T, D]: [B, N, S, D]."""
Rotate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Puts queries [B, N, S, D] and keys [B, K, S, D] to their places."""
_QUERIES = 256
"""That go through a masked kernel at once: it computes all keys that it is given, so each part gets those behind it alone."""


def _varlen_kernel() -> Callable[..., Any] | None:
    """torch's, in a version that takes causal windows and grouped heads."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # before torch 2.10
        return None
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"window_size", "enable_gqa"} <= known.keys() else None


_VARLEN = _varlen_kernel()


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


def packed_attention(lengths: Sequence[int], device: torch.device, *, causal: bool) -> Attend:
    """Inside each of the sequences of these lengths, which stand one after the other in a single row.

    On a GPU, in 16 bits, a varlen kernel does them all at once. Elsewhere each goes by itself, neighbours of equal length (the
    frames of a video) as one batch: nothing is computed between sequences, and no mask is made.
    """
    totals = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)  # [n + 1]
    longest, window = max(lengths, default=0), (-1, 0 if causal else -1)
    groups = [(length, len(list(group))) for length, group in groupby(lengths)]

    def look(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and _VARLEN is not None:
            flat = (rearrange(x, "1 n s d -> s n d") for x in (q, k, v))
            seen = _VARLEN(*flat, totals, totals, longest, longest, window_size=window, enable_gqa=True)
            return rearrange(seen, "s n d -> 1 n s d")
        parts, start = [], 0
        for length, count in groups:
            stop = start + length * count
            q_, k_, v_ = (rearrange(x[0, :, start:stop], "n (b l) d -> b n l d", l=length) for x in (q, k, v))
            parts.append(rearrange(_attend(q_, k_, v_, causal=causal), "b n l d -> (b l) n d"))
            start = stop
        return rearrange(torch.cat(parts), "s n d -> 1 n s d")

    return look


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
    return _attend(q, k, v, mask, causal=mask is None)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool) -> Tensor:
    """Torch's kernels; on CPUs their backward pass takes a quarter of the time in float32 that it takes in bfloat16 (2.15)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled():
        wide = mask if mask is None or mask.dtype == torch.bool else mask.float()
        with torch.autocast("cpu", enabled=False):
            return _attend(q.float(), k.float(), v.float(), wide, causal=causal).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)
