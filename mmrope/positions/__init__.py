"""Where is each token: rows of segments in, position IDs out. numpy and the standard library, nothing else."""

from mmrope.extras import names_of

__getattr__, __dir__, __all__ = names_of(__name__, __file__)
