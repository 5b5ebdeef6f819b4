"""Sessions of OpenVINO on the CPU: ONNX files, read from memory."""

from __future__ import annotations

import re
import sys
import threading
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from resnext_core.errors import BackendUnavailable, DataError, one_line, shown
from resnext_core.processor import processor
from resnext_onnx.graph import TENSOR
from resnext_onnx.options import OnnxOptions
from resnext_onnx.sessions import Array, SessionError, Value

_TELEMETRY = "openvino_telemetry"
#: Threads import it one after another: each puts back what another relies on.
_IMPORT = threading.Lock()
_HINTS = {"float32": "f32", "bfloat16": "bf16"}
#: Two products of an unsigned byte and a weight of 7 bits, 2 * 255 * 64, fit in 16 bits with a sign.
_SEVEN_BITS = 64


class OpenVinoRuntime:
    """OpenVINO's CPU device.

    Raises BackendUnavailable where the package is not installed or does not load, and for
    ``onnx.openvino_precision=bfloat16`` where the processor has no instructions for it: OpenVINO would imitate them,
    several times slower than float32.
    """

    name = "OpenVINO"
    on_cpu = True

    def __init__(self, options: OnnxOptions) -> None:
        if find_spec("openvino") is None:
            raise BackendUnavailable(
                "onnx.provider=openvino: the package openvino is not installed: pip install openvino"
            )
        if options.openvino_precision == "bfloat16":
            _check_bfloat16("onnx.openvino_precision=bfloat16", "set onnx.openvino_precision=float32")
        self.precision: str | None = (
            None if options.openvino_precision == "float32" else options.openvino_precision
        )
        self.computes_on = "-".join(filter(None, ("openvino", processor().instructions, self.precision)))
        try:
            self._openvino = openvino()
            self._core = self._openvino.Core()
        except Exception as error:  # ImportError, or what its libraries raise
            raise BackendUnavailable(
                f"onnx.provider=openvino: the package openvino does not load ({shown(_reason(error), 200)}): "
                "pip install --force-reinstall openvino"
            ) from error
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",  # all threads compute one batch
            "ENABLE_CPU_PINNING": False,  # pinned threads of two processes would share cores and leave others idle
        }
        if options.threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = options.threads

    def session(self, data: bytes, *, precision: str) -> OpenVinoSession:
        """Load `data`; see :class:`resnext_onnx.sessions.Runtime`.

        DataError on an int8 file whose weights have more than 7 bits, where this processor's sums of them saturate,
        BackendUnavailable on a bfloat16 file where it has no instructions for it.
        """
        if precision == "bfloat16":
            _check_bfloat16("a bfloat16 file", "export with export.precision=float16 or float32")
        if precision == "int8" and processor().saturates and not _in_seven_bits(data):
            raise DataError(
                f"onnx.provider=openvino gives wrong results for this int8 file on {processor().instructions}, where "
                "sums of its products saturate; set onnx.provider=cpu, or quantise to 7-bit weights"
            )
        try:
            _check_versions(data)
            model = self._core.read_model(data)
            if self.precision is None:
                return OpenVinoSession(self._compiled(model, "float32"))
            # What comes before the network, normalisation at least, stays in float32.
            front = self._cut(model)
            rest = self._compiled(model, self.precision)
            return OpenVinoSession(*([] if front is None else [self._compiled(front, "float32")]), rest)
        except Exception as error:  # RuntimeError for nearly everything
            raise SessionError(_reason(error)) from error

    def _compiled(self, model: Any, precision: str) -> Any:
        # Left alone it takes bfloat16 where the processor has it.
        settings = {**self._settings, "INFERENCE_PRECISION_HINT": _HINTS[precision]}
        return self._core.compile_model(model, "CPU", settings)

    def _cut(self, model: Any) -> Any:
        """Let `model` begin at the value :data:`TENSOR`; returns the model before it, None where it begins there."""
        values = (output for op in model.get_ops() for output in op.outputs())
        cut = next((value for value in values if TENSOR in value.get_names()), None)
        if cut is None:
            raise SessionError(f"it has no value '{TENSOR}' from which on to compute in {self.precision}")
        if cut.get_node().get_type_name() == "Parameter":
            return None
        (source,), users = model.get_parameters(), cut.get_target_inputs()
        begin = self._openvino.opset1.parameter(cut.get_partial_shape(), cut.get_element_type(), TENSOR)
        for user in users:
            user.replace_source_output(begin.output(0))
        model.add_parameters([begin])
        model.remove_parameter(source)
        model.validate_nodes_and_infer_types()
        return self._openvino.Model([self._openvino.opset1.result(cut)], [source], "front")


