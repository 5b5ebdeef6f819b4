"""Clipping of gradients: by their global norm, or each output's by the norm of its weights."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from resnext_core.interfaces import AGC_EPS, AGC_LEAST, CLIP_EPS, TrainRequest
from resnext_mindspore.parameters import Parameters

_multiply = ops.MultitypeFuncGraph("multiply")
_sum_of_squares = ops.MultitypeFuncGraph("sum_of_squares")
_adaptive = ops.MultitypeFuncGraph("adaptive")


@_multiply.register("Tensor", "Tensor")
def _multiply_one(factor: Tensor, gradient: Tensor) -> Tensor:
    return gradient * factor


@_sum_of_squares.register("Tensor")
def _sum_of_squares_one(gradient: Tensor) -> Tensor:
    return (gradient * gradient).sum()


@_adaptive.register("Number", "Bool", "Tensor", "Tensor")
def _adaptive_one(share: float, clipped: bool, gradient: Tensor, weight: Tensor) -> Tensor:
    if clipped:
        most = share * ops.maximum(_norm(weight), AGC_EPS)
        norm = _norm(gradient)
        factor = ops.select(norm > most, most / ops.maximum(norm, AGC_LEAST), ops.ones_like(norm))
        return gradient * factor
    return gradient


def _norm(tensor: Tensor) -> Tensor:
    """Return the norm of each output (axis 0) of a tensor of several axes, else of the whole; of as many axes."""
    axes = (0,)
    if tensor.ndim == 4:
        axes = (1, 2, 3)
    if tensor.ndim == 2:
        axes = (1,)
    return ops.sqrt((tensor * tensor).sum(axes, keepdims=True))


def clipping_of(request: TrainRequest, table: Parameters) -> nn.Cell:
    """Return the Cell that clips the gradients of the tensors that learn as the optimizer asks."""
    optimizer = request.optimizer
    if optimizer.agc is not None:
        return Adaptive(optimizer.agc, table)
    return nn.Identity() if optimizer.clip_norm is None else ByNorm(optimizer.clip_norm)


class ByNorm(nn.Cell):
    """Multiply all gradients by min(1, most / (norm + CLIP_EPS)), where the norm is that of all together."""

    def __init__(self, most: float) -> None:
        super().__init__(auto_prefix=False)
        self.most, self.one = most, Tensor(1.0, ms.float32)
        self.map = ops.HyperMap()

    def construct(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        norm = ops.sqrt(ops.addn(self.map(_sum_of_squares, gradients)))
        factor = ops.minimum(self.most / (norm + CLIP_EPS), self.one)
        return self.map(ops.partial(_multiply, factor), gradients)


class Adaptive(nn.Cell):
    """Bound the norm of each output's gradient by `share` of that of its weights (Brock et al., arXiv:2102.06171)."""

    def __init__(self, share: float, table: Parameters) -> None:
        super().__init__(auto_prefix=False)
        self.share, self.weights = share, table.learning
        self.clipped = tuple(rule.agc for rule in table.rules.values())
        self.map = ops.HyperMap()

    def construct(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.map(ops.partial(_adaptive, self.share), self.clipped, gradients, self.weights)
