"""Rotations: position IDs to cos and sin, and cos and sin onto queries and keys."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from mmrope.encodings import blocks as cpu
from mmrope.encodings.angles import INTEGERS, check_ids_dtype, exact_angle, torch_powers, turns, turns_on_device
from mmrope.encodings.constants import Constants, transformed
from mmrope.encodings.overlap import check_writable
from mmrope.encodings.scaling import DynamicNTK, LongRoPE
from mmrope.encodings.spec import RotarySpec
from mmrope.positions.rules import Pairing

Angles = Literal["exact", "hf"]
Backend = Literal["auto", "torch", "triton"]
PAIRINGS = get_args(Pairing)  # looked up here: torch.compile before 2.7 stops at get_args


class RotaryEmbedding(nn.Module):
    """cos and sin of the angles of a RotarySpec, for any position IDs.

    The module has no parameters and no buffers: whatever loads, casts, shards or materialises models finds nothing here to
    change. It computes on the device of the ids; float64 is never needed there.

    Args:
        spec: the frequencies and axes.
        angles: "exact" reduces position * inv_freq by whole turns in 64-bit integers, so that cos and sin are right to
            1e-6 at every position from -2^31 to 2^31, whole or fractional (fractions of an id count to 2^-32). Past the
            original length DynamicNTK's frequencies are float32 arithmetic on the device: right to two units in the last
            place, and the same for all tokens.
            "hf" is the plain float32 product of Hugging Face models, with their frequencies to the last bit, on the CPU (but
            for DynamicNTK past the original length); it is off by 2e-3 at position 1e5 and by 3e-2 at 1e6.

    Example:
        >>> import torch
        >>> from mmrope import RotaryEmbedding, RotarySpec
        >>> rope = RotaryEmbedding(RotarySpec.mrope(128, theta=1e6, sections=(16, 24, 24)))
        >>> q, k = torch.randn(1, 28, 5, 128), torch.randn(1, 4, 5, 128)  # [batch, heads, tokens, channels]
        >>> q, k = rope.rotate(q, k, torch.arange(5).expand(3, 1, 5))
        >>> tuple(q.shape), tuple(k.shape)
        ((1, 28, 5, 128), (1, 4, 5, 128))
    """

    def __init__(self, spec: RotarySpec, *, angles: Angles = "exact") -> None:
        super().__init__()
        if angles not in get_args(Angles):
            raise ValueError(f"angles must be one of {get_args(Angles)}, got {angles!r}")
        self.spec = spec
        self.angles: Angles = angles
        scaling, rest = spec.scaling, []
        inv_freq = self._spectrum(None)
        if isinstance(scaling, LongRoPE):
            longer = self._spectrum(scaling.original_max_position + 1)
            rest = [longer, *turns(longer)]
        elif isinstance(scaling, DynamicNTK):
            assert spec.spectra is not None
            dim = np.array([dim for _, dim in spec.spectra.of], dtype=np.float64)[spec.spectra.which]
            rest = [(2 * spec.spectra.index / (dim - 2)).astype(np.float32)]
        self._distance = len(inv_freq) // spec.blocks if spec.blocks else 0
        self._constants = Constants(spec.axis, inv_freq, *turns(inv_freq), *rest)

    def _spectrum(self, length: int | None) -> np.ndarray:
        """[P] float32, the frequencies for sequences of this length; None is the original one."""
        spec = self.spec
        if isinstance(spec.scaling, (DynamicNTK, LongRoPE)) and length is None:
            length = spec.scaling.original_max_position
        if self.angles == "exact" or spec.spectra is None:
            return spec.inv_freq if length is None else spec.at_length(length)
        return spec.spectra.frequencies(spec.scaling, length=length, powers=torch_powers)

    @property
    def inv_freq(self) -> np.ndarray:
        """[P] float32, the frequencies it rotates by (of scalings that depend on the length, up to the original one)."""
        return self._spectrum(None)

    def forward(self, position_ids: Tensor, *, length: int | Tensor | None = None, fold: bool = True) -> tuple[Tensor, Tensor]:
        """cos and sin of every pair's angle.

        Args:
            position_ids: [A, B, S] or packed [A, T], one row per axis of the spec, integers, float32 or float64.
            length: of scalings that depend on it (`spec.needs_length`), the length of the sequence: a number, a tensor of no
                dimensions, or one for each row [B] (packed: for each token [T]). It is never read from the ids, which would
                wait for the device; keys of a cache must be of the same.
            fold: multiply by `spec.attention_factor`.

        Returns:
            cos, sin: [B, S, P] or [T, P] float32; [B, S, K, P] or [T, K, P] of a spec whose KV heads differ.

        Raises:
            ValueError: ids of another shape, in half precision, or a length that is missing or not needed.

        Example:
            >>> import torch
            >>> from mmrope import RotaryEmbedding, RotarySpec
            >>> cos, sin = RotaryEmbedding(RotarySpec.rope(4, theta=100.0))(torch.arange(3)[None, None])  # [1, 3, 2]
            >>> [[round(x, 3) for x in token] for token in sin[0].tolist()]
            [[0.0, 0.0], [0.841, 0.1], [0.909, 0.199]]
        """
        self._check_ids(position_ids)
        axis, *constants = self._constants.beside(position_ids)
        inv_freq, turns, whole = self._at_length(length, position_ids, *constants)
        ids = self._by_pair(position_ids, axis)  # [B, S, P]
        angle = ids.to(torch.float32) * inv_freq if self.angles == "hf" else exact_angle(ids, turns, whole, inv_freq)
        cos, sin = angle.cos(), angle.sin()
        if fold and self.spec.attention_factor != 1:
            cos, sin = cos * self.spec.attention_factor, sin * self.spec.attention_factor
        if torch.compiler.is_compiling() and not _is_exporting():
            # a view that inductor makes tables for: it would compute them again for every head
            cos, sin = cos.as_strided(cos.size(), cos.stride()), sin.as_strided(sin.size(), sin.stride())
        return cos, sin

    def _by_pair(self, position_ids: Tensor, axis: Tensor) -> Tensor:
        """[B, S, P], or [B, S, K, P]: the ids that rotate each pair."""
        if len(self.spec.axes) == 1:
            ids = position_ids[0, ..., None]  # [B, S, 1], for all pairs
            return ids[..., None].expand(*ids.shape[:-1], len(axis), 1) if axis.ndim == 2 else ids  # [B, S, K, 1]
        # gathered along the last dimension, so that tables come out with their pairs side by side
        ids = position_ids.movedim(0, -1)[..., axis.flatten()]  # [B, S, P]
        return ids.unflatten(-1, axis.shape) if axis.ndim == 2 else ids  # [B, S, K, P]

    def _at_length(
        self, length: int | Tensor | None, position_ids: Tensor, inv_freq: Tensor, turns: Tensor, whole: Tensor, *rest: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """inv_freq and `turns` of sequences of this length: [P], or [B, 1, P] and [T, P] of a length for each."""
        scaling = self.spec.scaling
        if not self.spec.needs_length:
            if length is not None:
                raise ValueError(
                    f"{scaling or 'an unscaled embedding'} does not depend on the length: leave length={length} out"
                )
            return inv_freq, turns, whole
        if length is None:
            raise ValueError(f"{scaling} depends on the length of the sequence: pass length=, which is never read from the ids")
        if isinstance(length, float) or (isinstance(length, Tensor) and length.dtype not in INTEGERS):
            raise ValueError(f"length must be a whole number or a tensor of integers, got {length!r}")
        if not isinstance(length, Tensor):
            # filled on the device: a number that is copied there would wait for it
            length = torch.full((), length, dtype=torch.int64, device=position_ids.device)
        length = length.to(torch.int64)
        rows = position_ids.shape[1:2]
        if length.ndim and length.shape != rows and not (length.ndim == 1 and position_ids.ndim == 3 and rows == (1,)):
            raise ValueError(
                "length must be a number, a tensor of no dimensions, or one for each row [B] (packed: for each token [T]), got "
                f"{list(length.shape)} for position_ids {list(position_ids.shape)}"
            )
        # [B] -> [B, 1, 1]: the length of a row is that of all its tokens and pairs
        behind = position_ids.ndim - 1 - length.ndim + self.spec.axis.ndim
        length = length.reshape(*length.shape, *[1] * behind) if length.ndim else length
        assert isinstance(scaling, (DynamicNTK, LongRoPE))
        past = length > scaling.original_max_position
        if isinstance(scaling, LongRoPE):
            longer, longer_turns, longer_whole = (
                torch.where(past, b, a) for a, b in zip((inv_freq, turns, whole), rest, strict=True)
            )
            return longer, longer_turns, longer_whole
        # theta^-e * (1 + factor * (length - L) / L)^-e': of the difference, which is exact, as float32 has 24 bits
        excess = (length - scaling.original_max_position).clamp(min=0).to(torch.float32)
        growth = (excess * (scaling.factor / scaling.original_max_position)).log1p()
        inv_freq = torch.where(past, inv_freq * (-rest[0] * growth).exp(), inv_freq)
        return inv_freq, torch.where(past, turns_on_device(inv_freq), turns), whole

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
        """q and k rotated to their positions: `apply_rotary` with cos and sin of `position_ids`, or a kernel that makes both.

        Args:
            q, k: [B, N, S, D] and [B, K, S, D], or with heads=-2 [B, S, N, D] or packed [T, N, D]; of any strides.
            position_ids, length: as in `forward`; ids [A, 1, S] serve every row of the batch.
            heads: the dimension that holds the heads, -3 or -2.
            inplace: write into q and k.
            backend: "torch", the definition; "triton", one launch for q and k, on a GPU; "auto", what `backend_for(q)` says.

        Raises:
            ValueError: shapes that do not belong together, memory that cannot be written in place, a backend that is not there.

        Example:
            >>> import torch
            >>> from mmrope import RotaryEmbedding, RotarySpec
            >>> rope = RotaryEmbedding(RotarySpec.rope(64))
            >>> q, k = torch.randn(2, 1, 1, 1, 64, dtype=torch.float64)
            >>> (a, b), (c, d) = (rope.rotate(q, k, torch.tensor([[[n]]])) for n in (0, 1000))
            >>> torch.allclose((a * b).sum(), (c * d).sum(), atol=1e-4)  # scores depend on distances alone
            True
        """
        if self._backend(q, position_ids, backend) == "triton":
            rotated = self._by_kernel(q, k, position_ids, length, heads, inplace)
        else:
            cos, sin = self(position_ids, length=length)
            rotated = _rotate((q, k), cos, sin, self._distance, heads, inplace)
        q, k = rotated
        if self.spec.temperature is not None:
            scale = self.temperature(position_ids)[..., None]  # [B, S, 1]
            scale = scale.unsqueeze(heads)  # [B, 1, S, 1]
            q = q.mul_(scale) if inplace else (q * scale).to(q.dtype)
        return q, k

    def norm_rotate(
        self,
        q: Tensor,
        k: Tensor,
        q_weight: Tensor,
        k_weight: Tensor,
        position_ids: Tensor,
        *,
        eps: float = 1e-6,
        length: int | Tensor | None = None,
        heads: int = -3,
        backend: Backend = "auto",
    ) -> tuple[Tensor, Tensor]:
        """q and k normed over their channels and rotated: QK-RMSNorm (Qwen3, Qwen3-VL) and `rotate`, one launch of the kernel.

            x / sqrt(mean(x^2) + eps) * weight, all D channels of a head, then the rotation

        Everything is float32 up to the result, which has q's dtype; models that round in between differ by that rounding. Its
        backward is one launch, too, and gives the weights' gradients.

        Args:
            q_weight, k_weight: [D], of any floating dtype (models that learn an offset from one pass 1 + weight).
            eps: of the norm.
            q, k, position_ids, length, heads, backend: as in `rotate`.

        Raises:
            ValueError: as `rotate`, and weights of another shape.

        Example:
            >>> import torch
            >>> from mmrope import RotaryEmbedding, RotarySpec
            >>> rope = RotaryEmbedding(RotarySpec.mrope(128, theta=5e6, sections=(24, 20, 20), layout="interleaved"))
            >>> q, k = torch.randn(1, 32, 5, 128), torch.randn(1, 8, 5, 128)
            >>> q, k = rope.norm_rotate(q, k, torch.ones(128), torch.ones(128), torch.arange(5).expand(3, 1, 5))
            >>> bool((q.square().mean(dim=-1) - 1).abs().max() < 1e-3)  # normed, and rotated
            True
        """
        for name, weight, x in (("q_weight", q_weight, q), ("k_weight", k_weight, k)):
            if weight.shape != x.shape[-1:] or not weight.dtype.is_floating_point:
                raise ValueError(
                    f"{name} must be [{x.shape[-1]}] floating-point numbers, got {list(weight.shape)} {weight.dtype}"
                )
        if self._backend(q, position_ids, backend) == "triton" and self.spec.temperature is None:
            return self._by_kernel(q, k, position_ids, length, heads, inplace=False, norm=(q_weight, k_weight, eps))
        working = torch.float64 if q.dtype == torch.float64 else torch.float32
        normed_q, normed_k = (
            x.to(working) * (x.to(working).square().mean(dim=-1, keepdim=True) + eps).rsqrt() * weight.to(working)
            for x, weight in ((q, q_weight), (k, k_weight))
        )
        rotated = self.rotate(normed_q, normed_k, position_ids, length=length, heads=heads, backend=backend)
        return rotated[0].to(q.dtype), rotated[1].to(k.dtype)

    def shift(
        self,
        k: Tensor,
        delta: int | Tensor,
        *,
        length: int | Tensor | None = None,
        heads: int = -3,
        inplace: bool = False,
    ) -> Tensor:
        """Cached keys, which are rotated already, moved by `delta` ids: as if they had been rotated to their ids + delta.

        A second `rotate` would multiply them by `spec.attention_factor` again; this does not.

        Args:
            k: [B, K, S, D], or with heads=-2 [B, S, K, D] or packed [T, K, D].
            delta: one number for all axes and tokens (-512: 512 tokens before them were dropped), or as position_ids in
                `forward`.
            length: of scalings that depend on it, the one that the keys were rotated with: a cache holds keys of one length.
            heads, inplace: as in `rotate`.

        Raises:
            ValueError: as `rotate`.

        Example:
            >>> import torch
            >>> from mmrope import RotaryEmbedding, RotarySpec
            >>> rope, k = RotaryEmbedding(RotarySpec.rope(64)), torch.randn(1, 8, 4, 64)
            >>> _, cached = rope.rotate(k, k, torch.arange(100, 104)[None, None])
            >>> _, wanted = rope.rotate(k, k, torch.arange(60, 64)[None, None])
            >>> torch.allclose(rope.shift(cached, -40), wanted, atol=1e-5)
            True
        """
        if not isinstance(delta, Tensor):
            if not isinstance(delta, int):
                raise ValueError(f"delta must be a whole number, or a tensor of the shape of position_ids, got {delta!r}")
            tokens = [n for i, n in enumerate(k.shape[:-1]) if i != k.ndim + heads]  # [B, S], or [T]
            delta = torch.full((), delta, dtype=torch.int64, device=k.device).expand(len(self.spec.axes), *tokens)
        cos, sin = self(delta, length=length, fold=False)
        return _rotate((k,), cos, sin, self._distance, heads, inplace)[0]

    def temperature(self, position_ids: Tensor) -> Tensor:
        """[B, S] or [T] float32: what `rotate` multiplies the queries at these positions by (`spec.temperature`)."""
        self._check_ids(position_ids)
        stated = self.spec.temperature
        if stated is None:
            raise ValueError(f"{self.spec!r} has no temperature: RotarySpec(..., temperature=Temperature(...))")
        ids = position_ids[0] if position_ids.is_floating_point() else position_ids[0].to(torch.int64)
        steps = ((ids + stated.offset) // stated.floor).clamp(min=0)  # in front of position 0 as there
        return steps.to(torch.float32).log1p() * stated.scale + 1

    def backend_for(self, q: Tensor, backend: Backend = "auto") -> Literal["torch", "triton"]:
        """What `rotate` takes: "auto" is the kernel for half, bfloat16 and float32 tensors on a GPU, wherever triton is there.

        Raises:
            ValueError: a backend that is chosen and cannot be had.

        Example:
            >>> import torch
            >>> from mmrope import RotaryEmbedding, RotarySpec
            >>> RotaryEmbedding(RotarySpec.rope(64)).backend_for(torch.zeros(1, 8, 5, 64))  # on a CPU
            'torch'
        """
        if backend == "torch" or (backend == "auto" and not q.is_cuda):
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
        elif self.spec.axis.ndim != 1:
            missing = "it has no axes by KV head"
        elif forward_ad._current_level >= 0 or transformed():
            missing = "it has no forward-mode derivative and no transforms of torch.func"
        if backend == "triton" and missing:
            raise ValueError(f"backend='triton' cannot be had: {missing}")
        return "triton" if missing is None else "torch"

    def _backend(self, q: Tensor, position_ids: Tensor, backend: Backend) -> Literal["torch", "triton"]:
        """`backend_for`; the kernel gives positions no gradient, so that those which need one take the definition."""
        if position_ids.requires_grad and torch.is_grad_enabled():
            if backend == "triton":
                raise ValueError("backend='triton' cannot be had: it gives position_ids no gradient, and they require one")
            return "torch"
        return self.backend_for(q, backend)

    def _by_kernel(
        self,
        q: Tensor,
        k: Tensor,
        position_ids: Tensor,
        length: int | Tensor | None,
        heads: int,
        inplace: bool,
        norm: tuple[Tensor, Tensor, float] | None = None,
    ) -> tuple[Tensor, Tensor]:
        from mmrope.encodings import kernel

        if self.angles == "exact" and not position_ids.dtype.is_floating_point and not self.spec.needs_length:
            self._check_ids(position_ids)
            axis, _, turns, *_ = self._constants.beside(position_ids)
            places: torch.Size = position_ids.shape[1:]
            angles: tuple[Any, ...] = (position_ids, axis, turns, self.spec.attention_factor)
            rotate, norm_rotate = kernel.rotate_by_ids, kernel.norm_rotate_by_ids
        else:
            angles = self(position_ids, length=length)
            places = angles[0].shape[:-1]
            rotate, norm_rotate = kernel.rotate_by_tables, kernel.norm_rotate_by_tables
        _check_kernel(q, k, places, 2 * len(self.spec.inv_freq), heads)
        if inplace:
            check_writable(q, k)
        if norm is None:
            return rotate(q, k, *angles, heads=heads, distance=self._distance, inplace=inplace)
        q_weight, k_weight, eps = norm
        return norm_rotate(q, k, q_weight, k_weight, *angles, heads=heads, distance=self._distance, eps=eps)

    def _check_ids(self, position_ids: Tensor) -> None:
        axes, shape = self.spec.axes, position_ids.shape
        check_ids_dtype(position_ids, "position_ids")
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
    blocks: int | None = None,
    heads: int = -3,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Rotates queries and keys, which may have different numbers of heads, by the same tables; see `rotate`.

    Example:
        >>> import torch
        >>> from mmrope import RotaryEmbedding, RotarySpec, apply_rotary
        >>> cos, sin = RotaryEmbedding(RotarySpec.rope(64))(torch.arange(5)[None, None])
        >>> q, k = apply_rotary(torch.randn(1, 8, 5, 64), torch.randn(1, 2, 5, 64), cos, sin)
        >>> tuple(q.shape), tuple(k.shape)
        ((1, 8, 5, 64), (1, 2, 5, 64))
    """
    q, k = _rotate((q, k), cos, sin, _distance(pairing, cos.shape[-1], blocks), heads, inplace)
    return q, k


