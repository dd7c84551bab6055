"""Absolute position embeddings: vectors that are added to the tokens, computed or learned."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mmrope.encodings.angles import check_ids_dtype, exact_angle, turns
from mmrope.encodings.constants import Constants

Columns = Literal["interleaved", "concat"]


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of positions (Attention Is All You Need, arXiv 1706.03762, section 3.5).

    Args:
        dim: channels, even.
        layout: "interleaved", sin and cos in turns, as the paper has it; "concat", all sines and then all cosines, as
            tensor2tensor and most code has it. The same columns in another order.
        theta: the base, 10000 in the paper.

    Example:
        >>> import torch
        >>> from mmrope.encodings import SinusoidalEmbedding
        >>> embedding = SinusoidalEmbedding(4)(torch.arange(3))  # [3, 4]: sin, cos, sin, cos
        >>> [[round(x, 2) for x in token] for token in embedding.tolist()]
        [[0.0, 1.0, 0.0, 1.0], [0.84, 0.54, 0.01, 1.0], [0.91, -0.42, 0.02, 1.0]]
    """

    def __init__(self, dim: int, *, layout: Columns = "interleaved", theta: float = 1e4) -> None:
        super().__init__()
        if dim % 2 or dim < 2:
            raise ValueError(f"dim must be an even number of channels, got {dim}")
        if layout not in get_args(Columns):
            raise ValueError(f"layout must be 'interleaved' or 'concat', got {layout!r}")
        self.dim, self.layout, self.theta = dim, layout, theta
        inv_freq = theta ** -(np.arange(0, dim, 2) / dim)  # float64
        self._constants = Constants(*turns(inv_freq), inv_freq.astype(np.float32))

    def forward(self, positions: Tensor) -> Tensor:
        """[...] positions, whole or fractional -> [..., dim] float32, right to 1e-6 at any position below 2^31."""
        check_ids_dtype(positions, "positions")
        angle = exact_angle(positions[..., None], *self._constants.beside(positions))  # [..., dim / 2]
        parts = angle.sin(), angle.cos()
        return torch.cat(parts, dim=-1) if self.layout == "concat" else torch.stack(parts, dim=-1).flatten(-2)


class LearnedEmbedding(nn.Module):
    """A learned vector for each position, drawn from N(0, 0.02). There is nothing past the last: a position there is an error.

    Args:
        max_positions: positions 0 .. max_positions - 1.
        dim: channels.

    Example:
        >>> import torch
        >>> from mmrope.encodings import LearnedEmbedding
        >>> embedding = LearnedEmbedding(max_positions=16, dim=8)
        >>> tuple(embedding(torch.arange(5)).shape)
        (5, 8)
    """

    def __init__(self, max_positions: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_positions, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weight anew, as for a new module: after `to_empty`, for one."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, positions: Tensor) -> Tensor:
        """[...] -> [..., dim]. On the CPU a position that is not there is a ValueError; compiled code and a GPU stop at it in
        their own way."""
        if positions.device.type == "cpu" and positions.numel() and not torch.compiler.is_compiling():
            low, high = int(positions.min()), int(positions.max())
            if low < 0 or high >= len(self.weight):
                raise ValueError(
                    f"positions are {low} .. {high}, but there are learned embeddings of 0 .. {len(self.weight) - 1} alone: "
                    "train longer ones, resize those of images, or use an encoding that extends"
                )
        return functional.embedding(positions, self.weight)

    def resized(
        self, grid: tuple[int, int], to: tuple[int, int], *, prefix: int = 0, antialias: bool = False
    ) -> LearnedEmbedding:
        """The embeddings of an image of `grid` (rows, columns) patches for one of `to` patches, bicubic.

        Args:
            prefix: embeddings before the grid that stay as they are (1 of a class token).
            antialias: as timm resizes; transformers' ViTs do not.

        Example:
            >>> from mmrope.encodings import LearnedEmbedding
            >>> embedding = LearnedEmbedding(1 + 4 * 4, dim=8)  # a class token and 4 x 4 patches
            >>> tuple(embedding.resized((4, 4), (6, 8), prefix=1).weight.shape)  # 1 + 6 * 8
            (49, 8)
        """
        (h, w), count = grid, len(self.weight)
        if prefix + h * w != count:
            raise ValueError(f"{prefix} and a grid of {h} x {w} patches are {prefix + h * w}, but there are {count} embeddings")
        image = self.weight.detach()[prefix:].reshape(1, h, w, -1).permute(0, 3, 1, 2)  # [1, dim, h, w]
        image = functional.interpolate(image.to(torch.float32), size=to, mode="bicubic", antialias=antialias)  # [1, dim, to]
        made = LearnedEmbedding(prefix + to[0] * to[1], self.weight.shape[1]).to(self.weight)
        with torch.no_grad():
            made.weight[:prefix] = self.weight[:prefix]
            made.weight[prefix:] = image[0].flatten(1).T.to(made.weight.dtype)
        return made
