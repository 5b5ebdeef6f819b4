"""The loss scale's rule and the check of a state, which every trainer shares."""

from __future__ import annotations

import numpy as np
import pytest

from resnext_core.config import PrecisionConfig
from resnext_core.errors import DataError
from resnext_core.interfaces import TrainState
from resnext_core.trainer_state import MAX_LOSS_SCALE, SCALARS, StepCounter, check_state

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
    plain = PrecisionConfig()
    assert not StepCounter(plain).checks
    assert StepCounter(plain, skip_nonfinite=True).checks
    assert StepCounter(PrecisionConfig(loss_scale="fixed")).checks


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
