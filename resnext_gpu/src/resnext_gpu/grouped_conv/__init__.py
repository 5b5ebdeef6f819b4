"""The grouped 3x3 convolution by kernels of our own: see docs/log/kernels.md.

`kernels` is the Triton code, `launch` calls it, `packs` keeps the weights in the form that it takes, `plans` times it
and chooses how it is cut after `compiling` all cuts, and `op` makes an operation of PyTorch of it, with gradients.
"""
