"""Triton kernels of batch normalisation with ReLU: statistics, forward, and gradients.

Images are (rows, C) in memory, rows being pixels of all images. A `norm` (5, C) is all that a batch normalisation
needs, float32: mean and biased variance of the batch, scale, shift, and 1 / standard deviation. It is computed once, by
`combine`, as each of many small programs would take longer for it than for its pixels. What is normalised and activated
is rounded to the type of the images, also where it is not stored.

Statistics are never sums of squares, which lose the digits of a small variance beside a large mean: a program gives
count, mean and centred sum of squares, which are combined in a fixed order as in Chan, Golub and LeVeque, "Updating
formulae and a pairwise algorithm for computing sample variances" (1979); values one by one as in Welford, "Note on a
method for calculating corrected sums of squares and products" (1962).
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
def row_statistics(x, parts, counts, rows, span, channels, BM: tl.constexpr, BC: tl.constexpr):
    """Write mean and centred sum of squares (part, 2, C) of each `span` rows of x, and their count (part,)."""
    part = tl.program_id(0)
    lane = tl.program_id(1) * BC + tl.arange(0, BC)
    count = tl.full([BM], 0.0, tl.float32)
    mean = tl.full([BM, BC], 0.0, tl.float32)
    squared = mean
    for start in range(part * span, min((part + 1) * span, rows), BM):
        row = start + tl.arange(0, BM)
        inside = row < rows  # a span is a multiple of BM
        at = row.to(tl.int64)[:, None] * channels + lane[None, :]
        value = tl.load(x + at, mask=inside[:, None], other=0.0).to(tl.float32)
        count += tl.where(inside, 1.0, 0.0)
        apart = tl.where(inside[:, None], value - mean, 0.0)
        mean += apart * (1.0 / tl.maximum(count, 1.0))[:, None]
        squared += apart * (value - mean)
    total, overall, squares = across(count, mean, squared)
    put(parts, counts, part, tl.program_id(1) == 0, lane, channels, total, overall, squares)


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
    parts, counts, weight, bias, norm, many, channels, EPS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr
):
    """Write the norm (5, C) of all from the statistics of `many` parts, in their order."""
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


@triton.jit(do_not_specialize=_ANY_SIZE)
def activate(x, norm, y, rows, channels, BM: tl.constexpr, BC: tl.constexpr):
    """Write relu of the normalised x (rows, C)."""
    row, lane = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BC + tl.arange(0, BC)
    scale, shift, _, _ = affine(norm, lane, channels)
    at, inside = row.to(tl.int64)[:, None] * channels + lane[None, :], (row < rows)[:, None]
    value = tl.load(x + at, mask=inside, other=0.0)
    tl.store(y + at, activated(normalised(value, scale, shift), value.dtype), mask=inside)


@triton.jit(do_not_specialize=_ANY_SIZE)
def gradient_sums(
    dy, x, norm, parts, rows, span, channels, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write, of each `span` rows, the sums (part, 2, C) of which the gradients of bias and weight are the sums.

    Of d, which is dy where relu passed, and of d times the normalised x.
    """
    part = tl.program_id(0)
    lane = tl.program_id(1) * BC + tl.arange(0, BC)
    scale, shift, mean, inverse = affine(norm, lane, channels)
    plain = tl.full([BM, BC], 0.0, tl.float32)
    product = plain
    for start in range(part * span, min((part + 1) * span, rows), BM):
        row = start + tl.arange(0, BM)
        at, inside = row.to(tl.int64)[:, None] * channels + lane[None, :], (row < rows)[:, None]
        value = tl.load(x + at, mask=inside, other=0.0)
        d = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        d = passed(d, value, scale, shift)
        plain += d
        product += d * (value.to(tl.float32) - mean[None, :])
    at = parts + part.to(tl.int64) * 2 * channels + lane
    tl.store(at, tl.sum(plain, 0))
    tl.store(at + channels, tl.sum(product, 0) * inverse)


@triton.jit(do_not_specialize=_ANY_SIZE)
def input_of_norm(
    dy, x, norm, sums, dx, rows, channels, BM: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """Write the gradient of x (rows, C), which was normalised and activated, given the `sums` (2, C) over all rows.

    Ioffe and Szegedy, "Batch Normalization" (2015), section 3: dx = scale * (d - mean(d) - x' * mean(d * x')), x' being
    x normalised.
    """
    row, lane = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BC + tl.arange(0, BC)
    scale, shift, mean, inverse = affine(norm, lane, channels)
    plain, product = tl.load(sums + lane) / rows, tl.load(sums + channels + lane) / rows * inverse
    at, inside = row.to(tl.int64)[:, None] * channels + lane[None, :], (row < rows)[:, None]
    value = tl.load(x + at, mask=inside, other=0.0)
    d = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    d = passed(d, value, scale, shift)
    found = d - plain[None, :] - (value.to(tl.float32) - mean[None, :]) * product[None, :]
    tl.store(dx + at, (found * scale[None, :]).to(dx.dtype.element_ty), mask=inside)
