"""What a released checkpoint says: its config to a family and to a rotary embedding."""

from mmrope.extras import names_of

__getattr__, __dir__, __all__ = names_of(__name__, __file__)
