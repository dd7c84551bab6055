"""Whether tensors may be written in place: whether any two of their elements lie in the same place."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmrope.encodings.constants import transformed

Dims = list[tuple[int, int]]  # (stride, size)


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
    """Whether x and y have an element in the same place. What traces or transforms has no places; there only one tensor that is
    passed twice is seen."""
    if x is y:
        return True
    if torch.compiler.is_compiling() or transformed() or not (type(x) is type(y) is Tensor) or not (x.numel() and y.numel()):
        return False
    if x.untyped_storage()._cdata != y.untyped_storage()._cdata:
        return False
    a, b, start, other = _dims(x), _dims(y), x.storage_offset(), y.storage_offset()
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
    return bool(np.isin(_places(x), _places(y)).any())


def _dims(x: Tensor) -> Dims:
    """Its dimensions of more than one element, the widest steps first."""
    return sorted(((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1), reverse=True)


def _reach(dims: Dims) -> int:
    return sum(stride * (size - 1) for stride, size in dims)


def _places(x: Tensor) -> np.ndarray:
    """Where each element lies, counted in elements."""
    places = np.array([x.storage_offset()], dtype=np.int64)
    for stride, size in _dims(x):
        places = (places[:, None] + stride * np.arange(size)).reshape(-1)
    return places
