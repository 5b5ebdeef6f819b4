"""Small networks, batches and training set-ups, what the oracle says of them, and how to compare."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig
from resnext_core.interfaces import (
    Backend,
    Batch,
    Mix,
    Predictor,
    PredictRequest,
    TrainRequest,
    TrainState,
)
from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import ModelSpec
from resnext_core.model.weights import Weights
from resnext_core.ranks.collectives import Collectives, SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.reference import plugin as reference
from resnext_core.reference.options import ReferenceOptions
from resnext_core.testing.kinks import exact_steps
from resnext_core.training.trainer import Trainer, create_trainer

#: max |difference| over max |value|, in float32: logits, weights after a step, losses.
TOLERANCE = 1e-5
#: The same for momentum, which is a gradient: sums of many terms of both signs.
GRADIENT_TOLERANCE = 1e-4
#: The same in float16 and bfloat16.
LOW_TOLERANCE = 2e-2
SINGLE = RankInfo()
PREDICT_BATCH = 4


def _spec(name: str, **fields: object) -> ModelSpec:
    values = {"groups": 1, "base_width": 64, "stem_width": 8, "num_classes": 5} | fields
    return ModelSpec(variant=f"contract_{name}", **values)  # type: ignore[arg-type]


#: Every kind of layer and of shape: both stems and paddings, one, few and as many groups as channels,
#: shortcuts with and without projection, odd sizes of the image and on the way down, two classes and odd numbers.
SPECS: Mapping[str, ModelSpec] = {
    "cifar": _spec("cifar", stem="cifar", depths=(1, 2), groups=4, base_width=16, image_size=14),
    "same": _spec("same", depths=(1, 1), groups=32, base_width=8, image_size=24, num_classes=2),
    "same-odd": _spec("same_odd", depths=(1, 1), groups=2, base_width=32, image_size=27, num_classes=7),
    "symmetric": _spec("symmetric", depths=(1, 1), groups=1, image_size=24, pool_padding="symmetric"),
    "one-stage": _spec(
        "one_stage", stem="cifar", depths=(2,), groups=4, base_width=32, image_size=9, num_classes=11
    ),
}


@functools.cache
def weights(name: str, seed: int = 3) -> Weights:
    """Return weights of a network of SPECS in which every element matters to the logits.

    Running statistics are made to fit the network, so that logits are about the image and not about biases.
    Mean and standard deviation of the colours are not ImageNet's, so that constants in code are found.
    """
    raw = _raw_weights(name, seed)
    steps = 20  # the random start fades to 0.9 ** 20
    case = TrainCase(
        network=name,
        batch_size=8,
        lrs=(0.0,) * steps,
        optimizer=OptimizerConfig(momentum=0.0, weight_decay=0.0),
        loss=LossConfig(),
    )
    trainer = oracle_trainer(case.request(network=raw))
    trainer.run_steps([batch(name, 8, seed=200 + step) for step in range(steps)], case.lr_array())
    state = trainer.state()
    trainer.close()
    return raw.replace(tensors={t.name: state.tensors[f"weights/{t.name}"] for t in raw.spec.tensors})


def _raw_weights(name: str, seed: int) -> Weights:
    spec = SPECS[name]
    tensors = random_weights(spec, seed)
    tensors["fc.weight"] *= 3
    return Weights(
        spec=spec,
        preprocess=PreprocessSpec(
            size=spec.image_size, resize=spec.image_size, mean=(141.0, 117.0, 87.0), std=(71.0, 53.0, 37.0)
        ),
        classes=tuple(f"class {i}" for i in range(spec.num_classes)),
        tensors=tensors,
    )


def images(name: str, count: int, seed: int = 5) -> NDArray[np.uint8]:
    """Return uint8 (count, H, W, 3), coarse blocks under noise; read-only, as nobody may write into it."""
    size = SPECS[name].image_size
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 128, (count, -(-size // 6), -(-size // 6), 3))
    blocks = coarse.repeat(6, axis=1).repeat(6, axis=2)[:, :size, :size]
    pixels = (blocks + rng.integers(0, 128, (count, size, size, 3))).astype(np.uint8)
    pixels.flags.writeable = False
    return pixels


def normalized(name: str, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return (pixels - mean) / std as float32 (N, 3, H, W), computed here and not by what is tested."""
    preprocess = weights(name).preprocess
    values = (pixels.astype(np.float64) - preprocess.mean) / preprocess.std
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), dtype=np.float32)


def batch(name: str, count: int, seed: int, valid: str = "") -> Batch:
    """Return a labelled training batch; its arrays are read-only.

    `valid` has a 0 for each row that could not be read, and is empty where all could. Such a row is black and has a
    label, or none where its number is odd.
    """
    labels = np.random.default_rng(seed + 1000).integers(0, SPECS[name].num_classes, count, dtype=np.int32)
    pixels, mask = images(name, count, seed).copy(), np.array([c == "1" for c in valid or "1" * count])
    pixels[~mask] = 0
    labels[~mask & (np.arange(count) % 2 == 1)] = -1
    for array in (pixels, labels, mask):
        array.flags.writeable = False
    return Batch(images=pixels, labels=labels, index=np.arange(count, dtype=np.int64), valid=mask)


