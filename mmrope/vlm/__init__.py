"""A vision-language model: a vision encoder (2D RoPE) and a causal decoder (M-RoPE), as its config describes it.

config, layers, attention, vision, decoder, model: what it is. released: which released checkpoints it runs. inputs: what it
reads; generate, sampling, cache: how it writes; assistant: how it is asked in words; looks: where it looks. weights, manifest:
its files. tasks, data, train, evaluate: what the small one learns, in batches, by which loop, and how well; variants: it with
other positions. The package mmrope-small holds one that is trained.
"""

from mmrope.extras import names_of

__getattr__, __dir__, __all__ = names_of(__name__, __file__)
