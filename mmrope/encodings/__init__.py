"""How the model feels it: position IDs to rotations of queries and keys."""
