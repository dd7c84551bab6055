"""Names of this package: see extras.py."""

from mmrope.checkpoints.configs import family_from_config as family_from_config
from mmrope.checkpoints.models import MODELS as MODELS
from mmrope.checkpoints.models import Model as Model
from mmrope.checkpoints.rotary import rotary_from_config as rotary_from_config
