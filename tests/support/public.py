"""The public names of mmrope with their parameters: `python -m tests.support.public` writes the list anew."""

from __future__ import annotations

import inspect
from importlib import import_module

from tests.support import ROOT

FILE = ROOT / "tests" / "references" / "public_names.txt"
PACKAGES = [f"mmrope{name}" for name in ("", ".positions", ".encodings", ".preprocess", ".view", ".vlm")]


def names() -> dict[str, list[str]]:
    """Package -> the names that it hands out, without packages and modules."""
    found = {}
    for package in PACKAGES:
        module = import_module(package)
        found[package] = [name for name in module.__all__ if not inspect.ismodule(getattr(module, name))]
    return found


def lines() -> list[str]:
    """Every public name: of the packages, of the adapters and of prompting; behind a class its own methods and fields, once."""
    found: list[str] = []
    known: set[object] = set()
    for package, has in names().items():
        for name in has:
            value = getattr(import_module(package), name)
            found += _of(f"{package}.{name}", value, members=inspect.isclass(value) and value not in known)
            known |= {value} if inspect.isclass(value) else set()
    modules = [f"mmrope.adapters.{path.stem}" for path in sorted((ROOT / "mmrope" / "adapters").glob("[a-z]*.py"))]
    for module in ("mmrope.adapters", *modules, "mmrope.prompting"):
        for name, value in vars(import_module(module)).items():
            if not name.startswith("_") and getattr(value, "__module__", None) == module:
                found += _of(f"{module}.{name}", value, members=inspect.isclass(value))
    return found


def _of(name: str, value: object, *, members: bool) -> list[str]:
    found = [f"{name}{_parameters(value)}"]
    if members:
        own = [base for base in reversed(getattr(value, "__mro__", ())) if base.__module__.startswith("mmrope.")]
        for attribute, member in {name: member for base in own for name, member in vars(base).items()}.items():
            function = getattr(value, attribute) if isinstance(member, (classmethod, staticmethod)) else member
            if not attribute.startswith("_"):
                found.append(f"{name}.{attribute}{_parameters(function) if inspect.isroutine(function) else ''}")
    return found


def _parameters(value: object) -> str:
    if not callable(value):
        return ""
    try:
        signature = inspect.signature(value)
    except (ValueError, TypeError):  # of a class that is made otherwise
        return ""
    parameters = [p.replace(annotation=p.empty, default=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


if __name__ == "__main__":
    FILE.write_text("\n".join(lines()) + "\n")
