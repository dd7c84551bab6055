"""Rotations: position IDs to cos and sin, and cos and sin onto queries and keys."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from mmrope.encodings.scaling import DynamicNTK, LongRoPE
from mmrope.encodings.spec import RotarySpec
from mmrope.positions.rules import Pairing

Angles = Literal["exact", "hf"]
Backend = Literal["auto", "torch", "triton"]
PAIRINGS = get_args(Pairing)  # looked up here: torch.compile before 2.7 stops at get_args


class RotaryEmbedding(nn.Module):
    """cos and sin of the angles of a RotarySpec, for any position IDs.

    The module has no parameters and nothing in a state dict. `.to(torch.bfloat16)`, autocast and the meta device do not
    touch its precision: what it holds is made anew from the spec after every move.

    Args:
        spec: the frequencies and axes.
        angles: "exact" reduces position * inv_freq by whole turns in 64-bit integers, so that cos and sin are right to
            1e-6 at every integer position below 2^31 (fractional positions, and scalings that depend on the length: float64).
            "hf" is the plain float32 product of Hugging Face models, with their frequencies to the last bit, on the CPU (but
            for DynamicNTK past the original length, whose base they compute in float32); it is off by 2e-3 at position 1e5
            and by 3e-2 at 1e6.
    """

    axis: Tensor  # [P] int64, or [K, P]
    inv_freq: Tensor  # [P] float32
    turns: Tensor  # [P] int64, inv_freq / 2 pi in units of 2^-64 turns
    longer: Tensor
    """Of scalings that depend on the length. LongRoPE: [P], the frequencies of longer sequences. DynamicNTK: [2, P] float64,
    ln(theta) and dim / (dim - 2), times the exponent of each pair."""

    def __init__(self, spec: RotarySpec, *, angles: Angles = "exact") -> None:
        super().__init__()
        if angles not in get_args(Angles):
            raise ValueError(f"angles must be one of {get_args(Angles)}, got {angles!r}")
        self.spec = spec
        self.angles: Angles = angles
        for name, array in self._constants().items():
            self.register_buffer(name, torch.tensor(array), persistent=False)

    def _constants(self) -> dict[str, np.ndarray]:
        spec = self.spec
        inv_freq = spec.inv_freq
        if self.angles == "hf" and spec.spectra is not None:
            length = spec.scaling.original_max_position if isinstance(spec.scaling, (DynamicNTK, LongRoPE)) else None
            inv_freq = spec.spectra.frequencies(spec.scaling, length=length, powers=_torch_powers)
        made = {"axis": spec.axis, "inv_freq": inv_freq, "turns": _turns(inv_freq)}
        if isinstance(spec.scaling, LongRoPE):
            made["longer"] = spec.at_length(spec.scaling.original_max_position + 1)
        elif isinstance(spec.scaling, DynamicNTK):
            assert spec.spectra is not None
            theta, dim = np.array(spec.spectra.of, dtype=np.float64)[spec.spectra.which].T
            exponent = 2 * spec.spectra.index / dim
            made["longer"] = np.stack([np.log(theta), dim / (dim - 2)]) * exponent
        return made

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryEmbedding:
        # casts and moves (.to, .bfloat16, .to_empty) come through here: keep the device they chose, not the values
        super()._apply(fn, recurse)
        for name, array in self._constants().items():
            device = getattr(self, name).device
            setattr(self, name, torch.tensor(array, device=device))
        return self

    def forward(self, position_ids: Tensor, *, length: int | Tensor | None = None, fold: bool = True) -> tuple[Tensor, Tensor]:
        """cos and sin of every pair's angle.

        Args:
            position_ids: [A, B, S] or packed [A, T], one row per axis of the spec, integers or floats.
            length: of scalings that depend on it (`spec.needs_length`), the length of the sequence, a number or a tensor of no
                dimensions. It is never read from the ids, which would wait for the device; keys of a cache must be of the same.
            fold: multiply by `spec.attention_factor`.

        Returns:
            cos, sin: [B, S, P] or [T, P] float32; [B, S, K, P] or [T, K, P] of a spec whose KV heads differ.
        """
        self._check(position_ids)
        inv_freq = self._frequencies(length)
        # gathered along the last dimension, so that tables come out with their pairs side by side
        ids = position_ids.movedim(0, -1)[..., self.axis.flatten()]  # [B, S, P]
        if self.axis.ndim == 2:
            ids = ids.unflatten(-1, self.axis.shape)  # [B, S, K, P]
        if self.angles == "hf":
            angle = ids.to(torch.float32) * inv_freq
        elif ids.dtype.is_floating_point or self.spec.needs_length:
            angle = ids.to(torch.float64) * inv_freq.to(torch.float64)
        else:
            # whole turns fall off the top of the int64 product; its upper half is the angle, -pi .. pi in 2^32 steps
            angle = ((ids.to(torch.int64) * self.turns) >> 32).to(torch.float32) * (2 * np.pi / 2**32)
        cos, sin = angle.cos().to(torch.float32), angle.sin().to(torch.float32)
        factor = self.spec.attention_factor if fold else 1.0
        return (cos, sin) if factor == 1 else (cos * factor, sin * factor)

    def _frequencies(self, length: int | Tensor | None) -> Tensor:
        """[P] float32, of sequences of this length."""
        scaling = self.spec.scaling
        if not self.spec.needs_length:
            if length is not None:
                raise ValueError(
                    f"{scaling or 'an unscaled embedding'} does not depend on the length: leave length={length} out"
                )
            return self.inv_freq
        if length is None:
            raise ValueError(f"{scaling} depends on the length of the sequence: pass length=, which is never read from the ids")
        # filled on the device: a number that is copied there would wait for it
        device = self.inv_freq.device
        stated = length if isinstance(length, Tensor) else torch.full((), length, dtype=torch.float64, device=device)
        if stated.ndim:
            raise ValueError(f"length must be a number or a tensor of no dimensions, got {list(stated.shape)}")
        if isinstance(scaling, LongRoPE):
            return torch.where(stated > scaling.original_max_position, self.longer, self.inv_freq)
        assert isinstance(scaling, DynamicNTK)
        ratio = stated.to(torch.float64).clamp(min=scaling.original_max_position) / scaling.original_max_position
        log_theta, growth = self.longer
        bracket = scaling.factor * ratio - (scaling.factor - 1)
        grown = (-(log_theta + growth * bracket.log())).exp().to(torch.float32)
        return torch.where(stated > scaling.original_max_position, grown, self.inv_freq)

    def rotate(
        self,
        q: Tensor,
        k: Tensor,
        position_ids: Tensor,
        *,
        length: int | Tensor | None = None,
        heads: int = -3,
        inplace: bool = False,
        backend: Backend = "auto",
    ) -> tuple[Tensor, Tensor]:
        """q and k turned to their positions: `apply_rotary` with cos and sin of `position_ids`, or a kernel that makes both.

        Args:
            q, k: [B, N, S, D] and [B, K, S, D], or with heads=-2 [B, S, N, D] or packed [T, N, D]; of any strides.
            position_ids, length: as in `forward`.
            heads: the dimension that holds the heads, -3 or -2.
            inplace: write into q and k.
            backend: "torch", the definition; "triton", one launch for q and k, on a GPU; "auto", what `backend_for(q)` says.
        """
        if self.backend_for(q, backend) == "torch":
            cos, sin = self(position_ids, length=length)
            return apply_rotary(q, k, cos, sin, pairing=self.spec.pairing, heads=heads, inplace=inplace)
        turned = self._by_kernel(q, k, position_ids, length, heads)
        return (q.copy_(turned[0]), k.copy_(turned[1])) if inplace else turned

    def backend_for(self, q: Tensor, backend: Backend = "auto") -> Literal["torch", "triton"]:
        """What `rotate` takes: "auto" is the kernel for half, bfloat16 and float32 tensors on a GPU, wherever triton is there.

        Raises:
            ValueError: a backend that is chosen and cannot be had.
        """
        if backend == "torch":
            return "torch"
        if backend not in ("auto", "triton"):
            raise ValueError(f"backend must be 'auto', 'torch' or 'triton', got {backend!r}")
        missing = None
        if find_spec("triton") is None:
            missing = "triton is not installed"
        elif not q.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            missing = f"it runs on a GPU, and q is on {q.device} (TRITON_INTERPRET=1 runs it on the CPU, slowly)"
        elif q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            missing = f"it has float32 arithmetic, and q is {q.dtype}"
        elif self.axis.ndim != 1:
            missing = "it has no axes by KV head"
        if backend == "triton" and missing:
            raise ValueError(f"backend='triton' cannot be had: {missing}")
        return "triton" if missing is None and (q.is_cuda or backend == "triton") else "torch"

    def _by_kernel(
        self, q: Tensor, k: Tensor, position_ids: Tensor, length: int | Tensor | None, heads: int
    ) -> tuple[Tensor, Tensor]:
        from mmrope.encodings.kernels.rotary import rotate_by_ids, rotate_by_table

        self._check(position_ids)
        pairs, adjacent = len(self.inv_freq), self.spec.pairing == "adjacent"
        places = [n for i, n in enumerate(q.shape[:-1]) if i != q.ndim + heads]  # [B, S], or [T]
        if self.angles == "exact" and not position_ids.dtype.is_floating_point and not self.spec.needs_length:
            table = position_ids.new_empty(()).expand(*places, pairs)  # its shape alone is looked at
            for x in (q, k):
                _check_shapes(x, table, table, heads)
            ids = position_ids.expand(-1, *places)
            return rotate_by_ids(q, k, ids, self.axis, self.turns, self.spec.attention_factor, heads, adjacent, 1)
        cos, sin = self(position_ids, length=length)
        for x in (q, k):
            _check_shapes(x, cos, sin, heads)
        cos, sin = (table.expand(*places, pairs).contiguous() for table in (cos, sin))
        return rotate_by_table(q, k, cos, sin, heads, adjacent, 1)

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
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    pairing: Pairing = "half",
    heads: int = -3,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Rotates queries and keys, which may have different numbers of heads; see `rotate`."""
    for x in (q, k):
        _check_shapes(x, cos, sin, heads)  # both, before one is written to
    options: dict[str, Any] = {"pairing": pairing, "heads": heads, "inplace": inplace}
    return rotate(q, cos, sin, **options), rotate(k, cos, sin, **options)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, pairing: Pairing = "half", heads: int = -3, inplace: bool = False) -> Tensor:
    """Turns the first 2 P channels of x by the angles of cos and sin; the rest pass through.

    The arithmetic is float32 (float64 for float64 x), the result has x's dtype.

    Args:
        x: [B, N, S, D], or [B, S, N, D] and packed [T, N, D] with heads=-2; of any strides.
        cos, sin: [B, S, P] or [T, P], as RotaryEmbedding returns them; with heads [B, S, K, P] or [T, K, P], where K divides N:
            each is for N / K heads in turn.
        pairing: which channels form a pair: "half" p and p + P, "adjacent" 2 p and 2 p + 1.
        heads: the dimension of x that holds the heads, -3 or -2.
        inplace: write into x.
    """
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing must be one of {PAIRINGS}, got {pairing!r}")
    _check_shapes(x, cos, sin, heads)
    tables = (_by_head(cos, x, heads), _by_head(sin, x, heads))  # [B, 1, S, P], or N in place of 1
    if not _in_blocks(x, cos, sin):
        turned = _turned(x, *tables, pairing)
        return x.copy_(turned) if inplace else turned
    return _Blocks.apply(x, *tables, pairing, heads, inplace)  # pyright: ignore[reportReturnType]


