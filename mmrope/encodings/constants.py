"""Numbers that a module computes with, kept where nothing that loads, casts, shards or materialises modules can write.

Loaders fill buffers with whatever they have, casts round them, shards cut them. So a module's constants are no tensors of the
module: they are arrays, and each device gets its copies where they are first needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Constants(nn.Module):
    """Arrays, and their copies on each device. It has no parameters and no buffers; a module of its own, it learns of moves.

    A copy is made where the module is made or moved to, and else at the first call on its device, which waits for it; later
    calls wait for nothing. Deep copies and pickles carry the arrays alone.
    """

    def __init__(self, *arrays: np.ndarray) -> None:
        super().__init__()
        self._arrays = arrays
        self._copies: dict[torch.device, tuple[Tensor, ...]] = {}
        self._copy(torch.device("cpu"))
        self._follow(torch.get_default_device())

    def beside(self, x: Tensor) -> tuple[Tensor, ...]:
        """The arrays as tensors on the device of x."""
        if torch.compiler.is_dynamo_compiling():
            self._fill(
                x.device
            )  # while it traces; the copies are then inputs of its graph, so that it fits other constants, too
            return self._copies[x.device]
        copies = self._copies.get(x.device)
        if copies is None or type(x) is not Tensor:  # a tensor of a trace gets copies of its trace
            copies = self._copy(x.device, keep=type(x) is Tensor)
        return copies

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Constants:
        self._follow(fn(torch.empty(0, device="cpu")).device)
        return self

    def _follow(self, device: torch.device) -> None:
        """To a device that the module is made on or moved to: compiled code finds the copies of all its layers there."""
        if device.type != "meta" and device not in self._copies:
            self._copy(torch.empty(0, device=device).device)  # "cuda" is one of them by number

    def _fill(self, device: torch.device) -> bool:
        for copy in self._copies.get(device) or self._copy(device):
            torch._dynamo.mark_static(copy)  # `dynamic=True` is not for their sizes
        return True

    # what torch.compiler.assume_constant_result does, but for importing the compiler, which takes seconds
    _fill._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]

    def _copy(self, device: torch.device, keep: bool = True) -> tuple[Tensor, ...]:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise ValueError("the first call on a device cannot be captured in a CUDA graph: call it once before, as a warm-up")
        with torch.inference_mode(False):  # so that training may use what inference was the first to need
            # from_numpy is not among the constructors that trainers patch; a trace needs one that it knows
            if keep:
                copies = tuple(torch.from_numpy(array.copy()).to(device) for array in self._arrays)
            else:
                copies = tuple(torch.tensor(array, device=device) for array in self._arrays)
        if keep and all(type(copy) is Tensor for copy in copies) and not transformed():
            self._copies[device] = copies
        return copies

    def __reduce__(self) -> tuple[Any, ...]:
        return Constants, self._arrays


def transformed() -> bool:
    """Whether a transform of torch.func is under way."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
