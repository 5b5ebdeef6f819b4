"""The network of a ModelSpec on plain arrays: evaluation, and a training pass with its gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from resnext_core.errors import UsageError
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import BN_EPS, BN_MOMENTUM, BlockSpec, ModelSpec
from resnext_core.reference import ops
from resnext_core.reference.loss import LossFunction
from resnext_core.reference.ops import Array
from resnext_core.training.rules import part_of

#: Takes the gradient of an output and returns that of the input.
Backward = Callable[[Array], Array]


def check_images(images: Array) -> None:
    """Raise UsageError unless `images` are uint8 (N, H, W, 3) and not empty."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.size == 0:
        raise UsageError(f"images must be uint8 (N, H, W, 3), not {images.dtype} {images.shape}")


def normalize(images: Array, preprocess: PreprocessSpec, dtype: np.dtype[Any]) -> Array:
    """Map uint8 (N, H, W, 3) to (x - mean) / std as (3, N, H, W) of `dtype`; UsageError on other input."""
    check_images(images)
    x = images.transpose(3, 0, 1, 2).astype(dtype, order="C")
    x -= np.array(preprocess.mean, dtype)[:, None, None, None]
    x /= np.array(preprocess.std, dtype)[:, None, None, None]
    return x


def evaluate(spec: ModelSpec, tensors: Mapping[str, Array], x: Array) -> Array:
    """Return the logits (N, classes) of normalised x (3, N, H, W) with the running statistics."""

    def conv_bn(conv: str, bn: str, x: Array, stride: int = 1, groups: int = 1) -> Array:
        y = ops.conv(x, tensors[f"{conv}.weight"], stride, groups)
        return _with_running_statistics(tensors, bn, y)

    x = _relu(conv_bn("conv1", "bn1", x, stride=_stem_stride(spec)))
    if spec.stem == "imagenet":
        x, _ = ops.max_pool(x, spec.pool_pads(x.shape[2]), spec.pool_pads(x.shape[3]))
    for block in spec.blocks:
        name = block.name
        y = _relu(conv_bn(f"{name}.conv1", f"{name}.bn1", x))
        y = _relu(conv_bn(f"{name}.conv2", f"{name}.bn2", y, stride=block.stride, groups=spec.groups))
        y = conv_bn(f"{name}.conv3", f"{name}.bn3", y)
        if block.downsample:
            x = conv_bn(f"{name}.downsample.0", f"{name}.downsample.1", x, stride=block.stride)
        y += x
        x = _relu(y)
    features = x.mean(axis=(2, 3)).T
    logits: Array = features @ tensors["fc.weight"].T + tensors["fc.bias"]
    return logits


def train_pass(
    spec: ModelSpec,
    tensors: Mapping[str, Array],
    x: Array,
    loss: LossFunction,
    *,
    scale: float = 1.0,
    branches: Array | None = None,
    frozen: int = 0,
) -> TrainPass:
    """Run x (3, N, H, W) forward with batch statistics and backward from the `loss` of its logits times `scale`.

    The residual branch of each block is multiplied by its column of `branches` (N, blocks), None 1. The first `frozen`
    parts of the network use the running statistics, and have neither gradients nor new statistics.
    Nothing is written to `tensors`: gradients and new running statistics are in the returned record.
    Raises UsageError where a batch statistic is over one value.
    """
    run = TrainPass(spec=spec, tensors=tensors, branches=branches, frozen=frozen)
    run.forward_backward(x, loss, scale)
    return run


