"""Calibration: errors computed by hand, and the temperature that minimises the likelihood's loss."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from resnext_core.serving.calibration import BINS, Calibration, fit_temperature
from resnext_core.serving.metrics import softmax


def logits_of(*probabilities: float) -> NDArray[np.float64]:
    """Logits of two classes, of which the first has these probabilities."""
    return np.array([[math.log(p), math.log1p(-p)] for p in probabilities])


def test_the_errors_are_those_computed_by_hand() -> None:
    """Confidences 0.9, 0.92 (one right), 0.7 (right), 0.6 (at the end of its bin, wrong)."""
    calibration = Calibration()
    calibration.add(logits_of(0.9, 0.92, 0.7, 0.4), np.array([0, 1, 0, 0]))
    # (13/15, 14/15] holds 0.9 and 0.92, (10/15, 11/15] holds 0.7, (8/15, 9/15] holds 0.6
    assert np.flatnonzero(calibration.images).tolist() == [8, 10, 13]
    assert calibration.images[[8, 10, 13]].tolist() == [1, 1, 2]
    assert calibration.correct[[8, 10, 13]].tolist() == [0, 1, 1]
    assert calibration.ece == pytest.approx((abs(0 - 0.6) + abs(1 - 0.7) + abs(1 - 1.82)) / 4, abs=1e-12)
    by_hand = -(math.log(0.9) + math.log(0.08) + math.log(0.7) + math.log(0.4)) / 4
    assert calibration.nll == pytest.approx(by_hand, abs=1e-12)
    squares = 2 * (0.1**2 + 0.92**2 + 0.3**2 + 0.6**2) / 4
    assert calibration.brier == pytest.approx(squares, abs=1e-12)
    assert calibration.line() == f"ECE 43.00 %, NLL {by_hand:.4f}, Brier score {squares:.4f}"


def test_it_is_the_definition_of_the_paper_on_random_logits() -> None:
    """Equation 3 with its bins ((m - 1) / M, m / M], written as it stands there."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(500, 7)) * 2, rng.integers(0, 7, 500)
    probabilities = softmax(logits)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for m in range(1, BINS + 1):
        inside = (confidence > (m - 1) / BINS) & (confidence <= m / BINS)
        if inside.any():
            expected += inside.sum() / 500 * abs(right[inside].mean() - confidence[inside].mean())
    calibration = Calibration().add(logits, labels)
    assert calibration.ece == pytest.approx(expected, abs=1e-12)
    assert calibration.nll == pytest.approx(-np.log(probabilities[range(500), labels]).mean(), abs=1e-12)
    one_hot = np.eye(7)[labels]
    assert calibration.brier == pytest.approx(
        np.square(probabilities - one_hot).sum(axis=1).mean(), abs=1e-12
    )


def test_parts_add_up_and_rows_without_prediction_are_left_out() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(40, 3)).astype(np.float32), rng.integers(0, 3, 40)
    whole = Calibration().add(logits, labels)
    parts = sum(Calibration().add(logits[i::3], labels[i::3]).to_array() for i in range(3))
    assert np.allclose(Calibration.from_array(np.asarray(parts)).to_array(), whole.to_array(), atol=1e-12)
    again = Calibration.from_dict(whole.to_dict())
    assert np.allclose(again.to_array(), whole.to_array(), atol=1e-12)
    logits[5, 1] = np.nan
    assert Calibration().add(logits, labels).total == 39
    assert math.isnan(Calibration().ece)
    assert Calibration.from_dict(Calibration().to_dict()).total == 0


@pytest.mark.parametrize("true", [0.25, 1.0, 3.7])
def test_the_temperature_of_labels_drawn_at_one_is_found(true: float) -> None:
    """Against a search on a fine grid; and labels drawn with a temperature give about that one."""
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(3000, 5)) * 2
    shares = softmax(logits / true)
    labels = np.array([rng.choice(5, p=p) for p in shares])
    found = fit_temperature(logits.astype(np.float32), labels)
    assert not found.bounded
    assert found.value == pytest.approx(true, rel=0.1)
    grid = found.value * np.linspace(0.9, 1.1, 401)
    nll = [Calibration().add(logits, labels, t).nll for t in grid]
    assert grid[int(np.argmin(nll))] == pytest.approx(found.value, rel=6e-4)


def test_ranks_find_the_same_temperature() -> None:
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=(50, 4)) * 3, rng.integers(0, 4, 50)
    whole = fit_temperature(logits, labels)

    def add_up(own: NDArray[np.float64]) -> NDArray[np.float64]:
        """Stand for a second rank that has the same rows: the minimum stays."""
        return 2 * own

    assert fit_temperature(logits, labels, add_up).value == pytest.approx(whole.value, rel=1e-9)


def test_no_best_temperature_is_said() -> None:
    right = np.eye(3)[[0, 1, 2, 1]] * 2
    assert fit_temperature(right, np.array([0, 1, 2, 1])).bounded, "the colder the better"
    assert fit_temperature(right * 1e4, np.array([0, 1, 2, 1])).bounded, "nothing to gain"
    assert fit_temperature(right, np.array([1, 2, 0, 0])).bounded, "the hotter the better"
    with pytest.raises(ValueError, match="no rows"):
        fit_temperature(np.zeros((0, 3)), np.zeros(0, np.int64))


def test_infinite_logits_count_as_what_they_tend_to() -> None:
    """As a float16 engine's overflow: the row is a prediction with confidence 1, and the others keep their errors."""
    one, inf = np.array([[1.0, 0.0, 0.0]]), math.inf
    calibration = Calibration().add(
        np.array([*one, [inf, 0.0, 1.0], [inf, inf, 0.0], [-inf, -inf, -inf]]), np.array([0, 0, 1, 2])
    )
    share = math.e / (math.e + 2)
    assert calibration.confidence.sum() == pytest.approx(share + 1 + 1 / 2 + 1 / 3, abs=1e-12)
    assert calibration.nll == pytest.approx((-math.log(share) + math.log(2) + math.log(3)) / 4, abs=1e-12)
    assert softmax(np.array([-inf, 0.0, inf])).tolist() == [0, 0, 1]
    assert softmax(np.array([inf, 0.0, inf], np.float16)).tolist() == [0.5, 0, 0.5]


def test_errors_that_are_no_numbers_are_null_in_json() -> None:
    """JSON has no NaN: other programs could not read it."""
    nothing, wrong = Calibration(), Calibration().add(np.array([[math.inf, 0.0]]), np.array([1]))
    assert wrong.nll == math.inf
    for calibration in (nothing, wrong):
        found = json.loads(json.dumps(calibration.to_dict(), allow_nan=False))
        again = Calibration.from_dict(found)
        assert again.to_array().tolist() == calibration.to_array().tolist()
    assert nothing.to_dict()["ece"] is None
    assert wrong.to_dict()["nll"] is None
    assert nothing.line() == "no image has a prediction"
