"""Names of this package: see extras.py."""

from mmrope.preprocess.access import Access as Access
from mmrope.preprocess.batches import ModelInputs as ModelInputs
from mmrope.preprocess.batches import pack_batches as pack_batches
from mmrope.preprocess.chat import CHATML as CHATML
from mmrope.preprocess.errors import Limits as Limits
from mmrope.preprocess.errors import MediaError as MediaError
from mmrope.preprocess.image import load_image as load_image
from mmrope.preprocess.isolation import Outcome as Outcome
from mmrope.preprocess.isolation import isolated as isolated
from mmrope.preprocess.measure import Media as Media
from mmrope.preprocess.parts import Part as Part
from mmrope.preprocess.patches import PatchConfig as PatchConfig
from mmrope.preprocess.processor import Processor as Processor
from mmrope.preprocess.text import (
    ByteTokenizer as ByteTokenizer,
)
from mmrope.preprocess.text import (
    FileTokenizer as FileTokenizer,
)
from mmrope.preprocess.text import (
    Tokenizer as Tokenizer,
)
from mmrope.preprocess.text import (
    WordTokenizer as WordTokenizer,
)
from mmrope.preprocess.video import Frames as Frames
from mmrope.preprocess.video import Video as Video
from mmrope.preprocess.video import open_video as open_video
