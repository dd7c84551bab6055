"""Experiments that compare encodings: each a file that says what is asked, trains tiny models, and measures.

harness      what an experiment is, how it is run, resumed and kept
encodings    the library's encodings behind one face: what is added, what is turned, what is biased
reader       the library's blocks with any of them
text         bytes to learn from: the Python standard library
report       results as tables, figures and docs/lab.md
length, extension, grids, films, resolution, sums, rules
             the experiments; a new one is a file with an EXPERIMENT, and its name below
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmrope.lab.harness import Experiment

_NAMES = ("length", "extension", "grids", "films", "resolution", "sums", "rules")


def experiments() -> list[Experiment]:
    """All of them."""
    return [import_module(f"mmrope.lab.{name}").EXPERIMENT for name in _NAMES]
