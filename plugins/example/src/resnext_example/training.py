"""The training pass: forward with batch statistics, and back with the gradients, on (N, H, W, C) arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from resnext_core.config import LossConfig
from resnext_core.interfaces import StepInput
from resnext_core.model.spec import BN_EPS, BN_MOMENTUM, BlockSpec, ModelSpec
from resnext_example.network import Array, windows_of

#: Takes the gradient of what a layer returned, returns that of what it was given.
Backward = Callable[[Array], Array]


@dataclass(kw_only=True, eq=False)
class TrainingPass:
    """One pass over a micro-batch in float32; sums over many values are in float64.

    `tensors` are read, never written. :meth:`run` fills `gradients` and `running`, the new running statistics.
    """

    spec: ModelSpec
    tensors: Mapping[str, Array]
    gradients: dict[str, Array] = field(default_factory=dict)
    running: dict[str, Array] = field(default_factory=dict)

    def run(self, x: Array, given: StepInput, loss: LossConfig, scale: float) -> float:
        """Return the mean over rows of weight · cross-entropy, of normalised x (N, H, W, 3); see LossConfig.

        Labels and weights are those of `given`, a micro-batch. The gradients are those of the loss times `scale`.
        """
        backwards: list[Backward] = []

        def through(layer: tuple[Array, Backward]) -> Array:
            backwards.append(layer[1])
            return layer[0]

        x = through(self._conv_bn("conv1", "bn1", x, stride=2 if self.spec.stem == "imagenet" else 1))
        x = through(_relu(x))
        if self.spec.stem == "imagenet":
            x = through(_max_pool(x, self.spec))
        for block in self.spec.blocks:
            x = through(self._block(block, x))
        features = x.mean(axis=(1, 2))
        logits = features @ self.tensors["fc.weight"].T + self.tensors["fc.bias"]
        value, gradient = _cross_entropy(logits, _targets(given, loss, self.spec.num_classes), given.weights)
        gradient = gradient * np.float32(scale)
        self.gradients["fc.weight"] = gradient.T @ features
        self.gradients["fc.bias"] = gradient.sum(axis=0)
        spread = gradient @ self.tensors["fc.weight"] / (x.shape[1] * x.shape[2])
        gradient = np.broadcast_to(spread[:, None, None, :], x.shape)
        for backward in reversed(backwards):
            gradient = backward(gradient)
        return value

    def _block(self, block: BlockSpec, x: Array) -> tuple[Array, Backward]:
        y, back1 = self._conv_bn(f"{block.name}.conv1", f"{block.name}.bn1", x)
        y, relu1 = _relu(y)
        y, back2 = self._conv_bn(
            f"{block.name}.conv2", f"{block.name}.bn2", y, stride=block.stride, groups=self.spec.groups
        )
        y, relu2 = _relu(y)
        y, back3 = self._conv_bn(f"{block.name}.conv3", f"{block.name}.bn3", y)
        shortcut: Backward | None = None
        if block.downsample:
            names = f"{block.name}.downsample.0", f"{block.name}.downsample.1"
            x, shortcut = self._conv_bn(*names, x, stride=block.stride)
        y, relu3 = _relu(y + x)

        def backward(dy: Array) -> Array:
            dy = relu3(dy)
            dx = back1(relu1(back2(relu2(back3(dy)))))
            return dx + (dy if shortcut is None else shortcut(dy))

        return y, backward

    def _conv_bn(
        self, conv: str, bn: str, x: Array, stride: int = 1, groups: int = 1
    ) -> tuple[Array, Backward]:
        y, conv_backward = _conv(x, self.tensors[f"{conv}.weight"], stride, groups)
        count, every = y.size // y.shape[3], (0, 1, 2)
        mean = y.mean(axis=every, dtype=np.float64)
        var = np.square(y - mean).mean(axis=every)
        inverse = 1 / np.sqrt(var + BN_EPS)
        normed = ((y - mean) * inverse).astype(np.float32)
        gamma, beta = self.tensors[f"{bn}.weight"], self.tensors[f"{bn}.bias"]
        for name, value in (("running_mean", mean), ("running_var", var * (count / max(count - 1, 1)))):
            old = self.tensors[f"{bn}.{name}"]
            self.running[f"{bn}.{name}"] = (1 - BN_MOMENTUM) * old + BN_MOMENTUM * value.astype(np.float32)

        def backward(dz: Array) -> Array:
            dgamma = (dz * normed).sum(axis=every, dtype=np.float64)
            dbeta = dz.sum(axis=every, dtype=np.float64)
            dy = (gamma * inverse) * (dz - dbeta / count - normed * (dgamma / count))
            dx, self.gradients[f"{conv}.weight"] = conv_backward(dy.astype(np.float32))
            self.gradients[f"{bn}.weight"] = dgamma.astype(np.float32)
            self.gradients[f"{bn}.bias"] = dbeta.astype(np.float32)
            return dx

        return gamma * normed + beta, backward


def _conv(
    x: Array, kernel: Array, stride: int, groups: int
) -> tuple[Array, Callable[[Array], tuple[Array, Array]]]:
    """Return the convolution as in `network.py`, and what maps dy to dx and the kernel's gradient."""
    out, depth, size, _ = kernel.shape
    pad = (size // 2, size // 2)
    padded = np.pad(x, ((0, 0), pad, pad, (0, 0)))
    seen = windows_of(padded, size, stride)
    columns = seen.reshape(-1, groups, depth * size * size).transpose(1, 0, 2)
    matrices = kernel.reshape(groups, out // groups, -1).transpose(0, 2, 1)
    y = np.matmul(columns, matrices).transpose(1, 0, 2).reshape(*seen.shape[:3], out)

    def backward(dy: Array) -> tuple[Array, Array]:
        products = dy.reshape(-1, groups, out // groups).transpose(1, 0, 2)
        dkernel = np.matmul(products.transpose(0, 2, 1), columns).reshape(kernel.shape)
        dcolumns = np.matmul(products, matrices.transpose(0, 2, 1)).transpose(1, 0, 2)
        dx = _add_windows(dcolumns.reshape(seen.shape), padded.shape, stride)
        return dx[:, pad[0] : pad[0] + x.shape[1], pad[0] : pad[0] + x.shape[2]], dkernel

    return y, backward


def _max_pool(x: Array, spec: ModelSpec) -> tuple[Array, Backward]:
    """Return the pooling as in `network.py`; the gradient goes to the first maximum of each window."""
    rows, columns = spec.pool_pads(x.shape[1]), spec.pool_pads(x.shape[2])
    padded = np.pad(x, ((0, 0), rows, columns, (0, 0)), constant_values=-np.inf)
    seen = windows_of(padded, 3, 2)
    flat = seen.reshape(*seen.shape[:4], 9)
    first = flat.argmax(axis=4)

    def backward(dy: Array) -> Array:
        spread = np.where(np.arange(9) == first[..., None], dy[..., None], np.float32(0))
        dx = _add_windows(spread.reshape(seen.shape), padded.shape, 2)
        return dx[:, rows[0] : rows[0] + x.shape[1], columns[0] : columns[0] + x.shape[2]]

    return flat.max(axis=4), backward


def _add_windows(parts: Array, shape: tuple[int, ...], stride: int) -> Array:
    """Return zeros of `shape` with each window (N, H', W', C, k, k) added where it was taken from."""
    total = np.zeros(shape, np.float32)
    height, width, size = parts.shape[1], parts.shape[2], parts.shape[4]
    for i in range(size):
        for j in range(size):
            rows, columns = slice(i, i + stride * height, stride), slice(j, j + stride * width, stride)
            total[:, rows, columns] += parts[..., i, j]
    return total


def _relu(x: Array) -> tuple[Array, Backward]:
    return np.maximum(x, 0), lambda dy: dy * (x > 0)


def mixed(x: Array, given: StepInput) -> Array:
    """Return x (N, H, W, C) as `given` says that rows are mixed with others; see MixedRows."""
    mix = given.mix
    if mix is None:
        return x
    down, across = np.arange(x.shape[1])[:, None], np.arange(x.shape[2])
    top, left, bottom, right = (side[:, None, None] for side in mix.box.T)
    inside = (top <= down) & (down < bottom) & (left <= across) & (across < right)
    kept = np.where(inside, mix.blend[:, None, None], 1.0).astype(np.float32)[..., None]
    return kept * x + (1 - kept) * x[mix.partner]


def _targets(given: StepInput, loss: LossConfig, classes: int) -> Array:
    """Return the target distributions (N, classes): smoothed, and of two labels where rows are mixed."""

    def smoothed(labels: Array) -> Array:
        others = loss.smoothing / (classes if loss.smoothing_form == "uniform" else max(classes - 1, 1))
        targets = np.full((len(labels), classes), others)
        targets[np.arange(len(labels)), labels] = (
            1 - loss.smoothing + (others if loss.smoothing_form == "uniform" else 0)
        )
        return targets

    targets, mix = smoothed(given.labels), given.mix
    if mix is not None:
        share = mix.share[:, None]
        targets = share * targets + (1 - share) * smoothed(mix.labels)
    return targets.astype(np.float32)


def _cross_entropy(logits: Array, targets: Array, weights: Array) -> tuple[float, Array]:
    """Return the mean of weight · cross-entropy with target distributions, and its gradient (N, classes)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    total = exponentials.sum(axis=1, keepdims=True)
    losses = -(targets * (shifted - np.log(total))).sum(axis=1)
    share = (weights / len(logits)).astype(np.float32)[:, None]
    gradient = (exponentials / total * targets.sum(axis=1, keepdims=True) - targets) * share
    return float((losses * weights).mean()), gradient
