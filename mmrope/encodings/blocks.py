"""The rotation on a CPU: few operations on small tensors; on large ones blocks of tokens that stay in the cache.

Every pairing is one shape: pairs lie in blocks of 2 * distance channels, [P / distance, 2, distance]. Arithmetic is float32.
Memory is the limit, and each pass over it counts: the partners' products go to scratch, one addcmul adds the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK = 2**18
"""Elements of a block: scratch that the cache holds, in few enough calls. Up to so many, whole tensors are as fast."""


def wide_tables(cos: Tensor, sin: Tensor, distance: int) -> tuple[Tensor, Tensor]:
    """What each channel is multiplied by, and what its partner is: [..., P] -> 2 * [..., 2 P]."""
    if cos.shape[-1] == distance:
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    cos, sin = cos.unflatten(-1, (-1, distance)), sin.unflatten(-1, (-1, distance))  # [..., P / d, d]
    return torch.stack((cos, cos), dim=-2).flatten(-3), torch.stack((-sin, sin), dim=-2).flatten(-3)


_NARROW = {torch.bfloat16: Tensor.bfloat16, torch.float16: Tensor.half}  # half the cost of Tensor.to, for one token


def rotate_whole(x: Tensor, cos: Tensor, sin: Tensor, distance: int, plain: bool) -> Tensor:
    """x [..., D] rotated as a whole, by wide tables that broadcast to it.

    Args:
        plain: nothing traces or transforms the operations or differentiates the tables, so that temporaries may be written.
    """
    channels, narrow = cos.shape[-1], _NARROW.get(x.dtype)
    pairs = x if channels == x.shape[-1] else x[..., :channels]
    pairs = pairs if narrow is None else pairs.float()
    if plain and channels == 2 * distance:
        rotated = pairs.roll(distance, -1).mul_(sin).addcmul_(pairs, cos)
    else:
        partners = pairs.unflatten(-1, (-1, 2, distance)).roll(1, -2).flatten(-3)  # [..., P / d, 2, d] -> [..., 2 P]
        rotated = partners.mul_(sin).addcmul_(pairs, cos) if plain else (pairs * cos + partners * sin).to(pairs.dtype)
    rotated = rotated if narrow is None else narrow(rotated)
    return rotated if channels == x.shape[-1] else torch.cat((rotated, x[..., channels:]), dim=-1)


class RotateBlocks(torch.autograd.Function):
    """`rotate_blocks` of some tensors. Its gradient is the rotation back, so that nothing of the tensors is kept."""

    @staticmethod
    def forward(ctx: Any, distance: int, heads: int, inplace: bool, *given: Tensor) -> tuple[Tensor, ...]:
        # the tables last: of a view that is written, autograd takes the first tensor's gradient for the view's
        *tensors, cos, sin = given
        ctx.save_for_backward(cos, sin)
        ctx.distance, ctx.heads = distance, heads
        if inplace:
            ctx.mark_dirty(*tensors)
        return rotate_blocks(tuple(tensors), cos, sin, distance, heads, inplace)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        back: Any = RotateBlocks.apply(ctx.distance, ctx.heads, False, *gradients, cos, -sin)
        return (None, None, None, *back, None, None)


def rotate_blocks(
    tensors: tuple[Tensor, ...], cos: Tensor, sin: Tensor, distance: int, heads: int, inplace: bool
) -> tuple[Tensor, ...]:
    """[B, N, S, D] (heads=-3), [B, S, N, D] or [T, N, D] (heads=-2), rotated by tables [..., P] that broadcast to them."""
    channels = 2 * cos.shape[-1]

    def by_pair(x: Tensor) -> Tensor:  # -> [B, S, N, P / d, 2, d]
        x = x[..., :channels].unflatten(-1, (-1, 2, distance))
        x = x if x.ndim == 6 else x[None]
        return x.transpose(1, 2) if heads == -3 else x

    tables = [by_pair(table) for table in wide_tables(cos, sin, distance)]
    made = tuple(x if inplace else torch.empty_like(x) for x in tensors)
    for x, out in zip(tensors, made, strict=True):
        if channels < x.shape[-1] and not inplace:
            out[..., channels:] = x[..., channels:]
        if x.numel():
            _rotate_pieces(_pieces(by_pair(x), by_pair(out), *tables), x.dtype, inplace)
    return made


def _rotate_pieces(pieces: Iterator[tuple[Tensor, ...]], dtype: torch.dtype, inplace: bool) -> None:
    plain, scratch, wide = dtype == torch.float32, None, None
    for part, to, cos, sin in pieces:
        mixed, source = to, part
        if inplace or not plain:
            if scratch is None or scratch.shape != part.shape:
                scratch = torch.empty_like(part, dtype=torch.float32)  # of part's order in memory
                wide = None if plain else torch.empty_like(scratch)
            mixed = scratch
            source = part if wide is None else wide.copy_(part)
        torch.mul(source[..., 1, :], sin[..., 0, :], out=mixed[..., 0, :])
        torch.mul(source[..., 0, :], sin[..., 1, :], out=mixed[..., 1, :])
        if plain:
            torch.addcmul(mixed, source, cos, out=to)
        else:
            to.copy_(mixed.addcmul_(source, cos))


def _pieces(x: Tensor, out: Tensor, cos: Tensor, sin: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """x, out and tables in blocks: of rows of the batch, or where rows are long of the tokens of each."""
    row = x[0].numel()
    groups, size = [(x, out, cos, sin)], max(1, BLOCK // row)
    if row > BLOCK:
        groups = [tuple(t[b if len(t) > 1 else 0] for t in groups[0]) for b in range(len(x))]
        size = max(1, BLOCK // x[0, 0].numel())
    for group in groups:
        length = len(group[0])
        yield from zip(*(itertools.repeat(t) if len(t) < length else t.split(size) for t in group), strict=False)
