"""mmrope's rotation in the place of the function by which a transformers model rotates queries and keys.

transformers lets it be replaced where a model's file says `@use_kernel_forward_from_hub("rotary_pos_emb")`, and where the
package `kernels` was installed, in a version that it takes, when that file was imported. Nothing of transformers is assigned
to: `kernels` exchanges the function, and puts the former one back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from mmrope.encodings.rotary import apply_rotary

LAYER = "rotary_pos_emb"
"""The name under which transformers lets rotations be replaced."""


@contextmanager
def rotary_kernel(model: nn.Module) -> Iterator[None]:
    """Within the block a transformers model rotates by mmrope; after it, however it ends, as before.

    The function belongs to the file of the model's code, not to the model: other models of the same file rotate by mmrope, too,
    while the block lasts. Other layers that `kernels` can replace (norms, MLPs) stay as they are. Do not change what is
    kernelized within the block: `model.train()` and `model.eval()` of a model with `use_kernels` do.

    Source: transformers 5.22.2 and 5.23.0, models/*/modeling_*.py and integrations/hub_kernels.py; kernels 0.17.2, layer.

    Raises:
        ValueError: `kernels` is missing, or not the version that transformers takes; a model whose rotation transformers does
            not let be replaced, or that is not the one that is put in its place.

    Example:
        >>> import torch
        >>> from mmrope.adapters.replace import rotary_kernel
        >>> def logits(model, inputs):  # of a transformers model
        ...     with rotary_kernel(model):
        ...         return model(**inputs).logits
        >>> logits(torch.nn.Linear(2, 2), {})
        Traceback (most recent call last):
            ...
        ValueError: Linear has no function that rotates: pass a model of transformers
    """
    found = _functions(model)
    for name, function in found.items():
        _check_function(name, function)
    _check_tables(model)
    with ExitStack() as undo:
        for function in found.values():
            undo.callback(_put, function, function.forward.__func__)  # pyright: ignore[reportFunctionMemberAccess]
            _put(function, _forward)
        yield


def rotation(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """`apply_rotary_pos_emb` of transformers' models that pair channels p and p + P: `apply_rotary`, on a GPU in one launch.

    Args:
        q, k: [B, N, S, D] and [B, K, S, D]; with unsqueeze_dim=2 [B, S, N, D] and [B, S, K, D].
        cos, sin: [B, S, D] or [1, S, D], whose halves along D are alike: the first P = D / 2 channels are read.

    Raises:
        ValueError: other shapes.

    Example:
        >>> import torch
        >>> from mmrope.adapters.replace import rotation
        >>> q, k, angle = torch.randn(1, 8, 5, 64), torch.randn(1, 2, 5, 64), torch.randn(1, 5, 32)
        >>> cos, sin = (torch.cat((table, table), dim=-1) for table in (angle.cos(), angle.sin()))  # [B, S, D]
        >>> q, k = rotation(q, k, cos, sin)
        >>> tuple(q.shape), tuple(k.shape)
        ((1, 8, 5, 64), (1, 2, 5, 64))
    """
    q_places, k_places = ([n for i, n in enumerate(x.shape) if i != unsqueeze_dim] for x in (q, k))  # [B, S, D]
    fits = q.ndim == 4 and q_places == k_places and list(cos.shape) in (q_places, [1, *q_places[1:]])
    if not fits or cos.shape != sin.shape or unsqueeze_dim not in (1, 2):
        raise ValueError(
            "mmrope rotates q and k [B, N, S, D] (unsqueeze_dim=1) or [B, S, N, D] (2) by cos and sin [B, S, D], got "
            f"{list(q.shape)}, {list(k.shape)}, {list(cos.shape)}, {list(sin.shape)} and unsqueeze_dim={unsqueeze_dim}"
        )
    heads, pairs = unsqueeze_dim - 4, cos.shape[-1] // 2
    cos, sin = cos[..., :pairs], sin[..., :pairs]  # [B, S, P]
    learned = torch.is_grad_enabled() and (cos.requires_grad or sin.requires_grad)
    if not q.is_cuda or q.dtype == torch.float64 or learned:  # which the kernel does not have
        return apply_rotary(q, k, cos, sin, heads=heads)
    from mmrope.encodings.kernel import rotate_by_tables

    cos, sin = (table.float().expand(len(q), -1, -1) for table in (cos, sin))  # a row for each of q
    return rotate_by_tables(q, k, cos, sin, heads=heads, distance=pairs)


# --- through `kernels` ------------------------------------------------------------------------------------------------


def _forward(self: nn.Module, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    return rotation(q, k, cos, sin, unsqueeze_dim)


@dataclass(frozen=True)
class _InProcess:
    """What `kernels` takes for a repository: whatever has `load`, which returns a layer. `kernels` keeps it by its hash."""

    forward: Callable[..., Any]

    def load(self) -> type[nn.Module]:
        return type("Rotation", (nn.Module,), {"forward": self.forward})


def _put(function: nn.Module, forward: Callable[..., Any]) -> None:
    """The forward of a function that can be replaced, and of nothing else."""
    from kernels import KernelizeFallback, Mode, kernelize, use_kernel_mapping  # pyright: ignore[reportMissingImports]

    # one device for all: it is the key by which this mapping is looked up, no more
    with use_kernel_mapping({LAYER: {"cpu": _InProcess(forward)}}, inherit_mapping=False):
        kernelize(function, mode=Mode.TRAINING, device="cpu", use_fallback=KernelizeFallback.NONE)
    if getattr(function.forward, "__func__", None) is not forward:
        raise ValueError("kernels replaces nothing: is DISABLE_KERNEL_MAPPING set?")


# --- what can be replaced ---------------------------------------------------------------------------------------------


def _functions(model: nn.Module) -> dict[str, nn.Module]:
    """Those of the files of the model's code, by name."""
    files = {base.__module__ for module in model.modules() for base in type(module).__mro__}
    named = {
        f"{file}.{name}": value
        for file in sorted(files)
        if file.startswith("transformers.models.")
        for name, value in vars(sys.modules[file]).items()
        if name.startswith("apply_rotary") and "vision" not in name
    }
    if not named:
        raise ValueError(f"{type(model).__name__} has no function that rotates: pass a model of transformers")
    fixed = [name for name, value in named.items() if getattr(value, "kernel_layer_name", None) != LAYER]
    if fixed:
        raise ValueError(f"{type(model).__name__} rotates by {', '.join(fixed)}, which cannot be replaced: {_needed()}")
    return named


def _needed() -> str:
    stated = [line.partition(";")[0].strip() for line in requires("transformers") or () if line.startswith("kernels")]
    try:
        here = f"kernels {version('kernels')}"
    except PackageNotFoundError:
        here = "none"
    return (
        f"transformers {version('transformers')} must allow it in the file of the model's code, and when it is imported "
        f"{stated[0] if stated else 'kernels'} must be installed (here: {here}) and USE_HUB_KERNELS not be NO"
    )


@torch.no_grad()
def _check_function(name: str, function: nn.Module) -> None:
    """That a function computes what `rotation` does."""
    random = torch.Generator().manual_seed(0)
    q, k, angle = (torch.randn(shape, generator=random) for shape in ((2, 4, 5, 64), (2, 2, 5, 64), (2, 5, 32)))
    cos, sin = (torch.cat((table, table), dim=-1) for table in (angle.cos(), angle.sin()))  # [B, S, D]
    for unsqueeze_dim in (1, 2):
        x, y = (tensor.transpose(1, unsqueeze_dim) for tensor in (q, k))
        try:
            theirs = function(x.clone(), y.clone(), cos, sin, unsqueeze_dim=unsqueeze_dim)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{name} takes other tables than [B, S, D]: {error}") from error
        for one, other in zip(theirs, rotation(x, y, cos, sin, unsqueeze_dim), strict=True):
            if one.shape != other.shape or (one - other).abs().max() > _ROUNDING:
                raise ValueError(f"{name} computes something else than a rotation of channels p and p + D / 2")


_ROUNDING = 1e-5  # of float32, of numbers up to 5


@torch.no_grad()
def _check_tables(model: nn.Module) -> None:
    """That the channels p and p + P of cos and sin are the same, wherever tokens stand."""
    checked = 0
    for name, module in model.named_modules():
        if name.rpartition(".")[-1] != "rotary_emb":
            continue
        device = next((buffer.device for buffer in module.buffers()), torch.device("cpu"))
        ids = torch.stack([torch.arange(8, device=device).roll(3 * axis) for axis in range(4)])[:, None]  # [A, B, S]
        layers = [(), *((layer,) for layer in dict.fromkeys(getattr(module, "layer_types", None) or ()))]
        for shaped, layer in product((ids[0], *(ids[:axes] for axes in range(1, 5))), layers):
            try:
                tables = module(torch.zeros(1, device=device), shaped, *layer)
            except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
                continue  # it has other axes, or other types of layer
            checked += 1
            if any(not torch.equal(*table.chunk(2, dim=-1)) for table in tables):
                raise ValueError(
                    f"{name} rotates channels p and p + D / 2 by different angles, mmrope by one: leave rotary_kernel out"
                )
    if not checked:
        raise ValueError(f"{type(model).__name__} has no module rotary_emb whose cos and sin could be checked")
