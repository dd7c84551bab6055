"""A rotary embedding in the place of a model's own: the same call, the same shapes, and angles that are right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmrope.checkpoints.configs import config_dict, family_of
from mmrope.checkpoints.models import MODELS
from mmrope.checkpoints.rotary import as_module
from mmrope.encodings.rotary import Angles, RotaryEmbedding
from mmrope.encodings.spec import RotarySpec

TOLERANCE = 1e-5
"""cos and sin of a model's own module may differ by this at small ids, whose angles float32 has right."""


class RotaryInPlace(nn.Module):
    """For an attribute of a transformers model: `text.rotary_emb = RotaryInPlace(text.rotary_emb)`, where `text` is the module
    that holds it (`model.model.language_model`; of models of text alone `model.model`). It has no parameters, and no state
    from one call to the next.

    What is not said is read of the module that it replaces: the rotary embedding from its `config`, and by calling one like it,
    which dimensions it returns. They are compared on small ids, and the module's own frequencies with those of one that is made
    anew, so that one that computes something else than its config says, or was changed by hand, is found at once. The rotary
    embeddings of vision towers are called otherwise, and are not for this: `RotarySpec.axial`.

    Modules of text alone are taken, too; those that return complex numbers (Llama 4, DeepSeek-V2) get cos + i sin, which differ
    from their torch.polar by 6e-8.

    Source of the modules: transformers 4.57.1 and 5.23.0, models/*/modeling_*.py, `*RotaryEmbedding`.

    Args:
        own: the model's module.
        spec: a rotary embedding other than its own (`spec_of(own).scaled(YaRN(...))`), whose angles are not compared; axes,
            rotated channels and pairing must be the model's. Of modules that differ by type of layer one for each:
            {"full_attention": spec, ...}.
        angles: as of RotaryEmbedding: "exact", or "hf", the module's float32 product.

    Raises:
        ValueError: a module that is not of the known form, a config that cannot be read, a module that computes something else,
            a spec that the model's code cannot apply.

    Example:
        >>> import torch
        >>> from mmrope.adapters.rotary import RotaryInPlace
        >>> class Own(torch.nn.Module):  # stands for the rotary_emb of a model
        ...     rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [1, 1, 1]}
        ...     config = {"model_type": "qwen2_vl_text", "head_dim": 6, "rope_parameters": rope}
        ...     def __init__(self, config=None):
        ...         super().__init__()
        ...         self.register_buffer("inv_freq", 100.0 ** -(torch.arange(3) / 3))
        ...     def forward(self, x, ids):  # ids [3, B, S], one pair of channels for each axis
        ...         angle = (ids.movedim(0, -1) * self.inv_freq).repeat(1, 1, 2)  # [B, S, 6]
        ...         return angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        >>> cos, sin = RotaryInPlace(Own())(torch.zeros(1), torch.arange(4).expand(3, 1, 4))
        >>> tuple(cos.shape)
        (1, 4, 6)
    """

    def __init__(
        self, own: nn.Module, *, spec: RotarySpec | dict[str, RotarySpec] | None = None, angles: Angles = "exact"
    ) -> None:
        super().__init__()
        config = getattr(own, "config", None)
        if config is None:
            raise ValueError(f"{type(own).__name__} has no config: pass the rotary module of a transformers model")
        self.layers = list(_layers(own))
        specs = spec if isinstance(spec, dict) else dict.fromkeys(self.layers, spec)
        if set(specs) != set(self.layers):
            raise ValueError(f"{type(own).__name__} has layers of types {self.layers}: give a spec for each, not {list(specs)}")
        self.by_layer = nn.ModuleDict()
        for layer in self.layers:
            known, stated = spec_of(own, layer or None), specs[layer]
            if stated is not None:
                _check_fits(stated, known)
            self.by_layer[layer or _ALL] = RotaryEmbedding(stated or known, angles=angles)
        # made anew, as the model's may have been cast, or stand on the meta device
        with torch.device("cpu"):
            fresh = type(own)(config)
        known = spec_of(own, self.layers[0] or None)
        ids = torch.stack([torch.arange(8).roll(3 * a) for a in range(len(known.axes))])[:, None]  # [A, 1, 8]
        ids = ids if len(known.axes) > 1 else ids[0]  # [1, 8] of text
        found = _call(fresh, torch.zeros(1, dtype=torch.bfloat16), ids, self.layers[0])
        self.complex = isinstance(found, Tensor) and found.is_complex()
        if not self.complex and not isinstance(found, tuple):
            raise ValueError(
                f"{type(own).__name__} returns neither cos and sin nor complex numbers, but {type(found).__name__}"
            )
        theirs, pairs = _parts(found)[0], len(known.inv_freq)
        self.axes_lead = theirs.ndim == 4
        self.in_float32 = theirs.dtype == torch.float32
        # [B, S, P], or each pair's number at both of its channels: as two halves, or as neighbours
        self.once = theirs.shape[-1] == pairs
        self.halves = self.once or self.axes_lead or torch.equal(theirs[..., :pairs], theirs[..., pairs:])
        if spec is None:
            _check_unchanged(own, fresh)
            for layer in self.layers:
                self._compare(fresh, ids, layer)
        self.to(next(own.buffers()).device)

    def _rotary(self, layer: str | None) -> RotaryEmbedding:
        found = self.by_layer[layer or _ALL]
        assert isinstance(found, RotaryEmbedding)
        return found

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, Tensor] | Tensor:
        """cos and sin of every channel, as the module in whose place this is returns them.

        Args:
            x: hidden states; their dtype alone is looked at.
            position_ids: [A, B, S], or [1, B, S] and [B, S] of text.
            layer_type: of models whose layers differ.

        Returns:
            cos, sin: [B, S, R] in the dtype of x (Ernie: float32). In transformers 4.57 [3, B, S, R], of which the model's own
            code takes each channel from one of the three; here all three are alike. Of models that multiply complex numbers
            cos + i sin, [B, S, P].
        """
        if (layer_type or "") not in self.layers:
            raise ValueError(f"layer_type is {layer_type!r}, but there are layers of types {self.layers}")
        rotary = self._rotary(layer_type)
        spec = rotary.spec
        ids = position_ids[None] if position_ids.ndim == 2 else position_ids
        if ids.ndim != 3 or len(ids) not in (1, len(spec.axes)):
            raise ValueError(
                f"position_ids must be [{len(spec.axes)}, B, S], or [B, S] of text, got {list(position_ids.shape)}; a row of "
                "text positions in front is not for the rotation"
            )
        ids = ids.expand(len(spec.axes), -1, -1)  # [A, B, S]
        # a tensor, which waits for no device; the model's own module scales by the same
        tables = rotary(ids, length=ids.max() + 1 if spec.needs_length else None)  # [B, S, P]
        if self.complex:
            return torch.complex(*tables)
        if self.once:
            cos, sin = tables
        elif self.halves:
            cos, sin = (torch.cat((table, table), dim=-1) for table in tables)  # [B, S, R]
        else:
            cos, sin = (table.repeat_interleave(2, dim=-1) for table in tables)  # [B, S, R]
        if self.axes_lead:
            cos, sin = (table.expand(len(spec.axes), *table.shape) for table in (cos, sin))  # [A, B, S, R]
        return (cos, sin) if self.in_float32 else (cos.to(x.dtype), sin.to(x.dtype))

    def _compare(self, fresh: nn.Module, ids: Tensor, layer: str) -> None:
        """That the model's module computes the same on small ids."""
        x, axis = torch.zeros(1), torch.tensor(self._rotary(layer).spec.axis)
        for theirs, ours in zip(_parts(_call(fresh, x, ids, layer)), _parts(self(x, ids, layer or None)), strict=True):
            if self.axes_lead and theirs.shape == ours.shape:
                which = torch.cat((axis, axis)).expand(1, *theirs.shape[1:])  # [1, B, S, R]
                theirs, ours = theirs.gather(0, which), ours[:1]
            if theirs.shape != ours.shape or (theirs - ours).abs().max() > TOLERANCE:
                found = "other angles" if theirs.shape == ours.shape else f"{list(theirs.shape)}, not {list(ours.shape)}"
                raise ValueError(
                    f"{type(fresh).__name__} computes {found} than {self._rotary(layer).spec!r}, which its config says: pass "
                    "spec= to rotate by what you state"
                )