def rotate(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    pairing: Pairing = "half",
    blocks: int | None = None,
    heads: int = -3,
    inplace: bool = False,
) -> Tensor:
    """Rotates the first 2 P channels of x by the angles of cos and sin; the rest pass through.

    The arithmetic is float32 (float64 for float64 x), the result has x's dtype.

    Args:
        x: [B, N, S, D], or [B, S, N, D] and packed [T, N, D] with heads=-2; of any strides.
        cos, sin: [B, S, P] or [T, P], as RotaryEmbedding returns them, [1, S, P] for all rows of a batch; with heads
            [B, S, K, P] or [T, K, P], where K divides N: each is for N / K heads in turn.
        pairing: which channels form a pair: "half" p and p + P, "adjacent" 2 p and 2 p + 1, "block_half" the halves of each of
            `blocks` equal blocks of channels.
        blocks: of "block_half", their number: `spec.blocks`.
        heads: the dimension of x that holds the heads, -3 or -2.
        inplace: write into x.

    Raises:
        ValueError: tables that are not for x's tokens, an unknown pairing, memory that cannot be written in place.

    Example:
        >>> import torch
        >>> from mmrope import RotaryEmbedding, RotarySpec
        >>> from mmrope.encodings import rotate
        >>> cos, sin = RotaryEmbedding(RotarySpec.rope(2))(torch.tensor([[[0, 1]]]))
        >>> x = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])  # two tokens of two channels
        >>> [[round(value, 2) for value in token] for token in rotate(x, cos, sin)[0, 0].tolist()]
        [[1.0, 0.0], [0.54, 0.84]]
    """
    return _rotate((x,), cos, sin, _distance(pairing, cos.shape[-1], blocks), heads, inplace)[0]


