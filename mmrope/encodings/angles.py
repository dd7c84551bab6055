"""Exact angles: position * frequency without whole turns, by 64-bit integers alone. No device needs float64 for them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_PI = Fraction("3.14159265358979323846264338327950288419716939937510582097494459")


def check_ids_dtype(ids: Tensor, name: str) -> None:
    """That the ids are of a type that holds ids."""
    if ids.dtype not in INTEGERS and ids.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name} are {ids.dtype}: they must be integers, or float32 or float64 where they are fractional (bfloat16 is off "
            "by up to 2 at 1000). Keep them from casts of the model"
        )


def exact_angle(ids: Tensor, turns: Tensor, whole: Tensor, inv_freq: Tensor) -> Tensor:
    """ids times `turns`, without whole turns: float32, -pi .. pi. Past 2^31 fractional ids give nan. Their gradient is that of
    ids times inv_freq."""
    if not ids.dtype.is_floating_point:
        # whole turns fall off the top of the int64 product; its upper half is the angle, in 2^32 steps
        return ((ids.to(torch.int64) * turns) >> 32).to(torch.float32) * (2 * np.pi / 2**32)
    fixed = (ids * 2.0**32).to(torch.int64)  # exact of float32: a shift of the exponent
    part = fixed & 0xFFFFFFFF  # of an id, in steps of 2^-32; a part of a whole turn is no whole turn
    product = (fixed >> 32) * turns + part * (turns >> 32) + (part * whole << 32)
    angle = (product >> 32).to(torch.float32) * (2 * np.pi / 2**32)
    angle = angle.where((ids >= -(2.0**31)) & (ids < 2.0**31), torch.nan)
    return angle + (ids - ids.detach()).to(torch.float32) * inv_freq  # nothing but a gradient


def turns_on_device(inv_freq: Tensor) -> Tensor:
    """`turns` of float32 frequencies of less than half a turn an id, by integers alone."""
    bits = inv_freq.view(torch.int32).to(torch.int64)
    mantissa, exponent = (bits & 0x7FFFFF) | 0x800000, (bits >> 23) & 0xFF
    high, low = divmod(round(2**64 / (2 * _PI)), 2**32)
    scaled = (mantissa * high << 8) + (mantissa * low >> 24)  # mantissa * 2^64 / 2 pi / 2^24
    places = 126 - exponent
    return torch.where(places < 0, scaled << (-places).clamp(min=0), scaled >> places.clamp(min=0, max=63))


def torch_powers(dim: int, theta: float, over: int | None = None) -> np.ndarray:
    """theta^(2i / over), as transformers computes it on the CPU; whatever the default device and dtype are."""
    with _disable_current_modes():  # also where tensors that are made are fakes
        exponent = torch.from_numpy(np.arange(0, dim, 2, dtype=np.float32)) / (over or dim or 1)
        return torch.pow(theta, exponent).numpy()


def turns(inv_freq: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """inv_freq / 2 pi in multiples of 2^-64 turns, from -1/2 to 1/2, and the whole turns besides: 2 * [P] int64.

    At whole ids the second do not matter.
    """
    exact: list[Any] = [round(Fraction(float(f)) * 2**64 / (2 * _PI)) for f in inv_freq]
    whole = [(steps + 2**63) >> 64 for steps in exact]
    rest = [steps - (n << 64) for steps, n in zip(exact, whole, strict=True)]
    return np.array(rest, dtype=np.int64), np.array(whole, dtype=np.int64)
