"""Doors into the stacks that people run: their arguments in, their shapes out. Nothing here imports or changes them."""
