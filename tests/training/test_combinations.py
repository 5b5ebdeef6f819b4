"""Settings that cannot go together are refused in one line that says what to set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from resnext_core.config import (
    AugmentConfig,
    Config,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from resnext_core.errors import UsageError
from resnext_core.testing.cases import TRAIN_CASES, oracle, oracle_trainer
from resnext_core.testing.tiny import train_request
from resnext_core.training.combinations import check_combinations

REFUSED = {
    "both clips": ({"clip_norm": 1.0, "agc": 0.01}, {}, "set one of them to null"),
    "nesterov of lamb": ({"kind": "lamb", "nesterov": True}, {}, "optimizer.nesterov=false"),
    "nesterov without momentum": ({"momentum": 0.0, "nesterov": True}, {}, "raise optimizer.momentum"),
    "eps of sgd": ({"eps": 1e-6}, {}, "optimizer.eps=null"),
    "trust of sgd": ({"trust_all": True}, {}, "optimizer.trust_all=false"),
    "trust of adamw": ({"kind": "adamw", "trust_clip": True}, {}, "optimizer.trust_clip=false"),
    "sum of ce": ({}, {"bce_sum": True}, "loss.bce_sum=false"),
    "threshold of ce": ({}, {"bce_threshold": 0.2}, "loss.bce_threshold=null"),
    "beta of inverse": (
        {},
        {"class_weights": "inverse", "effective_beta": 0.9},
        "set loss.class_weights=effective",
    ),
    "threshold above": ({}, {"kind": "bce", "smoothing": 0.1, "bce_threshold": 0.95}, "all targets alike"),
    "threshold below": ({}, {"kind": "bce", "smoothing": 0.1, "bce_threshold": 0.001}, "all targets alike"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_contradictions_are_refused(what: str) -> None:
    optimizer, loss, words = REFUSED[what]
    config = Config(optimizer=OptimizerConfig(**optimizer), loss=LossConfig(**loss))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=words) as refused:
        check_combinations(config, 5)
    assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match=words):
        oracle_trainer(train_request(batch_size=4, optimizer=config.optimizer, loss=config.loss))


def test_a_time_and_images_that_grow_are_refused() -> None:
    train, grows = TrainConfig(minutes=5), AugmentConfig(start_size=8, size_epochs=(1, 2))
    check_combinations(Config(train=train), 5)
    check_combinations(Config(augment=grows), 5)
    with pytest.raises(UsageError, match=r"train\.minutes cannot foresee .* augment\.start_size=null"):
        check_combinations(Config(train=train, augment=grows), 5)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"ema_every": 32}, r"train\.ema_every is .*: set train\.ema_decay, or train\.ema_every=1$"),
        ({"ema_scaled": True, "ema_warmup": "copy"}, r"or train\.ema_scaled=false, train\.ema_warmup=none$"),
    ],
)
def test_what_is_said_about_an_average_that_is_not_kept_is_refused(said: dict[str, Any], words: str) -> None:
    check_combinations(Config(train=TrainConfig(ema_decay=0.9999, **said)), 5)
    with pytest.raises(UsageError, match=words):
        check_combinations(Config(train=TrainConfig(**said)), 5)


def test_an_average_that_would_be_a_copy_is_refused() -> None:
    scaled = TrainConfig(ema_decay=0.9, ema_scaled=True, batch_size=100, ema_every=2, epochs=21)
    check_combinations(Config(train=scaled), 5)
    check_combinations(
        Config(train=replace(scaled, epochs=20, minutes=5)), 5
    )  # with other epochs, as many as fit
    with pytest.raises(
        UsageError, match=r"train\.ema_decay 0\.9 0 at .* raise train\.ema_decay, or set train\.ema_sc"
    ):
        check_combinations(Config(train=replace(scaled, epochs=19)), 5)


@pytest.mark.parametrize("key", ["div_factor", "final_div"])
def test_what_is_of_one_cycle_alone_is_refused_elsewhere(key: str) -> None:
    ScheduleConfig(kind="one-cycle", **{key: 7.0})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=rf"schedule\.{key} is of schedule\.kind one-cycle, not of linear"):
        ScheduleConfig(kind="linear", **{key: 7.0})  # type: ignore[arg-type]


def test_binary_cross_entropy_of_one_class_is_refused() -> None:
    config = Config(loss=LossConfig(kind="bce"))
    check_combinations(config, 2)
    with pytest.raises(UsageError, match=r"two classes or more.*loss\.kind=ce"):
        check_combinations(config, 1)


@pytest.mark.parametrize("case_name", TRAIN_CASES)
def test_what_goes_together_is_not_refused(case_name: str) -> None:
    case = TRAIN_CASES[case_name]
    check_combinations(
        Config(optimizer=case.optimizer, loss=case.loss), case.request().weights.spec.num_classes
    )
    assert case.asked <= oracle().ingredients


def test_the_whole_range_between_the_targets_is_taken() -> None:
    for threshold in (0.0, 0.5, 0.999):
        check_combinations(Config(loss=LossConfig(kind="bce", smoothing=0.0, bce_threshold=threshold)), 3)
