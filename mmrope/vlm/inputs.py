"""What the model reads: a Processor's output."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypedDict

from torch import Tensor


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
    next_position: Tensor
    """[B], where following text starts; for `generate`."""
    second_per_grid_ts: Tensor
    """[videos]; in the ids already."""
    video_timestamps: list[Tensor]
    """Of each video, seconds of its sampled frames; in the ids already."""


def check_inputs(inputs: Mapping[str, Any], *, options: Collection[str] = ()) -> None:
    """That these are a Processor's output, where `options` are known, too.

    Raises:
        ValueError: a key that is missing or unknown.
    """
    if unknown := sorted(set(inputs) - set(Inputs.__annotations__)):
        known = [*options, *Inputs.__annotations__]
        raise ValueError(f"{', '.join(unknown)}: not known here; known are {', '.join(known)}")
    if missing := [key for key in ("input_ids", "position_ids") if inputs.get(key) is None]:
        raise ValueError(f"{' and '.join(missing)} missing: pass all that the processor returned")
