"""The loss scale's rule and the check of a state, which every trainer shares."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from resnext_core.config import PrecisionConfig
from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import Batch, Mix, TrainState
from resnext_core.ranks.info import RankInfo
from resnext_core.testing.cases import TRAIN_CASES, oracle
from resnext_core.training.counter import MAX_LOSS_SCALE, SCALARS, StepCounter
from resnext_core.training.inputs import step_inputs
from resnext_core.training.trainer import check_state, create_trainer

DYNAMIC = PrecisionConfig(loss_scale="dynamic", scale=8.0, growth_interval=2)
SHAPES = {"weights/a": (2, 3), "momentum/a": (2, 3)}


def scales(counter: StepCounter, steps: list[bool]) -> list[float]:
    """Return the scale after each step."""
    found = []
    for finite in steps:
        counter.count(finite)
        found.append(counter.scale)
    return found


def test_a_dynamic_scale_halves_on_overflow_and_doubles_after_good_steps() -> None:
    assert scales(StepCounter(DYNAMIC), [True, True, False, True, False, True, True]) == [
        8, 16, 8, 8, 4, 4, 8,
    ]  # fmt: skip


def test_a_dynamic_scale_stays_between_one_and_the_largest_power_of_two() -> None:
    counter = StepCounter(DYNAMIC)
    assert scales(counter, [False] * 5)[-1] == 1
    assert scales(counter, [True] * 300)[-1] == MAX_LOSS_SCALE


@pytest.mark.parametrize(("kind", "scale"), [("none", 1.0), ("fixed", 8.0)])
def test_other_scales_stay(kind: str, scale: float) -> None:
    counter = StepCounter(PrecisionConfig(loss_scale=kind, scale=8.0, growth_interval=1))  # type: ignore[arg-type]
    assert scales(counter, [True, False, True]) == [scale] * 3
    assert (counter.step, counter.overflow_steps, counter.good_steps) == (3, 1, 0)


def test_gradients_are_looked_at_where_a_step_may_be_skipped() -> None:
    plain = TRAIN_CASES["plain"].request(precision=PrecisionConfig())
    assert not plain.checked
    assert replace(plain, skip_nonfinite=True).checked
    assert replace(plain, precision=PrecisionConfig(loss_scale="fixed")).checked


def test_a_loaded_counter_goes_on() -> None:
    first = StepCounter(DYNAMIC)
    scales(first, [True, False, True])
    second = StepCounter(DYNAMIC)
    second.load(first.scalars())
    assert second.scalars() == first.scalars()
    assert tuple(first.scalars()) == SCALARS
    assert scales(first, [True, True]) == scales(second, [True, True])


def state(**changes: np.ndarray | None) -> TrainState:
    """Return a fitting state with some tensors replaced (None: left out)."""
    tensors = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    tensors |= {k.replace("__", "/"): v for k, v in changes.items()}  # type: ignore[misc]
    return TrainState(
        tensors={k: v for k, v in tensors.items() if v is not None}, scalars=dict.fromkeys(SCALARS, 0)
    )


def test_a_fitting_state_passes() -> None:
    check_state(state(), SHAPES, "tiny")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"momentum__a": None}, "missing momentum/a"),
        ({"ema__a": np.zeros((2, 3), np.float32)}, "unexpected ema/a"),
        (
            {"weights__a": np.zeros((3, 2), np.float32)},
            r"weights/a is float32 \(3, 2\), not float32 \(2, 3\)",
        ),
        ({"weights__a": np.zeros((2, 3))}, "weights/a is float64"),
    ],
)
def test_a_state_that_does_not_fit_is_one_line(changes: dict[str, np.ndarray | None], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        check_state(state(**changes), SHAPES, "tiny")
    assert "\n" not in str(caught.value)


def test_missing_scalars_are_named() -> None:
    with pytest.raises(DataError, match="missing step; missing overflow_steps"):
        check_state(
            TrainState(tensors=state().tensors, scalars={"loss_scale": 1.0, "good_steps": 0}), SHAPES, "tiny"
        )


class Adds:
    """Collectives that add what other ranks counted, and count the messages."""

    def __init__(self, others: list[int]) -> None:
        self.others, self.messages = np.array(others, np.int64), 0

    def all_reduce_sum(self, values: Any) -> Any:
        self.messages += 1
        assert values.dtype == np.int64
        return values + self.others


def request(world: int = 1, collectives: Any = None, *, mixes: bool = False, accumulate: int = 1) -> Any:
    """Return what `step_inputs` reads of a request for batches of 4 of 3 classes."""
    weights = SimpleNamespace(spec=SimpleNamespace(num_classes=3, blocks=()))
    return SimpleNamespace(
        weights=weights, batch_size=4, rank=RankInfo(rank=0, world=world), collectives=collectives, mixes=mixes,
        accumulate=accumulate, ema_decay=None, drops=False, distillation=None, class_weights=None,
    )  # fmt: skip


def rows_batch(*valid: int, labels: tuple[int, ...] = (0, 1, 2, 0), images: int = 4) -> Batch:
    return Batch(
        images=np.zeros((images, 2, 2, 3), np.uint8),
        labels=np.array(labels, np.int32),
        index=np.arange(4),
        valid=np.array(valid, bool),
    )


def test_weights_are_rows_over_valid_rows() -> None:
    batches = [rows_batch(1, 1, 1, 1), rows_batch(1, 0, 1, 0), rows_batch(0, 0, 0, 0), rows_batch(1, 1, 0, 1)]
    rows = step_inputs(request(), batches, [0.1] * 4)
    assert [r.weights.tolist() for r in rows] == [
        [1, 1, 1, 1], [2, 0, 2, 0], [0, 0, 0, 0], [4 / 3, 4 / 3, 0, 4 / 3],
    ]  # fmt: skip
    assert step_inputs(request(), [], []) == []


def test_weights_count_the_rows_of_all_ranks_in_one_message() -> None:
    adds = Adds([8, 6, 0, 1])
    batches = [rows_batch(1, 1, 1, 1), rows_batch(1, 0, 1, 0), rows_batch(0, 0, 0, 0), rows_batch(0, 0, 0, 0)]
    rows = step_inputs(request(3, adds), batches, [0.1] * 4)
    assert [r.weights.tolist() for r in rows] == [[1, 1, 1, 1], [1.5, 0, 1.5, 0], [0] * 4, [0] * 4]
    assert adds.messages == 1


def test_labels_of_rows_that_are_not_valid_are_not_looked_at() -> None:
    (rows,) = step_inputs(request(), [rows_batch(1, 0, 1, 0, labels=(2, -1, 1, 99))], [0.1])
    assert (rows.labels.tolist(), rows.labels.dtype) == ([2, 0, 1, 0], np.int32)
    with pytest.raises(DataError, match="labels must be 0 to 2, not 0 to 3"):
        step_inputs(request(), [rows_batch(1, 1, 1, 1, labels=(0, 1, 2, 3))], [0.1])


def test_batches_that_are_not_what_was_asked_for_are_refused() -> None:
    for batch, lrs, says in (
        (rows_batch(1, 1, 1, 1), [0.1, 0.1], "as many learning rates, not 2"),
        (rows_batch(1, 1, 1, 1, images=3), [0.1], "takes 4 images a rank, not 3"),
        (rows_batch(1, 1, 1), [0.1], r"valid must be bool \(4,\)"),
    ):
        with pytest.raises(UsageError, match=says):
            step_inputs(request(), [batch], lrs)


HALF = Mix(kind="mixup", lam=0.5)


def test_a_training_that_mixes_has_rows_for_every_step() -> None:
    """Of the same shapes whether anything is mixed or not: engines compile one step."""
    batches = [replace(rows_batch(1, 1, 1, 0, labels=(0, 1, 2, -1)), mix=mix) for mix in ((), (HALF,))]
    plain, mixed = (step.mix for step in step_inputs(request(mixes=True), batches, [0.1] * 2))
    assert plain is not None
    assert mixed is not None
    assert plain.share.tolist() == [1, 1, 1, 1]
    assert mixed.share.tolist() == [1, 0.5, 0.5, 1]
    assert (mixed.partner.tolist(), mixed.labels.tolist()) == ([0, 2, 1, 3], [0, 2, 1, 0])
    assert [step.mix for step in step_inputs(request(), [rows_batch(1, 1, 1, 1)], [0.1])] == [None]


def test_micro_batches_are_mixed_within_themselves() -> None:
    batch = replace(rows_batch(1, 1, 1, 1), mix=(HALF, Mix()))
    (step,) = step_inputs(request(mixes=True, accumulate=2), [batch], [0.1])
    first, second = (part.mix for part in step.micro_batches(2))
    assert first is not None
    assert second is not None
    assert (first.partner.tolist(), first.share.tolist()) == ([1, 0], [0.5, 0.5])
    assert (second.partner.tolist(), second.share.tolist()) == ([0, 1], [1, 1])
    (unmixed,) = step_inputs(request(mixes=True, accumulate=2), [rows_batch(1, 1, 1, 1)], [0.1])
    assert unmixed.mix is not None
    assert (unmixed.mix.partner.tolist(), unmixed.mix.share.tolist()) == ([0, 1, 0, 1], [1] * 4)


def test_mixes_that_do_not_fit_are_refused() -> None:
    batch = rows_batch(1, 1, 1, 1)
    for mix, mixes, says in (
        ((HALF,), False, "was not asked to mix any"),
        ((HALF, HALF), True, "1 micro-batches need as many mixes, not 2"),
        ((Mix(kind="mixup", lam=1.5),), True, "shares from 0 to 1"),
        ((Mix(kind="mixup", lam=float("nan")),), True, "shares from 0 to 1"),
        ((Mix(kind="cutmix", lam=0.5, box=(0, 0, 3, 1)),), True, "does not fit images of 2 x 2 pixels"),
        ((Mix(kind="cutmix", lam=0.5, box=(1, 0, 0, 1)),), True, "does not fit images of 2 x 2 pixels"),
    ):
        with pytest.raises(UsageError, match=says):
            step_inputs(request(mixes=mixes), [replace(batch, mix=mix)], [0.1])


def test_a_backend_that_cannot_mix_is_refused() -> None:
    made = replace(TRAIN_CASES["plain"].request(), mixes=True)
    cannot = replace(oracle(), id="old", ingredients=frozenset())
    with pytest.raises(
        UsageError, match=r"the backend old cannot mix images; set mix\.mixup=0 and mix\.cutmix=0"
    ):
        create_trainer(cannot, made)
    with pytest.raises(UsageError, match="this one has 1"):
        create_trainer(oracle(), replace(made, accumulate=6))
