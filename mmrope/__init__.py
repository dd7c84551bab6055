"""mmrope: the position layer of multimodal transformers.

Where is each token (text, image patches, video frames, as ids on the axes time, height, width), and how does the model
feel it (ids to rotations of queries and keys). Importing this loads numpy, not torch; names that need torch are resolved
when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmrope.encodings.presets import PRESETS, preset
from mmrope.encodings.scaling import NTK, PI, DynamicNTK, Llama3, LongRoPE, Proportional, YaRN, ntk_by_parts
from mmrope.encodings.spec import RotarySpec
from mmrope.positions import (
    FAMILIES,
    Difference,
    Family,
    Packed,
    Positions,
    Row,
    Segment,
    Span,
    TokenIds,
    Truncated,
    VideoTiming,
    WrongPositions,
    append,
    check,
    collate,
    convert_ids,
    diff,
    explain,
    family,
    family_from_config,
    fingerprint,
    hf_position_ids,
    keep,
    pack,
    patch_position_ids,
    position_ids,
    rope_deltas,
    segments_from_inputs,
    segments_from_spans,
    shard_index,
    truncate,
)

if TYPE_CHECKING:
    from mmrope.encodings.absolute import LearnedEmbedding, SinusoidalEmbedding
    from mmrope.encodings.alibi import alibi_bias, alibi_score_mod, alibi_slopes
    from mmrope.encodings.mixed import MixedRotary
    from mmrope.encodings.rotary import RotaryEmbedding, apply_rotary, rotate
    from mmrope.encodings.xpos import XPos
    from mmrope.preprocess.access import Access
    from mmrope.preprocess.errors import Limits, MediaError
    from mmrope.preprocess.image import load_image
    from mmrope.preprocess.isolation import Outcome, isolated
    from mmrope.preprocess.patches import PatchConfig
    from mmrope.preprocess.processor import Processor
    from mmrope.preprocess.video import Video, open_video
    from mmrope.vlm.config import VLMConfig
    from mmrope.vlm.model import VLM

__version__ = "0.1.0"

_ON_FIRST_USE = {
    "MixedRotary": "mmrope.encodings.mixed",
    "XPos": "mmrope.encodings.xpos",
    "SinusoidalEmbedding": "mmrope.encodings.absolute",
    "LearnedEmbedding": "mmrope.encodings.absolute",
    "alibi_bias": "mmrope.encodings.alibi",
    "alibi_score_mod": "mmrope.encodings.alibi",
    "alibi_slopes": "mmrope.encodings.alibi",
    "RotaryEmbedding": "mmrope.encodings.rotary",
    "apply_rotary": "mmrope.encodings.rotary",
    "rotate": "mmrope.encodings.rotary",
    "Access": "mmrope.preprocess.access",
    "load_image": "mmrope.preprocess.image",
    "Outcome": "mmrope.preprocess.isolation",
    "isolated": "mmrope.preprocess.isolation",
    "Video": "mmrope.preprocess.video",
    "open_video": "mmrope.preprocess.video",
    "Limits": "mmrope.preprocess.errors",
    "MediaError": "mmrope.preprocess.errors",
    "PatchConfig": "mmrope.preprocess.patches",
    "Processor": "mmrope.preprocess.processor",
    "VLM": "mmrope.vlm.model",
    "VLMConfig": "mmrope.vlm.config",
}

__all__ = [
    "FAMILIES",
    "NTK",
    "PI",
    "PRESETS",
    "VLM",
    "Access",
    "Difference",
    "DynamicNTK",
    "Family",
    "LearnedEmbedding",
    "Limits",
    "Llama3",
    "LongRoPE",
    "MediaError",
    "MixedRotary",
    "Outcome",
    "Packed",
    "PatchConfig",
    "Positions",
    "Processor",
    "Proportional",
    "RotaryEmbedding",
    "RotarySpec",
    "Row",
    "Segment",
    "SinusoidalEmbedding",
    "Span",
    "TokenIds",
    "Truncated",
    "VLMConfig",
    "Video",
    "VideoTiming",
    "WrongPositions",
    "XPos",
    "YaRN",
    "alibi_bias",
    "alibi_score_mod",
    "alibi_slopes",
    "append",
    "apply_rotary",
    "check",
    "collate",
    "convert_ids",
    "diff",
    "explain",
    "family",
    "family_from_config",
    "fingerprint",
    "hf_position_ids",
    "isolated",
    "keep",
    "load_image",
    "ntk_by_parts",
    "open_video",
    "pack",
    "patch_position_ids",
    "position_ids",
    "preset",
    "rope_deltas",
    "rotate",
    "segments_from_inputs",
    "segments_from_spans",
    "shard_index",
    "truncate",
]


def __getattr__(name: str) -> Any:
    if name in _ON_FIRST_USE:
        return getattr(import_module(_ON_FIRST_USE[name]), name)
    raise AttributeError(f"module 'mmrope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
