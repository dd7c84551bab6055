"""The library's decoder blocks with any encoding: rows of symbols, or of vectors, in, logits out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmrope.lab.encodings import Encoding
from mmrope.vlm.config import DecoderConfig
from mmrope.vlm.decoder import DecoderBlock
from mmrope.vlm.norm import RMSNorm


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
            nn.init.normal_(self.embedding.weight, std=0.02)
        self.encoding, self.causal = encoding, causal
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(d)
        self.embedding_out = nn.Linear(d, symbols, bias=False)  # by its name Muon leaves it to AdamW

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """Logits [B, S, symbols] of x [B, S], or [B, S, features], at ids [A, B, S]."""
        h = self.embedding(x)  # [B, S, hidden]
        if (added := self.encoding.added(ids)) is not None:
            h = h + added
        turn, mask = self.encoding.turn(ids), self.encoding.bias(ids)
        if mask is None and not self.causal:
            mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=h.device).expand(-1, -1, h.shape[1], h.shape[1])
        for block in self.blocks:
            h = block(h, turn, mask)
        return self.embedding_out(self.norm(h))
