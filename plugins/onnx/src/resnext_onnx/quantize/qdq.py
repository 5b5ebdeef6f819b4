"""Write a float network in 8 bits: pairs of QuantizeLinear and DequantizeLinear around the layers that are chosen.

ONNX Runtime and OpenVINO turn such a graph into integer kernels, and any other runtime computes the same in float32.
The nodes are written here, and not by ``onnxruntime.quantization``: ranges, biases and layers are chosen one by one
and many times over, the same input has to give the same bytes with every version of ONNX Runtime, and the kinds of
nodes are few.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from resnext_onnx.quantize.ranges import LEVELS, Range

Array = NDArray[Any]

#: Largest bias in steps of int32: a quarter of what it holds, so that the sum of a convolution always fits.
_MOST_BIAS = 2**29


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How numbers are written: activations as int8 where `signed`, else uint8; weights from -`weights` to `weights`."""

    signed: bool = False
    weights: int = 127


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What is computed in 8 bits: the `layers` (names of Conv and Gemm nodes), with the `ranges` of values by name.

    `biases` replaces the float32 biases of layers in 8 bits, by the name of the layer.
    """

    layers: frozenset[str]
    ranges: Mapping[str, Range]
    scheme: Scheme = Scheme()
    biases: Mapping[str, Array] = field(default_factory=dict)


class Layers:
    """The layers of a graph of :func:`resnext_onnx.graph.build_graph` with folded batch normalisation, in order."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.producer = {output: node for node in graph.node for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.constants = {c.name: c for c in graph.initializer}
        self.all = {node.name: node for node in graph.node if node.op_type in ("Conv", "Gemm")}

    @property
    def names(self) -> tuple[str, ...]:
        """The convolutions and the dense layer, in order."""
        return tuple(self.all)

    def result(self, node: onnx.NodeProto) -> str:
        """Return the value that a node gives to others: behind the ReLU, if one alone reads its output."""
        output: str = node.output[0]
        readers = self.readers.get(output, [])
        if len(readers) == 1 and readers[0].op_type == "Relu":
            return str(readers[0].output[0])
        return output

    def origin(self, value: str) -> onnx.NodeProto | None:
        """Return the node whose :meth:`result` is `value`; None for an input of the graph."""
        node = self.producer.get(value)
        return self.producer.get(node.input[0]) if node is not None and node.op_type == "Relu" else node

    def weight(self, name: str) -> Array:
        """Return the float32 weight of a layer, output channels first."""
        return numpy_helper.to_array(self.constants[self.all[name].input[1]])

    def bias(self, name: str) -> Array:
        """Return the float32 bias of a layer."""
        return numpy_helper.to_array(self.constants[self.all[name].input[2]])

    def values(self) -> tuple[str, ...]:
        """Return every value that may be written in 8 bits: what layers and additions read and give."""
        found = dict.fromkeys(
            name
            for node in self.graph.node
            if node.op_type in ("Conv", "Gemm", "Add")
            for name in (
                *node.input[:1],
                *([node.input[1]] if node.op_type == "Add" else []),
                self.result(node),
            )
        )
        return tuple(name for name in found if name != self.graph.output[0].name)

    def integer_nodes(self, layers: frozenset[str]) -> dict[str, onnx.NodeProto]:
        """Return the nodes that compute in 8 bits, by name: `layers`, and what lies only between such layers."""
        found = {name: node for name, node in self.all.items() if name in layers}
        for node in self.graph.node:
            if node.op_type == "Add":
                convs = [
                    o for name in node.input if (o := self.origin(name)) is not None and o.op_type == "Conv"
                ]
                inside = all(o.name in layers for o in convs)
            else:
                source = self.origin(node.input[0]) if node.op_type == "MaxPool" else None
                inside = source is not None and source.name in layers
            if inside:
                found[node.name] = node
        return found


