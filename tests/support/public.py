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
    return [
        f"{package}.{name}{_parameters(getattr(import_module(package), name))}"
        for package, has in names().items()
        for name in has
    ]


def _parameters(value: object) -> str:
    if not callable(value):
        return ""
    try:
        signature = inspect.signature(value)
    except ValueError:  # of a class that is made otherwise
        return ""
    parameters = [p.replace(annotation=p.empty, default=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


if __name__ == "__main__":
    FILE.write_text("\n".join(lines()) + "\n")
