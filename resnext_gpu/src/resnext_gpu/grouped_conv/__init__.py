"""The grouped 3x3 convolution by kernels of our own: see docs/log/kernels.md.

`kernels` is the Triton code, `launch` calls it, `plans` times it and chooses how it is cut, and `op` makes an operation
of PyTorch of it, with gradients.
"""
