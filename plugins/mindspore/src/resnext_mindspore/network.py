"""The network as a MindSpore Cell built from a ModelSpec, for training or for serving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import BN_EPS, BN_MOMENTUM, BlockSpec, ModelSpec
from resnext_core.training.rules import part_of
from resnext_mindspore.extras import Extras
from resnext_mindspore.mixing import MixPixels


def make_parameters(
    spec: ModelSpec, tensors: Mapping[str, np.ndarray], prefix: str = ""
) -> dict[str, Parameter]:
    """Return a float32 Parameter for every tensor of `spec` under its neutral name, `prefix` before its own."""
    return {
        t.name: Parameter(Tensor(np.array(tensors[t.name])), name=prefix + t.name, requires_grad=t.trainable)
        for t in spec.tensors
    }


class Network(nn.Cell):
    """A ResNeXt whose Parameters are given, so that training and evaluation graphs share them.

    Maps uint8 (N, H, W, 3), or with ``tensor_input`` normalised float32 (N, 3, H, W), to float32 logits
    (N, classes). `training` is fixed at construction, never a state: MindSpore caches a graph per Cell, and
    a Cell switched from training to evaluation may serve the stale one. In a training the tensors of `extras` that the
    network takes follow the images.

    The first `frozen` parts (see :func:`resnext_core.training.rules.part_of`) are as in evaluation, and no gradient
    goes back into them.

    With `compute` float16 or bfloat16, convolutions and the classifier compute in it on casts of the float32
    Parameters. Batch normalisation computes in float32 unless `bn_float32` is False; it takes and gives `compute`, and
    its Parameters stay float32, as at MindSpore's level O2 (train/amp.py of 2.10, ``_OutputTo16`` around what is on its
    black list). What is kept for the backward pass is `compute` throughout: the float32 input of a batch normalisation
    is cast again there. For `split_groups` and `slice_pool` see :class:`resnext_mindspore.device.Operators`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        preprocess: PreprocessSpec,
        parameters: Mapping[str, Parameter],
        *,
        training: bool,
        tensor_input: bool = False,
        compute: Any = ms.float32,
        bn_float32: bool = True,
        split_groups: bool = False,
        slice_pool: bool = False,
        extras: Extras | None = None,
        frozen: int = 0,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.compute = compute
        extras = extras or Extras()
        self.mixes, self.drops, self.branches_at = extras.mixes, extras.drops, extras.branches_at
        self.source = nn.Identity() if tensor_input else _Normalize(preprocess)
        kinds = {"compute": ms.float32 if bn_float32 else compute, "output": compute}
        norm = {"training": training and not frozen, **kinds}
        kernel, stride = (7, 2) if spec.stem == "imagenet" else (3, 1)
        self.conv1 = _Conv(parameters["conv1.weight"], kernel, stride=stride, compute=compute)
        self.bn1 = _BatchNorm(parameters, "bn1", **norm)
        self.relu = ops.ReLU()
        pool = _SlicedMaxPool if slice_pool else _MaxPool
        self.pool = pool(spec) if spec.stem == "imagenet" else nn.Identity()
        grouped = _SplitConv if split_groups else _Conv
        blocks = []
        for block in spec.blocks:
            learns = part_of(block.name) >= frozen
            own = {"training": training and learns, **kinds}
            blocks.append(_Block(block, spec.groups, parameters, compute, own, grouped))
        self.blocks = nn.CellList(blocks, auto_prefix=False)
        #: The number of frozen blocks, -1 where not even the stem is.
        self.frozen = sum(part_of(block.name) < frozen for block in spec.blocks) if frozen else -1
        self.split = ops.Split(axis=1, output_num=len(blocks))
        self.mean = ops.ReduceMean(keep_dims=False)
        self.fc = _Dense(parameters["fc.weight"], parameters["fc.bias"], compute)

    def construct(self, images: Tensor, *extras: Tensor) -> Tensor:
        pixels = self.source(images, extras[0], extras[1]) if self.mixes else self.source(images)
        x = self.pool(self.relu(self.bn1(self.conv1(pixels))))
        factors = ()
        if self.drops:
            factors = self.split(ops.cast(extras[self.branches_at], self.compute))
        for i, block in enumerate(self.blocks):
            if i == self.frozen:
                x = ops.stop_gradient(x)
            x = block(x, factors[i].reshape((-1, 1, 1, 1))) if self.drops else block(x)
        if self.frozen == len(self.blocks):
            x = ops.stop_gradient(x)
        return self.fc(self.mean(ops.cast(x, ms.float32), (2, 3)))


