"""The small model with other positions, to see what they are worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from mmrope.encodings.spec import RotarySpec
from mmrope.vlm.config import VLMConfig
from mmrope.vlm.model import VLM


class FlatIds(VLM):
    """1D RoPE: whatever the ids are, every token is at its place in the row, on every axis. Padding takes no place."""

    def places(self, position_ids: Tensor, attention_mask: Tensor | None, lengths: Sequence[int] | None = None) -> Tensor:
        """Each token's number in its row, or in its sequence of a pack, on every axis."""
        if lengths is not None:
            return torch.cat([torch.arange(length, device=position_ids.device) for length in lengths]).expand_as(position_ids)
        tokens = position_ids.shape[-1]
        real = torch.ones_like(position_ids[0], dtype=torch.long) if attention_mask is None else attention_mask
        return (real.cumsum(-1) - 1).clamp_min(0)[:, -tokens:].expand_as(position_ids)  # [3, B, S]


def contiguous(config: VLMConfig) -> VLM:
    """The axes' channels one after the other, as Qwen2-VL has them."""
    pairs = [config.rotary.axis_letters.count(axis) for axis in "thw"]
    assert config.rotary.spectra is not None
    theta, _ = config.rotary.spectra.of[0]
    spec = RotarySpec.mrope(config.rotary.head_dim, theta=theta, sections=pairs, layout="contiguous")
    return VLM(dataclasses.replace(config, rotary=spec))


def no_vision_rope(config: VLMConfig) -> VLM:
    """An encoder whose patches have no places but the four in a token."""
    return VLM(dataclasses.replace(config, vision=dataclasses.replace(config.vision, theta=None)))


VARIANTS: Mapping[str, Callable[[VLMConfig], VLM]] = MappingProxyType(
    {
        "interleaved": VLM,
        "contiguous": contiguous,
        "flat": FlatIds,
        "no_vision_rope": no_vision_rope,
    }
)
"""By name: the model of a config."""
