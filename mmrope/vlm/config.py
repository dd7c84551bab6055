"""The sizes of the model. Everything that shapes a weight is here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmrope.encodings.spec import RotarySpec
from mmrope.positions.rules import Layout
from mmrope.preprocess.patches import PatchConfig
from mmrope.preprocess.text import IM_END, PAD, VOCAB_SIZE


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision encoder."""

    patches: PatchConfig = PatchConfig()
    """How pixels were cut: the size of a patch, of a merged token, and the values that pixels are normalised by."""
    hidden_size: int = 192
    intermediate_size: int = 512
    num_layers: int = 4
    num_heads: int = 6
    theta: float = 1e4

    @property
    def rotary(self) -> RotarySpec:
        """2D RoPE over (h, w)."""
        return RotarySpec.axial(self.hidden_size // self.num_heads, axes="hw", theta=self.theta)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The causal decoder."""

    vocab_size: int = VOCAB_SIZE
    hidden_size: int = 256
    intermediate_size: int = 704
    num_layers: int = 4
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 32
    theta: float = 1e4
    sections: tuple[int, ...] = (6, 5, 5)
    """Pairs of channels per axis t, h, w."""
    layout: Layout = "interleaved"
    """With 16 pairs, "contiguous" would leave each axis a narrow band of frequencies."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")

    @property
    def rotary(self) -> RotarySpec:
        """M-RoPE over (t, h, w)."""
        return RotarySpec.mrope(self.head_dim, theta=self.theta, sections=self.sections, layout=self.layout)


@dataclass(frozen=True, kw_only=True)
class VLMConfig:
    """The whole model."""

    vision: VisionConfig = VisionConfig()
    decoder: DecoderConfig = DecoderConfig()
    eos_token_id: int = IM_END
    pad_token_id: int = PAD

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for config.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VLMConfig:
        """From plain values; unknown keys are an error."""
        values = dict(values)
        vision, decoder = dict(values.pop("vision", {})), dict(values.pop("decoder", {}))
        if "sections" in decoder:
            decoder["sections"] = tuple(decoder["sections"])
        if "patches" in vision:
            cut = {key: tuple(value) if isinstance(value, list) else value for key, value in vision["patches"].items()}
            vision["patches"] = PatchConfig(**dict[str, Any](cut))
        return cls(vision=VisionConfig(**vision), decoder=DecoderConfig(**decoder), **values)
