"""A small vision-language model: a vision encoder (2D RoPE) and a causal decoder (M-RoPE).

config, norm, vision, decoder, model: what it is. generate: how it writes; assistant: how it is asked in words; attention:
where it looks. tasks, data, train, evaluate: what it learns, in batches, by which loop, and how well. variants: it with other
positions. weights: its files, verified. The package
mmrope-small holds one that is trained.
"""

from mmrope.extras import names_of

__getattr__, __dir__, __all__ = names_of(__name__, __file__)
