"""The rotation of queries and keys in one launch (Triton): from position IDs or tables, with their norms before it or without.

A program rotates heads of one token. From integer position IDs the angle is exact: its fraction of a turn is the upper half
of position * inv_freq / 2 pi in 64-bit fixed point, where whole turns fall off by themselves; its top bits are the quadrant,
polynomials do the rest, without branches. The gradient is the same kernel with the sine negated; nothing of q and k is kept.

Arithmetic is float32 whatever the data is. Strides are arguments, so that any layout is read where it lies. Callers are
trusted: `mmrope.encodings.rotary` checks what it hands over. What all functions here take:

    q, k: [B, N, S, D] with heads=-3, [B, S, N, D] or packed [T, N, D] with heads=-2; float16, bfloat16 or float32
    ids: [A, B, S] or [A, T] integers, with axis and turns: [P] int64, inv_freq / 2 pi in units of 2^-64 turns
    cos, sin: [B, S, P] or [T, P] float32, in place of ids; of these and ids B may be 1
    factor: of cos and sin
    distance: between the channels of a pair. Pairs come in blocks of 2 * distance channels: 1 is pairing "adjacent", P "half"
"""
# Of kernels type checkers understand little: they are traced, and `if` of a constant leaves the other branch out.
# pyright: reportCallIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

import functools
from types import MappingProxyType
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

PROGRAMS = 2048
"""About as many are at work on a large GPU at a time. Where tokens are fewer, several programs share the heads of each."""
TAU = tl.constexpr(6.283185307179586)
# Triton 3.10 would turn the latter off, and 3.9 warns of it
OPTIONS = MappingProxyType({"num_warps": 2, "enable_fp_fusion": True})

# --- kernels ----------------------------------------------------------------------------------------------------------


@triton.jit
def _cos_sin(phase):
    """cos and sin of phase / 2^32 turns, uint32; right to 2e-7."""
    quadrant = (phase + 0x20000000) >> 30
    rest = (phase - (quadrant << 30)).to(tl.int32, bitcast=True)  # -1/8 .. 1/8 of a turn
    r = rest.to(tl.float32) * (TAU / 4294967296.0)
    z = r * r
    s = r + r * z * (-1.6666667e-1 + z * (8.3333333e-3 + z * (-1.9841270e-4 + z * 2.7557319e-6)))
    c = 1.0 + z * (-0.5 + z * (4.1666667e-2 + z * (-1.3888889e-3 + z * 2.4801587e-5)))
    odd, half = (quadrant & 1) == 1, quadrant >> 1  # quarters 1 and 3; 2 and 3
    cos, sin = tl.where(odd, -s, c), tl.where(odd, c, s)
    flip = (half & 1) == 1
    return tl.where(flip, -cos, cos), tl.where(flip, -sin, sin)


@triton.jit
def _angles(ids_or_cos, axis_or_sin, turns, stride_0, stride_1, stride_2, b, s, PAIRS: tl.constexpr, BLOCK: tl.constexpr):
    """cos and sin of one token, 2 * [1, P]."""
    pair = tl.arange(0, BLOCK)
    here = pair < PAIRS
    if turns is None:
        at = b * stride_0 + s * stride_1 + pair.to(tl.int64) * stride_2
        cos = tl.load(ids_or_cos + at, mask=here, other=0.0)
        sin = tl.load(axis_or_sin + at, mask=here, other=0.0)
    else:
        axis = tl.load(axis_or_sin + pair, mask=here, other=0)
        position = tl.load(ids_or_cos + axis * stride_0 + b * stride_1 + s * stride_2, mask=here, other=0).to(tl.int64)
        frequency = tl.load(turns + pair, mask=here, other=0)
        low, high = frequency.to(tl.uint32), (frequency >> 32).to(tl.uint32)
        p_low, p_high = position.to(tl.uint32), (position >> 32).to(tl.uint32)
        phase = p_low * high + tl.umulhi(p_low, low) + p_high * low  # modulo 2^32: whole turns fall off
        cos, sin = _cos_sin(phase)
    return cos[None, :], sin[None, :]


