"""One optimizer step as compiled graphs: loss, gradients, overflow check, averaging, clipping, optimizer."""

from __future__ import annotations

from mindspore import ParameterTuple, Tensor, nn, ops

from resnext_core.interfaces import TrainRequest
from resnext_mindspore import overflow
from resnext_mindspore.clipping import clipping_of
from resnext_mindspore.loss import Loss
from resnext_mindspore.network import Network
from resnext_mindspore.optimizers import optimizer_of
from resnext_mindspore.parameters import Parameters

_divide = ops.MultitypeFuncGraph("divide")
_add = ops.MultitypeFuncGraph("add")
_clear = ops.MultitypeFuncGraph("clear")


@_divide.register("Tensor", "Tensor")
def _divide_one(divisor: Tensor, gradient: Tensor) -> Tensor:
    return gradient / divisor


@_add.register("Tensor", "Tensor")
def _add_one(total: Tensor, gradient: Tensor) -> Tensor:
    return ops.assign_add(total, gradient)


@_clear.register("Tensor")
def _clear_one(total: Tensor) -> Tensor:
    return ops.assign(total, ops.zeros_like(total))


def gradient_mean(weights: ParameterTuple, world: int) -> nn.Cell:
    """Return the Cell that averages a tuple of gradients over all ranks."""
    return nn.DistributedGradReducer(weights, mean=True, degree=world) if world > 1 else nn.Identity()


class Gradients(nn.Cell):
    """Loss and gradients of a micro-batch: (loss, tuple of gradients of `weights` times `scale`).

    `extras` are the tensors that :class:`resnext_mindspore.extras.Extras` describes. With `with_loss` a loss that is
    not finite makes the last gradient so too, where all ranks will see it.
    """

    def __init__(
        self, network: Network, loss: Loss, weights: ParameterTuple, *, with_loss: bool = False
    ) -> None:
        super().__init__(auto_prefix=False)
        self.network, self.loss, self.with_loss = network, loss, with_loss
        self.weights = weights
        self.gradient = ops.value_and_grad(self.scaled_loss, None, weights, has_aux=True)

    def scaled_loss(
        self, images: Tensor, labels: Tensor, weights: Tensor, scale: Tensor, *extras: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss = self.loss(self.network(images, *extras), labels, weights, *extras)
        return loss * scale, loss

    def construct(
        self, images: Tensor, labels: Tensor, weights: Tensor, scale: Tensor, *extras: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        (_, loss), gradients = self.gradient(images, labels, weights, scale, *extras)
        if self.with_loss:
            gradients = (*gradients[:-1], gradients[-1] + loss * 0)
        return loss, gradients


class Update(nn.Cell):
    """Apply gradients: average over ranks, unscale, check, clip, optimizer. Returns `finite`.

    Where a gradient of any rank is not finite and steps may be skipped (`request.checked`), weights and optimizer state
    of all ranks keep their values to the bit.
    """

    def __init__(self, request: TrainRequest, table: Parameters) -> None:
        super().__init__(auto_prefix=False)
        self.checked = request.checked
        self.reduce = gradient_mean(table.learning, request.rank.world)
        self.true = Tensor(True)
        self.all_finite = overflow.AllFinite(request.rank.world) if request.checked else nn.Identity()
        self.clip, self.optimizer = clipping_of(request, table), optimizer_of(request, table)
        self.map = ops.HyperMap()

    def construct(self, gradients: tuple[Tensor, ...], lr: Tensor, scale: Tensor) -> Tensor:
        gradients = self.reduce(gradients)
        finite = self.true
        if self.checked:
            gradients = self.map(ops.partial(_divide, scale), gradients)
            finite = self.all_finite(gradients)
            # Only then what follows, whose own overflows would raise the status register of a card that saturates.
            gradients = ops.depend(gradients, finite)
        done = self.optimizer(self.clip(gradients), lr, finite)
        return ops.depend(finite, done)


class Step(nn.Cell):
    """A whole optimizer step of one micro-batch in one graph: (loss, finite)."""

    def __init__(self, gradients: Gradients, update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.gradients, self.update = gradients, update

    def construct(
        self, images: Tensor, labels: Tensor, weights: Tensor, lr: Tensor, scale: Tensor, *extras: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss, gradients = self.gradients(images, labels, weights, scale, *extras)
        return loss, self.update(gradients, lr, scale)


class Accumulate(nn.Cell):
    """Add the gradients of a micro-batch to `totals`; returns its loss."""

    def __init__(self, gradients: Gradients, totals: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.gradients, self.totals = gradients, totals
        self.map = ops.HyperMap()

    def construct(
        self, images: Tensor, labels: Tensor, weights: Tensor, scale: Tensor, *extras: Tensor
    ) -> Tensor:
        loss, gradients = self.gradients(images, labels, weights, scale, *extras)
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
