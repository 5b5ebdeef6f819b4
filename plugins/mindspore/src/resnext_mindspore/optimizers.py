"""Optimizers as Cells: they move weights and state by gradients that are averaged, unscaled and clipped.

Each takes (gradients, lr, finite). Where steps can be skipped and `finite` is False, it leaves all its Parameters as
they are, inside the one graph and without branches.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from resnext_core.interfaces import TrainRequest
from resnext_core.training.rules import epsilon
from resnext_mindspore.parameters import Parameters

_fused = ops.MultitypeFuncGraph("fused")
_nesterov = ops.MultitypeFuncGraph("nesterov")
_adamw = ops.MultitypeFuncGraph("adamw")
_lamb = ops.MultitypeFuncGraph("lamb")

# Called by name: the operators of Python compile twice as long, and there are hundreds of tensors.
_add, _sub, _mul, _div, _sqrt = ops.Add(), ops.Sub(), ops.Mul(), ops.Div(), ops.Sqrt()
_select, _assign = ops.Select(), ops.Assign()

#: Terms of the series of 1 - exp(-y), below 1: the next one is below 1e-10 of the sum.
_TERMS = 12


def optimizer_of(request: TrainRequest, table: Parameters) -> nn.Cell:
    """Return the Cell of the optimizer that was asked for."""
    return (Momentum if request.optimizer.kind == "sgd" else Moments)(request, table)


def _kept(checked: bool, finite: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return `new`, or `old` to the bit in a step that is skipped."""
    if checked:
        return _select(finite, new, old)
    return new


def _decayed(decay: float, gradient: Tensor, weight: Tensor) -> Tensor:
    if decay > 0:
        return _add(gradient, _mul(weight, decay))
    return gradient


def _scaled(scale: float, lr: Tensor) -> Tensor:
    if scale == 1:
        return lr
    return lr * scale


@_fused.register(
    "Function", "Bool", "Tensor", "Tensor", "Tensor", "Number", "Number", "Tensor", "Tensor", "Tensor"
)
def _fused_one(
    apply: ops.Primitive, checked: bool, finite: Tensor, momentum: Tensor, lr: Tensor, decay: float, scale: float,
    gradient: Tensor, weight: Tensor, moment: Tensor,
) -> Tensor:  # fmt: skip
    change = _decayed(decay, gradient, weight)
    return apply(
        weight, moment, _scaled(scale, lr), _kept(checked, finite, change, ops.zeros_like(change)), momentum
    )


@_nesterov.register("Bool", "Tensor", "Tensor", "Tensor", "Number", "Number", "Tensor", "Tensor", "Tensor")
def _nesterov_one(
    checked: bool, finite: Tensor, momentum: Tensor, lr: Tensor, decay: float, scale: float, gradient: Tensor,
    weight: Tensor, moment: Tensor,
) -> Tensor:  # fmt: skip
    change = _decayed(decay, gradient, weight)
    velocity = _add(_mul(moment, momentum), change)
    moved = _sub(weight, _mul(_add(change, _mul(velocity, momentum)), _scaled(scale, lr)))
    _assign(moment, _kept(checked, finite, velocity, moment))
    return _assign(weight, _kept(checked, finite, moved, weight))


class Momentum(nn.Cell):
    """v = momentum·v + (g + weight_decay·p); p −= lr·v, with Nesterov p −= lr·(g + weight_decay·p + momentum·v)."""

    def __init__(self, request: TrainRequest, table: Parameters) -> None:
        super().__init__(auto_prefix=False)
        self.weights, self.momenta = table.learning, table.state["momentum"]
        self.decays, self.scales = _by_tensor(table)
        self.momentum, self.one = Tensor(request.optimizer.momentum, ms.float32), Tensor(1.0, ms.float32)
        self.checked, self.nesterov = request.checked, request.optimizer.nesterov
        self.map = ops.HyperMap()
        # Its `use_nesterov` does nothing in the CPU kernel of MindSpore 2.10, so that one is written out above.
        self.apply = ops.ApplyMomentum()

    def construct(self, gradients: tuple[Tensor, ...], lr: Tensor, finite: Tensor) -> tuple[Tensor, ...]:
        if self.nesterov:
            update = ops.partial(_nesterov, self.checked, finite, self.momentum, lr)
        else:
            momentum, rate = self.momentum, lr
            if self.checked:  # v = 1·v + 0 and p −= 0·v leave both as they are
                momentum = ops.select(finite, momentum, self.one)
                rate = ops.select(finite, lr, ops.zeros_like(lr))
            update = ops.partial(_fused, self.apply, self.checked, finite, momentum, rate)
        return self.map(update, self.decays, self.scales, gradients, self.weights, self.momenta)


_MOMENTS = (
    "Bool", "Tensor", "Tensor", "Tuple", "Tuple", "Number", "Number", "Bool", "Tensor", "Tensor", "Tensor", "Tensor",
)  # fmt: skip


def _moved(
    betas: tuple[Tensor, ...], gradient: Tensor, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor]:
    m = _add(_mul(first, betas[0]), _mul(gradient, betas[1]))
    v = _add(_mul(second, betas[2]), _mul(_mul(gradient, gradient), betas[3]))
    return m, v


