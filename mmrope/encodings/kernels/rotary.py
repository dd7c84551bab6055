"""The rotation of queries and keys in one launch (Triton): from position IDs, or from tables of cos and sin.

A program turns all heads of one token. From integer position IDs the angle is exact: its fraction of a turn is the upper half
of position * inv_freq / 2 pi in 64-bit fixed point, where whole turns fall off by themselves; its top bits are the quadrant,
polynomials do the rest, without branches. The gradient is the same kernel with the sine negated; nothing of q and k is kept.

Arithmetic is float32 whatever the data is. Strides are arguments, so that any layout is read where it lies.
"""
# pyright: reportCallIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TAU = tl.constexpr(6.283185307179586)


@triton.jit
def _cos_sin(phase):
    """cos and sin of phase / 2^32 turns, uint32; right to 2e-7."""
    quadrant = (phase + 0x20000000) >> 30
    rest = (phase - (quadrant << 30)).to(tl.int32, bitcast=True)  # -1/8 .. 1/8 of a turn
    r = rest.to(tl.float32) * (TAU / 4294967296.0)
    z = r * r
    s = r + r * z * (-1.6666667e-1 + z * (8.3333333e-3 + z * (-1.9841270e-4 + z * 2.7557319e-6)))
    c = 1.0 + z * (-0.5 + z * (4.1666667e-2 + z * (-1.3888889e-3 + z * 2.4801587e-5)))
    odd, turned = (quadrant & 1) == 1, quadrant >> 1  # quarters 1 and 3; 2 and 3
    cos, sin = tl.where(odd, -s, c), tl.where(odd, c, s)
    flip = (turned & 1) == 1
    return tl.where(flip, -cos, cos), tl.where(flip, -sin, sin)


@triton.jit
def _turn(
    x,
    out,
    cos,
    sin,
    heads,
    x_head,
    x_channel,
    out_head,
    out_channel,
    pair,
    is_pair,
    ADJACENT: tl.constexpr,
    PAIRS: tl.constexpr,
    TAIL: tl.constexpr,
    TAIL_BLOCK: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
):
    """All heads of one token of x."""
    pair = pair.to(tl.int64)  # products with strides may not fit 32 bits
    first = 2 * pair if ADJACENT else pair
    second = first + 1 if ADJACENT else pair + PAIRS
    for begin in range(0, heads, HEADS_BLOCK):
        head = (begin + tl.arange(0, HEADS_BLOCK)).to(tl.int64)
        here = (head < heads)[:, None] & is_pair[None, :]
        at = head[:, None] * x_head
        a = tl.load(x + at + first[None, :] * x_channel, mask=here, other=0.0).to(tl.float32)
        b = tl.load(x + at + second[None, :] * x_channel, mask=here, other=0.0).to(tl.float32)
        to = head[:, None] * out_head
        kind = out.dtype.element_ty
        tl.store(out + to + first[None, :] * out_channel, (a * cos - b * sin).to(kind), mask=here)
        tl.store(out + to + second[None, :] * out_channel, (b * cos + a * sin).to(kind), mask=here)
        if TAIL > 0:
            channel = (2 * PAIRS + tl.arange(0, TAIL_BLOCK)).to(tl.int64)
            left = (head < heads)[:, None] & (channel < 2 * PAIRS + TAIL)[None, :]
            rest = tl.load(x + at + channel[None, :] * x_channel, mask=left, other=0.0)
            tl.store(out + to + channel[None, :] * out_channel, rest, mask=left)


