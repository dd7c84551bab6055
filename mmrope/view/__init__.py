"""Figures of position IDs, of encodings and of the small model.

figure.py   colours, an empty figure, files     ids.py     a row's ids, rules side by side
encodings.py   frequencies, decay, scalings     model.py   where the model looks, how it learned
"""

from mmrope.extras import names_of

__getattr__, __dir__, __all__ = names_of(__name__, __file__)
