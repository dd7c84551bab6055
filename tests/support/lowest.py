"""`make lowest`: the tests in an environment of the lowest versions, without the upstreams that other tests compare with.

MMROPE_LOWEST=1 says so. A stand-in takes the place of each upstream, so that the files that import it can be collected; the test
that uses one is skipped, and the summary says how many for want of which upstream.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import pytest

UPSTREAMS = (
    *("transformers", "accelerate", "datasets", "webdataset", "timm"),
    *("liger_kernel", "rotary_embedding_torch", "kernels"),
)
WANTED = bool(os.environ.get("MMROPE_LOWEST"))
REASON = "make lowest does without "


def skip(name: str) -> NoReturn:
    pytest.skip(REASON + name.partition(".")[0], allow_module_level=True)


class StandIn(ModuleType):
    """A module of an upstream, or anything in it. It can be imported, and whatever else is done with it skips the test."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by the import system, by inspect and by others, of every module
            raise AttributeError(name)
        return StandIn(f"{self.__name__}.{name}")

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        def made(cls: type, *args: Any, **options: Any) -> NoReturn:
            skip(self.__name__)

        return (type("Subclass", (), {"__new__": made}),)

    def _use(self, *args: Any, **options: Any) -> NoReturn:
        skip(self.__name__)

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
