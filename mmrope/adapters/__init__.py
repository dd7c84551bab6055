"""Doors into the stacks that people run: their arguments in, their shapes out. Nothing here imports or changes them."""

from __future__ import annotations

from typing import Any

from mmrope.positions.families import family, family_from_config
from mmrope.positions.rules import Family


def family_of_model(source: Family | Any) -> Family:
    """A Family as it is; of a name, a config or a model (whose `config` is read) the family with that checkpoint's facts."""
    if isinstance(source, (Family, str)):
        return family(source)
    return family_from_config(getattr(source, "config", source))
