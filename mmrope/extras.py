"""Names that are imported on first use, and the extras that bring what they need.

The names of a package are listed once, in its `__init__.pyi`, where editors and type checkers look for them; its `__init__.py`
reads the list. So `import mmrope` loads numpy at most, and a name of mmrope.encodings loads torch when it is first used.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

BROUGHT_BY = MappingProxyType(
    {
        **{"torch": "mmrope[torch]", "triton": "mmrope[torch]", "typing_extensions": "mmrope[torch]"},
        **{
            "PIL": "mmrope[media]",
            "av": "mmrope[media]",
            "tqdm": "mmrope[media]",
            "tokenizers": "mmrope[media]",
            "jinja2": "mmrope[media]",
        },
        **{"pillow_heif": "mmrope[heic]", "simplejpeg": "mmrope[fast]", "pyseccomp": "mmrope[sandbox]"},
        **{"einops": "mmrope[vlm]", "safetensors": "mmrope[vlm]", "sklearn": "mmrope[train]", "mmrope_small": "mmrope-small"},
        **{"typer": "mmrope[cli]", "matplotlib": "mmrope[viz]", "decord": "mmrope[decord]"},
    }
)
"""Modules -> what to install for them."""


_NEEDS = {
    **{f"mmrope.encodings.{name}": "torch" for name in ("absolute", "alibi", "mixed", "rotary", "xpos")},
    **{"mmrope.preprocess.image": "PIL", "mmrope.preprocess.video": "av"},
    **{f"mmrope.vlm.{name}": "torch" for name in ("assistant", "cache", "config", "looks", "model", "sampling")},
}
"""Modules of mmrope whose names are listed only where another module can be imported: `help(mmrope)` works without it."""


@contextmanager
def needed_for(what: str) -> Iterator[None]:
    """Says of a module that is missing which extra brings it.

    Args:
        what: what is to be had, as a sentence begins: "mmrope.Processor".

    Raises:
        ImportError: a module of BROUGHT_BY is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in BROUGHT_BY:
            raise
        raise ImportError(f"{what} needs {module}: pip install '{BROUGHT_BY[module]}'", name=error.name) from error


def names_of(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` of a package, from the imports of its `__init__.pyi`: of a name whose extra is
    missing the first says so, and the others do not list it.

    Args:
        package: its `__name__`.
        file: its `__file__`.
    """
    homes = {}
    for line in ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8")).body:
        if isinstance(line, ast.ImportFrom) and line.module and line.module != "__future__":
            homes |= {alias.asname or alias.name: (line.module, alias.name) for alias in line.names}

    def names() -> list[str]:
        return sorted(name for name, (module, _) in homes.items() if module not in _NEEDS or _is_there(_NEEDS[module]))

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, its_name = homes[name]
        with needed_for(f"{package}.{name}"):
            if module == package:  # a package or a module inside this one
                return import_module(f"{package}.{its_name}")
            value = getattr(import_module(module), its_name)
        setattr(sys.modules[package], name, value)  # found without this function from now on
        return value

    return __getattr__, lambda: sorted({*names(), *(name for name in vars(sys.modules[package]) if name[:2] == "__")}), names()


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