@triton.jit
def rotate_kernel(
    q,
    k,
    q_out,
    k_out,
    ids_or_cos,  # [A, B, S] int32 or int64, or [B, S, P] float32
    axis_or_sin,  # [P] int64, or [B, S, P] float32
    turns,  # [P] int64, inv_freq / 2 pi in units of 2^-64 turns
    q_strides,  # (b, s, n, d)
    k_strides,
    q_out_strides,
    k_out_strides,
    table_strides,  # of ids (a, b, s), or of cos and sin (b, s, p)
    length,  # S
    q_heads,
    k_heads,
    factor,  # of cos and sin
    sign,  # 1, or -1 for the gradient
    FROM_IDS: tl.constexpr,
    ADJACENT: tl.constexpr,
    PAIRS: tl.constexpr,
    PAIRS_BLOCK: tl.constexpr,
    TAIL: tl.constexpr,
    TAIL_BLOCK: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    b, s = token // length, token % length
    pair = tl.arange(0, PAIRS_BLOCK)
    is_pair = pair < PAIRS
    if FROM_IDS:
        axis = tl.load(axis_or_sin + pair, mask=is_pair, other=0)
        at = axis * table_strides[0] + b * table_strides[1] + s * table_strides[2]
        position = tl.load(ids_or_cos + at, mask=is_pair, other=0).to(tl.int64)
        frequency = tl.load(turns + pair, mask=is_pair, other=0)
        low, high = frequency.to(tl.uint32), (frequency >> 32).to(tl.uint32)
        p_low, p_high = position.to(tl.uint32), (position >> 32).to(tl.uint32)
        phase = p_low * high + tl.umulhi(p_low, low) + p_high * low  # modulo 2^32: whole turns fall off
        cos, sin = _cos_sin(phase)
    else:
        at = b * table_strides[0] + s * table_strides[1] + pair * table_strides[2]
        cos = tl.load(ids_or_cos + at, mask=is_pair, other=0.0)
        sin = tl.load(axis_or_sin + at, mask=is_pair, other=0.0)
    cos, sin = (cos * factor)[None, :], (sin * factor * sign)[None, :]
    q += b * q_strides[0] + s * q_strides[1]
    k += b * k_strides[0] + s * k_strides[1]
    q_out += b * q_out_strides[0] + s * q_out_strides[1]
    k_out += b * k_out_strides[0] + s * k_out_strides[1]
    _turn(q, q_out, cos, sin, q_heads, q_strides[2], q_strides[3], q_out_strides[2], q_out_strides[3], pair, is_pair,
          ADJACENT, PAIRS, TAIL, TAIL_BLOCK, HEADS_BLOCK)  # fmt: skip
    _turn(k, k_out, cos, sin, k_heads, k_strides[2], k_strides[3], k_out_strides[2], k_out_strides[3], pair, is_pair,
          ADJACENT, PAIRS, TAIL, TAIL_BLOCK, HEADS_BLOCK)  # fmt: skip


def constants(pairs: int, tail: int, heads: int) -> dict[str, Any]:
    """What a launch is compiled for, besides its types."""
    power = triton.next_power_of_2(max(pairs, 1))
    return {
        "PAIRS": pairs,
        "PAIRS_BLOCK": power,
        "TAIL": tail,
        "TAIL_BLOCK": triton.next_power_of_2(max(tail, 1)),
        "HEADS_BLOCK": min(triton.next_power_of_2(max(heads, 1)), max(1, 512 // power)),
    }


def _launch(q: Tensor, k: Tensor, table: tuple[Tensor, Tensor, Tensor], from_ids: bool, pairs: int, factor: float,
            heads: int, adjacent: bool, sign: int) -> tuple[Tensor, Tensor]:  # fmt: skip
    if q.shape[-1] != k.shape[-1] or q.ndim != k.ndim or 2 * pairs > q.shape[-1]:
        raise ValueError(
            f"q and k must have equal head_dim, of {2 * pairs} channels at least, got {list(q.shape)}, {list(k.shape)}"
        )
    if q.dtype != k.dtype or q.device != k.device or not q.dtype.is_floating_point or q.dtype == torch.float64:
        raise ValueError(
            f"q and k must be of one floating type of 32 bits at most, and on one device, got {q.dtype} on {q.device} and "
            f"{k.dtype} on {k.device}"
        )
    outs = torch.empty_like(q), torch.empty_like(k)
    first, second, turns = table
    lead = first[:, None] if from_ids and first.ndim == 2 else first[None] if not from_ids and first.ndim == 2 else first
    views = [_by_token(x, heads) for x in (q, k, *outs)]  # [B, S, N, D]
    b, s, n, d = views[0].shape
    if not b * s * d:
        return outs
    with torch.cuda.device(q.device) if q.is_cuda else _nowhere():
        rotate_kernel[(b * s,)](
            *views,
            first,
            second,
            turns,
            *(tuple(view.stride()) for view in views),
            tuple(lead.stride()),
            s,
            n,
            views[1].shape[2],
            factor,
            sign,
            FROM_IDS=from_ids,
            ADJACENT=adjacent,
            num_warps=2,
            **constants(pairs, d - 2 * pairs, n),
        )
    return outs


def _by_token(x: Tensor, heads: int) -> Tensor:
    """x as [B, S, N, D]."""
    x = x if x.ndim == 4 else x[None]
    return x.transpose(1, 2) if heads == -3 else x


class _nowhere:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


# --- operators --------------------------------------------------------------------------------------------------------


@torch.library.custom_op("mmrope::rotate_by_ids", mutates_args=())
def rotate_by_ids(
    q: Tensor,
    k: Tensor,
    position_ids: Tensor,
    axis: Tensor,
    turns: Tensor,
    factor: float,
    heads: int,
    adjacent: bool,
    sign: int,
) -> tuple[Tensor, Tensor]:
    """q and k turned by integer position ids [A, B, S] or [A, T]; axis and turns [P] int64."""
    table = position_ids, axis, turns
    return _launch(q, k, table, True, len(turns), factor, heads, adjacent, sign)


@torch.library.custom_op("mmrope::rotate_by_table", mutates_args=())
def rotate_by_table(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, heads: int, adjacent: bool, sign: int
) -> tuple[Tensor, Tensor]:
    """q and k turned by cos and sin, [B, S, P] or [T, P] float32 of equal strides."""
    return _launch(q, k, (cos, sin, cos), False, cos.shape[-1], 1.0, heads, adjacent, sign)


@rotate_by_ids.register_fake
@rotate_by_table.register_fake
def _(q: Tensor, k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    tensors = [x for x in inputs[2:] if isinstance(x, Tensor)]
    ctx.save_for_backward(*tensors)
    ctx.rest = [x for x in inputs[2:] if not isinstance(x, Tensor)]


def _back(operator: Any, ctx: Any, q_gradient: Tensor, k_gradient: Tensor) -> tuple[Tensor | None, ...]:
    *rest, sign = ctx.rest
    gradients = operator(q_gradient, k_gradient, *ctx.saved_tensors, *rest, -sign)
    return (*gradients, *[None] * (len(ctx.saved_tensors) + len(ctx.rest)))


for _operator in (rotate_by_ids, rotate_by_table):
    _operator.register_autograd(functools.partial(_back, _operator), setup_context=_keep)
