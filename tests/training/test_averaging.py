"""The decay of the EMA at each step, against loops that count as torchvision and timm do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from resnext_core.config import TrainConfig
from resnext_core.training.averaging import ema_decays


def decays(
    count: int, *, steps_per_epoch: int, warmup: float = 0.0, epochs: float = 600, **train: object
) -> list[float]:
    found = ema_decays(
        range(count), config=TrainConfig(**train), warmup_epochs=warmup, steps_per_epoch=steps_per_epoch,
        epochs=epochs,
    )  # fmt: skip
    assert found is not None
    return [float(decay) for decay in found]


def torchvision(count: int, *, steps_per_epoch: int, warmup: int, every: int, decay: float) -> list[float]:
    """What AveragedModel does in the loop of torchvision's train.py: 0 where it copies, 1 where it is not called."""
    averaged, done = 0, []
    for step in range(count):
        epoch, i = divmod(step, steps_per_epoch)
        if i % every:
            done.append(1.0)
            continue
        done.append(0.0 if averaged == 0 else decay)
        averaged += 1
        if epoch < warmup:
            averaged = 0
    return done


def test_without_an_ema_there_are_no_decays() -> None:
    assert ema_decays(range(3), config=TrainConfig(), warmup_epochs=1, steps_per_epoch=2, epochs=3) is None


def test_by_default_every_step_has_the_decay() -> None:
    assert decays(5, steps_per_epoch=2, warmup=1, ema_decay=0.9) == [0.9] * 5


@pytest.mark.parametrize(("steps", "every"), [(10, 4), (8, 4), (3, 5), (7, 1), (32, 32), (33, 32)])
@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_copies_are_those_of_torchvision(steps: int, every: int, warmup: int) -> None:
    count = 6 * steps
    expected = torchvision(count, steps_per_epoch=steps, warmup=warmup, every=every, decay=0.75)
    found = decays(
        count, steps_per_epoch=steps, warmup=warmup, ema_decay=0.75, ema_every=every, ema_warmup="copy"
    )
    assert found == expected
    assert {0.0, 0.75} <= set(found)


def test_torchvision_scales_the_decay_of_its_recipe() -> None:
    """8 GPUs of 128 images, every 32 steps, 600 epochs: 1 - 2e-5 * 8 * 128 * 32 / 600."""
    found = decays(
        33,
        steps_per_epoch=1251,
        ema_decay=0.99998,
        ema_every=32,
        ema_scaled=True,
        batch_size=1024,
        epochs=600,
    )
    assert found[0] == found[32] == pytest.approx(1 - 1.0922666e-3, abs=1e-9)
    assert set(found[1:32]) == {1.0}
    assert decays(1, steps_per_epoch=9, ema_decay=0.5, ema_scaled=True, batch_size=1000, epochs=2) == [0.0]


def test_power_is_timms() -> None:
    """ModelEmaV3.get_decay at num_updates = 1, 2, 3, ... with use_warmup, gamma 1."""

    def timm(updates: int, decay: float, power: float) -> float:
        step = max(0, updates - 1)
        return 0.0 if step <= 0 else max(min(1 - (1 + step) ** -power, decay), 0.0)

    for power in (2 / 3, 3 / 4):
        found = decays(40, steps_per_epoch=7, ema_decay=0.85, ema_warmup="power", ema_power=power)
        assert found == pytest.approx([timm(step + 1, 0.85, power) for step in range(40)], rel=1e-15)
        assert found[-1] == 0.85


def test_power_counts_the_moves() -> None:
    found = decays(12, steps_per_epoch=5, ema_decay=0.9999, ema_every=2, ema_warmup="power")
    moves = [decay for decay in found if decay != 1.0]
    assert [step for step, decay in enumerate(found) if decay != 1.0] == [0, 2, 4, 5, 7, 9, 10]
    assert moves == pytest.approx([1 - (1 + t) ** -(2 / 3) for t in range(7)])


def test_any_part_of_the_steps_is_the_same() -> None:
    config = TrainConfig(ema_decay=0.9, ema_every=3, ema_warmup="copy")
    given: dict[str, Any] = {"config": config, "warmup_epochs": 1.5, "steps_per_epoch": 8, "epochs": 9}
    whole = ema_decays(range(40), **given)
    parts = [ema_decays(range(a, b), **given) for a, b in ((0, 7), (7, 8), (8, 31), (31, 40))]
    assert whole is not None
    assert np.array_equal(np.concatenate([p for p in parts if p is not None]), whole)


def test_a_training_that_is_fitted_to_its_time_warms_up_by_its_own_position() -> None:
    config = TrainConfig(ema_decay=0.9, ema_warmup="copy")
    found = ema_decays(
        range(8), config=config, warmup_epochs=1, steps_per_epoch=4, epochs=2, position=lambda step: 2 * step
    )
    assert found is not None
    assert found.tolist() == [0.0, 0.0, 0.0, 0.9, 0.9, 0.9, 0.9, 0.9]
