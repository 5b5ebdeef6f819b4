"""Bias correction: what rounding shifts on average, each channel's bias takes back.

Rounded weights, and activations that are rounded and cut, shift the mean of a channel behind a convolution. A layer in
8 bits is computed beside the same layer in float32 on the same float32 input, over the calibration images, and the
mean difference of each channel is added to its bias (M. Nagel et al., "Data-free quantization through weight
equalization and bias correction", ICCV 2019, section 4.2, with measured means). Each layer is corrected for its own
error alone: measuring all layers inside the network in 8 bits, and correcting them at once, corrects the same shift
again in every later layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import onnx

from resnext_onnx.quantize.qdq import Layers, Plan, quantised
from resnext_onnx.quantize.run import Array, Step, values_of

#: Begins the names of what is computed beside the network.
_BESIDE = "beside."


def corrected(model: onnx.ModelProto, plan: Plan, images: Array, threads: int | None, step: Step) -> Plan:
    """Return `plan` with biases that take back the mean shift of each layer over uint8 `images` (N, S, S, 3)."""
    layers = Layers(model.graph)
    names = [name for name in layers.names if name in plan.layers]
    beside = with_layers_beside(model, plan)
    outputs = {name: layers.all[name].output[0] for name in names}
    both = channel_means(
        beside, [*outputs.values(), *map(beside_name, outputs.values())], images, threads, step
    )
    biases = {
        name: (plan.biases.get(name, layers.bias(name)) + both[out] - both[beside_name(out)]).astype(
            np.float32
        )
        for name, out in outputs.items()
    }
    return replace(plan, biases=biases)


def channel_means(
    model: onnx.ModelProto, names: Iterable[str], images: Array, threads: int | None, step: Step
) -> dict[str, Array]:
    """Return the mean of each channel of the values `names` over images and places: float64 (channels,)."""
    sums: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for name, values in values_of(model, list(names), images, threads, step):
        axes = tuple(axis for axis in range(values.ndim) if axis != 1)
        sums[name] = sums.get(name, 0.0) + values.sum(axis=axes, dtype=np.float64)
        counts[name] = counts.get(name, 0) + values.size // values.shape[1]
    return {name: total / counts[name] for name, total in sums.items()}


def beside_name(output: str) -> str:
    """Return the name of a layer's output as computed beside the network."""
    return _BESIDE + output


def with_layers_beside(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """Return `model`, float32, with each layer of `plan` computed in 8 bits as well, from the same float32 input."""
    small = quantised(model, plan)
    made = {output: node for node in small.graph.node for output in node.output}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    added: dict[str, onnx.NodeProto] = {}
    for node in small.graph.node:
        if node.name not in plan.layers:
            continue
        written = made[made[node.input[0]].input[0]]  # QuantizeLinear of a value of the float network
        for source in (written, made[node.input[0]], *(made[name] for name in node.input[1:]), node):
            added.setdefault(source.name, source)
    inner = {output for node in added.values() for output in node.output}
    for node in added.values():
        copy = result.graph.node.add()
        copy.CopyFrom(node)
        copy.name = _BESIDE + node.name
        if node.op_type != "QuantizeLinear":
            copy.input[:] = [_BESIDE + name if name in inner else name for name in node.input]
        copy.output[:] = [_BESIDE + name for name in node.output]
    known = {c.name for c in model.graph.initializer}
    result.graph.initializer.extend(c for c in small.graph.initializer if c.name not in known)
    return result
