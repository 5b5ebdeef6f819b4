"""Triton kernels of the grouped 3x3 convolution with padding 1: forward, and the gradients of input and weight.

Images are (N, H, W, C) in memory, C the fastest. A program works on `BC` neighbouring channels, several whole groups:
the weights of a tap then are a BC x BC matrix with the groups on its diagonal and zeros elsewhere, which tensor cores
multiply faster than they would many small matrices. `pack` and `pack_all` make these matrices. Sums are float32.

What is written is cut into squares of 2 x 2 pixels. A program has `BM` of them; a tile is one place of each. The four
tiles of the output share the tiles of the input: 16 loads for the 36 products of stride 1, in place of 36.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Arguments whose values shall not make kernels of their own, as multiples of 16 and 1 do. `channels` is not one of
#: them: that it is a multiple of 16, which it always is, makes loads of 16 bytes.
ANY_SIZE = ("squares", "span", "height", "width", "out_height", "out_width")
_ANY_WEIGHT = ("group_width", "stride_o", "stride_i", "stride_h", "stride_w", "back")


@triton.jit
def _matrices(
    weight, packed, block, channels, group_width, stride_o, stride_i, stride_h, stride_w, back, BC: tl.constexpr,
):  # fmt: skip
    """Write the nine matrices of a channel block: see `pack`."""
    first, second = tl.arange(0, BC)[:, None], tl.arange(0, BC)[None, :]
    turned = back != 0
    inner, outer = tl.where(turned, second, first), tl.where(turned, first, second)
    same = first // group_width == second // group_width
    at = (block * BC + outer) * stride_o + inner % group_width * stride_i
    into = packed + block * BC * BC + first * BC + second
    for tap in range(9):
        source = tl.where(turned, 8 - tap, tap)
        value = tl.load(weight + at + source // 3 * stride_h + source % 3 * stride_w, mask=same, other=0.0)
        tl.store(into + tap * channels * BC, value.to(packed.dtype.element_ty))


@triton.jit(do_not_specialize=_ANY_WEIGHT)
def pack(
    weight, packed, channels, group_width, stride_o, stride_i, stride_h, stride_w, back, BC: tl.constexpr,
):  # fmt: skip
    """Write the matrices (tap, channel block, in, out) of `weight` (out, in of group, 3, 3); a program for each block.

    If `back`, those of the input gradient: in and out changed places, and tap (2 - kh, 2 - kw) at (kh, kw).
    """
    _matrices(
        weight,
        packed,
        tl.program_id(0),
        channels,
        group_width,
        stride_o,
        stride_i,
        stride_h,
        stride_w,
        back,
        BC,
    )


@triton.jit
def pack_all(table, places, WEIGHT: tl.constexpr, PACKED: tl.constexpr, BC: tl.constexpr):
    """As `pack`, for many weights: a program for each (row of the table, channel block) of `places`.

    A row has the addresses of weight and matrices, and the other arguments of `pack`, all int64.
    """
    row = table + tl.load(places + 2 * tl.program_id(0)) * 9
    block = tl.load(places + 2 * tl.program_id(0) + 1)
    _matrices(
        tl.load(row).to(tl.pointer_type(WEIGHT)), tl.load(row + 1).to(tl.pointer_type(PACKED)), block,
        tl.load(row + 2), tl.load(row + 3), tl.load(row + 4), tl.load(row + 5), tl.load(row + 6),
        tl.load(row + 7), tl.load(row + 8), BC,
    )  # fmt: skip


@triton.jit
def place_of(square, height, width):
    """Return image, row and column of the first pixel of each 2 x 2 square, counted over images of that size."""
    rows, columns = (height + 1) // 2, (width + 1) // 2
    image, place = square // (rows * columns), square % (rows * columns)
    return image, place // columns * 2, place % columns * 2


@triton.jit
def within(inside, row, column, height, width, DOWN: tl.constexpr, RIGHT: tl.constexpr):
    """Return where what is `DOWN` rows and `RIGHT` columns from (row, column), itself in an image, is in it too."""
    if DOWN < 0:
        inside = inside & (row + DOWN >= 0)
    if DOWN > 0:
        inside = inside & (row + DOWN < height)
    if RIGHT < 0:
        inside = inside & (column + RIGHT >= 0)
    if RIGHT > 0:
        inside = inside & (column + RIGHT < width)
    return inside


@triton.jit
def _tile(first, inside, row, column, height, width, channels, DOWN: tl.constexpr, RIGHT: tl.constexpr):
    """Load what is `DOWN` rows and `RIGHT` columns from `first`, which is at (row, column); zeros outside the image."""
    inside = within(inside, row, column, height, width, DOWN, RIGHT)
    return tl.load(first + (DOWN * width + RIGHT) * channels, mask=inside[:, None], other=0.0)


@triton.jit
def store(
    first, total, inside, row, column, height, width, channels, DOWN: tl.constexpr, RIGHT: tl.constexpr
):
    """Store what is `DOWN` rows and `RIGHT` columns from `first`, where that is in the image."""
    inside = within(inside, row, column, height, width, DOWN, RIGHT)
    tl.store(
        first + (DOWN * width + RIGHT) * channels, total.to(first.dtype.element_ty), mask=inside[:, None]
    )


@triton.jit
def _tap(total, tile, matrix, step, KH: tl.constexpr, KW: tl.constexpr):
    """Return `total` with what `tile` gives by tap (KH, KW), where there is such a tap."""
    if (KH >= 0 and KH < 3) and (KW >= 0 and KW < 3):  # in pairs, as older Tritons want it
        total = tl.dot(tile, tl.load(matrix + (3 * KH + KW) * step), total)
    return total


@triton.jit
def four(
    middle, matrix, step, inside, row, column, height, width, channels,
    STRIDE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Return the four tiles of y, float32, from the tiles around `middle`, which is at (row, column) of x."""
    y00 = tl.full([BM, BC], 0.0, tl.float32)
    y01, y10, y11 = y00, y00, y00
    for i in tl.static_range(STRIDE + 3):
        for j in tl.static_range(STRIDE + 3):
            tile = _tile(middle, inside, row, column, height, width, channels, i - 1, j - 1)
            y00 = _tap(y00, tile, matrix, step, i, j)
            y01 = _tap(y01, tile, matrix, step, i, j - STRIDE)
            y10 = _tap(y10, tile, matrix, step, i - STRIDE, j)
            y11 = _tap(y11, tile, matrix, step, i - STRIDE, j - STRIDE)
    return y00, y01, y10, y11


