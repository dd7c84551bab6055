"""The names at the top, about 25; the rest are in the packages. This list is the one that is read: see extras.py."""

from mmrope import adapters as adapters
from mmrope import checkpoints as checkpoints
from mmrope import encodings as encodings
from mmrope import lab as lab
from mmrope import positions as positions
from mmrope import preprocess as preprocess
from mmrope import prompting as prompting
from mmrope import view as view
from mmrope import vlm as vlm
from mmrope.checkpoints.configs import family_from_config as family_from_config
from mmrope.checkpoints.rotary import rotary_from_config as rotary_from_config
from mmrope.encodings.rotary import RotaryEmbedding as RotaryEmbedding
from mmrope.encodings.rotary import apply_rotary as apply_rotary
from mmrope.encodings.scaling import YaRN as YaRN
from mmrope.encodings.spec import RotarySpec as RotarySpec
from mmrope.positions.build import (
    Positions as Positions,
)
from mmrope.positions.build import (
    patch_position_ids as patch_position_ids,
)
from mmrope.positions.build import (
    position_ids as position_ids,
)
from mmrope.positions.compare import check as check
from mmrope.positions.compare import diff as diff
from mmrope.positions.compare import explain as explain
from mmrope.positions.families import FAMILIES as FAMILIES
from mmrope.positions.families import Family as Family
from mmrope.positions.families import family as family
from mmrope.positions.families import register_family as register_family
from mmrope.positions.formats import hf_position_ids as hf_position_ids
from mmrope.positions.inputs import Span as Span
from mmrope.positions.inputs import segments_from_inputs as segments_from_inputs
from mmrope.positions.inputs import segments_from_spans as segments_from_spans
from mmrope.positions.segments import Segment as Segment
from mmrope.positions.sequences import collate as collate
from mmrope.positions.sequences import pack as pack
from mmrope.positions.timing import VideoTiming as VideoTiming
from mmrope.preprocess.errors import MediaError as MediaError
from mmrope.preprocess.processor import Processor as Processor
from mmrope.vlm.model import VLM as VLM

__version__: str
