"""Weights of other worlds: how their files lie on disk (containers) and what their tensors are called (names)."""
