"""Data: which images there are, in which order they come, and how they are decoded, augmented and batched."""
