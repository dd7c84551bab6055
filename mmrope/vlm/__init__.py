"""A small vision-language model: a vision encoder (2D RoPE) and a causal decoder (M-RoPE)."""

from pathlib import Path

SMALL = Path(__file__).parent / "small"
"""The folder of the model that is shipped: it reads digits in pictures and films. Its card, README.md, says how well."""
