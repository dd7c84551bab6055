"""Names of this package: see extras.py."""

from mmrope.positions.batches import Packed as Packed
from mmrope.positions.batches import collate as collate
from mmrope.positions.batches import keep as keep
from mmrope.positions.batches import pack as pack
from mmrope.positions.build import (
    Positions as Positions,
)
from mmrope.positions.build import (
    patch_position_ids as patch_position_ids,
)
from mmrope.positions.build import (
    position_ids as position_ids,
)
from mmrope.positions.checks import WrongPositions as WrongPositions
from mmrope.positions.checks import check as check
from mmrope.positions.compare import Difference as Difference
from mmrope.positions.compare import diff as diff
from mmrope.positions.compare import explain as explain
from mmrope.positions.compare import fingerprint as fingerprint
from mmrope.positions.edits import Truncated as Truncated
from mmrope.positions.edits import append as append
from mmrope.positions.edits import truncate as truncate
from mmrope.positions.families import FAMILIES as FAMILIES
from mmrope.positions.families import family as family
from mmrope.positions.families import family_from_config as family_from_config
from mmrope.positions.inputs import segments_from_inputs as segments_from_inputs
from mmrope.positions.layouts import convert_ids as convert_ids
from mmrope.positions.layouts import hf_position_ids as hf_position_ids
from mmrope.positions.layouts import rope_deltas as rope_deltas
from mmrope.positions.rules import Family as Family
from mmrope.positions.rules import TokenIds as TokenIds
from mmrope.positions.segments import Row as Row
from mmrope.positions.segments import Segment as Segment
from mmrope.positions.shards import shard_index as shard_index
from mmrope.positions.spans import Span as Span
from mmrope.positions.spans import segments_from_spans as segments_from_spans
from mmrope.positions.timing import VideoTiming as VideoTiming
