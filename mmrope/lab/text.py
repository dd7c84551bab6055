"""Bytes to learn from, which every machine has: the source of the Python standard library."""

from __future__ import annotations

import hashlib
import sysconfig
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

VOCABULARY = 256
_HELD_OUT = 20  # a file in so many is for testing alone


@lru_cache(maxsize=2)
def source(*, test: bool = False) -> Tensor:
    """uint8 [n], the files one after the other, in an order that their names decide; a file belongs to training or to testing
    by the hash of its name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in root.rglob("*.py") if "site-packages" not in path.parts and "test" not in path.parts]
    named = sorted((hashlib.sha256(str(path.relative_to(root)).encode()).hexdigest(), path) for path in files)
    mine = [path for name, path in named if (int(name, 16) % _HELD_OUT == 0) == test]
    return torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in mine)), dtype=torch.uint8)


def windows(text: Tensor, starts: Tensor, length: int) -> Tensor:
    """int64 [n, length] from these starts."""
    return text[starts[:, None] + torch.arange(length)].long()
