"""Rows put together: padded to one length, or packed one after the other; and tokens taken out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmrope.positions.build import LARGEST, Positions, Rows, batch_of, check_fits, output, shared_ramp, write_row
from mmrope.positions.families import family as find_family
from mmrope.positions.plan import plan
from mmrope.positions.rules import Family
from mmrope.positions.segments import PAD, Row, whole


def collate(rows: Rows, *, pad_side: Literal["left", "right"] = "right", multiple_of: int = 1) -> list[Row]:
    """The rows at one length, with padding: a batch for `position_ids(rows, family)`, which gives [A, B, S].

    Padding carries `family.pad_value`: 0, as in transformers 5. Who needs another writes it by the mask (transformers 4 has 1),
    `positions.ids[:, ~positions.mask] = 1`; models do not read it.

    Args:
        rows: a Row, a list of Segments, or a list of these. Padding that they have stays where it is.
        pad_side: where padding goes, "right" for training, "left" for generation.
        multiple_of: the length is made a multiple of this.

    Raises:
        ValueError: an unknown side, a multiple below 1.

    Example:
        >>> from mmrope import Segment, collate, position_ids
        >>> rows = collate([[Segment.text(2)], [Segment.text(1), Segment.image(h=1, w=3)]], pad_side="left")
        >>> position_ids(rows, "qwen2_vl").ids[0].tolist()  # t of both rows
        [[0, 0, 0, 1], [0, 1, 1, 1]]
    """
    batch = batch_of(rows)
    if pad_side not in ("left", "right"):
        raise ValueError(f"pad_side must be 'left' or 'right', got {pad_side!r}")
    # all rows at once: a pad of 0 tokens goes into those that have the length, too
    joined = Row.join(batch)
    cuts = np.cumsum([0, *(len(row) for row in batch)])
    ends = np.concatenate([[0], joined.lengths.cumsum()])[cuts]
    lengths = np.diff(ends)
    pads = np.ones((len(batch), 3), dtype=np.int64)  # token grids (1, 1, n)
    pads[:, 2] = _up(int(lengths.max()), _multiple(multiple_of)) - lengths
    left = pad_side == "left"
    at = cuts[:-1] if left else cuts[1:]
    kind = np.insert(joined.kind, at, PAD)
    grid = np.insert(joined.grid, at, pads, axis=0)
    seconds = np.insert(joined.seconds, at, np.nan)
    return [
        Row.of_columns(kind[a:b], grid[a:b], seconds[a:b], tuple((i + left, segment) for i, segment in row.special))
        for row, (a, b) in zip(batch, itertools.pairwise((cuts + np.arange(len(cuts))).tolist()), strict=True)
    ]


@dataclass(frozen=True, eq=False, repr=False)
class Packed:
    """Sequences one after the other, without padding between their tokens: position IDs, and where each sequence is.

    Boundaries are stated, and never to be found in the ids: those of media come back to smaller numbers within a sequence.

    Example:
        >>> from mmrope import Segment, pack
        >>> packed = pack([[Segment.text(3)], [Segment.text(1), Segment.image(h=2, w=2)]], "qwen2_vl")
        >>> packed.ids[0].tolist(), packed.text_ids.tolist()
        ([0, 1, 2, 0, 1, 1, 1, 1], [0, 1, 2, 0, 1, 2, 3, 4])
        >>> packed.cu_seqlens.tolist(), packed.max_seqlen
        ([0, 3, 8], 5)
    """

    ids: np.ndarray
    """[A, T], one row of ids per axis of the family."""
    cu_seqlens: np.ndarray
    """[B + 1] int32, running totals of the sequences' real tokens: what varlen attention takes."""
    cu_seqlens_padded: np.ndarray
    """[B + 1] int32, where each sequence begins in the pack, and the end: the same, unless sequences are filled up to a
    multiple."""
    next: np.ndarray
    """[B] the id that text after each sequence takes."""
    index: np.ndarray
    """[T] int64, the token that each slot holds, counted through all tokens of the rows; -1 where a sequence is filled up."""
    row_lengths: tuple[int, ...]
    """[B] tokens of each row, padding included: what `index` counts through."""
    family: Family

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest sequence, with what it is filled up by."""
        return int(np.diff(self.cu_seqlens_padded).max(initial=0))

    @property
    def mask(self) -> np.ndarray:
        """[T] bool, True at real tokens."""
        return self.index >= 0

    @property
    def text_ids(self) -> np.ndarray:
        """[T] int64, the place of each token in its sequence: the order of causal attention. It goes on through what a sequence
        is filled up by, so that who looks for boundaries in it (transformers does) finds none there."""
        counted, places = np.arange(self.max_seqlen), np.empty(len(self.index), dtype=np.int64)
        for start, end in itertools.pairwise(self.cu_seqlens_padded.tolist()):
            places[start:end] = counted[: end - start]
        return places

    @property
    def sequence_index(self) -> np.ndarray:
        """[T] int32, the sequence of each token: tokens attend to those of equal number. It goes on through what a sequence is
        filled up by."""
        return np.repeat(np.arange(len(self.next), dtype=np.int32), np.diff(self.cu_seqlens_padded))

    def take(self, values: Any, fill: Any) -> np.ndarray:
        """Any value of each token (its id, its label) in the order of the pack: [T, ...].

        Args:
            values: [B, S, ...], or for each row [n, ...], of the rows that were packed, padding included.
            fill: what fills sequences up.

        Example:
            >>> from mmrope import Segment, pack
            >>> packed = pack([[Segment.text(2), Segment.pad(1)], [Segment.text(3)]], "qwen2_vl", multiple_of=4)
            >>> packed.take([[11, 12, 0], [21, 22, 23]], fill=-100).tolist()
            [11, 12, -100, -100, 21, 22, 23, -100]
        """
        parts = [np.asarray(part) for part in values]
        lengths = [len(part) for part in parts]
        if lengths != list(self.row_lengths):
            raise ValueError(
                f"there are values for rows of {lengths} tokens, but the rows that were packed have {list(self.row_lengths)}"
            )
        flat = np.concatenate(parts)
        taken = flat[self.index] if len(flat) else np.full((len(self.index), *flat.shape[1:]), fill, dtype=flat.dtype)
        taken[~self.mask] = fill
        return taken

    def __repr__(self) -> str:
        axes, tokens = self.ids.shape
        return (
            f"Packed({self.family}: {axes} axes {self.family.axes}, {len(self.next)} sequences, {tokens} tokens, "
            f"{self.ids.dtype}, cu_seqlens {self.cu_seqlens.tolist()})"
        )


def pack(rows: Rows, family: Family | str, *, multiple_of: int = 1, dtype: Any = None) -> Packed:
    """The rows one after the other in a single table, each with the ids that it has alone.

    Args:
        rows: a Row, a list of Segments, or a list of these, of any lengths. Padding in them is left out.
        family: a Family, or its name.
        multiple_of: each sequence is filled up to a multiple of this, as context parallelism needs (twice the number of
            ranks). These slots carry `family.pad_value`.
        dtype: int64 (default) or int32; float32 (default) or float64 for families whose ids are fractional.

    Raises:
        ValueError: rows that the family cannot place, a multiple below 1, ids that do not fit the dtype.

    Example:
        >>> from mmrope import Segment, pack
        >>> packed = pack([[Segment.text(3)], [Segment.text(2), Segment.image(h=1, w=2)]], "qwen2_vl")
        >>> packed.ids.tolist()
        [[0, 1, 2, 0, 1, 2, 2], [0, 1, 2, 0, 1, 2, 2], [0, 1, 2, 0, 1, 2, 3]]
        >>> packed.cu_seqlens.tolist()
        [0, 3, 7]
    """
    family = find_family(family)
    batch = batch_of(rows)
    multiple = _multiple(multiple_of)
    joined = Row.join(batch)
    is_real = joined.kind != PAD
    real = batch if is_real.all() else [row.only(np.flatnonzero(row.kind != PAD)) for row in batch]
    p = plan(real, family)
    padded = [_up(length, multiple) for length in p.lengths]
    starts = _totals(padded)
    ids = output(None, dtype, (len(family.axes), int(starts[-1])), family)
    if ids.dtype in LARGEST:
        check_fits(p.bounds(), ids.dtype)
    ramp, none = shared_ramp(ids, len(real), max(p.lengths)), np.zeros(0, dtype=bool)
    for b, (start, length, end) in enumerate(zip(starts[:-1].tolist(), p.lengths, starts[1:].tolist(), strict=True)):
        write_row(ids[:, start : start + length], none, p, b, 0, length, ramp)  # without padding there is no mask to write
        ids[:, start + length : end] = family.pad_value
    tokens = joined.lengths
    row_lengths = tuple(p.lengths if real is batch else (row.length for row in batch))
    index = _index(is_real, tokens, p.lengths, padded)
    following = np.array(p.next, dtype=family.dtype)
    return Packed(ids, _totals(p.lengths), starts, following, index, row_lengths, family)


def keep(positions: Positions, mask: Any) -> Packed:
    """The tokens that remain when others are pruned (of videos, say), with the ids that they had.

    A token that remains stays where it was, and text goes on at `next`, as if nothing were gone. `text_ids` counts the tokens
    that remain: the place in a cache and the order of causal attention. So decoding step k has the ids `next + k` and the place
    `n + k`, where n is how many remain.

    Args:
        positions: what `position_ids` returned.
        mask: [B, S] bool, the tokens to keep. Padding goes in any case.

    Raises:
        ValueError: a mask of another shape or kind, or a slice of the rows: what was kept before it is not known. Prune whole
            rows, and slice what remains.

    Example:
        >>> from mmrope import Segment, position_ids
        >>> from mmrope.positions import keep
        >>> positions = position_ids([Segment.text(1), Segment.image(h=2, w=2), Segment.text(1)], "qwen2_vl")
        >>> kept = keep(positions, [[True, True, False, False, True, True]])
        >>> kept.ids.tolist(), kept.text_ids.tolist(), kept.next.tolist()
        ([[0, 1, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3]], [0, 1, 2, 3], [4])
    """
    if positions.start:
        raise ValueError(
            f"these positions are a slice from token {positions.start} on, and what was kept before is not known: prune whole "
            "rows, then slice what remains"
        )
    wanted = np.asarray(mask)
    if wanted.shape != positions.mask.shape or wanted.dtype != np.bool_:
        raise ValueError(
            f"mask must be bool {list(positions.mask.shape)} (rows, tokens), True at what is kept, got {wanted.dtype} "
            f"{list(wanted.shape)}"
        )
    wanted = wanted & positions.mask
    totals = _totals(wanted.sum(axis=1).tolist())
    index = np.flatnonzero(wanted)
    ids = positions.ids.reshape(len(positions.ids), -1).take(index, axis=1)  # [A, T]
    lengths = (wanted.shape[1],) * len(wanted)
    return Packed(ids, totals, totals, positions.next, index, lengths, positions.family)


def _index(is_real: np.ndarray, tokens: np.ndarray, lengths: Sequence[int], padded: Sequence[int]) -> np.ndarray:
    """[T] the tokens that a pack holds of segments of so many tokens, real or padding; -1 where sequences are filled up."""
    taken = np.arange(sum(lengths)) if is_real.all() else np.flatnonzero(np.repeat(is_real, tokens))
    if sum(padded) == len(taken):
        return taken
    index = np.full(sum(padded), -1)
    in_turns = [n for length, whole in zip(lengths, padded, strict=True) for n in (length, whole - length)]
    index[np.repeat(np.tile([True, False], len(lengths)), in_turns)] = taken
    return index


def _totals(lengths: Sequence[int]) -> np.ndarray:
    """[B + 1] int32 running totals, from 0."""
    totals = list(itertools.accumulate(lengths, initial=0))
    if totals[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"{totals[-1]:,} tokens in one pack are more than cu_seqlens (int32) can say; pack fewer rows")
    return np.array(totals, dtype=np.int32)


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _multiple(value: Any) -> int:
    multiple = whole(value, "multiple_of")
    if multiple < 1:
        raise ValueError(f"multiple_of must be at least 1, got {multiple}")
    return multiple
