"""What the blocks of both halves are made of: norms, MLPs, a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "gelu": F.gelu,
        "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "silu": F.silu,
    }
)
"""By the names of Hugging Face's configs."""
_EPS = 1e-6  # stated, because RMSNorm's own default depends on the dtype: 8e-3 in bfloat16


def run_block(block: nn.Module, *given: Any, recompute: bool) -> Any:
    """block(*given). With `recompute` nothing of what the block computes on its way is kept for the backward pass, which
    computes it once more (gradient checkpointing)."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *given, use_reentrant=False)
    return block(*given)


class RMSNorm(nn.RMSNorm):
    """RMSNorm over the last axis, in the dtype of its input, which under autocast is narrower than the weight's."""

    def __init__(self, size: int, eps: float = _EPS) -> None:
        super().__init__(size, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)  # pyright: ignore[reportArgumentType]


def make_norm(kind: str, size: int) -> nn.Module:
    """The norm "rms" or "layer"."""
    return RMSNorm(size) if kind == "rms" else nn.LayerNorm(size, eps=_EPS)


class MLP(nn.Module):
    """up, activation, down; a gated one activates its gate, and multiplies."""

    def __init__(self, size: int, wide: int, activation: str, *, gated: bool, bias: bool) -> None:
        super().__init__()
        self.up, self.gate = nn.Linear(size, wide, bias=bias), nn.Linear(size, wide, bias=bias) if gated else None
        self.down = nn.Linear(wide, size, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        return self.down(self.activation(up) if self.gate is None else self.activation(self.gate(x)) * up)


class Experts(nn.Module):
    """A mixture of gated MLPs: the router gives each token `top` of them, and weights that sum up to 1.

    The device is never waited for where torch has grouped products (2.10).
    """

    def __init__(self, size: int, wide: int, count: int, top: int) -> None:
        super().__init__()
        self.top = top
        self.router = nn.Linear(size, count, bias=False)
        self.gate_up = nn.Parameter(torch.empty(count, size, 2 * wide).normal_(std=size**-0.5))
        self.down = nn.Parameter(torch.empty(count, wide, size).normal_(std=wide**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)  # [n, size]
        weights, chosen = self.router(tokens).float().softmax(dim=-1).topk(self.top, dim=-1)  # [n, top]
        weights = (weights / weights.sum(dim=-1, keepdim=True)).to(x.dtype)
        order = chosen.flatten().argsort()  # [n top], an expert's tokens together
        counts = (chosen.flatten()[:, None] == torch.arange(len(self.down), device=x.device)).sum(dim=0)  # [experts]
        gate, up = grouped_matmul(tokens[order // self.top], self.gate_up, counts).chunk(2, dim=-1)  # [n top, wide]
        y = grouped_matmul(F.silu(gate) * up, self.down, counts)  # [n top, size]
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
        y = rearrange(y[back], "(n k) d -> n k d", k=self.top) * weights[..., None]
        return y.sum(dim=1).view_as(x)


def grouped_matmul(x: Tensor, w: Tensor, counts: Tensor) -> Tensor:
    """Rows times their group's matrix: x [n, a], in groups of counts [g] rows, w [g, a, b]; the result is [n, b]."""
    if hasattr(F, "grouped_mm"):
        return F.grouped_mm(x, w, offs=counts.cumsum(0, dtype=torch.int32))
    return torch.cat([part @ matrix for part, matrix in zip(x.split(counts.tolist()), w, strict=True)])
