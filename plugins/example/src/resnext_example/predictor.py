"""The predictor: checks what it is given, normalises it, and computes it in chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from resnext_core.errors import UsageError
from resnext_core.interfaces import Predictor, PredictRequest
from resnext_core.model.weights import Manifest, Weights, load_weights
from resnext_example.artefact import read_npz
from resnext_example.network import Array, constants, forward
from resnext_example.plugin import ExampleOptions


class ExamplePredictor(Predictor):
    """A network in evaluation mode; `model` says which and how its images are normalised."""

    def __init__(self, model: Weights | Manifest, constants: Mapping[str, Array], chunk: int) -> None:
        self._spec = model.spec
        self._mean = np.array(model.preprocess.mean, np.float32)
        self._std = np.array(model.preprocess.std, np.float32)
        self._constants = constants
        self._chunk = chunk

    def logits(self, images: Array) -> Array:
        """Map uint8 (N, H, W, 3) to float32 logits (N, classes); UsageError on other input."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.size == 0:
            raise UsageError(f"images must be uint8 (N, H, W, 3), not {images.dtype} {images.shape}")
        return self._chunked(images, lambda part: (part.astype(np.float32) - self._mean) / self._std)

    def logits_from_tensor(self, tensor: Array) -> Array:
        """Map normalised float32 (N, 3, H, W) to float32 logits (N, classes); UsageError on other input."""
        if tensor.dtype != np.float32 or tensor.ndim != 4 or tensor.shape[1] != 3 or tensor.size == 0:
            raise UsageError(f"the tensor must be float32 (N, 3, H, W), not {tensor.dtype} {tensor.shape}")
        return self._chunked(tensor, lambda part: part.transpose(0, 2, 3, 1))

    def close(self) -> None:
        """Release the constants."""
        self._constants = {}

    def _chunked(self, data: Array, prepare: Callable[[Array], Array]) -> Array:
        if not self._constants:
            raise UsageError("this predictor is closed")
        parts = (data[start : start + self._chunk] for start in range(0, len(data), self._chunk))
        return np.concatenate([forward(self._spec, self._constants, prepare(part)) for part in parts])


def create_predictor(request: PredictRequest) -> ExamplePredictor:
    """Serve weights in memory, a neutral ``.safetensors`` file, or a ``.npz`` of this backend.

    Raises UsageError unless the request names exactly one of weights and path, DataError on a bad file.
    """
    options = request.options if request.options is not None else ExampleOptions()
    if (request.weights is None) == (request.path is None):
        raise UsageError("give the example backend either weights or the path of a file")
    if request.path is not None and request.path.suffix == ".npz":
        manifest, arrays = read_npz(request.path)
        return ExamplePredictor(manifest, arrays, options.chunk)
    weights = request.weights if request.path is None else load_weights(request.path)
    assert weights is not None
    return ExamplePredictor(weights, constants(weights, fold_bn=options.fold_bn), options.chunk)
