"""Whether probabilities mean what they say: calibration error, likelihood, and the temperature that mends them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.serving.metrics import below_largest, softmax

#: Equal bins of the confidence, as in Guo et al., arXiv:1706.04599.
BINS = 15
#: Temperatures that are looked at.
COOLEST, HOTTEST = 0.01, 100.0
#: Rows that are computed at a time where a temperature is fitted.
_ROWS = 4096


def _bins() -> NDArray[np.float64]:
    return np.zeros(BINS)


@dataclass(kw_only=True, eq=False)
class Calibration:
    """Sums over the images that have a prediction, from which errors of calibration follow.

    The confidence of an image is the probability of its predicted class. Bin b of :data:`BINS` holds confidences in
    (b / BINS, (b + 1) / BINS]: `images`, how many; `correct`, how many of them are right; `confidence`, the sum of
    theirs; all float64 (BINS,). `nll_sum` adds up -log p of the true class, `brier_sum` the squared differences between
    probabilities and the one-hot true class.
    """

    images: NDArray[np.float64] = field(default_factory=_bins)
    correct: NDArray[np.float64] = field(default_factory=_bins)
    confidence: NDArray[np.float64] = field(default_factory=_bins)
    nll_sum: float = 0.0
    brier_sum: float = 0.0

    def add(self, logits: NDArray[Any], labels: NDArray[Any], temperature: float = 1.0) -> Calibration:
        """Add rows in place and return self; `logits` (N, classes), divided by `temperature`, `labels` (N,).

        Rows with a NaN have no prediction and are left out.
        """
        known = ~np.isnan(logits).any(axis=1)
        logits, labels = np.asarray(logits[known], np.float64) / temperature, labels[known]
        if not len(labels):
            return self
        rows = np.arange(len(labels))
        predicted = logits.argmax(axis=1)
        shifted = below_largest(logits)
        powers = np.exp(shifted)
        total = powers.sum(axis=1)
        confidence = 1.0 / total  # the largest power is 1
        places = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
        self.images += np.bincount(places, minlength=BINS)
        self.correct += np.bincount(places[predicted == labels], minlength=BINS)
        self.confidence += np.bincount(places, weights=confidence, minlength=BINS)
        self.nll_sum += float((np.log(total) - shifted[rows, labels]).sum())
        squares = np.einsum("ij,ij->i", powers, powers) / np.square(total)
        self.brier_sum += float((squares - 2 * powers[rows, labels] / total + 1).sum())
        return self

    @property
    def total(self) -> int:
        """Images that have a prediction."""
        return int(self.images.sum())

    @property
    def ece(self) -> float:
        """The expected calibration error, 0 to 1: sum over bins of |right − confidence| / images. NaN without images.

        Source: Guo et al., "On Calibration of Modern Neural Networks", arXiv:1706.04599, equation 3.
        """
        return self._mean(float(np.abs(self.correct - self.confidence).sum()))

    @property
    def nll(self) -> float:
        """The mean of -log p of the true class, in nats."""
        return self._mean(self.nll_sum)

    @property
    def brier(self) -> float:
        """The Brier score, 0 to 2: the mean of the squared differences, summed over the classes."""
        return self._mean(self.brier_sum)

    def _mean(self, total: float) -> float:
        return total / self.total if self.total else float("nan")

    def line(self) -> str:
        """Return the errors in one line for people."""
        if not self.total:
            return "no image has a prediction"
        return f"ECE {100 * self.ece:.2f} %, NLL {self.nll:.4f}, Brier score {self.brier:.4f}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types; :meth:`from_dict` takes them back.

        JSON has neither NaN nor infinity: an error is None without images, and an NLL that is infinite too.
        """
        errors = {name: getattr(self, name) for name in ("ece", "nll", "brier")}
        return {
            **{name: value if math.isfinite(value) else None for name, value in errors.items()},
            "bins": {
                "images": self.images.astype(np.int64).tolist(), "correct": self.correct.astype(np.int64).tolist(),
                "confidence": self.confidence.tolist(),
            },
        }  # fmt: skip

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Calibration:
        """Return what :meth:`to_dict` gave, to the rounding of a division."""
        images, correct, confidence = (
            np.asarray(found["bins"][name], np.float64) for name in ("images", "correct", "confidence")
        )
        nll, brier = (
            0.0
            if not images.any()
            else math.inf
            if found[name] is None
            else found[name] * float(images.sum())
            for name in ("nll", "brier")
        )
        return cls(images=images, correct=correct, confidence=confidence, nll_sum=nll, brier_sum=brier)

    def to_array(self) -> NDArray[np.float64]:
        """Return float64 (3 · BINS + 2,), fit for a sum over ranks; :meth:`from_array` takes it back."""
        return np.concatenate(
            [self.images, self.correct, self.confidence, [self.nll_sum, self.brier_sum]], dtype=np.float64
        )

    @classmethod
    def from_array(cls, array: NDArray[np.float64]) -> Calibration:
        """Build from the form of :meth:`to_array`."""
        images, correct, confidence, (nll, brier) = np.split(array, [BINS, 2 * BINS, 3 * BINS])
        return cls(
            images=images, correct=correct, confidence=confidence, nll_sum=float(nll), brier_sum=float(brier)
        )


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """The `value` that logits are divided by; `bounded` True where no temperature in the range is the best.

    That is so for a network that is right on every image (the colder, the better), or no better than guessing.
    """

    value: float
    bounded: bool