def _turned(x: Tensor, cos: Tensor, sin: Tensor, pairing: Pairing) -> Tensor:
    """The definition, for autograd and compilers to take apart."""
    pairs = cos.shape[-1]
    working = torch.float64 if x.dtype == torch.float64 else torch.float32
    cos, sin = cos.to(working), sin.to(working)
    turned, rest = x[..., : 2 * pairs].to(working), x[..., 2 * pairs :]
    if pairing == "half":
        a, b = turned[..., :pairs], turned[..., pairs:]  # [x0 x1 x2 x3] -> a [x0 x1], b [x2 x3]
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)  # [..., 2 P]
    else:
        a, b = turned[..., 0::2], turned[..., 1::2]  # [x0 x1 x2 x3] -> a [x0 x2], b [x1 x3]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)  # [..., 2 P]
    turned = turned.to(x.dtype)
    return turned if rest.shape[-1] == 0 else torch.cat((turned, rest), dim=-1)


# --- on the CPU -------------------------------------------------------------------------------------------------------

_BLOCK = 2**17  # elements: float32 scratch that stays in a core's cache


def _in_blocks(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether to turn x by blocks of tokens: plain tensors on the CPU, whose temporaries would cost more than the arithmetic.
    What traces, transforms or differentiates the tables takes the definition."""
    if x.device.type != "cpu" or x.dtype == torch.float64 or not x.dtype.is_floating_point:
        return False
    if torch.compiler.is_compiling() or any(type(tensor) not in (Tensor, nn.Parameter) for tensor in (x, cos, sin)):
        return False
    transformed = torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
    transformed = transformed or forward_ad._current_level >= 0  # forward-mode differentiation
    return not (transformed or cos.requires_grad or sin.requires_grad)


class _Blocks(torch.autograd.Function):
    """The same numbers in blocks of tokens. Its gradient is the rotation back, so that nothing of x is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, pairing: Pairing, heads: int, inplace: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.pairing, ctx.heads = pairing, heads
        if inplace:
            ctx.mark_dirty(x)
        out = x if inplace else torch.empty_like(x)
        _turn_blocks(x, cos, sin, pairing, heads, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        back = _Blocks.apply(gradients[0], cos, -sin, ctx.pairing, ctx.heads, False)
        return back, None, None, None, None, None


def _turn_blocks(x: Tensor, cos: Tensor, sin: Tensor, pairing: Pairing, heads: int, out: Tensor) -> None:
    """x turned into `out`, which may be x."""
    pairs = cos.shape[-1]
    if x.shape[-1] > 2 * pairs and out is not x:
        out[..., 2 * pairs :] = x[..., 2 * pairs :]
    if not x.numel() or not pairs:
        return
    if pairing == "half":
        first, second, cos = slice(None, pairs), slice(pairs, 2 * pairs), torch.cat((cos, cos), dim=-1)  # [..., 2 P]
    else:
        first, second, cos = slice(0, None, 2), slice(1, None, 2), cos.repeat_interleave(2, dim=-1)  # [..., 2 P]
    sin = sin.contiguous()
    tables = (cos, sin, -sin)
    for piece, turned, (c, s, b), tokens in _pieces(x[..., : 2 * pairs], out[..., : 2 * pairs], tables, heads):
        length = piece.shape[tokens]
        block = max(1, min(length, _BLOCK * length // piece.numel()))
        shape = list(piece.shape)
        shape[tokens] = block
        scratch = x.new_empty(shape, dtype=torch.float32)
        wide = torch.empty_like(scratch) if x.dtype != torch.float32 else None
        for start in range(0, length, block):
            n = min(block, length - start)
            part, to = (tensor.narrow(tokens, start, n) for tensor in (piece, turned))
            c_n, s_n, b_n = (t if t.shape[tokens] == 1 else t.narrow(tokens, start, n) for t in (c, s, b))
            mixed = scratch.narrow(tokens, 0, n)
            if wide is not None:
                part = wide.narrow(tokens, 0, n).copy_(part)
            torch.mul(part[..., second], b_n, out=mixed[..., first])
            torch.mul(part[..., first], s_n, out=mixed[..., second])
            if wide is None:
                torch.addcmul(mixed, part, c_n, out=to)
            else:
                to.copy_(mixed.addcmul_(part, c_n))


def _pieces(
    x: Tensor, out: Tensor, tables: tuple[Tensor, ...], heads: int
) -> Iterator[tuple[Tensor, Tensor, tuple[Tensor, ...], int]]:
    """x, out and tables, and the dimension of tokens: long heads one by one, where loops are along memory; else all at once."""
    if heads == -2 or x.shape[-2] * x.shape[-1] < 2**14:
        yield x, out, tables, x.ndim + (-2 if heads == -3 else -3)
        return
    for index in itertools.product(*map(range, x.shape[:-2])):
        mine = tuple(table[tuple(i if n > 1 else 0 for i, n in zip(index, table.shape, strict=False))] for table in tables)
        yield x[index], out[index], mine, 0


def _by_head(table: Tensor, x: Tensor, heads: int) -> Tensor:
    """cos or sin in x's order of dimensions."""
    if table.ndim < x.ndim:
        return table.unsqueeze(heads)  # [B, 1, S, P]
    return table.movedim(-2, heads).repeat_interleave(x.shape[heads] // table.shape[-2], dim=heads)  # [B, N, S, P]


def _check_shapes(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> None:
    if not x.dtype.is_floating_point:
        raise ValueError(f"what is rotated must be floating-point numbers, got {x.dtype}")
    if heads not in (-3, -2):
        raise ValueError(f"heads must be -3 ([B, N, S, D]) or -2 ([B, S, N, D], [T, N, D]), got {heads}")
    if cos.ndim == x.ndim and cos.shape == sin.shape:
        if x.shape[heads] % cos.shape[-2]:
            raise ValueError(f"cos and sin are for {cos.shape[-2]} KV heads, but x {list(x.shape)} has {x.shape[heads]} heads")
        cos = sin = cos.select(-2, 0)
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


def _torch_powers(dim: int, theta: float, over: int | None = None) -> np.ndarray:
    """theta^(2i / over), as transformers computes it on the CPU."""
    return (theta ** (torch.arange(0, dim, 2, dtype=torch.int64).to(torch.float32) / (over or dim or 1))).numpy()


_PI = Fraction("3.14159265358979323846264338327950288419716939937510582097494459")


def _turns(inv_freq: np.ndarray) -> np.ndarray:
    """inv_freq / 2 pi, rounded to multiples of 2^-64 turns, modulo one turn: [P] int64."""
    exact: list[Any] = [round(Fraction(float(f)) * 2**64 / (2 * _PI)) % 2**64 for f in inv_freq]
    return np.array(exact, dtype=np.uint64).view(np.int64)
