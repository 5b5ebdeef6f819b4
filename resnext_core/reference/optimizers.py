"""Clipping and the optimizers in plain arrays, one tensor after the other; the formulas are those of the contract."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from resnext_core.interfaces import AGC_EPS, AGC_LEAST, CLIP_EPS, TrainRequest
from resnext_core.reference.ops import Array
from resnext_core.training.rules import UPDATES, TensorRule, epsilon, state_groups, tensor_rules


class Optimizer:
    """The optimizer of a training with its state: by tensor name `momentum` and `variance`, and `updates` (1,).

    SGD has no `variance` and no `updates`. `rules` say how each tensor that learns is treated; the others have neither
    state nor gradient.
    """

    def __init__(self, request: TrainRequest, dtype: np.dtype[Any]) -> None:
        self.config, self.rules = request.optimizer, tensor_rules(request)
        shapes = {t.name: t.shape for t in request.weights.spec.tensors if t.name in self.rules}
        groups = state_groups(self.config)
        self.momentum = {name: np.zeros(shape, dtype) for name, shape in shapes.items()}
        self.variance = {n: np.zeros(s, dtype) for n, s in shapes.items() if "variance" in groups}
        self.updates = np.zeros(1, dtype)

    def named(self) -> dict[str, Array]:
        """Return every array of the state under its key; they are not copies."""
        named = {f"momentum/{n}": a for n, a in self.momentum.items()}
        named |= {f"variance/{n}": a for n, a in self.variance.items()}
        return named | ({} if self.config.kind == "sgd" else {UPDATES: self.updates})

    def step(self, weights: Mapping[str, Array], gradients: Mapping[str, Array], lr: float) -> None:
        """Clip and take one step with the mean gradients of the batch; writes into `weights` and the state."""
        self.updates += 1
        factor = clip_factor(gradients, self.config.clip_norm)
        for name, gradient in gradients.items():
            rule, weight = self.rules[name], weights[name]
            clipped = gradient * factor
            if self.config.agc is not None and rule.agc:
                clipped = adaptively_clipped(clipped, weight, self.config.agc)
            if self.config.kind == "sgd":
                self._sgd(weight, clipped, self.momentum[name], rule, lr * rule.lr_scale)
            else:
                self._adaptive(name, weight, clipped, rule, lr * rule.lr_scale)

    def _sgd(self, weight: Array, gradient: Array, velocity: Array, rule: TensorRule, lr: float) -> None:
        """v = momentum · v + (g + wd · p); p -= lr · v, with Nesterov p -= lr · ((g + wd · p) + momentum · v)."""
        change = gradient + rule.weight_decay * weight if rule.weight_decay else gradient
        velocity *= self.config.momentum
        velocity += change
        weight -= lr * (change + self.config.momentum * velocity if self.config.nesterov else velocity)

    def _adaptive(self, name: str, weight: Array, gradient: Array, rule: TensorRule, lr: float) -> None:
        """Move the moments, then the weight: by AdamW (the decay before the step), or by LAMB (timm's form)."""
        (beta1, beta2), eps = self.config.betas, epsilon(self.config)
        first, second = self.momentum[name], self.variance[name]
        first *= beta1
        first += (1 - beta1) * gradient
        second *= beta2
        second += (1 - beta2) * np.square(gradient)
        updates = float(self.updates[0])
        mean, root = first / bias_correction(beta1, updates), np.sqrt(second)
        correction = bias_correction(beta2, updates)
        if self.config.kind == "adamw":
            weight -= lr * rule.weight_decay * weight
            weight -= lr * (mean / (np.sqrt(second / correction) + eps))
            return
        update = mean / (root / math.sqrt(correction) + eps) + rule.weight_decay * weight
        ratio = trust_ratio(weight, update, clip=self.config.trust_clip) if rule.trust else 1.0
        weight -= lr * ratio * update


def bias_correction(beta: float, updates: float) -> float:
    """Return 1 - beta ** updates without cancellation (Kingma and Ba, arXiv:1412.6980)."""
    return 1.0 if beta == 0 else -math.expm1(updates * math.log(beta))


def trust_ratio(weight: Array, update: Array, *, clip: bool) -> float:
    """Return ‖weight‖ / ‖update‖, 1 where either is 0 (You et al., arXiv:1904.00962); at most 1 with `clip`."""
    norms = norm(weight), norm(update)
    ratio = norms[0] / norms[1] if norms[0] > 0 and norms[1] > 0 else 1.0
    return min(ratio, 1.0) if clip else ratio


def adaptively_clipped(gradient: Array, weight: Array, share: float) -> Array:
    """Return the gradient with a norm of at most `share` of the weights', channel by channel.

    A channel is an output channel (axis 0) of a tensor with several axes, else the whole tensor. Weights count as if
    their norm were at least AGC_EPS (Brock et al., arXiv:2102.06171).
    """
    axes = tuple(range(1, gradient.ndim)) if gradient.ndim > 1 else None
    lengths = [
        np.sqrt(np.square(array, dtype=np.float64).sum(axis=axes, keepdims=True))
        for array in (gradient, weight)
    ]
    most = share * np.maximum(lengths[1], AGC_EPS)
    factor = np.where(lengths[0] > most, most / np.maximum(lengths[0], AGC_LEAST), 1.0)
    clipped: Array = gradient * factor.astype(gradient.dtype)
    return clipped


def clip_factor(gradients: Mapping[str, Array], clip_norm: float | None) -> float:
    """Return what to multiply gradients by so that their global L2 norm is at most `clip_norm`.

    min(1, clip_norm / (norm + 1e-6)); NaN where the norm is.
    """
    if clip_norm is None:
        return 1.0
    length = math.sqrt(sum(norm(gradient) ** 2 for gradient in gradients.values()))
    factor = clip_norm / (length + CLIP_EPS)
    return 1.0 if factor >= 1 else factor


def norm(array: Array) -> float:
    """Return the L2 norm of all elements, added in float64."""
    return float(np.sqrt(np.square(array, dtype=np.float64).sum()))
