"""Triton kernels of the grouped 3x3 convolution with padding 1: forward, and the gradients of input and weight.

Images are (N, H, W, C) in memory, C the fastest. A program works on `BC` neighbouring channels, several whole groups:
the weights of a tap then are a BC x BC matrix with the groups on its diagonal and zeros elsewhere, which tensor cores
multiply faster than they would many small matrices. `pack` makes these matrices. Sums are float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pack(
    weight, packed, channels, stride_o, stride_i, stride_h, stride_w,
    GW: tl.constexpr, BC: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Write the matrices (tap, channel block, in, out) of `weight` (out, in of group, 3, 3); one program each.

    `BACK` are those of the input gradient: in and out changed places, and tap (2 - kh, 2 - kw) at (kh, kw).
    """
    block, tap = tl.program_id(0), tl.program_id(1)
    row, column = tl.arange(0, BC)[:, None], tl.arange(0, BC)[None, :]
    if BACK:
        inner, outer, source = column, row, 8 - tap
    else:
        inner, outer, source = row, column, tap
    same = row // GW == column // GW
    at = (
        (block * BC + outer) * stride_o
        + inner % GW * stride_i
        + source // 3 * stride_h
        + source % 3 * stride_w
    )
    value = tl.load(weight + at, mask=same, other=0.0)
    into = packed + (tap * (channels // BC) + block) * BC * BC + row * BC + column
    tl.store(into, value.to(packed.dtype.element_ty))


@triton.jit
def forward(
    x, packed, y, pixels, height, width, out_height, out_width, channels,
    STRIDE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write `BM` of the `pixels` of y, counted over all images; also the input gradient of stride 1, from that of y."""
    blocks = channels // BC
    block, tile = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    pixel, lane = tile * BM + tl.arange(0, BM), tl.arange(0, BC)
    image, place = pixel // (out_height * out_width), pixel % (out_height * out_width)
    top, left = place // out_width * STRIDE - 1, place % out_width * STRIDE - 1
    within = pixel < pixels
    matrix = packed + block * BC * BC + lane[:, None] * BC + lane[None, :]
    total = tl.full([BM, BC], 0.0, tl.float32)
    for tap in tl.static_range(9):
        row, column = top + tap // 3, left + tap % 3
        inside = within & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        at = ((image * height + row) * width + column).to(tl.int64) * channels + block * BC
        taken = tl.load(x + at[:, None] + lane[None, :], mask=inside[:, None], other=0.0)
        total = tl.dot(taken, tl.load(matrix + tap * blocks * BC * BC), total)
    at = pixel.to(tl.int64) * channels + block * BC
    tl.store(y + at[:, None] + lane[None, :], total.to(y.dtype.element_ty), mask=within[:, None])


@triton.jit
def input_gradient_of_stride_2(
    dy, packed, dx, images, height, width, out_height, out_width, channels, BM: tl.constexpr, BC: tl.constexpr
):
    """Write `BM` pixels of dx that have the same parity of row and column, and so the same taps: 1, 2, 2 or 4 of 9."""
    blocks = channels // BC
    block, tile = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    odd_row, odd_column = tl.program_id(1) // 2, tl.program_id(1) % 2
    rows, columns = (height + 1 - odd_row) // 2, (width + 1 - odd_column) // 2
    pixel, lane = tile * BM + tl.arange(0, BM), tl.arange(0, BC)
    within = pixel < images * rows * columns
    if tile * BM < images * rows * columns:
        image, place = pixel // (rows * columns), pixel % (rows * columns)
        row, column = place // columns * 2 + odd_row, place % columns * 2 + odd_column
        matrix = packed + block * BC * BC + lane[:, None] * BC + lane[None, :]
        total = tl.full([BM, BC], 0.0, tl.float32)
        for tap in tl.static_range(9):
            # The matrices are those of the turned kernel: here is tap (2 - kh, 2 - kw) of the forward pass.
            if ((odd_row + tap // 3) % 2 == 1) & ((odd_column + tap % 3) % 2 == 1):
                out_row, out_column = (row + tap // 3 - 1) // 2, (column + tap % 3 - 1) // 2
                # Rows of dx are 0 or more, so that only (row, tap row) = (0, 0) would be negative, of the wrong parity.
                inside = within & (out_row < out_height) & (out_column < out_width)
                at = ((image * out_height + out_row) * out_width + out_column).to(
                    tl.int64
                ) * channels + block * BC
                taken = tl.load(dy + at[:, None] + lane[None, :], mask=inside[:, None], other=0.0)
                total = tl.dot(taken, tl.load(matrix + tap * blocks * BC * BC), total)
        at = ((image * height + row) * width + column).to(tl.int64) * channels + block * BC
        tl.store(dx + at[:, None] + lane[None, :], total.to(dx.dtype.element_ty), mask=within[:, None])


@triton.jit
def _tap(
    total,
    turned,
    x,
    image,
    top,
    left,
    within,
    lane,
    height,
    width,
    channels,
    KH: tl.constexpr,
    KW: tl.constexpr,
):
    """Add to `total` (out, in) what tap (KH, KW) of the pixels gives."""
    row, column = top + KH, left + KW
    inside = within & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    at = ((image * height + row) * width + column).to(tl.int64) * channels
    taken = tl.load(x + at[:, None] + lane[None, :], mask=inside[:, None], other=0.0)
    return tl.dot(turned, taken, total)


@triton.jit
def _keep(parts, total, tap, channels, lane, GW: tl.constexpr):
    """Store what of `total` (out, in) belongs to one group, at (tap, out, in of group)."""
    same = lane[:, None] // GW == lane[None, :] // GW
    at = (tap * channels + lane[:, None]) * GW + lane[None, :] % GW
    tl.store(parts + at, total, mask=same)


@triton.jit
def weight_gradient(
    dy, x, parts, pixels, span, height, width, out_height, out_width, channels,
    GW: tl.constexpr, STRIDE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write the part (tap, out, in of group) that `span` pixels of dy give, float32; their sum is the gradient.

    Each part is summed in the order of the pixels, by one program, so that the result is the same every time.
    """
    part = tl.program_id(1)
    lane = tl.program_id(0) * BC + tl.arange(0, BC)
    parts += part.to(tl.int64) * 9 * channels * GW
    t0 = tl.full([BC, BC], 0.0, tl.float32)
    t1, t2, t3, t4, t5, t6, t7, t8 = t0, t0, t0, t0, t0, t0, t0, t0
    for start in range(part * span, min((part + 1) * span, pixels), BM):
        pixel = start + tl.arange(0, BM)
        within = pixel < pixels  # a span is a multiple of BM
        image, place = pixel // (out_height * out_width), pixel % (out_height * out_width)
        top, left = place // out_width * STRIDE - 1, place % out_width * STRIDE - 1
        at = pixel.to(tl.int64) * channels
        turned = tl.trans(tl.load(dy + at[:, None] + lane[None, :], mask=within[:, None], other=0.0))
        t0 = _tap(t0, turned, x, image, top, left, within, lane, height, width, channels, 0, 0)
        t1 = _tap(t1, turned, x, image, top, left, within, lane, height, width, channels, 0, 1)
        t2 = _tap(t2, turned, x, image, top, left, within, lane, height, width, channels, 0, 2)
        t3 = _tap(t3, turned, x, image, top, left, within, lane, height, width, channels, 1, 0)
        t4 = _tap(t4, turned, x, image, top, left, within, lane, height, width, channels, 1, 1)
        t5 = _tap(t5, turned, x, image, top, left, within, lane, height, width, channels, 1, 2)
        t6 = _tap(t6, turned, x, image, top, left, within, lane, height, width, channels, 2, 0)
        t7 = _tap(t7, turned, x, image, top, left, within, lane, height, width, channels, 2, 1)
        t8 = _tap(t8, turned, x, image, top, left, within, lane, height, width, channels, 2, 2)
    _keep(parts, t0, 0, channels, lane, GW)
    _keep(parts, t1, 1, channels, lane, GW)
    _keep(parts, t2, 2, channels, lane, GW)
    _keep(parts, t3, 3, channels, lane, GW)
    _keep(parts, t4, 4, channels, lane, GW)
    _keep(parts, t5, 5, channels, lane, GW)
    _keep(parts, t6, 6, channels, lane, GW)
    _keep(parts, t7, 7, channels, lane, GW)
    _keep(parts, t8, 8, channels, lane, GW)
