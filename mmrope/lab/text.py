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
_REPEATED = 0.05  # most of its long lines that may be in files of the training


@lru_cache(maxsize=2)
def source(*, test: bool = False) -> Tensor:
    """uint8 [n], the files one after the other, in an order that their names decide; a file belongs to training or to testing
    by the hash of its name. Test files that repeat lines of the training's, as copies do, are left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in root.rglob("*.py") if "site-packages" not in path.parts and "test" not in path.parts]
    named = sorted((hashlib.sha256(str(path.relative_to(root)).encode()).hexdigest(), path) for path in files)
    train = [path.read_bytes() for name, path in named if int(name, 16) % _HELD_OUT]
    if not test:
        return _bytes(train)
    known = set().union(*map(_long_lines, train))
    held_out = [path.read_bytes() for name, path in named if int(name, 16) % _HELD_OUT == 0]
    return _bytes([text for text in held_out if len(_long_lines(text) & known) <= _REPEATED * len(_long_lines(text))])


def _bytes(texts: list[bytes]) -> Tensor:
    return torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8)


def _long_lines(text: bytes) -> set[bytes]:
    """Long enough not to be there twice by chance."""
    return {line for line in map(bytes.strip, text.splitlines()) if len(line) >= 30}


def windows(text: Tensor, starts: Tensor, length: int) -> Tensor:
    """int64 [n, length] from these starts."""
    return text[starts[:, None] + torch.arange(length)].long()
