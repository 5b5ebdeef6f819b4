"""One optimizer step as compiled graphs: loss, gradients, overflow check, averaging, momentum, EMA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from resnext_core.config import LossConfig
from resnext_core.interfaces import CLIP_EPS, TrainRequest
from resnext_core.model.spec import ModelSpec
from resnext_mindspore import overflow
from resnext_mindspore.mixing import LABEL, TARGET
from resnext_mindspore.network import Network, make_parameters

_divide = ops.MultitypeFuncGraph("divide")
_multiply = ops.MultitypeFuncGraph("multiply")
_where = ops.MultitypeFuncGraph("where")
_sum_of_squares = ops.MultitypeFuncGraph("sum_of_squares")
_add = ops.MultitypeFuncGraph("add")
_clear = ops.MultitypeFuncGraph("clear")
_add_decay = ops.MultitypeFuncGraph("add_decay")
_momentum = ops.MultitypeFuncGraph("momentum")
_average = ops.MultitypeFuncGraph("average")


@_divide.register("Tensor", "Tensor")
def _divide_one(divisor: Tensor, gradient: Tensor) -> Tensor:
    return gradient / divisor


@_multiply.register("Tensor", "Tensor")
def _multiply_one(factor: Tensor, gradient: Tensor) -> Tensor:
    return gradient * factor


@_where.register("Tensor", "Tensor")
def _where_one(finite: Tensor, gradient: Tensor) -> Tensor:
    return ops.select(finite, gradient, ops.zeros_like(gradient))


@_sum_of_squares.register("Tensor")
def _sum_of_squares_one(gradient: Tensor) -> Tensor:
    return (gradient * gradient).sum()


@_add.register("Tensor", "Tensor")
def _add_one(total: Tensor, gradient: Tensor) -> Tensor:
    return ops.assign_add(total, gradient)


@_clear.register("Tensor")
def _clear_one(total: Tensor) -> Tensor:
    return ops.assign(total, ops.zeros_like(total))


@_add_decay.register("Tensor", "Bool", "Tensor", "Tensor")
def _add_decay_one(decay: Tensor, decayed: bool, gradient: Tensor, weight: Tensor) -> Tensor:
    if decayed:
        return gradient + weight * decay
    return gradient


@_momentum.register("Function", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor")
def _momentum_one(
    apply: ops.Primitive, momentum: Tensor, lr: Tensor, gradient: Tensor, weight: Tensor, moment: Tensor
) -> Tensor:
    return apply(weight, moment, lr, gradient, momentum)


@_average.register("Tensor", "Tensor", "Tensor")
def _average_one(decay: Tensor, mean: Tensor, weight: Tensor) -> Tensor:
    return ops.assign(mean, decay * mean + (1 - decay) * weight)


class SmoothedLoss(nn.Cell):
    """Mean over rows of weight times cross-entropy of float32 logits (N, K) with smoothed targets; see LossConfig.

    With the tensors of :mod:`resnext_mindspore.mixing` the targets are those of two labels.
    """

    def __init__(self, config: LossConfig, classes: int) -> None:
        super().__init__(auto_prefix=False)
        rest = classes - 1 if config.smoothing_form == "others" else classes
        off = config.smoothing / rest if rest else 0.0
        on = 1 - config.smoothing + (off if config.smoothing_form == "uniform" else 0.0)
        self.classes = classes
        self.one_hot = ops.OneHot()
        self.on = Tensor(on, ms.float32)
        self.off = Tensor(off, ms.float32)
        self.log_softmax = ops.LogSoftmax(axis=1)

    def construct(self, logits: Tensor, labels: Tensor, weights: Tensor, *mix: Tensor) -> Tensor:
        targets = self.one_hot(labels, self.classes, self.on, self.off)
        if len(mix) > 0:
            second = self.one_hot(mix[0][:, LABEL], self.classes, self.on, self.off)
            share = mix[1][:, TARGET].reshape((-1, 1))
            targets = share * targets + (1 - share) * second
        return -((targets * self.log_softmax(logits)).sum(1) * weights).mean()


@dataclass(frozen=True, kw_only=True, eq=False)
class Parameters:
    """The Parameters of a training run; tuples are in the order of the spec.

    `weights` and `averages` (the EMA; empty without) map neutral names; `momenta` and `decayed` go with
    `trainable`, `ema` with `everything`.
    """

    weights: Mapping[str, Parameter]
    averages: Mapping[str, Parameter]
    trainable: ParameterTuple
    momenta: ParameterTuple
    decayed: tuple[bool, ...]
    everything: ParameterTuple
    ema: ParameterTuple

    @classmethod
    def create(cls, spec: ModelSpec, tensors: Mapping[str, np.ndarray], *, ema: bool) -> Parameters:
        """Return Parameters with the values of `tensors`, zero momenta, and the EMA starting at `tensors`."""
        weights = make_parameters(spec, tensors)
        averages = make_parameters(spec, tensors, prefix="ema/") if ema else {}
        learned = [t for t in spec.tensors if t.trainable]
        return cls(
            weights=weights,
            averages=averages,
            trainable=ParameterTuple([weights[t.name] for t in learned]),
            momenta=zeros(spec, "momentum/"),
            decayed=tuple(t.decay for t in learned),
            everything=ParameterTuple(list(weights.values())),
            ema=ParameterTuple(list(averages.values())),
        )


def zeros(spec: ModelSpec, prefix: str) -> ParameterTuple:
    """Return a zero float32 Parameter for each trainable tensor of `spec`."""
    return ParameterTuple(
        [
            Parameter(Tensor(np.zeros(t.shape, np.float32)), name=prefix + t.name, requires_grad=False)
            for t in spec.tensors
            if t.trainable
        ]
    )


def gradient_mean(weights: ParameterTuple, world: int) -> nn.Cell:
    """Return the Cell that averages a tuple of gradients over all ranks."""
    return nn.DistributedGradReducer(weights, mean=True, degree=world) if world > 1 else nn.Identity()


class Gradients(nn.Cell):
    """Loss and gradients of a micro-batch: (loss, tuple of gradients of `weights` times `scale`).

    With `with_loss` a loss that is not finite makes the last gradient so too, where all ranks will see it.
    """

    def __init__(
        self, network: Network, loss: SmoothedLoss, weights: ParameterTuple, *, with_loss: bool = False
    ) -> None:
        super().__init__(auto_prefix=False)
        self.network, self.loss, self.with_loss = network, loss, with_loss
        self.weights = weights
        self.gradient = ops.value_and_grad(self.scaled_loss, None, weights, has_aux=True)

    def scaled_loss(
        self, images: Tensor, labels: Tensor, weights: Tensor, scale: Tensor, *mix: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss = self.loss(self.network(images, *mix), labels, weights, *mix)
        return loss * scale, loss

    def construct(
        self, images: Tensor, labels: Tensor, weights: Tensor, scale: Tensor, *mix: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        (_, loss), gradients = self.gradient(images, labels, weights, scale, *mix)
        if self.with_loss:
            gradients = (*gradients[:-1], gradients[-1] + loss * 0)
        return loss, gradients


class Update(nn.Cell):
    """Apply gradients: average over ranks, unscale, check, clip, decay, momentum, EMA. Returns `finite`.

    v = momentum·v + g + weight_decay·p; p −= lr·v. Where a gradient of any rank is not finite and steps may be
    skipped (`request.checked`), parameters and momenta of all ranks keep their values to the bit.
    """

    def __init__(self, request: TrainRequest, table: Parameters) -> None:
        super().__init__(auto_prefix=False)
        config = request.optimizer
        self.weights, self.momenta = table.trainable, table.momenta
        self.ema, self.averaged = table.ema, table.everything
        self.decay, self.decayed = Tensor(config.weight_decay, ms.float32), table.decayed
        self.use_decay = config.weight_decay > 0
        self.momentum, self.one = Tensor(config.momentum, ms.float32), Tensor(1.0, ms.float32)
        self.checked = request.checked
        self.clipped = config.clip_norm is not None
        self.clip_norm = config.clip_norm or 0.0
        self.reduce = gradient_mean(table.trainable, request.rank.world)
        self.use_ema = request.ema_decay is not None
        self.ema_decay = Tensor(request.ema_decay or 0.0, ms.float32)
        self.true = Tensor(True)
        self.all_finite = overflow.AllFinite(request.rank.world) if request.checked else nn.Identity()
        self.map = ops.HyperMap()
        self.apply_momentum = ops.ApplyMomentum()

    def construct(self, gradients: tuple[Tensor, ...], lr: Tensor, scale: Tensor) -> Tensor:
        gradients = self.reduce(gradients)
        finite, momentum = self.true, self.momentum
        if self.checked:
            gradients = self.map(ops.partial(_divide, scale), gradients)
            finite = self.all_finite(gradients)
            # A skipped step must leave weights and momenta as they are, inside one graph without
            # branches: v = 1·v + 0 and p −= 0·v do that exactly.
            gradients = self.map(ops.partial(_where, finite), gradients)
            momentum = ops.select(finite, momentum, self.one)
            lr = ops.select(finite, lr, ops.zeros_like(lr))
        if self.clipped:
            norm = ops.sqrt(ops.addn(self.map(_sum_of_squares, gradients)))
            factor = ops.minimum(self.clip_norm / (norm + CLIP_EPS), self.one)
            gradients = self.map(ops.partial(_multiply, factor), gradients)
        if self.use_decay:
            decay = ops.select(finite, self.decay, ops.zeros_like(self.decay)) if self.checked else self.decay
            gradients = self.map(ops.partial(_add_decay, decay), self.decayed, gradients, self.weights)
        update = ops.partial(_momentum, self.apply_momentum, momentum, lr)
        done = self.map(update, gradients, self.weights, self.momenta)
        if self.use_ema:
            done = ops.depend(self.map(ops.partial(_average, self.ema_decay), self.ema, self.averaged), done)
        return ops.depend(finite, done)


class Step(nn.Cell):
    """A whole optimizer step of one micro-batch in one graph: (loss, finite)."""

    def __init__(self, gradients: Gradients, update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.gradients, self.update = gradients, update

    def construct(
        self, images: Tensor, labels: Tensor, weights: Tensor, lr: Tensor, scale: Tensor, *mix: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss, gradients = self.gradients(images, labels, weights, scale, *mix)
        return loss, self.update(gradients, lr, scale)


class Accumulate(nn.Cell):
    """Add the gradients of a micro-batch to `totals`; returns its loss."""

    def __init__(self, gradients: Gradients, totals: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.gradients, self.totals = gradients, totals
        self.map = ops.HyperMap()

    def construct(
        self, images: Tensor, labels: Tensor, weights: Tensor, scale: Tensor, *mix: Tensor
    ) -> Tensor:
        loss, gradients = self.gradients(images, labels, weights, scale, *mix)
        return ops.depend(loss, self.map(_add, self.totals, gradients))


class UpdateFromTotals(nn.Cell):
    """The second half of an accumulated step: update from `totals`, then clear them; returns `finite`."""

    def __init__(self, update: Update, totals: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.update, self.totals = update, totals
        self.map = ops.HyperMap()

    def construct(self, lr: Tensor, scale: Tensor) -> Tensor:
        finite = self.update(self.totals, lr, scale)
        return ops.depend(finite, self.map(_clear, self.totals))