@triton.jit(do_not_specialize=ANY_SIZE)
def forward(
    x, packed, y, squares, height, width, out_height, out_width, channels,
    STRIDE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write `BM` of the `squares` of y, counted over all images; also the input gradient of stride 1, from y's."""
    blocks = channels // BC
    block, part = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    square, lane = part * BM + tl.arange(0, BM), tl.arange(0, BC)
    inside = square < squares
    image, row, column = place_of(square, out_height, out_width)
    at = ((image * height + row * STRIDE) * width + column * STRIDE).to(tl.int64) * channels + block * BC
    middle = x + at[:, None] + lane[None, :]
    matrix = packed + block * BC * BC + lane[:, None] * BC + lane[None, :]
    step = blocks * BC * BC
    y00, y01, y10, y11 = four(
        middle, matrix, step, inside, row * STRIDE, column * STRIDE, height, width, channels, STRIDE, BM, BC
    )
    at = ((image * out_height + row) * out_width + column).to(tl.int64) * channels + block * BC
    first = y + at[:, None] + lane[None, :]
    store(first, y00, inside, row, column, out_height, out_width, channels, 0, 0)
    store(first, y01, inside, row, column, out_height, out_width, channels, 0, 1)
    store(first, y10, inside, row, column, out_height, out_width, channels, 1, 0)
    store(first, y11, inside, row, column, out_height, out_width, channels, 1, 1)


@triton.jit
def four_back(
    dy, packed, inside, image, row, column, out_height, out_width, channels, block, lane,
    BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Return the four tiles of dx, float32, of stride 2, for squares at (row, column) of x."""
    up, left = row // 2, column // 2
    at = ((image * out_height + up) * out_width + left).to(tl.int64) * channels + block * BC
    first = dy + at[:, None] + lane[None, :]
    dy00 = _tile(first, inside, up, left, out_height, out_width, channels, 0, 0)
    dy01 = _tile(first, inside, up, left, out_height, out_width, channels, 0, 1)
    dy10 = _tile(first, inside, up, left, out_height, out_width, channels, 1, 0)
    dy11 = _tile(first, inside, up, left, out_height, out_width, channels, 1, 1)
    # The matrices are those of the turned kernel: (2 - kh, 2 - kw) takes back what (kh, kw) of the forward pass gave.
    matrix = packed + block * BC * BC + lane[:, None] * BC + lane[None, :]
    step = channels // BC * BC * BC
    none = tl.full([BM, BC], 0.0, tl.float32)
    dx00 = _tap(none, dy00, matrix, step, 1, 1)
    dx01 = _tap(_tap(none, dy00, matrix, step, 1, 0), dy01, matrix, step, 1, 2)
    dx10 = _tap(_tap(none, dy00, matrix, step, 0, 1), dy10, matrix, step, 2, 1)
    dx11 = _tap(_tap(none, dy00, matrix, step, 0, 0), dy01, matrix, step, 0, 2)
    dx11 = _tap(_tap(dx11, dy10, matrix, step, 2, 0), dy11, matrix, step, 2, 2)
    return dx00, dx01, dx10, dx11


@triton.jit(do_not_specialize=ANY_SIZE)
def input_gradient_of_stride_2(
    dy, packed, dx, squares, height, width, out_height, out_width, channels, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write `BM` of the `squares` of dx, counted over all images. A pixel has 1, 2, 2 or 4 taps, by its parity."""
    blocks = channels // BC
    block, part = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    square, lane = part * BM + tl.arange(0, BM), tl.arange(0, BC)
    inside = square < squares
    image, row, column = place_of(square, height, width)
    dx00, dx01, dx10, dx11 = four_back(
        dy, packed, inside, image, row, column, out_height, out_width, channels, block, lane, BM, BC
    )
    at = ((image * height + row) * width + column).to(tl.int64) * channels + block * BC
    first = dx + at[:, None] + lane[None, :]
    store(first, dx00, inside, row, column, height, width, channels, 0, 0)
    store(first, dx01, inside, row, column, height, width, channels, 0, 1)
    store(first, dx10, inside, row, column, height, width, channels, 1, 0)
    store(first, dx11, inside, row, column, height, width, channels, 1, 1)


@triton.jit
def _add(t0, t1, t2, t3, t4, t5, t6, t7, t8, turned, tile, KH: tl.constexpr, KW: tl.constexpr):
    """Return the sums (out, in) of the nine taps, with what `tile` gives added to that of (KH, KW), if there is one."""
    if KH == 0 and KW == 0:
        t0 = tl.dot(turned, tile, t0)
    if KH == 0 and KW == 1:
        t1 = tl.dot(turned, tile, t1)
    if KH == 0 and KW == 2:
        t2 = tl.dot(turned, tile, t2)
    if KH == 1 and KW == 0:
        t3 = tl.dot(turned, tile, t3)
    if KH == 1 and KW == 1:
        t4 = tl.dot(turned, tile, t4)
    if KH == 1 and KW == 2:
        t5 = tl.dot(turned, tile, t5)
    if KH == 2 and KW == 0:
        t6 = tl.dot(turned, tile, t6)
    if KH == 2 and KW == 1:
        t7 = tl.dot(turned, tile, t7)
    if KH == 2 and KW == 2:
        t8 = tl.dot(turned, tile, t8)
    return t0, t1, t2, t3, t4, t5, t6, t7, t8


@triton.jit
def _keep(parts, total, tap, channels, lane, GW: tl.constexpr):
    """Store what of `total` (out, in) belongs to one group, at (tap, out, in of group)."""
    same = lane[:, None] // GW == lane[None, :] // GW
    at = (tap * channels + lane[:, None]) * GW + lane[None, :] % GW
    tl.store(parts + at, total, mask=same)


@triton.jit
def nine(
    dy, x, squares, span, part, lane, height, width, out_height, out_width, channels,
    STRIDE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Return the sums (out, in) of the nine taps over `span` squares of dy, in their order, float32."""
    t0 = tl.full([BC, BC], 0.0, tl.float32)
    t1, t2, t3, t4, t5, t6, t7, t8 = t0, t0, t0, t0, t0, t0, t0, t0
    for start in range(part * span, min((part + 1) * span, squares), BM):
        square = start + tl.arange(0, BM)
        inside = square < squares  # a span is a multiple of BM
        image, row, column = place_of(square, out_height, out_width)
        at = ((image * out_height + row) * out_width + column).to(tl.int64) * channels
        first = dy + at[:, None] + lane[None, :]
        at = ((image * height + row * STRIDE) * width + column * STRIDE).to(tl.int64) * channels
        middle = x + at[:, None] + lane[None, :]
        turned00 = tl.trans(_tile(first, inside, row, column, out_height, out_width, channels, 0, 0))
        turned01 = tl.trans(_tile(first, inside, row, column, out_height, out_width, channels, 0, 1))
        turned10 = tl.trans(_tile(first, inside, row, column, out_height, out_width, channels, 1, 0))
        turned11 = tl.trans(_tile(first, inside, row, column, out_height, out_width, channels, 1, 1))
        for i in tl.static_range(STRIDE + 3):
            for j in tl.static_range(STRIDE + 3):
                tile = _tile(
                    middle, inside, row * STRIDE, column * STRIDE, height, width, channels, i - 1, j - 1
                )
                t0, t1, t2, t3, t4, t5, t6, t7, t8 = _add(
                    t0, t1, t2, t3, t4, t5, t6, t7, t8, turned00, tile, i, j
                )
                t0, t1, t2, t3, t4, t5, t6, t7, t8 = _add(
                    t0, t1, t2, t3, t4, t5, t6, t7, t8, turned01, tile, i, j - STRIDE
                )
                t0, t1, t2, t3, t4, t5, t6, t7, t8 = _add(
                    t0, t1, t2, t3, t4, t5, t6, t7, t8, turned10, tile, i - STRIDE, j
                )
                t0, t1, t2, t3, t4, t5, t6, t7, t8 = _add(
                    t0, t1, t2, t3, t4, t5, t6, t7, t8, turned11, tile, i - STRIDE, j - STRIDE
                )
    return t0, t1, t2, t3, t4, t5, t6, t7, t8


@triton.jit
def keep_all(parts, t0, t1, t2, t3, t4, t5, t6, t7, t8, channels, lane, GW: tl.constexpr):
    """Store the sums of the nine taps."""
    _keep(parts, t0, 0, channels, lane, GW)
    _keep(parts, t1, 1, channels, lane, GW)
    _keep(parts, t2, 2, channels, lane, GW)
    _keep(parts, t3, 3, channels, lane, GW)
    _keep(parts, t4, 4, channels, lane, GW)
    _keep(parts, t5, 5, channels, lane, GW)
    _keep(parts, t6, 6, channels, lane, GW)
    _keep(parts, t7, 7, channels, lane, GW)
    _keep(parts, t8, 8, channels, lane, GW)


@triton.jit(do_not_specialize=ANY_SIZE)
def weight_gradient(
    dy, x, parts, squares, span, height, width, out_height, out_width, channels,
    GW: tl.constexpr, STRIDE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write the part (tap, out, in of group) that `span` squares of dy give, float32; their sum is the gradient.

    Each part is summed in the order of the squares, by one program, so that the result is the same every time.
    """
    part = tl.program_id(1)
    lane = tl.program_id(0) * BC + tl.arange(0, BC)
    parts += part.to(tl.int64) * 9 * channels * GW
    t0, t1, t2, t3, t4, t5, t6, t7, t8 = nine(
        dy, x, squares, span, part, lane, height, width, out_height, out_width, channels, STRIDE, BM, BC,
    )  # fmt: skip
    keep_all(parts, t0, t1, t2, t3, t4, t5, t6, t7, t8, channels, lane, GW)
