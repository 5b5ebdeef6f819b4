"""The operations of a ResNeXt in NumPy, each with its gradient; nothing here knows the architecture.

Activations are (C, N, H, W): with channels first of all, a 1x1 convolution is one matrix product and
every batch statistic is a reduction over contiguous memory.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

#: Side of the max-pool window and its stride.
POOL_KERNEL, POOL_STRIDE = 3, 2


def conv(x: Array, weight: Array, stride: int, groups: int) -> Array:
    """Convolve x (C, N, H, W) with weight (O, C / groups, k, k), padding k // 2 zeros on every side.

    Returns (O, N, H', W') with H' = (H - 1) // stride + 1. It is one matrix product a group over the
    unfolded input; the groups are a batch dimension of that product.
    """
    columns, shape = _unfold(x, weight.shape[2], stride, groups)
    out: Array = np.matmul(_grouped(weight, groups), columns)
    return out.reshape(weight.shape[0], *shape)


def conv_backward(
    dy: Array, x: Array, weight: Array, stride: int, groups: int, *, input_gradient: bool = True
) -> tuple[Array | None, Array]:
    """Return the gradients of x (None where not asked for) and of weight, given that of the output."""
    kernel = weight.shape[2]
    columns, _ = _unfold(x, kernel, stride, groups)
    dy_grouped = dy.reshape(groups, weight.shape[0] // groups, -1)
    dweight = np.matmul(dy_grouped, columns.swapaxes(1, 2)).reshape(weight.shape)
    if not input_gradient:
        return None, dweight
    dcolumns = np.matmul(_grouped(weight, groups).swapaxes(1, 2), dy_grouped)
    return _fold(dcolumns, x.shape, dy.shape[1:], kernel, stride), dweight


def _grouped(weight: Array, groups: int) -> Array:
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _unfold(x: Array, kernel: int, stride: int, groups: int) -> tuple[Array, tuple[int, int, int]]:
    """Return the windows of x as (groups, C / groups · k · k, N · H' · W'), and (N, H', W')."""
    channels, count, height, width = x.shape
    shape = (count, (height - 1) // stride + 1, (width - 1) // stride + 1)
    if kernel == 1:
        return x[:, :, ::stride, ::stride].reshape(groups, channels // groups, -1), shape
    half = kernel // 2
    padded = np.pad(x, ((0, 0), (0, 0), (half, half), (half, half)))
    columns = np.empty((channels, kernel, kernel, *shape), x.dtype)
    for i in range(kernel):
        for j in range(kernel):
            columns[:, i, j] = padded[_window(i, j, shape, stride)]
    return columns.reshape(groups, channels // groups * kernel * kernel, -1), shape


def _fold(
    columns: Array, x_shape: tuple[int, ...], shape: tuple[int, ...], kernel: int, stride: int
) -> Array:
    """Add the windows back to where they came from: the transpose of :func:`_unfold`."""
    channels, count, height, width = x_shape
    if kernel == 1 and stride == 1:
        return columns.reshape(x_shape)
    half = kernel // 2
    padded = np.zeros((channels, count, height + 2 * half, width + 2 * half), columns.dtype)
    windows = columns.reshape(channels, kernel, kernel, *shape)
    for i in range(kernel):
        for j in range(kernel):
            padded[_window(i, j, shape, stride)] += windows[:, i, j]
    return np.ascontiguousarray(padded[:, :, half : half + height, half : half + width])


def _window(i: int, j: int, shape: tuple[int, ...], stride: int) -> tuple[slice, ...]:
    """Return the index of the pixels that element (i, j) of the window meets, for an output (N, H', W')."""
    rows = slice(i, i + stride * (shape[1] - 1) + 1, stride)
    columns = slice(j, j + stride * (shape[2] - 1) + 1, stride)
    return slice(None), slice(None), rows, columns


def bn_eval(x: Array, weight: Array, bias: Array, mean: Array, var: Array, eps: float) -> Array:
    """Return (x - mean) / √(var + eps) · weight + bias, each statistic (C,), written into x."""
    scale = weight / np.sqrt(var + eps)
    x *= scale[:, None, None, None]
    x += (bias - mean * scale)[:, None, None, None]
    return x


def bn_train(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array, Array, Array]:
    """Normalise with the statistics of the batch (Ioffe and Szegedy, arXiv:1502.03167).

    Returns the output, the normalised input and 1 / √(var + eps) for the gradient, the mean and the
    biased variance, each statistic (C,). The normalised input takes the place of x.
    """
    rows = x.reshape(x.shape[0], -1)
    mean = rows.mean(axis=1)
    rows -= mean[:, None]
    var = np.square(rows).mean(axis=1)
    inv_std = 1 / np.sqrt(var + eps)
    rows *= inv_std[:, None]
    y = rows * weight[:, None]
    y += bias[:, None]
    return y.reshape(x.shape), rows.reshape(x.shape), inv_std, mean, var


def bn_train_backward(
    dy: Array, normalized: Array, inv_std: Array, weight: Array
) -> tuple[Array, Array, Array]:
    """Return the gradients of input, weight and bias; those of the statistics are taken into account."""
    rows, flat = dy.reshape(dy.shape[0], -1), normalized.reshape(dy.shape[0], -1)
    dweight, dbias = (rows * flat).sum(axis=1), rows.sum(axis=1)
    count = rows.shape[1]
    dx = flat * (-dweight / count)[:, None]
    dx += rows
    dx -= (dbias / count)[:, None]
    dx *= (weight * inv_std)[:, None]
    return dx.reshape(dy.shape), dweight, dbias


def max_pool(x: Array, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[Array, Array]:
    """Return the 3x3 stride-2 maximum and, as uint8, which element of the window (0..8) it was.

    `rows` and `columns` are the padding before and after; padding is -inf, so that it never wins. The
    first of equal elements wins, and NaN wins over all.
    """
    padded = np.pad(x, ((0, 0), (0, 0), rows, columns), constant_values=-np.inf)
    out = tuple((size - POOL_KERNEL) // POOL_STRIDE + 1 for size in padded.shape[2:])
    y = np.full((*x.shape[:2], *out), -np.inf, x.dtype)
    winner = np.zeros(y.shape, np.uint8)
    for element in range(POOL_KERNEL * POOL_KERNEL):
        values = padded[_window(*divmod(element, POOL_KERNEL), y.shape[1:], POOL_STRIDE)]
        better = (values > y) | np.isnan(values)
        np.copyto(y, values, where=better)
        winner[better] = element
    return y, winner


def max_pool_backward(
    dy: Array, winner: Array, x_shape: tuple[int, ...], rows: tuple[int, int], columns: tuple[int, int]
) -> Array:
    """Return the gradient of the input, given that of the output and the winners."""
    channels, count, height, width = x_shape
    padded = np.zeros((channels, count, height + sum(rows), width + sum(columns)), dy.dtype)
    for element in range(POOL_KERNEL * POOL_KERNEL):
        window = _window(*divmod(element, POOL_KERNEL), dy.shape[1:], POOL_STRIDE)
        padded[window] += np.where(winner == element, dy, 0)
    return np.ascontiguousarray(padded[:, :, rows[0] : rows[0] + height, columns[0] : columns[0] + width])


def smoothed_targets(labels: Array, classes: int, smoothing: float, form: str) -> NDArray[np.float64]:
    """Return target distributions (N, classes); see :class:`~resnext_core.config.LossConfig` for `form`."""
    if form == "uniform":
        low, high = smoothing / classes, 1 - smoothing + smoothing / classes
    else:
        low, high = smoothing / max(classes - 1, 1), 1 - smoothing
    targets = np.full((len(labels), classes), low)
    targets[np.arange(len(labels)), labels] = high
    return targets


def cross_entropy(logits: Array, targets: Array, weights: Array | None = None) -> tuple[float, Array]:
    """Return the mean of weight · -Σ target · log softmax(logits) over the N rows, and its gradient (N, classes).

    `weights` (N,) None means 1 for every row.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    total = exponentials.sum(axis=1, keepdims=True)
    losses = -(targets * (shifted - np.log(total))).sum(axis=1)
    gradient = exponentials / total * targets.sum(axis=1, keepdims=True) - targets
    if weights is not None:
        weights = weights.astype(logits.dtype)
        losses, gradient = weights * losses, weights[:, None] * gradient
    return float(losses.mean()), (gradient / len(logits)).astype(logits.dtype)


def binary_cross_entropy(
    logits: Array, targets: Array, weights: Array | None = None, *, summed: bool
) -> tuple[float, Array]:
    """Return the mean over the N rows of weight · the mean over classes of log(1 + exp z) - target · z, its gradient.

    With `summed` it is the sum over classes. `weights` (N,) None means 1 for every row. Nothing overflows:
    log(1 + exp z) = max(z, 0) + log(1 + exp(-|z|)).
    """
    small = np.exp(-np.abs(logits))
    losses = np.maximum(logits, 0) + np.log1p(small) - targets * logits
    gradient = np.where(logits >= 0, 1, small) / (1 + small) - targets
    share = logits.dtype.type(1 if summed else 1 / logits.shape[1])
    rows, gradient = losses.sum(axis=1) * share, gradient * share
    if weights is not None:
        weights = weights.astype(logits.dtype)
        rows, gradient = weights * rows, weights[:, None] * gradient
    return float(rows.mean()), (gradient / len(logits)).astype(logits.dtype)
