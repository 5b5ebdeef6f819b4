"""The kit's cases reach both sides of every decision: what is clipped, trusted, dropped, and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from resnext_core.reference import loss, optimizers
from resnext_core.testing import cases
from resnext_core.testing.cases import TRAIN_CASES


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[Any]]]:
    """What the oracle decides while a case runs."""
    found: dict[str, list[Any]] = {"factor": [], "trust": [], "agc": [], "targets": []}
    factor, trust, agc, targets = (
        optimizers.clip_factor, optimizers.trust_ratio, optimizers.adaptively_clipped, loss.step_targets,
    )  # fmt: skip

    def clip_factor(*arguments: Any) -> float:
        found["factor"].append(factor(*arguments))
        return found["factor"][-1]

    def trust_ratio(weight: Any, update: Any, *, clip: bool) -> float:
        found["trust"].append(trust(weight, update, clip=False))
        return trust(weight, update, clip=clip)

    def adaptively_clipped(gradient: Any, *arguments: Any) -> Any:
        clipped = agc(gradient, *arguments)
        if gradient.ndim > 1:
            rows = (clipped != gradient).reshape(len(gradient), -1).any(axis=1)
            found["agc"].append(rows)
        return clipped

    def step_targets(*arguments: Any) -> Any:
        found["targets"].append(targets(*arguments))
        return found["targets"][-1]

    monkeypatch.setattr(optimizers, "clip_factor", clip_factor)
    monkeypatch.setattr(optimizers, "trust_ratio", trust_ratio)
    monkeypatch.setattr(optimizers, "adaptively_clipped", adaptively_clipped)
    monkeypatch.setattr(loss, "step_targets", step_targets)
    yield found
    cases.oracle_run.cache_clear()


@pytest.mark.parametrize("case_name", ["everything", "lamb", "head"])
def test_some_steps_are_clipped_and_some_are_not(case_name: str, seen: dict[str, list[Any]]) -> None:
    cases.oracle_run.cache_clear()
    cases.oracle_run(case_name)
    steps = seen["factor"][-len(TRAIN_CASES[case_name].lrs) :]
    assert min(steps) < 0.95
    assert max(steps) == 1


def test_trust_ratios_are_on_both_sides_of_one(seen: dict[str, list[Any]]) -> None:
    cases.oracle_run.cache_clear()
    cases.oracle_run("lamb-all")
    ratios = np.array(seen["trust"])
    assert (ratios < 0.9).mean() > 0.1
    assert (ratios > 1.1).mean() > 0.1


def test_some_channels_of_a_tensor_are_clipped_and_some_are_not(seen: dict[str, list[Any]]) -> None:
    cases.oracle_run.cache_clear()
    cases.oracle_run("agc")
    assert any(rows.any() and not rows.all() for rows in seen["agc"])


def test_mixed_rows_have_one_class_or_two_above_the_threshold(seen: dict[str, list[Any]]) -> None:
    cases.oracle_run.cache_clear()
    cases.oracle_run("adamw")
    binary = [targets for targets in seen["targets"] if np.isin(targets, (0, 1)).all()]
    ones = np.concatenate([targets.sum(axis=1) for targets in binary])
    assert set(ones) == {1.0, 2.0}


@pytest.mark.parametrize("case_name", ["lamb", "agc"])
def test_some_branches_of_every_block_are_dropped_and_some_are_not(case_name: str) -> None:
    branches = np.concatenate([np.asarray(b.branches) for b in TRAIN_CASES[case_name].batches()])
    dropped = (branches == 0).mean(axis=0)
    assert (dropped > 0.1).all()
    assert (dropped < 0.9).all()
