"""How the model feels it: position IDs to rotations of queries and keys."""

from mmrope.extras import names_of

__getattr__, __dir__, __all__ = names_of(__name__, __file__)
