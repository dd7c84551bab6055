"""Files that hold a processor's batch and its position_ids: JSON, .npz and .safetensors."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from mmrope.positions.inputs import INPUTS

_KEYS = {"position_ids", "cu_seqlens", "prompt_lengths", *INPUTS}


def read_dump(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name, with position_ids among them.

    Raises:
        ValueError: another kind of file, a damaged one, one without position_ids, or arrays that do not hold numbers.
        OSError: a file that cannot be opened.
    """
    readers: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
        ".json": _read_json,
        ".npz": _read_npz,
        ".safetensors": _read_safetensors,
    }
    if path.suffix not in readers:
        raise ValueError(f"{path} is no {', '.join(readers)} file")
    try:
        arrays = readers[path.suffix](path)
    except _DAMAGED as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if "position_ids" not in arrays:
        raise ValueError(f"{path} has no position_ids; of what is read it has {', '.join(arrays) or 'nothing'}")
    for key, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{path}: {key} must hold numbers that fit in 64 bits, got {array.dtype}")
    if (shape := arrays["position_ids"].shape)[1:] == ():
        raise ValueError(f"{path}: position_ids must be [axes, rows, tokens] or [axes, tokens], got {list(shape)}")
    return arrays


# what numpy and zipfile raise on damaged files (tried on mutated files); RecursionError: JSON of a thousand brackets
_DAMAGED = (ValueError, EOFError, BadZipFile, zlib.error, NotImplementedError, MemoryError, RecursionError)


def _read_json(path: Path) -> dict[str, np.ndarray]:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError('it must hold an object, such as {"input_ids": [[...]], "position_ids": [[[...]]]}')
    return {key: _array(key, values[key]) for key in sorted(_KEYS & set(values)) if values[key] is not None}


def _array(key: str, values: object) -> np.ndarray:
    try:
        array = np.array(values)
    except ValueError:
        raise ValueError(f"the rows of {key} have different lengths: pad them to one length") from None
    return array if array.size else array.astype(np.int64)  # numpy takes an empty list for floats


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        if file.read(4) not in (b"PK\3\4", b"PK\5\6"):  # np.load would take it for a single array or a pickle
            raise ValueError("it is no .npz archive")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in sorted(_KEYS & set(arrays))}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in sorted(_KEYS & set(file.keys()))}
    except (SafetensorError, TypeError) as error:  # TypeError: of a dtype that numpy has not
        raise ValueError(error) from None
