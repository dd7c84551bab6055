"""Rotations: position IDs to cos and sin, and cos and sin onto queries and keys."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mmrope.encodings.spec import RotarySpec
from mmrope.positions.rules import Pairing

Angles = Literal["exact", "hf"]
PAIRINGS = get_args(Pairing)  # looked up here: torch.compile before 2.7 stops at get_args


class RotaryEmbedding(nn.Module):
    """cos and sin of the angles of a RotarySpec, for any position IDs.

    The module has no parameters and nothing in a state dict. `.to(torch.bfloat16)`, autocast and the meta device do not
    touch its precision: what it holds is made anew from the spec after every move.

    Args:
        spec: the frequencies and axes.
        angles: "exact" reduces position * inv_freq by whole turns in 64-bit integers, so that cos and sin are right to
            1e-6 at every integer position below 2^31 (fractional positions: float64). "hf" is the plain float32 product
            of Hugging Face models, which is off by 2e-3 at position 1e5 and by 3e-2 at 1e6.
    """

    axis: Tensor  # [P] int64
    inv_freq: Tensor  # [P] float32
    turns: Tensor  # [P] int64, inv_freq / 2 pi in units of 2^-64 turns

    def __init__(self, spec: RotarySpec, *, angles: Angles = "exact") -> None:
        super().__init__()
        if angles not in get_args(Angles):
            raise ValueError(f"angles must be one of {get_args(Angles)}, got {angles!r}")
        self.spec = spec
        self.angles: Angles = angles
        for name, array in self._constants().items():
            self.register_buffer(name, torch.tensor(array), persistent=False)

    def _constants(self) -> dict[str, np.ndarray]:
        return {"axis": self.spec.axis, "inv_freq": self.spec.inv_freq, "turns": _turns(self.spec.inv_freq)}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryEmbedding:
        # casts and moves (.to, .bfloat16, .to_empty) come through here: keep the device they chose, not the values
        super()._apply(fn, recurse)
        for name, array in self._constants().items():
            device = getattr(self, name).device
            setattr(self, name, torch.tensor(array, device=device))
        return self

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of every pair's angle.

        Args:
            position_ids: [A, B, S] or packed [A, T], one row per axis of the spec, integers or floats.

        Returns:
            cos, sin: [B, S, P] or [T, P] float32.
        """
        self._check(position_ids)
        ids = position_ids.index_select(0, self.axis).movedim(0, -1)  # [B, S, P]
        if self.angles == "hf":
            angle = ids.to(torch.float32) * self.inv_freq
        elif ids.dtype.is_floating_point:
            angle = ids.to(torch.float64) * self.inv_freq.to(torch.float64)
        else:
            # whole turns fall off the top of the int64 product; its upper half is the angle, -pi .. pi in 2^32 steps
            angle = ((ids.to(torch.int64) * self.turns) >> 32).to(torch.float32) * (2 * np.pi / 2**32)
        return angle.cos().to(torch.float32), angle.sin().to(torch.float32)

    def rotate(self, q: Tensor, k: Tensor, position_ids: Tensor, *, heads: int = -3) -> tuple[Tensor, Tensor]:
        """q and k turned to their positions: `apply_rotary` with cos and sin of `position_ids`."""
        cos, sin = self(position_ids)
        return apply_rotary(q, k, cos, sin, pairing=self.spec.pairing, heads=heads)

    def _check(self, position_ids: Tensor) -> None:
        axes, shape = self.spec.axes, tuple(position_ids.shape)
        if len(shape) in (2, 3) and shape[0] == len(axes):
            return
        hint = (
            "row 0 is the text row: pass position_ids[1:]"
            if shape[0:1] == (len(axes) + 1,)
            else "they always lead with the axes"
        )
        raise ValueError(
            f"position_ids must be [{len(axes)}, B, S] or [{len(axes)}, T] for the axes {axes!r}, got {list(shape)}: {hint}"
        )

    def extra_repr(self) -> str:
        return f"{self.spec!r}, angles={self.angles!r}"


def apply_rotary(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, pairing: Pairing = "half", heads: int = -3
) -> tuple[Tensor, Tensor]:
    """Rotates queries and keys, which may have different numbers of heads; see `rotate`."""
    return rotate(q, cos, sin, pairing=pairing, heads=heads), rotate(k, cos, sin, pairing=pairing, heads=heads)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, pairing: Pairing = "half", heads: int = -3) -> Tensor:
    """Turns the first 2 P channels of x by the angles of cos and sin; the rest pass through.

    The arithmetic is float32 (float64 for float64 x), the result has x's dtype.

    Args:
        x: [B, N, S, D], or [B, S, N, D] and packed [T, N, D] with heads=-2.
        cos, sin: [B, S, P] or [T, P], as RotaryEmbedding returns them.
        pairing: which channels form a pair: "half" p and p + P, "adjacent" 2 p and 2 p + 1.
        heads: the dimension of x that holds the heads, -3 or -2.
    """
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing must be one of {PAIRINGS}, got {pairing!r}")
    pairs = cos.shape[-1]
    _check_shapes(x, cos, sin, heads)
    working = torch.float64 if x.dtype == torch.float64 else torch.float32
    cos = cos.unsqueeze(heads).to(working)  # [B, 1, S, P]
    sin = sin.unsqueeze(heads).to(working)  # [B, 1, S, P]
    turned, rest = x[..., : 2 * pairs].to(working), x[..., 2 * pairs :]
    if pairing == "half":
        a, b = turned[..., :pairs], turned[..., pairs:]  # [x0 x1 x2 x3] -> a [x0 x1], b [x2 x3]
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)  # [..., 2 P]
    else:
        a, b = turned[..., 0::2], turned[..., 1::2]  # [x0 x1 x2 x3] -> a [x0 x2], b [x1 x3]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)  # [..., 2 P]
    turned = turned.to(x.dtype)
    return turned if rest.shape[-1] == 0 else torch.cat((turned, rest), dim=-1)


def _check_shapes(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> None:
    if heads not in (-3, -2):
        raise ValueError(f"heads must be -3 ([B, N, S, D]) or -2 ([B, S, N, D], [T, N, D]), got {heads}")
    if cos.shape != sin.shape or cos.ndim != x.ndim - 1 or 2 * cos.shape[-1] > x.shape[-1]:
        raise ValueError(
            f"cos and sin must be [B, S, P] (or [T, P]) with 2 P <= {x.shape[-1]} for x {list(x.shape)}, "
            f"got {list(cos.shape)} and {list(sin.shape)}"
        )
    places = [n for i, n in enumerate(x.shape[:-1]) if i != x.ndim + heads]  # x without heads and channels
    if any(a not in (1, b) for a, b in zip(cos.shape[:-1], places, strict=True)):
        raise ValueError(
            f"cos and sin are for {list(cos.shape[:-1])} tokens, but x {list(x.shape)} with heads={heads} has {places}; "
            "heads=-3 is [B, N, S, D], heads=-2 is [B, S, N, D] or [T, N, D]"
        )


_PI = Fraction("3.14159265358979323846264338327950288419716939937510582097494459")


def _turns(inv_freq: np.ndarray) -> np.ndarray:
    """inv_freq / 2 pi, rounded to multiples of 2^-64 turns, modulo one turn: [P] int64."""
    exact: list[Any] = [round(Fraction(float(f)) * 2**64 / (2 * _PI)) % 2**64 for f in inv_freq]
    return np.array(exact, dtype=np.uint64).view(np.int64)
