"""The small model with other positions, to see what they are worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmrope.encodings.rotary import RotaryEmbedding
from mmrope.vlm.config import VLMConfig
from mmrope.vlm.model import VLM, VLMOutput


class FlatIds(VLM):
    """1D RoPE: whatever the ids are, every token is at its place in the row, on every axis. Padding takes no place."""

    def forward(
        self, *, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor | None = None, **rest: Any
    ) -> VLMOutput:
        """As a VLM, whose arguments these are."""
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        places = (real.cumsum(-1) - 1).clamp_min(0)[:, -input_ids.shape[1] :]  # [B, S]
        ids = places.expand_as(position_ids)  # [3, B, S]
        return super().forward(input_ids=input_ids, position_ids=ids, attention_mask=attention_mask, **rest)


class NoRotation(nn.Module):
    """In the place of a RotaryEmbedding: cos and sin of no rotation at all."""

    def __init__(self, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.rotary = rotary

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ones and zeros, of the shapes that the embedding has."""
        cos, sin = self.rotary(ids)
        return torch.ones_like(cos), torch.zeros_like(sin)


def contiguous(config: VLMConfig) -> VLM:
    """The axes' channels one after the other, as Qwen2-VL has them."""
    return VLM(dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, layout="contiguous")))


def no_vision_rope(config: VLMConfig) -> VLM:
    """An encoder whose patches have no places but the four in a token."""
    model = VLM(config)
    model.vision.rotary = NoRotation(model.vision.rotary)  # pyright: ignore[reportAttributeAccessIssue]
    return model


VARIANTS: dict[str, Callable[[VLMConfig], VLM]] = {
    "interleaved": VLM,
    "contiguous": contiguous,
    "flat": FlatIds,
    "no_vision_rope": no_vision_rope,
}
"""By name: the model of a config."""
