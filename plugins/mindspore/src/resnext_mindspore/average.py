"""The EMA of weights and running statistics as a graph of its own: steps that leave it as it is do not run it."""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from resnext_mindspore.parameters import Parameters

_average = ops.MultitypeFuncGraph("average")
_copy = ops.MultitypeFuncGraph("copy")
_multiply, _add, _subtract, _assign = ops.Mul(), ops.Add(), ops.Sub(), ops.Assign()


@_average.register("Tensor", "Tensor", "Tensor")
def _average_one(share: Tensor, mean: Tensor, weight: Tensor) -> Tensor:
    return _assign(mean, _add(mean, _multiply(share, _subtract(weight, mean))))


@_copy.register("Tensor", "Tensor")
def _copy_one(mean: Tensor, weight: Tensor) -> Tensor:
    return _assign(mean, weight)


class Average(nn.Cell):
    """ema += share · (w − ema), where share is 1 − the decay; what equals the weights stays as it is."""

    def __init__(self, table: Parameters) -> None:
        super().__init__(auto_prefix=False)
        self.ema, self.weights = table.ema, table.everything
        self.map = ops.HyperMap()

    def construct(self, share: Tensor) -> Tensor:
        return ops.depend(share, self.map(ops.partial(_average, share), self.ema, self.weights))


class Copy(nn.Cell):
    """ema = w, which the formula with a share of 1 gives but for a rounding."""

    def __init__(self, table: Parameters) -> None:
        super().__init__(auto_prefix=False)
        self.ema, self.weights = table.ema, table.everything
        self.map = ops.HyperMap()

    def construct(self, share: Tensor) -> Tensor:
        return ops.depend(share, self.map(_copy, self.ema, self.weights))
