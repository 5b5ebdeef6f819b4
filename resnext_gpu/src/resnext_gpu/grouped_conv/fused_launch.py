"""Calling the kernels of batch normalisation around the grouped convolution, on channels-last images as in `launch`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from resnext_gpu.grouped_conv import fused_kernels
from resnext_gpu.grouped_conv.launch import Plan, image_like, out_size, pack, spans, squares_in
from resnext_gpu.grouped_conv.norm_launch import (
    activate,
    combine,
    gradient_sums,
    input_of_norm,
    norm_of,
    statistics,
)

__all__ = [
    "activate", "combine", "forward", "gradient_sums", "input_gradient", "input_of_norm", "norm_of", "weight_gradient",
]  # fmt: skip


def forward(
    x: Tensor, norm: Tensor, weight: Tensor, stride: int, plan: Plan
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the convolution of relu of the normalised `x` with `weight` (C, C / groups, 3, 3).

    And of each program mean and centred square (n, 2, C) of what it wrote, and the count (n,): see `combine`.
    """
    channels, height, width = x.shape[1:]
    y = image_like(x, out_size(height, stride), out_size(width, stride))
    many = triton.cdiv(squares_in(y), plan.squares)
    parts, counts = statistics(many, channels, x.device)
    fused_kernels.forward[(many * (channels // plan.channels),)](
        x, norm, pack(weight, x.dtype, plan.channels, back=False), y, parts, counts,
        squares_in(y), height, width, y.shape[2], y.shape[3], channels,
        STRIDE=stride, BM=plan.squares, BC=plan.channels, num_warps=plan.warps, num_stages=1,
    )  # fmt: skip
    return y, parts, counts


def input_gradient(
    dy: Tensor, weight: Tensor, x: Tensor, norm: Tensor, stride: int, plan: Plan
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the normalised `x` where relu passed it, and the gradients (2, C) of bias and weight."""
    channels, height, width = x.shape[1:]
    dx = image_like(x, height, width)
    many = triton.cdiv(squares_in(dx), plan.squares)
    parts = torch.empty((many, 2, channels), dtype=torch.float32, device=x.device)
    packed = pack(weight, dy.dtype, plan.channels, back=True)
    kernel, out = fused_kernels.input_gradient, ()
    if stride == 2:
        kernel, out = fused_kernels.input_gradient_of_stride_2, dy.shape[2:]
    kernel[(many * (channels // plan.channels),)](
        dy, packed, x, norm, dx, parts, squares_in(dx), height, width, *out, channels,
        BM=plan.squares, BC=plan.channels, num_warps=plan.warps, num_stages=1,
    )  # fmt: skip
    return dx, parts.sum(0)


def weight_gradient(dy: Tensor, x: Tensor, norm: Tensor, group_width: int, stride: int, plan: Plan) -> Tensor:
    """Return the float32 gradient (C, C / groups, 3, 3) of the weights, of relu of the normalised `x`."""
    channels, height, width = x.shape[1:]
    squares, blocks = squares_in(dy), channels // plan.channels
    span, count = spans(squares, channels, plan)
    parts = torch.empty((count, 3, 3, channels, group_width), dtype=torch.float32, device=x.device)
    fused_kernels.weight_gradient[(blocks, count)](
        dy, x, norm, parts, squares, span, height, width, *dy.shape[2:], channels,
        GW=group_width, STRIDE=stride, BM=plan.squares, BC=plan.channels,
        num_warps=plan.warps, num_stages=1,
    )  # fmt: skip
    return parts.sum(0).permute(2, 3, 0, 1).contiguous()