@triton.jit
def _first_channels(DISTANCE: tl.constexpr, BLOCK: tl.constexpr):
    """Of all pairs, [P]: of block after block. In 64 bits: products with strides may not fit 32."""
    pair = tl.arange(0, BLOCK)
    return (pair // DISTANCE * (2 * DISTANCE) + pair % DISTANCE).to(tl.int64)


@triton.jit
def _load_pairs(x, stride, alive, DISTANCE: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr):
    """The first and the second channels of all pairs, 2 * [H, P] float32, of heads that begin at x [H, 1]."""
    if DISTANCE == 1:  # one wide load, taken apart in registers
        channel = tl.arange(0, 2 * BLOCK)
        both = tl.load(x + (channel.to(tl.int64) * stride)[None, :], mask=alive & (channel < 2 * PAIRS)[None, :], other=0.0)
        first, second = tl.split(tl.reshape(both.to(tl.float32), (both.shape[0], BLOCK, 2)))  # [H, 2 P] -> 2 * [H, P]
    else:
        channel = _first_channels(DISTANCE, BLOCK)
        here = alive & (tl.arange(0, BLOCK) < PAIRS)[None, :]
        first = tl.load(x + (channel * stride)[None, :], mask=here, other=0.0).to(tl.float32)
        second = tl.load(x + ((channel + DISTANCE) * stride)[None, :], mask=here, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def _store_pairs(x, first, second, stride, alive, DISTANCE: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr):
    kind = x.dtype.element_ty
    if DISTANCE == 1:
        channel = tl.arange(0, 2 * BLOCK)
        both = tl.reshape(tl.join(first.to(kind), second.to(kind)), (first.shape[0], 2 * BLOCK))  # 2 * [H, P] -> [H, 2 P]
        tl.store(x + (channel.to(tl.int64) * stride)[None, :], both, mask=alive & (channel < 2 * PAIRS)[None, :])
    else:
        channel = _first_channels(DISTANCE, BLOCK)
        here = alive & (tl.arange(0, BLOCK) < PAIRS)[None, :]
        tl.store(x + (channel * stride)[None, :], first.to(kind), mask=here)
        tl.store(x + ((channel + DISTANCE) * stride)[None, :], second.to(kind), mask=here)


@triton.jit
def _rotate_heads(
    x, out, weight, cos, sin, begin, heads, step, x_head, x_channel, out_head, out_channel, eps,
    DISTANCE: tl.constexpr, PAIRS: tl.constexpr, PAIRS_BLOCK: tl.constexpr, TAIL: tl.constexpr, TAIL_BLOCK: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
):  # fmt: skip
    """Heads of one token of x: a block of them from `begin` on, the next `step` further on, and so on."""
    channel = (2 * PAIRS + tl.arange(0, TAIL_BLOCK)).to(tl.int64)  # of the tail, which is not rotated
    in_tail = (channel < 2 * PAIRS + TAIL)[None, :]
    if weight is not None:
        row = tl.arange(0, 1)[:, None]  # a weight is like one head
        w_first, w_second = _load_pairs(weight + row, 1, row == 0, DISTANCE, PAIRS, PAIRS_BLOCK)
        w_tail = tl.load(weight + channel[None, :], mask=in_tail, other=0.0).to(tl.float32)
    start = begin
    while start < heads:  # range() of numbers known at run time stops interpreters before Triton 3.9 with numpy 2.4
        head = (start + tl.arange(0, HEADS_BLOCK)).to(tl.int64)[:, None]
        alive = head < heads
        source, target = x + head * x_head, out + head * out_head
        first, second = _load_pairs(source, x_channel, alive, DISTANCE, PAIRS, PAIRS_BLOCK)
        if TAIL > 0:
            tail = tl.load(source + (channel * x_channel)[None, :], mask=alive & in_tail, other=0.0)
        if weight is not None:
            squares = tl.sum(first * first + second * second, axis=1, keep_dims=True)
            if TAIL > 0:
                wide = tail.to(tl.float32)
                squares += tl.sum(wide * wide, axis=1, keep_dims=True)
            rstd = tl.rsqrt(squares / (2 * PAIRS + TAIL) + eps)
            first, second = first * rstd * w_first, second * rstd * w_second
            if TAIL > 0:
                tail = (wide * rstd * w_tail).to(out.dtype.element_ty)
        _store_pairs(target, first * cos - second * sin, second * cos + first * sin, out_channel, alive,
                     DISTANCE, PAIRS, PAIRS_BLOCK)  # fmt: skip
        if TAIL > 0:
            tl.store(target + (channel * out_channel)[None, :], tail, mask=alive & in_tail)
        start += step


@triton.jit(do_not_specialize=["stride_0", "stride_1", "stride_2", "length", "q_heads", "k_heads"])
def rotate_kernel(
    q, k, q_out, k_out,
    q_weight, k_weight,  # [D], or None: no norm
    ids_or_cos, axis_or_sin, turns,  # turns is None: tables
    stride_0, stride_1, stride_2,  # of ids (a, b, s), or of cos and sin (b, s, p)
    q_b, q_s, q_n, q_d, k_b, k_s, k_n, k_d,
    q_out_b, q_out_s, q_out_n, q_out_d, k_out_b, k_out_s, k_out_n, k_out_d,
    length, q_heads, k_heads,
    cos_factor, sin_factor, eps,
    DISTANCE: tl.constexpr, PAIRS: tl.constexpr, PAIRS_BLOCK: tl.constexpr, TAIL: tl.constexpr, TAIL_BLOCK: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid: tokens, and programs that share the heads of a token, dealt out to them in blocks."""
    token = tl.program_id(0)
    b, s = (token // length).to(tl.int64), (token % length).to(tl.int64)
    cos, sin = _angles(ids_or_cos, axis_or_sin, turns, stride_0, stride_1, stride_2, b, s, PAIRS, PAIRS_BLOCK)
    cos, sin = cos * cos_factor, sin * sin_factor
    share, shares = tl.program_id(1), tl.num_programs(1)
    k_share = shares - 1 - share  # dealt out from the other end: the last has least of q
    _rotate_heads(q + b * q_b + s * q_s, q_out + b * q_out_b + s * q_out_s, q_weight, cos, sin,
                  share * HEADS_BLOCK, q_heads, shares * HEADS_BLOCK, q_n, q_d, q_out_n, q_out_d, eps,
                  DISTANCE, PAIRS, PAIRS_BLOCK, TAIL, TAIL_BLOCK, HEADS_BLOCK)  # fmt: skip
    _rotate_heads(k + b * k_b + s * k_s, k_out + b * k_out_b + s * k_out_s, k_weight, cos, sin,
                  k_share * HEADS_BLOCK, k_heads, shares * HEADS_BLOCK, k_n, k_d, k_out_n, k_out_d, eps,
                  DISTANCE, PAIRS, PAIRS_BLOCK, TAIL, TAIL_BLOCK, HEADS_BLOCK)  # fmt: skip


@triton.jit
def _norm_back(
    x, grad, out, weight, partial, ids_or_cos, axis_or_sin, turns, stride_0, stride_1, stride_2,
    x_b, x_s, x_n, x_d, grad_b, grad_s, grad_n, grad_d, out_b, out_s, out_n, out_d,
    tokens, length, heads, factor, eps,
    DISTANCE: tl.constexpr, PAIRS: tl.constexpr, PAIRS_BLOCK: tl.constexpr, TAIL: tl.constexpr, TAIL_BLOCK: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of x, and what this program's tokens add to that of the weight, into `partial` [D].

    With g, the gradient rotated back, and n = x * rstd: dw = sum(g * n), dx = rstd * (g * w - n * mean(g * w * n))."""
    channel = (2 * PAIRS + tl.arange(0, TAIL_BLOCK)).to(tl.int64)  # of the tail, which is not rotated
    in_tail = (channel < 2 * PAIRS + TAIL)[None, :]
    row = tl.arange(0, 1)[:, None]  # a weight is like one head
    w_first, w_second = _load_pairs(weight + row, 1, row == 0, DISTANCE, PAIRS, PAIRS_BLOCK)
    dw_first = tl.zeros((HEADS_BLOCK, PAIRS_BLOCK), tl.float32)
    dw_second = tl.zeros((HEADS_BLOCK, PAIRS_BLOCK), tl.float32)
    if TAIL > 0:
        w_tail = tl.load(weight + channel[None, :], mask=in_tail, other=0.0).to(tl.float32)
        dw_tail = tl.zeros((HEADS_BLOCK, TAIL_BLOCK), tl.float32)
    token = tl.program_id(0)
    while token < tokens:
        b, s = (token // length).to(tl.int64), (token % length).to(tl.int64)
        cos, sin = _angles(ids_or_cos, axis_or_sin, turns, stride_0, stride_1, stride_2, b, s, PAIRS, PAIRS_BLOCK)
        cos, sin = cos * factor, sin * factor
        start = 0
        while start < heads:
            head = (start + tl.arange(0, HEADS_BLOCK)).to(tl.int64)[:, None]
            alive = head < heads
            x_at, grad_at = x + b * x_b + s * x_s + head * x_n, grad + b * grad_b + s * grad_s + head * grad_n
            first, second = _load_pairs(x_at, x_d, alive, DISTANCE, PAIRS, PAIRS_BLOCK)
            g, h = _load_pairs(grad_at, grad_d, alive, DISTANCE, PAIRS, PAIRS_BLOCK)
            g_first, g_second = g * cos + h * sin, h * cos - g * sin  # rotated back
            squares = tl.sum(first * first + second * second, axis=1, keep_dims=True)
            products = tl.sum(g_first * w_first * first + g_second * w_second * second, axis=1, keep_dims=True)
            if TAIL > 0:
                tail = tl.load(x_at + (channel * x_d)[None, :], mask=alive & in_tail, other=0.0).to(tl.float32)
                g_tail = tl.load(grad_at + (channel * grad_d)[None, :], mask=alive & in_tail, other=0.0).to(tl.float32)
                squares += tl.sum(tail * tail, axis=1, keep_dims=True)
                products += tl.sum(g_tail * w_tail * tail, axis=1, keep_dims=True)
            rstd = tl.rsqrt(squares / (2 * PAIRS + TAIL) + eps)
            mean = products * rstd / (2 * PAIRS + TAIL)  # of the normed x times its gradient
            first, second = first * rstd, second * rstd
            dw_first += g_first * first
            dw_second += g_second * second
            out_at = out + b * out_b + s * out_s + head * out_n
            _store_pairs(out_at, rstd * (g_first * w_first - first * mean), rstd * (g_second * w_second - second * mean),
                         out_d, alive, DISTANCE, PAIRS, PAIRS_BLOCK)  # fmt: skip
            if TAIL > 0:
                tail *= rstd
                dw_tail += g_tail * tail
                made = (rstd * (g_tail * w_tail - tail * mean)).to(out.dtype.element_ty)
                tl.store(out_at + (channel * out_d)[None, :], made, mask=alive & in_tail)
            start += HEADS_BLOCK
        token += tl.num_programs(0)
    dw_first, dw_second = tl.sum(dw_first, axis=0, keep_dims=True), tl.sum(dw_second, axis=0, keep_dims=True)  # [1, P]
    _store_pairs(partial + row, dw_first, dw_second, 1, row == 0, DISTANCE, PAIRS, PAIRS_BLOCK)
    if TAIL > 0:
        tl.store(partial + channel[None, :], tl.sum(dw_tail, axis=0, keep_dims=True), mask=in_tail)


@triton.jit(do_not_specialize=["stride_0", "stride_1", "stride_2", "tokens", "length", "q_heads", "k_heads"])
def norm_back_kernel(
    q, k, q_grad, k_grad, q_out, k_out, q_weight, k_weight,
    partials,  # [2, G, D] float32
    ids_or_cos, axis_or_sin, turns, stride_0, stride_1, stride_2,
    q_b, q_s, q_n, q_d, k_b, k_s, k_n, k_d,
    q_grad_b, q_grad_s, q_grad_n, q_grad_d, k_grad_b, k_grad_s, k_grad_n, k_grad_d,
    q_out_b, q_out_s, q_out_n, q_out_d, k_out_b, k_out_s, k_out_n, k_out_d,
    tokens, length, q_heads, k_heads, factor, eps,
    DISTANCE: tl.constexpr, PAIRS: tl.constexpr, PAIRS_BLOCK: tl.constexpr, TAIL: tl.constexpr, TAIL_BLOCK: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid: G programs that share the tokens, and 2, for q and for k."""
    at = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    partial = partials + at.to(tl.int64) * (2 * PAIRS + TAIL)
    if tl.program_id(1) == 0:
        _norm_back(q, q_grad, q_out, q_weight, partial, ids_or_cos, axis_or_sin, turns, stride_0, stride_1, stride_2,
                   q_b, q_s, q_n, q_d, q_grad_b, q_grad_s, q_grad_n, q_grad_d, q_out_b, q_out_s, q_out_n, q_out_d,
                   tokens, length, q_heads, factor, eps,
                   DISTANCE, PAIRS, PAIRS_BLOCK, TAIL, TAIL_BLOCK, HEADS_BLOCK)  # fmt: skip
    else:
        _norm_back(k, k_grad, k_out, k_weight, partial, ids_or_cos, axis_or_sin, turns, stride_0, stride_1, stride_2,
                   k_b, k_s, k_n, k_d, k_grad_b, k_grad_s, k_grad_n, k_grad_d, k_out_b, k_out_s, k_out_n, k_out_d,
                   tokens, length, k_heads, factor, eps,
                   DISTANCE, PAIRS, PAIRS_BLOCK, TAIL, TAIL_BLOCK, HEADS_BLOCK)  # fmt: skip


# --- launches ---------------------------------------------------------------------------------------------------------
# A table is ids, axis and turns, or cos, sin and None.


def _launch(
    q: Tensor | None, k: Tensor | None, q_weight: Tensor | None, k_weight: Tensor | None,
    ids_or_cos: Tensor, axis_or_sin: Tensor, turns: Tensor | None,
    cos_factor: float, sin_factor: float, heads: int, distance: int, eps: float = 0.0, inplace: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """q and k rotated; what is None stays None."""
    if q is None and k is None:
        return None, None
    q_out = q if inplace or q is None else torch.empty_like(q)
    k_out = k if inplace or k is None else torch.empty_like(k)
    x, x_out = (k, k_out) if q is None else (q, q_out)  # what stands in for the missing one has no heads
    y, y_out = (q, q_out) if k is None else (k, k_out)
    q_heads, k_heads = 0 if q is None else q.shape[heads], 0 if k is None else k.shape[heads]
    tokens, length, channels, pairs = _sizes(x, turns, ids_or_cos, heads)
    if not tokens * channels * (q_heads + k_heads) or (inplace and not pairs):
        return q_out, k_out
    blocks = _blocks(pairs, 0 if inplace else channels - 2 * pairs, max(q_heads, k_heads), q_weight is not None)
    heads_block = blocks[-1]
    # as many programs as a GPU has at work, but none without a block of heads
    shares = 1 if tokens >= PROGRAMS else min(PROGRAMS // tokens, -(-q_heads // heads_block) - (-k_heads // heads_block))
    strides = *_strides(x, heads), *_strides(y, heads)
    out_strides = strides if inplace else (*_strides(x_out, heads), *_strides(y_out, heads))
    _run(rotate_kernel, (tokens, shares), x, (
        x, y, x_out, y_out, q_weight, k_weight, ids_or_cos, axis_or_sin, turns, *_table_strides(ids_or_cos, turns),
        *strides, *out_strides, length, q_heads, k_heads, cos_factor, sin_factor, eps, distance or 1, *blocks,
    ))  # fmt: skip
    return q_out, k_out


def _launch_norm_back(
    q: Tensor, k: Tensor, q_grad: Tensor, k_grad: Tensor, q_weight: Tensor, k_weight: Tensor,
    ids_or_cos: Tensor, axis_or_sin: Tensor, turns: Tensor | None, factor: float, heads: int, distance: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k and their weights."""
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    tokens, length, channels, pairs = _sizes(q, turns, ids_or_cos, heads)
    q_heads, k_heads, programs = q.shape[heads], k.shape[heads], min(tokens, PROGRAMS // 2)
    partials = q.new_empty(2, programs, channels, dtype=torch.float32)
    if tokens * channels:
        _run(norm_back_kernel, (programs, 2), q, (
            q, k, q_grad, k_grad, q_out, k_out, q_weight, k_weight, partials,
            ids_or_cos, axis_or_sin, turns, *_table_strides(ids_or_cos, turns),
            *(n for x in (q, k, q_grad, k_grad, q_out, k_out) for n in _strides(x, heads)),
            tokens, length, q_heads, k_heads, factor, eps, distance or 1,
            *_blocks(pairs, channels - 2 * pairs, max(q_heads, k_heads), True),
        ))  # fmt: skip
    return q_out, k_out, partials[0].sum(0).to(q_weight.dtype), partials[1].sum(0).to(k_weight.dtype)  # [D] of weights


def _run(kernel: Any, grid: tuple[int, int], x: Tensor, arguments: tuple[Any, ...]) -> None:
    """On x's device."""
    device = x.get_device()  # -1 is the CPU
    if device < 0 or device == torch.cuda.current_device():
        kernel[grid](*arguments, **OPTIONS)
    else:
        with torch.cuda.device(device):
            kernel[grid](*arguments, **OPTIONS)


@functools.cache
def _blocks(pairs: int, tail: int, heads: int, normed: bool) -> tuple[int, int, int, int, int]:
    """PAIRS, PAIRS_BLOCK, TAIL, TAIL_BLOCK and HEADS_BLOCK: about 1024 channels at a time, 16 of each thread."""
    power = triton.next_power_of_2
    pairs_block, tail_block = power(max(pairs, 1)), power(max(tail, 1))
    # a norm holds both at once
    channels = power(2 * pairs_block + tail_block) if normed and tail else max(2 * pairs_block, tail_block)
    return pairs, pairs_block, tail, tail_block, min(power(max(heads, 1)), max(1, 1024 // channels))


def _sizes(x: Tensor, turns: Tensor | None, cos: Tensor, heads: int) -> tuple[int, int, int, int]:
    """Tokens, tokens of a sequence, channels, pairs."""
    shape, pairs = x.shape, cos.shape[-1] if turns is None else turns.shape[0]
    length = shape[-2] if heads == -3 else shape[-3]
    return (shape[0] * length if len(shape) == 4 else length), length, shape[-1], pairs


def _strides(x: Tensor, heads: int) -> tuple[int, ...]:
    """Of batch, token, head and channel."""
    strides = x.stride()
    if len(strides) == 3:
        return 0, *strides
    if heads == -2:
        return strides
    b, n, s, d = strides
    return b, s, n, d


def _table_strides(ids_or_cos: Tensor, turns: Tensor | None) -> tuple[int, ...]:
    """Of ids (a, b, s), of cos and sin (b, s, p); one row is for the whole batch."""
    strides = ids_or_cos.stride()
    if len(strides) == 2:
        return (0, *strides) if turns is None else (strides[0], 0, strides[1])
    batch = 0 if turns is None else 1
    return strides if ids_or_cos.shape[batch] != 1 else (*strides[:batch], 0, *strides[batch + 1 :])


# --- with gradients ---------------------------------------------------------------------------------------------------
# Eager calls launch by themselves: an operator of torch.library costs more of the CPU's time than the launch.


def _is_traced(x: Tensor | None) -> bool:
    """By a compiler, or a subclass of tensors, which may have no memory to launch on."""
    return torch.compiler.is_compiling() or (type(x) is not Tensor and x is not None)


def _rotate(q: Any, k: Any, inplace: bool, *rest: Any) -> tuple[Any, Any]:
    """rest: a table, cos_factor, sin_factor, heads, distance."""
    with_gradient = torch.is_grad_enabled() and ((q is not None and q.requires_grad) or (k is not None and k.requires_grad))
    if _is_traced(q):
        if inplace and not with_gradient:
            rotate_operator_(q, k, *rest)
            return q, k
        made = rotate_operator(q, k, *rest)
        return (q.copy_(made[0]), k.copy_(made[1])) if inplace else made
    if with_gradient:
        if inplace:
            return _RotateInPlace.apply(q, *rest), _RotateInPlace.apply(k, *rest)
        return _Rotate.apply(q, k, *rest)  # pyright: ignore[reportReturnType]
    if inplace and not q.is_inference():
        torch.autograd.graph.increment_version((q, k))  # autograd may keep them elsewhere, and must know
    return _launch(q, k, None, None, *rest, inplace=inplace)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor | None, k: Tensor | None, *rest: Any) -> tuple[Any, Any]:
        _keep_table(ctx, (q, k, *rest), None)
        ctx.set_materialize_grads(False)
        return _launch(q, k, None, None, *rest)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        return *_rotate(*gradients, False, *_back(ctx)), *[None] * 7


class _RotateInPlace(torch.autograd.Function):
    """Of one tensor: PyTorch lets a function change a view in place only if it returns nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        _keep_table(ctx, (x, None, *rest), None)
        ctx.mark_dirty(x)
        return _launch(x, None, None, None, *rest, inplace=True)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return _rotate(*gradients, None, False, *_back(ctx))[0], *[None] * 7


def _keep_table(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[2:5])
    ctx.numbers = inputs[5:]


def _back(ctx: Any) -> tuple[Any, ...]:
    """Of the rotation back, all arguments but q and k."""
    cos_factor, sin_factor, heads, distance = ctx.numbers
    return *ctx.saved_tensors, cos_factor, -sin_factor, heads, distance


def _norm_rotate(q: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """rest: q_weight, k_weight, a table, factor, heads, distance, eps."""
    if _is_traced(q):
        return norm_rotate_operator(q, k, *rest)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, *rest[:2])):
        return _NormRotate.apply(q, k, *rest)  # pyright: ignore[reportReturnType]
    return _launch_norm(q, k, *rest)


def _launch_norm(q: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *tensors, factor, heads, distance, eps = rest
    return _launch(q, k, *tensors, factor, factor, heads, distance, eps)


class _NormRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        _keep_all(ctx, inputs, None)
        return _launch_norm(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, *rest = ctx.saved_tensors
        return *_launch_norm_back(q, k, *gradients, *rest, *ctx.numbers), *[None] * 7


def _keep_all(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.numbers = inputs[7:]


# --- operators, for compilers -----------------------------------------------------------------------------------------


@torch.library.custom_op("mmrope::rotate", mutates_args=())
def rotate_operator(
    q: Tensor, k: Tensor, ids_or_cos: Tensor, axis_or_sin: Tensor, turns: Tensor | None,
    cos_factor: float, sin_factor: float, heads: int, distance: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _launch(q, k, None, None, ids_or_cos, axis_or_sin, turns, cos_factor, sin_factor, heads, distance)


@torch.library.custom_op("mmrope::rotate_", mutates_args=("q", "k"))
def rotate_operator_(
    q: Tensor, k: Tensor, ids_or_cos: Tensor, axis_or_sin: Tensor, turns: Tensor | None,
    cos_factor: float, sin_factor: float, heads: int, distance: int,
) -> None:  # fmt: skip
    _launch(q, k, None, None, ids_or_cos, axis_or_sin, turns, cos_factor, sin_factor, heads, distance, inplace=True)


@torch.library.custom_op("mmrope::norm_rotate", mutates_args=())
def norm_rotate_operator(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, ids_or_cos: Tensor, axis_or_sin: Tensor, turns: Tensor | None,
    factor: float, heads: int, distance: int, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _launch_norm(q, k, q_weight, k_weight, ids_or_cos, axis_or_sin, turns, factor, heads, distance, eps)


@torch.library.custom_op("mmrope::norm_rotate_back", mutates_args=())
def norm_rotate_back_operator(
    q: Tensor, k: Tensor, q_grad: Tensor, k_grad: Tensor, q_weight: Tensor, k_weight: Tensor,
    ids_or_cos: Tensor, axis_or_sin: Tensor, turns: Tensor | None, factor: float, heads: int, distance: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _launch_norm_back(
        q, k, q_grad, k_grad, q_weight, k_weight, ids_or_cos, axis_or_sin, turns, factor, heads, distance, eps
    )


@rotate_operator.register_fake
@norm_rotate_operator.register_fake
def _(q: Tensor, k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k)


@rotate_operator_.register_fake
def _(q: Tensor, k: Tensor, *_: Any) -> None: ...


@norm_rotate_back_operator.register_fake
def _(q: Tensor, k: Tensor, q_grad: Tensor, k_grad: Tensor, q_weight: Tensor, k_weight: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x) for x in (q, k, q_weight, k_weight))


def _rotate_operator_back(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
    return *rotate_operator(*gradients, *_back(ctx)), *[None] * 7


def _norm_rotate_operator_back(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
    q, k, *rest = ctx.saved_tensors
    return *norm_rotate_back_operator(q, k, *gradients, *rest, *ctx.numbers), *[None] * 7


rotate_operator.register_autograd(_rotate_operator_back, setup_context=_keep_table)
norm_rotate_operator.register_autograd(_norm_rotate_operator_back, setup_context=_keep_all)

# --- what the library calls -------------------------------------------------------------------------------------------


def rotate_by_ids(
    q: Tensor, k: Tensor, ids: Tensor, axis: Tensor, turns: Tensor, factor: float,
    *, heads: int, distance: int, inplace: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q and k rotated to integer positions; with inplace they are written to, and returned."""
    return _rotate(q, k, inplace, ids, axis, turns, factor, factor, heads, distance)


def rotate_by_tables(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, heads: int, distance: int, inplace: bool = False
) -> tuple[Tensor, Tensor]:
    """q and k rotated by the angles of cos and sin; with inplace they are written to, and returned."""
    return _rotate(q, k, inplace, *_alike(cos, sin), None, 1.0, 1.0, heads, distance)


def norm_rotate_by_ids(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, ids: Tensor, axis: Tensor, turns: Tensor, factor: float,
    *, heads: int, distance: int, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x * rsqrt(mean(x^2) + eps) * weight of every head of q and k, over all its channels, then `rotate_by_ids`."""
    return _norm_rotate(q, k, q_weight.contiguous(), k_weight.contiguous(), ids, axis, turns, factor, heads, distance, eps)


def norm_rotate_by_tables(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    *, heads: int, distance: int, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same norm, then `rotate_by_tables`."""
    weights = q_weight.contiguous(), k_weight.contiguous()
    return _norm_rotate(q, k, *weights, *_alike(cos, sin), None, 1.0, heads, distance, eps)


def _alike(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Of equal strides."""
    return (cos, sin) if cos.stride() == sin.stride() else (cos.contiguous(), sin.contiguous())
