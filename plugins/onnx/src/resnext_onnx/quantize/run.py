"""Run graphs in memory: logits, and inner values, over many images in small batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from resnext_core.errors import DataError, shown
from resnext_onnx.graph import IMAGES, LOGITS
from resnext_onnx.ort_sessions import session_options
from resnext_onnx.runtime import onnxruntime

Array = NDArray[Any]
#: Called with the number of images done.
Step = Callable[[int], None]

#: Pixels of a batch whose inner values are all kept in memory at once: 64 images of 64 pixels, 5 of 224.
_PIXELS = 2**18


def session(model: onnx.ModelProto, threads: int | None) -> Any:
    """Return a session of ONNX Runtime on the CPU; products of bytes are exact on every processor."""
    settings = session_options(threads, int8=True)
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise DataError(f"ONNX Runtime does not take this network: {shown(error, 300)}") from error


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return `model` with float32 inner values `names` as further outputs."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    result.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in known
    )
    return result


def logits_of(model: onnx.ModelProto, images: Array, threads: int | None, step: Step | None = None) -> Array:
    """Return float32 (N, classes) of uint8 `images` (N, S, S, 3)."""
    opened = session(model, threads)
    found = []
    for part in parts(images):
        found.append(opened.run([LOGITS], {IMAGES: part})[0])
        if step is not None:
            step(sum(map(len, found)))
    return np.concatenate(found)


def values_of(
    model: onnx.ModelProto, names: Sequence[str], images: Array, threads: int | None, step: Step | None = None
) -> Iterator[tuple[str, Array]]:
    """Yield the inner values `names` of batch after batch: (name, float32 array)."""
    opened, done = session(with_outputs(model, names), threads), 0
    for part in parts(images):
        yield from zip(names, opened.run(list(names), {IMAGES: part}), strict=True)
        done += len(part)
        if step is not None:
            step(done)


def parts(images: Array) -> Iterator[Array]:
    """Yield the images in batches that do not fill the memory with inner values."""
    rows = max(1, _PIXELS // (images.shape[1] * images.shape[2]))
    for start in range(0, len(images), rows):
        yield np.ascontiguousarray(images[start : start + rows])
