"""xPos (arXiv 2212.10554): a rotation whose scores also fade with distance, for causal attention."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from mmrope.encodings.constants import Constants
from mmrope.encodings.rotary import RotaryEmbedding, rotate
from mmrope.encodings.spec import RotarySpec
from mmrope.positions.rules import Pairing

_ONE = 2**40  # steps of a doubling: zeta^(p / scale_base) is counted in them, exactly, at any position


class XPos(nn.Module):
    """Rotates q and k, and multiplies pair i of q by zeta_i^((p - center) / scale_base), of k by its inverse, with zeta_i =
    (2 i / D + 0.4) / 1.4. A score is then RoPE's, pair by pair times zeta_i^(distance / scale_base): it depends on the distance
    alone, and fades where the key is before the query. Norms are not kept, and where it is after the query scores grow.

    Args:
        head_dim: D.
        theta: the base of the rotation.
        scale_base: how slowly scores fade (512 in the paper).
        center: the position whose factors are 1, of queries and keys alike, also if a cache holds the keys. Far from it float16
            overflows: choose it in the middle of the positions that are used.
        pairing: which channels form a pair, as in RotarySpec.

    Example:
        >>> import torch
        >>> from mmrope.encodings import XPos
        >>> q = k = torch.ones(1, 1, 65, 64)
        >>> q, k = XPos(64, scale_base=32).rotate(q, k, torch.arange(65)[None, None])
        >>> near, far = (q[0, 0, 64] @ k[0, 0, i] for i in (63, 0))
        >>> bool(near > far > 0)
        True
    """

    def __init__(
        self, head_dim: int, *, theta: float = 1e4, scale_base: float = 512, center: float = 0, pairing: Pairing = "half"
    ) -> None:
        super().__init__()
        if scale_base <= 0:
            raise ValueError(f"scale_base must be a positive number, got {scale_base}")
        self.rope = RotaryEmbedding(RotarySpec.rope(head_dim, theta=theta, pairing=pairing))
        self.scale_base, self.center = scale_base, center
        zeta = (np.arange(0, head_dim, 2) / head_dim + 0.4) / 1.4  # [P]
        steps = np.log2(zeta) / scale_base * _ONE
        fade = np.log(zeta).astype(np.float32) / np.float32(scale_base)
        self._constants = Constants(np.round(steps).astype(np.int64), np.round(steps * center).astype(np.int64), fade)

    def rotate(
        self, q: Tensor, k: Tensor, position_ids: Tensor, *, key_position_ids: Tensor | None = None, heads: int = -3
    ) -> tuple[Tensor, Tensor]:
        """q and k at their positions [1, B, S] (or packed [1, T]); those of the keys are those of the queries by default.

        Example:
            >>> import torch
            >>> from mmrope.encodings import XPos
            >>> xpos, cached, new = XPos(8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 1, 8)
            >>> ids, last = torch.arange(6)[None, None], torch.full((1, 1, 1), 5)
            >>> q, k = xpos.rotate(new, cached, last, key_position_ids=ids)  # one query, six keys
            >>> tuple(q.shape), tuple(k.shape)
            ((1, 2, 1, 8), (1, 2, 6, 8))
        """
        keys = position_ids if key_position_ids is None else key_position_ids
        return self._rotated(q, position_ids, heads, 1), self._rotated(k, keys, heads, -1)

    def _rotated(self, x: Tensor, position_ids: Tensor, heads: int, sign: int) -> Tensor:
        cos, sin = self.rope(position_ids)
        steps, at_center, fade = self._constants.beside(position_ids)
        ids = position_ids[0, ..., None]  # [B, S, 1]
        if ids.dtype.is_floating_point:
            fixed = (ids * 2.0**32).to(torch.int64)
            doublings = (fixed >> 32) * steps + ((fixed & 0xFFFFFFFF) * (steps >> 8) >> 24)
        else:
            doublings = ids.to(torch.int64) * steps
        doublings = (doublings - at_center) * sign  # [B, S, P]
        # whole doublings and the rest apart: float32 has too few digits for both
        whole, rest = doublings >> 40, (doublings & (_ONE - 1)).to(torch.float32) / _ONE
        scale = rest.exp2() * whole.clamp(-200, 200).to(torch.float32).exp2()
        if ids.dtype.is_floating_point:
            scale = scale + scale * (ids - ids.detach()).to(torch.float32) * fade * sign  # nothing but a gradient
        return rotate(x, cos * scale, sin * scale, pairing=self.rope.spec.pairing, heads=heads)