_ROUNDED = 2**-7  # of a frequency, by a cast to bfloat16 and back; in float16 small ones lose up to 6e-8
_ALL = "all"  # the key of a module whose layers are alike


def _check_fits(stated: RotarySpec, known: RotarySpec) -> None:
    """That a model's code, which pairs channels and takes rows of ids in its own way, can apply a spec."""
    for what, one, other in (
        ("pairing", stated.pairing, known.pairing),
        ("rotated channels", stated.rotary_dim, known.rotary_dim),
        ("axes", stated.axes, known.axes),
    ):
        if one != other:
            raise ValueError(f"the spec has {what} {one!r}, but the model's code has {other!r}, which no module can change")


def _check_unchanged(own: nn.Module, fresh: nn.Module) -> None:
    """That a module's frequencies and attention factors are those of one made anew of its config, but for what casts round. Of
    "dynamic" and "longrope", which change theirs, the original ones."""
    kinds = getattr(own, "rope_type", "default")
    changing = bool({"dynamic", "longrope"} & set(kinds.values() if isinstance(kinds, dict) else [kinds]))
    if any(buffer.is_meta for buffer in own.buffers()):
        return  # it has none
    found = [name for name, _ in fresh.named_buffers() if name.endswith("inv_freq") and ("original" in name) == changing]
    for name in [*found, *(name for name in vars(fresh) if name.endswith("attention_scaling"))]:
        mine, made = (torch.as_tensor(getattr(module, name)).cpu() for module in (own, fresh))
        if not torch.allclose(mine.float(), made.float(), rtol=_ROUNDED, atol=1e-7):
            raise ValueError(
                f"{type(own).__name__}.{name} is not what its config says: it was changed by hand. Say what to rotate by, spec="
            )


