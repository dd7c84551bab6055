"""RoPE-Mixed (arXiv 2403.13298): learned frequencies, each of which mixes all axes, of each head by itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmrope.encodings.angles import check_ids_dtype
from mmrope.encodings.rotary import apply_rotary
from mmrope.positions.rules import Pairing


class MixedRotary(nn.Module):
    """Rotations by angle[n, p] = sum over axes of weight[n, p, a] * position_ids[a], with a learned weight.

    At first the frequencies of each head lie on two lines at right angles, turned by a random angle, at magnitudes
    theta^(-4 i / head_dim) (naver-ai/rope-vit, init_random_2d_freqs).

    Args:
        head_dim: D; P = D / 2 pairs.
        heads: N.
        axes: the axes of the position ids; two are drawn as the paper does, of others each pair in a random direction.
        theta: 10 in the paper.
        pairing: which channels form a pair, "adjacent" in the paper's code.
        generator: for the random angles.

    Keep the weight in float32: in bfloat16 the frequencies themselves are rounded, to three digits.

    Example:
        >>> import torch
        >>> from mmrope import patch_position_ids
        >>> from mmrope.encodings import MixedRotary
        >>> rope = MixedRotary(head_dim=8, heads=2)
        >>> cos, sin = rope(torch.from_numpy(patch_position_ids([[1, 2, 2]]))[:, None])  # ids [2, 1, 4]
        >>> tuple(cos.shape), tuple(rope.weight.shape)
        ((1, 4, 2, 4), (2, 4, 2))
    """

    def __init__(
        self,
        head_dim: int,
        heads: int,
        *,
        axes: str = "hw",
        theta: float = 10.0,
        pairing: Pairing = "adjacent",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if head_dim % 4:
            raise ValueError(f"head_dim must be a multiple of 4, two lines of frequencies, got {head_dim}")
        self.axes = axes
        self.theta = theta
        self.pairing: Pairing = pairing
        # float32 whatever the default dtype is
        self.weight = nn.Parameter(torch.empty(heads, head_dim // 2, len(axes), dtype=torch.float32))  # [N, P, A]
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the weight anew, as for a new module: after `to_empty`, for one."""
        heads, pairs, axes = self.weight.shape
        like = {"dtype": torch.float32, "device": self.weight.device}
        magnitude = self.theta ** (-2 * torch.arange(pairs // 2, **like) / pairs)  # [P / 2]
        if axes == 2:
            angle = torch.rand(heads, 1, generator=generator, **like) * 2 * math.pi
            angle = torch.cat([angle, angle + math.pi / 2], dim=1)[:, :, None]  # [N, 2, 1]
            # x, the last axis, takes the cosine
            direction = torch.stack([angle.sin(), angle.cos()], dim=-1)  # [N, 2, 1, A]
        else:
            direction = torch.randn(heads, 2, pairs // 2, axes, generator=generator, **like)
            direction = direction / direction.norm(dim=-1, keepdim=True)
        fresh = (magnitude[:, None] * direction).flatten(1, 2)  # [N, 2, P / 2, A] -> [N, P, A]
        mesh = getattr(self.weight, "device_mesh", None)  # of a module that fully_shard has sharded
        if mesh is not None:
            from torch.distributed.tensor import distribute_tensor

            fresh = distribute_tensor(fresh, mesh, self.weight.placements)  # pyright: ignore[reportAttributeAccessIssue]
        with torch.no_grad():
            self.weight.copy_(fresh)

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """[A, B, S] or packed [A, T] -> cos, sin [B, S, N, P] or [T, N, P], of float32 angles."""
        check_ids_dtype(position_ids, "position_ids")
        if position_ids.ndim not in (2, 3) or len(position_ids) != len(self.axes):
            raise ValueError(
                f"position_ids must be [{len(self.axes)}, B, S] or [{len(self.axes)}, T] for the axes {self.axes!r}, got "
                f"{list(position_ids.shape)}"
            )
        ids, weight = position_ids.movedim(0, -1).to(torch.float32), self.weight.to(torch.float32)
        angle = (ids[..., None, None, :] * weight).sum(dim=-1)  # [B, S, N, P]; autocast would take an einsum for bfloat16
        return angle.cos(), angle.sin()

    def rotate(self, q: Tensor, k: Tensor, position_ids: Tensor, *, heads: int = -3) -> tuple[Tensor, Tensor]:
        """q and k rotated to their positions; k has as many heads as q.

        Example:
            >>> import torch
            >>> from mmrope.encodings import MixedRotary
            >>> q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)  # [batch, heads, tokens, channels]
            >>> rotated, _ = MixedRotary(head_dim=8, heads=2).rotate(q, k, torch.arange(5).expand(2, 1, 5))
            >>> torch.equal(rotated[:, :, 0], q[:, :, 0]), torch.equal(rotated[:, :, 1], q[:, :, 1])  # position 0 stays
            (True, False)
        """
        cos, sin = self(position_ids)
        return apply_rotary(q, k, cos, sin, pairing=self.pairing, heads=heads)
