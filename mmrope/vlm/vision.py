"""The vision encoder: patches of images of any size, packed one after the other, to one embedding per token.

    patches [P, patch_dim] -> linear (+ table of places) -> blocks (attention with 2D RoPE, MLP) -> merge 2 x 2 -> [P / 4, out]

Each image, and each temporal grid of a video, attends to itself alone; with windows, most layers attend inside a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from mmrope.encodings.rotary import RotaryEmbedding, apply_rotary
from mmrope.positions.build import patch_position_ids
from mmrope.preprocess.patches import normalize
from mmrope.vlm.attention import Attend, Rotate, packed_attention
from mmrope.vlm.config import VisionConfig
from mmrope.vlm.layers import MLP, make_norm, run_block


class VisionEncoder(nn.Module):
    """`out_size` is the hidden size of the decoder that reads the embeddings."""

    def __init__(self, config: VisionConfig, out_size: int) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.patches.patch_dim, config.hidden_size, bias=config.patch_bias)
        self.table = nn.Embedding(config.table_side**2, config.hidden_size) if config.table_side else None
        self.rotary = RotaryEmbedding(config.rotary)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.num_layers))
        self.merger = Merger(config, out_size)
        self.deep_mergers = nn.ModuleList(Merger(config, out_size, norm_merged=True) for _ in config.deepstack_layers)
        self.recompute = False

    def forward(self, patches: Tensor, grid_thw: Tensor) -> Tensor:
        """Token embeddings [P / merge_size^2, out_size] of packed images and videos; arguments as of `features`."""
        return self.features(patches, grid_thw.tolist())[0]

    def features(self, patches: Tensor, grids: Sequence[Sequence[int]]) -> Tensor:
        """Token embeddings of packed images and videos, and those of the DeepStack layers.

        Args:
            patches: [P, patch_dim], merge blocks together, as a Processor emits them; uint8 ones are normalised here.
            grids: (t, h, w) of each, in patches.

        Returns:
            [1 + DeepStack layers, P / merge_size^2, out_size].
        """
        config, m = self.config, self.config.patches.merge_size
        self.token_count(patches, grids)
        x = self.embed(self.normalized(patches).to(self.embed.weight.dtype))  # [P, hidden]
        if self.table is not None:
            x = x + self._places(grids)
        ids = torch.from_numpy(patch_position_ids(grids, axes="hw", order="blocks", merge=m))  # [2, P]
        frames = windows = [h * w for t, h, w in grids for _ in range(t)]
        order = None
        if config.window_size:
            tokens, windows = in_windows(grids, m, config.window_size // config.patches.patch_size // m)
            order = torch.from_numpy(tokens).to(x.device)  # [P / m^2]
            ids = rearrange(rearrange(ids, "a (n k) -> a n k", k=m * m)[:, tokens], "a n k -> a (n k)")
            x = rearrange(rearrange(x, "(n k) d -> n k d", k=m * m)[order], "n k d -> (n k) d")
        cos, sin = self.rotary(ids[:, None].to(x.device))  # [1, P, pairs]
        turn = partial(apply_rotary, cos=cos, sin=sin)
        by_frame, by_window = (packed_attention(lengths, x.device, causal=False) for lengths in (frames, windows))
        deep = []
        for layer, block in enumerate(self.blocks):
            look = by_frame if layer in config.full_layers else by_window
            x = run_block(block, x, turn, look, recompute=self.recompute)
            if layer in config.deepstack_layers:
                deep.append(self.deep_mergers[len(deep)](x))
        features = torch.stack([self.merger(x), *deep])  # [1 + deep, P / m^2, out]
        return features if order is None else torch.empty_like(features).index_copy_(1, order, features)

    def token_count(self, patches: Tensor, grids: Sequence[Sequence[int]]) -> int:
        """How many tokens the patches of these grids make.

        Raises:
            ValueError: more or fewer patches than the grids have.
        """
        if (count := sum(t * h * w for t, h, w in grids)) != len(patches):
            raise ValueError(f"grid_thw {grids} describes {count} patches, but there are {len(patches)}")
        return count // self.config.patches.merge_size**2

    def normalized(self, patches: Tensor) -> Tensor:
        """Patches as the model reads them, [P, patch_dim], of those that may still be bytes."""
        return normalize(patches, self.config.patches) if patches.dtype == torch.uint8 else patches

    def _places(self, grids: Sequence[Sequence[int]]) -> Tensor:
        """The table of positions, stretched over each grid: [P, hidden], in the order of patches."""
        assert self.table is not None
        side, m = self.config.table_side, self.config.patches.merge_size
        table = rearrange(self.table.weight, "(h w) d -> 1 d h w", h=side)
        places = []
        for t, h, w in grids:
            stretched = F.interpolate(table, (h, w), mode="bilinear", align_corners=True)[0]  # [hidden, h, w]
            places.append(repeat(stretched, "d (h m) (w n) -> (t h w m n) d", t=t, m=m, n=m))
        return torch.cat(places)


class VisionBlock(nn.Module):
    """Attention and MLP, each behind a norm and added to the stream."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.heads = config.num_heads
        self.norm1, self.norm2 = make_norm(config.norm, d), make_norm(config.norm, d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = MLP(d, config.intermediate_size, config.hidden_act, gated=config.gated_mlp, bias=True)

    def forward(self, x: Tensor, turn: Rotate, look: Attend) -> Tensor:
        """x [P, hidden]; `look` says which patches attend to each other."""
        x = x + self.attention(self.norm1(x), turn, look)
        return x + self.mlp(self.norm2(x))

    def attention(self, x: Tensor, turn: Rotate, look: Attend) -> Tensor:
        """[P, hidden]; by itself, so that queries, keys and values are gone when the MLP needs the room."""
        q, k, v = rearrange(self.qkv(x), "p (n h d) -> n 1 h p d", n=3, h=self.heads)  # [1, N, P, D] each
        return self.out(rearrange(look(*turn(q, k), v), "1 h p d -> p (h d)"))


class Merger(nn.Module):
    """The patches of a token to one embedding: an MLP behind a norm, of each patch or of all of a token together."""

    def __init__(self, config: VisionConfig, out_size: int, *, norm_merged: bool = False) -> None:
        super().__init__()
        self.patches = config.patches.merge_size**2
        merged = config.hidden_size * self.patches
        self.norm_merged = norm_merged
        self.norm = make_norm(config.norm, merged if norm_merged else config.hidden_size)
        self.up, self.down = nn.Linear(merged, merged), nn.Linear(merged, out_size)

    def forward(self, x: Tensor) -> Tensor:
        """[P, hidden] to [P / merge_size^2, out]."""
        x = x if self.norm_merged else self.norm(x)
        x = rearrange(x, "(p m) d -> p (m d)", m=self.patches)  # [P / m^2, m^2 hidden]
        return self.down(F.gelu(self.up(self.norm(x) if self.norm_merged else x)))


def in_windows(grids: Sequence[Sequence[int]], merge: int, side: int) -> tuple[np.ndarray, list[int]]:
    """Tokens of packed grids, window by window of side x side tokens from the top left, cut off at the edges.

    Returns:
        The tokens' indices [P / merge^2], a frame's still together, and the number of patches in each window. In a frame,
        windows of one size are neighbours, so that few products do them all.
    """
    order, lengths, start = [], [], 0
    for t, h, w in grids:
        rows, columns = h // merge, w // merge
        for frame in np.arange(start, start + t * rows * columns).reshape(t, rows, columns):
            for band in np.split(frame, [rows // side * side]):  # of whole windows, and what is left of them
                for part in np.split(band, [columns // side * side], axis=1):
                    if part.size:
                        a, b = min(side, part.shape[0]), min(side, part.shape[1])
                        order.append(rearrange(part, "(i a) (j b) -> (i j a b)", a=a, b=b))
                        lengths += [a * b * merge**2] * (part.size // (a * b))
        start += t * rows * columns
    return np.concatenate(order), lengths