def spec_of(own: nn.Module, layer_type: str | None = None) -> RotarySpec:
    """The rotary embedding of a transformers model's rotary module: what its config says, and of what the config leaves out
    (sections) what the module has.

    Raises:
        ValueError: a config that cannot be read, a type of layer that the module does not have.

    Example:
        >>> import torch
        >>> from mmrope.adapters.rotary import spec_of
        >>> own = torch.nn.Module()  # stands for model.model.language_model.rotary_emb
        >>> own.register_buffer("inv_freq", torch.ones(64))
        >>> rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
        >>> own.config = {"model_type": "qwen2_vl_text", "head_dim": 128, "rope_parameters": rope}
        >>> spec_of(own)
        RotarySpec(head_dim 128, 64 pairs: t 16, h 24, w 24; pairing half)
    """
    if (layer_type or "") not in _layers(own):
        raise ValueError(f"{type(own).__name__} has layers of types {list(_layers(own))}, not {layer_type!r}")
    config = config_dict(own.config)
    text = config_dict(config.get("text_config") or config)  # a module's own config is the text's, as a rule
    if text.get("model_type") in MODELS and not MODELS[text["model_type"]].axes:
        _, spec = as_module(text, layer_type=layer_type)
        if spec is None:
            raise ValueError(f"{type(own).__name__}: layers of type {layer_type!r} do not rotate")
        return spec
    rope = dict(text.get("rope_parameters") or text.get("rope_scaling") or {})
    mine = dict(rope[layer_type] if layer_type else rope)
    if not {"mrope_section", "xdrope_section"} & set(mine):
        sections: Any = getattr(own, "mrope_section", None)
        pairs, axes = _layers(own)[layer_type or ""].numel(), len(family_of(text.get("model_type")).axes)
        mine["mrope_section"] = (sections[layer_type] if layer_type else sections) if sections else [pairs // axes] * axes
    key = "rope_parameters" if text.get("rope_parameters") else "rope_scaling"
    _, spec = as_module({**text, key: {**rope, layer_type: mine} if layer_type else mine}, layer_type=layer_type)
    assert spec is not None
    return spec


def _layers(own: nn.Module) -> dict[str, Tensor]:
    """Frequencies by type of layer; "" where layers are alike."""
    named = {name.removesuffix("inv_freq").rstrip("_"): buffer for name, buffer in own.named_buffers() if "inv_freq" in name}
    found = {name: buffer for name, buffer in named.items() if not name.endswith("original")}
    if not found:
        raise ValueError(f"{type(own).__name__} has no inv_freq: pass the rotary module of a transformers model")
    return found


def _parts(found: tuple[Tensor, Tensor] | Tensor) -> tuple[Tensor, Tensor]:
    return (found.real, found.imag) if isinstance(found, Tensor) else found


def _call(own: nn.Module, x: Tensor, ids: Tensor, layer: str) -> tuple[Tensor, Tensor] | Tensor:
    return own(x, ids, layer) if layer else own(x, ids)
