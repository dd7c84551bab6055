"""A model of vLLM whose positions are mmrope's, as a plugin: nothing of vLLM is changed.

A package names `register` as an entry point of the group "vllm.general_plugins":

    [project.entry-points."vllm.general_plugins"]
    mmrope_positions = "vllm_model:register"

vLLM then takes this class for checkpoints of that architecture, on every worker. It needs a GPU to serve; without one
`python samples/vllm_model.py` places a prompt by a stand-in for the model's class, and shows what it is given.

A video without its seconds (`video_embeds` without `second_per_grid_ts`), which vLLM places as if a grid lasted a second, is
refused here, and ends the request.
"""

from __future__ import annotations

from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch

import mmrope
from mmrope.adapters.vllm import get_mrope_input_positions

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"


def with_mmrope(model_class: type) -> type:
    """A subclass of a model's class that places prompts by the rule that its weights were trained with."""

    class WithMmrope(model_class):
        @cached_property
        def mmrope_family(self) -> mmrope.Family:
            return mmrope.family_from_config(self.config)  # facts of this checkpoint: merge size, ids a second

        def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[torch.Tensor, int]:
            return get_mrope_input_positions(input_tokens, mm_features, self.mmrope_family)

    WithMmrope.__name__ = WithMmrope.__qualname__ = model_class.__name__  # vLLM's registry and logs know it by its name
    return WithMmrope


def __getattr__(name: str) -> type:
    """The class, made when it is asked for: what registers it must not import the model, which initialises the GPU."""
    if name != ARCHITECTURE:
        raise AttributeError(f"module {__name__} has no {name}")
    from vllm.model_executor.models.qwen2_5_vl import (  # pyright: ignore[reportMissingImports]
        Qwen2_5_VLForConditionalGeneration,
    )

    return with_mmrope(Qwen2_5_VLForConditionalGeneration)


def register() -> None:
    """What vLLM calls once in every process."""
    from vllm.model_executor.models import ModelRegistry  # pyright: ignore[reportMissingImports]

    ModelRegistry.register_model(ARCHITECTURE, f"{__name__}:{ARCHITECTURE}")


def main() -> None:
    vision = {"spatial_merge_size": 2, "tokens_per_second": 2}
    model = with_mmrope(type(ARCHITECTURE, (), {"config": {"model_type": "qwen2_5_vl", "vision_config": vision}}))()
    grid, seconds = torch.tensor([8, 4, 4]), torch.tensor(1.0)  # a video of 8 grids of 2 x 2 tokens, one second each
    data = {"video_grid_thw": SimpleNamespace(data=grid), "second_per_grid_ts": SimpleNamespace(data=seconds)}
    place = SimpleNamespace(offset=3, length=32, is_embed=None)
    feature = SimpleNamespace(modality="video", mm_position=place, data=data)  # of vLLM's MultiModalFeatureSpec
    ids, delta = model.get_mrope_input_positions([0] * 40, [feature])
    print(f"{ARCHITECTURE}: t of the video {ids[0, 3:35:4].tolist()}, text after it from {int(ids[0, 35])}, delta {delta}")


if __name__ == "__main__":
    main()