def _distance(pairing: Pairing, pairs: int, blocks: int | None) -> int:
    """How many channels lie between the two of a pair: pairs lie in blocks of twice as many."""
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing must be one of {PAIRINGS}, got {pairing!r}")
    if pairing != "block_half":
        return 1 if pairing == "adjacent" else pairs
    if not blocks or pairs % blocks:
        raise ValueError(
            f"pairing 'block_half' of {pairs} pairs needs blocks=, the number of equal blocks of channels (spec.blocks), "
            f"got {blocks}"
        )
    return pairs // blocks


def _rotate(
    tensors: tuple[Tensor, ...], cos: Tensor, sin: Tensor, distance: int, heads: int, inplace: bool
) -> tuple[Tensor, ...]:
    for x in tensors:
        _check(x, cos, sin, heads)  # all, before one is written to
    if inplace:
        check_writable(*tensors)
    if not cos.shape[-1]:
        return tensors if inplace else tuple(x.clone() for x in tensors)
    if cos.ndim == tensors[0].ndim:  # tables by KV head
        return tuple(
            _rotate_alike((x,), _repeated(cos, x, heads), _repeated(sin, x, heads), distance, heads, inplace)[0]
            for x in tensors
        )
    return _rotate_alike(tensors, cos.unsqueeze(heads), sin.unsqueeze(heads), distance, heads, inplace)


