"""Classes of unlike size in the loss: weights and offsets against exact numbers, mixed rows against both labels."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from resnext_core.config import Config, DataConfig, LossConfig, MixConfig, load_config, parse_set
from resnext_core.data.balance import shown_shares
from resnext_core.data.index import Index
from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import Mix, TrainRequest
from resnext_core.model.preprocess import normalize
from resnext_core.reference.network import train_pass
from resnext_core.testing.cases import oracle
from resnext_core.testing.tiny import CLASSES, noise_batches, tiny_weights, train_request
from resnext_core.training.imbalance import (
    class_loss,
    class_weights,
    imbalance,
    logit_offsets,
    remedies,
    weighted_rows,
)
from resnext_core.training.inputs import step_inputs
from resnext_core.training.trainer import create_trainer

COUNTS = np.array([8, 4, 0, 2])


def index(*counts: int) -> Index:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    return Index(
        root=Path("photos"), paths=[f"{i}.jpg" for i in range(len(labels))], labels=labels,
        classes=tuple("abcde"[: len(counts)]),
    )  # fmt: skip


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_weights_are_inverse_to_the_images_of_a_class(balance: float) -> None:
    shares = shown_shares(COUNTS, balance)
    weights = class_weights(LossConfig(class_weights="inverse"), COUNTS, shares)
    assert weights is not None
    assert (weights * shares).sum() == pytest.approx(1, rel=1e-14)
    assert (weights / weights[0]).tolist() == [1, 2, 0, 4]
    if balance == 0:
        assert weights.tolist() == [float(Fraction(14, 3 * n)) if n else 0 for n in COUNTS.tolist()]


@pytest.mark.parametrize(
    ("beta", "relative"),
    [
        (0.0, [1, 1, 0, 1]),
        (0.5, [Fraction(2**8 * (2**n - 1), 2**n * (2**8 - 1)) for n in (8, 4, 2)]),
    ],
)
def test_weights_are_inverse_to_the_effective_number(beta: float, relative: list[Any]) -> None:
    """(1 - β ** n) / (1 - β), at β = 1/2 as fractions; near 1 it is the inverse frequency."""
    loss = LossConfig(class_weights="effective", effective_beta=beta)
    weights = class_weights(loss, COUNTS, shown_shares(COUNTS, 0))
    assert weights is not None
    expected = relative if beta == 0 else [1 / relative[0], 1 / relative[1], 0, 1 / relative[2]]
    np.testing.assert_allclose(weights / weights[0], np.array(expected, float), rtol=1e-14)
    near = class_weights(dataclasses.replace(loss, effective_beta=0.999999), COUNTS, shown_shares(COUNTS, 0))
    assert near is not None
    np.testing.assert_allclose(near / near[0], [1, 2, 0, 4], rtol=1e-5)


def test_without_a_setting_there_are_neither_weights_nor_offsets() -> None:
    made = class_loss(Config(), index(8, 2))
    assert made.class_weights is None
    assert made.logit_offsets is None


def test_offsets_are_logarithms_of_the_shares() -> None:
    loss = LossConfig(logit_adjustment=1.5)
    offsets = logit_offsets(loss, shown_shares(np.array([8, 4, 4]), 0))
    assert offsets is not None
    assert offsets.dtype == np.float32
    np.testing.assert_allclose(offsets, 1.5 * np.log([0.5, 0.25, 0.25]), rtol=1e-7)
    balanced = class_loss(config("loss.logit_adjustment=2", "data.balance=1"), index(8, 1)).logit_offsets
    assert balanced is not None
    np.testing.assert_allclose(
        balanced, 2 * np.log([0.5, 0.5]), rtol=1e-7
    )  # equal: nothing is left to adjust


def config(*sets: str) -> Config:
    return load_config(parse_set(list(sets)))[0]


@pytest.mark.parametrize(
    ("sets", "error", "words"),
    [
        (
            ["loss.logit_adjustment=1", "loss.kind=bce"],
            UsageError,
            r"loss\.logit_adjustment is defined for cross",
        ),
        (
            ["loss.logit_adjustment=1"],
            DataError,
            r"1 have none, e\.g\. 'b'; add some, or set loss\.logit_adj",
        ),
        (
            ["loss.class_weights=inverse", "loss.kind=bce", "loss.bce_threshold=0.2", "mix.mixup=1"],
            UsageError,
            r"loss\.class_weights and loss\.bce_threshold cannot both be used on mixed images",
        ),
    ],
)
def test_what_cannot_be_is_refused(sets: list[str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        class_loss(config(*sets), index(4, 0, 2))


def test_a_threshold_and_weights_go_together_where_nothing_is_mixed() -> None:
    made = class_loss(
        config("loss.class_weights=inverse", "loss.kind=bce", "loss.bce_threshold=0.2"), index(4, 2)
    )
    assert made.class_weights is not None


def row_losses(loss: LossConfig, logits: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """Return the loss of each row with the smoothed target of one label, as the papers write it."""
    z, k, e = logits.astype(np.float64), logits.shape[1], loss.smoothing
    on, off = (1 - e, e / (k - 1)) if loss.smoothing_form == "others" else (1 - e + e / k, e / k)
    target = np.full(z.shape, off)
    target[np.arange(len(labels)), labels] = on
    if loss.kind == "ce":
        found: NDArray[Any] = -(target * (z - np.log(np.exp(z).sum(axis=1, keepdims=True)))).sum(axis=1)
        return found
    sigmoid = 1 / (1 + np.exp(-z))
    found = -(target * np.log(sigmoid) + (1 - target) * np.log(1 - sigmoid)).mean(axis=1)
    return found


def mixed(loss: LossConfig, logits: NDArray[Any], own: Any, other: Any, share: Any) -> NDArray[Any]:
    """Return the loss of each row against the mixed target: both losses are linear in it."""
    return share * row_losses(loss, logits, own) + (1 - share) * row_losses(loss, logits, other)


@pytest.mark.parametrize("kind", ["ce", "bce"])
@pytest.mark.parametrize("form", ["others", "uniform"])
def test_each_label_of_a_mixed_row_has_the_weight_of_its_class(
    kind: Literal["ce", "bce"], form: Literal["others", "uniform"]
) -> None:
    loss = LossConfig(kind=kind, smoothing=0.1, smoothing_form=form)
    table = np.array([0.25, 1.0, 3.0, 0.0, 7.5])
    batch = dataclasses.replace(noise_batches(1, images=8, seed=4)[0], mix=(Mix(kind="mixup", lam=0.3),))
    request = train_request(batch_size=8, mixes=True, loss=loss)
    [plain] = step_inputs(request, [batch], [0.1])
    [step] = step_inputs(dataclasses.replace(request, class_weights=table), [batch], [0.1])
    assert plain.mix is not None
    assert step.mix is not None
    logits = np.random.default_rng(1).normal(size=(8, 5))
    found = step.weights * mixed(loss, logits, step.labels, step.mix.labels, step.mix.share)
    share = plain.mix.share
    own = share * table[plain.labels] * row_losses(loss, logits, plain.labels)
    other = (1 - share) * table[plain.mix.labels] * row_losses(loss, logits, plain.mix.labels)
    np.testing.assert_allclose(found, own + other, rtol=1e-13)
    for name in ("partner", "box", "blend", "labels"):  # pixels are mixed as without weights
        assert np.array_equal(getattr(step.mix, name), getattr(plain.mix, name))


def test_rows_that_are_not_mixed_have_exactly_the_weight_of_their_label() -> None:
    table = np.array([0.1, 1 / 3, 0.7, 3.1, 0.0])
    batch = noise_batches(1, images=6, seed=2)[0]
    valid = np.array([True, True, False, True, True, True])
    batch = dataclasses.replace(batch, valid=valid, mix=(Mix(),))
    [step] = step_inputs(train_request(batch_size=6, mixes=True, class_weights=table), [batch], [0.1])
    assert step.mix is not None
    assert step.mix.share.tolist() == [1.0] * 6
    assert step.weights.tolist() == [
        6 / 5 * table[label] if v else 0.0 for label, v in zip(batch.labels, valid, strict=True)
    ]
    weights, mix = weighted_rows(table, step.labels, None)
    assert mix is None
    assert np.array_equal(weights, table[step.labels])


def test_the_loss_of_a_step_is_that_of_both_labels_with_their_weights() -> None:
    """Through the reference engine: what is reported is the mean over the rows of weight times loss."""
    table = np.array([0.25, 1.0, 3.0, 0.5, 7.5])
    weights = tiny_weights()
    batch = dataclasses.replace(
        noise_batches(1, images=6, seed=4)[0], mix=(Mix(kind="cutmix", lam=0.75, box=(0, 0, 8, 8)),)
    )
    request = train_request(
        weights, batch_size=6, mixes=True, class_weights=table, loss=LossConfig(smoothing=0.1)
    )
    trainer = create_trainer(oracle(), request)
    [found] = trainer.run_steps([batch], np.array([0.0], np.float32))
    images = batch.images.copy()
    images[:, :8, :8] = batch.images[::-1, :8, :8]
    x = normalize(images, weights.preprocess).transpose(1, 0, 2, 3).astype(np.float64)
    tensors = {name: array.astype(np.float64) for name, array in weights.tensors.items()}
    logits = train_pass(weights.spec, tensors, x, lambda z: (0.0, np.zeros_like(z))).logits
    own, other = batch.labels, batch.labels[::-1]
    loss = LossConfig(smoothing=0.1)
    rows = 0.75 * table[own] * row_losses(loss, logits, own) + 0.25 * table[other] * row_losses(
        loss, logits, other
    )
    assert found == pytest.approx(rows.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_weights": np.ones(4)}, "class_weights must be 5 finite numbers"),
        ({"logit_offsets": np.full(CLASSES, -np.inf, np.float32)}, "logit_offsets must be 5 finite numbers"),
        (
            {"class_weights": np.ones(5), "mixes": True, "loss": LossConfig(kind="bce", bce_threshold=0.2)},
            "cannot both be used on mixed images",
        ),
        (
            {"logit_offsets": np.zeros(5, np.float32), "loss": LossConfig(kind="bce")},
            "defined for cross-entropy",
        ),
    ],
)
def test_a_trainer_refuses_what_does_not_fit(changes: dict[str, Any], words: str) -> None:
    backend = dataclasses.replace(oracle(), ingredients=frozenset({"mix", "bce", "logit-offsets"}))
    request: TrainRequest = train_request(batch_size=4, **changes)
    with pytest.raises(UsageError, match=words):
        create_trainer(backend, request)


def test_classes_of_unlike_size_are_said() -> None:
    assert imbalance(index(50, 10)) is None
    assert imbalance(index(51, 0, 10)) == ("classes are imbalanced: 'a' has 51 training images, 'c' 10")
    used = Config(
        loss=LossConfig(class_weights="effective", logit_adjustment=1.0),
        data=DataConfig(balance=0.5),
        mix=MixConfig(),
    )
    assert remedies(used) == ["loss.class_weights=effective", "loss.logit_adjustment=1", "data.balance=0.5"]
    assert remedies(Config()) == []
