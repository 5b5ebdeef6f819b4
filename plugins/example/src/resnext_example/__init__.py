"""The template of a resnext backend: training in NumPy, and serving with batch normalisation folded."""
