"""The vision encoder: patches of images of any size, packed one after the other, to one embedding per token.

    patches [P, patch_dim] -> linear -> blocks (attention with 2D RoPE, MLP) -> merge 2 x 2 -> [P / 4, out]

Each image, and each temporal grid of a video, attends to itself alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mmrope.encodings.rotary import RotaryEmbedding, apply_rotary
from mmrope.positions.build import patch_position_ids
from mmrope.preprocess.patches import normalize
from mmrope.vlm.config import VisionConfig
from mmrope.vlm.norm import RMSNorm


class VisionEncoder(nn.Module):
    """`out_size` is the hidden size of the decoder that reads the embeddings."""

    def __init__(self, config: VisionConfig, out_size: int) -> None:
        super().__init__()
        self.config = config
        merged = config.hidden_size * config.patches.merge_size**2
        self.embed = nn.Linear(config.patches.patch_dim, config.hidden_size)
        self.rotary = RotaryEmbedding(config.rotary)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size)
        self.merge = nn.Sequential(nn.Linear(merged, merged), nn.GELU(), nn.Linear(merged, out_size))

    def forward(self, patches: Tensor, grid_thw: Tensor) -> Tensor:
        """Token embeddings of packed images and videos.

        Args:
            patches: [P, patch_dim], merge blocks together, as a Processor emits them; uint8 ones are normalised here.
            grid_thw: [n, 3] patch grids; reading it waits for its device.

        Returns:
            [P / merge_size^2, out_size].
        """
        grids, m = grid_thw.tolist(), self.config.patches.merge_size
        if sum(t * h * w for t, h, w in grids) != len(patches):
            raise ValueError(
                f"grid_thw {grids} describes {sum(t * h * w for t, h, w in grids)} patches, but there are {len(patches)}"
            )
        if patches.dtype == torch.uint8:
            patches = normalize(patches, self.config.patches)
        ids = torch.from_numpy(patch_position_ids(grids, axes="hw", order="blocks", merge=m))  # [2, P]
        cos, sin = self.rotary(ids.to(patches.device))  # [P, pairs]
        lengths = [h * w for t, h, w in grids for _ in range(t)]
        x = self.embed(patches.to(self.embed.weight.dtype))  # [P, hidden]
        for block in self.blocks:
            x = block(x, cos, sin, lengths)
        x = rearrange(self.norm(x), "(p m) d -> p (m d)", m=m * m)  # [P / m^2, m^2 hidden]
        return self.merge(x)  # [P / m^2, out]


class VisionBlock(nn.Module):
    """Attention and MLP, each behind a norm and added to the stream."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.heads = config.num_heads
        self.norm1, self.norm2 = RMSNorm(d), RMSNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, config.intermediate_size), nn.GELU(), nn.Linear(config.intermediate_size, d))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, lengths: Sequence[int]) -> Tensor:
        """x [P, hidden], cos and sin [P, pairs]; `lengths` are the patches that attend to each other, in order."""
        q, k, v = rearrange(self.qkv(self.norm1(x)), "p (n h d) -> n p h d", n=3, h=self.heads)  # [P, N, D] each
        q, k = apply_rotary(q, k, cos, sin, heads=-2)
        x = x + self.out(rearrange(attend_packed(q, k, v, lengths), "p h d -> p (h d)"))
        return x + self.mlp(self.norm2(x))


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
