"""Tests of trainers keep away from kinks, where arithmetics that are both right part; and that is noticed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from resnext_core.config import PrecisionConfig
from resnext_core.testing import cases, overflow
from resnext_core.testing.cases import TRAIN_CASES
from resnext_core.testing.kinks import DISTANCE, exact_steps, watch_kinks


def test_a_step_near_a_kink_is_refused() -> None:
    """With this seed an input of a ReLU is 1.7e-6 of its usual size in the second step."""
    case = replace(TRAIN_CASES["plain"], seed=20)
    trainer = cases.oracle_trainer(case.request(precision=cases.oracle_precision(case)))
    with pytest.raises(AssertionError, match=r"a ReLU has an input of 1\.7e-06 times its usual size"):
        exact_steps(trainer, case.batches(), case.lr_array())


def test_the_distance_is_that_of_the_nearest_input() -> None:
    """Of both signs, by the root mean square of its tensor; and the network is as it was afterwards."""
    with watch_kinks() as found:
        from resnext_core.reference import network

        relu = network._relu
        assert relu(np.array([3.0, -4.0])).tolist() == [3.0, 0.0]
        assert (found.distance, found.inputs) == (pytest.approx(3 / 12.5**0.5), 2)
        relu(np.array([1.0, -1e-3]))
        assert (found.distance, found.inputs) == (pytest.approx(1e-3 / 0.5**0.5, rel=1e-5), 4)
    assert network._relu is not relu
    network._relu(np.array([0.0]))
    assert found.inputs == 4


def test_the_good_steps_between_overflows_keep_away_from_kinks() -> None:
    """Those that float32 takes; another arithmetic may overflow elsewhere, and take one more or less."""
    case = overflow.overflow_case(
        PrecisionConfig(loss_scale="dynamic", scale=overflow.HUGE, growth_interval=overflow.GROWTH)
    )
    trainer, good = cases.oracle_trainer(case.request(network=overflow.overflow_weights())), []
    for step, (batch, lr) in enumerate(zip(case.batches(), case.lr_array(), strict=True)):
        before = trainer.counters()["overflow_steps"]
        with np.errstate(all="ignore"):
            trainer.run_steps([batch], np.array([lr]))
        good += [step] * (trainer.counters()["overflow_steps"] == before)
    assert len(good) > 4
    with watch_kinks() as found:
        overflow.oracle_state(good)
    assert found.distance >= DISTANCE
