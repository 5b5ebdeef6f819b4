"""Triton kernels of batch normalisation, with an addition and ReLU after it: statistics, forward, and gradients.

Images are (rows, C) in memory, rows being pixels of all images. A `norm` (5, C) is all that a batch normalisation
needs, float32: mean and biased variance of the batch, scale, shift, and 1 / standard deviation. It is computed once, by
`combine`, as each of many small programs would take longer for it than for its pixels. What is normalised and activated
is rounded to the type of the images, also where it is not stored.

Statistics are never sums of squares, which lose the digits of a small variance beside a large mean: a program gives
count, mean and centred sum of squares, which are combined in a fixed order as in Chan, Golub and LeVeque, "Updating
formulae and a pairwise algorithm for computing sample variances" (1979). A program sums differences from its first row,
which is one of its n values: the square of their mean is at most n - 1 times the variance, so that no more than log2(n)
bits are lost where one is subtracted from the other, and few where the row is no outlier.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Sizes of which Triton shall not compile kernels of their own.
_ANY_SIZE = ("rows", "span", "many")


@triton.jit
def affine(norm, lane, channels):
    """Return scale and shift of the channels `lane`, and their mean and 1 / standard deviation."""
    at = norm + lane
    scale, shift = tl.load(at + 2 * channels), tl.load(at + 3 * channels)
    return scale, shift, tl.load(at), tl.load(at + 4 * channels)


@triton.jit
def normalised(x, scale, shift):
    """Return x * scale + shift, float32.

    It takes one instruction where (x - mean) * scale + bias takes two. Its rounding, 2**-24 of mean / deviation, is
    small beside that of x itself, which has 16 bits and so rounds 2**-12 of it or more.
    """
    return x.to(tl.float32) * scale[None, :] + shift[None, :]


@triton.jit
def activated(z, kind: tl.constexpr):
    """Return relu(z) in the type `kind`; what is not a number stays so, and the step is skipped."""
    return tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL).to(kind)


@triton.jit
def passed(gradient, x, scale, shift):
    """Return `gradient`, float32, where the activation of x, as it is rounded, is not 0, and else 0."""
    z = activated(normalised(x, scale, shift), x.dtype)
    return tl.where(z.to(tl.float32) <= 0.0, 0.0, gradient)


@triton.jit
def across(count, mean, squared):
    """Combine the statistics of rows, (BM,) and twice (BM, BC), in count, mean and centred sum of squares."""
    total = tl.sum(count, 0)
    overall = tl.sum(count[:, None] * mean, 0) / total
    apart = mean - overall[None, :]
    return total, overall, tl.sum(squared + count[:, None] * apart * apart, 0)


@triton.jit(do_not_specialize=_ANY_SIZE)
def row_statistics(
    x, parts, counts, rows, span, channels, BM: tl.constexpr, BC: tl.constexpr, AHEAD: tl.constexpr
):
    """Write mean and centred sum of squares (part, 2, C) of each `span` rows of x, and their count (part,).

    `AHEAD` tiles, less one, are on their way to shared memory while one is summed. Tiles that are loaded to registers
    are not: ptxas puts each load behind the sums of the tile before.
    """
    part = tl.program_id(0)
    lane = tl.program_id(1) * BC + tl.arange(0, BC)
    first, end = part * span, min((part + 1) * span, rows)
    origin = tl.load(x + first.to(tl.int64) * channels + lane).to(tl.float32)
    plain = tl.full([BM, BC], 0.0, tl.float32)
    squared = plain
    for start in tl.range(first, end, BM, num_stages=AHEAD):
        row = start + tl.arange(0, BM)
        at, inside = row.to(tl.int64)[:, None] * channels + lane[None, :], (row < end)[:, None]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        apart = tl.where(inside, value - origin[None, :], 0.0)
        plain += apart
        squared += apart * apart
    count = (end - first).to(tl.float32)
    away = tl.sum(plain, 0) / count
    squares = tl.maximum(tl.sum(squared, 0) - count * away * away, 0.0, propagate_nan=tl.PropagateNan.ALL)
    put(parts, counts, part, tl.program_id(1) == 0, lane, channels, count, origin + away, squares)


@triton.jit
def put(parts, counts, part, first, lane, channels, total, mean, squared):
    """Store the statistics of a part; its count by the program that is `first` among its channels."""
    at = parts + part.to(tl.int64) * 2 * channels + lane
    tl.store(at, mean)
    tl.store(at + channels, squared)
    if first:
        tl.store(counts + part, total)


@triton.jit(do_not_specialize=_ANY_SIZE)
def combine(
    parts, counts, weight, bias, norm, running_mean, running_var, many, channels,
    EPS: tl.constexpr, MOMENTUM: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write the norm (5, C) of all from the statistics of `many` parts, in their order.

    Where `MOMENTUM` is not 0, the running statistics move by it, to the mean and to the unbiased variance.
    """
    lane = tl.program_id(0) * BC + tl.arange(0, BC)
    count = tl.full([BM], 0.0, tl.float32)
    mean = tl.full([BM, BC], 0.0, tl.float32)
    squared = mean
    for start in range(0, many, BM):
        part = start + tl.arange(0, BM)
        inside = part < many
        at = parts + part.to(tl.int64)[:, None] * 2 * channels + lane[None, :]
        more = tl.load(counts + part, mask=inside, other=0.0)
        apart = tl.load(at, mask=inside[:, None], other=0.0) - mean
        total = count + more
        share = more / tl.maximum(total, 1.0)
        mean += apart * share[:, None]
        squared += tl.load(at + channels, mask=inside[:, None], other=0.0)
        squared += apart * apart * (count * share)[:, None]
        count = total
    total, overall, squares = across(count, mean, squared)
    variance = squares / total
    inverse = 1.0 / tl.sqrt_rn(variance + EPS)
    scale = tl.load(weight + lane) * inverse
    tl.store(norm + lane, overall)
    tl.store(norm + channels + lane, variance)
    tl.store(norm + 2 * channels + lane, scale)
    tl.store(norm + 3 * channels + lane, tl.load(bias + lane) - overall * scale)
    tl.store(norm + 4 * channels + lane, inverse)
    if MOMENTUM != 0.0:
        before = tl.load(running_mean + lane)
        tl.store(running_mean + lane, before + MOMENTUM * (overall - before))
        before = tl.load(running_var + lane)
        tl.store(running_var + lane, before + MOMENTUM * (squares / (total - 1.0) - before))