class OpenVinoSession:
    """A network compiled by OpenVINO in `parts`, each of which reads what the one before gave.

    See :class:`resnext_onnx.sessions.Session`.
    """

    def __init__(self, *parts: Any) -> None:
        self.parts = parts
        self.inputs = tuple(map(_value, parts[0].inputs))
        self.outputs = tuple(map(_value, parts[-1].outputs))
        self._requests = [part.create_infer_request() for part in parts]
        self._lock = threading.Lock()  # a request computes one batch at a time, and refuses another meanwhile

    def run(self, name: str, array: Array) -> Array:
        """Return the output ``logits``; SessionError where the run fails."""
        port: str | int = name
        value: Any = np.ascontiguousarray(array)
        try:
            with self._lock:
                for request in self._requests:
                    request.infer({port: value}, share_inputs=True)
                    port, value = 0, request.get_output_tensor(0)
                logits: Array = np.array(value.data)
        except Exception as error:
            raise SessionError(_reason(error)) from error
        return logits


def openvino() -> Any:
    """Import OpenVINO so that it reports to nobody.

    Its package keeps an identifier of the user in ``~/intel`` and sends an event to Google Analytics as soon as it is
    imported (``openvino/tools/ovc/__init__.py`` of 2026.4), through another package. Without that one it uses a
    stand-in that does nothing. Where the program imported OpenVINO before, this comes too late.
    """
    with _IMPORT:
        before = {_TELEMETRY: sys.modules[_TELEMETRY]} if _TELEMETRY in sys.modules else {}
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # an import of it raises ModuleNotFoundError
        try:
            return import_module("openvino")
        finally:
            sys.modules.pop(_TELEMETRY, None)
            sys.modules.update(before)


def _check_bfloat16(what: str, instead: str) -> None:
    if not processor().bfloat16:
        raise BackendUnavailable(
            f"{what}: this processor ({processor()}) has no bfloat16 instructions; {instead}"
        )


def _check_versions(data: bytes) -> None:
    """Raise SessionError on a file newer than the package onnx, which OpenVINO reads as if it were older."""
    model = onnx.ModelProto.FromString(data)
    known = {"IR version": onnx.IR_VERSION, "opset": onnx.defs.onnx_opset_version()}
    opsets = [opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    for what, version in [("IR version", model.ir_version), *(("opset", version) for version in opsets)]:
        if version > known[what]:
            raise SessionError(f"{what} {version} is newer than the package onnx knows ({known[what]})")


def _in_seven_bits(data: bytes) -> bool:
    constants = onnx.ModelProto.FromString(data).graph.initializer
    weights = [numpy_helper.to_array(c) for c in constants if c.data_type == TensorProto.INT8]
    return all(w.min() >= -_SEVEN_BITS and w.max() <= _SEVEN_BITS for w in weights if w.size)


def _value(port: Any) -> Value:
    shape = tuple(None if length.is_dynamic else length.get_length() for length in port.get_partial_shape())
    return Value(name=port.get_any_name(), dtype=port.get_element_type().to_dtype().name, shape=shape)


def _reason(error: Exception) -> str:
    """Return what OpenVINO says, without the places in its source."""
    text = re.sub(r"Exception from \S+:\d+:?|Check '.*?' failed at \S+:\d+:?", "", str(error))
    return one_line(Exception(text))
