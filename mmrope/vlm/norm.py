"""The norm of every layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

_EPS = 1e-6  # stated, because RMSNorm's own default depends on the dtype: 8e-3 in bfloat16


class RMSNorm(nn.RMSNorm):
    """RMSNorm over the last axis, in the dtype of its input, which under autocast is narrower than the weight's."""

    def __init__(self, size: int) -> None:
        super().__init__(size, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)  # pyright: ignore[reportArgumentType]
