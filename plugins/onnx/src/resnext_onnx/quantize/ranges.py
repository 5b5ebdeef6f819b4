"""Ranges of activations from their histograms: minmax, percentiles, entropy and least squared error.

A range is where 8 bits are spent; what lies outside is cut off. Each rule below is applied to one value of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

#: Steps of 8 bits.
LEVELS = 255
#: The parts of the full range that entropy and mse choose from.
SHARES = np.linspace(0.1, 1.0, 91)
#: What stands for a probability of 0 in the divergence, as in NVIDIA's description of the method.
_EMPTY = 1e-4


@dataclass(frozen=True, kw_only=True)
class Range:
    """The part `low` to `high` of the real numbers that 8 bits represent; it always holds 0."""

    low: float
    high: float

    def scaled(self, share: float) -> Range:
        """Return the range with both ends brought nearer to 0."""
        return Range(low=self.low * share, high=self.high * share)


class Histogram:
    """Counts of values in bins of equal width on each side of 0, which grows by doubling.

    The width is a power of two, so that a value's bin is exact and the counts depend neither on the order of the
    values nor on how they were split into calls. `counts` is int64 (2, BINS): row 0 has the values from 0 on, row 1
    those below, by magnitude.
    """

    BINS = 4096

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros((2, self.BINS), np.int64)
        self.exponent: int | None = None
        self.low, self.high = 0.0, 0.0

    @property
    def width(self) -> float:
        """The width of a bin."""
        return 0.0 if self.exponent is None else 2.0**self.exponent / self.BINS

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def add(self, values: NDArray[np.float32]) -> None:
        """Count finite `values` of any shape; ValueError where some are not finite."""
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("values that are not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(high, -low)
        if largest > 0:
            self._grow(int(np.frexp(largest)[1]))
        if self.exponent is None:  # nothing but zeros so far
            self.counts[0, 0] += values.size
            return
        bins = (values.ravel() * np.float32(1 / self.width)).astype(np.int32)  # a power of two: exact
        negative = values.ravel() < 0
        if low >= 0:
            self.counts[0] += np.bincount(bins, minlength=self.BINS)
        else:
            self.counts[0] += np.bincount(bins[~negative], minlength=self.BINS)
            self.counts[1] += np.bincount(-bins[negative], minlength=self.BINS)

    def _grow(self, exponent: int) -> None:
        if self.exponent is None or exponent <= self.exponent:
            self.exponent = exponent if self.exponent is None else self.exponent
            return
        merged = min(1 << (exponent - self.exponent), self.BINS)
        folded = self.counts.reshape(2, self.BINS // merged, merged).sum(axis=2)
        self.counts = np.zeros_like(self.counts)
        self.counts[:, : folded.shape[1]] = folded
        self.exponent = exponent

    def line(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the middles of the bins from the lowest to the highest value, and their counts.

        The bin of 0 is at 0, where the values that a ReLU cut are.
        """
        middles = (np.arange(self.BINS) + 0.5) * self.width
        centers = np.concatenate([-middles[::-1], middles])
        centers[self.BINS] = 0.0
        counts = np.concatenate([self.counts[1, ::-1], self.counts[0]])
        used = np.flatnonzero(counts)
        part = slice(used[0], used[-1] + 1) if len(used) else slice(0, 0)
        return centers[part], counts[part]


def minmax(histogram: Histogram) -> Range:
    """Return the range from the smallest to the largest value."""
    return Range(low=histogram.low, high=histogram.high)


def percentile(histogram: Histogram, share: float) -> Range:
    """Return the range that holds `share` percent of the values, to the width of a bin.

    What is left out is cut off at the top, or half of it at each end where there are values below 0.
    """
    spare = (100 - share) / 100 * histogram.total / (2 if histogram.low < 0 else 1)
    spare = round(spare, 6)  # 100 - 99.9 is a little less than 0.1
    low = -_quantile(histogram.counts[1], spare, histogram.width)
    high = _quantile(histogram.counts[0], spare, histogram.width)
    return Range(low=max(low, histogram.low), high=min(high, histogram.high))


def _quantile(counts: NDArray[np.int64], spare: float, width: float) -> float:
    """Return the end of the lowest bin above which at most `spare` values lie."""
    above = counts[::-1].cumsum()[::-1] - counts
    return float(width * (np.argmax(above <= spare) + 1))


def mse(histogram: Histogram) -> Range:
    """Return the part of the full range with the least mean squared error of 8 bits, of :data:`SHARES`."""
    centers, counts = histogram.line()

    def error(cut: Range) -> float:
        return float((counts * (_rounded(centers, cut) - centers) ** 2).sum())

    return _best(histogram, error)


def entropy(histogram: Histogram) -> Range:
    """Return the part of the full range whose 8 bits keep most of the distribution, of :data:`SHARES`.

    The measure is the Kullback-Leibler divergence of the distribution in 8 bits from the one that is cut to the range
    (S. Migacz, "8-bit inference with TensorRT", GTC 2017). In 8 bits the counts of the bins that share a step are
    spread evenly over those of them that are not empty; what lies outside is in the last bins of the distribution, and
    not in 8 bits.
    """
    centers, counts = histogram.line()

    def error(cut: Range) -> float:
        inside = (centers >= cut.low - histogram.width / 2) & (centers <= cut.high + histogram.width / 2)
        kept = counts[inside].astype(np.float64)
        places = np.flatnonzero(inside)
        full = kept.copy()
        full[0] += counts[: places[0]].sum()
        full[-1] += counts[places[-1] + 1 :].sum()
        step = _steps(centers[inside], cut)
        step -= step.min()
        filled = (kept > 0).astype(np.float64)
        mean = np.bincount(step, kept) / np.maximum(np.bincount(step, filled), 1)
        spread = mean[step] * filled
        p, q = full / full.sum(), spread / max(spread.sum(), 1.0)
        q = np.where((q == 0) & (p > 0), _EMPTY, q)
        some = p > 0
        return float((p[some] * np.log(p[some] / q[some])).sum())

    return _best(histogram, error)


def _best(histogram: Histogram, error: Callable[[Range], float]) -> Range:
    full = minmax(histogram)
    if full.low == full.high:
        return full
    cuts = [full.scaled(float(share)) for share in SHARES]
    return cuts[int(np.argmin([error(cut) for cut in cuts]))]


def _steps(values: NDArray[np.float64], cut: Range) -> NDArray[np.int64]:
    scale = (cut.high - cut.low) / LEVELS
    zero = np.rint(-cut.low / scale)
    steps: NDArray[np.int64] = np.clip(np.rint(values / scale) + zero, 0, LEVELS).astype(np.int64)
    return steps


def _rounded(values: NDArray[np.float64], cut: Range) -> NDArray[np.float64]:
    scale = (cut.high - cut.low) / LEVELS
    found: NDArray[np.float64] = (_steps(values, cut) - np.rint(-cut.low / scale)) * scale
    return found


#: The rules by name.
METHODS: Mapping[str, Callable[[Histogram], Range]] = {
    "minmax": minmax,
    "entropy": entropy,
    "mse": mse,
    "percentile 99.9": partial(percentile, share=99.9),
    "percentile 99.99": partial(percentile, share=99.99),
    "percentile 99.999": partial(percentile, share=99.999),
}