def _direction(shared: tuple[Tensor, ...], m: Tensor, v: Tensor) -> Tensor:
    """Return (m / c1) / (√v / √c2 + ε) as m / (√v·(c1 / √c2) + c1·ε), which goes over the tensors less often."""
    return _div(m, _add(_mul(_sqrt(v), shared[0]), shared[1]))


@_adamw.register(*_MOMENTS)
def _adamw_one(
    checked: bool, finite: Tensor, lr: Tensor, betas: tuple[Tensor, ...], shared: tuple[Tensor, ...], decay: float,
    scale: float, trust: bool, gradient: Tensor, weight: Tensor, first: Tensor, second: Tensor,
) -> Tensor:  # fmt: skip
    m, v = _moved(betas, gradient, first, second)
    rate, moved = _scaled(scale, lr), weight
    if decay > 0:
        moved = _mul(weight, 1 - rate * decay)
    moved = _sub(moved, _mul(_direction(shared, m, v), rate))
    _assign(first, _kept(checked, finite, m, first))
    _assign(second, _kept(checked, finite, v, second))
    return _assign(weight, _kept(checked, finite, moved, weight))


@_lamb.register(*_MOMENTS)
def _lamb_one(
    checked: bool, finite: Tensor, lr: Tensor, betas: tuple[Tensor, ...], shared: tuple[Tensor, ...], decay: float,
    scale: float, trust: bool, gradient: Tensor, weight: Tensor, first: Tensor, second: Tensor,
) -> Tensor:  # fmt: skip
    m, v = _moved(betas, gradient, first, second)
    step = _decayed(decay, _direction(shared, m, v), weight)
    rate = _scaled(scale, lr)
    if trust:
        rate = rate * _ratio(_length(weight), _length(step), shared[2])
    _assign(first, _kept(checked, finite, m, first))
    _assign(second, _kept(checked, finite, v, second))
    return _assign(weight, _kept(checked, finite, _sub(weight, _mul(step, rate)), weight))


def _length(tensor: Tensor) -> Tensor:
    return _sqrt(_mul(tensor, tensor).sum())


def _ratio(weight: Tensor, step: Tensor, most: Tensor) -> Tensor:
    """Return the trust ratio of two norms, 1 where one is 0, and at most `most`."""
    both, one = ops.logical_and(weight > 0, step > 0), ops.ones_like(weight)
    return ops.minimum(_select(both, weight / _select(both, step, one), one), most)


class Moments(nn.Cell):
    """LAMB and AdamW; the formulas are in ``docs/contract.md``.

    t, the number of steps taken, is a Parameter, so that a skipped step does not count.
    """

    def __init__(self, request: TrainRequest, table: Parameters) -> None:
        super().__init__(auto_prefix=False)
        config = request.optimizer
        assert table.updates is not None
        self.weights, self.first, self.second = (
            table.learning,
            table.state["momentum"],
            table.state["variance"],
        )
        self.updates: Parameter = table.updates
        self.decays, self.scales = _by_tensor(table)
        self.trusts = tuple(rule.trust for rule in table.rules.values())
        self.checked = request.checked
        self.update = _lamb if config.kind == "lamb" else _adamw
        b1, b2 = config.betas
        self.betas = tuple(Tensor(value, ms.float32) for value in (b1, 1 - b1, b2, 1 - b2))
        self.eps = epsilon(config)
        self.most = Tensor(1.0 if config.trust_clip else float(np.finfo(np.float32).max), ms.float32)
        self.c1, self.c2 = OneMinusPower(b1), OneMinusPower(b2)
        self.map = ops.HyperMap()

    def construct(self, gradients: tuple[Tensor, ...], lr: Tensor, finite: Tensor) -> tuple[Tensor, ...]:
        t = self.updates + 1
        c1, c2 = self.c1(t), self.c2(t)
        shared = (c1 / ops.sqrt(c2), c1 * self.eps, self.most)
        update = ops.partial(self.update, self.checked, finite, lr, self.betas, shared)
        done = self.map(
            update, self.decays, self.scales, self.trusts, gradients, self.weights, self.first, self.second
        )
        return ops.depend(done, ops.assign(self.updates, _kept(self.checked, finite, t, self.updates)))


class OneMinusPower(nn.Cell):
    """1 − beta ** t for t ≥ 1, float32 to a few parts in a million also where beta ** t is next to 1.

    With y = −t·log(beta) that is 1 − exp(−y), for small y by its series
    y·(1 − y/2·(1 − y/3·(1 − ...))). MindSpore has an operator for it, ``expm1``; its CPU kernel subtracts 1 from an
    exponential in float32 (2.10), which leaves five digits of 1 − 0.999.
    """

    def __init__(self, beta: float) -> None:
        super().__init__(auto_prefix=False)
        self.rate = -math.log(beta) if beta > 0 else 1000.0  # exp(-1000) is 0

    def construct(self, t: Tensor) -> Tensor:
        y = t * self.rate
        # Both are computed, and y ** 12 overflows after some 80,000 steps, of which a card that saturates makes a note.
        small = ops.minimum(y, ops.ones_like(y))
        series = ops.ones_like(y)
        for k in range(_TERMS, 1, -1):
            series = 1 - small / k * series
        return ops.select(y < 1, small * series, 1 - ops.exp(-y))


def _by_tensor(table: Parameters) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the weight decay and the scale of the learning rate of each tensor that learns."""
    rules = table.rules.values()
    return tuple(float(r.weight_decay) for r in rules), tuple(float(r.lr_scale) for r in rules)