@triton.jit(do_not_specialize=_ANY_SIZE)
def activate(
    x, norm, other, y, rows, channels, ADD: tl.constexpr, RELU: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write the normalised x (rows, C); with `other` if `ADD`, and of that relu if `RELU`. Rounded once."""
    row, lane = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BC + tl.arange(0, BC)
    scale, shift, _, _ = affine(norm, lane, channels)
    at, inside = row.to(tl.int64)[:, None] * channels + lane[None, :], (row < rows)[:, None]
    value = tl.load(x + at, mask=inside, other=0.0)
    z = normalised(value, scale, shift)
    if ADD:
        z += tl.load(other + at, mask=inside, other=0.0).to(tl.float32)
    found = activated(z, value.dtype) if RELU else z.to(value.dtype)
    tl.store(y + at, found, mask=inside)


@triton.jit(do_not_specialize=_ANY_SIZE)
def gradient_sums(
    dy, x, y, norm, d_of_sum, parts, rows, span, channels,
    ADD: tl.constexpr, RELU: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Write, of each `span` rows, the sums (part, 2, C) of which the gradients of bias and weight are the sums.

    Of d, and of d times the normalised x. d is the gradient of the normalised x: `dy`, where relu passed if `RELU`.
    If `ADD`, that is seen from the result `y`, and d is written to `d_of_sum`: it is also that of what was added.
    `AHEAD` is that of `row_statistics`.
    """
    part = tl.program_id(0)
    lane = tl.program_id(1) * BC + tl.arange(0, BC)
    scale, shift, mean, inverse = affine(norm, lane, channels)
    plain = tl.full([BM, BC], 0.0, tl.float32)
    product = plain
    end = min((part + 1) * span, rows)
    for start in tl.range(part * span, end, BM, num_stages=AHEAD):
        row = start + tl.arange(0, BM)
        at, inside = row.to(tl.int64)[:, None] * channels + lane[None, :], (row < end)[:, None]
        value = tl.load(x + at, mask=inside, other=0.0)
        d = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        if ADD:
            d = tl.where(tl.load(y + at, mask=inside, other=0.0).to(tl.float32) <= 0.0, 0.0, d)
            tl.store(d_of_sum + at, d.to(d_of_sum.dtype.element_ty), mask=inside)
        elif RELU:
            d = passed(d, value, scale, shift)
        plain += d
        product += d * (value.to(tl.float32) - mean[None, :])
    at = parts + part.to(tl.int64) * 2 * channels + lane
    tl.store(at, tl.sum(plain, 0))
    tl.store(at + channels, tl.sum(product, 0) * inverse)


@triton.jit(do_not_specialize=_ANY_SIZE)
def add_parts(parts, sums, many, size, BM: tl.constexpr, BC: tl.constexpr):
    """Write the sums (size,) of `many` parts (part, size), in a fixed order."""
    lane = tl.program_id(0) * BC + tl.arange(0, BC)
    total = tl.full([BM, BC], 0.0, tl.float32)
    for start in range(0, many, BM):
        part = start + tl.arange(0, BM)
        at = parts + part.to(tl.int64)[:, None] * size + lane[None, :]
        total += tl.load(at, mask=(part < many)[:, None], other=0.0)
    tl.store(sums + lane, tl.sum(total, 0))


@triton.jit(do_not_specialize=_ANY_SIZE)
def input_of_norm(
    dy, x, norm, sums, dx, rows, channels, RELU: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """Write the gradient of x (rows, C), which was normalised, and activated if `RELU`, given the `sums` (2, C).

    Ioffe and Szegedy, "Batch Normalization" (2015), section 3: dx = scale * (d - mean(d) - x' * mean(d * x')), x' being
    x normalised.
    """
    row, lane = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BC + tl.arange(0, BC)
    scale, shift, mean, inverse = affine(norm, lane, channels)
    plain, product = tl.load(sums + lane) / rows, tl.load(sums + channels + lane) / rows * inverse
    at, inside = row.to(tl.int64)[:, None] * channels + lane[None, :], (row < rows)[:, None]
    value = tl.load(x + at, mask=inside, other=0.0)
    d = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        d = passed(d, value, scale, shift)
    found = d - plain[None, :] - (value.to(tl.float32) - mean[None, :]) * product[None, :]
    tl.store(dx + at, (found * scale[None, :]).to(dx.dtype.element_ty), mask=inside)
