"""Counting what a classifier got right: exact integers, their intervals, per-class rates; and latencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.errors import DataError
from resnext_core.metrics import METRICS

#: Integers in front of the confusion matrix in :meth:`Counts.to_array`.
_HEAD = ("correct1", "correct5", "scored", "failed", "nan_rows")


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the score interval (low, high) of the share correct / total; z = 1.959964 makes it 95 %.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    Without any trial it is (0, 1). Raises ValueError unless 0 <= correct <= total.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"{correct} correct of {total}")
    if total == 0:
        return 0.0, 1.0
    share, z2 = correct / total, z * z
    centre = share + z2 / (2 * total)
    spread = z * math.sqrt((share * (1 - share) + z2 / (4 * total)) / total)
    scale = 1 + z2 / total
    # The ends are exact where the share is 0 or 1; rounding must not push them off.
    low = 0.0 if correct == 0 else max((centre - spread) / scale, 0.0)
    high = 1.0 if correct == total else min((centre + spread) / scale, 1.0)
    return low, high


def paired_interval(lost: int, gained: int, images: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the interval (low, high) of (lost - gained) / images; z = 1.959964 makes it 95 %.

    It is by how much the share of right answers falls from one model to another on the same `images`: the first alone
    has `lost` of them right, the second alone `gained`. What both have right or wrong says nothing about their
    difference. It is Wald's interval of a difference of paired shares with half an image added to each of the four
    cells of the table: A. Agresti, Y. Min, "Simple improved confidence intervals for comparing matched proportions",
    Statistics in Medicine 24 (2005). Raises ValueError for counts that cannot be.
    """
    if images < 1 or min(lost, gained) < 0 or lost + gained > images:
        raise ValueError(f"{lost} lost and {gained} gained of {images} images")
    total, apart, either = images + 2, lost - gained, lost + gained + 1
    spread = z * math.sqrt(either - apart * apart / total) / total
    return max(apart / total - spread, -1.0), min(apart / total + spread, 1.0)


@dataclass(kw_only=True, eq=False)
class Counts:
    """Integer counts of an evaluation, accumulated batch by batch and summed over ranks.

    `correct1` and `correct5` are samples whose true class has rank 0, or below 5; the rank is the number of
    classes with a strictly greater logit plus those of equal logit and lower index. `scored` samples had
    logits, `failed` ones could not be decoded. A row with a NaN logit is scored and wrong; it has no
    prediction, so it is counted in `nan_rows` and not in `confusion`, int64 (classes, classes) indexed
    [true, predicted]. `support` int64 (classes,) counts the samples of each class, scored or failed. Always:
    confusion.sum() + nan_rows == scored, confusion.trace() == correct1 and support.sum() == expected.
    """

    confusion: NDArray[np.int64]
    support: NDArray[np.int64]
    correct1: int = 0
    correct5: int = 0
    scored: int = 0
    failed: int = 0
    nan_rows: int = 0

    @classmethod
    def zeros(cls, num_classes: int) -> Counts:
        """Return empty counts for `num_classes` classes."""
        return cls(
            confusion=np.zeros((num_classes, num_classes), np.int64), support=np.zeros(num_classes, np.int64)
        )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.confusion)

    @property
    def expected(self) -> int:
        """Samples that were to be scored: the denominator, which failures never shrink."""
        return self.scored + self.failed

    def metrics(self) -> dict[str, float]:
        """Return every metric by name; NaN where there is nothing to count."""
        return {name: float(metric.compute(self)) for name, metric in METRICS.items()}

    def add(
        self, logits: NDArray[Any], labels: NDArray[Any], valid: NDArray[np.bool_] | None = None
    ) -> Counts:
        """Count a batch in place and return self.

        `logits` (N, classes) of any float type, `labels` integers (N,), `valid` bool (N,): False rows
        (padding) are not looked at; None means all rows. Raises DataError where a valid row has no label of
        this network, ValueError where shapes do not fit.
        """
        logits, labels = np.asarray(logits), np.asarray(labels)
        if logits.ndim != 2 or logits.shape[1] != self.num_classes or labels.shape != (len(logits),):
            raise ValueError(
                f"logits {logits.shape} and labels {labels.shape} for {self.num_classes} classes"
            )
        if valid is not None:
            valid = np.asarray(valid, dtype=bool)
            if valid.shape != labels.shape:
                raise ValueError(f"valid {valid.shape} for labels {labels.shape}")
            logits, labels = logits[valid], labels[valid]
        unknown = (labels < 0) | (labels >= self.num_classes)
        if unknown.any():
            raise DataError(
                f"label {labels[unknown][0]} is none of the network's {self.num_classes} classes: "
                "evaluate on data with the classes it was trained on"
            )
        bad = np.isnan(logits).any(axis=1)
        rank = true_rank(logits, labels)
        self.scored += len(labels)
        np.add.at(self.support, labels, 1)
        self.nan_rows += int(bad.sum())
        self.correct1 += int((rank < 1).sum())
        self.correct5 += int((rank < 5).sum())
        predicted = np.argmax(logits[~bad], axis=1)  # the first of equals, as in the rank
        np.add.at(self.confusion, (labels[~bad], predicted), 1)
        return self

    def add_failed(self, labels: NDArray[Any]) -> Counts:
        """Count samples of classes `labels`, integers (N,), that could not be decoded, in place; return self."""
        np.add.at(self.support, labels, 1)
        self.failed += len(labels)
        return self

    def to_array(self) -> NDArray[np.int64]:
        """Return int64 (5 + classes + classes²,), fit for an all-reduce sum; :meth:`from_array` takes it back."""
        head = np.array([getattr(self, name) for name in _HEAD], dtype=np.int64)
        return np.concatenate([head, self.support, self.confusion.ravel()])

    @classmethod
    def from_array(cls, array: NDArray[np.int64]) -> Counts:
        """Build from :meth:`to_array`'s form; ValueError when the size or type does not fit."""
        classes = math.isqrt(max(len(array) - len(_HEAD), 0))  # the largest whose square fits
        if array.dtype != np.int64 or array.shape != (len(_HEAD) + classes + classes * classes,):
            raise ValueError(f"not an array of counts: {array.dtype} {array.shape}")
        head, support, confusion = np.split(array, [len(_HEAD), len(_HEAD) + classes])
        counts = dict(zip(_HEAD, head.tolist(), strict=True))
        return cls(confusion=confusion.reshape(classes, classes).copy(), support=support.copy(), **counts)


