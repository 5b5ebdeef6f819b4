"""Counting: against hand-made cases, brute force and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnext_core.errors import DataError
from resnext_core.serving.metrics import (
    Counts,
    confused_pairs,
    paired_interval,
    per_class,
    percentiles,
    softmax,
    true_rank,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_published_numbers(correct: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_edges() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 7)[0] == 0.0
    assert wilson_interval(7, 7)[1] == 1.0
    with pytest.raises(ValueError, match="8 correct of 7"):
        wilson_interval(8, 7)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_share_and_mirrors(case: tuple[int, int]) -> None:
    correct, total = case
    low, high = wilson_interval(correct, total)
    assert 0 <= low <= correct / total <= high <= 1
    assert wilson_interval(total - correct, total) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(
    ("lost", "gained", "images"), [(0, 0, 1), (5, 2, 40), (2, 5, 40), (16, 8, 86), (0, 3, 3)]
)
def test_paired_interval_is_that_of_the_differences_of_the_rows(lost: int, gained: int, images: int) -> None:
    # One number an image: 1 lost, -1 gained, 0 else. With half an image more in each cell, of weight 1/2.
    values = np.repeat([1.0, -1.0, 0.0], [lost, gained, images - lost - gained])
    values, weights = np.append(values, [1, -1, 0, 0]), np.append(np.ones(images), [0.5] * 4)
    mean = np.average(values, weights=weights)
    error = 1.959964 * np.sqrt(np.average((values - mean) ** 2, weights=weights) / weights.sum())
    want = max(mean - error, -1), min(mean + error, 1)
    assert paired_interval(lost, gained, images) == pytest.approx(want, abs=1e-12)


def test_paired_interval_covers_the_truth_and_refuses_counts_that_cannot_be() -> None:
    shares, images = (0.04, 0.02, 0.94), 300
    drawn = np.random.default_rng(0).multinomial(images, shares, 4000)
    ends = np.array([paired_interval(lost, gained, images) for lost, gained, _ in drawn.tolist()])
    covered = ((ends[:, 0] <= 0.02) & (ends[:, 1] >= 0.02)).mean()
    assert 0.935 <= covered <= 0.975
    for wrong in ((-1, 0, 5), (0, -1, 5), (3, 3, 5), (0, 0, 0)):
        with pytest.raises(ValueError, match="lost and"):
            paired_interval(*wrong)


def test_rank_breaks_ties_by_index_and_marks_nan_wrong() -> None:
    nan, inf = np.nan, np.inf
    logits = np.array([[1, 1, 0], [1, 1, 0], [0, 3, 2], [5, nan, 1], [-inf, -inf, inf]], dtype=np.float32)
    assert true_rank(logits, np.array([0, 1, 0, 0, 0])).tolist() == [0, 1, 2, 5, 1]


@settings(max_examples=80, deadline=None)
@given(data=st.data(), classes=st.integers(1, 9), rows=st.integers(0, 12))
def test_counts_match_a_stable_sort(data: st.DataObject, classes: int, rows: int) -> None:
    def draw(element: st.SearchStrategy, size: int) -> np.ndarray:
        return np.array(data.draw(st.lists(element, min_size=size, max_size=size)))

    # Few distinct values, so that ties are common.
    logits = draw(st.integers(-2, 2), rows * classes).astype(np.float32).reshape(rows, classes)
    labels = draw(st.integers(0, classes - 1), rows).astype(int)
    valid = draw(st.booleans(), rows).astype(bool)
    counts = Counts.zeros(classes).add(logits, labels, valid)
    top1 = top5 = 0
    for row, label, ok in zip(logits, labels, valid, strict=True):
        order = sorted(range(classes), key=lambda c, row=row: (-row[c], c))
        top1 += bool(ok) and order[0] == label
        top5 += bool(ok) and label in order[:5]
    assert (counts.correct1, counts.correct5, counts.scored) == (top1, top5, valid.sum())
    assert counts.confusion.trace() == top1
    assert counts.confusion.sum() == counts.scored


def test_counts_do_not_depend_on_batches_or_ranks() -> None:
    rng = np.random.default_rng(7)
    logits = rng.standard_normal((103, 11)).astype(np.float16)
    labels = rng.integers(0, 11, 103)
    whole = Counts.zeros(11).add(logits, labels).add_failed(np.array([3, 10]))
    ranks = [Counts.zeros(11) for _ in range(4)]
    for start in range(0, 103, 16):  # the last batch is padded to 16 and masked
        part = slice(start, start + 16)
        pad = 16 - len(labels[part])
        padded = np.concatenate([logits[part], np.full((pad, 11), np.nan, np.float16)])
        padded_labels = np.concatenate([labels[part], np.full(pad, -1)])
        ranks[start // 16 % 4].add(padded, padded_labels, np.arange(16) < 16 - pad)
    ranks[1].add_failed(np.array([10]))
    ranks[3].add_failed(np.array([3]))
    summed = Counts.from_array(np.sum([r.to_array() for r in ranks], axis=0))
    assert summed.to_array().tolist() == whole.to_array().tolist()
    assert (summed.scored, summed.failed, summed.expected, summed.nan_rows) == (103, 2, 105, 0)
    assert (
        summed.support.tolist()
        == (np.bincount(labels, minlength=11) + np.eye(11, dtype=int)[[3, 10]].sum(0)).tolist()
    )
    assert summed.metrics() == whole.metrics()
    assert summed.metrics()["top1"] == whole.correct1 / 105
    assert summed.metrics()["top5"] == whole.correct5 / 105


def test_nan_rows_are_scored_wrong_and_predict_nothing() -> None:
    logits = np.array([[np.nan, 0.0], [3.0, 0.0]])
    counts = Counts.zeros(2).add(logits, np.array([0, 0]))
    assert (counts.correct1, counts.correct5, counts.scored, counts.nan_rows) == (1, 1, 2, 1)
    assert counts.confusion.tolist() == [[1, 0], [0, 0]]


def test_empty_counts() -> None:
    counts = Counts.zeros(3)
    assert all(map(np.isnan, counts.metrics().values()))
    assert counts.add(np.zeros((0, 3)), np.zeros(0, int)).scored == 0


def test_counts_refuse_what_cannot_be_scored() -> None:
    with pytest.raises(DataError, match="label 3 is none of the network's 3 classes"):
        Counts.zeros(3).add(np.zeros((1, 3)), np.array([3]))
    with pytest.raises(DataError, match="label -1"):
        Counts.zeros(3).add(np.zeros((1, 3)), np.array([-1]))
    with pytest.raises(ValueError, match="for 3 classes"):
        Counts.zeros(3).add(np.zeros((1, 4)), np.array([0]))
    with pytest.raises(ValueError, match="valid"):
        Counts.zeros(3).add(np.zeros((1, 3)), np.array([0]), np.array([True, False]))
    for array in (np.zeros(4, np.int64), np.zeros(8, np.int64), np.zeros(14)):
        with pytest.raises(ValueError, match="not an array of counts"):
            Counts.from_array(array)


def test_per_class_agrees_with_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    true, predicted = rng.integers(0, 6, 200), rng.integers(0, 6, 200)
    confusion = np.zeros((6, 6), np.int64)
    np.add.at(confusion, (true, predicted), 1)
    result = per_class(confusion)
    precision, recall, f1, support = sklearn.precision_recall_fscore_support(true, predicted)
    np.testing.assert_allclose(result.precision, precision)
    np.testing.assert_allclose(result.recall, recall)
    np.testing.assert_allclose(result.f1, f1)
    np.testing.assert_array_equal(result.support, support)


def test_per_class_is_undefined_rather_than_zero() -> None:
    result = per_class(np.array([[2, 0, 0], [1, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(result.precision, [2 / 3, np.nan, np.nan])
    np.testing.assert_allclose(result.recall, [1, 0, np.nan])
    np.testing.assert_allclose(result.f1, [0.8, 0, np.nan])


def test_confused_pairs() -> None:
    confusion = np.array([[9, 1, 4], [4, 9, 0], [0, 0, 9]])
    assert confused_pairs(confusion, 10) == [(0, 2, 4), (1, 0, 4), (0, 1, 1)]
    assert confused_pairs(confusion, 1) == [(0, 2, 4)]
    assert confusion.trace() == 27  # the input is left alone


def test_percentiles_in_milliseconds() -> None:
    result = percentiles([k / 1000 for k in range(1, 102)])
    assert result == pytest.approx({"p50": 51, "p90": 91, "p99": 100, "mean": 51})
    with pytest.raises(ValueError, match="no durations"):
        percentiles([])


def test_softmax() -> None:
    scipy = pytest.importorskip("scipy.special")
    logits = np.array([[1.0, 2.0, 3.0], [1e4, -1e4, 1e4]], dtype=np.float32)
    np.testing.assert_allclose(softmax(logits), scipy.softmax(logits.astype(np.float64), axis=1))
    np.testing.assert_allclose(softmax(logits[1]), [0.5, 0, 0.5])


def one_hot(predicted: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[predicted]


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("classes", [1, 2, 6, 40])  # with 40 some have no image, and some no prediction
def test_metrics_agree_with_scikit_learn(classes: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(classes)
    true = rng.integers(0, classes, 60)
    predicted = np.where(rng.random(60) < 0.5, true, rng.integers(0, classes, 60))
    found = Counts.zeros(classes).add(one_hot(predicted, classes), true).metrics()
    assert found["top1"] == sklearn.accuracy_score(true, predicted)
    assert found["balanced_accuracy"] == pytest.approx(
        sklearn.balanced_accuracy_score(true, predicted), abs=1e-12
    )
    assert found["macro_f1"] == pytest.approx(sklearn.f1_score(true, predicted, average="macro"), abs=1e-12)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_an_image_without_a_prediction_is_wrong_in_every_metric() -> None:
    """As if a class of its own had been predicted for it, over which macro-F1 does not average."""
    sklearn = pytest.importorskip("sklearn.metrics")
    true, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, -1, 1, 0, -1])
    read = predicted >= 0
    logits = one_hot(predicted, 3)
    logits[2] = np.nan
    counts = Counts.zeros(3).add(logits, true, read | (np.arange(6) == 2)).add_failed(true[5:])
    assert (counts.nan_rows, counts.failed, counts.support.tolist()) == (1, 1, [3, 2, 1])
    found = counts.metrics()
    assert found["top1"] == sklearn.accuracy_score(true, predicted)
    assert found["balanced_accuracy"] == pytest.approx(sklearn.balanced_accuracy_score(true, predicted))
    expected = sklearn.f1_score(true, predicted, labels=[0, 1, 2], average="macro")
    assert found["macro_f1"] == pytest.approx(expected)