@dataclass(frozen=True, kw_only=True)
class TrainCase:
    """A training set-up; one step a learning rate.

    `valid` are the valid rows of the first steps, see :func:`batch`, and `mix` how those are mixed: empty, or a Mix for
    each of `accumulate` micro-batches. Without any the training does not mix.
    """

    network: str
    batch_size: int
    lrs: tuple[float, ...]
    optimizer: OptimizerConfig
    loss: LossConfig
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    accumulate: int = 1
    ema_decay: float | None = None
    valid: tuple[str, ...] = ()
    mix: tuple[tuple[Mix, ...], ...] = ()
    seed: int = 20

    def batches(self) -> list[Batch]:
        """Return a batch for every step, all different; `seed` is that of the first one."""
        valid = self.valid + ("",) * (len(self.lrs) - len(self.valid))
        mixes = self.mix + ((),) * (len(self.lrs) - len(self.mix))
        return [
            replace(batch(self.network, self.batch_size, seed=self.seed + i, valid=v), mix=mix)
            for i, (v, mix) in enumerate(zip(valid, mixes, strict=True))
        ]

    def lr_array(self) -> NDArray[np.float32]:
        """Return the learning rates as a trainer takes them."""
        return np.array(self.lrs, np.float32)

    def request(
        self,
        *,
        network: Weights | None = None,
        precision: PrecisionConfig | None = None,
        rank: RankInfo = SINGLE,
        collectives: Collectives | None = None,
    ) -> TrainRequest:
        """Return the request; with several ranks each takes its share of the batch and of `accumulate`."""
        return TrainRequest(
            weights=network or weights(self.network),
            optimizer=self.optimizer,
            loss=self.loss,
            precision=precision or self.precision,
            batch_size=self.batch_size // rank.world,
            accumulate=max(self.accumulate // rank.world, 1),
            ema_decay=self.ema_decay,
            mixes=bool(self.mix),
            rank=rank,
            collectives=collectives or SingleProcess(),
        )


#: Together they use every option of an optimizer step. Rates and decay are high, so that a mistake shows; in "bare"
#: everything that can be 0 is. Some steps have rows that are not valid, unevenly spread over micro-batches and ranks,
#: some have no others. The seeds are such that no step comes near to a kink, which :func:`oracle_run` asserts.
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
}


@dataclass(frozen=True, kw_only=True, eq=False)
class StepResult:
    """What a trainer said of one step: its loss, and its state after it."""

    loss: float
    state: TrainState


# -- the oracle ----------------------------------------------------------------------------------


@functools.cache
def oracle() -> Backend:
    """Return the record of core's reference backend."""
    return next(iter(reference.resnext_backends()))


def oracle_predictor(network: Weights) -> Predictor:
    """Return the reference predictor of `network` in float64."""
    make = oracle().predictor
    assert make is not None
    options = ReferenceOptions(compute="float64")
    return make(PredictRequest(weights=network, rank=SINGLE, options=options))


def oracle_trainer(request: TrainRequest) -> Trainer:
    """Return the reference trainer of `request`; ask for float64 in its precision."""
    return create_trainer(oracle(), request)


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
    for one, lr in zip(case.batches(), case.lr_array(), strict=True):
        loss = exact_steps(trainer, [one], np.array([lr]))
        results.append(StepResult(loss=float(loss[0]), state=trainer.state()))
    trainer.close()
    return tuple(results)


# -- comparing -----------------------------------------------------------------------------------


def relative_error(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return max |actual - expected| / max |expected|; infinity for what is not finite."""
    assert actual.shape == expected.shape, f"shape {actual.shape}, not {expected.shape}"
    difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    if not np.isfinite(difference).all():
        return float("inf")
    return float(difference.max() / max(float(np.abs(expected).max()), 1e-30))


def assert_close(
    actual: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float, what: str
) -> None:
    """Assert that the relative error is at most `tolerance`."""
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{what}: relative error {error:.2e} is above {tolerance:.0e}"


def assert_tensors_close(
    state: TrainState, expected: TrainState, names: list[str], tolerance: float, when: str
) -> None:
    """Assert closeness of the named tensors of two states and list the worst ones."""
    errors = {n: relative_error(state.tensors[n], expected.tensors[n]) for n in names}
    bad = sorted((name for name in names if not errors[name] <= tolerance), key=lambda n: -errors[n])
    shown = ", ".join(f"{name} {errors[name]:.2e}" for name in bad[:5])
    assert not bad, f"{when}: {len(bad)} of {len(names)} tensors differ by more than {tolerance:.0e}: {shown}"


def assert_states_identical(state: TrainState, expected: TrainState, what: str) -> None:
    """Assert that two states are the same to the bit."""
    assert set(state.tensors) == set(expected.tensors)
    differ = [n for n, a in expected.tensors.items() if state.tensors[n].tobytes() != a.tobytes()]
    assert not differ, f"{what}: {len(differ)} of {len(expected.tensors)} tensors differ, e.g. {differ[:3]}"
    assert dict(state.scalars) == dict(expected.scalars), what


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
    return replace(made, labels=np.where(made.valid, 1, made.labels).astype(np.int32))


def trainable(case: TrainCase) -> list[str]:
    """Return the names of the trainable tensors of a case's network."""
    return [t.name for t in SPECS[case.network].tensors if t.trainable]


def running(case: TrainCase) -> list[str]:
    """Return the names of the running statistics of a case's network."""
    return [t.name for t in SPECS[case.network].tensors if not t.trainable]