class _Normalize(nn.Cell):
    """uint8 NHWC to normalised float32 NCHW; images that are mixed are so before, in float32."""

    def __init__(self, preprocess: PreprocessSpec) -> None:
        super().__init__(auto_prefix=False)
        self.mean = Tensor(np.array(preprocess.mean, np.float32))
        self.std = Tensor(np.array(preprocess.std, np.float32))
        self.transpose = ops.Transpose()
        self.mix = MixPixels()

    def construct(self, images: Tensor, *mix: Tensor) -> Tensor:
        pixels = ops.cast(images, ms.float32)
        if len(mix) > 0:
            pixels = self.mix(pixels, mix[0], mix[1])
        return self.transpose((pixels - self.mean) / self.std, (0, 3, 1, 2))


class _Conv(nn.Cell):
    """A convolution without bias; a grouped one is a single node."""

    def __init__(
        self, weight: Parameter, kernel: int, *, stride: int = 1, groups: int = 1, compute: Any
    ) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weight
        self.compute = compute
        self.conv = ops.Conv2D(
            out_channel=weight.shape[0],
            kernel_size=kernel,
            pad_mode="pad",
            pad=kernel // 2,
            stride=stride,
            group=groups,
        )

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(ops.cast(x, self.compute), ops.cast(self.weight, self.compute))


class _SplitConv(nn.Cell):
    """A grouped convolution as one convolution a group, as in the ModelZoo's network; the weight is still one."""

    def __init__(self, weight: Parameter, kernel: int, *, stride: int, groups: int, compute: Any) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weight
        self.compute = compute
        self.groups = groups
        self.split = ops.Split(axis=1, output_num=groups)
        self.split_weight = ops.Split(axis=0, output_num=groups)
        self.conv = ops.Conv2D(
            out_channel=weight.shape[0] // groups,
            kernel_size=kernel,
            pad_mode="pad",
            pad=kernel // 2,
            stride=stride,
        )
        self.concat = ops.Concat(axis=1)

    def construct(self, x: Tensor) -> Tensor:
        inputs = self.split(ops.cast(x, self.compute))
        weights = self.split_weight(ops.cast(self.weight, self.compute))
        outputs = ()
        for i in range(self.groups):
            outputs += (self.conv(inputs[i], weights[i]),)
        return self.concat(outputs)


