"""What a rotary embedding is: a frequency and an axis for each pair of channels, and which channels form a pair.

    angle[b, s, p] = position_ids[axis[p], b, s] * inv_freq[p]

1D RoPE, axial 2D and 3D RoPE and every M-RoPE are values of these two vectors. numpy only.

Its JSON (`RotarySpec.to_dict`) is for any language: docs/encodings.md says what each key means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal, get_args

import numpy as np

from mmrope.encodings.scaling import NTK, DynamicNTK, LongRoPE, Powers, Scaling, Temperature, powers
from mmrope.positions.families import family as find_family
from mmrope.positions.rules import Family, Layout, Pairing
from mmrope.positions.stated import choice, numbers, several, whole, whole_numbers
from mmrope.records import Keys, Must, Positive, is_number, shown

MOST_CHANNELS = 2**16
"""Of a head: a config that says more is wrong, and would fill the memory with frequencies."""


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@dataclass(frozen=True, eq=False)
class Spectra:
    """What the frequencies of a spec were made of: spectra theta^(-2i / dim), dealt out to pairs. Scalings start from these."""

    of: tuple[tuple[float, int], ...]
    """(theta, dim) of each."""
    which: np.ndarray
    """[P] the spectrum of each pair, -1 of pairs that stand still."""
    index: np.ndarray
    """[P] i, the place of each pair in its spectrum."""
    backwards: bool = False
    """Whether pairs turn by the negative angle, as nanochat's do."""

    def __post_init__(self) -> None:
        for name in ("which", "index"):
            object.__setattr__(self, name, _frozen(np.array(getattr(self, name), dtype=np.int64)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.of, self.which, self.index, self.backwards)

    @classmethod
    def one(cls, dim: int, theta: float) -> Spectra:
        """A single one, in its order."""
        return cls(((theta, dim),), np.zeros(dim // 2, dtype=np.int64), np.arange(dim // 2))

    def to_dict(self) -> dict[str, Any]:
        of = [{"theta": float(theta), "dim": int(dim)} for theta, dim in self.of]
        stated = {"of": of, "which": self.which.tolist(), "index": self.index.tolist()}
        return {**stated, "backwards": True} if self.backwards else stated

    @classmethod
    def from_dict(cls, stated: Mapping[str, Any]) -> Spectra:
        keys = Keys(stated, "spectra")
        each = [Keys(item, f"spectra.of[{n}]") for n, item in enumerate(keys("of", tuple[dict, ...]))]
        of = tuple((float(item("theta", Positive)), item("dim", _Channels)) for item in each)
        which, index = (np.array(keys(key, tuple[_Index, ...]), dtype=np.int64) for key in ("which", "index"))
        if which.shape != index.shape or (len(which) and which.max() >= len(of)):
            raise ValueError(f"spectra.which must have for each of the {len(index)} pairs of index one of {len(of)} spectra")
        for n, (_, dim) in enumerate(of):
            if (mine := index[which == n]).size and not 0 <= mine.min() <= mine.max() < dim // 2:
                raise ValueError(f"spectra.index must be places among the {dim // 2} pairs of spectra.of[{n}]")
        return cls(of, which, index, keys("backwards", bool, False))

    def frequencies(self, scaling: Scaling | None, *, length: int | None = None, powers: Powers = powers) -> np.ndarray:
        """[P] float32."""
        inv_freq = np.zeros(len(self.which), dtype=np.float32)
        for n, (theta, dim) in enumerate(self.of):
            if scaling is None:
                spectrum = np.float32(1) / powers(dim, theta)
            else:
                spectrum = scaling.frequencies(dim, theta, length=length, powers=powers)
            mine = self.which == n
            inv_freq[mine] = spectrum[self.index[mine]]
        return -inv_freq if self.backwards else inv_freq


@dataclass(frozen=True, eq=False)
class RotarySpec:
    """A rotary embedding as a value: made by hand, by `rope`, `axial`, `mrope`, or from a checkpoint by `rotary_from_config`.

    R = 2 P channels are rotated, P = len(inv_freq) pairs; the other head_dim - R channels pass through.

    Example:
        >>> import numpy as np
        >>> from mmrope import RotarySpec
        >>> spec = RotarySpec(8, np.array([1.0, 0.1, 0.01]), np.array([0, 1, 1]), "hw")  # by hand
        >>> spec.rotary_dim, spec.axis_letters
        (6, 'hww')
    """

    head_dim: int
    inv_freq: np.ndarray
    """[P] float32, radians per position id."""
    axis: np.ndarray
    """[P] int64, the axis that turns each pair, as an index into `axes`; or [K, P], for each KV head its own. Given as letters
    of `axes` or as indices."""
    axes: str
    """The axes of the position ids, in their order: "t", "hw", "thw"."""
    pairing: Pairing = "half"
    """"half": channels p and p + P form a pair (NeoX, Hugging Face). "adjacent": 2 p and 2 p + 1 (GPT-J, RoFormer).
    "block_half": each axis has a block of channels of its own, whose halves form the pairs (CroCo, VGGT, Gemma 4's tower)."""
    scaling: Scaling | None = None
    """What `inv_freq` is scaled by."""
    spectra: Spectra | None = None
    """What `inv_freq` was made of; None of a spec that was made by hand."""
    attention_factor: float = 1.0
    """What cos and sin are multiplied by: `scaled` sets it."""
    score_factor: float = 1.0
    """What attention must multiply its scores by, besides 1 / sqrt(head_dim): 1.874 for DeepSeek-V3 (`YaRN`). Rotations do not
    do it: scaled_dot_product_attention(..., scale=head_dim**-0.5 * spec.score_factor)."""
    temperature: Temperature | None = None
    """What `RotaryEmbedding.rotate` multiplies queries by, by position."""

    def __post_init__(self) -> None:
        _check_axes(self.axes)
        choice(self.pairing, "pairing", get_args(Pairing))
        object.__setattr__(self, "head_dim", _channels(self.head_dim))
        for name, kind in (("scaling", Scaling), ("spectra", Spectra), ("temperature", Temperature)):
            if not isinstance(getattr(self, name), (kind, type(None))):
                raise ValueError(f"{name} must be a {kind.__name__} or None, got {shown(getattr(self, name))}")
        with np.errstate(over="ignore"):
            inv_freq = numbers(self.inv_freq, "inv_freq", shape=" [P]").astype(np.float32)
        if inv_freq.ndim != 1 or not np.isfinite(inv_freq).all():
            raise ValueError(f"inv_freq must be one finite number per pair, [P], got shape {inv_freq.shape}")
        axis = _axis_indices(self.axis, self.axes)
        axis = axis[0] if axis.ndim == 2 and len(axis) == 1 else axis  # one KV head is all
        if axis.ndim not in (1, 2) or axis.shape[-1:] != inv_freq.shape:
            raise ValueError(
                f"axis has {axis.shape[-1]} entries for {len(inv_freq)} pairs of inv_freq: one each is needed, [P] or [K, P]"
            )
        if 2 * len(inv_freq) > self.head_dim:
            raise ValueError(
                f"{len(inv_freq)} pairs rotate {2 * len(inv_freq)} channels, but head_dim is {self.head_dim}; "
                "inv_freq has one entry per pair, not per channel"
            )
        for name in ("attention_factor", "score_factor"):
            value = getattr(self, name)
            if not is_number(value) or value <= 0:
                raise ValueError(f"{name} must be a positive number, got {shown(value)}")
        if self.temperature is not None and len(self.axes) != 1:
            raise ValueError(
                f"a temperature goes by the one position of a token, but there are {len(self.axes)} axes {self.axes!r}"
            )
        for name, array in (("inv_freq", inv_freq), ("axis", axis)):
            object.__setattr__(self, name, _frozen(array))
        if self.pairing == "block_half":
            lengths = _run_lengths(axis)
            if axis.ndim != 1 or len(set(lengths)) > 1:
                raise ValueError(
                    "pairing 'block_half' needs a block of pairs for each axis, all of one size, got "
                    + (f"blocks of {lengths}" if axis.ndim == 1 else "axes by KV head")
                )

    # --- the usual ones -------------------------------------------------------------------------------------------------

    @classmethod
    def rope(cls, head_dim: int, *, theta: float = 1e4, rotary_dim: int | None = None, pairing: Pairing = "half") -> RotarySpec:
        """1D RoPE (RoFormer, arXiv 2104.09864): the first `rotary_dim` channels, all of them by default.

        Example:
            >>> from mmrope import RotarySpec
            >>> RotarySpec.rope(4, theta=100.0).inv_freq.astype(float).round(4).tolist()
            [1.0, 0.1]
            >>> RotarySpec.rope(128, rotary_dim=64).rotary_dim  # partial rotary
            64
        """
        spectra = Spectra.one(_rotary_dim(head_dim, rotary_dim), theta)
        return cls._of(head_dim, spectra, np.zeros(len(spectra.which), dtype=np.int64), "t", pairing)

    @classmethod
    def nope(cls, head_dim: int, *, axes: str = "t", temperature: Temperature | None = None) -> RotarySpec:
        """No position encoding at all, as a value: nothing is rotated.

        Example:
            >>> from mmrope import RotarySpec
            >>> RotarySpec.nope(128).rotary_dim
            0
        """
        return cls(head_dim, np.zeros(0), np.zeros(0, dtype=np.int64), axes, temperature=temperature)

    @classmethod
    def axial(
        cls,
        head_dim: int,
        *,
        axes: str = "hw",
        theta: float | Sequence[float] = 1e4,
        dims: Sequence[int] | None = None,
        spectrum: Literal["per_axis", "shared"] = "per_axis",
        pairing: Pairing = "half",
    ) -> RotarySpec:
        """2D or 3D RoPE for grids: each axis turns its own block of pairs, in the order of `axes`.

        Args:
            theta: the base; with "per_axis" also one for each axis.
            dims: channels of each axis (even; the rest of head_dim passes through); by default equal shares of head_dim.
            spectrum: "per_axis", each axis has the full spectrum theta^(-2i / dims[a]) (Qwen2-VL's vision tower);
                "shared", one spectrum over all rotated channels is dealt to the axes in turn (Pixtral).

        Example:
            >>> from mmrope import RotarySpec
            >>> RotarySpec.axial(16, axes="hw").axis_letters
            'hhhhwwww'
            >>> RotarySpec.axial(16, axes="thw", dims=(4, 6, 6)).axis_letters
            'tthhhwww'
        """
        _check_axes(axes)
        choice(spectrum, "spectrum", ("per_axis", "shared"))
        head_dim = whole(head_dim, "head_dim", least=0, of="")
        if dims is None:
            if head_dim % (2 * len(axes)):
                raise ValueError(
                    f"head_dim {head_dim} does not give {len(axes)} axes ({axes}) equal numbers of pairs; "
                    "say dims=, channels per axis"
                )
            dims = [head_dim // len(axes)] * len(axes)
        dims = whole_numbers(dims, "dims", of="")
        if len(dims) != len(axes) or any(d < 0 or d % 2 for d in dims) or sum(dims) > _channels(head_dim):
            raise ValueError(
                f"dims must be an even number of channels for each of the axes {axes!r}, of {head_dim}, got {list(dims)}"
            )
        axis = np.repeat(np.arange(len(axes)), [d // 2 for d in dims])
        thetas = [theta] * len(axes) if isinstance(theta, (int, float)) else several(theta, "theta")
        if len(thetas) != len(axes) or (spectrum == "shared" and len(set(thetas)) > 1):
            raise ValueError(
                f"theta must be one number, or with spectrum='per_axis' one for each of the axes {axes!r}, got {shown(theta)}"
            )
        if spectrum == "per_axis":
            index = np.concatenate([np.arange(d // 2) for d in dims])
            spectra = Spectra(tuple(zip(thetas, dims, strict=True)), axis, index)
        else:
            if len(set(dims)) > 1:
                raise ValueError(
                    f"spectrum='shared' deals one spectrum out in turn, so all dims must be equal, got {list(dims)}"
                )
            index = np.arange(sum(dims) // 2).reshape(-1, len(axes)).T.reshape(-1)  # [P], axis by axis
            spectra = Spectra(((thetas[0], sum(dims)),), np.zeros_like(index), index)
        return cls._of(head_dim, spectra, axis, axes, pairing)

    @classmethod
    def mrope(
        cls,
        head_dim: int,
        *,
        theta: float = 1e4,
        sections: Sequence[int] | None = None,
        layout: Layout = "contiguous",
        axis: str | None = None,
        kv_heads: Sequence[int] | None = None,
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
            kv_heads: instead of sections, KV heads per axis, each of which has the whole spectrum (MHRoPE, arXiv 2510.23095).
            rotary_dim: rotated channels, head_dim by default.

        Example:
            >>> from mmrope import RotarySpec
            >>> RotarySpec.mrope(32, sections=(4, 6, 6)).axis_letters
            'tttthhhhhhwwwwww'
            >>> RotarySpec.mrope(32, sections=(6, 5, 5), layout="interleaved").axis_letters
            'thwthwthwthwthwt'
        """
        _check_axes(axes)
        spectra = Spectra.one(_rotary_dim(head_dim, rotary_dim), theta)
        pairs = len(spectra.which)
        if sum(given is not None for given in (sections, axis, kv_heads)) != 1:
            raise ValueError(
                "say either sections (pairs per axis) with a layout, or axis (one letter per pair), or kv_heads (per axis)"
            )
        if kv_heads is not None:
            kv_heads = whole_numbers(kv_heads, "kv_heads", of="")
            if len(kv_heads) != len(axes) or any(n < 0 for n in kv_heads):
                raise ValueError(f"kv_heads must be a number of KV heads for each of the axes {axes!r}, got {list(kv_heads)}")
            by_head = np.repeat(np.arange(len(axes)), kv_heads)[:, None]  # [K, 1]
            return cls._of(head_dim, spectra, np.broadcast_to(by_head, (len(by_head), pairs)), axes, pairing)
        if sections is not None:
            axis = axis_of_pairs(sections, layout, axes)
        if not isinstance(axis, str):
            raise ValueError(f"axis must be letters of {axes!r}, one for each pair, got {shown(axis)}")
        if len(axis) != pairs:
            given = f"sections {tuple(sections)} make" if sections is not None else "axis makes"
            raise ValueError(f"{given} {len(axis)} pairs, but {2 * pairs} rotated channels are {pairs} pairs")
        return cls._of(head_dim, spectra, _axis_indices(axis, axes), axes, pairing)

    @classmethod
    def _of(cls, head_dim: int, spectra: Spectra, axis: np.ndarray, axes: str, pairing: Pairing) -> RotarySpec:
        return cls(head_dim, spectra.frequencies(None), axis, axes, pairing, spectra=spectra)

    @classmethod
    def from_family(cls, family: Family | str) -> RotarySpec:
        """The rotary embedding of a family's released checkpoints, as the table of families has it: `family.rotary.released`
        names the config, and is empty where none was at hand, so that the facts may not be a checkpoint's. Of a family with one
        axis, over 128 channels.

        Raises:
            ValueError: an unknown family, or one whose upstream does not rotate pairs.

        Example:
            >>> from mmrope import RotarySpec
            >>> spec = RotarySpec.from_family("qwen3_vl")
            >>> spec.head_dim, spec.axis_letters[:12]
            (128, 'thwthwthwthw')
        """
        family = find_family(family)
        rotary_dim = 2 * sum(family.rotary.sections) or 128
        if family.rotary.layout == "axial":
            dims = [2 * n for n in family.rotary.sections]
            facts = {"theta": family.rotary.theta, "pairing": family.rotary.pairing}
            return cls.axial(int(rotary_dim / family.rotary.rotary_fraction), axes=family.axes, dims=dims, **facts)
        spec = cls.mrope(
            int(rotary_dim / family.rotary.rotary_fraction),
            theta=family.rotary.theta,
            sections=family.rotary.sections or (rotary_dim // 2,),
            layout=family.rotary.layout,
            axes=family.axes,
            rotary_dim=rotary_dim,
            pairing=family.rotary.pairing,
        )
        assert spec.spectra is not None
        still = np.isin(spec.axis, [family.axes.index(axis) for axis in family.rotary.still])
        spectra = replace(spec.spectra, which=np.where(still, -1, spec.spectra.which))
        spec = cls._of(spec.head_dim, spectra, spec.axis, spec.axes, spec.pairing)
        return spec if family.rotary.ntk is None else spec.scaled(NTK(family.rotary.ntk))

    # --- scaled -----------------------------------------------------------------------------------------------------------

    def scaled(self, scaling: Scaling) -> RotarySpec:
        """The same rotary embedding, extended to longer contexts: `spec.scaled(YaRN(factor=4, original_max_position=32768))`.

        Raises:
            ValueError: a spec that is scaled already, or was made of frequencies by hand, whose spectrum is not known.

        Example:
            >>> from mmrope import RotarySpec, YaRN
            >>> spec = RotarySpec.rope(128, theta=1e6).scaled(YaRN(factor=4, original_max_position=32768))
            >>> round(spec.attention_factor, 4)
            1.1386
        """
        if not isinstance(scaling, Scaling):
            raise ValueError(f"scaled takes a Scaling (YaRN, PI, ...), got {shown(scaling)}")
        if self.scaling is not None:
            raise ValueError(f"the spec is scaled already, by {self.scaling}: scale the unscaled one")
        if self.spectra is None:
            raise ValueError(
                "the spec was made of frequencies by hand, and scalings start from a spectrum, theta and dim: make it with "
                "rope, axial or mrope, or scale inv_freq yourself"
            )
        length = scaling.original_max_position if isinstance(scaling, (DynamicNTK, LongRoPE)) else None
        return replace(
            self,
            inv_freq=self.spectra.frequencies(scaling, length=length),
            scaling=scaling,
            attention_factor=scaling.attention_factor,
            score_factor=scaling.score_factor,
        )

    @property
    def needs_length(self) -> bool:
        """Whether the frequencies depend on the length of the sequence; `inv_freq` is then that of the original length."""
        return self.scaling is not None and self.scaling.needs_length

    def at_length(self, length: int) -> np.ndarray:
        """[P] float32, the frequencies for sequences of this length.

        Example:
            >>> from mmrope import RotarySpec
            >>> from mmrope.encodings import DynamicNTK
            >>> spec = RotarySpec.rope(8).scaled(DynamicNTK(original_max_position=4096))
            >>> [bool((spec.at_length(length) < spec.inv_freq).any()) for length in (4096, 8192)]
            [False, True]
        """
        if not self.needs_length:
            return self.inv_freq
        if length is not None:  # which the scaling refuses
            length = whole(length, "length", least=0)
        assert self.spectra is not None
        return self.spectra.frequencies(self.scaling, length=length)

    # --- as a value -------------------------------------------------------------------------------------------------------

    @property
    def rotary_dim(self) -> int:
        """R, the number of rotated channels."""
        return 2 * len(self.inv_freq)

    @property
    def axis_letters(self) -> str:
        """The axis of each pair as letters: "tttthhhhhhwwwwww"; where KV heads differ, of each in turn, with spaces between."""
        return " ".join("".join(self.axes[a] for a in row) for row in np.atleast_2d(self.axis))

    @property
    def blocks(self) -> int:
        """The blocks of channels whose halves form the pairs: one by "half", P by "adjacent", one per axis by "block_half"."""
        return {"half": 1, "adjacent": len(self.inv_freq)}.get(self.pairing) or len(_run_lengths(self.axis))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, for files and for other languages: docs/encodings.md.

        Raises:
            ValueError: a scaling of one's own whose frequencies depend on the length.

        Example:
            >>> from mmrope import RotarySpec
            >>> stated = RotarySpec.mrope(8, sections=(2, 1, 1)).to_dict()
            >>> stated["axis"], stated["axes"], stated["pairing"]
            (['tthw'], 'thw', 'half')
        """
        scaling, spectra, temperature = self.scaling, self.spectra, self.temperature
        if scaling is not None and not (scaling.in_json or self.needs_length):
            scaling = spectra = None  # one of the user's own: its numbers, inv_freq and factors, say all
        return {
            "head_dim": int(self.head_dim),
            "axes": self.axes,
            "axis": self.axis_letters.split(" "),
            "inv_freq": [float(f) for f in self.inv_freq],
            "pairing": self.pairing,
            "blocks": self.blocks,
            "attention_factor": self.attention_factor,
            "score_factor": self.score_factor,
            "temperature": temperature and asdict(temperature),
            "scaling": scaling and scaling.to_dict(),
            "spectra": spectra and spectra.to_dict(),
        }

    @classmethod
    def from_dict(cls, stated: Mapping[str, Any]) -> RotarySpec:
        """What `to_dict` made, equal to it.

        Raises:
            ValueError: keys that are missing or unknown, values that contradict each other.

        Example:
            >>> from mmrope import RotarySpec
            >>> spec = RotarySpec.mrope(128, theta=1e6, sections=(16, 24, 24))
            >>> RotarySpec.from_dict(spec.to_dict()) == spec
            True
        """
        if not isinstance(stated, Mapping) or set(stated) != set(_JSON):
            given = set(stated) if isinstance(stated, Mapping) else set()
            missing, unknown = sorted(set(_JSON) - given), sorted(given - set(_JSON))
            raise ValueError(f"a rotary embedding as JSON has the keys {sorted(_JSON)}: missing {missing}, unknown {unknown}")
        keys = Keys(stated)
        said = {key: keys(key, hint) for key, hint in _JSON.items()}
        heads = [_axis_indices(row, said["axes"]) for row in said["axis"]]
        if not heads or len({len(row) for row in heads}) > 1:
            raise ValueError(f"axis must have for each KV head as many letters, got {shown(stated['axis'])}")
        made = cls(
            said["head_dim"],
            np.array(said["inv_freq"]),
            heads[0] if len(heads) == 1 else np.stack(heads),
            said["axes"],
            said["pairing"],
            scaling=None if said["scaling"] is None else Scaling.from_dict(said["scaling"]),
            spectra=None if said["spectra"] is None else Spectra.from_dict(said["spectra"]),
            attention_factor=said["attention_factor"],
            score_factor=said["score_factor"],
            temperature=said["temperature"],
        )
        if made.blocks != stated["blocks"]:
            raise ValueError(
                f"pairing {made.pairing!r} over the axes {made.axis_letters!r} has {made.blocks} blocks, not {stated['blocks']}"
            )
        if made.spectra is not None:
            if (entries := len(made.spectra.which)) != len(made.inv_freq):
                raise ValueError(f"spectra.which has {entries} entries for the {len(made.inv_freq)} of inv_freq")
            length = made.scaling.original_max_position if isinstance(made.scaling, (DynamicNTK, LongRoPE)) else None
            if not np.allclose(made.inv_freq, made.spectra.frequencies(made.scaling, length=length), rtol=1e-6, atol=0):
                raise ValueError(f"inv_freq is not what the spectra and {made.scaling} make: correct it, or set both to null")
        if made.scaling is not None and made.scaling.attention_factor != made.attention_factor:
            raise ValueError(f"attention_factor {made.attention_factor} is not that of {made.scaling}")
        if made.needs_length and made.spectra is None:
            raise ValueError(f"{made.scaling} starts from spectra, and the JSON has none")
        return made

    def __reduce__(self) -> tuple[Any, ...]:  # made anew, as arrays come out of copies and pickles as ones that can be written
        return type(self), tuple(getattr(self, f.name) for f in fields(self))

    def _key(self) -> tuple[Any, ...]:
        """What it computes: two specs are equal if their numbers are, however they were made."""
        axis = (self.axis.shape, self.axis.tobytes())
        factors = (self.attention_factor, self.score_factor, self.temperature)
        by_length = (self.scaling, self.spectra and repr(self.spectra.to_dict())) if self.needs_length else None
        return (self.head_dim, self.inv_freq.tobytes(), *axis, self.axes, self.pairing, *factors, by_length)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, RotarySpec) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        counts = ", ".join(f"{letter} {self.axis_letters.count(letter)}" for letter in self.axes)
        scaled = f"; {self.scaling}" if self.scaling is not None else ""
        return f"RotarySpec(head_dim {self.head_dim}, {len(self.inv_freq)} pairs: {counts}; pairing {self.pairing}{scaled})"


_Channels = Annotated[int, Must(f"a number of channels, at most {MOST_CHANNELS:,}", lambda n: 0 <= n <= MOST_CHANNELS)]
_Index = Annotated[int, Must("a place in a list, or -1", lambda n: -1 <= n <= MOST_CHANNELS)]
_JSON: Mapping[str, Any] = {
    "head_dim": _Channels,
    "axes": str,
    "axis": tuple[str, ...],
    "inv_freq": tuple[float, ...],
    "pairing": Pairing,
    "blocks": int,
    "attention_factor": Positive,
    "score_factor": Positive,
    "temperature": Temperature | None,
    "scaling": dict | None,
    "spectra": dict | None,
}
"""The keys of a rotary embedding as JSON, and what each must be."""


def axis_of_pairs(sections: Sequence[int], layout: Layout, axes: str = "thw") -> str:
    """The letter of each pair's axis, from the pairs per axis and the layout.

    Raises:
        ValueError: sections that are not one count per axis, or that the layout cannot place. Of "interleaved" pair n of axis
            a sits at n * len(axes) + a, and upstreams silently drop those that run past the end; "by_channel" is no rotation.
    """
    _check_axes(axes)
    choice(layout, "layout", get_args(Layout))
    sections = whole_numbers(sections, "sections", of="")
    if len(sections) != len(axes) or any(n < 0 for n in sections) or sum(sections) > MOST_CHANNELS:
        raise ValueError(f"sections must be a number of pairs for each of the axes {axes!r}, got {list(sections)}")
    if layout == "contiguous":
        return "".join(letter * n for letter, n in zip(axes, sections, strict=True))
    if layout == "alternating":
        last, *turns = sections
        if len(set(turns)) > 1:
            raise ValueError(f"alternating sections {list(sections)}: {axes[1:]} take turns, so each must have as many pairs")
        return axes[1:] * turns[0] + axes[0] * last
    if layout == "balanced":
        return _balanced(sections, axes)
    if layout == "axial":
        raise ValueError("layout 'axial' gives each axis a spectrum of its own: RotarySpec.axial(head_dim, axes=..., dims=...)")
    if layout == "by_channel":
        raise ValueError(
            "layout 'by_channel' gives the two channels of a pair to different axes (what transformers does for HunYuan): that "
            "is no rotation; use the reference's 'contiguous'"
        )
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


def _balanced(sections: Sequence[int], axes: str) -> str:
    """Pair by pair to the axis of which the smallest part is placed, not twice the same while there is another; the last pair
    is the first axis'.

    Source: vllm 0.33.0, layers/rotary_embedding/mrope_interleaved.py, get_mrope_interleaved_id_list with force_last.
    """
    counts = [sections[0] - 1, *sections[1:]]
    if min(counts) < 1:
        raise ValueError(f"balanced sections {list(sections)}: each axis needs a pair, and {axes[0]} two")
    placed, found = [0] * len(axes), []
    for _ in range(sum(counts)):
        left = [a for a in range(len(axes)) if placed[a] < counts[a]]
        others = [a for a in left if a != (found[-1] if found else None)] or left
        found.append(min(others, key=lambda a: (placed[a] / counts[a], a)))
        placed[found[-1]] += 1
    return "".join(axes[a] for a in [*found, 0])


def _axis_indices(axis: str | Sequence[int] | np.ndarray, axes: str) -> np.ndarray:
    if isinstance(axis, str):
        unknown = sorted(set(axis) - set(axes))
        if unknown:
            raise ValueError(f"axis {axis!r} has letters that are not among the axes {axes!r}: {unknown}")
        return np.array([axes.index(letter) for letter in axis], dtype=np.int64)
    indices = numbers(axis, "axis", shape=" [P] or [K, P], or letters")
    if indices.ndim not in (1, 2) or (indices.size and indices.dtype.kind == "f"):
        raise ValueError(f"axis must be letters, or whole numbers [P] or [K, P], got {shown(indices)}")
    indices = indices.astype(np.int64)
    if indices.size and not 0 <= indices.min() <= indices.max() < len(axes):
        raise ValueError(f"axis indices must be 0 .. {len(axes) - 1} for the axes {axes!r}, got {np.unique(indices).tolist()}")
    return indices


def _check_axes(axes: Any) -> None:
    if not isinstance(axes, str) or not axes or len(set(axes)) != len(axes):
        raise ValueError(f"axes must be different letters, one per row of the position ids, got {shown(axes)}")


def _run_lengths(axis: np.ndarray) -> list[int]:
    """How many pairs in a row have the same axis."""
    edges = np.flatnonzero(np.diff(axis)) + 1 if axis.ndim == 1 else np.zeros(0, dtype=np.int64)
    return np.diff(np.array([0, *edges, axis.shape[-1]])).tolist()


def _channels(head_dim: Any) -> int:
    """Of a head."""
    if whole(head_dim, "head_dim", least=0, of="") > MOST_CHANNELS:
        raise ValueError(f"head_dim must be a number of channels, at most {MOST_CHANNELS:,}, got {head_dim}")
    return int(head_dim)


def _rotary_dim(head_dim: int, rotary_dim: int | None) -> int:
    head_dim = _channels(head_dim)
    rotary_dim = head_dim if rotary_dim is None else whole(rotary_dim, "rotary_dim", of="")
    if rotary_dim % 2 or not 0 <= rotary_dim <= head_dim:
        raise ValueError(f"rotary_dim must be even and at most head_dim ({head_dim}), got {rotary_dim}")
    return rotary_dim