def _rotate_alike(
    tensors: tuple[Tensor, ...], cos: Tensor, sin: Tensor, distance: int, heads: int, inplace: bool
) -> tuple[Tensor, ...]:
    """By tables [B, 1, S, P] (heads=-3) or [B, S, 1, P] that broadcast to all of the tensors."""
    plain = _is_plain(tensors, cos, sin)
    if plain and any(x.numel() > cpu.BLOCK and _has_blocks(x) for x in tensors):
        if not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)):
            return cpu.rotate_blocks(tensors, cos, sin, distance, heads, inplace)
        # in place one by one: autograd lets a function write to a view only if it returns nothing else
        groups = [(x,) for x in tensors] if inplace else [tensors]
        return tuple(y for group in groups for y in cpu.RotateBlocks.apply(distance, heads, inplace, *group, cos, sin))
    wide_cos, wide_sin = cpu.wide_tables(cos, sin, distance)
    rotated = [cpu.rotate_whole(x, wide_cos, wide_sin, distance, plain) for x in tensors]
    return tuple([x.copy_(y) for x, y in zip(tensors, rotated, strict=True)] if inplace else rotated)


def _is_plain(tensors: tuple[Tensor, ...], cos: Tensor, sin: Tensor) -> bool:
    """Whether nothing traces or transforms the operations, or differentiates the tables: that takes operations it knows."""
    if torch.compiler.is_compiling() or cos.requires_grad or sin.requires_grad:
        return False
    for x in (*tensors, cos, sin):
        if type(x) is not Tensor and type(x) is not nn.Parameter:
            return False
    return not (forward_ad._current_level >= 0 or transformed())  # forward-mode differentiation; torch.func


