"""Validation of artefacts: every kind of difference is found, padding rows and labels are counted right."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from resnext_core.errors import DataError
from resnext_core.interfaces import Batch
from resnext_core.serving.validate import ValidationResult, validate

CLASSES = 5


class Linear:
    """A predictor that is a linear map of the mean colours, then `change`."""

    def __init__(self, change: Callable[[np.ndarray], np.ndarray] = lambda logits: logits) -> None:
        self.change = change
        self.matrix = np.random.default_rng(7).standard_normal((3, CLASSES))
        self.delays: Iterator[float] = iter(())
        self.clock = 0.0  # seconds; each batch takes one of `delays`, or 1 ms

    def logits(self, images: np.ndarray) -> np.ndarray:
        self.clock += next(self.delays, 0.001)
        features = images.mean(axis=(1, 2)) / 32 - 4
        return self.change((features @ self.matrix).astype(np.float32))

    def logits_from_tensor(self, tensor: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def close(self) -> None:
        pass


def make_batches(
    count: int = 3, rows: int = 4, padding: int = 0, labels: np.ndarray | None = None
) -> list[Batch]:
    """`count` batches of `rows`, the last `padding` rows of the last batch not valid."""
    rng = np.random.default_rng(1)
    batches = []
    for number in range(count):
        images = np.broadcast_to(rng.integers(0, 256, (rows, 1, 1, 3), dtype=np.uint8), (rows, 2, 2, 3))
        valid = np.ones(rows, bool)
        if number == count - 1 and padding:
            valid[-padding:] = False
        index = np.arange(number * rows, (number + 1) * rows)
        truth = np.full(rows, -1) if labels is None else labels[index]
        batches.append(Batch(images=images, labels=truth.astype(np.int32), index=index, valid=valid))
    return batches


def source_logits(batches: list[Batch]) -> np.ndarray:
    return np.concatenate([Linear().logits(b.images)[b.valid] for b in batches])


def plant(row: int, change: Callable[[np.ndarray], object]) -> Callable[[np.ndarray], np.ndarray]:
    """Change logits of `row`, counted over all calls."""
    seen = 0

    def apply(logits: np.ndarray) -> np.ndarray:
        nonlocal seen
        logits = logits.copy()
        if seen <= row < seen + len(logits):
            change(logits[row - seen])
        seen += len(logits)
        return logits

    return apply


def test_equal_predictors_pass_with_zero_difference():
    result = validate(Linear(), Linear(), make_batches())
    assert result.passed
    assert (result.images, result.nonfinite, result.disagreements, result.top1_agreement) == (12, 0, 0, 1.0)
    assert (result.max_abs_diff, result.mean_abs_diff, result.max_rel_diff) == (0.0, 0.0, 0.0)
    assert (result.labelled, result.top1_artefact, result.top1_source) == (0, None, None)


def test_differences_are_measured_over_the_whole_set():
    batches = make_batches()
    want = source_logits(batches).astype(np.float64)

    def add(row: np.ndarray) -> None:
        row[2] += 0.25

    result = validate(Linear(plant(6, add)), Linear(), batches, tolerance=1.0, min_agreement=0.0)
    assert result.max_abs_diff == pytest.approx(0.25, rel=1e-5)
    assert result.mean_abs_diff == pytest.approx(0.25 / (12 * CLASSES), rel=1e-5)
    assert result.max_rel_diff == pytest.approx(0.25 / np.abs(want).max(), rel=1e-5)
    assert result.passed


@pytest.mark.parametrize(("factor", "passed"), [(0.9, True), (1.1, False)])
def test_tolerance_is_relative_to_the_largest_source_logit(factor, passed):
    batches = make_batches()
    shift = 0.01 * factor * float(np.abs(source_logits(batches)).max())

    def add(logits: np.ndarray) -> np.ndarray:
        return logits + np.float32(shift)  # the same for every class: top-1 cannot move

    result = validate(Linear(add), Linear(), batches, tolerance=0.01)
    assert (result.disagreements, result.passed) == (0, passed)


def test_one_flipped_class_fails_by_default_and_can_be_allowed():
    batches = make_batches()

    def flip(row: np.ndarray) -> None:
        first, second = np.argsort(row)[::-1][:2]
        row[[first, second]] = row[[second, first]]

    result = validate(Linear(plant(5, flip)), Linear(), batches, tolerance=10.0)
    assert (result.disagreements, result.passed) == (1, False)
    assert result.top1_agreement == pytest.approx(11 / 12)
    assert validate(Linear(plant(5, flip)), Linear(), batches, tolerance=10.0, min_agreement=0.9).passed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["artefact", "source", "both"])
def test_logits_that_are_not_finite_fail(value, side):
    def spoil(row: np.ndarray) -> None:
        row[0] = value

    sides = [
        Linear(plant(3, spoil)) if side in (name, "both") else Linear() for name in ("artefact", "source")
    ]
    result = validate(*sides, make_batches(), tolerance=10.0, min_agreement=0.0)
    assert (result.nonfinite, result.disagreements, result.passed) == (1, 1, False)
    assert result.max_abs_diff == 0.0
    assert "1 image with NaN or infinite logits" in result.line()


def test_nothing_finite_is_a_failure_with_valid_json():
    result = validate(Linear(lambda x: x * np.nan), Linear(), make_batches(), min_agreement=0.0)
    assert not result.passed
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["max_rel_diff"] is None
    assert data["nonfinite"] == 12


def test_all_zero_logits_have_no_relative_difference_but_a_change_is_infinite():
    def zero(logits: np.ndarray) -> np.ndarray:
        return logits * 0

    assert validate(Linear(zero), Linear(zero), make_batches()).max_rel_diff == 0.0
    result = validate(Linear(lambda x: x * 0 + np.float32(1e-6)), Linear(zero), make_batches())
    assert result.max_rel_diff == np.inf
    assert not result.passed


def test_padding_rows_are_not_counted():
    def spoil(row: np.ndarray) -> None:
        row[:] = np.nan

    result = validate(Linear(plant(11, spoil)), Linear(), make_batches(padding=1))
    assert (result.images, result.passed) == (11, True)


def test_top1_counts_labelled_valid_rows_only():
    batches = make_batches()
    labels = source_logits(batches).argmax(axis=1)
    labels[0] = -1
    labels[1] = (labels[1] + 1) % CLASSES

    def lower(row: np.ndarray) -> None:
        row[row.argmax()] -= 100.0

    batches = make_batches(padding=2, labels=labels)
    result = validate(Linear(plant(4, lower)), Linear(), batches, tolerance=100.0)
    assert (result.images, result.labelled, result.disagreements) == (10, 9, 1)
    assert result.top1_source == pytest.approx(8 / 9)
    assert result.top1_artefact == pytest.approx(7 / 9)


def test_a_row_of_nan_is_right_for_nobody():
    labels = np.zeros(12, int)  # argmax of NaN is 0

    def spoil(row: np.ndarray) -> None:
        row[:] = np.nan

    batches = make_batches(labels=labels)
    first = int(np.flatnonzero(source_logits(batches).argmax(axis=1) != 0)[0])
    clean = validate(Linear(), Linear(), batches)
    spoilt = validate(Linear(plant(first, spoil)), Linear(), batches)
    assert spoilt.top1_artefact == clean.top1_artefact


def test_latency_leaves_out_the_first_batch(monkeypatch: pytest.MonkeyPatch):
    slow_start, single, source = Linear(), Linear(), Linear()
    clock = types.SimpleNamespace(perf_counter=lambda: slow_start.clock + single.clock + source.clock)
    monkeypatch.setattr("resnext_core.serving.validate.time", clock)
    slow_start.delays = iter([0.3])
    result = validate(slow_start, source, make_batches(count=4))
    assert result.latency_artefact.batches == 3
    assert result.latency_artefact.batch_p99 == pytest.approx(1)
    single.delays = iter([0.05])
    latency = validate(single, source, make_batches(count=1)).latency_artefact
    assert (latency.batches, latency.batch_p50) == (1, pytest.approx(50))
    assert latency.image_p50 == pytest.approx(latency.batch_p50 / 4)
    assert latency.batch_p50 <= latency.batch_p90 <= latency.batch_p99


def test_progress_and_dict_and_line():
    seen: list[int] = []
    result = validate(Linear(), Linear(), make_batches(padding=3), progress=seen.append)
    assert seen == [4, 8, 9]
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["images"] == 9
    assert data["latency_source"]["batches"] == 2
    assert set(data) == set(ValidationResult.__dataclass_fields__)
    assert result.line().startswith("passed: 9 images, max |diff| 0")
    assert "\n" not in result.line()


def test_a_drop_counts_what_was_lost_and_what_was_gained():
    """20 images; by hand: the source has 16 right, the artefact loses 3 of them and gains 1."""
    batches = make_batches(count=5, labels=None)
    top = source_logits(batches).argmax(1)
    wrong = (top + 1) % CLASSES
    labels = top.copy()
    labels[:4] = wrong[:4]  # the source is wrong there
    flipped = np.array([0, 7, 11, 19])  # 0 becomes right, the others wrong

    def flip(logits):
        for row in flipped:
            if 4 * flip.batch <= row < 4 * flip.batch + 4:
                logits[row - 4 * flip.batch, wrong[row]] = 1e3
        flip.batch += 1
        return logits

    flip.batch = 0
    result = validate(
        Linear(flip),
        Linear(),
        make_batches(count=5, labels=labels),
        tolerance=None,
        min_agreement=0.8,
        max_drop=10.0,
    )
    assert (result.labelled, result.top1_source, result.top1_artefact) == (20, 0.8, 0.7)
    assert result.drop == pytest.approx(10.0)
    assert result.top1_agreement == 0.8
    # Agresti and Min: (3.5 - 1.5) / 22 = 0.0909 and 1.959964 * sqrt(5 - 4 / 22) / 22 = 0.19555
    assert result.drop_interval == pytest.approx(
        (100 * (0.090909 - 0.195550), 100 * (0.090909 + 0.195550)), abs=1e-3
    )
    # Wilson, 16 of 20: (0.8 + z²/40 ± z·sqrt(0.16/20 + z²/1600)) / (1 + z²/20)
    assert result.agreement_interval == pytest.approx((0.583983, 0.919340), abs=1e-5)
    assert result.passed
    assert "drop 10.00 points (95 % interval -10.46 to 28.65; allowed 10)" in result.line()
    assert "top-1 agrees on 16 = 80.00% (95 % interval 58.40% to 91.93%) (needs 80.00%)" in result.line()
    flip.batch = 0
    worse = validate(
        Linear(flip),
        Linear(),
        make_batches(count=5, labels=labels),
        tolerance=1e-3,
        min_agreement=0.81,
        max_drop=9.9,
    )
    assert [text.split(" (")[0][:18] for text in worse.failures] == [
        "logits differ by 1", "top-1 agrees on 80", "top-1 drops by 10.",
    ]  # fmt: skip
    assert worse.line().startswith("FAILED")


def test_without_labels_there_is_no_drop():
    result = validate(Linear(), Linear(), make_batches(), max_drop=0.0)
    assert (result.drop, result.drop_interval, result.passed) == (None, None, True)


def test_nothing_to_validate_is_an_error():
    with pytest.raises(DataError, match="no image"):
        validate(Linear(), Linear(), [])
    with pytest.raises(DataError, match="no image"):
        validate(Linear(), Linear(), make_batches(count=1, padding=4))


@pytest.mark.parametrize(
    "change", [lambda x: x[:, :4], lambda x: x[:2], lambda x: x[:, 0]], ids=["classes", "rows", "axes"]
)
def test_misshapen_answers_are_errors(change):
    with pytest.raises(DataError, match="logits"):
        validate(Linear(change), Linear(), make_batches())