@dataclass(kw_only=True, eq=False)
class TrainPass:
    """One pass over a micro-batch and what it found.

    `loss` is that of the micro-batch without the scale, `gradients` those of the scaled loss by tensor name,
    `running` the new running statistics by tensor name, `logits` (N, classes).
    """

    spec: ModelSpec
    tensors: Mapping[str, Array]
    branches: Array | None = None
    frozen: int = 0
    gradients: dict[str, Array] = field(default_factory=dict)
    running: dict[str, Array] = field(default_factory=dict)
    loss: float = float("nan")
    logits: Array = field(default_factory=lambda: np.empty(0))

    def forward_backward(self, x: Array, loss: LossFunction, scale: float) -> None:
        """Fill the record; each layer hands back the function that carries the gradient through it."""
        backwards: list[tuple[str, Backward]] = []
        x, back = self._conv_bn("conv1", "bn1", x, stride=_stem_stride(self.spec), relu=True, first=True)
        backwards.append(("conv1", back))
        if self.spec.stem == "imagenet":
            x, back = self._max_pool(x)
            backwards.append(("conv1", back))
        for number, block in enumerate(self.spec.blocks):
            x, back = self._block(block, x, None if self.branches is None else self.branches[:, number])
            backwards.append((block.name, back))
        self.logits, back = self._head(x)
        backwards.append(("fc", back))
        self.loss, gradient = loss(self.logits)
        gradient *= x.dtype.type(scale)  # a scale beyond the range of the arithmetic overflows here
        for name, back in reversed(backwards):
            if part_of(name) < self.frozen:
                break
            gradient = back(gradient)

    def _conv_bn(
        self,
        conv: str,
        bn: str,
        x: Array,
        *,
        stride: int = 1,
        groups: int = 1,
        relu: bool = False,
        first: bool = False,
    ) -> tuple[Array, Backward]:
        """Convolution, batch normalisation and, where asked, ReLU; `first` has no input gradient."""
        kernel, gamma = self.tensors[f"{conv}.weight"], self.tensors[f"{bn}.weight"]
        y = ops.conv(x, kernel, stride, groups)
        if part_of(bn) < self.frozen:
            y = _with_running_statistics(self.tensors, bn, y)
            return (_relu(y) if relu else y), _unchanged
        y, normalized, inv_std, mean, var = ops.bn_train(y, gamma, self.tensors[f"{bn}.bias"], BN_EPS)
        self._update_running(bn, mean, var, y[0].size)
        if relu:
            y = _relu(y)

        def backward(dy: Array) -> Array:
            if relu:
                dy = dy * (y > 0)
            dy, dgamma, dbeta = ops.bn_train_backward(dy, normalized, inv_std, gamma)
            dx, dkernel = ops.conv_backward(dy, x, kernel, stride, groups, input_gradient=not first)
            self.gradients |= {f"{conv}.weight": dkernel, f"{bn}.weight": dgamma, f"{bn}.bias": dbeta}
            return dy if dx is None else dx

        return y, backward

    def _update_running(self, bn: str, mean: Array, var: Array, count: int) -> None:
        """Move the running statistics towards the batch's; the variance is the unbiased one."""
        if count < 2:
            raise UsageError(f"{bn} sees one value a channel, which has no variance; raise train.batch_size")
        for name, value in (("running_mean", mean), ("running_var", var * (count / (count - 1)))):
            old = self.tensors[f"{bn}.{name}"]
            self.running[f"{bn}.{name}"] = (1 - BN_MOMENTUM) * old + BN_MOMENTUM * value

    def _max_pool(self, x: Array) -> tuple[Array, Backward]:
        rows, columns = self.spec.pool_pads(x.shape[2]), self.spec.pool_pads(x.shape[3])
        y, winner = ops.max_pool(x, rows, columns)
        return y, lambda dy: ops.max_pool_backward(dy, winner, x.shape, rows, columns)

    def _block(self, block: BlockSpec, x: Array, kept: Array | None) -> tuple[Array, Backward]:
        """The bottleneck times `kept` (N,), its shortcut, and the ReLU over their sum."""
        name = block.name
        y, back1 = self._conv_bn(f"{name}.conv1", f"{name}.bn1", x, relu=True)
        y, back2 = self._conv_bn(
            f"{name}.conv2", f"{name}.bn2", y, stride=block.stride, groups=self.spec.groups, relu=True
        )
        y, back3 = self._conv_bn(f"{name}.conv3", f"{name}.bn3", y)
        share = None if kept is None else kept.astype(x.dtype)[None, :, None, None]
        if share is not None:
            y *= share
        back_shortcut: Backward = _unchanged
        if block.downsample:
            conv, bn = f"{name}.downsample.0", f"{name}.downsample.1"
            x, back_shortcut = self._conv_bn(conv, bn, x, stride=block.stride)
        y += x
        y = _relu(y)

        def backward(dy: Array) -> Array:
            dy = dy * (y > 0)
            return back1(back2(back3(dy if share is None else dy * share))) + back_shortcut(dy)

        return y, backward

    def _head(self, x: Array) -> tuple[Array, Backward]:
        """Global mean and the dense classifier."""
        weight = self.tensors["fc.weight"]
        pixels = x.shape[2] * x.shape[3]
        features = x.mean(axis=(2, 3)).T
        logits = features @ weight.T + self.tensors["fc.bias"]

        def backward(dlogits: Array) -> Array:
            self.gradients["fc.weight"] = dlogits.T @ features
            self.gradients["fc.bias"] = dlogits.sum(axis=0)
            dx = (dlogits @ weight).T / pixels
            return np.repeat(dx, pixels, axis=1).reshape(x.shape)

        return logits, backward


def _with_running_statistics(tensors: Mapping[str, Array], bn: str, y: Array) -> Array:
    """Return batch normalisation as in evaluation, written into y."""
    weight, bias, mean, var = (
        tensors[f"{bn}.{n}"] for n in ("weight", "bias", "running_mean", "running_var")
    )
    return ops.bn_eval(y, weight, bias, mean, var, BN_EPS)


def _relu(x: Array) -> Array:
    """Return max(x, 0), written into x."""
    np.maximum(x, 0, out=x)
    return x


def _unchanged(dy: Array) -> Array:
    return dy


def _stem_stride(spec: ModelSpec) -> int:
    return 2 if spec.stem == "imagenet" else 1
