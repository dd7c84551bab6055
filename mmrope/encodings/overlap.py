"""Whether tensors may be written in place: whether any two of their elements lie in the same place."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from mmrope.encodings.constants import transformed

Dims = list[tuple[int, int]]  # (stride, size)
_WITH_MEMORY = (Tensor, nn.Parameter)


def check_writable(*tensors: Tensor) -> None:
    """That each element of the tensors lies in a place of its own, and that autograd lets them be written.

    Raises:
        ValueError: tensors whose elements overlap, two that share elements, a leaf that requires a gradient or a view of one, a
            view that chunk, split or unbind made with others, a tensor of inference mode outside it.
    """
    for x in tensors:
        if overlaps(x):
            raise ValueError(
                f"inplace=True: elements of a tensor {list(x.shape)} with strides {list(x.stride())} lie in the same place (an "
                "expanded view, for one) and would be rotated more than once: rotate x.contiguous(), or leave inplace out"
            )
    for n, x in enumerate(tensors):
        if any(share(x, y) for y in tensors[:n]):
            raise ValueError(
                "inplace=True: q and k share elements, which would be rotated twice: pass views that do not overlap, or leave "
                "inplace out"
            )
    if not torch.compiler.is_compiling():
        for x in tensors:
            if x.requires_grad or x.is_inference():
                _ask_autograd(x)


def _ask_autograd(x: Tensor) -> None:
    """By writing to none of its elements: autograd itself says no only after a function has written."""
    try:
        x.narrow(-1, 0, 0).mul_(1)
    except RuntimeError as error:
        raise ValueError(
            f"inplace=True: autograd does not let this tensor be written: {error} Pass slices (qkv[..., :n]) in place of "
            "chunk, split or unbind, no leaf and no view of one, or leave inplace out"
        ) from error


def overlaps(x: Tensor) -> bool:
    """Whether two elements of x lie in the same place."""
    if torch.compiler.is_compiling():  # where sizes may be symbols: whether there are fewer places than elements
        reach = 1
        for stride, size in zip(x.stride(), x.shape, strict=True):
            if stride == 0 and size > 1:
                return True
            reach += stride * (size - 1)
        return x.numel() > reach
    if not x.numel():
        return False
    reach = 0
    for stride, size in reversed(_dims(x)):
        if stride <= reach:
            break
        reach += stride * (size - 1)
    else:
        return False  # each dimension steps over all of those inside it
    places = _places(x)
    return len(np.unique(places)) < len(places)


def share(x: Tensor, y: Tensor) -> bool:
    """Whether x and y have a byte in common, whatever their dtypes and storages: numpy, DLPack and buffers lend one memory to
    several. What traces or transforms has no places, nor has the meta device; there only one tensor that is passed twice is
    seen."""
    if x is y:
        return True
    if torch.compiler.is_compiling() or transformed() or not (type(x) in _WITH_MEMORY and type(y) in _WITH_MEMORY):
        return False
    if x.device != y.device or x.is_meta or not (x.numel() and y.numel()):
        return False
    one, two = x.untyped_storage(), y.untyped_storage()
    if one.data_ptr() + one.nbytes() <= two.data_ptr() or two.data_ptr() + two.nbytes() <= one.data_ptr():
        return False  # the usual case
    (start, a), (other, b) = _in_units(x, y)
    first, second = (start, a), (other, b)
    while True:
        end, other_end = start + _reach(a), other + _reach(b)
        if end < other or other_end < start:
            return False
        # of an outer dimension that both have, one step passes all inside it: only equal steps can meet
        if not (a and b and a[0] == b[0]):
            break
        stride, size = a[0]
        if max(end, other_end) - stride * (size - 1) - min(start, other) >= stride:
            break
        a, b = a[1:], b[1:]
    return bool(np.isin(_listed(*first), _listed(*second)).any())


def _dims(x: Tensor) -> Dims:
    """Its dimensions of more than one element, the widest steps first."""
    return sorted(((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1), reverse=True)


def _in_units(*tensors: Tensor) -> list[tuple[int, Dims]]:
    """Where the memory of each begins, from the lowest on, and its dimensions, in the widest units of bytes that fit all; one
    that is narrower than an element makes it a dimension of its own."""
    lowest = min(x.data_ptr() for x in tensors)
    sizes = [(x.data_ptr() - lowest, x.element_size(), _dims(x)) for x in tensors]
    unit = math.gcd(*(n for start, size, dims in sizes for n in (start, size, *(stride * size for stride, _ in dims))))
    return [
        (start // unit, [(stride * size // unit, n) for stride, n in dims] + [(1, size // unit)] * (size > unit))
        for start, size, dims in sizes
    ]


def _reach(dims: Dims) -> int:
    return sum(stride * (size - 1) for stride, size in dims)


def _places(x: Tensor) -> np.ndarray:
    """Where each element lies, counted in elements from the first."""
    return _listed(0, _dims(x))


def _listed(start: int, dims: Dims) -> np.ndarray:
    """All places of a tensor that begins at one."""
    places = np.array([start], dtype=np.int64)
    for stride, size in dims:
        places = (places[:, None] + stride * np.arange(size)).reshape(-1)
    return places
