"""mmrope: the position layer of multimodal transformers.

Where is each token (text, image patches, video frames, as ids on the axes time, height, width), and how does the model
feel it (ids to rotations of queries and keys). `pip install mmrope` brings numpy, and what needs it alone; extras bring the
rest, and a name whose extra is missing says which.
"""

from mmrope.extras import names_of

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = names_of(__name__, __file__)
