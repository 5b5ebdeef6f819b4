"""Triton kernels of the grouped 3x3 convolution with batch normalisation and ReLU around it.

The convolution reads the raw image x before a normalisation, and normalises and activates each tile as it loads it; it
writes the raw y and the statistics that the normalisation of y needs. Its gradients compute the activated x again.
Cuts, tiles and matrices are those of `kernels`; statistics and sums are laid out as in `norm_kernels`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from resnext_gpu.grouped_conv.kernels import (
    ANY_SIZE,
    four,
    four_back,
    keep_all,
    nine,
    place_of,
    store,
    within,
)
from resnext_gpu.grouped_conv.norm_kernels import affine, passed, put


@triton.jit(do_not_specialize=ANY_SIZE)
def forward(
    x, norm, packed, y, parts, counts, squares, height, width, out_height, out_width, channels,
    STRIDE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write `BM` of the `squares` of y, the convolution of the activated x, and the statistics of these pixels."""
    blocks = channels // BC
    block, part = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    square, lane = part * BM + tl.arange(0, BM), tl.arange(0, BC)
    inside = square < squares
    image, row, column = place_of(square, out_height, out_width)
    at = ((image * height + row * STRIDE) * width + column * STRIDE).to(tl.int64) * channels + block * BC
    middle = x + at[:, None] + lane[None, :]
    matrix = packed + block * BC * BC + lane[:, None] * BC + lane[None, :]
    step = blocks * BC * BC
    scale, shift, _, _ = affine(norm, block * BC + lane, channels)
    y00, y01, y10, y11 = four(
        middle, matrix, step, inside, row * STRIDE, column * STRIDE, height, width, channels, scale, shift,
        True, STRIDE, BM, BC,
    )  # fmt: skip
    at = ((image * out_height + row) * out_width + column).to(tl.int64) * channels + block * BC
    first = y + at[:, None] + lane[None, :]
    store(first, y00, inside, row, column, out_height, out_width, channels, 0, 0)
    store(first, y01, inside, row, column, out_height, out_width, channels, 0, 1)
    store(first, y10, inside, row, column, out_height, out_width, channels, 1, 0)
    store(first, y11, inside, row, column, out_height, out_width, channels, 1, 1)
    # Of what was stored, so that the statistics are those of the tensor that is normalised by them.
    in01 = within(inside, row, column, out_height, out_width, 0, 1)
    in10 = within(inside, row, column, out_height, out_width, 1, 0)
    in11 = within(inside, row, column, out_height, out_width, 1, 1)
    kind = y.dtype.element_ty
    y00, y01 = _stored(inside, y00, kind), _stored(in01, y01, kind)
    y10, y11 = _stored(in10, y10, kind), _stored(in11, y11, kind)
    pixels = inside.to(tl.float32) + in01.to(tl.float32) + in10.to(tl.float32) + in11.to(tl.float32)
    total = tl.sum(pixels, 0)
    mean = tl.sum(y00 + y01 + y10 + y11, 0) / total
    squared = _apart(inside, y00, mean) + _apart(in01, y01, mean) + _apart(in10, y10, mean)
    squared = tl.sum(squared + _apart(in11, y11, mean), 0)
    put(parts, counts, part, block == 0, block * BC + lane, channels, total, mean, squared)


@triton.jit
def _stored(inside, total, kind: tl.constexpr):
    """Return `total` as it is stored in the type `kind`, float32, and 0 outside the image."""
    return tl.where(inside[:, None], total.to(kind).to(tl.float32), 0.0)


@triton.jit
def _apart(inside, value, mean):
    """Return the squares of `value` - `mean`, and 0 outside the image."""
    apart = tl.where(inside[:, None], value - mean[None, :], 0.0)
    return apart * apart


