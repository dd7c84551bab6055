"""Doors into the stacks that people run: their arguments in, their shapes out. Nothing here imports or changes them."""

from __future__ import annotations

from typing import Any

from mmrope.adapters.diagnosis import doctor as doctor
from mmrope.checkpoints.configs import family_from_config
from mmrope.positions.families import family
from mmrope.positions.rules import Family


def family_of_model(source: Family | Any) -> Family:
    """A Family as it is; of a name, a config or a model (whose `config` is read) the family with that checkpoint's facts.

    Raises:
        ValueError: a model that is wrapped in DataParallel.

    Example:
        >>> from types import SimpleNamespace
        >>> from mmrope.adapters import family_of_model
        >>> family_of_model("qwen2_vl").key
        'qwen2_vl'
        >>> config = {"model_type": "qwen2_vl", "vision_config": {"spatial_merge_size": 2}}
        >>> family_of_model(SimpleNamespace(config=config)).key  # of a model
        'qwen2_vl'
    """
    if type(source).__name__ == "DataParallel":
        raise ValueError(
            "the model is wrapped in DataParallel, which cuts every input along its first dimension: the axes of position_ids, "
            "the patches of pixels. Start a process for each GPU instead (torchrun, accelerate launch), or show the script one "
            "(CUDA_VISIBLE_DEVICES=0)"
        )
    if isinstance(source, (Family, str)):
        return family(source)
    return family_from_config(getattr(source, "config", source))
