"""What a model is made of. Everything that shapes a weight is here; the released models are rows of mmrope.vlm.released."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from mmrope.encodings.spec import RotarySpec
from mmrope.positions.families import Family
from mmrope.positions.families import family as find_family
from mmrope.preprocess.patches import PatchConfig
from mmrope.preprocess.text import IM_END, PAD, VOCAB_SIZE
from mmrope.records import Count, Keys, Layers, Must, Natural, Positive, check_fields, made, record
from mmrope.vlm.layers import ACTIVATIONS
from mmrope.vlm.sampling import GenerationConfig

_Activation = Annotated[str, Must(f"one of {', '.join(ACTIVATIONS)}", lambda name: name in ACTIVATIONS)]


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision encoder.

    Example:
        >>> from mmrope.vlm import VisionConfig
        >>> VisionConfig(hidden_size=96, num_heads=6).rotary
        RotarySpec(head_dim 16, 8 pairs: h 4, w 4; pairing half)
    """

    patches: PatchConfig = PatchConfig()
    """How pixels were cut: the size of a patch, of a merged token, and the values that pixels are normalised by."""
    hidden_size: Count = 192
    intermediate_size: Count = 512
    num_layers: Layers = 4
    num_heads: Count = 6
    theta: Positive | None = 1e4
    """Of the 2D RoPE; None for patches without places."""
    norm: Literal["rms", "layer"] = "rms"
    hidden_act: _Activation = "gelu"
    """A name of `mmrope.vlm.layers.ACTIVATIONS`."""
    gated_mlp: bool = False
    patch_bias: bool = True
    table_side: Natural = 0
    """Of the square table of learned positions, which is stretched over every image (Qwen3-VL); 0 for none."""
    window_size: Natural = 0
    """The side, in pixels, of the windows that patches attend in (Qwen2.5-VL); 0 for whole images."""
    full_layers: tuple[Natural, ...] = ()
    """Where there are windows: the layers that attend to whole images all the same."""
    deepstack_layers: tuple[Natural, ...] = ()
    """The layers whose outputs the decoder adds, too: that of the first after its first block, and so on (Qwen3-VL)."""

    def __post_init__(self) -> None:
        check_fields(self)
        deep, token = self.deepstack_layers, self.patches.patch_size * self.patches.merge_size
        if list(deep) != sorted({layer for layer in deep if 0 <= layer < self.num_layers}):
            raise ValueError(f"deepstack_layers must be rising numbers of the {self.num_layers} layers, got {deep}")
        if self.window_size and self.window_size < token:
            raise ValueError(f"window_size {self.window_size} is less than a token's {token} pixels")
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} must give each of the {self.num_heads} num_heads a multiple of 4 channels, as "
                "h and w rotate pairs of them"
            )

    @property
    def rotary(self) -> RotarySpec:
        """2D RoPE over (h, w)."""
        spec = RotarySpec.axial(self.hidden_size // self.num_heads, axes="hw", theta=self.theta or 1e4)
        if self.theta is None:
            return RotarySpec(spec.head_dim, np.zeros_like(spec.inv_freq), spec.axis, spec.axes, spec.pairing)
        return spec


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The causal decoder.

    Example:
        >>> from mmrope import VLM
        >>> from mmrope.vlm import DecoderConfig, VLMConfig
        >>> model = VLM(VLMConfig(decoder=DecoderConfig(num_layers=2)))
        >>> len(model.decoder.blocks)
        2
    """

    vocab_size: Count = VOCAB_SIZE
    hidden_size: Count = 256
    intermediate_size: Count = 704
    num_layers: Layers = 4
    num_heads: Count = 8
    num_kv_heads: Count = 2
    head_dim: Count = 32
    norm_eps: Annotated[float, Must("a number above 0 and at most 1", lambda x: 0 < x <= 1)] = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = True
    tie_word_embeddings: bool = True
    """Whether logits are read out by the embeddings' matrix, or by one of their own."""
    num_experts: Natural = 0
    """Of each block's mixture, in place of its MLP; 0 for none."""
    num_experts_per_tok: Natural = 0
    moe_intermediate_size: Natural = 0
    mlp_only_layers: tuple[Natural, ...] = ()
    """Where there are experts: the layers that have an MLP all the same."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even: channels rotate in pairs")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
        if self.num_experts and not (0 < self.num_experts_per_tok <= self.num_experts and self.moe_intermediate_size > 0):
            raise ValueError(
                f"{self.num_experts} experts need a moe_intermediate_size and 1 to {self.num_experts} num_experts_per_tok, "
                f"got {self.moe_intermediate_size} and {self.num_experts_per_tok}"
            )


@dataclass(frozen=True, kw_only=True)
class VLMConfig:
    """The whole model.

    Example:
        >>> from mmrope import VLM
        >>> from mmrope.vlm import DecoderConfig, VisionConfig, VLMConfig
        >>> tiny = VLMConfig(vision=VisionConfig(num_layers=1), decoder=DecoderConfig(num_layers=1, hidden_size=64))
        >>> tuple(VLM(tiny).embedding.weight.shape)  # [vocabulary, hidden]
        (263, 64)
    """

    vision: VisionConfig = VisionConfig()
    decoder: DecoderConfig = DecoderConfig()
    rotary: RotarySpec = None  # pyright: ignore[reportAssignmentType]  (never None once it is made)
    """The decoder's rotary embedding. If it is left out: M-RoPE with interleaved axes, theta 1e4, a third of the pairs each."""
    family: Family | str | None = None
    """The rule of the position IDs that it is trained with, if known. A processor of another rule is refused beside it."""
    eos_token_id: int | tuple[int, ...] = IM_END
    """The token, or the tokens, that end an answer."""
    pad_token_id: int = PAD
    generation: GenerationConfig = GenerationConfig()

    def __post_init__(self) -> None:
        for name in ("eos_token_id", "pad_token_id"):
            kind = Natural | tuple[Natural, ...] if name == "eos_token_id" else Natural
            object.__setattr__(self, name, made(kind, getattr(self, name), name))
        if len(self.vision.deepstack_layers) > self.decoder.num_layers:
            raise ValueError(
                f"deepstack_layers {self.vision.deepstack_layers} need as many layers of the decoder, "
                f"which has {self.decoder.num_layers}"
            )
        if self.rotary is None:
            object.__setattr__(self, "rotary", _mrope(self.decoder.head_dim))
        if self.family is not None:
            object.__setattr__(self, "family", find_family(self.family))
        if self.rotary.head_dim != self.decoder.head_dim:
            raise ValueError(
                f"rotary is of heads of {self.rotary.head_dim} channels, the decoder's have {self.decoder.head_dim}: "
                "give one of its size, or rotary=None for the default of it"
            )
        if self.rotary.axis.ndim == 2 and len(self.rotary.axis) != self.decoder.num_kv_heads:
            raise ValueError(
                f"rotary has axes for {len(self.rotary.axis)} KV heads, and the decoder has num_kv_heads "
                f"{self.decoder.num_kv_heads}"
            )
        if isinstance(self.family, Family) and len(self.family.axes) != len(self.rotary.axes):
            raise ValueError(
                f"{self.family} has ids of the axes {self.family.axes!r}, but rotary rotates by {self.rotary.axes!r}: "
                "give the one that reads them"
            )
        if self.rotary.needs_length or self.rotary.score_factor != 1 or self.rotary.temperature is not None:
            raise ValueError(
                f"{self.rotary!r}: the decoder's rotation depends on position_ids alone, and its scores are not scaled: "
                "give a scaling without a length, a score factor and a temperature, such as PI, NTK or YaRN"
            )

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for config.json.

        Raises:
            ValueError: a family that cannot be stated; see `Family.to_dict`.

        Example:
            >>> from mmrope.vlm import VLMConfig
            >>> values = VLMConfig().to_dict()
            >>> values["decoder"]["hidden_size"], values["vision"]["patches"]["patch_size"]
            (256, 14)
        """
        parts = {name: dataclasses.asdict(getattr(self, name)) for name in ("vision", "decoder", "generation")}
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            **parts,
            "rotary": self.rotary.to_dict(),
            "family": None if self.family is None else find_family(self.family).to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VLMConfig:
        """From plain values; unknown keys are an error.

        Example:
            >>> from mmrope.vlm import VLMConfig
            >>> config = VLMConfig.from_dict({"decoder": {"num_layers": 2}})
            >>> config.decoder.num_layers, config.vision.num_layers
            (2, 4)
        """
        found = dict(Keys(values).values)
        for name, kind in (("rotary", RotarySpec), ("family", Family)):
            if (stated := found.pop(name, None)) is not None:
                try:
                    found[name] = kind.from_dict(stated)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
        return record(cls, found)


def _mrope(head_dim: int) -> RotarySpec:
    # interleaved: with few pairs, "contiguous" would leave each axis a narrow band of frequencies
    third, pairs = head_dim // 6, head_dim // 2
    return RotarySpec.mrope(head_dim, theta=1e4, sections=(pairs - 2 * third, third, third), layout="interleaved")