def true_rank(logits: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.int64]:
    """Return int64 (N,): the rank of each row's true class, 0 when it is the prediction.

    The rank is the number of classes with a strictly greater logit, plus those of equal logit and lower
    index, so exactly one class has each rank. Rows with a NaN have the number of classes or 5, whichever is
    more: wrong for top-1 and top-5 alike.
    """
    true = np.take_along_axis(logits, labels[:, None].astype(np.int64), axis=1)
    greater = (logits > true).sum(axis=1)
    ties = ((logits == true) & (np.arange(logits.shape[1]) < labels[:, None])).sum(axis=1)
    wrong = max(logits.shape[1], 5)
    return np.where(np.isnan(logits).any(axis=1), wrong, greater + ties).astype(np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class PerClass:
    """Rates of each class, arrays of (classes,): float64, NaN where undefined; `support` int64.

    `precision` is undefined for a class that was never predicted, `recall` for one without samples.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]


def per_class(confusion: NDArray[np.int64], support: NDArray[np.int64] | None = None) -> PerClass:
    """Return precision, recall, F1 = 2·TP / (2·TP + FP + FN) and support from counts [true, predicted].

    `support` int64 (classes,) are the images of each class where some have no prediction; None: the sum over those.
    """
    hit = np.diagonal(confusion).astype(np.float64)
    predicted = confusion.sum(axis=0)
    support = confusion.sum(axis=1) if support is None else support
    with np.errstate(invalid="ignore"):
        return PerClass(
            precision=hit / predicted,
            recall=hit / support,
            f1=2 * hit / (predicted + support),
            support=support.astype(np.int64),
        )


def confused_pairs(confusion: NDArray[np.int64], limit: int) -> list[tuple[int, int, int]]:
    """Return up to `limit` (true, predicted, count) off the diagonal, most frequent first, then by index."""
    errors = confusion.astype(np.int64)
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:limit]
    rows, columns = np.unravel_index(order, errors.shape)
    return [(int(t), int(p), int(errors[t, p])) for t, p in zip(rows, columns, strict=True) if errors[t, p]]


def percentiles(samples_s: Sequence[float] | NDArray[Any]) -> dict[str, float]:
    """Return p50, p90, p99 (linear between samples) and mean, in milliseconds, of durations in seconds.

    Raises ValueError without samples.
    """
    samples = np.asarray(samples_s, dtype=np.float64)
    if samples.size == 0:
        raise ValueError("no durations to take percentiles of")
    p50, p90, p99 = np.percentile(samples, [50, 90, 99]) * 1e3
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "mean": float(samples.mean() * 1e3)}


def below_largest(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return logits less the largest along the last axis, float64: 0 for that one, and where it is infinite too.

    An engine of float16 can overflow to an infinite logit, which still is a prediction. Rows with a NaN are NaN.
    """
    logits = np.asarray(logits, np.float64)
    largest = logits.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        result: NDArray[np.float64] = logits - largest
    if np.isinf(largest).any():
        result[(logits == largest) & np.isinf(largest)] = 0.0
    return result


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return probabilities along the last axis in float64; those of infinite logits are the limit."""
    exponentials = np.exp(below_largest(logits))
    result: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result