def _has_blocks(x: Tensor) -> bool:
    """Large tensors on a CPU are rotated in blocks: their temporaries would cost more than the arithmetic."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _repeated(table: Tensor, x: Tensor, heads: int) -> Tensor:
    """cos or sin of each KV head, for all heads of x: [B, S, K, P] -> [B, N, S, P], or [B, S, N, P]."""
    return table.movedim(-2, heads).repeat_interleave(x.shape[heads] // table.shape[-2], dim=heads)


def _check(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> None:
    shape, table = x.shape, cos.shape
    if heads == -3 and len(shape) == 4 and len(table) == 3 and x.is_floating_point() and table == sin.shape:
        b, tokens, pairs = table
        if tokens == shape[2] and (b == shape[0] or b == 1) and 2 * pairs <= shape[3]:
            return  # the usual case, at once
    if not x.dtype.is_floating_point:
        raise ValueError(f"what is rotated must be floating-point numbers, got {x.dtype}")
    if heads not in (-3, -2) or len(shape) not in (3, 4) or (heads == -3 and len(shape) == 3):
        raise ValueError(
            f"heads must be -3 ([B, N, S, D]) or -2 ([B, S, N, D], [T, N, D]), got {heads} for what has the shape {list(shape)}"
        )
    if len(table) == len(shape) and table == sin.shape:
        if shape[heads] % table[-2]:
            raise ValueError(f"cos and sin are for {table[-2]} KV heads, but x {list(shape)} has {shape[heads]} heads")
        table = (*table[:-2], table[-1])
    if cos.shape != sin.shape or len(table) != len(shape) - 1 or 2 * table[-1] > shape[-1]:
        raise ValueError(
            f"cos and sin must be [B, S, P] (or [T, P]) with 2 P <= {shape[-1]} for x {list(shape)}, "
            f"got {list(cos.shape)} and {list(sin.shape)}"
        )
    _check_tokens(shape, table[:-1], heads, "cos and sin are")


def _check_tokens(shape: torch.Size, places: tuple[int, ...], heads: int, what: str) -> None:
    """That ids or tables of so many rows and tokens are those of x; one row serves all."""
    tokens = shape[-2] if heads == -3 else shape[-3]
    if places[-1] == tokens and (len(shape) == 3 or places[0] in (1, shape[0])):
        return
    mine = [n for i, n in enumerate(shape[:-1]) if i != len(shape) + heads]  # x without heads and channels
    raise ValueError(
        f"{what} for {list(places)} tokens, but x {list(shape)} with heads={heads} has {mine}; "
        "heads=-3 is [B, N, S, D], heads=-2 is [B, S, N, D] or [T, N, D]"
    )


def _check_kernel(q: Tensor, k: Tensor, places: tuple[int, ...], channels: int, heads: int) -> None:
    """What the kernel trusts."""
    if q.shape[-1] != k.shape[-1] or q.ndim != k.ndim or channels > q.shape[-1] or q.shape[:-3] != k.shape[:-3]:
        raise ValueError(
            f"q and k must be of one batch and of equal head_dim, of {channels} channels at least, got {list(q.shape)}, "
            f"{list(k.shape)}"
        )
    if q.dtype != k.dtype or q.device != k.device or not q.dtype.is_floating_point or q.dtype == torch.float64:
        raise ValueError(
            f"q and k must be of one floating type of 32 bits at most, and on one device, got {q.dtype} on {q.device} and "
            f"{k.dtype} on {k.device}"
        )
    if heads not in (-3, -2) or q.ndim - 1 != len(places) + 1 or (heads == -3 and q.ndim == 3):
        raise ValueError(
            f"q must be [B, N, S, D] (heads=-3), [B, S, N, D] or [T, N, D] (heads=-2), got {list(q.shape)} with heads={heads} "
            f"for ids of {list(places)} tokens"
        )
    for x in (q, k):
        _check_tokens(x.shape, places, heads, "position_ids are")


def _is_exporting() -> bool:
    return hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting()
