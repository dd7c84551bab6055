"""Names of this package: see extras.py."""

from mmrope.positions.build import (
    Positions as Positions,
)
from mmrope.positions.build import (
    decode_position_ids as decode_position_ids,
)
from mmrope.positions.build import (
    patch_position_ids as patch_position_ids,
)
from mmrope.positions.build import (
    position_ids as position_ids,
)
from mmrope.positions.canvas import Canvas as Canvas
from mmrope.positions.compare import Difference as Difference
from mmrope.positions.compare import WrongPositions as WrongPositions
from mmrope.positions.compare import check as check
from mmrope.positions.compare import diff as diff
from mmrope.positions.compare import explain as explain
from mmrope.positions.compare import fingerprint as fingerprint
from mmrope.positions.families import FAMILIES as FAMILIES
from mmrope.positions.families import Family as Family
from mmrope.positions.families import family as family
from mmrope.positions.families import register_family as register_family
from mmrope.positions.formats import convert_ids as convert_ids
from mmrope.positions.formats import hf_position_ids as hf_position_ids
from mmrope.positions.formats import rope_deltas as rope_deltas
from mmrope.positions.inputs import Span as Span
from mmrope.positions.inputs import segments_from_inputs as segments_from_inputs
from mmrope.positions.inputs import segments_from_spans as segments_from_spans
from mmrope.positions.omni import AudioInVideo as AudioInVideo
from mmrope.positions.rules import CheckpointFacts as CheckpointFacts
from mmrope.positions.rules import Placement as Placement
from mmrope.positions.rules import Reading as Reading
from mmrope.positions.rules import RotaryFacts as RotaryFacts
from mmrope.positions.rules import TokenIds as TokenIds
from mmrope.positions.segments import Row as Row
from mmrope.positions.segments import Segment as Segment
from mmrope.positions.sequences import Packed as Packed
from mmrope.positions.sequences import Truncated as Truncated
from mmrope.positions.sequences import append as append
from mmrope.positions.sequences import collate as collate
from mmrope.positions.sequences import keep as keep
from mmrope.positions.sequences import pack as pack
from mmrope.positions.sequences import shard_index as shard_index
from mmrope.positions.sequences import truncate as truncate
from mmrope.positions.timing import VideoTiming as VideoTiming
