"""Calling the kernels: sizes, memory and grids. Tensors are (N, C, H, W) in channels-last memory.

On tensors of the device ``meta`` nothing is computed: kernels are compiled for the current GPU.

One stage each: software pipelining would load tiles past the L1 cache, where most of them are found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from resnext_gpu.grouped_conv import kernels
from resnext_gpu.grouped_conv.packs import Packs

_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}

#: Pixels, and the values of a few rows, are counted in 32 bits.
_MOST_PIXELS, _MOST_IN_A_ROW = 2**31 - 1, 2**28


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a kernel is cut: squares and channels of a program, its warps, and programs in all for weight gradients."""

    squares: int
    channels: int
    warps: int
    programs: int = 1024


def forward(x: Tensor, weight: Tensor, stride: int, plan: Plan, packs: Packs | None = None) -> Tensor:
    """Return the convolution of `x` with `weight` (C, C / groups, 3, 3), padding 1, in the type of `x`.

    The weight's matrices are those of `packs`, or made for this call.
    """
    y = image_like(x, out_size(x.shape[2], stride), out_size(x.shape[3], stride))
    _convolve(x, _packed(weight, x.dtype, plan, packs, back=False), y, stride, plan)
    return y


def input_gradient(
    dy: Tensor, weight: Tensor, height: int, width: int, stride: int, plan: Plan, packs: Packs | None = None
) -> Tensor:
    """Return the gradient of an input of (`height`, `width`) from that of the output, in the latter's type."""
    dx = image_like(dy, height, width)
    packed = _packed(weight, dy.dtype, plan, packs, back=True)
    if stride == 1:
        _convolve(dy, packed, dx, 1, plan)
        return dx
    channels, out_height, out_width = dy.shape[1:]
    squares = squares_in(dx)
    grid = (triton.cdiv(squares, plan.squares) * (channels // plan.channels),)
    run(
        kernels.input_gradient_of_stride_2, grid,
        dy, packed, dx, squares, height, width, out_height, out_width, channels,
        BM=plan.squares, BC=plan.channels, num_warps=plan.warps, num_stages=1,
    )  # fmt: skip
    return dx


def weight_gradient(dy: Tensor, x: Tensor, group_width: int, stride: int, plan: Plan) -> Tensor:
    """Return the float32 gradient (C, C / groups, 3, 3) of the weights; the same bits every time."""
    channels, height, width = x.shape[1:]
    out_height, out_width = dy.shape[2:]
    squares = squares_in(dy)
    blocks = channels // plan.channels
    span, count = spans(squares, channels, plan)
    parts = torch.empty((count, 3, 3, channels, group_width), dtype=torch.float32, device=x.device)
    run(
        kernels.weight_gradient, (blocks, count),
        dy, x, parts, squares, span, height, width, out_height, out_width, channels,
        GW=group_width, STRIDE=stride, BM=plan.squares, BC=plan.channels, num_warps=plan.warps, num_stages=1,
    )  # fmt: skip
    return parts.sum(0).permute(2, 3, 0, 1).contiguous()


def pack(weight: Tensor, dtype: torch.dtype, block: int, *, back: bool) -> Tensor:
    """Return the matrices (tap, channel block, in, out) of `weight`, of the input gradient if `back`."""
    packed = torch.empty((9, weight.shape[0] // block, block, block), dtype=dtype, device=weight.device)
    pack_into(packed, weight, back=back)
    return packed


def pack_into(packed: Tensor, weight: Tensor, *, back: bool) -> None:
    """Write the matrices of `weight`."""
    channels, group_width = weight.shape[:2]
    block = packed.shape[2]
    run(
        kernels.pack, (channels // block,),
        weight, packed, channels, group_width, *weight.stride(), int(back), BC=block,
    )  # fmt: skip


def pack_all(
    table: Tensor, places: Tensor, weight_type: torch.dtype, packed_type: torch.dtype, block: int
) -> None:
    """Write the matrices of all weights of a table; see the kernel."""
    run(
        kernels.pack_all, (len(places),), table, places,
        WEIGHT=_TYPES[weight_type], PACKED=_TYPES[packed_type], BC=block,
    )  # fmt: skip


def spans(squares: int, channels: int, plan: Plan) -> tuple[int, int]:
    """Return how many squares a program of a weight gradient sums over, and how many parts of the sum that makes."""
    programs = max(1, plan.programs // (channels // plan.channels))
    span = triton.cdiv(triton.cdiv(squares, programs), plan.squares) * plan.squares
    return span, triton.cdiv(squares, span)


def squares_of(images: int, height: int, width: int) -> int:
    """Return how many squares of 2 x 2 pixels images have; those at the border may extend beyond it."""
    return images * ((height + 1) // 2) * ((width + 1) // 2)


def out_size(size: int, stride: int) -> int:
    """Return the rows (columns) that a 3x3 kernel with padding 1 gives of `size`."""
    return (size - 1) // stride + 1


def fits(x: Tensor) -> bool:
    """True where the kernels can count the pixels of `x`, and so those of what it becomes."""
    images, channels, height, width = x.shape
    return 0 < images * height * width <= _MOST_PIXELS and width * channels <= _MOST_IN_A_ROW


def _convolve(x: Tensor, packed: Tensor, y: Tensor, stride: int, plan: Plan) -> None:
    channels, out_height, out_width = y.shape[1:]
    squares = squares_in(y)
    grid = (triton.cdiv(squares, plan.squares) * (channels // plan.channels),)
    run(
        kernels.forward, grid,
        x, packed, y, squares, x.shape[2], x.shape[3], out_height, out_width, channels,
        STRIDE=stride, BM=plan.squares, BC=plan.channels, num_warps=plan.warps, num_stages=1,
    )  # fmt: skip


def squares_in(written: Tensor) -> int:
    """Return how many squares the image `written` has."""
    images, _, height, width = written.shape
    return squares_of(images, height, width)


def _packed(weight: Tensor, dtype: torch.dtype, plan: Plan, packs: Packs | None, *, back: bool) -> Tensor:
    if packs is None:
        return pack(weight, dtype, plan.channels, back=back)
    return packs.get(weight, dtype, plan.channels, back=back)


def run(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Run a kernel, or compile it where its tensors have no data."""
    if any(isinstance(arg, Tensor) and arg.is_meta for arg in args):
        types = [arg.dtype if isinstance(arg, Tensor) else arg for arg in args]
        kernel.warmup(*types, grid=grid, **constants)
    else:
        kernel[grid](*args, **constants)


def image_like(x: Tensor, height: int, width: int) -> Tensor:
    size = (x.shape[0], x.shape[1], height, width)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
