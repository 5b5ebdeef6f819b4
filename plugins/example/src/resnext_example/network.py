"""The forward pass of a ModelSpec on (N, H, W, C) arrays, and the constants that it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from resnext_core.model.spec import BN_EPS, ModelSpec
from resnext_core.model.weights import Weights

Array = NDArray[Any]


def constants(weights: Weights, *, fold_bn: bool) -> dict[str, Array]:
    """Return what :func:`forward` takes, float32 by name.

    ``<conv>.kernel`` is (O, C / groups, k, k) and ``<conv>.shift`` (O,). In evaluation batch normalisation is
    gamma · (y - mean) / sqrt(var + eps) + beta = scale · y + shift. Folded, the scale is in the kernel;
    otherwise it is ``<conv>.scale`` (O,). Computed in float64 and rounded once.
    """
    tensors = weights.tensors
    found = {name: tensors[name] for name in ("fc.weight", "fc.bias")}
    for conv, bn in _layers(weights.spec):
        gamma, beta, mean, var = (
            tensors[f"{bn}.{part}"].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(var + BN_EPS)
        kernel = tensors[f"{conv}.weight"]
        if fold_bn:
            kernel = kernel * scale[:, None, None, None]
        else:
            found[f"{conv}.scale"] = scale
        found[f"{conv}.kernel"] = kernel
        found[f"{conv}.shift"] = beta - mean * scale
    return {name: array.astype(np.float32) for name, array in found.items()}


def forward(spec: ModelSpec, constants: Mapping[str, Array], x: Array) -> Array:
    """Return the logits, float32 (N, classes), of normalised float32 x (N, H, W, 3)."""

    def conv_bn(name: str, x: Array, stride: int = 1, groups: int = 1) -> Array:
        y = conv(x, constants[f"{name}.kernel"], stride, groups)
        scale = constants.get(f"{name}.scale")
        if scale is not None:
            y *= scale
        y += constants[f"{name}.shift"]
        return y

    x = _relu(conv_bn("conv1", x, stride=2 if spec.stem == "imagenet" else 1))
    if spec.stem == "imagenet":
        x = max_pool(x, spec)
    for block in spec.blocks:
        y = _relu(conv_bn(f"{block.name}.conv1", x))
        y = _relu(conv_bn(f"{block.name}.conv2", y, stride=block.stride, groups=spec.groups))
        y = conv_bn(f"{block.name}.conv3", y)
        if block.downsample:
            x = conv_bn(f"{block.name}.downsample.0", x, stride=block.stride)
        y += x
        x = _relu(y)
    logits: Array = x.mean(axis=(1, 2)) @ constants["fc.weight"].T + constants["fc.bias"]
    return logits


def conv(x: Array, kernel: Array, stride: int, groups: int) -> Array:
    """Convolve x (N, H, W, C) with kernel (O, C / groups, k, k), k // 2 zeros on every side.

    Returns (N, H', W', O) with H' = (H - 1) // stride + 1: one matrix product a group over all windows.
    """
    out, depth, size, _ = kernel.shape
    pad = (size // 2, size // 2)
    windows = windows_of(np.pad(x, ((0, 0), pad, pad, (0, 0))), size, stride)
    shape = windows.shape[:3]
    columns = windows.reshape(-1, groups, depth * size * size).transpose(1, 0, 2)
    matrices = kernel.reshape(groups, out // groups, -1).transpose(0, 2, 1)
    products: Array = np.matmul(columns, matrices)
    return products.transpose(1, 0, 2).reshape(*shape, out)


def max_pool(x: Array, spec: ModelSpec) -> Array:
    """Return the maxima of the 3x3 windows of x (N, H, W, C) at stride 2, its edges padded as `spec` says."""
    pads = ((0, 0), spec.pool_pads(x.shape[1]), spec.pool_pads(x.shape[2]), (0, 0))
    pooled: Array = windows_of(np.pad(x, pads, constant_values=-np.inf), 3, 2).max(axis=(4, 5))
    return pooled


def windows_of(x: Array, size: int, stride: int) -> Array:
    """Return the size x size windows of x (N, H, W, C) as a view (N, H', W', C, size, size)."""
    rows = sliding_window_view(x, size, axis=1)[:, ::stride]
    return sliding_window_view(rows, size, axis=2)[:, :, ::stride]


def _relu(x: Array) -> Array:
    """Return max(x, 0), written into x."""
    return np.maximum(x, 0, out=x)


def _layers(spec: ModelSpec) -> Iterator[tuple[str, str]]:
    """Yield the name of every convolution and of the batch normalisation behind it."""
    yield "conv1", "bn1"
    for block in spec.blocks:
        for i in (1, 2, 3):
            yield f"{block.name}.conv{i}", f"{block.name}.bn{i}"
        if block.downsample:
            yield f"{block.name}.downsample.0", f"{block.name}.downsample.1"
