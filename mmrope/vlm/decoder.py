"""The causal decoder: embeddings with their position IDs to hidden states, with M-RoPE in every layer.

What the blocks have in common is computed once and handed down, as functions: one turns queries and keys, one attends. The
blocks know no encoding and no mask. A KVCache, if any, belongs to the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mmrope.encodings.rotary import RotaryEmbedding, apply_rotary
from mmrope.encodings.spec import RotarySpec
from mmrope.vlm.attention import Attend, Rotate, attend, causal_attention, packed_attention
from mmrope.vlm.cache import KVCache
from mmrope.vlm.config import DecoderConfig
from mmrope.vlm.layers import MLP, Experts, RMSNorm, run_block


class Deep(NamedTuple):
    """What the first blocks' outputs get added at media tokens (DeepStack)."""

    slots: Tensor
    """[B, S], the row of `features` that a token gets; the last is zero."""
    features: Tensor
    """[layers, tokens + 1, hidden]"""


class Decoder(nn.Module):
    """Embeddings in, hidden states out."""

    def __init__(self, config: DecoderConfig, rotary: RotarySpec) -> None:
        super().__init__()
        self.config = config
        self.rotary = RotaryEmbedding(rotary)
        self.blocks = nn.ModuleList(DecoderBlock(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.recompute = False

    def forward(
        self,
        x: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        deep: Deep | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Hidden states of S new tokens.

        Args:
            x: [B, S, hidden] embeddings.
            position_ids: [3, B, S].
            attention_mask: [B, T], nonzero at real tokens, T = S plus what the cache holds; None if nothing is padding.
            cache: extended by the S tokens.
            deep: of these tokens.
            lengths: of the sequences that a pack, B = 1, is made of; it has no mask and no cache.

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
        if lengths is None:
            look = causal_attention(x.shape[1], past, attention_mask, x.device)
        else:
            look = packed_attention(lengths, x.device, causal=True)
        for layer in range(len(self.blocks)):
            x = self.step(layer, x, turn, look, cache, deep)
        if cache:
            cache.length += x.shape[1]
        return self.norm(x)

    def step(
        self, layer: int, x: Tensor, turn: Rotate, look: Attend, cache: KVCache | None = None, deep: Deep | None = None
    ) -> Tensor:
        """What one block, and the media's embeddings for it, make of x [B, S, hidden]."""
        x = run_block(self.blocks[layer], x, turn, look, cache, layer, recompute=self.recompute and cache is None)
        return x if deep is None or layer >= len(deep.features) else x + F.embedding(deep.slots, deep.features[layer])

    def turn(self, position_ids: Tensor) -> Rotate:
        """The rotation to position_ids [3, B, S], which all blocks share."""
        cos, sin = self.rotary(position_ids)  # [B, S, P]
        spec = self.rotary.spec
        return partial(apply_rotary, cos=cos, sin=sin, pairing=spec.pairing, blocks=spec.blocks)


class DecoderBlock(nn.Module):
    """Grouped-query attention and a gated MLP, or a mixture of them, each behind a norm and added to the stream.

    With `qk_norm`, queries and keys are normalised per head before they are rotated, as in Qwen3: training then bears large
    steps.
    """

    def __init__(self, config: DecoderConfig, layer: int = 0) -> None:
        super().__init__()
        d, head, eps, bias = config.hidden_size, config.head_dim, config.norm_eps, config.qkv_bias
        self.head_dim = head
        self.norm1, self.norm2 = RMSNorm(d, eps), RMSNorm(d, eps)
        self.q = nn.Linear(d, config.num_heads * head, bias=bias)
        self.k = nn.Linear(d, config.num_kv_heads * head, bias=bias)
        self.v = nn.Linear(d, config.num_kv_heads * head, bias=bias)
        self.q_norm, self.k_norm = (RMSNorm(head, eps) if config.qk_norm else nn.Identity() for _ in "qk")
        self.out = nn.Linear(config.num_heads * head, d, bias=False)
        if config.num_experts and layer not in config.mlp_only_layers:
            self.mlp = Experts(d, config.moe_intermediate_size, config.num_experts, config.num_experts_per_tok)
        else:
            self.mlp = MLP(d, config.intermediate_size, "silu", gated=True, bias=False)

    def forward(self, x: Tensor, turn: Rotate, look: Attend = attend, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """x [B, S, hidden]; `look` says who attends to whom."""
        x = x + self.attention(x, turn, look, cache, layer)
        return x + self.mlp(self.norm2(x))

    def attention(self, x: Tensor, turn: Rotate, look: Attend, cache: KVCache | None, layer: int) -> Tensor:
        """[B, S, hidden]; by itself, so that queries, keys and values are gone when the MLP needs the room."""
        q, k, v = self.project(x, turn)
        if cache:
            k, v = cache.extend(layer, k, v)  # [B, K, T, D]
        return self.out(rearrange(look(q, k, v), "b n s d -> b s (n d)"))

    def project(self, x: Tensor, turn: Rotate) -> tuple[Tensor, Tensor, Tensor]:
        """Turned queries [B, N, S, D] and keys [B, K, S, D], and values [B, K, S, D]."""
        h = self.norm1(x)
        q, k, v = (rearrange(w(h), "b s (n d) -> b n s d", d=self.head_dim) for w in (self.q, self.k, self.v))
        return *turn(self.q_norm(q), self.k_norm(k)), v
