"""What a rotary embedding is: a frequency and an axis for each pair of channels, and which channels form a pair.

    angle[b, s, p] = position_ids[axis[p], b, s] * inv_freq[p]

1D RoPE, axial 2D and 3D RoPE and every M-RoPE are values of these two vectors. numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from mmrope.positions.families import config_dict, family_from_config
from mmrope.positions.families import family as find_family
from mmrope.positions.rules import Family, Layout, Pairing


@dataclass(frozen=True, eq=False)
class RotarySpec:
    """A rotary embedding as a value: made by hand, by `rope`, `axial`, `mrope`, or from a checkpoint by `from_config`.

    R = 2 P channels are rotated, P = len(inv_freq) pairs; the other head_dim - R channels pass through.
    """

    head_dim: int
    inv_freq: np.ndarray
    """[P] float32, radians per position id."""
    axis: np.ndarray
    """[P] int64, the axis that turns each pair, as an index into `axes`. Given as letters of `axes` or as indices."""
    axes: str
    """The axes of the position ids, in their order: "t", "hw", "thw"."""
    pairing: Pairing = "half"
    """"half": channels p and p + P form a pair (NeoX, Hugging Face). "adjacent": 2 p and 2 p + 1 (GPT-J, RoFormer)."""

    def __post_init__(self) -> None:
        if not self.axes or len(set(self.axes)) != len(self.axes):
            raise ValueError(f"axes must be different letters, one per row of the position ids, got {self.axes!r}")
        if self.pairing not in get_args(Pairing):
            raise ValueError(f"pairing must be one of {get_args(Pairing)}, got {self.pairing!r}")
        inv_freq = np.array(self.inv_freq, dtype=np.float32)
        if inv_freq.ndim != 1 or not np.isfinite(inv_freq).all():
            raise ValueError(f"inv_freq must be one finite number per pair, [P], got shape {inv_freq.shape}")
        axis = _axis_indices(self.axis, self.axes)
        if axis.shape != inv_freq.shape:
            raise ValueError(f"axis has {len(axis)} entries for {len(inv_freq)} pairs of inv_freq: one each is needed")
        if 2 * len(inv_freq) > self.head_dim:
            raise ValueError(
                f"{len(inv_freq)} pairs rotate {2 * len(inv_freq)} channels, but head_dim is {self.head_dim}; "
                "inv_freq has one entry per pair, not per channel"
            )
        for name, array in (("inv_freq", inv_freq), ("axis", axis)):
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    # --- the usual ones -------------------------------------------------------------------------------------------------

    @classmethod
    def rope(cls, head_dim: int, *, theta: float = 1e4, rotary_dim: int | None = None, pairing: Pairing = "half") -> RotarySpec:
        """1D RoPE (RoFormer, arXiv 2104.09864): the first `rotary_dim` channels, all of them by default."""
        inv_freq = frequencies(_rotary_dim(head_dim, rotary_dim), theta)
        return cls(head_dim, inv_freq, np.zeros(len(inv_freq), dtype=np.int64), "t", pairing)

    @classmethod
    def axial(
        cls,
        head_dim: int,
        *,
        axes: str = "hw",
        theta: float = 1e4,
        dims: Sequence[int] | None = None,
        spectrum: Literal["per_axis", "shared"] = "per_axis",
        pairing: Pairing = "half",
    ) -> RotarySpec:
        """2D or 3D RoPE for grids: each axis turns its own block of pairs, in the order of `axes`.

        Args:
            dims: channels of each axis (even; the rest of head_dim passes through); by default equal shares of head_dim.
            spectrum: "per_axis", each axis has the full spectrum theta^(-2i / dims[a]) (Qwen2-VL's vision tower);
                "shared", one spectrum over all rotated channels is dealt to the axes in turn (Pixtral).
        """
        if dims is None:
            if head_dim % (2 * len(axes)):
                raise ValueError(
                    f"head_dim {head_dim} does not give {len(axes)} axes ({axes}) equal numbers of pairs; "
                    "say dims=, channels per axis"
                )
            dims = [head_dim // len(axes)] * len(axes)
        if len(dims) != len(axes) or any(d < 0 or d % 2 for d in dims):
            raise ValueError(f"dims must be an even number of channels for each of the axes {axes!r}, got {list(dims)}")
        if spectrum == "per_axis":
            inv_freq = np.concatenate([frequencies(d, theta) for d in dims])
        elif spectrum == "shared":
            if len(set(dims)) > 1:
                raise ValueError(
                    f"spectrum='shared' deals one spectrum out in turn, so all dims must be equal, got {list(dims)}"
                )
            inv_freq = frequencies(sum(dims), theta).reshape(-1, len(axes)).T.reshape(-1)  # [P], axis by axis
        else:
            raise ValueError(f"spectrum must be 'per_axis' or 'shared', got {spectrum!r}")
        axis = np.repeat(np.arange(len(axes)), [d // 2 for d in dims])
        return cls(head_dim, inv_freq, axis, axes, pairing)

    @classmethod
    def mrope(
        cls,
        head_dim: int,
        *,
        theta: float = 1e4,
        sections: Sequence[int] | None = None,
        layout: Layout = "contiguous",
        axis: str | None = None,
        axes: str = "thw",
        rotary_dim: int | None = None,
        pairing: Pairing = "half",
    ) -> RotarySpec:
        """Multimodal RoPE (Qwen2-VL, arXiv 2409.12191): one spectrum, whose pairs are shared out to the axes.

        Text, whose ids are the same on all axes, turns exactly as by `rope`.

        Args:
            sections: pairs per axis, shared out by `layout`: "contiguous" t..t h..h w..w (Qwen2-VL), "interleaved"
                t h w t h w ... with the rest of t at the end (Qwen3-VL), or "alternating" h w h w ... with all of t at the
                end (Ernie, VideoRoPE).
            axis: instead of sections, the letter of each pair's axis: "t" * 16 + "h" * 24 + "w" * 24.
            rotary_dim: rotated channels, head_dim by default.
        """
        inv_freq = frequencies(_rotary_dim(head_dim, rotary_dim), theta)
        if (sections is None) == (axis is None):
            raise ValueError("say either sections (pairs per axis) with a layout, or axis (one letter per pair)")
        if sections is not None:
            axis = axis_of_pairs(sections, layout, axes)
        assert axis is not None
        if len(axis) != len(inv_freq):
            given = f"sections {tuple(sections)} make" if sections is not None else "axis makes"
            raise ValueError(f"{given} {len(axis)} pairs, but {2 * len(inv_freq)} rotated channels are {len(inv_freq)} pairs")
        return cls(head_dim, inv_freq, _axis_indices(axis, axes), axes, pairing)

    @classmethod
    def from_family(cls, family: Family | str) -> RotarySpec:
        """The rotary embedding of a family's released checkpoints, as the table of families has it; of a family with one axis,
        over 128 channels.

        Raises:
            ValueError: an unknown family, or one whose upstream does not rotate pairs.
        """
        family = find_family(family)
        rotary_dim = 2 * sum(family.sections) or 128
        spec = cls.mrope(
            int(rotary_dim / family.rotary_fraction),
            theta=family.theta,
            sections=family.sections or (rotary_dim // 2,),
            layout=family.layout,
            axes=family.axes,
            rotary_dim=rotary_dim,
            pairing=family.pairing,
        )
        still = np.isin(spec.axis, [family.axes.index(axis) for axis in family.still])
        return replace(spec, inv_freq=np.where(still, 0, spec.inv_freq))

    @classmethod
    def from_config(cls, config: Any, *, revision: str | None = None) -> RotarySpec:
        """The rotary embedding of a checkpoint's language model, from its full Hugging Face config.

        The layout and the pairing are the family's; theta, sections and head_dim are the config's. Both forms of config
        are read: `rope_parameters` (transformers 5) and `rope_theta` with `rope_scaling` (4).

        Raises:
            ValueError: an unknown family, a scaling other than "default", or keys that are missing, unknown, or at odds
                with what the model's code does.
        """
        text = config_dict(config)
        family = family_from_config(text, revision)
        for part in ("thinker_config", "text_config"):
            text = {**text, **(text.get(part) or {})}
        rope = _rope_parameters(text, str(family))
        head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        fraction = rope.get("partial_rotary_factor")
        if fraction is None and family.rotary_fraction != 1:
            raise ValueError(
                f"{family}: the config has no partial_rotary_factor, and class defaults differ between models; released "
                f"checkpoints have {family.rotary_fraction}"
            )
        rotary_dim = int(head_dim * float(1 if fraction is None else fraction))
        if bool(rope.get("mrope_interleaved", family.layout == "interleaved")) != (family.layout == "interleaved"):
            raise ValueError(
                f"{family}: the config says mrope_interleaved={rope['mrope_interleaved']}, but the model's code always rotates "
                f"{family.layout} and does not read the flag; correct the config"
            )
        sections = rope.get("mrope_section")
        order = family.section_order or family.axes
        if sections is None or len(sections) != len(order):
            released = [family.sections[family.axes.index(axis)] for axis in order] if family.sections else "none"
            raise ValueError(
                f"{family}: the config has "
                + ("no mrope_section" if sections is None else f"mrope_section {sections}, not one number each for {order}")
                + f"; released checkpoints have {released}"
            )
        sections = [sections[order.index(axis)] for axis in family.axes]
        return cls.mrope(
            head_dim,
            theta=rope["rope_theta"],
            sections=sections,
            layout=family.layout,
            axes=family.axes,
            rotary_dim=rotary_dim,
            pairing=family.pairing,
        )

    # --- as a value -------------------------------------------------------------------------------------------------------

    @property
    def rotary_dim(self) -> int:
        """R, the number of rotated channels."""
        return 2 * len(self.inv_freq)

    @property
    def axis_letters(self) -> str:
        """The axis of each pair as letters: "tttthhhhhhwwwwww"."""
        return "".join(self.axes[a] for a in self.axis)

    def _key(self) -> tuple[Any, ...]:
        return (self.head_dim, self.inv_freq.tobytes(), self.axis.tobytes(), self.axes, self.pairing)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, RotarySpec) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        counts = ", ".join(f"{letter} {self.axis_letters.count(letter)}" for letter in self.axes)
        return f"RotarySpec(head_dim {self.head_dim}, {len(self.inv_freq)} pairs: {counts}; pairing {self.pairing})"


def frequencies(dim: int, theta: float) -> np.ndarray:
    """inv_freq[i] = theta^(-2i / dim), i = 0 .. dim / 2 - 1, as [dim / 2] float32.

    Rounded to float32 at each step (the exponent, the power, the inverse), as the code that models train with does it;
    at dim 80 that differs from the exact power by up to 4e-7 of its value.
    """
    if not (np.isfinite(theta) and theta > 0):
        raise ValueError(f"theta must be a positive number, got {theta!r}")
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim or 1)
    power = np.power(np.float64(theta), exponent.astype(np.float64)).astype(np.float32)
    return np.float32(1) / power


def axis_of_pairs(sections: Sequence[int], layout: Layout, axes: str = "thw") -> str:
    """The letter of each pair's axis, from the pairs per axis and the layout.

    Raises:
        ValueError: sections that are not one count per axis, or that the layout cannot place. Of "interleaved" pair n of axis
            a sits at n * len(axes) + a, and upstreams silently drop those that run past the end; "by_channel" is no rotation.
    """
    if len(sections) != len(axes) or any(n < 0 for n in sections):
        raise ValueError(f"sections must be a number of pairs for each of the axes {axes!r}, got {list(sections)}")
    if layout == "contiguous":
        return "".join(letter * n for letter, n in zip(axes, sections, strict=True))
    if layout == "alternating":
        last, *turns = sections
        if len(set(turns)) > 1:
            raise ValueError(f"alternating sections {list(sections)}: {axes[1:]} take turns, so each must have as many pairs")
        return axes[1:] * turns[0] + axes[0] * last
    if layout == "by_channel":
        raise ValueError(
            "layout 'by_channel' gives the two channels of a pair to different axes (what transformers does for HunYuan): that "
            "is no rotation, and a RotarySpec cannot say it; use the reference's 'contiguous'"
        )
    if layout != "interleaved":
        raise ValueError(f"layout must be one of {get_args(Layout)}, got {layout!r}")
    step = len(axes)
    pairs = [axes[0]] * sum(sections)
    for a, (letter, n) in enumerate(zip(axes[1:], sections[1:], strict=True), start=1):
        room = len(range(a, len(pairs), step))
        if n > room:
            raise ValueError(
                f"interleaved sections {list(sections)}: {letter} has {n} pairs, "
                f"but only {room} places among {len(pairs)} pairs"
            )
        pairs[a : n * step : step] = [letter] * n
    return "".join(pairs)


def _axis_indices(axis: str | Sequence[int] | np.ndarray, axes: str) -> np.ndarray:
    if isinstance(axis, str):
        unknown = sorted(set(axis) - set(axes))
        if unknown:
            raise ValueError(f"axis {axis!r} has letters that are not among the axes {axes!r}: {unknown}")
        return np.array([axes.index(letter) for letter in axis], dtype=np.int64)
    indices = np.array(axis, dtype=np.int64)
    if indices.size and not 0 <= indices.min() <= indices.max() < len(axes):
        raise ValueError(
            f"axis indices must be 0 .. {len(axes) - 1} for the axes {axes!r}, got {sorted(set(indices.tolist()))}"
        )
    return indices


def _rotary_dim(head_dim: int, rotary_dim: int | None) -> int:
    rotary_dim = head_dim if rotary_dim is None else rotary_dim
    if rotary_dim % 2 or not 0 <= rotary_dim <= head_dim:
        raise ValueError(f"rotary_dim must be even and at most head_dim ({head_dim}), got {rotary_dim}")
    return rotary_dim


_ROPE_KEYS = {"rope_type", "type", "rope_theta", "mrope_section", "mrope_interleaved", "partial_rotary_factor"}


def _rope_parameters(text: Mapping[str, Any], family: str) -> dict[str, Any]:
    """`rope_parameters` of a config, whichever form it has, with its keys checked."""
    rope = dict(text.get("rope_parameters") or text.get("rope_scaling") or {})
    for key in ("rope_theta", "partial_rotary_factor"):
        if text.get(key) is not None:
            rope.setdefault(key, text[key])
    unknown = sorted(set(rope) - _ROPE_KEYS)
    kinds = {str(rope[key]) for key in ("rope_type", "type") if rope.get(key) is not None} - {"default", "mrope"}
    if kinds or unknown:
        raise ValueError(
            f"{family}: rope parameters have "
            + (f"type {', '.join(sorted(kinds))} " if kinds else f"unknown keys {unknown} ")
            + f"in {rope}; this version reads unscaled rotary embeddings (type default or mrope). Nothing was ignored"
        )
    if rope.get("rope_theta") is None:
        raise ValueError(f"{family}: the config has no rope_theta")
    return rope
