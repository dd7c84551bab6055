"""Which tokens a rank holds: index arithmetic for context and sequence parallelism, without process groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from mmrope.positions.segments import whole

Scheme = Literal["contiguous", "zigzag", "zigzag_per_sequence", "ulysses"]


def shard_index(cu_seqlens: int | Sequence[int] | np.ndarray, *, size: int, rank: int, scheme: Scheme) -> np.ndarray:
    """The tokens that a rank holds: one index for ids (`ids[..., index]`), tokens, labels and masks alike.

    Position IDs are computed for whole sequences first and sharded then, by this index. All ranks hold equally many tokens;
    together they hold each once, so `np.argsort(np.concatenate(indices))` puts what was gathered by rank back in order.

    Args:
        cu_seqlens: the tokens, or running totals of the tokens of packed sequences: `packed.cu_seqlens_padded`. Only
            "zigzag_per_sequence" looks at more than the last.
        size: ranks.
        rank: this one, from 0.
        scheme: "contiguous", the rank-th of `size` equal parts; "ulysses", the same, for tokens outside attention, where
            all-to-all trades tokens for heads; "zigzag", of 2 * size equal parts the rank-th from the front and the rank-th
            from the back, which gives causal ring attention equal work on all ranks (Megatron-LM's
            get_batch_on_this_cp_rank); "zigzag_per_sequence", the same in each packed sequence (transformer-engine's
            thd_get_partitioned_indices).

    Returns:
        [T / size] int64.

    Raises:
        ValueError: tokens that do not divide into equal parts (pack with multiple_of=2 * size), a rank that is not there,
            totals that fall.

    Example:
        >>> from mmrope.positions import shard_index
        >>> shard_index(8, size=2, rank=0, scheme="zigzag").tolist()
        [0, 1, 6, 7]
        >>> shard_index(8, size=2, rank=1, scheme="zigzag").tolist()
        [2, 3, 4, 5]
    """
    if scheme not in get_args(Scheme):
        raise ValueError(f"scheme must be {', '.join(map(repr, get_args(Scheme)))}, got {scheme!r}")
    size, rank = whole(size, "size"), whole(rank, "rank")
    if not 0 <= rank < size:
        raise ValueError(f"rank must be from 0 to size - 1, got rank {rank} of size {size}")
    totals = running_totals(cu_seqlens)
    if scheme in ("contiguous", "ulysses"):
        part = _part(int(totals[-1]), size, "the tokens", scheme)
        return np.arange(rank * part, (rank + 1) * part)
    if scheme == "zigzag":
        totals = totals[[0, -1]]
    parts = [
        _part(length, 2 * size, f"sequence {b}" if scheme == "zigzag_per_sequence" else "the tokens", scheme)
        for b, length in enumerate(np.diff(totals).tolist())
    ]
    front = [start + rank * part for start, part in zip(totals[:-1].tolist(), parts, strict=True)]
    back = [start + (2 * size - 1 - rank) * part for start, part in zip(totals[:-1].tolist(), parts, strict=True)]
    pieces = [np.arange(a, a + part) for pair, part in zip(zip(front, back, strict=True), parts, strict=True) for a in pair]
    return np.concatenate(pieces) if pieces else np.arange(0)


def running_totals(cu_seqlens: Any) -> np.ndarray:
    """[B + 1] int64, where sequences begin, and the end; of a number, of one sequence of so many tokens."""
    totals = np.asarray(cu_seqlens)
    if totals.dtype.kind not in "iu" or totals.ndim > 1 or not totals.size:
        raise ValueError(
            f"cu_seqlens must be a number of tokens, or running totals [B + 1], got {totals.dtype} {list(totals.shape)}"
        )
    totals = np.array([0, totals]) if totals.ndim == 0 else totals.astype(np.int64)
    if totals[0] != 0 or (np.diff(totals) < 0).any():
        raise ValueError(f"cu_seqlens must begin with 0 and never fall, got {totals.tolist()}")
    return totals


def _part(tokens: int, parts: int, what: str, scheme: str) -> int:
    if tokens % parts:
        raise ValueError(
            f"{scheme!r} cuts {what} into {parts} equal parts, but {tokens} tokens are no multiple of {parts}: pack with "
            f"multiple_of={parts}"
        )
    return tokens // parts