def quantised(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """Return `model` with the layers of `plan` in 8 bits; the same input gives the same bytes.

    Weights are symmetric with a scale for each output channel: scale = max |w| / ``scheme.weights``. Activations have
    one scale for a value: (high - low) / 255. Biases are int32 in steps of both scales. Everything else stays as it
    is, float32, and unused constants are dropped.
    """
    writer = _Writer(model.graph, plan)
    graph = helper.make_graph(
        writer.nodes(),
        model.graph.name,
        list(model.graph.input),
        list(model.graph.output),
        writer.constants(),
    )
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.CopyFrom(graph)
    del result.metadata_props[:]
    return result


def values_in(model: onnx.ModelProto, plan: Plan) -> list[str]:
    """Return the values that `plan` writes in 8 bits, in the order of the network."""
    writer = _Writer(model.graph, plan)
    return [name for name in writer.layers.values() if name in writer.forced or name in writer.wanted]


def with_value_rounded(model: onnx.ModelProto, name: str, cut: Range, *, signed: bool) -> onnx.ModelProto:
    """Return `model` in float32 with one inner value written in 8 bits and read again."""
    scale, zero = scale_of(cut, signed=signed)
    given = {"scale": np.array(scale), "zero": np.array(zero, np.int8 if signed else np.uint8)}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.initializer.extend(numpy_helper.from_array(v, f"{name}.{part}") for part, v in given.items())
    nodes = []
    for node in model.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for place, source in enumerate(node.input):
            copy.input[place] = f"{name}.dq" if source == name else source
        nodes.append(copy)
        if name in node.output:
            nodes += _rounding(name, [f"{name}.{part}" for part in given])
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def _rounding(name: str, given: list[str]) -> list[onnx.NodeProto]:
    """Return the nodes that write a value in 8 bits and read it again; `given` are its scale and zero."""
    return [
        helper.make_node("QuantizeLinear", [name, *given], [f"{name}.q"], name=f"{name}.q"),
        helper.make_node("DequantizeLinear", [f"{name}.q", *given], [f"{name}.dq"], name=f"{name}.dq"),
    ]


def scale_of(cut: Range, *, signed: bool) -> tuple[np.float32, int]:
    """Return the step of a value in 8 bits and the integer that stands for 0, from `cut` widened to hold 0."""
    low, high = min(cut.low, 0.0), max(cut.high, 0.0)
    scale = np.float32((high - low) / LEVELS)
    if not scale > np.finfo(np.float32).tiny:  # a value that is always 0
        scale, low = np.float32(1.0), 0.0
    zero = int(np.clip(np.rint(-low / float(scale)), 0, LEVELS))
    return scale, zero - 128 if signed else zero


def quantised_weight(
    weight: Array, bias: Array, source: np.float32, most: int
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]:
    """Return int8 weight, float32 scale (channels,) and int32 bias of a layer whose input has the step `source`.

    A channel whose bias would not fit its integer gets a larger scale.
    """
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    scale = np.abs(rows).max(axis=1) / most
    bias = bias.astype(np.float64)
    scale = np.maximum(scale, np.abs(bias) / (float(source) * _MOST_BIAS)).astype(np.float32)
    scale[scale < np.finfo(np.float32).tiny] = 1.0
    steps = np.clip(np.rint(rows / scale[:, None].astype(np.float64)), -most, most).astype(np.int8)
    whole = np.rint(bias / (float(source) * scale.astype(np.float64)))
    return steps.reshape(weight.shape), scale, whole.astype(np.int32)


class _Writer:
    """The graph of a plan in the making."""

    def __init__(self, graph: onnx.GraphProto, plan: Plan) -> None:
        self.graph, self.plan = graph, plan
        self.layers = Layers(graph)
        self.integer = self.layers.integer_nodes(plan.layers)
        self._made: dict[str, onnx.TensorProto] = {}
        # A value is written in 8 bits where the node that makes it computes so, or one of those that read it. In the
        # first case all read it so: a kernel of integers has no other result.
        self.forced = {self.layers.result(node) for node in self.integer.values() if node.op_type != "Gemm"}
        self.wanted = {name for node in self.integer.values() for name in self._activations(node)}

    def nodes(self) -> list[onnx.NodeProto]:
        found: list[onnx.NodeProto] = []
        for source in self.graph.input:
            self._pair(source.name, found)
        for node in self.graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            for place, name in enumerate(node.input):
                if name in self.forced or (node.name in self.integer and name in self._activations(node)):
                    copy.input[place] = f"{name}.dq"
            if node.name in self.plan.layers:
                found += self._weights(node, copy)
            found.append(copy)
            for name in node.output:
                self._pair(name, found)
        return found

    def constants(self) -> list[onnx.TensorProto]:
        """Return the constants that the nodes read, those of the float network first; call it after :meth:`nodes`."""
        replaced = {name for layer in self.plan.layers for name in self.layers.all[layer].input[1:]}
        return [c for c in self.graph.initializer if c.name not in replaced] + list(self._made.values())

    def _activations(self, node: onnx.NodeProto) -> list[str]:
        return list(node.input) if node.op_type == "Add" else list(node.input[:1])

    def _range(self, name: str) -> Range:
        """Return the range of a value; a pooled one has that of what was pooled, as the kernel asks."""
        origin = self.layers.origin(name)
        if origin is not None and origin.op_type == "MaxPool" and origin.name in self.integer:
            return self._range(origin.input[0])
        return self.plan.ranges[name]

    def _scale(self, name: str) -> tuple[np.float32, int]:
        return scale_of(self._range(name), signed=self.plan.scheme.signed)

    def _pair(self, name: str, found: list[onnx.NodeProto]) -> None:
        """Add the nodes that write a value in 8 bits and read it again, where it is wanted so."""
        if name not in self.forced and name not in self.wanted:
            return
        scale, zero = self._scale(name)
        kind = np.int8 if self.plan.scheme.signed else np.uint8
        given = [
            self._constant(f"{name}.scale", np.array(scale)), self._constant(f"{name}.zero", np.array(zero, kind))
        ]  # fmt: skip
        found += _rounding(name, given)

    def _weights(self, node: onnx.NodeProto, copy: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the nodes that read the weight and the bias of a layer, and connect `copy` to them."""
        name = node.name
        source, _ = self._scale(node.input[0])
        bias = self.plan.biases.get(name)
        weight, scale, whole = quantised_weight(
            self.layers.weight(name), self.layers.bias(name) if bias is None else bias, source,
            self.plan.scheme.weights,
        )  # fmt: skip
        parts = (
            ("weight", weight, scale, np.zeros(len(scale), np.int8)),
            ("bias", whole, source * scale, np.zeros(len(scale), np.int32)),
        )
        found = []
        for place, (part, steps, step, zero) in enumerate(parts, 1):
            given = [
                self._constant(f"{name}.{part}.q", steps),
                self._constant(f"{name}.{part}.scale", step),
                self._constant(f"{name}.{part}.zero", zero),
            ]
            output = copy.input[place] = f"{name}.{part}.dq"
            found.append(helper.make_node("DequantizeLinear", given, [output], name=output, axis=0))
        return found

    def _constant(self, name: str, array: Array) -> str:
        if name not in self._made:
            self._made[name] = numpy_helper.from_array(array.copy(order="C"), name)  # scalars stay scalars
        return name
