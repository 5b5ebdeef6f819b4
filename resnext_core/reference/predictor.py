"""Predictor of the reference backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from resnext_core.errors import UsageError
from resnext_core.interfaces import Predictor, PredictRequest
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import ModelSpec
from resnext_core.model.weights import Weights, load_weights
from resnext_core.reference.network import check_images, evaluate, normalize
from resnext_core.reference.ops import Array
from resnext_core.reference.options import ReferenceOptions

#: Pixels of input computed at once: bounds memory (to about 0.3 GB at 64x4d) whatever the batch.
_CHUNK_PIXELS = 4 * 224 * 224


class ReferencePredictor(Predictor):
    """A network in evaluation mode, in the arithmetic of its `tensors`, float32 or float64; logits are float32.

    The tensors are shared, not copied: the predictor follows their changes.
    """

    def __init__(
        self,
        *,
        spec: ModelSpec,
        preprocess: PreprocessSpec,
        tensors: Mapping[str, Array],
    ) -> None:
        self._spec = spec
        self._preprocess = preprocess
        self._tensors = dict(tensors)
        self._dtype: np.dtype[Any] = next(iter(tensors.values())).dtype

    def logits(self, images: Array) -> Array:
        """Map uint8 (N, H, W, 3) to float32 logits (N, classes); UsageError on other input."""
        check_images(images)
        return self._chunked(images, lambda part: normalize(part, self._preprocess, self._dtype))

    def logits_from_tensor(self, tensor: Array) -> Array:
        """Map normalised float32 (N, 3, H, W) to float32 logits (N, classes); UsageError on other input."""
        if tensor.dtype != np.float32 or tensor.ndim != 4 or tensor.shape[1] != 3 or tensor.size == 0:
            raise UsageError(f"the tensor must be float32 (N, 3, H, W), not {tensor.dtype} {tensor.shape}")
        return self._chunked(tensor, lambda part: part.transpose(1, 0, 2, 3).astype(self._dtype, order="C"))

    def close(self) -> None:
        """Release the weights."""
        self._tensors = {}

    def _chunked(self, data: Array, prepare: Callable[[Array], Array]) -> Array:
        if not self._tensors:
            raise UsageError("this predictor is closed")
        size = max(1, _CHUNK_PIXELS * 3 // data[0].size)
        parts = [
            evaluate(self._spec, self._tensors, prepare(data[start : start + size]))
            for start in range(0, len(data), size)
        ]
        return np.concatenate(parts).astype(np.float32)


def create_predictor(request: PredictRequest) -> ReferencePredictor:
    """Serve weights in memory or a neutral ``.safetensors`` file.

    Raises UsageError unless the request names exactly one of the two, DataError on a bad file.
    """
    options = request.options if request.options is not None else ReferenceOptions()
    weights = _weights(request)
    return ReferencePredictor(
        spec=weights.spec,
        preprocess=weights.preprocess,
        tensors={name: array.astype(options.compute) for name, array in weights.tensors.items()},
    )


def _weights(request: PredictRequest) -> Weights:
    if request.weights is not None and request.path is None:
        return request.weights
    if request.path is None or request.weights is not None:
        raise UsageError("give the reference backend either weights or the path of a weights file")
    if request.path.suffix != ".safetensors":
        raise UsageError(f"the reference backend serves .safetensors files, not {request.path.name}")
    return load_weights(request.path)
