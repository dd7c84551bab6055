"""The library's decoder blocks with any encoding: rows of symbols, or of vectors, in, logits out."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from mmrope.lab.encodings import TOKEN_STD, Encoding, counted
from mmrope.vlm.attention import attend, causal_mask
from mmrope.vlm.cache import KVCache
from mmrope.vlm.config import DecoderConfig
from mmrope.vlm.decoder import DecoderBlock
from mmrope.vlm.layers import RMSNorm
from mmrope.vlm.sampling import GenerationConfig, choose_token


def sizes(hidden: int, heads: int, layers: int) -> DecoderConfig:
    """Heads that fill the width, each with its own keys; an MLP of 8/3 the width."""
    return DecoderConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
    )


class Reader(nn.Module):
    """Embedding, encoding, blocks, a head.

    Args:
        encoding: how positions get in.
        symbols: how many there are, in and out.
        features: of vectors that come in instead of symbols, their size.
        causal: whether no token looks ahead.
    """

    def __init__(
        self, encoding: Encoding, config: DecoderConfig, symbols: int, *, features: int | None = None, causal: bool = True
    ) -> None:
        super().__init__()
        d = config.hidden_size
        self.embedding = nn.Embedding(symbols, d) if features is None else nn.Linear(features, d)
        if features is None:
            nn.init.normal_(self.embedding.weight, std=TOKEN_STD)
        self.encoding, self.config, self.causal = encoding, config, causal
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(d)
        self.embedding_out = nn.Linear(d, symbols, bias=False)  # by its name Muon leaves it to AdamW

    def forward(self, x: Tensor, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits [B, S, symbols] of x [B, S], or [B, S, features], at ids [A, B, S]; with a cache, of the tokens after those in
        it, which were counted from 0."""
        h = self.embedding(x)  # [B, S, hidden]
        if (added := self.encoding.added(ids)) is not None:
            h = h + added
        past, length = cache.length if cache else 0, h.shape[1]
        keys = counted(len(h), past + length, h.device) if past else ids
        turn, mask = self.encoding.turn(ids), self.encoding.bias(ids, keys)
        if mask is None and not self.causal:
            mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=h.device)
        elif mask is None and past:
            mask = causal_mask(length, past, None, h.device)
        for layer, block in enumerate(self.blocks):
            h = block(h, turn, partial(attend, mask=mask), cache, layer)
        if cache:
            cache.length += length
        return self.embedding_out(self.norm(h))

    @torch.no_grad()
    def write(
        self,
        prompts: Tensor,
        most: int,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        end: int | None = None,
    ) -> Tensor:
        """What follows each of the prompts [B, S] of symbols: [B, n], n <= most, less if all have written `end` before."""
        batch, length = prompts.shape
        cache, how = KVCache(length + most), GenerationConfig(temperature=temperature)
        ids, x = counted(batch, length + most, prompts.device), prompts
        written = prompts[:, :0]
        while written.shape[1] < most and (end is None or not (written == end).any(dim=1).all()):
            logits = self(x, ids[..., cache.length : cache.length + x.shape[1]], cache)[:, -1]
            x = choose_token(logits, how, generator)[:, None]  # [B, 1]
            written = torch.cat([written, x], dim=1)
        return written
