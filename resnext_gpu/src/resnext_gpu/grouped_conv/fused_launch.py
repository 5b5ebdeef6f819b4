"""Calling the kernels of batch normalisation around the grouped convolution, on channels-last images as in `launch`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from resnext_core.model.spec import BN_EPS
from resnext_gpu.grouped_conv import fused_kernels, norm_kernels
from resnext_gpu.grouped_conv.launch import Plan, image_like, out_size, pack, spans, squares_in

#: Values of a tile of (rows, C), and the most channels of one: 16 loads of 16 bits a thread at 4 warps of 2 x 8.
_TILE, _MOST_CHANNELS, _WARPS = 4096, 64, 4
#: Programs that sum over rows: some eight for each multiprocessor of the largest cards.
_PROGRAMS = 1024


def norm_of(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the norm (5, C) of a batch `x` (N, C, H, W) by `weight` and `bias` (C,), float32; see `norm_kernels`."""
    rows, channels, cut, wide = _rows(x)
    span, many = _span(rows, channels, cut, wide)
    parts, counts = _statistics(many, channels, x.device)
    norm_kernels.row_statistics[(many, channels // wide)](
        x, parts, counts, rows, span, channels, BM=cut, BC=wide, num_warps=_WARPS
    )
    return combine(parts, counts, weight, bias)


def combine(parts: Tensor, counts: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the norm (5, C) of all, from means and centred squares (n, 2, C) of `counts` (n,) values."""
    many, _, channels = parts.shape
    found = torch.empty((5, channels), dtype=torch.float32, device=parts.device)
    norm_kernels.combine[(channels // 16,)](
        parts, counts, weight, bias, found, many, channels, EPS=BN_EPS, BM=64, BC=16, num_warps=_WARPS
    )
    return found


def activate(x: Tensor, norm: Tensor) -> Tensor:
    """Return relu of the normalised `x` (N, C, H, W), in its type."""
    rows, channels, cut, wide = _rows(x)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    norm_kernels.activate[(triton.cdiv(rows, cut), channels // wide)](
        x,
        norm,
        y,
        rows,
        channels,
        BM=cut,
        BC=wide,
        num_warps=_WARPS,
    )
    return y


def gradient_sums(dy: Tensor, x: Tensor, norm: Tensor) -> Tensor:
    """Return the gradients (2, C) of bias and weight from `dy`, that of relu of the normalised `x`, float32."""
    rows, channels, cut, wide = _rows(x)
    span, many = _span(rows, channels, cut, wide)
    parts = torch.empty((many, 2, channels), dtype=torch.float32, device=x.device)
    norm_kernels.gradient_sums[(many, channels // wide)](
        dy, x, norm, parts, rows, span, channels,
        BM=cut, BC=wide, num_warps=_WARPS,
    )  # fmt: skip
    return parts.sum(0)


def input_of_norm(dy: Tensor, x: Tensor, norm: Tensor, sums: Tensor) -> Tensor:
    """Return the gradient of `x` from `dy`, that of relu of the normalised `x`, and its `sums` (2, C)."""
    rows, channels, cut, wide = _rows(x)
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    norm_kernels.input_of_norm[(triton.cdiv(rows, cut), channels // wide)](
        dy, x, norm, sums, dx, rows, channels,
        BM=cut, BC=wide, num_warps=_WARPS,
    )  # fmt: skip
    return dx


def forward(
    x: Tensor, norm: Tensor, weight: Tensor, stride: int, plan: Plan
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the convolution of relu of the normalised `x` with `weight` (C, C / groups, 3, 3).

    And of each program mean and centred square (n, 2, C) of what it wrote, and the count (n,): see `combine`.
    """
    channels, height, width = x.shape[1:]
    y = image_like(x, out_size(height, stride), out_size(width, stride))
    many = triton.cdiv(squares_in(y), plan.squares)
    parts, counts = _statistics(many, channels, x.device)
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


def _rows(x: Tensor) -> tuple[int, int, int, int]:
    """Return the pixels and channels of `x`, and those of a tile."""
    channels = x.shape[1]
    wide = next(n for n in (_MOST_CHANNELS, 32, 16) if channels % n == 0)
    return x.numel() // channels, channels, _TILE // wide, wide


def _span(rows: int, channels: int, cut: int, wide: int) -> tuple[int, int]:
    """Return how many rows a program sums, a multiple of `cut`, and how many programs there are for each channel."""
    programs = max(1, _PROGRAMS * wide // channels)
    span = triton.cdiv(triton.cdiv(rows, programs), cut) * cut
    return span, triton.cdiv(rows, span)


def _statistics(many: int, channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    parts = torch.empty((many, 2, channels), dtype=torch.float32, device=device)
    return parts, torch.empty(many, dtype=torch.float32, device=device)
