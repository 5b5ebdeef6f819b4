"""Merge small groups of grouped convolutions into wider ones with block-diagonal weights: the same function.

CPU kernels want many channels a group: ONNX Runtime has no 8-bit kernel for grouped convolutions and computes one
matrix product per group, as thin as the group (``onnxruntime/core/providers/cpu/quantization/qlinearconv.cc``), and in
float32 its blocked kernel takes only groups of a multiple of 8 (AVX2) or 16 (AVX-512) output channels
(``onnxruntime/core/optimizer/nchwc_transformer.cc``). A convolution with k times fewer and k times wider groups, whose
weights are zero between channels of different old groups, adds zeros to the same sums: equal in exact arithmetic, and
in floating point up to the order of the additions. It costs k times the multiplications of that layer.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from resnext_core.errors import DataError, UsageError
from resnext_core.processor import processor

#: Channels a group with which ONNX Runtime measured fastest in float32, by instruction set (docs/int8.md). On avx2
#: nothing was faster than the plain graph; sets that are not listed were not measured.
FLOAT32_CHANNELS = {"amx-int8": 16}


def channels_for(setting: int | str) -> int | None:
    """Return the channels a group that the option ``onnx.regroup`` stands for on this processor, None for none."""
    if setting == "auto":
        return FLOAT32_CHANNELS.get(processor().instructions)
    return setting if isinstance(setting, int) else None


def regroup(model: onnx.ModelProto, channels: int) -> onnx.ModelProto:
    """Return a copy of `model` whose grouped convolutions have at least `channels` input channels a group.

    A convolution of g groups with c input channels each, c < `channels`, gets g/k groups: k is the smallest divisor
    of g with k·c >= `channels`, or g where there is none. Its weight (M, c, *kernel) becomes (M, k·c, *kernel) of the
    same type. Depthwise convolutions (one input and one output channel a group), ungrouped ones and every other node
    stay as they are; a second call changes nothing. Metadata are copied: digests in them no longer hold.

    Raises UsageError when `channels` is not an integer above 0, DataError on a grouped convolution whose weight is not
    a constant of the graph (as in a quantised model) or does not fit its groups.
    """
    if type(channels) is not int or channels < 1:
        raise UsageError(f"regroup needs an integer of channels above 0, not {channels!r}")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    given = {value.name for value in graph.input}
    constants = {c.name: c for c in graph.initializer if c.name not in given}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    merged: dict[tuple[str, int, int], str] = {}
    for node in graph.node:
        groups = _groups(node)
        if groups is None or groups.i == 1:
            continue
        name = node.input[1]
        if name not in constants:
            raise DataError(
                f"cannot regroup convolution {node.name or node.output[0]}: its weight {name} is not a constant "
                "of the graph; regroup the float model before it is quantised"
            )
        shape = tuple(constants[name].dims)
        if len(shape) < 3 or shape[0] % groups.i:
            raise DataError(
                f"cannot regroup convolution {node.name or node.output[0]}: its weight {shape} does not fit "
                f"{groups.i} groups"
            )
        k = merge_factor(groups.i, shape[1], channels)
        if k == 1 or (shape[1] == 1 and shape[0] == groups.i):
            continue
        key = (name, groups.i, k)
        if key not in merged:
            weight = block_diagonal(numpy_helper.to_array(constants[name]), groups.i, k)
            alone = uses[name] == 1
            merged[key] = name if alone else _free(f"{name}.by{k}", uses.keys() | constants.keys() | given)
            wide = numpy_helper.from_array(weight, merged[key])
            (constants[name] if alone else graph.initializer.add()).CopyFrom(wide)
            uses[merged[key]] += 1
        node.input[1] = merged[key]
        groups.i //= k
    _drop_unused(graph, uses.keys() - merged.values())
    return result


def merge_factor(groups: int, width: int, channels: int) -> int:
    """Return how many of `groups` groups of `width` channels become one: the smallest divisor that gives `channels`."""
    return next(k for k in range(1, groups + 1) if groups % k == 0 and (k * width >= channels or k == groups))


def block_diagonal(weight: NDArray[Any], groups: int, k: int) -> NDArray[Any]:
    """Return the weight (M, k·c, *kernel) of `groups`/k groups that computes what `weight` (M, c, *kernel) does.

    Output channel m of old group m // (M / `groups`) reads the c inputs of that group; in its new group these are the
    inputs from c · (old group mod k) on. All other entries are zero.
    """
    outputs, width, *kernel = weight.shape
    wide = np.zeros((groups // k, k, outputs // groups, k, width, *kernel), weight.dtype)
    split = weight.reshape(groups // k, k, outputs // groups, width, *kernel)
    for block in range(k):
        wide[:, block, :, block] = split[:, block]
    return wide.reshape(outputs, k * width, *kernel)


def _groups(node: onnx.NodeProto) -> onnx.AttributeProto | None:
    """Return the attribute ``group`` of a convolution, None where it has none or `node` is something else."""
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
        return None
    return next((a for a in node.attribute if a.name == "group"), None)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _drop_unused(graph: onnx.GraphProto, before: set[str]) -> None:
    """Remove the constants that some node read before, in `before`, and none reads now."""
    now = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [c for c in graph.initializer if c.name in now or c.name not in before]
    if len(kept) < len(graph.initializer):
        copies = [onnx.TensorProto.FromString(c.SerializeToString()) for c in kept]
        del graph.initializer[:]
        graph.initializer.extend(copies)
