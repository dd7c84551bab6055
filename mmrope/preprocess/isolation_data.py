"""What a worker of `isolated` sends back: plain data, which no code of its sender runs with.

to_data: value -> [bytes of the outline: 8] [outline, JSON] [arrays, each at a multiple of 64] -> from_data
"""

from __future__ import annotations

import json
import re
import struct
import sys
from typing import Any

import numpy as np

_LENGTH = struct.Struct(">Q")
_ALIGNED = 64
_DTYPE = re.compile(r"[<>|](?:[biufcSU]\d{1,9}|[mM]8(?:\[\d*\w+\])?)")
_TENSOR = re.compile(r"bool|u?int\d+|b?float\d+(?:_e\w+)?|complex\d+")
_LONG, _MOST_OUTLINE = 1024, 2**26  # characters that a text has in the outline, bytes of it: Python takes 20 for each
_MEANT = "return None, numbers, texts, bytes, arrays, tensors, and lists, tuples, sets and dicts of them"


def to_data(value: Any) -> bytearray:
    """A value as bytes.

    Raises:
        ValueError: it is, or holds, what is no plain data; arrays must be of numbers, texts or times.

    Example:
        >>> import numpy as np
        >>> from mmrope.preprocess.isolation_data import from_data, to_data
        >>> from_data(to_data({"grid": (1, 4, 6), "pixels": np.zeros((24, 3), np.uint8)}))["pixels"].shape
        (24, 3)
    """
    arrays: list[np.ndarray] = []
    outline = json.dumps(_outline(value, arrays)).encode()
    if len(outline) > _MOST_OUTLINE:
        raise ValueError(
            f"a value of so many parts cannot be sent, {len(outline):,} bytes without arrays and texts: use arrays"
        )
    packed = bytearray(_LENGTH.pack(len(outline))) + outline
    for array in arrays:
        packed += bytes(-len(packed) % _ALIGNED)
        packed += array.reshape(-1).view(np.uint8).data if array.size else b""
    return packed


def from_data(packed: bytearray) -> Any:
    """The value that `to_data` was given. Arrays and tensors are views of `packed`, and can be written to.

    Raises:
        ValueError: bytes that `to_data` did not make.
    """
    try:
        (length,) = _LENGTH.unpack_from(packed)
        start = _LENGTH.size
        if length > _MOST_OUTLINE:
            raise ValueError(f"an outline of {length:,} bytes")
        return _Reader(packed, start + length).value(json.loads(packed[start : start + length]))
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        OverflowError,
        RuntimeError,
        ImportError,
        struct.error,
    ) as error:
        raise ValueError(f"these are no such data: {type(error).__name__}: {error}") from None


def _outline(value: Any, arrays: list[np.ndarray]) -> Any:
    """JSON of a value: what JSON has is itself, and what it has not is [kind, ...]; arrays go to the list."""
    if isinstance(value, np.generic):
        return _array(np.asarray(value), "number", arrays)
    if isinstance(value, str) and len(value) > _LONG:
        return _array(np.frombuffer(value.encode("utf-8", "surrogatepass"), np.uint8), "text", arrays)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, dict):
        return ["dict", *([_outline(_key(key), arrays), _outline(item, arrays)] for key, item in value.items())]
    for kind, collection in _COLLECTIONS.items():
        if type(value) is collection:
            return [kind, *(_outline(_key(item) if collection in (set, frozenset) else item, arrays) for item in value)]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, (bytes, bytearray)):
        return _array(np.frombuffer(value, np.uint8), "bytes", arrays)
    if isinstance(value, np.ndarray):
        return _array(value, "array", arrays)
    if (torch := sys.modules.get("torch")) is not None and isinstance(value, torch.Tensor):
        return _tensor(value, arrays)
    raise ValueError(f"a {type(value).__module__}.{type(value).__qualname__} cannot be sent: {_MEANT}")


def _tensor(tensor: Any, arrays: list[np.ndarray]) -> list[Any]:
    import torch

    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    content = _array(plain.view(torch.uint8).numpy(), "array", arrays)  # the bytes: numpy has not all of the dtypes
    return ["tensor", str(tensor.dtype).removeprefix("torch."), list(tensor.shape), content]


_COLLECTIONS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


_KEYS: tuple[Any, ...] = (float, str, bytes, np.bool_, np.float32, np.float16)


def _key(value: Any) -> Any:
    """A key of a dict, or what is in a set: nothing whose hashes its sender can choose, as those of many tuples, to be one."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, np.timedelta64) and abs(int(value)) < 2**64
    if value is None or whole or isinstance(value, _KEYS):
        return value
    raise ValueError(f"a {type(value).__name__} cannot be sent as a key: return dicts and sets of numbers, texts and bytes")


def _array(array: np.ndarray, kind: str, arrays: list[np.ndarray]) -> list[Any]:
    if not _DTYPE.fullmatch(array.dtype.str):
        raise ValueError(f"an array of {array.dtype} cannot be sent: {_MEANT}")
    shape = list(array.shape)
    arrays.append(np.ascontiguousarray(array))
    return [kind, array.dtype.str, shape]


class _Reader:
    """Reads an outline; arrays follow one another from `at` on."""

    def __init__(self, packed: bytearray, at: int) -> None:
        self.packed, self.at = packed, at

    def value(self, outline: Any) -> Any:
        if not isinstance(outline, list):
            return outline
        kind, *rest = outline
        if kind == "dict":
            return {_key(self.value(key)): self.value(item) for key, item in rest}
        if kind in ("set", "frozenset"):
            return _COLLECTIONS[kind](_key(self.value(item)) for item in rest)
        if kind in _COLLECTIONS:
            return _COLLECTIONS[kind](self.value(item) for item in rest)
        if kind == "complex":
            return complex(*rest)
        if kind == "tensor":
            return self.tensor(*rest)
        array = self.array(*rest)
        if kind in ("bytes", "text"):
            return array.tobytes() if kind == "bytes" else array.tobytes().decode("utf-8", "surrogatepass")
        if kind not in ("array", "number"):
            raise ValueError(f"no kind of values is called {kind!r}")
        return array[()] if kind == "number" else array

    def array(self, dtype: str, shape: list[int]) -> np.ndarray:
        if not _DTYPE.fullmatch(dtype) or any(size < 0 for size in shape):
            raise ValueError(f"no array is of {dtype} and {shape}")
        kind, count = np.dtype(dtype), 1
        for size in shape:
            count *= size
        if not count:
            return np.zeros(shape, kind)
        self.at += -self.at % _ALIGNED
        array = np.frombuffer(self.packed, kind, count, self.at).reshape(shape)
        self.at += array.nbytes
        return array

    def tensor(self, dtype: str, shape: list[int], content: list[Any]) -> Any:
        import torch

        if not _TENSOR.fullmatch(dtype) or not isinstance(known := getattr(torch, dtype), torch.dtype):
            raise ValueError(f"torch.{dtype} is no dtype")
        bits = torch.from_numpy(self.array(*content[1:]))
        return bits.view(known).reshape(shape) if len(bits) else torch.zeros(shape, dtype=known)
