"""Training set-ups, and what the oracle says of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig
from resnext_core.interfaces import Batch, Distillation, Mix, TrainState
from resnext_core.testing.compare import GRADIENT_TOLERANCE as GRADIENT_TOLERANCE
from resnext_core.testing.compare import LOW_TOLERANCE as LOW_TOLERANCE
from resnext_core.testing.compare import TOLERANCE as TOLERANCE
from resnext_core.testing.compare import assert_close as assert_close
from resnext_core.testing.compare import assert_states_identical as assert_states_identical
from resnext_core.testing.compare import assert_tensors_close as assert_tensors_close
from resnext_core.testing.compare import relative_error as relative_error
from resnext_core.testing.kinks import away_from_kinks
from resnext_core.testing.networks import SINGLE as SINGLE
from resnext_core.testing.networks import SPECS as SPECS
from resnext_core.testing.networks import batch as batch
from resnext_core.testing.networks import images as images
from resnext_core.testing.networks import normalized as normalized
from resnext_core.testing.networks import oracle as oracle
from resnext_core.testing.networks import oracle_predictor as oracle_predictor
from resnext_core.testing.networks import oracle_trainer as oracle_trainer
from resnext_core.testing.networks import weights as weights
from resnext_core.testing.train_case import TrainCase as TrainCase
from resnext_core.training.rules import UPDATES, state_groups, tensor_rules

PREDICT_BATCH = 4


#: Together they use every option of an optimizer step. Rates and decay are high, so that a mistake shows; in "bare"
#: everything that can be 0 is. Some steps have rows that are not valid, unevenly spread over micro-batches and ranks,
#: some have no others. The seeds are such that no step comes near to a kink, which :func:`oracle_run` asserts.
#: Where a gradient is divided by its own size, eps is of that size too: else an update is the sign of a gradient, and
#: that of one which is nearly 0 is the rounding's choice.
TRAIN_CASES: Mapping[str, TrainCase] = {
    "plain": TrainCase(
        network="cifar",
        batch_size=6,
        lrs=(0.1, 0.02, 0.0, 1e-6),
        valid=("", "100111", "000000", "011110"),
        seed=300,
        optimizer=OptimizerConfig(momentum=0.9, weight_decay=0.05),
        loss=LossConfig(smoothing=0.1, smoothing_form="others"),
    ),
    "everything": TrainCase(
        network="symmetric",
        # As three ranks of two micro-batches, as two of three, or as one of six.
        batch_size=12,
        accumulate=6,
        lrs=(0.1, 0.02, 0.07),
        valid=("111000111101", "", "000001110000"),
        seed=180,
        # Between the gradient norms of the steps: the last is clipped, the others are not. Clipping all
        # would hide a wrong loss scale.
        optimizer=OptimizerConfig(momentum=0.8, weight_decay=0.02, clip_norm=4.0),
        loss=LossConfig(smoothing=0.2, smoothing_form="uniform"),
        precision=PrecisionConfig(loss_scale="dynamic", scale=1024.0, growth_interval=2),
        ema_decay=0.9,
    ),
    "bare": TrainCase(
        network="same",
        batch_size=4,
        lrs=(0.05, 0.02, 0.03),
        valid=("", "1101", "0000"),
        optimizer=OptimizerConfig(momentum=0.0, weight_decay=0.0),
        loss=LossConfig(smoothing=0.0),
        precision=PrecisionConfig(loss_scale="fixed", scale=4096.0),
    ),
    "mixed": TrainCase(
        network="symmetric",
        # As three ranks of two micro-batches, as two of three, or as one of six. Each has three rows: the first that
        # tell one partner from another.
        batch_size=18,
        accumulate=6,
        lrs=(0.1, 0.05, 0.02),
        valid=("", "", "011111101111110111"),
        mix=(
            (
                Mix(kind="mixup", lam=0.3, partner="rolled"),
                Mix(kind="cutmix", lam=1 - 9 * 10 / 576, box=(2, 0, 11, 10)),
                Mix(),
                Mix(kind="mixup", lam=0.75),
                Mix(kind="cutmix", lam=1 - 15 * 20 / 576, box=(9, 3, 24, 23), partner="rolled"),
                Mix(kind="cutmix", lam=1.0, box=(5, 0, 5, 7)),
            ),
            (),
            (
                Mix(kind="cutmix", lam=1 - 8 * 20 / 576, box=(0, 4, 8, 24), partner="rolled"),
                Mix(kind="mixup", lam=0.0, partner="rolled"),
                Mix(kind="mixup", lam=0.6),
                Mix(kind="cutmix", lam=1 - 12 * 8 / 576, box=(10, 11, 22, 19), partner="rolled"),
                Mix(kind="mixup", lam=0.45, partner="rolled"),
                Mix(kind="cutmix", lam=0.0, box=(0, 0, 24, 24)),
            ),
        ),
        optimizer=OptimizerConfig(momentum=0.9, weight_decay=0.02),
        loss=LossConfig(smoothing=0.1, smoothing_form="others"),
        seed=1135,
    ),
    # The stem is frozen, with its batch statistics; all else learns at rates and decays of its own.
    "nesterov": TrainCase(
        network="same",
        batch_size=4,
        lrs=(0.05, 0.02, 0.0, 0.04),
        valid=("", "1101", "", "0000"),
        optimizer=OptimizerConfig(
            momentum=0.9, nesterov=True, weight_decay=0.05, decay_norm=True, decay_bias=True, stage_lr=0.6
        ),
        loss=LossConfig(smoothing=0.1),
        ema_decay=0.8,
        frozen=1,
        seed=20,
    ),
    # Everything but the classifier is frozen; branches of frozen blocks are left out all the same.
    "head": TrainCase(
        network="one-stage",
        batch_size=3,
        lrs=(0.2, 0.1, 0.1),
        valid=("", "101", ""),
        optimizer=OptimizerConfig(momentum=0.7, weight_decay=0.03, decay_bias=True, clip_norm=3.3),
        loss=LossConfig(kind="bce", smoothing=0.1, smoothing_form="uniform", bce_sum=True),
        frozen=2,
        drops=True,
        seed=40,
    ),
    "lamb": TrainCase(
        network="symmetric",
        # As three ranks of two micro-batches, as two of three, or as one of six.
        batch_size=12,
        accumulate=6,
        lrs=(0.03, 0.05, 0.02),
        valid=("111000111101", "", "000001110000"),
        optimizer=OptimizerConfig(kind="lamb", weight_decay=0.1, betas=(0.8, 0.95), eps=0.05, clip_norm=4.0),
        loss=LossConfig(smoothing=0.1, smoothing_form="uniform"),
        precision=PrecisionConfig(loss_scale="dynamic", scale=1024.0, growth_interval=2),
        ema_decay=0.9,
        ema_decays=(0.0, 1.0, 0.7),
        drops=True,
        seed=80,
    ),
    # Some tensors have a trust ratio below 1 and some above it, which is cut off. Every row has its own weight.
    "lamb-all": TrainCase(
        network="cifar",
        batch_size=6,
        lrs=(0.05, 0.02, 0.03),
        valid=("", "100111", "000000"),
        optimizer=OptimizerConfig(
            kind="lamb",
            weight_decay=0.05,
            decay_norm=True,
            eps=0.02,
            trust_all=True,
            trust_clip=True,
            stage_lr=0.7,
        ),
        loss=LossConfig(smoothing=0.1),
        seed=180,
        class_weights=(0.5, 2.0, 1.0, 0.25, 1.5),
    ),
    "adamw": TrainCase(
        network="same-odd",
        batch_size=6,
        accumulate=2,
        lrs=(0.02, 0.01, 0.03),
        valid=("", "", "110111"),
        mix=(
            (Mix(kind="mixup", lam=0.4, partner="rolled"), Mix(kind="mixup", lam=0.1)),
            (),
            (Mix(kind="cutmix", lam=1 - 14 * 20 / 729, box=(3, 0, 17, 20)), Mix(kind="mixup", lam=0.7)),
        ),
        optimizer=OptimizerConfig(kind="adamw", weight_decay=0.3, betas=(0.7, 0.9), eps=0.02, stage_lr=0.6),
        # What a mixed row has of each of its two classes, smoothed, is 0.37 and 0.55, 0.1 and 0.83, or so.
        loss=LossConfig(kind="bce", smoothing=0.1, smoothing_form="uniform", bce_threshold=0.2),
        precision=PrecisionConfig(loss_scale="fixed", scale=64.0),
        seed=60,
    ),
    "agc": TrainCase(
        network="cifar",
        batch_size=6,
        accumulate=2,
        lrs=(0.1, 0.05, 0.02),
        valid=("", "100111", ""),
        # Some channels are clipped, and some are not; with the loss scale left in, nearly all would be.
        optimizer=OptimizerConfig(momentum=0.9, weight_decay=0.01, agc=0.3),
        loss=LossConfig(smoothing=0.1),
        precision=PrecisionConfig(loss_scale="fixed", scale=64.0),
        distillation=Distillation(weight=0.3, temperature=2.5),
        logit_offsets=(-1.5, 0.5, -0.25, 1.0, 0.75),
        drops=True,
        seed=180,
    ),
    "sizes": TrainCase(
        network="same",
        batch_size=4,
        lrs=(0.05, 0.02, 0.03),
        sizes=(16, 24, 21),
        optimizer=OptimizerConfig(momentum=0.9, weight_decay=0.01),
        loss=LossConfig(smoothing=0.1),
        seed=40,
    ),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class StepResult:
    """What a trainer said of one step: its loss, and its state after it."""

    loss: float
    state: TrainState


def oracle_precision(case: TrainCase) -> PrecisionConfig:
    """Return the precision of `case` in float64 arithmetic."""
    values = {name: getattr(case.precision, name) for name in ("loss_scale", "scale", "growth_interval")}
    return PrecisionConfig(compute="float64", **values)


@functools.cache
def oracle_run(case_name: str) -> tuple[StepResult, ...]:
    """Return what the reference trainer in float64 says of every step of a case."""
    case = TRAIN_CASES[case_name]
    trainer = oracle_trainer(case.request(precision=oracle_precision(case)))
    results = []
    for step in range(len(case.lrs)):
        with away_from_kinks():
            loss = case.take(trainer, slice(step, step + 1))
        results.append(StepResult(loss=float(loss[0]), state=trainer.state()))
    trainer.close()
    return tuple(results)


def on_the_verge(state: TrainState, *, loss_scale: float, logit: float = 100.0) -> TrainState:
    """Return a state of the case "everything" whose network is sure of class 0, for every image, and wrong on others.

    Its gradients of such rows are above 2 in the classifier, which sees features of about 20 and hands nothing down.
    """
    bias = np.zeros_like(state.tensors["weights/fc.bias"])
    bias[:2] = logit, -logit
    changed = {
        "weights/fc.bias": bias,
        "weights/fc.weight": np.zeros_like(state.tensors["weights/fc.weight"]),
        "weights/layer2.0.bn3.bias": np.full_like(state.tensors["weights/layer2.0.bn3.bias"], 20.0),
    }
    return TrainState(
        tensors={**state.tensors, **changed}, scalars={**state.scalars, "loss_scale": loss_scale}
    )


def wrong_rows(case: TrainCase, start: int, count: int) -> Batch:
    """Return a batch whose only valid rows are `count` from `start` on, all of class 1."""
    size = case.batch_size
    valid = "".join("1" if start <= row < start + count else "0" for row in range(size))
    made = batch(case.network, size, seed=30, valid=valid)
    labels = np.where(made.valid, 1, made.labels).astype(np.int32)
    blocks = len(SPECS[case.network].blocks)
    return replace(made, labels=labels, branches=np.ones((size, blocks), np.float32) if case.drops else None)


def trainable(case: TrainCase) -> list[str]:
    """Return the names of the tensors that learn in a case."""
    return list(tensor_rules(case.request()))


def optimizer_state(case: TrainCase) -> list[str]:
    """Return the keys of all optimizer state of a case."""
    keys = [f"{group}/{name}" for group in state_groups(case.optimizer) for name in trainable(case)]
    return keys if case.optimizer.kind == "sgd" else [*keys, UPDATES]


def running(case: TrainCase) -> list[str]:
    """Return the names of the running statistics of a case's network."""
    return [t.name for t in SPECS[case.network].tensors if not t.trainable]
