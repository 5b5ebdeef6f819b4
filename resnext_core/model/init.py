"""Initial weights for training, and random ones for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.model.spec import ModelSpec


def init_weights(spec: ModelSpec, seed: int) -> dict[str, NDArray[Any]]:
    """Return initial float32 tensors, the same on every machine and backend.

    Convolutions N(0, 2 / fan_out) with fan_out = out·k·k of the full grouped weight (He et al.,
    arXiv:1502.01852); BN weight 1 and bias 0, but weight 0 in the last BN of each block (Goyal et al.,
    arXiv:1706.02677); dense weight and bias uniform in ±1/√features.
    """
    rng = np.random.Generator(np.random.Philox(key=seed))
    bound = spec.features**-0.5
    tensors = {}
    for tensor in spec.tensors:
        if tensor.role == "conv":
            out, _, kernel, _ = tensor.shape
            array = rng.standard_normal(tensor.shape) * (2 / (out * kernel * kernel)) ** 0.5
        elif tensor.role in ("fc_weight", "fc_bias"):
            array = rng.uniform(-bound, bound, tensor.shape)
        elif tensor.role in ("bn_weight", "bn_var"):
            array = np.zeros(tensor.shape) if tensor.name.endswith(".bn3.weight") else np.ones(tensor.shape)
        else:
            array = np.zeros(tensor.shape)
        tensors[tensor.name] = array.astype(np.float32)
    return tensors


def random_weights(spec: ModelSpec, seed: int) -> dict[str, NDArray[Any]]:
    """Return tensors in which every element matters (no zero gamma, no unit variance): for checks, not training."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    tensors = init_weights(spec, seed)
    for tensor in spec.tensors:
        if tensor.role == "bn_weight":
            residual = 0.25 if tensor.name.endswith(".bn3.weight") else 1.0
            array = residual * rng.uniform(0.5, 1.5, tensor.shape)
        elif tensor.role in ("bn_bias", "bn_mean"):
            array = rng.uniform(-0.2, 0.2, tensor.shape)
        elif tensor.role == "bn_var":
            array = rng.uniform(0.5, 1.5, tensor.shape)
        else:
            continue
        tensors[tensor.name] = array.astype(np.float32)
    return tensors
