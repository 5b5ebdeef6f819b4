"""What a step must do to the weights, given the optimizer state that it left: the contract's formulas once more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import OptimizerConfig
from resnext_core.training.rules import UPDATES, TensorRule, epsilon

#: Roundings of a float32 step relative to its size: of a few factors, and for LAMB of two norms.
ROUNDINGS = {"sgd": 1e-6, "adamw": 4e-6, "lamb": 4e-6}

State = Mapping[str, NDArray[Any]]


def expected_weight(
    name: str, optimizer: OptimizerConfig, rule: TensorRule, lr: float, before: State, after: State
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what the tensor `name` is after a step of rate `lr`, and how far float32 may be from it.

    `before` and `after` are the tensors of the states around the step; of `after` only the optimizer state is used.
    """
    old = before[f"weights/{name}"].astype(np.float64)
    change, size = _change(name, optimizer, rule, before, after)
    rate = float(lr) * rule.lr_scale
    new = old - rate * change
    room = 3 * np.spacing(np.maximum(np.abs(old), np.abs(new)).astype(np.float32)).astype(np.float64)
    return new, room + ROUNDINGS[optimizer.kind] * rate * size if lr else np.zeros_like(room)


def _change(
    name: str, optimizer: OptimizerConfig, rule: TensorRule, before: State, after: State
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what the rate is multiplied by, and the size of its terms."""
    first = after[f"momentum/{name}"].astype(np.float64)
    if optimizer.kind == "sgd":
        if not optimizer.nesterov:
            return first, np.abs(first)
        kept = optimizer.momentum * before[f"momentum/{name}"].astype(np.float64)
        return (first - kept) + optimizer.momentum * first, 2 * np.abs(first) + np.abs(kept)
    weight = before[f"weights/{name}"].astype(np.float64)
    updates = int(after[UPDATES][0])
    mean = first / (1 - optimizer.betas[0] ** updates)
    variance = after[f"variance/{name}"].astype(np.float64) / (1 - optimizer.betas[1] ** updates)
    step, decay = mean / (np.sqrt(variance) + epsilon(optimizer)), rule.weight_decay * weight
    change, size = step + decay, np.abs(step) + np.abs(decay)
    if optimizer.kind == "adamw" or not rule.trust:
        return change, size
    ratio = float(np.linalg.norm(weight.ravel()) / np.linalg.norm(change.ravel()))
    ratio = min(ratio, 1.0) if optimizer.trust_clip else ratio
    return ratio * change, ratio * size
