"""Serve ONNX artefacts with ONNX Runtime, as uint8 images or as already normalised tensors."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.errors import BackendUnavailable, DataError, UsageError, one_line, shown
from resnext_core.interfaces import PredictRequest
from resnext_core.model.preprocess import normalize
from resnext_onnx.artefact import Artefact, read_artefact, without_normalisation
from resnext_onnx.options import OnnxOptions
from resnext_onnx.runtime import onnxruntime

Array = NDArray[Any]

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


class OnnxPredictor:
    """An ONNX file in ONNX Runtime.

    `manifest` is what the file says of itself (ModelSpec, PreprocessSpec, classes, ...), `artefact` how it
    was exported. The image size is the ModelSpec's; any number of images is served whatever batch the file
    was exported for. Both doors work on both kinds of file: one of ``uint8`` input takes tensors by a second
    session that starts behind the normalisation, one of ``float`` input takes images normalised by NumPy.

    Raises UsageError when given weights in memory, DataError on a file that cannot be served (see
    :func:`resnext_onnx.artefact.read_artefact`), BackendUnavailable when the provider cannot run here.
    """

    def __init__(self, request: PredictRequest) -> None:
        if request.path is None:
            raise UsageError("backend onnx serves .onnx files; export the weights first")
        self._options = request.options or OnnxOptions()
        self._device = request.rank.local_rank
        self._path = request.path
        _check_provider(self._options)
        artefact = read_artefact(request.path)
        self.manifest = artefact.manifest
        self.artefact = artefact.entry
        self._closed = False
        self._images: Any = None
        self._tensor: Any = None
        if self.artefact["input"] == "float":
            self._tensor = self._session(artefact.data)
        else:
            self._images = self._session(artefact.data)
            if request.tensor_input:
                self._tensor = self._session(without_normalisation(artefact.data))

    def logits(self, images: Array) -> Array:
        """Map uint8 (N, S, S, 3) to float32 (N, classes); DataError on another shape or type."""
        self._check_open()
        size = self.manifest.spec.image_size
        _check_input(images, np.uint8, (size, size, 3), "images")
        if self._images is None:
            return self._run(self._tensor, normalize(images, self.manifest.preprocess))
        return self._run(self._images, images)

    def logits_from_tensor(self, tensor: Array) -> Array:
        """Map normalised float32 (N, 3, S, S) to float32 (N, classes); DataError on another shape or type.

        On a file of ``uint8`` input the first call reads the file again to make the second session.
        """
        self._check_open()
        size = self.manifest.spec.image_size
        _check_input(tensor, np.float32, (3, size, size), "tensor")
        if self._tensor is None:
            self._tensor = self._session(without_normalisation(self._reread().data))
        return self._run(self._tensor, tensor)

    def close(self) -> None:
        """Release the sessions; a later call raises UsageError."""
        self._images = self._tensor = None
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this predictor is closed; create another one")

    def _reread(self) -> Artefact:
        again = read_artefact(self._path)
        if (again.manifest, again.entry) != (self.manifest, self.artefact):
            raise DataError(f"{self._path} has changed since it was opened; open it again")
        return again

    def _session(self, data: bytes) -> Any:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self._options.threads or 0
        settings.inter_op_num_threads = 1  # the graph is a chain; nothing runs side by side
        settings.log_severity_level = _FATAL  # errors come back as exceptions
        onnxruntime.set_default_logger_severity(_FATAL)  # what is said before there is a session
        provider = _PROVIDERS[self._options.provider]
        extra = _provider_settings(self._options, self._device)
        try:
            # Without enable_fallback=0 it prints "EP Error ... Falling back" and goes on with the CPU.
            session = onnxruntime.InferenceSession(
                data, settings, providers=[(provider, extra)], enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            if missing := _missing_library(self._options.provider):
                raise _without_libraries(self._options.provider, missing) from error
            raise self._failed("cannot be loaded", error) from error
        # It goes on with the CPU, too, when a provider's libraries do not load.
        if provider not in session.get_providers():
            raise _without_libraries(self._options.provider, _missing_library(self._options.provider))
        session.disable_fallback()
        self._check_graph(session)
        return session

    def _check_graph(self, session: Any) -> None:
        spec = self.manifest.spec
        size = spec.image_size
        shapes = {"images": ("tensor(uint8)", [size, size, 3]), "tensor": ("tensor(float)", [3, size, size])}
        inputs, outputs = session.get_inputs(), session.get_outputs()
        rows = inputs[0].shape[0] if inputs and inputs[0].shape else 0
        described = (not isinstance(rows, int) or rows > 0) and [(i.type, i.shape[1:]) for i in inputs] == [
            shapes.get(i.name) for i in inputs
        ]
        answers = [(o.name, o.shape[1:]) for o in outputs] == [("logits", [spec.num_classes])]
        if len(inputs) != 1 or not described or not answers:
            raise DataError(f"{self._path} is damaged: its graph does not match its manifest")

    def _failed(self, what: str, error: Exception) -> DataError | BackendUnavailable:
        """Return the error for what ONNX Runtime raised: a verified file that the CPU takes fails by the device."""
        provider = _PROVIDERS[self._options.provider]
        message = f"{self._path} {what} by {provider}: {shown(_reason(error), 300)}"
        return DataError(message) if self._options.provider == "cpu" else BackendUnavailable(message)

    def _run(self, session: Any, array: Array) -> Array:
        source = session.get_inputs()[0]
        fixed = source.shape[0] if isinstance(source.shape[0], int) else None
        if fixed is None:
            return self._logits(session, source.name, array)
        parts = [_padded(array[start : start + fixed], fixed) for start in range(0, len(array), fixed)]
        return np.concatenate([self._logits(session, source.name, part) for part in parts])[: len(array)]

    def _logits(self, session: Any, name: str, array: Array) -> Array:
        options = onnxruntime.RunOptions()
        options.log_severity_level = _FATAL
        try:
            logits: Array = session.run(["logits"], {name: np.ascontiguousarray(array)}, options)[0]
        except Exception as error:
            raise self._failed("cannot be run", error) from error
        classes = self.manifest.spec.num_classes
        if logits.shape != (len(array), classes) or logits.dtype != np.float32:
            raise DataError(
                f"{self._path} is damaged: it returns {logits.dtype} {logits.shape} for {len(array)} images, not "
                f"float32 {(len(array), classes)}; export it again"
            )
        return logits


def _padded(array: Array, rows: int) -> Array:
    if len(array) == rows:
        return array
    return np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)])


def _check_input(array: Array, dtype: type[np.generic], shape: tuple[int, ...], name: str) -> None:
    if array.dtype != dtype or array.ndim != 4 or array.shape[1:] != shape or not len(array):
        wanted = ", ".join(map(str, shape))
        raise DataError(
            f"this ONNX file takes {name} {np.dtype(dtype)} (N, {wanted}) with N of 1 or more, "
            f"not {array.dtype} {array.shape}"
        )


def _check_provider(options: OnnxOptions) -> None:
    if _PROVIDERS[options.provider] in onnxruntime.get_available_providers():
        return
    raise BackendUnavailable(
        f"onnx.provider={options.provider} is not in this ONNX Runtime: pip uninstall -y onnxruntime && "
        f"pip install {_WHEELS[options.provider]}"
    )


def _provider_settings(options: OnnxOptions, device: int) -> dict[str, str]:
    if options.provider == "cuda":
        # TF32 keeps 10 bits of mantissa: its logits are outside the float32 tolerance.
        return {"device_id": str(device), "use_tf32": "0"}
    # CANN computes in float16 unless told; "force_fp32" still feeds float16 to the matrix units.
    return options.cann_settings(device) if options.provider == "cann" else {}


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
