"""What a configuration and a request ask of an engine, and the refusal where it cannot do that."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from resnext_core.config import Config, load_config, parse_set
from resnext_core.errors import UsageError
from resnext_core.interfaces import Ingredient
from resnext_core.testing.cases import TRAIN_CASES, oracle
from resnext_core.testing.tiny import noise_batches, train_request
from resnext_core.training.ingredients import asked_by, check_ingredients
from resnext_core.training.inputs import step_inputs
from resnext_core.training.trainer import create_trainer

#: For each ingredient settings that ask for it, each list by itself.
ASKING: dict[str, list[list[str]]] = {
    "mix": [["mix.mixup=0.2"], ["mix.cutmix=1"]],
    "nesterov": [["optimizer.nesterov=true"]],
    "lamb": [["optimizer.kind=lamb"]],
    "adamw": [["optimizer.kind=adamw"]],
    "agc": [["optimizer.agc=0.01"]],
    "groups": [["optimizer.decay_norm=true"], ["optimizer.decay_bias=true"], ["optimizer.stage_lr=0.5"]],
    "bce": [["loss.kind=bce"]],
    "stochastic-depth": [["model.stochastic_depth=0.1"]],
    "teacher": [["train.teacher=teacher.onnx"]],
    "freeze": [["train.freeze=1"]],
    "logit-offsets": [["loss.logit_adjustment=1"]],
    "sizes": [["augment.start_size=128", "augment.size_epochs=[1, 2]"]],
    "ema-schedule": [
        ["train.ema_decay=0.9", change]
        for change in ("train.ema_every=2", "train.ema_warmup=copy", "train.ema_warmup=power", "train.ema_scaled=true")
    ],
}  # fmt: skip


def configured(*settings: str) -> Config:
    return load_config(parse_set(settings))[0]


def test_every_ingredient_is_asked_for_here() -> None:
    assert set(ASKING) == set(get_args(Ingredient)) == oracle().ingredients


@pytest.mark.parametrize("name", ASKING)
def test_a_backend_without_it_is_refused_in_a_line_that_says_what_to_set(name: str) -> None:
    others = replace(oracle(), id="old", ingredients=oracle().ingredients - {name})
    for settings in ASKING[name]:
        asked = asked_by(configured(*settings))
        assert asked == {name}, settings
        with pytest.raises(
            UsageError, match=r"the backend old cannot .*; set .*, or choose another"
        ) as refused:
            check_ingredients(others, asked)
        assert "\n" not in str(refused.value)
        without = re.findall(r"[a-z]+\.[a-z_]+=[\w.]+", str(refused.value))
        assert not asked_by(configured(*settings, *without)), f"{without} does not do without"
        check_ingredients(oracle(), asked)


def test_a_plain_training_asks_for_nothing() -> None:
    assert not asked_by(configured())
    assert not asked_by(configured("train.ema_decay=0.9"))
    check_ingredients(replace(oracle(), ingredients=frozenset()), asked_by(configured()))


@pytest.mark.parametrize("case_name", TRAIN_CASES)
def test_a_request_is_refused_too(case_name: str) -> None:
    case = TRAIN_CASES[case_name]
    seen_in_requests = case.asked - {"sizes", "ema-schedule"}
    for name in seen_in_requests:
        with pytest.raises(UsageError, match="the backend old cannot"):
            create_trainer(
                replace(oracle(), id="old", ingredients=oracle().ingredients - {name}), case.request()
            )


def test_what_comes_with_a_batch_must_be_what_was_asked_for() -> None:
    request = train_request(batch_size=4)
    (batch,) = noise_batches(1, images=4)
    ones, teacher = np.ones((4, 1), np.float32), np.full((4, 5), 0.2, np.float32)
    dropping = replace(request, drops=True)
    assert step_inputs(dropping, [replace(batch, branches=ones)], [0.1])[0].branches is ones
    for asked, given, says in (
        (request, {"branches": ones}, "which this training was not asked for"),
        (request, {"teacher": teacher}, "which this training was not asked for"),
        (dropping, {}, r"branches float32 \(4, 1\), not nothing"),
        (dropping, {"branches": ones[:2]}, r"not float32 \(2, 1\)"),
        (dropping, {"branches": ones.astype(np.float64)}, r"not float64 \(4, 1\)"),
    ):
        with pytest.raises(UsageError, match=says):
            step_inputs(asked, [replace(batch, **given)], [0.1])


def test_decays_of_the_ema_are_those_of_the_steps() -> None:
    batches = noise_batches(2, images=4)
    kept = train_request(batch_size=4, ema_decay=0.9)
    assert [s.ema_decay for s in step_inputs(kept, batches, [0.1, 0.1])] == [0.9, 0.9]
    assert [s.ema_decay for s in step_inputs(kept, batches, [0.1, 0.1], [0.0, 1.0])] == [0.0, 1.0]
    assert [s.ema_decay for s in step_inputs(replace(kept, ema_decay=None), batches, [0.1, 0.1])] == [
        None
    ] * 2
    with pytest.raises(UsageError, match="decays of the EMA"):
        step_inputs(kept, batches, [0.1, 0.1], [0.5])
    with pytest.raises(UsageError, match="only where there is an EMA"):
        step_inputs(replace(kept, ema_decay=None), batches, [0.1, 0.1], [0.5, 0.5])
