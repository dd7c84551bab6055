"""Where is each token: rows of segments in, position IDs out. numpy and the standard library, nothing else."""

from mmrope.positions.build import Positions, patch_position_ids, position_ids
from mmrope.positions.compare import explain
from mmrope.positions.families import FAMILIES, family, family_from_config
from mmrope.positions.inputs import segments_from_inputs
from mmrope.positions.rules import Family, TokenIds
from mmrope.positions.segments import Row, Segment
from mmrope.positions.spans import Span, segments_from_spans
from mmrope.positions.timing import VideoTiming

__all__ = [
    "FAMILIES",
    "Family",
    "Positions",
    "Row",
    "Segment",
    "Span",
    "TokenIds",
    "VideoTiming",
    "explain",
    "family",
    "family_from_config",
    "patch_position_ids",
    "position_ids",
    "segments_from_inputs",
    "segments_from_spans",
]
