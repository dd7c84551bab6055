"""Second ways to the same numbers: kernels, chosen by name, never required. PyTorch defines the mathematics."""
