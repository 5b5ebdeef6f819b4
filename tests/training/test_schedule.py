"""Learning rate: the ModelZoo's numbers, the shape of each curve, independence of chunking."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnext_core.config import OptimizerConfig, ScheduleConfig
from resnext_core.data.sampler import steps_per_epoch
from resnext_core.training.schedule import lr_at, lrs, scaled_lr

MODELZOO = {"base_lr": 0.4, "steps_per_epoch": 1251, "epochs": 150}

configs = st.builds(
    ScheduleConfig,
    kind=st.sampled_from(["cosine-epoch", "cosine-step", "step", "constant"]),
    warmup_epochs=st.floats(0, 3),
    eta_min=st.sampled_from([0.0, 1e-5, 0.01]),
)
runs = st.fixed_dictionaries(
    {"base_lr": st.floats(0.02, 2), "steps_per_epoch": st.integers(1, 50), "epochs": st.integers(4, 20)}
)


def test_modelzoo_steps_per_epoch() -> None:
    assert steps_per_epoch(1_281_167, 8 * 128) == MODELZOO["steps_per_epoch"]
    assert steps_per_epoch(1_281_167, 8 * 16) == 10009


def test_modelzoo_base_lr() -> None:
    assert scaled_lr(OptimizerConfig(), 1024) == 0.4
    assert scaled_lr(OptimizerConfig(), 128) == 0.05
    assert scaled_lr(OptimizerConfig(lr=0.3, lr_batch=None), 4096) == 0.3


def test_modelzoo_cosine() -> None:
    config = ScheduleConfig()
    values = lrs(0, 150 * 1251, config=config, **MODELZOO)
    assert values.dtype == np.float32
    assert values[0] == np.float32(0.4 / 1251)
    assert values[1250] == np.float32(0.4)  # the last warm-up step reaches the base
    # From the closed form (1 + cos x) / 2 = cos²(x / 2), computed apart: cos²(π/300), then sin²(π/300).
    assert values[1251] == pytest.approx(0.4 * 0.9998903417374228, rel=1e-6)
    assert values[-1] == pytest.approx(4.3863e-5, rel=1e-4)
    assert np.unique(values[-1251:]).size == 1
    assert values[75 * 1251] == pytest.approx(0.2, rel=1e-6)


def test_modelzoo_steps() -> None:
    config = ScheduleConfig(kind="step", warmup_epochs=0)
    for epoch, expected in [
        (0, 0.4),
        (29, 0.4),
        (30, 0.04),
        (60, 4e-3),
        (90, 4e-4),
        (119, 4e-4),
        (149, 4e-5),
    ]:
        assert lr_at(epoch * 1251, config=config, **MODELZOO) == pytest.approx(expected, rel=1e-6)
    assert lr_at(30 * 1251 - 1, config=config, **MODELZOO) == np.float32(0.4)


def test_step_milestones_may_be_fractions() -> None:
    config = ScheduleConfig(kind="step", warmup_epochs=0, milestones=(0.5,), gamma=0.5)
    values = lrs(0, 10, config=config, base_lr=1.0, steps_per_epoch=10, epochs=1)
    assert values.tolist() == [1.0] * 5 + [0.5] * 5


def test_cosine_step_runs_from_base_to_eta_min() -> None:
    config = ScheduleConfig(kind="cosine-step", warmup_epochs=0.5, eta_min=0.01)
    values = lrs(0, 50, config=config, base_lr=1.0, steps_per_epoch=10, epochs=4)
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert values[5] == np.float32(1.0)
    assert values[22] == pytest.approx(0.505, abs=1e-6)  # half-way between steps 5 and 39
    assert values[39:].tolist() == [np.float32(0.01)] * 11  # last step of epoch 4, and any beyond
    assert (np.diff(values[5:40]) < 0).all()


def test_cosine_step_without_room_for_a_curve() -> None:
    config = ScheduleConfig(kind="cosine-step", warmup_epochs=1)
    values = lrs(0, 3, config=config, base_lr=1.0, steps_per_epoch=1, epochs=1)
    assert values.tolist() == [1.0, 1.0, 0.0]


def test_t_max_replaces_epochs() -> None:
    config = ScheduleConfig(warmup_epochs=0, t_max=2)
    values = lrs(0, 4, config=config, base_lr=1.0, steps_per_epoch=1, epochs=4)
    assert values == pytest.approx([1, 0.5, 0, 0.5], abs=1e-7)  # rises again beyond t_max, as documented


@pytest.mark.parametrize("wrong", [{"step": -1}, {"steps_per_epoch": 0}, {"epochs": 0}])
def test_impossible_arguments(wrong: dict[str, int]) -> None:
    good = {"step": 0, "steps_per_epoch": 1, "epochs": 1}
    with pytest.raises(ValueError, match="no learning rate"):
        lr_at(**(good | wrong), config=ScheduleConfig(), base_lr=1.0)


@settings(max_examples=60, deadline=None)
@given(config=configs, run=runs, cut=st.integers(0, 100))
def test_any_chunking_gives_the_same_numbers(config: ScheduleConfig, run: dict[str, float], cut: int) -> None:
    total = run["steps_per_epoch"] * run["epochs"]
    cut = min(cut, total)
    whole = lrs(0, total, config=config, **run)
    parts = np.concatenate([lrs(0, cut, config=config, **run), lrs(cut, total - cut, config=config, **run)])
    assert whole.tobytes() == parts.tobytes()


@settings(max_examples=60, deadline=None)
@given(config=configs, run=runs)
def test_rises_to_the_base_then_never_rises(config: ScheduleConfig, run: dict[str, float]) -> None:
    values = lrs(0, run["steps_per_epoch"] * run["epochs"], config=config, **run)
    warmup = round(config.warmup_epochs * run["steps_per_epoch"])
    assert (values[:-1] > 0).all()
    assert (values <= np.float32(run["base_lr"])).all()
    assert (np.diff(values[:warmup]) >= 0).all()
    if warmup:
        assert values[warmup - 1] == np.float32(run["base_lr"])
    assert (np.diff(values[warmup:]) <= 0).all()
    if config.kind.startswith("cosine"):
        assert (values[warmup:] >= np.float32(config.eta_min)).all()
    if config.kind == "cosine-step" and len(values) - warmup > 1:
        assert values[-1] == pytest.approx(config.eta_min, abs=1e-7)
