"""Test-time augmentation: the mean of the probabilities of an image and its mirror image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.serving.metrics import softmax
from resnext_core.serving.mirrored import Mirrored


class LeftRight:
    """Logits that depend on which side of an image is bright: the sums of its halves, and a third class."""

    def logits(self, images: NDArray[Any]) -> NDArray[np.float32]:
        half = images.shape[2] // 2
        left, right = images[:, :, :half].mean(axis=(1, 2, 3)), images[:, :, half:].mean(axis=(1, 2, 3))
        return np.stack([left, right, np.full(len(images), 60.0)], axis=1).astype(np.float32) / 20

    def close(self) -> None:
        pass


def test_it_is_the_mean_of_the_probabilities() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
    images[:, :, :4] //= 3
    model: Any = LeftRight()
    expected = (softmax(model.logits(images)) + softmax(model.logits(images[:, :, ::-1]))) / 2
    logits = Mirrored(model).logits(images)
    assert logits.dtype == np.float32
    assert np.allclose(np.exp(logits.astype(np.float64)), expected, atol=1e-7)
    assert np.allclose(softmax(logits), expected, atol=1e-7)
    assert not np.allclose(softmax(model.logits(images)), expected, atol=0.01), "else nothing was shown"
    geometric = (model.logits(images) + model.logits(images[:, :, ::-1])) / 2
    assert not np.allclose(softmax(geometric), expected, atol=1e-3), "it is not the mean of the logits"
    assert np.allclose(logits, Mirrored(model).logits(images[:, :, ::-1]), atol=1e-6), (
        "the mirror's are the same"
    )


def test_large_logits_do_not_overflow_and_nan_stays() -> None:
    class Large:
        def logits(self, images: NDArray[Any]) -> NDArray[np.float32]:
            return np.array([[3e4, -3e4, 0], [0, np.nan, 1]], np.float32)[: len(images)]

    model: Any = Large()
    found = Mirrored(model).logits(np.zeros((2, 2, 2, 3), np.uint8))
    assert np.isfinite(found[0]).all()
    assert found[0].argmax() == 0
    assert np.isnan(found[1]).any()


def test_an_infinite_logit_keeps_its_class() -> None:
    class Overflowed:
        def logits(self, images: NDArray[Any]) -> NDArray[np.float32]:
            return np.array([[0.0, np.inf, 1.0], [-np.inf, 2.0, 2.0]], np.float32)[: len(images)]

    model: Any = Overflowed()
    shares = softmax(Mirrored(model).logits(np.zeros((2, 4, 4, 3), np.uint8)))
    np.testing.assert_allclose(shares, [[0, 1, 0], [0, 0.5, 0.5]], atol=1e-7)
