"""Context extension: what becomes of the frequencies of a rotary embedding that is to reach further than it was trained for.

A scaling is a value: it maps one spectrum, theta^(-2i / dim), to [dim / 2] frequencies. `RotarySpec.scaled` applies it to 1D
RoPE and to every spectrum of a multimodal one alike. numpy only; rounded to float32 where transformers rounds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

from mmrope.positions.stated import several
from mmrope.records import Keys, is_number, record, shown

Ramp = Literal["index", "rotations"]
Powers = Callable[..., np.ndarray]
"""(dim, theta, over=None) -> theta^(2i / over) as [dim / 2] float32: `powers`, or what torch makes of it, for its last bits."""
_F32 = np.float32
_MOST = 1e30  # so that no product of two leaves float64, nor one of them float32


def frequencies(dim: int, theta: float, *, over: int | None = None) -> np.ndarray:
    """inv_freq[i] = theta^(-2i / over), i = 0 .. dim / 2 - 1, as [dim / 2] float32; `over` is dim by default.

    Rounded to float32 at each step (the exponent, the power, the inverse), as the code that models train with does it;
    at dim 80 that differs from the exact power by up to 4e-7 of its value.
    """
    return _F32(1) / powers(dim, theta, over=over)


def powers(dim: int, theta: float, *, over: int | None = None) -> np.ndarray:
    """theta^(2i / over) as [dim / 2] float32."""
    _check_positive("frequencies", "theta", theta)
    exponent = np.arange(0, dim, 2, dtype=_F32) / _F32(over or dim or 1)
    return np.power(np.float64(theta), exponent.astype(np.float64)).astype(_F32)


@dataclass(frozen=True)
class Scaling(ABC):
    """What all scalings have in common.

    Example:
        >>> from dataclasses import dataclass
        >>> from mmrope import RotarySpec
        >>> from mmrope.encodings import Scaling
        >>> @dataclass(frozen=True)
        ... class Halved(Scaling):  # a scaling of your own
        ...     def frequencies(self, dim, theta, *, length=None, powers=None):
        ...         return RotarySpec.rope(dim, theta=theta).inv_freq / 2
        >>> RotarySpec.rope(4, theta=100.0).scaled(Halved()).inv_freq.astype(float).round(4).tolist()
        [0.5, 0.05]
    """

    @property
    def needs_length(self) -> bool:
        """Whether frequencies depend on the length of the sequence: `RotaryEmbedding` then takes `length`."""
        return False

    @property
    def attention_factor(self) -> float:
        """What cos and sin are multiplied by: its square multiplies the logits of attention."""
        return 1.0

    @property
    def score_factor(self) -> float:
        """What attention must multiply its logits by besides, where the model's code does so: `RotarySpec.score_factor`."""
        return 1.0

    @abstractmethod
    def frequencies(self, dim: int, theta: float, *, length: int | None = None, powers: Powers = powers) -> np.ndarray:
        """[dim / 2] float32, what becomes of theta^(-2i / dim); `length` is that of the sequence, where it is needed."""

    @property
    def in_json(self) -> bool:
        """Whether it is one of mmrope's own, which `from_dict` can make again."""
        return _BY_NAME.get(type(self).__name__) is type(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: {"type": "YaRN", "factor": 4.0, ...}, every field by its name.

        Raises:
            ValueError: a scaling of the user's own.

        Example:
            >>> from mmrope.encodings import PI
            >>> PI(4.0).to_dict()
            {'type': 'PI', 'factor': 4.0}
        """
        name = type(self).__name__
        if not self.in_json:
            raise ValueError(f"{name} is not one of mmrope's scalings, {', '.join(_BY_NAME)}: JSON cannot say what it computes")
        return {"type": name, **asdict(self)}

    @staticmethod
    def from_dict(stated: dict[str, Any]) -> Scaling:
        """What `to_dict` made.

        Raises:
            ValueError: an unknown type or field.

        Example:
            >>> from mmrope.encodings import Scaling
            >>> Scaling.from_dict({"type": "PI", "factor": 4.0})
            PI(factor=4.0)
        """
        said = Keys(stated, "scaling").values.get("type")
        known = _BY_NAME.get(said) if isinstance(said, str) else None
        if known is None:
            raise ValueError(f"scaling has type {shown(said)}; known are {', '.join(_BY_NAME)}")
        given = {key: value for key, value in stated.items() if key != "type"}
        unknown = sorted(set(given) - {field.name for field in fields(known)})
        if unknown:
            raise ValueError(f"scaling {known.__name__} has no {unknown}; its fields are {[f.name for f in fields(known)]}")
        return record(known, given, "scaling")

    def _positive(self, *names: str) -> None:
        for name in names:
            _check_positive(type(self).__name__, name, getattr(self, name))


@dataclass(frozen=True)
class PI(Scaling):
    """Position interpolation (arXiv 2306.15595): every frequency divided by `factor`; "linear" in Hugging Face configs.

    Example:
        >>> from mmrope import RotarySpec
        >>> from mmrope.encodings import PI
        >>> RotarySpec.rope(4, theta=100.0).scaled(PI(4.0)).inv_freq.astype(float).round(4).tolist()  # 1 and 0.1, divided by 4
        [0.25, 0.025]
    """

    factor: float

    def __post_init__(self) -> None:
        self._positive("factor")

    def frequencies(self, dim: int, theta: float, *, length: int | None = None, powers: Powers = powers) -> np.ndarray:
        return _F32(1) / powers(dim, theta) / _F32(self.factor)


@dataclass(frozen=True)
class NTK(Scaling):
    """NTK-aware scaling (bloc97, 2023; YaRN, arXiv 2309.00071, section 3.1): theta times factor^(dim / (dim - 2)), so that the
    highest frequency stays and the lowest is divided by `factor`. HunYuan's `alpha` is this factor.

    Example:
        >>> from mmrope import RotarySpec
        >>> from mmrope.encodings import NTK
        >>> RotarySpec.rope(6, theta=1000.0).scaled(NTK(4.0)).inv_freq.astype(float).round(4).tolist()  # of 1, 0.1, 0.01
        [1.0, 0.05, 0.0025]
    """

    factor: float

    def __post_init__(self) -> None:
        self._positive("factor")

    def frequencies(self, dim: int, theta: float, *, length: int | None = None, powers: Powers = powers) -> np.ndarray:
        return _F32(1) / powers(dim, self.theta(dim, theta))

    def theta(self, dim: int, theta: float) -> float:
        """The base in place of theta."""
        return theta * _power(self.factor, dim)


@dataclass(frozen=True)
class DynamicNTK(Scaling):
    """NTK-aware scaling that grows with the sequence; needs its length.

    theta becomes theta * (factor * l / L - (factor - 1))^(dim / (dim - 2)), where L is `original_max_position` and l =
    max(length, L) (transformers, "dynamic"). With the factor 1 that is the paper's own, theta * (l / L)^(dim / (dim - 2))
    (YaRN, arXiv 2309.00071, section 3.3).

    Keys of a cache must be kept unrotated, or be rotated by the frequencies of one length: with those of another they do not
    fit, and distances are not respected.

    Example:
        >>> from mmrope import RotarySpec
        >>> from mmrope.encodings import DynamicNTK
        >>> spec = RotarySpec.rope(6, theta=1000.0).scaled(DynamicNTK(original_max_position=4096))
        >>> [spec.at_length(length).astype(float).round(4).tolist() for length in (4096, 16384)]
        [[1.0, 0.1, 0.01], [1.0, 0.05, 0.0025]]
    """

    original_max_position: int
    factor: float = 1.0

    def __post_init__(self) -> None:
        self._positive("factor", "original_max_position")

    @property
    def needs_length(self) -> bool:
        return True

    def frequencies(self, dim: int, theta: float, *, length: int | None = None, powers: Powers = powers) -> np.ndarray:
        ratio = max(_stated(length), self.original_max_position) / self.original_max_position
        return _F32(1) / powers(dim, theta * _power(self.factor * ratio - (self.factor - 1), dim))


@dataclass(frozen=True)
class YaRN(Scaling):
    """YaRN (arXiv 2309.00071): high frequencies stay, low ones are divided by `factor`, those between are blended; and cos and
    sin are multiplied by an attention factor, 0.1 ln(factor) + 1.

    `beta_fast` and `beta_slow` are the rotations within `original_max_position` from which on a frequency stays, and up to
    which it is divided. `ramp="index"`, by which all released checkpoints were made, blends linearly in the index of the pair,
    between bounds rounded outwards (not with `truncate=False`); `ramp="rotations"` is the paper's equation 18, linear in the
    rotations: the two differ by up to two thirds of a frequency.

    The attention factor may be stated, or follow from `mscale` and `mscale_all_dim` (DeepSeek): the quotient of 0.1 m
    ln(factor) + 1. DeepSeek's attention then multiplies its scores by the square of 0.1 mscale_all_dim ln(factor) + 1
    (transformers 5.23, models/deepseek_v3, yarn_apply_mscale): that is `score_factor`, 1.874 for DeepSeek-V3.

    Example:
        >>> from mmrope import RotarySpec, YaRN
        >>> before = RotarySpec.rope(128, theta=1e6)
        >>> after = before.scaled(YaRN(factor=4, original_max_position=32768))
        >>> (before.inv_freq / after.inv_freq)[[0, 25, 63]].astype(float).round(2).tolist()  # kept, blended, divided by 4
        [1.0, 1.1, 4.0]
    """

    factor: float
    original_max_position: int
    beta_fast: float = 32
    beta_slow: float = 1
    ramp: Ramp = "index"
    truncate: bool = True
    stated_attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def __post_init__(self) -> None:
        self._positive("factor", "original_max_position", "beta_fast", "beta_slow")
        if self.beta_fast < self.beta_slow:
            raise ValueError(f"YaRN: beta_fast {self.beta_fast} must not be below beta_slow {self.beta_slow}")
        if not isinstance(self.ramp, str) or self.ramp not in get_args(Ramp):
            raise ValueError(f"YaRN: ramp must be 'index' (released checkpoints) or 'rotations' (the paper), got {self.ramp!r}")
        if self.stated_attention_factor is not None:
            self._positive("stated_attention_factor")
        for name in ("mscale", "mscale_all_dim"):
            if (value := getattr(self, name)) is not None and not (is_number(value) and 0 <= value <= _MOST):
                raise ValueError(f"YaRN: {name} must be a number, at least 0, got {shown(value)}")
        if bool(self.mscale) != bool(self.mscale_all_dim):
            raise ValueError(
                f"YaRN: mscale {self.mscale} and mscale_all_dim {self.mscale_all_dim} work together; of one alone upstreams "
                "take no notice. State both or neither"
            )

    @property
    def attention_factor(self) -> float:
        if self.stated_attention_factor is not None:
            return float(self.stated_attention_factor)
        if self.mscale and self.mscale_all_dim:
            return self._magnitude(self.mscale) / self._magnitude(self.mscale_all_dim)
        return self._magnitude(1)

    @property
    def score_factor(self) -> float:
        return self._magnitude(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    def _magnitude(self, scale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * scale * math.log(self.factor) + 1

    def frequencies(self, dim: int, theta: float, *, length: int | None = None, powers: Powers = powers) -> np.ndarray:
        power = powers(dim, theta)
        kept = self._kept(dim, theta)
        return _F32(1) / (_F32(self.factor) * power) * (_F32(1) - kept) + _F32(1) / power * kept

    def _kept(self, dim: int, theta: float) -> np.ndarray:
        """[dim / 2] float32, the part of each frequency that stays: from 1 to 0."""
        if self.ramp == "rotations":
            rotations = self.original_max_position * frequencies(dim, theta).astype(np.float64) / (2 * math.pi)
            span = (self.beta_fast - self.beta_slow) or 1e-3
            return np.clip((rotations - self.beta_slow) / span, 0, 1).astype(_F32)
        low, high = (self._index(rotations, dim, theta) for rotations in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        high = high + 0.001 if low == high else high
        ramp = (np.arange(dim // 2, dtype=_F32) - _F32(low)) / _F32(high - low)
        return _F32(1) - np.clip(ramp, 0, 1).astype(_F32)

    def _index(self, rotations: float, dim: int, theta: float) -> float:
        """The index of the pair that turns so often within the original length."""
        if theta <= 1:
            raise ValueError(f"YaRN needs frequencies that fall, theta above 1, got {theta}")
        return dim * math.log(self.original_max_position / (rotations * 2 * math.pi)) / (2 * math.log(theta))


def ntk_by_parts(factor: float, original_max_position: int, **options: Any) -> YaRN:
    """YaRN's frequencies without its attention factor (arXiv 2309.00071, section 3.2).

    Example:
        >>> from mmrope import RotarySpec
        >>> from mmrope.encodings import ntk_by_parts
        >>> RotarySpec.rope(128).scaled(ntk_by_parts(4.0, 4096)).attention_factor
        1.0
    """
    return YaRN(factor, original_max_position, stated_attention_factor=1.0, **options)


@dataclass(frozen=True)
class Llama3(Scaling):
    """Llama 3.1's scaling (transformers, "llama3"): wavelengths below L / `high_freq_factor` stay, where L is
    `original_max_position`; those above L / `low_freq_factor` are multiplied by `factor`; those between are blended. With equal
    factors, as in Llama 4, none are between.

    Example:
        >>> from mmrope import RotarySpec
        >>> from mmrope.encodings import Llama3
        >>> before = RotarySpec.rope(128, theta=5e5)
        >>> after = before.scaled(Llama3(factor=8.0, original_max_position=8192))
        >>> (before.inv_freq / after.inv_freq)[[0, 32, 63]].astype(float).round(2).tolist()  # kept, blended, divided by 8
        [1.0, 2.69, 8.0]
    """

    factor: float
    original_max_position: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        self._positive("factor", "original_max_position", "low_freq_factor", "high_freq_factor")
        if self.high_freq_factor < self.low_freq_factor:
            raise ValueError(
                f"Llama3: high_freq_factor {self.high_freq_factor} must not be below low_freq_factor {self.low_freq_factor}"
            )

    def frequencies(self, dim: int, theta: float, *, length: int | None = None, powers: Powers = powers) -> np.ndarray:
        plain, original = _F32(1) / powers(dim, theta), self.original_max_position
        wavelength = _F32(1) / plain * _F32(2 * math.pi)  # as torch divides a number by a tensor
        slow = wavelength > _F32(original / self.low_freq_factor)
        if self.high_freq_factor == self.low_freq_factor:
            return np.where(slow, plain / _F32(self.factor), plain)
        between = ~slow & (wavelength >= _F32(original / self.high_freq_factor))
        smooth = (_F32(1) / wavelength * _F32(original) - _F32(self.low_freq_factor)) / _F32(
            self.high_freq_factor - self.low_freq_factor
        )
        blended = (_F32(1) - smooth) * plain / _F32(self.factor) + smooth * plain
        return np.where(between, blended, np.where(slow, plain / _F32(self.factor), plain)).astype(_F32)


@dataclass(frozen=True)
class LongRoPE(Scaling):
    """LongRoPE (arXiv 2402.13753) as released (Phi-3): a divisor for each pair, of one list for sequences up to
    `original_max_position` and of another for longer ones; needs the length. cos and sin are multiplied by
    sqrt(1 + ln(factor) / ln(original_max_position)), if nothing else is stated. No release leaves the first tokens unscaled, as
    the paper does.

    A sequence that grows past the original length changes lists: its keys must be rotated anew.

    Example:
        >>> from mmrope import RotarySpec
        >>> from mmrope.encodings import LongRoPE
        >>> spec = RotarySpec.rope(4, theta=100.0).scaled(LongRoPE([1.0, 1.0], [1.0, 4.0], 4096, factor=32.0))
        >>> [spec.at_length(length).astype(float).round(4).tolist() for length in (4096, 4097)]
        [[1.0, 0.1], [1.0, 0.025]]
    """

    short_factor: Sequence[float]
    long_factor: Sequence[float]
    original_max_position: int
    factor: float
    stated_attention_factor: float | None = None

    def __post_init__(self) -> None:
        self._positive("factor", "original_max_position")
        if self.stated_attention_factor is not None:
            self._positive("stated_attention_factor")
        if self.original_max_position < 2:
            raise ValueError(f"LongRoPE: original_max_position must be at least 2, got {self.original_max_position}")
        for name in ("short_factor", "long_factor"):
            values = several(getattr(self, name), f"LongRoPE: {name}")
            if not all(is_number(value) and value > 0 for value in values):
                raise ValueError(f"LongRoPE: {name} must hold positive numbers, one for each pair")
            object.__setattr__(self, name, tuple(map(float, values)))

    @property
    def needs_length(self) -> bool:
        return True

    @property
    def attention_factor(self) -> float:
        if self.stated_attention_factor is not None:
            return float(self.stated_attention_factor)
        return 1.0 if self.factor <= 1 else math.sqrt(1 + math.log(self.factor) / math.log(self.original_max_position))

    def frequencies(self, dim: int, theta: float, *, length: int | None = None, powers: Powers = powers) -> np.ndarray:
        for name in ("short_factor", "long_factor"):
            if len(getattr(self, name)) != dim // 2:
                count = len(getattr(self, name))
                raise ValueError(f"LongRoPE: {name} has {count} factors, but {dim} rotated channels are {dim // 2} pairs")
        divisors = self.long_factor if _stated(length) > self.original_max_position else self.short_factor
        return _F32(1) / (np.array(divisors, dtype=_F32) * powers(dim, theta))


@dataclass(frozen=True)
class Proportional(Scaling):
    """Proportional RoPE (Gemma 4, transformers "proportional"): the first `fraction` of the pairs turn as they would if all
    did, the others stand still, and all is divided by `factor`. Partial rotary has the same channels turn otherwise: its
    exponents are over the rotated channels alone.

    Example:
        >>> from mmrope import RotarySpec
        >>> from mmrope.encodings import Proportional
        >>> RotarySpec.rope(8, theta=1e4).scaled(Proportional(fraction=0.5)).inv_freq.astype(float).round(4).tolist()
        [1.0, 0.1, 0.0, 0.0]
    """

    fraction: float
    factor: float = 1.0

    def __post_init__(self) -> None:
        self._positive("factor")
        if not is_number(self.fraction) or not 0 <= self.fraction <= 1:
            raise ValueError(f"Proportional: fraction must be from 0 to 1, got {self.fraction!r}")

    def frequencies(self, dim: int, theta: float, *, length: int | None = None, powers: Powers = powers) -> np.ndarray:
        inv_freq = np.zeros(dim // 2, dtype=_F32)
        turned = int(self.fraction * dim // 2)
        inv_freq[:turned] = _F32(1) / powers(2 * turned, theta, over=dim)
        return inv_freq / _F32(self.factor)


_BY_NAME: dict[str, type[Scaling]] = {
    kind.__name__: kind for kind in (PI, NTK, DynamicNTK, YaRN, Llama3, LongRoPE, Proportional)
}


@dataclass(frozen=True)
class Temperature:
    """What queries are multiplied by at position p, so that attention stays sharp over long contexts: 1 + scale * ln(1 +
    floor((p + offset) / floor)).

    Llama 4, in its layers without rotation: `Temperature(0.1, 8192, offset=1)`; Ministral 3: `Temperature(
    llama_4_scaling_beta, original_max_position)` (transformers 5.23, models/llama4 and models/ministral3).

        spec = RotarySpec.nope(128, temperature=Temperature(0.1, 8192, offset=1))

    Example:
        >>> import torch
        >>> from mmrope import RotaryEmbedding, RotarySpec
        >>> from mmrope.encodings import Temperature
        >>> rope = RotaryEmbedding(RotarySpec.nope(128, temperature=Temperature(0.1, 8192, offset=1)))
        >>> [round(x, 3) for x in rope.temperature(torch.tensor([[0, 8191, 100_000]])).tolist()]
        [1.0, 1.069, 1.256]
    """

    scale: float
    floor: int
    offset: int = 0

    def __post_init__(self) -> None:
        for name in ("scale", "floor"):
            _check_positive("Temperature", name, getattr(self, name))
        if not is_number(self.offset):
            raise ValueError(f"Temperature: offset must be a number, got {shown(self.offset)}")


def _check_positive(kind: str, name: str, value: Any) -> None:
    if not (is_number(value) and 1 / _MOST <= value <= _MOST):
        raise ValueError(f"{kind}: {name} must be a positive number, got {shown(value)}; from {1 / _MOST:g} to {_MOST:g}")


def _power(factor: float, dim: int) -> float:
    """By what theta grows."""
    try:
        return factor ** _growth(dim)
    except OverflowError:
        raise ValueError(f"NTK scaling by the factor {factor} makes theta larger than any number") from None


def _growth(dim: int) -> float:
    """By which power of the factor theta grows, so that the lowest frequency is divided by it."""
    if dim <= 2:
        raise ValueError(f"NTK scaling needs at least two pairs, but a spectrum of {dim} channels has {dim // 2}")
    return dim / (dim - 2)


def _stated(length: int | None) -> int:
    if length is None:
        raise ValueError("this scaling depends on the length of the sequence: pass length=, which is never read from the ids")
    return length
