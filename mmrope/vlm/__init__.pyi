"""Names of this package: see extras.py."""

from mmrope.vlm.assistant import Assistant as Assistant
from mmrope.vlm.assistant import Chat as Chat
from mmrope.vlm.assistant import small_model as small_model
from mmrope.vlm.cache import KVCache as KVCache
from mmrope.vlm.config import DecoderConfig as DecoderConfig
from mmrope.vlm.config import VisionConfig as VisionConfig
from mmrope.vlm.config import VLMConfig as VLMConfig
from mmrope.vlm.looks import Looked as Looked
from mmrope.vlm.looks import attention_weights as attention_weights
from mmrope.vlm.looks import looked_at as looked_at
from mmrope.vlm.model import VLM as VLM
from mmrope.vlm.model import VLMOutput as VLMOutput
from mmrope.vlm.model import next_token_loss as next_token_loss
from mmrope.vlm.sampling import GenerationConfig as GenerationConfig
