"""The library's encodings behind one face: what is added to tokens, what turns queries and keys, what is added to scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from mmrope.encodings.absolute import LearnedEmbedding, SinusoidalEmbedding
from mmrope.encodings.alibi import alibi_bias, alibi_slopes
from mmrope.encodings.rotary import RotaryEmbedding, apply_rotary
from mmrope.encodings.spec import RotarySpec
from mmrope.encodings.xpos import XPos
from mmrope.vlm.decoder import Rotate


class Encoding(nn.Module):
    """None at all (NoPE). Each of the others answers one of these; ids are [A, B, S]."""

    def added(self, ids: Tensor) -> Tensor | None:
        """[B, S, hidden], what is added to the tokens."""

    def turn(self, ids: Tensor) -> Rotate:
        """What is done to queries and keys."""
        return lambda q, k: (q, k)

    def bias(self, ids: Tensor, keys: Tensor) -> Tensor | None:
        """[B, N, S, T], what is added to scores of tokens at ids for those at keys [A, B, T], -inf at tokens ahead."""


class Added(Encoding):
    """Sinusoidal or learned embeddings, of the first axis, `scale` times as large."""

    def __init__(self, embedding: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.embedding, self.scale = embedding, scale

    def added(self, ids: Tensor) -> Tensor:
        """Of the places in the row."""
        return self.embedding(ids[0]) * self.scale


class Rotary(Encoding):
    """RoPE of any kind: a RotaryEmbedding, whose cos and sin all layers share."""

    def __init__(self, spec: RotarySpec) -> None:
        super().__init__()
        self.rotary = RotaryEmbedding(spec)

    def turn(self, ids: Tensor) -> Rotate:
        """A rotation."""
        length = int(ids.max()) + 1 if self.rotary.spec.needs_length else None
        cos, sin = self.rotary(ids, length=length)  # [B, S, P]
        return partial(apply_rotary, cos=cos, sin=sin, pairing=self.rotary.spec.pairing)


class Turned(Encoding):
    """XPos, MixedRotary: modules that turn queries and keys themselves."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def turn(self, ids: Tensor) -> Rotate:
        """By the module."""
        return partial(self.module.rotate, position_ids=ids)


class Faded(Encoding):
    """ALiBi."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", alibi_slopes(heads), persistent=False)

    def bias(self, ids: Tensor, keys: Tensor) -> Tensor:
        """Falling with the distance."""
        return alibi_bias(self.slopes, ids[0], keys[0])  # pyright: ignore[reportArgumentType]


TOKEN_STD = 0.02
"""Of a token's embedding at first, and of a learned embedding's; sines and cosines, sqrt(1/2) on average, are brought to it, as
the paper brings tokens to theirs."""
OF_TEXT: Mapping[str, Callable[[int, int, int, int], Encoding]] = MappingProxyType(
    {
        "sinusoidal": lambda hidden, heads, head_dim, length: Added(SinusoidalEmbedding(hidden), TOKEN_STD * math.sqrt(2)),
        "learned": lambda hidden, heads, head_dim, length: Added(LearnedEmbedding(length, hidden)),
        "rope": lambda hidden, heads, head_dim, length: Rotary(RotarySpec.rope(head_dim)),
        "xpos": lambda hidden, heads, head_dim, length: Turned(XPos(head_dim)),
        "alibi": lambda hidden, heads, head_dim, length: Faded(heads),
        "nope": lambda hidden, heads, head_dim, length: Encoding(),
    }
)
"""By name: the encoding of a model with these sizes that is trained on `length` tokens."""


def counted(batch: int, length: int, device: Any = None) -> Tensor:
    """[1, B, S] ids of text."""
    return torch.arange(length, device=device).expand(1, batch, length)
