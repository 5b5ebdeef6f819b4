"""Whole learning rate curves against torch.optim.lr_scheduler and against the formulas of published recipes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from resnext_core.config import ScheduleConfig, load_config, parse_set
from resnext_core.errors import UsageError
from resnext_core.training.schedule import lrs

S = 7  # steps an epoch


def ours(epochs: int, base: float = 0.5, **config: Any) -> NDArray[np.float32]:
    return lrs(0, S * epochs, config=ScheduleConfig(**config), base_lr=base, steps_per_epoch=S, epochs=epochs)


# -- against PyTorch ---------------------------------------------------------------------------


def theirs(make: Callable[[Any, Any], Any], epochs: int, base: float = 0.5, *, each: int = 1) -> list[float]:
    """Return the rates of the scheduler that `make` makes of an optimizer, stepped after every `each` steps."""
    torch = pytest.importorskip("torch.optim.lr_scheduler")
    import torch as framework

    optimizer = framework.optim.SGD([framework.nn.Parameter(framework.zeros(1))], lr=base)
    scheduler, values = make(torch, optimizer), []
    for step in range(S * epochs):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % each == 0:
            scheduler.step()
    return values


def sequence(warmup: int, start: float, main: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return what torchvision's training reference makes: SequentialLR of LinearLR and the main scheduler."""

    def make(schedulers: Any, optimizer: Any) -> Any:
        first = schedulers.LinearLR(optimizer, start_factor=start, total_iters=warmup)
        rest = main(schedulers, optimizer)
        return schedulers.SequentialLR(optimizer, [first, rest], milestones=[warmup])

    return make


def test_torchvision_cosine_after_warmup_once_an_epoch() -> None:
    config = {"warmup_epochs": 5, "warmup_start": 0.01, "warmup_per": "epoch", "after_warmup": True}
    expected = theirs(
        sequence(5, 0.01, lambda s, o: s.CosineAnnealingLR(o, T_max=35, eta_min=1e-3)), 40, each=S
    )
    assert ours(40, **config, eta_min=1e-3) == pytest.approx(expected, rel=1e-6)


def test_warmup_each_step_then_cosine_each_epoch() -> None:
    config = {"warmup_epochs": 5, "warmup_start": 1e-4, "after_warmup": True, "eta_min": 1e-6}
    values = ours(40, **config)
    warmup = theirs(lambda s, o: s.LinearLR(o, start_factor=1e-4, total_iters=5 * S), 40)[: 5 * S]
    curve = theirs(lambda s, o: s.CosineAnnealingLR(o, T_max=35, eta_min=1e-6), 35, each=S)
    assert values == pytest.approx([*warmup, *curve], rel=1e-6)


def test_torchvision_steps_after_warmup() -> None:
    config = {
        "kind": "step",
        "warmup_epochs": 5,
        "warmup_start": 0.01,
        "warmup_per": "epoch",
        "after_warmup": True,
    }
    expected = theirs(sequence(5, 0.01, lambda s, o: s.MultiStepLR(o, [6, 12], gamma=0.2)), 20, each=S)
    assert ours(20, **config, milestones=(6.0, 12.0), gamma=0.2) == pytest.approx(expected, rel=1e-6)


def test_linear_after_linear_warmup() -> None:
    def main(schedulers: Any, optimizer: Any) -> Any:
        return schedulers.LinearLR(optimizer, start_factor=1, end_factor=0.02, total_iters=18 * S)

    values = ours(20, kind="linear", warmup_epochs=2, warmup_start=1e-4, eta_min=0.01)
    assert values == pytest.approx(theirs(sequence(2 * S, 1e-4, main), 20), rel=1e-6)


@pytest.mark.parametrize("warmup", [0, 2 / S, 3, 19.5])
@pytest.mark.parametrize("final_div", [1e4, 1.0])
def test_one_cycle(warmup: float, final_div: float) -> None:
    share = round(warmup * S) / (20 * S)
    expected = theirs(
        lambda s, o: s.OneCycleLR(
            o, max_lr=0.5, total_steps=20 * S, pct_start=share, div_factor=10, final_div_factor=final_div
        ),
        20,
    )
    values = ours(20, kind="one-cycle", warmup_epochs=warmup, div_factor=10, final_div=final_div)
    assert values == pytest.approx(expected, rel=1e-6)


# -- against the formulas of published recipes, written down apart ------------------------------


