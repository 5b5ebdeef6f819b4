"""The program as a predictor: it runs beside, and gets pixels in frames (see cpp/src/stream.h)."""

from __future__ import annotations

import contextlib
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.errors import BackendUnavailable, DataError, Interrupted, UsageError
from resnext_core.interfaces import PredictRequest
from resnext_core.model.weights import parse_manifest
from resnext_core.processor import processor
from resnext_cpp_infer.options import CppInferOptions
from resnext_cpp_infer.program import find_program, onnxruntime_library

#: Bytes of images in a frame, at most; more images go in several.
_FRAME = 64 << 20
_ERRORS = {2: UsageError, 3: DataError, 4: BackendUnavailable, 75: Interrupted}


def engine_flags(options: CppInferOptions, model: Path) -> list[str]:
    """Return the program's flags for `options`."""
    runtime = options.runtime
    if runtime is None and (options.engine or model.suffix.lstrip(".")) == "onnx":
        library = onnxruntime_library()
        runtime = str(library) if library is not None else None
    flags = {
        "--engine": options.engine, "--device": options.device, "--runtime": runtime,
        "--precision": options.precision, "--threads": options.threads,
    }  # fmt: skip
    return [f"{flag}={value}" for flag, value in flags.items() if value is not None]


class StreamPredictor:
    """An artefact in a process of the program.

    `manifest` is what the artefact says of itself. Raises what the program ends with: UsageError, DataError or
    BackendUnavailable, in its words.
    """

    def __init__(self, request: PredictRequest) -> None:
        if request.path is None:
            raise UsageError(
                "backend cpp-infer serves artefacts; export the weights first, or choose another backend"
            )
        options = request.options or CppInferOptions()
        # Golden logits are core's to compute, or to leave out. A Ctrl-C of the terminal is this process's to handle.
        words = [
            str(find_program(options.program)),
            "--stream",
            f"--model={request.path}",
            "--self-check=digest",
        ]
        words += [f"--batch={request.batch_size}", f"--device-id={request.rank.local_rank}"]
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            [*words, *engine_flags(options, request.path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        device = options.device or "cpu"
        self.precision: str | None = None
        self.computes_on: str | None = processor().instructions if device == "cpu" else device
        _, manifest = self._receive()
        self.manifest = parse_manifest(manifest.decode(), where=str(request.path))

    def logits(self, images: NDArray[Any]) -> NDArray[Any]:
        """Map uint8 (N, S, S, 3) to float32 (N, classes); DataError on another shape or type."""
        size = self.manifest.spec.image_size
        return self._ask(b"I", images, np.uint8, (size, size, 3))

    def logits_from_tensor(self, tensor: NDArray[Any]) -> NDArray[Any]:
        """Map normalised float32 (N, 3, S, S) to float32 (N, classes).

        Raises DataError on another shape or type, UsageError where normalisation is inside the artefact.
        """
        size = self.manifest.spec.image_size
        return self._ask(b"T", tensor, np.float32, (3, size, size))

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None:
            self.close()

    def _ask(
        self, kind: bytes, rows: NDArray[Any], dtype: type[np.generic], shape: tuple[int, ...]
    ) -> NDArray[Any]:
        if rows.dtype != dtype or rows.ndim != 4 or rows.shape[1:] != shape or not len(rows):
            wanted = ", ".join(map(str, shape))
            raise DataError(
                f"this artefact takes {np.dtype(dtype)} (N, {wanted}) with N of 1 or more, "
                f"not {rows.dtype} {rows.shape}"
            )
        step = max(_FRAME // int(np.prod(shape) * np.dtype(dtype).itemsize), 1)
        classes = self.manifest.spec.num_classes
        parts: list[NDArray[Any]] = []
        for first in range(0, len(rows), step):
            part = np.ascontiguousarray(rows[first : first + step])
            self._send(kind, [struct.pack("<I", len(part)), part.data.cast("B")])
            _, answer = self._receive()
            parts.append(np.frombuffer(answer, np.float32).reshape(-1, classes))
        return np.concatenate(parts)

    def _send(self, kind: bytes, pieces: Sequence[bytes | memoryview]) -> None:
        if self._process is None:
            raise UsageError("this predictor is closed; create another one")
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(kind + struct.pack("<I", sum(len(p) for p in pieces)))
            for piece in pieces:
                self._process.stdin.write(piece)
            self._process.stdin.flush()
        except BrokenPipeError:
            self._lost()

    def _receive(self) -> tuple[bytes, bytes]:
        """Return kind and payload of a frame; raises what an error frame says."""
        head = self._read(5)
        kind, length = head[:1], struct.unpack("<I", head[1:])[0]
        payload = self._read(length)
        if kind == b"E":
            raise _ERRORS.get(payload[0], RuntimeError)(payload[1:].decode(errors="replace"))
        return kind, payload

    def _read(self, count: int) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        data = self._process.stdout.read(count)
        if len(data) != count:
            self._lost()
        return data

    def _lost(self) -> None:
        """Raise what the program ended with."""
        assert self._process is not None
        assert self._process.stderr is not None
        message = self._process.stderr.read().decode(errors="replace").strip().splitlines()
        code = self._process.wait()
        self.close()
        text = (
            message[-1].removeprefix("resnext-infer: ")
            if message
            else f"resnext-infer ended with code {code}"
        )
        raise _ERRORS.get(code, RuntimeError)(text)
