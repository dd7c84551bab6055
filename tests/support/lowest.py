"""`make lowest`: the tests in an environment of the lowest versions, without the upstreams that other tests compare with.

MMROPE_LOWEST=1 says so. A stand-in takes the place of each upstream, so that the files that import it can be collected; the test
that uses one is skipped, and the summary says how many for want of what.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import pytest

UPSTREAMS = (
    *("transformers", "accelerate", "datasets", "webdataset", "timm"),
    *("liger_kernel", "rotary_embedding_torch", "kernels", "peft", "trl"),
)
WANTED = bool(os.environ.get("MMROPE_LOWEST"))
REASON = "make lowest does without "
_LACKS = re.compile(rf"(?:No module named '|metadata was found for |training takes )({'|'.join(UPSTREAMS)}|torch.optim.Muon)\b")


def skip(what: str) -> NoReturn:
    pytest.skip(REASON + what, allow_module_level=True)


def newer_torch(what: str) -> pytest.MarkDecorator:
    """Marks a test of what the lowest torch cannot do, whatever mmrope does."""
    return pytest.mark.skipif(WANTED, reason=f"{REASON}a newer torch: {what}")


def skip_if_lacking(error: BaseException) -> None:
    """Skips a test that failed for want of an upstream, be it in a process that it started, or of the optimizer of `mmrope[train]`,
    whose floor of torch is higher."""
    if WANTED and (lacks := _LACKS.search(str(error))):
        skip(lacks[1])


class _Used(type):
    """The type of classes that derive from a stand-in."""

    def __call__(cls, *args: Any, **options: Any) -> NoReturn:
        skip(cls.upstream)

    def __getattr__(cls, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        skip(cls.upstream)


class StandIn(ModuleType):
    """A module of an upstream, or anything in it. It can be imported, and whatever else is done with it skips the test."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by the import system, by inspect and by others, of every module
            raise AttributeError(name)
        return StandIn(f"{self.__name__}.{name}")

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (_Used("Base", (), {"upstream": self.__name__.partition(".")[0]}),)

    def _use(self, *args: Any, **options: Any) -> NoReturn:
        skip(self.__name__.partition(".")[0])

    __call__ = __getitem__ = __contains__ = __iter__ = __len__ = __instancecheck__ = _use


class Finder:
    """Finds a stand-in for every module of the upstreams."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, Finder, is_package=True) if name.partition(".")[0] in UPSTREAMS else None  # pyright: ignore

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        pass


if WANTED:
    sys.meta_path.insert(0, Finder)  # pyright: ignore
