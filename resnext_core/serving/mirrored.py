"""Test-time augmentation: a predictor that looks at each image and its mirror image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.interfaces import Predictor
from resnext_core.serving.metrics import below_largest


class Mirrored:
    """The mean of what `predictor` says of an image and of its mirror image, left and right swapped.

    The mean is that of the probabilities, the arithmetic one. Its logarithm stands for the logits: they have the same
    order, and their softmax is the mean.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def logits(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Map uint8 (N, H, W, 3) to the logarithms of the mean probabilities: float32 (N, classes)."""
        seen = _log_softmax(self._predictor.logits(images))
        mirrored = _log_softmax(self._predictor.logits(np.ascontiguousarray(images[:, :, ::-1])))
        with np.errstate(invalid="ignore"):  # NaN stays NaN
            mean: NDArray[np.float32] = (np.logaddexp(seen, mirrored) - np.log(2)).astype(np.float32)
        return mean


def _log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = below_largest(logits)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
