"""A small vision-language model: a vision encoder (2D RoPE) and a causal decoder (M-RoPE).

config, norm, vision, decoder, model: what it is. generate: how it writes; assistant: how it is asked in words; attention:
where it looks. tasks, data, train, evaluate: what it learns, in batches, by which loop, and how well. variants: it with other
positions. weights: its files, verified. small: the one that is shipped.
"""

from pathlib import Path

SMALL = Path(__file__).parent / "small"
"""The folder of the model that is shipped: it reads digits in pictures and films. Its card, README.md, says how well."""
