"""xPos (arXiv 2212.10554): a rotation whose scores also fade with distance, for causal attention."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from mmrope.encodings.rotary import RotaryEmbedding, rotate
from mmrope.encodings.spec import RotarySpec
from mmrope.positions.rules import Pairing


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
    """

    log_zeta: Tensor

    def __init__(
        self, head_dim: int, *, theta: float = 1e4, scale_base: float = 512, center: float = 0, pairing: Pairing = "half"
    ) -> None:
        super().__init__()
        if scale_base <= 0:
            raise ValueError(f"scale_base must be a positive number, got {scale_base}")
        self.rope = RotaryEmbedding(RotarySpec.rope(head_dim, theta=theta, pairing=pairing))
        self.scale_base, self.center = scale_base, center
        self.head_dim = head_dim
        self.register_buffer("log_zeta", self._log_zeta(), persistent=False)

    def _log_zeta(self) -> Tensor:
        return torch.tensor(np.log((np.arange(0, self.head_dim, 2) / self.head_dim + 0.4) / 1.4))  # [P] float64

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> XPos:
        super()._apply(fn, recurse)  # casts and moves come through here: keep the device they chose, not the values
        self.log_zeta = self._log_zeta().to(self.log_zeta.device)
        return self

    def rotate(
        self, q: Tensor, k: Tensor, position_ids: Tensor, *, key_position_ids: Tensor | None = None, heads: int = -3
    ) -> tuple[Tensor, Tensor]:
        """q and k at their positions [1, B, S] (or packed [1, T]); those of the keys are those of the queries by default."""
        keys = position_ids if key_position_ids is None else key_position_ids
        return self._turned(q, position_ids, heads, 1), self._turned(k, keys, heads, -1)

    def _turned(self, x: Tensor, position_ids: Tensor, heads: int, sign: int) -> Tensor:
        cos, sin = self.rope(position_ids)
        power = (position_ids[0].to(torch.float64) - self.center) * (sign / self.scale_base)  # [B, S]
        scale = (power[..., None] * self.log_zeta).exp().to(torch.float32)  # [B, S, P]
        return rotate(x, cos * scale, sin * scale, pairing=self.rope.spec.pairing, heads=heads)
