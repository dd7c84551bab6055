"""What the model reads: a Processor's output."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from mmrope.positions.sequences import running_totals
from mmrope.records import shown
from mmrope.vlm.cache import KVCache


class _Needed(TypedDict):
    input_ids: Tensor
    """[B, S]"""
    position_ids: Tensor
    """[3, B, S]. There is no default: a model that invents positions is wrong without a word."""


class Inputs(_Needed, total=False):
    """A Processor's output, B rows of S tokens. Pixels need their grids and `mm_token_type_ids`."""

    attention_mask: Tensor
    """[B, T], nonzero at real tokens; T = S plus what a cache holds."""
    mm_token_type_ids: Tensor
    """[B, S], 1 at image tokens, 2 at video tokens."""
    pixel_values: Tensor
    """[patches, patch_dim]"""
    image_grid_thw: Tensor
    """[images, 3], in patches."""
    pixel_values_videos: Tensor
    """[patches, patch_dim]"""
    video_grid_thw: Tensor
    """[videos, 3], in patches."""
    cu_seqlens: Tensor
    """[n + 1], of a pack, which is one row of n sequences: where each begins, and the end. It has no attention_mask."""
    next_position: Tensor
    """[B], where following text starts; for `generate`."""
    second_per_grid_ts: Tensor
    """[videos]; in the ids already."""
    video_timestamps: list[Tensor]
    """Of each video, seconds of its sampled frames; in the ids already."""


_TENSORS = tuple(key for key in Inputs.__annotations__ if key not in ("second_per_grid_ts", "video_timestamps", "cu_seqlens"))
"""What the model computes with."""


def check_inputs(
    inputs: Mapping[str, Any],
    *,
    cache: object = None,
    needed: Sequence[str] = ("input_ids", "position_ids"),
    options: Collection[str] = (),
) -> None:
    """That these are a Processor's output, where `options` are known, too, and that a cache is one.

    Raises:
        ValueError: a key that is missing or unknown, is no tensor, or is not of the same rows and tokens as the others.
    """
    if cache is not None and not isinstance(cache, KVCache):
        raise ValueError(f"cache must be a KVCache, got {shown(cache)}")
    if unknown := sorted(set(inputs) - set(Inputs.__annotations__)):
        known = [*options, *Inputs.__annotations__]
        raise ValueError(f"{', '.join(unknown)}: not known here; known are {', '.join(known)}")
    if missing := [key for key in needed if inputs.get(key) is None]:
        raise ValueError(f"{' and '.join(missing)} missing: pass all that the processor returned")
    for key in _TENSORS:
        if inputs.get(key) is not None and not isinstance(inputs[key], Tensor):
            raise ValueError(f"{key} must be a tensor, as the processor returns it, got {shown(inputs[key])}")
    tokens = inputs["input_ids"]
    if tokens.dim() != 2 or tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"input_ids must be whole numbers [B, S], got {tokens.dtype} {list(tokens.shape)}")
    rows, count = tokens.shape
    for key, shape, fits in (
        ("position_ids", f"[axes, {rows}, {count}]", lambda given: given[1:] == (rows, count)),
        ("mm_token_type_ids", f"[{rows}, {count}]", lambda given: given == (rows, count)),
        ("attention_mask", f"[{rows}, {count}]", lambda given: len(given) == 2 and given[0] == rows and given[1] >= count),
        ("next_position", f"[{rows}]", lambda given: given == (rows,)),
    ):
        if inputs.get(key) is not None and not fits(inputs[key].shape):
            given = list(inputs[key].shape)
            raise ValueError(f"{key} must be {shape} for input_ids of {rows} rows of {count} tokens, got {given}")


def packed_lengths(inputs: Mapping[str, Any]) -> list[int] | None:
    """Of a pack, how long its sequences are; None of rows that are no pack. It waits for the device of `cu_seqlens`.

    Raises:
        ValueError: boundaries that are not of one row, or a pack with a mask.
    """
    if (stated := inputs.get("cu_seqlens")) is None:
        return None
    if inputs.get("attention_mask") is not None:
        raise ValueError("a pack (cu_seqlens) has no padding: leave attention_mask out")
    totals, shape = running_totals(torch.as_tensor(stated).cpu().numpy()), inputs["input_ids"].shape
    if shape[0] != 1 or totals[-1] != shape[1]:
        raise ValueError(
            f"cu_seqlens end at {totals[-1]}, but input_ids are {list(shape)}: a pack is one row, and they end with it"
        )
    return [length for length in (totals[1:] - totals[:-1]).tolist() if length]
