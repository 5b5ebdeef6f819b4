"""A graph in float32 rewritten to compute in 16 bits, from the normalised tensor to the logits.

What is outside, the normalisation and the logits, stays in float32: 16 bits hold pixels from 0 to 255, but not what the
normalisation makes of them without loss.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from resnext_core.errors import DataError
from resnext_onnx.graph import LOGITS, TENSOR

#: By the name of a precision: ONNX's type, and the opset and IR version since which all operators of the graph take it.
_TYPES = {"float16": (TensorProto.FLOAT16, 17, 8), "bfloat16": (TensorProto.BFLOAT16, 22, 10)}
_LARGEST = {"float16": float(np.finfo(np.float16).max), "bfloat16": 3.3895313892515355e38}


def opset_of(precision: str) -> int:
    """Return the opset of files that compute in `precision`."""
    return _TYPES[precision][1]


def narrow(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Return `model` with all between :data:`TENSOR` and :data:`LOGITS` in `precision`, ``float16`` or ``bfloat16``.

    Constants are rounded once, to the nearest, ties to even. Raises DataError, with the name of the constant, where one
    does not fit the type.
    """
    kind, opset, ir_version = _TYPES[precision]
    narrowed = onnx.ModelProto()
    narrowed.CopyFrom(model)
    graph = narrowed.graph
    inside, names = [], {TENSOR}
    for node in graph.node:  # in the order of computation
        if not names.isdisjoint(node.input):
            inside.append(node)
            names.update(node.output)
    used = {name for node in inside for name in node.input}
    for constant in graph.initializer:
        if constant.name in used and constant.data_type == TensorProto.FLOAT:
            _round(constant, precision)
    entry = helper.make_node("Cast", [TENSOR], [f"{TENSOR}.{precision}"], name="narrow.cast", to=kind)
    leave = helper.make_node(
        "Cast", [f"{LOGITS}.{precision}"], [LOGITS], name="logits.cast", to=TensorProto.FLOAT
    )
    first = next(i for i, node in enumerate(graph.node) if TENSOR in node.input)
    for node in inside:
        node.input[:] = [entry.output[0] if name == TENSOR else name for name in node.input]
        node.output[:] = [leave.input[0] if name == LOGITS else name for name in node.output]
    graph.node.insert(first, entry)
    graph.node.append(leave)
    narrowed.opset_import[0].version = max(opset, narrowed.opset_import[0].version)
    narrowed.ir_version = max(ir_version, narrowed.ir_version)
    return narrowed


def _round(constant: TensorProto, precision: str) -> None:
    """Round a float32 constant in place."""
    values = numpy_helper.to_array(constant)
    most = float(np.abs(values).max(initial=0))
    if most > _LARGEST[precision]:
        raise DataError(
            f"{constant.name} has values up to {most:.3g}, {precision} holds {_LARGEST[precision]:.3g} at most; "
            "export in float32"
        )
    kind = _TYPES[precision][0]
    if precision == "float16":
        constant.CopyFrom(numpy_helper.from_array(values.astype(np.float16), constant.name))
        return
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    made = TensorProto(name=constant.name, data_type=kind, dims=values.shape, raw_data=rounded.tobytes())
    constant.CopyFrom(made)