def fit_temperature(
    logits: NDArray[Any],
    labels: NDArray[Any],
    add_up: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda values: values,
) -> Temperature:
    """Return the temperature T in [:data:`COOLEST`, :data:`HOTTEST`] that minimises the NLL of softmax(logits / T).

    `logits` (N, classes) without NaN, `labels` integers (N,). `add_up` sums float64 arrays over ranks, each of which
    has a part of the rows; all get the same temperature. Raises ValueError without rows.

    The NLL is convex in 1 / T, so Newton's method within a bracket finds the minimum, in float64. Source: Guo et al.,
    arXiv:1706.04599, section 4.2.
    """
    low, high = 1 / HOTTEST, 1 / COOLEST  # of 1 / T
    inverse = 1.0
    for _ in range(200):
        rows, wrong, slope, curvature = add_up(_derivatives(logits, labels, inverse)).tolist()
        if not rows:
            raise ValueError("no rows to fit a temperature to")
        if not wrong:  # the slope would vanish in rounding before the end of the range
            return Temperature(value=COOLEST, bounded=True)
        if slope > 0:
            high = inverse
        elif slope < 0:
            low = inverse
        else:
            break
        following = inverse - slope / curvature if curvature > 0 else float("nan")
        if not low < following < high:
            following = float(np.sqrt(low * high))
        if abs(following - inverse) <= 1e-12 * inverse:
            break
        inverse = following
    bounded = inverse <= 1.0001 / HOTTEST or inverse >= 0.9999 / COOLEST
    return Temperature(value=1 / inverse, bounded=bounded)


def _derivatives(logits: NDArray[Any], labels: NDArray[Any], inverse: float) -> NDArray[np.float64]:
    """Return the number of rows, of the wrong ones, and the sums of the first two derivatives of the NLL by 1 / T."""
    total = np.zeros(4)
    for start in range(0, len(labels), _ROWS):
        part = np.asarray(logits[start : start + _ROWS], np.float64)
        true = part[np.arange(len(part)), labels[start : start + _ROWS]]
        probabilities = softmax(part * inverse)
        mean = (probabilities * part).sum(axis=1)
        variance = (probabilities * np.square(part - mean[:, None])).sum(axis=1)
        wrong = int((part.max(axis=1) > true).sum())
        total += (len(part), wrong, float((mean - true).sum()), float(variance.sum()))
    return total
