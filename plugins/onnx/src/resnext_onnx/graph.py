"""Build the ONNX graph of a network from its ModelSpec and weights, with no framework in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from resnext_core.errors import DataError
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import BN_EPS, BlockSpec
from resnext_core.model.weights import Weights
from resnext_onnx.front import add_front

Array = NDArray[Any]

#: Opset 17 with IR version 8 is read by ONNX Runtime >= 1.12, by ATC and by every current converter.
OPSET = 17
IR_VERSION = 8
#: Graph input of ``uint8`` artefacts: uint8 (N, S, S, 3), and of ``image`` artefacts: uint8 (1, H, W, 3) of any size.
IMAGES = "images"
#: What the graph of an artefact may start from.
INPUTS = ("uint8", "float", "image")
#: Inner value of ``image`` artefacts: resized and cropped, float32 (1, 3, S, S), whole numbers.
PIXELS = "pixels"
#: Normalised float32 (N, 3, S, S): graph input of ``float`` artefacts, inner value of the others.
TENSOR = "tensor"
#: Graph output: float32 (N, classes).
LOGITS = "logits"


def build_graph(weights: Weights, *, batch_size: int | None, input: str, fold_bn: bool) -> onnx.GraphProto:
    """Return the graph of `weights` at the ModelSpec's `image_size`.

    `batch_size` None makes the batch dimension symbolic ("N"). `input` ``uint8`` starts from :data:`IMAGES`
    and normalises inside, ``float`` starts from :data:`TENSOR`, and ``image`` from one image of any size, whatever
    `batch_size` is: it resizes, crops and normalises inside. `fold_bn` puts batch normalisation into the
    convolutions (see :func:`fold`). Raises DataError when folding gives values that are not finite.
    """
    spec = weights.spec
    size, batch = spec.image_size, "N" if batch_size is None else batch_size
    builder = GraphBuilder(weights.tensors, fold_bn)
    inner = []
    if input == "image":
        batch = 1
        source = helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, [1, "H", "W", 3])
        inner = [helper.make_tensor_value_info(TENSOR, TensorProto.FLOAT, [1, 3, size, size])]
        add_front(builder, IMAGES, weights.preprocess, PIXELS)
        builder.normalise(weights.preprocess, PIXELS)
    elif input == "uint8":
        source = helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, [batch, size, size, 3])
        x = builder.add("Cast", [IMAGES], "preprocess.cast", to=TensorProto.FLOAT)
        x = builder.add("Transpose", [x], "preprocess.nchw", perm=[0, 3, 1, 2])
        builder.normalise(weights.preprocess, x)
    else:
        source = helper.make_tensor_value_info(TENSOR, TensorProto.FLOAT, [batch, 3, size, size])
    if spec.stem == "imagenet":
        x = builder.conv_bn("conv1", "bn1", TENSOR, stride=2, relu=True)
        before, after = spec.pool_pads((size - 1) // 2 + 1)
        x = builder.add(
            "MaxPool", [x], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[before, before, after, after]
        )
    else:
        x = builder.conv_bn("conv1", "bn1", TENSOR, stride=1, relu=True)
    for block in spec.blocks:
        x = builder.block(block, x, spec.groups)
    x = builder.add("GlobalAveragePool", [x], "mean")
    x = builder.add("Flatten", [x], "features", axis=1)
    fc = [builder.constant(f"fc.{part}", weights.tensors[f"fc.{part}"]) for part in ("weight", "bias")]
    builder.add("Gemm", [x, *fc], "fc", output=LOGITS, transB=1)
    sink = helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [batch, spec.num_classes])
    return helper.make_graph(
        builder.nodes, spec.variant, [source], [sink], builder.constants, value_info=inner
    )


def fold(tensors: Mapping[str, Array], conv: str, bn: str) -> tuple[Array, Array]:
    """Return the float32 weight and bias of convolution `conv` with batch normalisation `bn` inside.

    scale = weight_bn / sqrt(var + eps); weight' = weight * scale and bias' = bias_bn - mean * scale, computed
    in float64 and rounded once. Raises DataError when a result is not finite.
    """
    gamma, beta, mean, var = (tensors[f"{bn}.{part}"].astype(np.float64) for part in _BN_PARTS)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # reported below
        scale = gamma / np.sqrt(var + BN_EPS)
        weight = (tensors[f"{conv}.weight"] * scale[:, None, None, None]).astype(np.float32)
        bias = (beta - mean * scale).astype(np.float32)
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise DataError(
            f"{bn} folded into {conv} gives NaN or infinity (is a running_var negative?); "
            "these weights cannot be served"
        )
    return weight, bias


#: ONNX's order of the inputs of BatchNormalization.
_BN_PARTS = ("weight", "bias", "running_mean", "running_var")


class GraphBuilder:
    """Nodes and constants of a graph in the making; every method returns the name of the value it made."""

    def __init__(self, tensors: Mapping[str, Array], fold_bn: bool) -> None:
        self.tensors = tensors
        self.fold_bn = fold_bn
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(
        self, op: str, inputs: Sequence[str], name: str, *, output: str | None = None, **attributes: Any
    ) -> str:
        output = output or f"{name}.out"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        return output

    def constant(self, name: str, array: Array) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def normalise(self, preprocess: PreprocessSpec, x: str) -> None:
        mean, std = (
            self.constant(f"preprocess.{name}", np.array(values, np.float32).reshape(3, 1, 1))
            for name, values in (("mean", preprocess.mean), ("std", preprocess.std))
        )
        x = self.add("Sub", [x, mean], "preprocess.sub")
        self.add("Div", [x, std], "preprocess.div", output=TENSOR)

    def conv_bn(self, conv: str, bn: str, x: str, *, stride: int = 1, groups: int = 1, relu: bool) -> str:
        weight = self.tensors[f"{conv}.weight"]
        kernel = weight.shape[2]
        attributes: dict[str, Any] = {
            "kernel_shape": [kernel, kernel],
            "strides": [stride, stride],
            "pads": [kernel // 2] * 4,
            "group": groups,
        }
        if self.fold_bn:
            weight, bias = fold(self.tensors, conv, bn)
            names = [self.constant(f"{conv}.weight", weight), self.constant(f"{conv}.bias", bias)]
            x = self.add("Conv", [x, *names], conv, **attributes)
        else:
            x = self.add("Conv", [x, self.constant(f"{conv}.weight", weight)], conv, **attributes)
            parts = [self.constant(f"{bn}.{part}", self.tensors[f"{bn}.{part}"]) for part in _BN_PARTS]
            x = self.add("BatchNormalization", [x, *parts], bn, epsilon=BN_EPS)
        return self.add("Relu", [x], f"{conv}.relu") if relu else x

    def block(self, block: BlockSpec, x: str, groups: int) -> str:
        name = block.name
        shortcut = x
        x = self.conv_bn(f"{name}.conv1", f"{name}.bn1", x, relu=True)
        x = self.conv_bn(f"{name}.conv2", f"{name}.bn2", x, stride=block.stride, groups=groups, relu=True)
        x = self.conv_bn(f"{name}.conv3", f"{name}.bn3", x, relu=False)
        if block.downsample:
            shortcut = self.conv_bn(
                f"{name}.downsample.0", f"{name}.downsample.1", shortcut, stride=block.stride, relu=False
            )
        x = self.add("Add", [x, shortcut], f"{name}.add")
        return self.add("Relu", [x], f"{name}.relu")
