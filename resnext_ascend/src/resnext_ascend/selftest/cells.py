"""Cells of the operator parts; imported once MindSpore is open."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops


class Norm(nn.Cell):
    """Batch normalisation in training, with running statistics that begin at 0 and 1."""

    def __init__(self, channels: int, eps: float, momentum: float) -> None:
        super().__init__(auto_prefix=False)
        self.mean = Parameter(Tensor(np.zeros(channels, np.float32)), name="mean", requires_grad=False)
        self.var = Parameter(Tensor(np.ones(channels, np.float32)), name="var", requires_grad=False)
        self.norm = ops.BatchNorm(is_training=True, epsilon=eps, momentum=momentum)

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return self.norm(x, gamma, beta, self.mean, self.var)[0]


class _Weighted(nn.Cell):
    """The sum of an operator's output times its last input, whose gradients are those for that output gradient."""

    def __init__(self, operator: Any) -> None:
        super().__init__(auto_prefix=False)
        self.operator = operator

    def construct(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        y = self.operator(*given[:-1])
        # in float32, whose sum does not overflow; the gradient of y is the last input all the same
        return (ops.cast(y, ms.float32) * ops.cast(given[-1], ms.float32)).sum(), y


def with_gradients(operator: Any, inputs: list[Tensor], dy: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the output of `operator`, a Cell or a primitive, and the gradients of its inputs, in one graph."""
    gradient = ms.value_and_grad(_Weighted(operator), tuple(range(len(inputs))), None, has_aux=True)
    (_, y), gradients = ms.jit(gradient)(*inputs, dy)
    return y, gradients if isinstance(gradients, tuple) else (gradients,)