@triton.jit(do_not_specialize=ANY_SIZE)
def input_gradient(
    dy, packed, x, norm, dx, parts, squares, height, width, channels,
    BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write `BM` of the `squares` of dx of stride 1, where the activation passed x, and their sums."""
    blocks = channels // BC
    block, part = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    square, lane = part * BM + tl.arange(0, BM), tl.arange(0, BC)
    inside = square < squares
    image, row, column = place_of(square, height, width)
    at = ((image * height + row) * width + column).to(tl.int64) * channels + block * BC
    middle = dy + at[:, None] + lane[None, :]
    matrix = packed + block * BC * BC + lane[:, None] * BC + lane[None, :]
    dx00, dx01, dx10, dx11 = four(
        middle, matrix, blocks * BC * BC, inside, row, column, height, width, channels, 0, 0, False, 1, BM, BC
    )
    _finish(
        dx00, dx01, dx10, dx11, x, norm, dx, parts, part, block * BC + lane, inside, image, row,
        column, height, width, channels,
    )  # fmt: skip


@triton.jit(do_not_specialize=ANY_SIZE)
def input_gradient_of_stride_2(
    dy, packed, x, norm, dx, parts, squares, height, width, out_height, out_width, channels,
    BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write `BM` of the `squares` of dx of stride 2, where the activation passed x, and their sums."""
    blocks = channels // BC
    block, part = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    square, lane = part * BM + tl.arange(0, BM), tl.arange(0, BC)
    inside = square < squares
    image, row, column = place_of(square, height, width)
    dx00, dx01, dx10, dx11 = four_back(
        dy, packed, inside, image, row, column, out_height, out_width, channels, block, lane, BM, BC
    )
    _finish(
        dx00, dx01, dx10, dx11, x, norm, dx, parts, part, block * BC + lane, inside, image, row,
        column, height, width, channels,
    )  # fmt: skip


@triton.jit
def _finish(
    dx00, dx01, dx10, dx11, x, norm, dx, parts, part, lane, inside, image, row, column,
    height, width, channels,
):  # fmt: skip
    """Store the four tiles of dx where the activation passed x, and their sums as `norm_kernels.gradient_sums` does."""
    scale, shift, mean, inverse = affine(norm, lane, channels)
    at = (((image * height + row) * width + column).to(tl.int64) * channels)[:, None] + lane[None, :]
    x, dx = x + at, dx + at
    plain, product = _finish_tile(
        dx00, x, dx, inside, row, column, height, width, channels, scale, shift, mean, 0, 0
    )
    d, e = _finish_tile(dx01, x, dx, inside, row, column, height, width, channels, scale, shift, mean, 0, 1)
    plain, product = plain + d, product + e
    d, e = _finish_tile(dx10, x, dx, inside, row, column, height, width, channels, scale, shift, mean, 1, 0)
    plain, product = plain + d, product + e
    d, e = _finish_tile(dx11, x, dx, inside, row, column, height, width, channels, scale, shift, mean, 1, 1)
    plain, product = plain + d, product + e
    at = parts + part.to(tl.int64) * 2 * channels + lane
    tl.store(at, tl.sum(plain, 0))
    tl.store(at + channels, tl.sum(product, 0) * inverse)


@triton.jit
def _finish_tile(
    total, x, dx, inside, row, column, height, width, channels, scale, shift, mean,
    DOWN: tl.constexpr, RIGHT: tl.constexpr,
):  # fmt: skip
    """Store a tile of dx, and return it and its product with x - mean."""
    here = within(inside, row, column, height, width, DOWN, RIGHT)
    value = tl.load(x + (DOWN * width + RIGHT) * channels, mask=here[:, None], other=0.0)
    d = passed(_stored(here, total, dx.dtype.element_ty), value, scale, shift)
    store(dx, d, inside, row, column, height, width, channels, DOWN, RIGHT)
    return d, d * (value.to(tl.float32) - mean[None, :])


@triton.jit(do_not_specialize=ANY_SIZE)
def weight_gradient(
    dy, x, norm, parts, squares, span, height, width, out_height, out_width, channels,
    GW: tl.constexpr, STRIDE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write the part that `span` squares of dy give, as `kernels.weight_gradient` does, of the activated x."""
    part = tl.program_id(1)
    lane = tl.program_id(0) * BC + tl.arange(0, BC)
    parts += part.to(tl.int64) * 9 * channels * GW
    scale, shift, _, _ = affine(norm, lane, channels)
    t0, t1, t2, t3, t4, t5, t6, t7, t8 = nine(
        dy, x, squares, span, part, lane, height, width, out_height, out_width, channels, scale, shift,
        True, STRIDE, BM, BC,
    )  # fmt: skip
    keep_all(parts, t0, t1, t2, t3, t4, t5, t6, t7, t8, channels, lane, GW)
