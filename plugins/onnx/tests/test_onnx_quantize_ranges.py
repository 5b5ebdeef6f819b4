"""Histograms and the ranges from them, against NumPy on the values themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from resnext_onnx.quantize.ranges import (
    LEVELS,
    METHODS,
    SHARES,
    Histogram,
    Range,
    entropy,
    minmax,
    mse,
    percentile,
)


def histogram(*parts: np.ndarray) -> Histogram:
    found = Histogram()
    for part in parts:
        found.add(part.astype(np.float32))
    return found


def signed(seed: int = 0, count: int = 20_000) -> np.ndarray:
    values = np.random.default_rng(seed).standard_t(4, count) * 0.7
    return values.astype(np.float32)


def relu(seed: int = 0) -> np.ndarray:
    return np.maximum(signed(seed), 0)


VALUES = {
    "signed": signed(),
    "relu": relu(),
    "mostly negative": signed(1) - np.float32(3),
    "narrow": signed() * 1e-6,
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_histogram_counts_what_numpy_counts(values):
    found = histogram(values)
    edges = found.width * np.arange(Histogram.BINS + 1)
    assert found.total == len(values)
    assert (found.low, found.high) == (min(values.min(), 0), values.max())
    np.testing.assert_array_equal(found.counts[0], np.histogram(values[values >= 0], edges)[0])
    # Below 0 a value at the edge of two bins is in the one that is farther from 0, as above 0.
    np.testing.assert_array_equal(found.counts[1], np.histogram(-values[values < 0], edges)[0])
    assert found.width * Histogram.BINS / 2 <= np.abs(values).max() < found.width * Histogram.BINS


def test_counts_depend_neither_on_the_order_nor_on_the_parts():
    values = np.concatenate([signed(), 100 * signed(2), np.zeros(50, np.float32), 1e-4 * signed(3)])
    whole = histogram(values)
    for parts in (
        np.array_split(values, 5),
        np.split(values[::-1], [1, 7, 900]),
        np.array_split(np.sort(values), 3),
    ):
        again = histogram(*parts)
        np.testing.assert_array_equal(again.counts, whole.counts)
        assert (again.exponent, again.low, again.high) == (whole.exponent, whole.low, whole.high)


@pytest.mark.parametrize("rule", METHODS.values(), ids=METHODS)
def test_values_that_are_all_zero_have_an_empty_range(rule):
    assert rule(histogram(np.zeros(100))) == Range(low=0.0, high=0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        histogram(np.array([1.0, bad]))


@pytest.mark.parametrize("rule", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_a_range_lies_in_that_of_the_values(values, rule):
    full, cut = minmax(histogram(values)), rule(histogram(values))
    assert full.low <= cut.low <= 0
    assert 0 <= cut.high <= full.high
    assert cut.low < cut.high


@pytest.mark.parametrize("share", [90, 99, 99.9, 100])
@pytest.mark.parametrize("values", [VALUES["signed"], VALUES["relu"]], ids=["signed", "relu"])
def test_percentiles_end_with_the_bin_of_the_largest_value_kept(values, share):
    found, width = percentile(histogram(values), share), histogram(values).width

    def end(side: np.ndarray) -> float:
        spare = (100 - share) / 100 * len(values) / (2 if values.min() < 0 else 1)
        kept = np.sort(side)[::-1][int(np.floor(spare + 1e-9))]
        return min((np.floor(kept / width) + 1) * width, float(side.max()))

    assert found.high == end(values)
    assert found.low == (-end(-values) if values.min() < 0 else 0)
    # And so they are NumPy's, to the distance of two values.
    numpys = np.percentile(values, 100 - (100 - share) / (2 if values.min() < 0 else 1))
    assert found.high == pytest.approx(numpys, rel=0.05)


def rounded(values: np.ndarray, cut: Range) -> np.ndarray:
    """Values in 8 bits by the definition of QuantizeLinear."""
    scale = (cut.high - cut.low) / LEVELS
    zero = round(-cut.low / scale)
    return (np.clip(np.rint(values / scale) + zero, 0, LEVELS) - zero) * scale


LAPLACE = np.random.default_rng(8).laplace(0, 1, 100_000).astype(np.float32)


@pytest.mark.parametrize("values", [LAPLACE, np.maximum(LAPLACE, 0)], ids=["signed", "relu"])
def test_mse_has_nearly_the_least_error_of_the_values_themselves(values):
    found, full = mse(histogram(values)), minmax(histogram(values))
    errors = [float(((rounded(values, full.scaled(s)) - values) ** 2).mean()) for s in SHARES]
    assert float(((rounded(values, found) - values) ** 2).mean()) <= 1.02 * min(errors)
    assert min(errors) < 0.95 * errors[-1]  # cutting pays here, so the test can fail


def divergence(values: np.ndarray, cut: Range, found: Histogram) -> float:
    """The same measure bin by bin, in plain Python."""
    centers, counts = (part.tolist() for part in found.line())
    inside = [
        i for i, c in enumerate(centers) if cut.low - found.width / 2 <= c <= cut.high + found.width / 2
    ]
    p = [float(counts[i]) for i in inside]
    p[0] += sum(counts[: inside[0]])
    p[-1] += sum(counts[inside[-1] + 1 :])
    scale = (cut.high - cut.low) / LEVELS
    groups: dict[int, list[int]] = {}
    for i in inside:
        step = min(max(round(centers[i] / scale) + round(-cut.low / scale), 0), LEVELS)
        groups.setdefault(step, []).append(i)
    q = dict.fromkeys(inside, 0.0)
    for members in groups.values():
        full = [i for i in members if counts[i]]
        for i in full:
            q[i] = sum(counts[j] for j in members) / len(full)
    total = sum(q.values())
    share = [x / sum(p) for x in p]
    return sum(a * math.log(a / (q[i] / total or 1e-4)) for a, i in zip(share, inside, strict=True) if a)


@pytest.mark.parametrize("values", [signed(6, 3000), np.maximum(signed(7, 3000), 0)], ids=["signed", "relu"])
def test_entropy_takes_the_least_divergence(monkeypatch, values):
    monkeypatch.setattr(Histogram, "BINS", 512)
    found = histogram(values)
    full = minmax(found)
    errors = [divergence(values, full.scaled(float(s)), found) for s in SHARES]
    best = entropy(found)
    assert best == full.scaled(float(SHARES[int(np.argmin(errors))]))
