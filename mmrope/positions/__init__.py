"""Where is each token: rows of segments in, position IDs out. numpy and the standard library, nothing else."""

from mmrope.positions.batches import Packed, collate, keep, pack
from mmrope.positions.build import Positions, patch_position_ids, position_ids
from mmrope.positions.checks import WrongPositions, check
from mmrope.positions.compare import Difference, diff, explain, fingerprint
from mmrope.positions.edits import Truncated, append, truncate
from mmrope.positions.families import FAMILIES, family, family_from_config
from mmrope.positions.inputs import segments_from_inputs
from mmrope.positions.layouts import convert_ids, hf_position_ids, rope_deltas
from mmrope.positions.rules import Family, TokenIds
from mmrope.positions.segments import Row, Segment
from mmrope.positions.shards import shard_index
from mmrope.positions.spans import Span, segments_from_spans
from mmrope.positions.timing import VideoTiming

__all__ = [
    "FAMILIES",
    "Difference",
    "Family",
    "Packed",
    "Positions",
    "Row",
    "Segment",
    "Span",
    "TokenIds",
    "Truncated",
    "VideoTiming",
    "WrongPositions",
    "append",
    "check",
    "collate",
    "convert_ids",
    "diff",
    "explain",
    "family",
    "family_from_config",
    "fingerprint",
    "hf_position_ids",
    "keep",
    "pack",
    "patch_position_ids",
    "position_ids",
    "rope_deltas",
    "segments_from_inputs",
    "segments_from_spans",
    "shard_index",
    "truncate",
]
