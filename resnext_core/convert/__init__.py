"""Weights of other programs: file formats (containers) and naming schemes of their tensors (names)."""
