"""The causal decoder: embeddings with their position IDs to hidden states, with M-RoPE in every layer.

cos and sin are computed once per forward pass and handed down, as a function that turns queries and keys: the blocks know no
encoding. A KVCache, if any, belongs to the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mmrope.encodings.rotary import RotaryEmbedding, apply_rotary
from mmrope.encodings.spec import RotarySpec
from mmrope.vlm.config import DecoderConfig
from mmrope.vlm.norm import RMSNorm

Rotate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Puts queries [B, N, S, D] and keys [B, K, S, D] to their places."""


class KVCache:
    """Rotated keys, and values, of the tokens so far; `length` of them, the same number in every row.

    Example:
        >>> import torch
        >>> from mmrope import VLM, Processor
        >>> from mmrope.vlm import KVCache
        >>> model, inputs = VLM(), Processor()([{"role": "user", "content": "Hello"}])
        >>> cache = KVCache(model.config.decoder, 1, 64, device=torch.device("cpu"), dtype=torch.float32)
        >>> cache.length, tuple(model(**inputs, cache=cache).logits.shape), cache.length
        (0, (1, 24, 263), 24)
    """

    def __init__(self, config: DecoderConfig, batch: int, max_length: int, *, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.num_layers, 2, batch, config.num_kv_heads, max_length, config.head_dim)
        self.kv = torch.empty(shape, device=device, dtype=dtype)  # [layers, 2, B, K, max_length, D]
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores a layer's new k and v [B, K, S, D] after the first `length`; returns all, [B, K, length + S, D].

        Example:
            >>> import torch
            >>> from mmrope.vlm import DecoderConfig, KVCache
            >>> cache = KVCache(DecoderConfig(), 1, 64, device=torch.device("cpu"), dtype=torch.float32)
            >>> k, v = torch.randn(2, 1, 2, 5, 32)  # 5 tokens of 2 KV heads
            >>> keys, values = cache.extend(0, k, v)
            >>> tuple(keys.shape)
            (1, 2, 5, 32)
        """
        stop = self.length + k.shape[-2]
        if stop > self.kv.shape[-2]:
            raise ValueError(f"the cache has room for {self.kv.shape[-2]} tokens, {stop} are needed")
        self.kv[layer, 0, :, :, self.length : stop] = k
        self.kv[layer, 1, :, :, self.length : stop] = v
        return self.kv[layer, 0, :, :, :stop], self.kv[layer, 1, :, :, :stop]


class Decoder(nn.Module):
    """Embeddings in, hidden states out."""

    def __init__(self, config: DecoderConfig, rotary: RotarySpec) -> None:
        super().__init__()
        self.config = config
        self.rotary = RotaryEmbedding(rotary)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size)

    def forward(
        self, x: Tensor, position_ids: Tensor, attention_mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Hidden states of S new tokens.

        Args:
            x: [B, S, hidden] embeddings.
            position_ids: [3, B, S].
            attention_mask: [B, T], nonzero at real tokens, T = S plus what the cache holds; None if nothing is padding.
            cache: extended by the S tokens.

        Returns:
            [B, S, hidden].
        """
        past = cache.length if cache else 0
        if position_ids.shape[1:] != x.shape[:2]:
            raise ValueError(
                f"position_ids must be [axes, {x.shape[0]}, {x.shape[1]}] for these {x.shape[0]} rows of {x.shape[1]} tokens, "
                f"got {list(position_ids.shape)}: every row has its own"
            )
        turn = self.turn(position_ids)
        # without a cache and without padding, attention is causal as it is: no mask to build, and the fastest kernels
        mask = None if attention_mask is None and not past else causal_mask(x.shape[1], past, attention_mask, x.device)
        for layer, block in enumerate(self.blocks):
            x = block(x, turn, mask, cache, layer)
        if cache:
            cache.length += x.shape[1]
        return self.norm(x)

    def turn(self, position_ids: Tensor) -> Rotate:
        """The rotation to position_ids [3, B, S], which all blocks share."""
        cos, sin = self.rotary(position_ids)  # [B, S, P]
        spec = self.rotary.spec
        return partial(apply_rotary, cos=cos, sin=sin, pairing=spec.pairing, blocks=spec.blocks)


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


class DecoderBlock(nn.Module):
    """Grouped-query attention and a SwiGLU MLP, each behind a norm and added to the stream.

    Queries and keys are normalised per head before they are rotated, as in Qwen3: training then bears large steps.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        d, head, wide = config.hidden_size, config.head_dim, config.intermediate_size
        self.head_dim = head
        self.norm1, self.norm2 = RMSNorm(d), RMSNorm(d)
        self.q = nn.Linear(d, config.num_heads * head, bias=False)
        self.k = nn.Linear(d, config.num_kv_heads * head, bias=False)
        self.q_norm, self.k_norm = RMSNorm(head), RMSNorm(head)
        self.v = nn.Linear(d, config.num_kv_heads * head, bias=False)
        self.out = nn.Linear(config.num_heads * head, d, bias=False)
        self.gate, self.up = nn.Linear(d, wide, bias=False), nn.Linear(d, wide, bias=False)
        self.down = nn.Linear(wide, d, bias=False)

    def forward(
        self, x: Tensor, turn: Rotate, mask: Tensor | None = None, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """x [B, S, hidden]; mask [B, 1, S, T], bool or what is added to scores; without one, no token looks ahead."""
        q, k, v = self.project(x, turn)
        if cache:
            k, v = cache.extend(layer, k, v)  # [B, K, T, D]
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)  # [B, N, S, D]
        x = x + self.out(rearrange(a, "b n s d -> b s (n d)"))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))

    def project(self, x: Tensor, turn: Rotate) -> tuple[Tensor, Tensor, Tensor]:
        """Turned queries [B, N, S, D] and keys [B, K, S, D], and values [B, K, S, D]."""
        h = self.norm1(x)
        q, k, v = (rearrange(w(h), "b s (n d) -> b n s d", d=self.head_dim) for w in (self.q, self.k, self.v))
        return *turn(self.q_norm(q), self.k_norm(k)), v
