"""The template of a resnext backend: weights served in NumPy, with batch normalisation folded."""
