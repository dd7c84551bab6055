"""Names of this package: see extras.py."""

from mmrope.encodings.absolute import LearnedEmbedding as LearnedEmbedding
from mmrope.encodings.absolute import SinusoidalEmbedding as SinusoidalEmbedding
from mmrope.encodings.alibi import alibi_bias as alibi_bias
from mmrope.encodings.alibi import alibi_score_mod as alibi_score_mod
from mmrope.encodings.alibi import alibi_slopes as alibi_slopes
from mmrope.encodings.mixed import MixedRotary as MixedRotary
from mmrope.encodings.presets import PRESETS as PRESETS
from mmrope.encodings.presets import Preset as Preset
from mmrope.encodings.presets import preset as preset
from mmrope.encodings.rotary import RotaryEmbedding as RotaryEmbedding
from mmrope.encodings.rotary import apply_rotary as apply_rotary
from mmrope.encodings.rotary import rotate as rotate
from mmrope.encodings.scaling import (
    NTK as NTK,
)
from mmrope.encodings.scaling import (
    PI as PI,
)
from mmrope.encodings.scaling import (
    DynamicNTK as DynamicNTK,
)
from mmrope.encodings.scaling import (
    Llama3 as Llama3,
)
from mmrope.encodings.scaling import (
    LongRoPE as LongRoPE,
)
from mmrope.encodings.scaling import (
    Proportional as Proportional,
)
from mmrope.encodings.scaling import (
    Scaling as Scaling,
)
from mmrope.encodings.scaling import (
    Temperature as Temperature,
)
from mmrope.encodings.scaling import (
    YaRN as YaRN,
)
from mmrope.encodings.scaling import (
    ntk_by_parts as ntk_by_parts,
)
from mmrope.encodings.spec import RotarySpec as RotarySpec
from mmrope.encodings.xpos import XPos as XPos
