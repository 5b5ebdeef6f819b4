"""Calls the kernels of batch normalisation on PyTorch's tensors; images are channels-last, (N, C, H, W)."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from resnext_core.model.spec import BN_EPS, BN_MOMENTUM
from resnext_gpu.grouped_conv import norm_kernels
from resnext_gpu.grouped_conv.launch import run

#: Channels of a tile of (rows, C), as many as can be: rows of 256 bytes are read faster than shorter ones.
_WIDTHS = (128, 64, 32, 16)
#: Values of a tile where values are written, and where they are summed, and how many of the latter's tiles there are.
_WRITTEN, _SUMMED, _AHEAD, _WARPS = 4096, 2048, 4, 4
#: Programs that sum over rows: four for each multiprocessor of an H100, so that all run at once.
_PROGRAMS = 528
#: Running mean and variance (C,), float32.
Running = tuple[Tensor, Tensor]


def norm_of(x: Tensor, weight: Tensor, bias: Tensor, running: Running | None = None) -> Tensor:
    """Return the norm (5, C) of a batch `x` by `weight` and `bias` (C,), float32; see `norm_kernels`.

    `running` statistics move by BN_MOMENTUM, with the unbiased variance.
    """
    rows, channels, cut, wide = _rows(x, _SUMMED)
    span, many = _span(rows, channels, cut, wide)
    parts, counts = statistics(many, channels, x.device)
    run(
        norm_kernels.row_statistics, (many, channels // wide),
        x, parts, counts, rows, span, channels, BM=cut, BC=wide, AHEAD=_AHEAD, num_warps=_WARPS,
    )  # fmt: skip
    return combine(parts, counts, weight, bias, running)


def combine(
    parts: Tensor, counts: Tensor, weight: Tensor, bias: Tensor, running: Running | None = None
) -> Tensor:
    """Return the norm (5, C) of all, from means and centred squares (n, 2, C) of `counts` (n,) values."""
    many, _, channels = parts.shape
    found = torch.empty((5, channels), dtype=torch.float32, device=parts.device)
    run(
        norm_kernels.combine, (channels // 16,),
        parts, counts, weight, bias, found, *(running or (found, found)), many, channels,
        EPS=BN_EPS, MOMENTUM=0.0 if running is None else BN_MOMENTUM, BM=64, BC=16, num_warps=_WARPS,
    )  # fmt: skip
    return found


def activate(x: Tensor, norm: Tensor, other: Tensor | None = None, *, relu: bool = True) -> Tensor:
    """Return the normalised `x`, with `other` added, and of that relu, in the type of `x`."""
    rows, channels, cut, wide = _rows(x, _WRITTEN)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    run(
        norm_kernels.activate, (triton.cdiv(rows, cut), channels // wide),
        x, norm, y if other is None else other, y, rows, channels,
        ADD=other is not None, RELU=relu, BM=cut, BC=wide, num_warps=_WARPS,
    )  # fmt: skip
    return y


def gradient_sums(dy: Tensor, x: Tensor, norm: Tensor, *, relu: bool = True) -> Tensor:
    """Return the gradients (2, C) of bias and weight from `dy`, that of the normalised `x`, or of its relu; float32."""
    return _sums(dy, x, None, norm, relu=relu)[0]


def gradient_sums_of_sum(dy: Tensor, x: Tensor, y: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same from `dy`, that of `y` = relu of the normalised `x` and something; and the gradient of that."""
    return _sums(dy, x, y, norm, relu=True)


def _sums(dy: Tensor, x: Tensor, y: Tensor | None, norm: Tensor, *, relu: bool) -> tuple[Tensor, Tensor]:
    rows, channels, cut, wide = _rows(x, _SUMMED)
    span, many = _span(rows, channels, cut, wide)
    parts = torch.empty((many, 2, channels), dtype=torch.float32, device=x.device)
    d = dy if y is None else torch.empty_like(x, memory_format=torch.channels_last)
    run(
        norm_kernels.gradient_sums, (many, channels // wide),
        dy, x, dy if y is None else y, norm, d, parts, rows, span, channels,
        ADD=y is not None, RELU=relu, BM=cut, BC=wide, AHEAD=_AHEAD, num_warps=_WARPS,
    )  # fmt: skip
    sums = torch.empty((2, channels), dtype=torch.float32, device=x.device)
    run(
        norm_kernels.add_parts, (2 * channels // 32,),
        parts, sums, many, 2 * channels, BM=64, BC=32, num_warps=_WARPS,
    )  # fmt: skip
    return sums, d


def input_of_norm(dy: Tensor, x: Tensor, norm: Tensor, sums: Tensor, *, relu: bool = True) -> Tensor:
    """Return the gradient of `x` from `dy`, that of the normalised `x`, or of its relu, and its `sums` (2, C)."""
    rows, channels, cut, wide = _rows(x, _WRITTEN)
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    run(
        norm_kernels.input_of_norm, (triton.cdiv(rows, cut), channels // wide),
        dy, x, norm, sums, dx, rows, channels, RELU=relu, BM=cut, BC=wide, num_warps=_WARPS,
    )  # fmt: skip
    return dx


def statistics(many: int, channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return memory for means and centred squares (n, 2, C) of `many` parts, and for their counts (n,)."""
    parts = torch.empty((many, 2, channels), dtype=torch.float32, device=device)
    return parts, torch.empty(many, dtype=torch.float32, device=device)


def _rows(x: Tensor, values: int) -> tuple[int, int, int, int]:
    """Return the pixels and channels of `x`, and those of a tile of so many `values`."""
    channels = x.shape[1]
    wide = next(n for n in _WIDTHS if channels % n == 0)
    return x.numel() // channels, channels, values // wide, wide


def _span(rows: int, channels: int, cut: int, wide: int) -> tuple[int, int]:
    """Return how many rows a program sums, a multiple of `cut`, and how many programs there are for each channel."""
    programs = max(1, _PROGRAMS * wide // channels)
    span = triton.cdiv(triton.cdiv(rows, programs), cut) * cut
    return span, triton.cdiv(rows, span)
