"""Packed batches through attention: what SDPA, FlexAttention and varlen kernels each want to know, from one pack.

A token attends to those of its own sequence up to itself. That is read of the pack's boundaries, never of position ids.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from mmrope.positions.sequences import Packed

Interface = Literal["torch", "flash_attn", "transformers"]
_VARLEN: dict[Interface, tuple[str, str, str, str]] = {
    "torch": ("cu_seq_q", "cu_seq_k", "max_q", "max_k"),
    "flash_attn": ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"),
    "transformers": ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),
}

_CAUSAL: dict[Interface, dict[str, Any]] = {
    "torch": {"window_size": (-1, 0)},
    "flash_attn": {"causal": True},
    "transformers": {},  # its models say so themselves
}


def sdpa_mask(packed: Packed, *, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
    """[1, 1, T, T], which keys (dimension 3) a query (2) attends to: `attn_mask` of `scaled_dot_product_attention`, and the
    four-dimensional `attention_mask` of transformers' models.

    It takes T^2 bytes or more: for long packs take one of the others.

    Args:
        dtype: by default bool, True where it attends, which SDPA takes. Of a floating-point type what is added to scores, 0 or
            the type's least number: models of transformers whose attention is "eager" add the mask, and read True as 1.

    Example:
        >>> from mmrope import Segment, pack
        >>> from mmrope.adapters.attention import sdpa_mask
        >>> packed = pack([[Segment.text(1)], [Segment.text(2)]], "qwen2_vl")
        >>> sdpa_mask(packed)[0, 0].int().tolist()
        [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    """
    sequence, order = _tensors(packed, device)
    seen = ((sequence[:, None] == sequence) & (order[:, None] >= order))[None, None]
    if dtype is None:
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def flex_block_mask(packed: Packed, *, device: Any = None) -> BlockMask:
    """The block mask of `flex_attention(q, k, v, block_mask=...)`, with q, k, v [1, heads, T, channels]. Blocks between
    sequences are left out, not computed and masked.

    Example:
        >>> from mmrope import Segment, pack
        >>> from mmrope.adapters.attention import flex_block_mask
        >>> packed = pack([[Segment.text(200)], [Segment.text(300)]], "qwen2_vl")
        >>> flex_block_mask(packed).shape
        (1, 1, 500, 500)
    """
    sequence, order = _tensors(packed, device)

    def same_and_before(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (sequence[q] == sequence[k]) & (order[q] >= order[k])

    tokens = len(sequence)
    if not tokens:
        raise ValueError("the pack has no tokens: there is nothing to attend to")
    return create_block_mask(same_and_before, None, None, tokens, tokens, device=str(sequence.device))


def varlen(packed: Packed, interface: Interface, *, device: Any = None) -> dict[str, Any]:
    """A pack as keyword arguments of varlen attention, for q, k, v [T, heads, channels].

    Args:
        interface: "torch", `torch.nn.attention.varlen.varlen_attn` (torch 2.15); "flash_attn", `flash_attn_varlen_func`;
            "transformers", for the call of a model whose attention is "flash_attention_2", which then does not look for
            boundaries in position ids.

    Returns:
        cu_seqlens of queries and of keys, [B + 1] int32 on the device, and the longest sequence, an int; and for the first two,
        which are not causal by themselves, that they be: `window_size=(-1, 0)`, `causal=True`. A sequence that was filled up
        has the length that it has in the pack.

    Raises:
        ValueError: an unknown interface.

    Example:
        >>> from mmrope import Segment, pack
        >>> from mmrope.adapters.attention import varlen
        >>> packed = pack([[Segment.text(2)], [Segment.text(3)]], "qwen2_vl")
        >>> options = varlen(packed, "flash_attn")
        >>> options["cu_seqlens_q"].tolist(), options["max_seqlen_q"], options["causal"]
        ([0, 2, 5], 3, True)
    """
    if interface not in _VARLEN:
        raise ValueError(f"interface must be one of {tuple(_VARLEN)}, got {interface!r}")
    boundaries = torch.tensor(packed.cu_seqlens_padded, dtype=torch.int32, device=device)
    made = dict(zip(_VARLEN[interface], (boundaries, boundaries, packed.max_seqlen, packed.max_seqlen), strict=True))
    return {**made, **_CAUSAL[interface]}


def _tensors(packed: Packed, device: Any) -> tuple[Tensor, Tensor]:
    """[T] the sequence of each token, and its place in it."""
    return torch.tensor(packed.sequence_index, device=device), torch.tensor(packed.text_ids, device=device)
