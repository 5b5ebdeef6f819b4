"""Sessions of ONNX Runtime: its execution providers for the CPU, CUDA and CANN."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import numpy as np

from resnext_core.errors import BackendUnavailable, one_line, shown
from resnext_core.processor import processor
from resnext_onnx.options import OnnxOptions
from resnext_onnx.runtime import onnxruntime
from resnext_onnx.sessions import Array, SessionError, Value

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "cann": "CANNExecutionProvider"}
#: ONNX Runtime prints what it also raises; above this level it keeps quiet.
_FATAL = 4
_WHEELS = {"cuda": "onnxruntime-gpu", "cann": "onnxruntime-cann"}
#: Where what a provider's wheel does not contain comes from.
_RUNTIMES = {
    "cpu": "install onnxruntime again",
    "cuda": "install its driver and runtime",
    "cann": "install CANN's toolkit and source its set_env.sh, see docs/ascend.md",
}
_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class OrtRuntime:
    """ONNX Runtime with one execution provider; `device` is the number of the accelerator, unless options set it.

    Raises BackendUnavailable where this ONNX Runtime was built without the provider.
    """

    precision: str | None = None

    def __init__(self, options: OnnxOptions, device: int) -> None:
        self._options = options
        self._device = device
        self.name = _PROVIDERS[options.provider]
        self.on_cpu = options.provider == "cpu"
        self.computes_on = processor().instructions if self.on_cpu else options.provider
        if options.provider == "cann" and options.cann_precision_mode != OnnxOptions.cann_precision_mode:
            self.computes_on += f"-{options.cann_precision_mode}"
        if self.name not in onnxruntime.get_available_providers():
            raise BackendUnavailable(
                f"onnx.provider={options.provider} is not in this ONNX Runtime: pip uninstall -y onnxruntime && "
                f"pip install {_WHEELS[options.provider]}"
            )

    def session(self, data: bytes, *, precision: str) -> OrtSession:
        """Load `data`; see :class:`resnext_onnx.sessions.Runtime`. No other provider takes over."""
        if precision == "bfloat16" and self.on_cpu:
            raise BackendUnavailable(
                f"{self.name} has no convolutions in bfloat16: set onnx.provider=openvino, or export with "
                "export.precision=float16"
            )
        settings = session_options(self._options.threads, int8=precision == "int8")
        onnxruntime.set_default_logger_severity(_FATAL)  # what is said before there is a session
        provider = self._options.provider
        try:
            # Without enable_fallback=0 it prints "EP Error ... Falling back" and goes on with the CPU.
            session = onnxruntime.InferenceSession(
                data, settings, providers=[(self.name, self._settings())], enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            if missing := _missing_library(provider):
                raise _without_libraries(provider, missing) from error
            raise SessionError(_reason(error)) from error
        # It goes on with the CPU, too, when a provider's libraries do not load.
        if self.name not in session.get_providers():
            raise _without_libraries(provider, _missing_library(provider))
        session.disable_fallback()
        return OrtSession(session)

    def _settings(self) -> dict[str, str]:
        """Return the options of the provider, as text."""
        if self._options.provider == "cuda":
            # TF32 keeps 10 bits of mantissa: its logits are outside the float32 tolerance.
            return {"device_id": str(self._device), "use_tf32": "0"}
        # CANN computes in float16 unless told; "force_fp32" still feeds float16 to the matrix units.
        return self._options.cann_settings(self._device) if self._options.provider == "cann" else {}


def session_options(threads: int | None, *, int8: bool) -> Any:
    """Return the options of a session with so many `threads`, None for every core; products of bytes do not saturate.

    `int8` says that the network may have such products.
    """
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads or 0
    settings.inter_op_num_threads = 1  # the graph is a chain; nothing runs side by side
    settings.log_severity_level = _FATAL  # errors come back as exceptions
    if int8 and processor().saturates:
        # Unsigned weights there, whose sums do not saturate (onnxruntime_session_options_config_keys.h).
        settings.add_session_config_entry("session.x64quantprecision", "1")
    return settings


class OrtSession:
    """A session of ONNX Runtime; see :class:`resnext_onnx.sessions.Session`."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.inputs = tuple(map(_value, session.get_inputs()))
        self.outputs = tuple(map(_value, session.get_outputs()))

    def run(self, name: str, array: Array) -> Array:
        """Return the output ``logits``; SessionError where the run fails."""
        options = onnxruntime.RunOptions()
        options.log_severity_level = _FATAL
        try:
            logits: Array = self.session.run(["logits"], {name: np.ascontiguousarray(array)}, options)[0]
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise SessionError(_reason(error)) from error
        return logits


def _value(argument: Any) -> Value:
    shape = tuple(length if isinstance(length, int) else None for length in argument.shape)
    return Value(name=argument.name, dtype=_DTYPES.get(argument.type, argument.type), shape=shape)


def _without_libraries(provider: str, missing: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"onnx.provider={provider}: its libraries cannot be loaded{f' ({missing})' if missing else ''}; "
        f"{_RUNTIMES[provider]}, or set onnx.provider=cpu"
    )


def _missing_library(provider: str) -> str:
    """Return which library of the system a provider lacks, which ONNX Runtime does not say, or an empty text."""
    library = Path(onnxruntime.__file__).parent / "capi" / f"libonnxruntime_providers_{provider}.so"
    if not library.is_file():
        return ""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        # Anything else is no verdict: alone, it lacks symbols that ONNX Runtime itself gives it.
        text = one_line(error)
        return shown(text, 200) if "cannot open shared object file" in text else ""
    return ""


def _reason(error: Exception) -> str:
    """Return what ONNX Runtime says, without its code and the place in its source."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", one_line(error))
    return re.sub(r"/\S+\.(h|cc):\d+ .*?\)( const)? ", "", text)