def once_an_epoch(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rate of each epoch, which must be constant within it."""
    by_epoch = values.reshape(-1, S)
    assert (by_epoch == by_epoch[:, :1]).all()
    return by_epoch[:, 0]


def test_torchvision_v2() -> None:
    """0.5 at 1,024; 5 epochs from 0.01 of it, then a cosine over the other 595 down to 0, all once an epoch."""
    values = once_an_epoch(
        ours(600, warmup_epochs=5, warmup_start=0.01, warmup_per="epoch", after_warmup=True)
    )
    assert values[:6] == pytest.approx([0.005, 0.104, 0.203, 0.302, 0.401, 0.5], rel=1e-6)
    # (1 + cos x) / 2 = cos²(x / 2): the last epoch is the 594th of the curve, from 0
    assert values[599] == pytest.approx(0.5 * math.sin(math.pi / 1190) ** 2, rel=1e-5)
    assert values[5 + 119] == pytest.approx(
        0.5 * (3 + math.sqrt(5)) / 8 + 0.5 / 4, rel=1e-6
    )  # cos 36° = (1 + √5) / 4


def test_resnet_strikes_back() -> None:
    """5e-3 at 2,048; 5 epochs from 1e-4 of it, each step; then a cosine down to 1e-6, once an epoch."""
    values = ours(300, base=5e-3, warmup_epochs=5, warmup_start=1e-4, after_warmup=True, eta_min=1e-6)
    assert values[0] == pytest.approx(5e-7, rel=1e-6)
    assert values[1] == pytest.approx(5e-7 + (5e-3 - 5e-7) / 35, rel=1e-6)
    assert np.diff(values[:36]) == pytest.approx(np.full(35, (5e-3 - 5e-7) / 35), rel=1e-3)
    epochs = once_an_epoch(values[35:])
    assert epochs[0] == np.float32(5e-3)
    assert epochs[294] == pytest.approx(1e-6 + (5e-3 - 1e-6) * math.sin(math.pi / 590) ** 2, rel=1e-5)


def test_nvidia_250e() -> None:
    """1.024 at 1,024; (epoch + 1) / 8 of it in the first 8 epochs, then a cosine over the other 242 to 0."""
    values = once_an_epoch(ours(250, base=1.024, warmup_epochs=8, warmup_per="epoch", after_warmup=True))
    assert values[:9] == pytest.approx([0.128 * k for k in (1, 2, 3, 4, 5, 6, 7, 8, 8)], rel=1e-6)
    assert values[8 + 121] == pytest.approx(0.512, rel=1e-6)
    assert values[249] == pytest.approx(1.024 * math.sin(math.pi / 484) ** 2, rel=1e-5)


def test_ffcv_16_epochs() -> None:
    """Straight lines through 1e-4 of 1.7 at epoch 0, 1.7 at epoch 2 and 0 at epoch 16."""
    values = ours(16, base=1.7, kind="linear", warmup_epochs=2, warmup_start=1e-4)
    at = np.arange(16 * S) / S
    assert values == pytest.approx(np.interp(at, [0, 2, 16], [1.7e-4, 1.7, 0]), rel=1e-6)


def test_step_of_the_first_recipes() -> None:
    """0.1 at 256, a tenth of it after 30 and after 60 epochs."""
    values = once_an_epoch(ours(90, base=0.1, kind="step", warmup_epochs=0, milestones=(30.0, 60.0)))
    assert values == pytest.approx([0.1] * 30 + [0.01] * 30 + [0.001] * 30, rel=1e-6)


# -- what none of them has -----------------------------------------------------------------------


def test_a_stated_t_max_counts_from_the_end_of_the_warmup() -> None:
    for kind in ("cosine-step", "linear", "cosine-epoch"):
        late = ours(10, kind=kind, warmup_epochs=2, after_warmup=True, t_max=3.0)
        early = ours(10, kind=kind, warmup_epochs=0, t_max=3.0)
        assert (late[2 * S :] == early[: 8 * S]).all(), kind


def test_linear_stays_at_its_end() -> None:
    values = ours(6, kind="linear", warmup_epochs=0, t_max=4.0, eta_min=0.1)
    assert values[0] == np.float32(0.5)
    assert (values[4 * S :] == np.float32(0.1)).all()
    assert np.unique(values).size == 4 * S + 1


def test_a_warmup_that_takes_everything_needs_no_curve() -> None:
    for kind in ("cosine-epoch", "cosine-step", "linear", "step", "one-cycle"):
        own = {} if kind == "one-cycle" else {"after_warmup": True}
        values = ours(2, kind=kind, warmup_epochs=2, **own)
        assert values[-1] == np.float32(0.5), kind
        assert (np.diff(values) > 0).all(), kind


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["kind=one-cycle", "warmup_start=0.1"], "schedule.warmup_start does not apply"),
        (["kind=one-cycle", "warmup_per=epoch"], "schedule.warmup_per does not apply"),
        (["kind=one-cycle", "after_warmup=true"], "schedule.after_warmup does not apply"),
        (["kind=one-cycle", "t_max=3"], "schedule.t_max does not apply"),
        (["kind=one-cycle", "eta_min=1e-5"], "schedule.eta_min does not apply"),
        (["warmup_per=epoch", "warmup_epochs=0.5"], "not a whole number of epochs"),
        (["div_factor=0.5"], "must be 1 or more"),
        (["warmup_start=1.5"], "must be between 0 and 1"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(sets: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        load_config(parse_set([f"schedule.{each}" for each in sets]))
    assert "\n" not in str(refused.value)
