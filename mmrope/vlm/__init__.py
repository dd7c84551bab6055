"""A small vision-language model: a vision encoder (2D RoPE) and a causal decoder (M-RoPE)."""