class _BatchNorm(nn.Cell):
    """Batch normalisation; in training it also updates its running statistics (unbiased variance)."""

    def __init__(
        self, parameters: Mapping[str, Parameter], name: str, *, training: bool, compute: Any, output: Any
    ) -> None:
        super().__init__(auto_prefix=False)
        self.gamma, self.beta, self.moving_mean, self.moving_var = (
            parameters[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        self.compute, self.output = compute, output
        self.widen = ops.Cast()
        if training and compute != output:
            self.widen.recompute()  # in graph mode; else this input would be kept in float32
        # The primitive's momentum is the weight of the new statistics, unlike that of nn.BatchNorm2d. Its
        # CPU kernel stores the unbiased variance, as cuDNN does.
        self.norm = ops.BatchNorm(is_training=training, epsilon=BN_EPS, momentum=BN_MOMENTUM)

    def construct(self, x: Tensor) -> Tensor:
        x = self.widen(x, self.compute)
        y = self.norm(x, self.gamma, self.beta, self.moving_mean, self.moving_var)[0]
        return ops.cast(y, self.output)


class _MaxPool(nn.Cell):
    """The stem's 3x3 stride-2 max-pool with the padding of the spec."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(auto_prefix=False)
        if spec.pool_padding == "symmetric":
            # Behind a ReLU zeros pad like minus infinity: they never win over a positive value, and where
            # they tie the gradient dies in the ReLU. MindSpore's own "pad" mode goes through a slow 3-D pool.
            self.pad = ops.Pad(((0, 0), (0, 0), (1, 1), (1, 1)))
            self.pool = ops.MaxPool(kernel_size=3, strides=2, pad_mode="valid")
        else:
            self.pad = nn.Identity()
            self.pool = ops.MaxPool(kernel_size=3, strides=2, pad_mode="same")

    def construct(self, x: Tensor) -> Tensor:
        return self.pool(self.pad(x))


class _SlicedMaxPool(nn.Cell):
    """The same pool as a maximum of strided slices, where the operator is missing.

    Among equal values the first of a window gets the gradient, as in the operator: the gradient of a maximum goes to
    its first argument where both are equal.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(auto_prefix=False)
        self.symmetric = spec.pool_padding == "symmetric"
        self.pad = ops.Pad(((0, 0), (0, 0), (1, 1), (1, 1)))  # with zeros: see _MaxPool

    def construct(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        x = self.pad(x)
        top = 0 if self.symmetric or height % 2 else 1  # "same" pads an even size at its end only
        left = 0 if self.symmetric or width % 2 else 1
        high, wide = (height + 1) // 2 * 2 - 1, (width + 1) // 2 * 2 - 1
        found = x[:, :, top : top + high : 2, left : left + wide : 2]
        for i in range(1, 9):
            y, z = top + i // 3, left + i % 3
            found = ops.maximum(found, x[:, :, y : y + high : 2, z : z + wide : 2])
        return found


class _Block(nn.Cell):
    """1x1 -> grouped 3x3 (stride here) -> 1x1, times a `factor` (N, 1, 1, 1) where given, added to the shortcut."""

    def __init__(
        self,
        block: BlockSpec,
        groups: int,
        parameters: Mapping[str, Parameter],
        compute: Any,
        norm: Mapping[str, Any],
        grouped: type[nn.Cell],
    ) -> None:
        super().__init__(auto_prefix=False)
        name, stride = block.name, block.stride
        self.conv1 = _Conv(parameters[f"{name}.conv1.weight"], 1, compute=compute)
        self.bn1 = _BatchNorm(parameters, f"{name}.bn1", **norm)
        self.conv2 = grouped(
            parameters[f"{name}.conv2.weight"], 3, stride=stride, groups=groups, compute=compute
        )
        self.bn2 = _BatchNorm(parameters, f"{name}.bn2", **norm)
        self.conv3 = _Conv(parameters[f"{name}.conv3.weight"], 1, compute=compute)
        self.bn3 = _BatchNorm(parameters, f"{name}.bn3", **norm)
        self.relu = ops.ReLU()
        self.shortcut_conv = self.shortcut_bn = nn.Identity()
        if block.downsample:
            weight = parameters[f"{name}.downsample.0.weight"]
            self.shortcut_conv = _Conv(weight, 1, stride=stride, compute=compute)
            self.shortcut_bn = _BatchNorm(parameters, f"{name}.downsample.1", **norm)

    def construct(self, x: Tensor, *factor: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if len(factor) > 0:
            y = y * factor[0]
        return self.relu(y + self.shortcut_bn(self.shortcut_conv(x)))


class _Dense(nn.Cell):
    """The classifier: features · weightᵀ + bias, float32 out."""

    def __init__(self, weight: Parameter, bias: Parameter, compute: Any) -> None:
        super().__init__(auto_prefix=False)
        self.weight, self.bias = weight, bias
        self.compute = compute
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor) -> Tensor:
        y = self.matmul(ops.cast(x, self.compute), ops.cast(self.weight, self.compute))
        return ops.cast(y, ms.float32) + self.bias
