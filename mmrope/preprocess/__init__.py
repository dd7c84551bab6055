"""Files and words in, model inputs with position IDs out."""
