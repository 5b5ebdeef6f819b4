"""The reference trainer: each rule of the optimizer step, exact resume, and several ranks."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig
from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import Batch, TrainRequest, TrainState
from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import ModelSpec
from resnext_core.model.weights import Weights
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.reference.loss import loss_function
from resnext_core.reference.network import normalize, train_pass
from resnext_core.reference.optimizers import clip_factor
from resnext_core.testing.cases import oracle_trainer
from resnext_core.testing.distributed import ThreadGroup
from resnext_core.testing.kinks import exact_steps
from resnext_core.training.trainer import Trainer

Array = np.ndarray[Any, Any]

SPEC = ModelSpec(
    variant="tiny",
    depths=(1, 1),
    groups=2,
    base_width=16,
    stem_width=8,
    stem="cifar",
    num_classes=4,
    image_size=8,
)
TRAINABLE = [t.name for t in SPEC.tensors if t.trainable]
STATISTICS = [t.name for t in SPEC.tensors if not t.trainable]
PLAIN = OptimizerConfig(momentum=0.0, weight_decay=0.0)
WEIGHTS = Weights(
    spec=SPEC,
    preprocess=PreprocessSpec(size=8, resize=8, mean=(100, 110, 120), std=(50, 60, 70)),
    classes=("a", "b", "c", "d"),
    tensors=random_weights(SPEC, 3),
)


def trainer(**changes: Any) -> Trainer:
    fields: dict[str, Any] = {
        "weights": WEIGHTS,
        "optimizer": OptimizerConfig(weight_decay=0.01),
        "loss": LossConfig(),
        "precision": PrecisionConfig(),
        "batch_size": 4,
        "rank": RankInfo(),
        "collectives": SingleProcess(),
    }
    return oracle_trainer(TrainRequest(**(fields | changes)))


def batch(seed: int, size: int = 4) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch(
        images=rng.integers(0, 256, (size, 8, 8, 3), dtype=np.uint8),
        labels=rng.integers(0, 4, size).astype(np.int32),
        index=np.arange(size),
        valid=np.ones(size, bool),
    )


def lrs(*values: float) -> Array:
    return np.array(values, np.float32)


def gradients(data: Batch, tensors: dict[str, Array] | None = None) -> tuple[float, dict[str, Array]]:
    x = normalize(data.images, WEIGHTS.preprocess, np.dtype("float64"))
    start = tensors or {n: a.astype(np.float64) for n, a in WEIGHTS.tensors.items()}
    found = train_pass(SPEC, start, x, loss_function(LossConfig(), 4, data.labels))
    return found.loss, found.gradients


def assert_same(a: TrainState, b: TrainState) -> None:
    assert a.scalars == b.scalars
    assert set(a.tensors) == set(b.tensors)
    for name, array in a.tensors.items():
        assert np.array_equal(array, b.tensors[name]), name


def test_it_is_a_trainer_with_a_complete_state() -> None:
    made = trainer(ema_decay=0.9)
    assert isinstance(made, Trainer)
    state = made.state()
    assert set(state.tensors) == (
        {f"weights/{t.name}" for t in SPEC.tensors}
        | {f"momentum/{n}" for n in TRAINABLE}
        | {f"ema/{t.name}" for t in SPEC.tensors}
    )
    assert {a.dtype for a in state.tensors.values()} == {np.dtype("float32")}
    assert state.scalars == {"step": 0, "overflow_steps": 0, "loss_scale": 1.0, "good_steps": 0}
    assert not any(k.startswith("ema/") for k in trainer().state().tensors)


def test_momentum_and_decay_are_the_formula() -> None:
    """Three steps in float64 against v = m·v + g + wd·p; p -= lr·v written out."""
    made = trainer(precision=PrecisionConfig(compute="float64"))
    weights = {n: a.astype(np.float64) for n, a in WEIGHTS.tensors.items()}
    velocity = {n: np.zeros_like(weights[n]) for n in TRAINABLE}
    decay = {t.name: 0.01 if t.role in ("conv", "fc_weight") else 0.0 for t in SPEC.tensors}
    losses = []
    for step, lr in enumerate((0.1, 0.05, 0.2)):
        loss, found = gradients(batch(step), weights)
        losses.append(loss)
        for name in TRAINABLE:
            velocity[name] = 0.9 * velocity[name] + found[name] + decay[name] * weights[name]
            weights[name] = weights[name] - float(np.float32(lr)) * velocity[name]
    got = made.run_steps([batch(i) for i in range(3)], lrs(0.1, 0.05, 0.2))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, losses, rtol=1e-6)
    state = made.state().tensors
    for name in TRAINABLE:
        np.testing.assert_allclose(state[f"weights/{name}"], weights[name], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(state[f"momentum/{name}"], velocity[name], rtol=1e-6, atol=1e-7)


def test_loss_falls_to_nearly_nothing_on_one_batch() -> None:
    made = trainer(loss=LossConfig(smoothing=0.0))
    losses = made.run_steps([batch(0)] * 30, np.full(30, 0.05, np.float32))
    assert losses[0] > 1
    assert losses[-1] < 0.1


def test_accumulation_averages_micro_batches_with_statistics_of_their_own() -> None:
    made = trainer(optimizer=PLAIN, accumulate=2, precision=PrecisionConfig(compute="float64"))
    data = batch(0)
    halves = [
        Batch(images=data.images[s], labels=data.labels[s], index=data.index[s], valid=data.valid[s])
        for s in (slice(0, 2), slice(2, 4))
    ]
    (loss1, first), (loss2, second) = (gradients(h) for h in halves)
    assert made.run_steps([data], lrs(0.1))[0] == pytest.approx((loss1 + loss2) / 2, rel=1e-6)
    state = made.state().tensors
    for name in TRAINABLE:
        mean = (first[name] + second[name]) / 2
        np.testing.assert_allclose(state[f"momentum/{name}"], mean, rtol=1e-6, atol=1e-8)
    # the statistics moved twice, by the first half and then by the second
    x = [normalize(h.images, WEIGHTS.preprocess, np.dtype("float64")) for h in halves]
    tensors = {n: a.astype(np.float64) for n, a in WEIGHTS.tensors.items()}
    for part, half in zip(x, halves, strict=True):
        tensors |= train_pass(SPEC, tensors, part, loss_function(LossConfig(), 4, half.labels)).running
    for name in STATISTICS:
        np.testing.assert_allclose(state[f"weights/{name}"], tensors[name], rtol=1e-6, atol=1e-7)


def masked(seed: int, valid: list[bool]) -> Batch:
    """Return a batch with rows that are not valid: black, and with a label that is none."""
    data, mask = batch(seed, len(valid)), np.array(valid)
    return Batch(
        images=data.images * mask[:, None, None, None].astype(np.uint8),
        labels=np.where(mask, data.labels, -1).astype(np.int32),
        index=data.index,
        valid=mask,
    )


def loss_formula(tensors: dict[str, Array], data: Batch, micro: int, smoothing: float) -> float:
    """Return the sum over valid rows of their smoothed cross-entropy, over the number of valid rows, in float64.

    The logits are the network's; the mask, the mean and the cross-entropy are written out here.
    """
    losses = []
    for start in range(0, len(data), micro):
        part = slice(start, start + micro)
        x = normalize(data.images[part], WEIGHTS.preprocess, np.dtype("float64"))
        logits = train_pass(
            SPEC, tensors, x, loss_function(LossConfig(), 4, np.zeros(micro, np.int32))
        ).logits
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        for row, label in zip(logs[data.valid[part]], data.labels[part][data.valid[part]], strict=True):
            target = np.full(4, smoothing / 3)
            target[label] = 1 - smoothing
            losses.append(-(target * row).sum())
    return float(np.sum(losses) / max(len(losses), 1))


@pytest.mark.parametrize(
    ("accumulate", "valid"),
    [
        (1, [True, False, True, True]),
        (2, [True, True, False, True]),
        (2, [False, False, True, False]),
        (3, [True, False, False, False, True, True]),
        (2, [False] * 4),
    ],
)
def test_a_row_that_is_not_valid_has_no_weight(accumulate: int, valid: list[bool]) -> None:
    """Loss and gradient, by central differences, of the mean over valid rows; statistics are over all rows."""
    data, size = masked(7, valid), len(valid)
    exact = PrecisionConfig(compute="float64")
    fields = {"optimizer": PLAIN, "precision": exact, "batch_size": size, "accumulate": accumulate}
    made = trainer(loss=LossConfig(smoothing=0.1, smoothing_form="others"), **fields)
    found = float(made.run_steps([data], lrs(0.0))[0])
    tensors = {n: a.astype(np.float64) for n, a in WEIGHTS.tensors.items()}
    formula = lambda given: loss_formula(given, data, size // accumulate, 0.1)  # noqa: E731
    assert found == pytest.approx(formula(tensors), rel=1e-6)
    state, rng = made.state().tensors, np.random.default_rng(0)
    for name in ("conv1.weight", "bn1.bias", "layer2.0.conv2.weight", "fc.weight", "fc.bias"):
        direction, step = rng.normal(size=tensors[name].shape), 1e-6
        ends = [formula({**tensors, name: tensors[name] + s * direction}) for s in (step, -step)]
        slope = float((state[f"momentum/{name}"] * direction).sum())
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-7), name
    whole = trainer(**fields)
    whole.run_steps(
        [Batch(images=data.images, labels=abs(data.labels), index=data.index, valid=data.valid | True)],
        lrs(0),
    )
    for name in STATISTICS:
        assert np.array_equal(state[f"weights/{name}"], whole.state().tensors[f"weights/{name}"]), name


def test_a_step_without_a_valid_row_is_taken() -> None:
    made = trainer(optimizer=OptimizerConfig(momentum=0.5, weight_decay=0.01))
    assert made.run_steps([batch(0), masked(1, [False] * 4)], lrs(0.1, 0.1))[1] == 0
    one = trainer(optimizer=OptimizerConfig(momentum=0.5, weight_decay=0.01))
    one.run_steps([batch(0)], lrs(0.1))
    before, after = one.state().tensors, made.state().tensors
    for tensor in [t for t in SPEC.tensors if t.trainable]:
        weight = before[f"weights/{tensor.name}"]
        velocity = 0.5 * before[f"momentum/{tensor.name}"] + (0.01 * weight if tensor.decay else 0)
        np.testing.assert_allclose(after[f"momentum/{tensor.name}"], velocity, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(
            after[f"weights/{tensor.name}"], weight - 0.1 * velocity, rtol=1e-6, atol=1e-8
        )
    assert made.counters() == {"step": 2, "overflow_steps": 0, "loss_scale": 1.0, "good_steps": 0}


def test_clipping_bounds_the_gradient_before_decay_is_added() -> None:
    _, found = gradients(batch(0))
    norm = np.sqrt(sum(np.square(g).sum() for g in found.values()))
    made = trainer(
        optimizer=OptimizerConfig(weight_decay=0.01, clip_norm=norm / 4),
        precision=PrecisionConfig(compute="float64", loss_scale="fixed"),
    )
    made.run_steps([batch(0)], lrs(0.1))
    state = made.state().tensors
    for tensor in [t for t in SPEC.tensors if t.trainable]:
        decay = 0.01 * WEIGHTS.tensors[tensor.name] if tensor.decay else 0.0
        expected = found[tensor.name] / 4 + decay
        np.testing.assert_allclose(state[f"momentum/{tensor.name}"], expected, rtol=1e-5, atol=1e-7)


def test_clip_factor() -> None:
    grads = {"a": np.array([3.0]), "b": np.array([[4.0]])}
    assert clip_factor(grads, None) == 1.0
    assert clip_factor(grads, 6.0) == 1.0
    assert clip_factor(grads, 1.0) == pytest.approx(1 / (5 + 1e-6), rel=1e-12)
    assert np.isnan(clip_factor({"a": np.array([np.nan])}, 1.0))


def test_a_fixed_scale_changes_nothing() -> None:
    """A power of two multiplied in and divided out is exact, weight decay and clipping included."""
    optimizer = OptimizerConfig(weight_decay=0.01, clip_norm=0.5)
    plain = trainer(optimizer=optimizer)
    scaled = trainer(optimizer=optimizer, precision=PrecisionConfig(loss_scale="fixed", scale=1024.0))
    batches = [batch(i) for i in range(2)]
    assert np.array_equal(plain.run_steps(batches, lrs(0.1, 0.1)), scaled.run_steps(batches, lrs(0.1, 0.1)))
    a, b = plain.state(), scaled.state()
    assert b.scalars["loss_scale"] == 1024.0
    for name, array in a.tensors.items():
        np.testing.assert_allclose(b.tensors[name], array, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("kind", ["fixed", "dynamic"])
def test_an_overflowed_step_is_skipped_and_counted(kind: str) -> None:
    scale = 2.0**130  # no float32
    made = trainer(precision=PrecisionConfig(loss_scale=kind, scale=scale), ema_decay=0.5)  # type: ignore[arg-type]
    loss = made.run_steps([batch(0)], lrs(0.1))
    assert loss[0] == pytest.approx(gradients(batch(0))[0], rel=1e-5)
    state = made.state()
    assert state.scalars == {
        "step": 1,
        "overflow_steps": 1,
        "loss_scale": scale / 2 if kind == "dynamic" else scale,
        "good_steps": 0,
    }
    for name in TRAINABLE:
        assert np.array_equal(state.tensors[f"weights/{name}"], WEIGHTS.tensors[name]), name
        assert not state.tensors[f"momentum/{name}"].any(), name
    for name in STATISTICS:  # the forward pass was sound
        assert not np.array_equal(state.tensors[f"weights/{name}"], WEIGHTS.tensors[name]), name
        mean = 0.5 * WEIGHTS.tensors[name] + 0.5 * state.tensors[f"weights/{name}"]
        np.testing.assert_allclose(state.tensors[f"ema/{name}"], mean, rtol=1e-6)


def powers_of_scale(start: float, steps: int) -> tuple[Trainer, list[float]]:
    """Return log2 of the dynamic loss scale after each step, growing after 3 good ones."""
    precision = PrecisionConfig(loss_scale="dynamic", scale=start, growth_interval=3)
    made, powers = trainer(precision=precision), []
    for step in range(steps):
        made.run_steps([batch(step)], lrs(0.01))
        powers.append(float(np.log2(made.counters()["loss_scale"])))
    return made, powers


def test_the_dynamic_scale_doubles_after_good_steps() -> None:
    made, powers = powers_of_scale(2.0**10, 7)
    assert powers == [10, 10, 11, 11, 11, 12, 12]
    assert made.counters() == {"step": 7, "overflow_steps": 0, "loss_scale": 4096.0, "good_steps": 1}


def test_the_dynamic_scale_recovers_and_stops_at_the_end_of_float32() -> None:
    made, powers = powers_of_scale(2.0**131, 10)
    assert powers[:4] == [130, 129, 128, 127]
    assert max(powers[4:]) <= 127
    assert made.counters()["overflow_steps"] < 10
    assert np.isfinite(made.predictor().logits(batch(0).images)).all()


def test_the_dynamic_scale_stays_at_least_one() -> None:
    broken = WEIGHTS.replace(
        tensors={**WEIGHTS.tensors, "fc.weight": np.full_like(WEIGHTS.tensors["fc.weight"], 3e38)}
    )
    made = trainer(weights=broken, precision=PrecisionConfig(loss_scale="dynamic", scale=2.0))
    made.run_steps([batch(0)] * 3, lrs(0.1, 0.1, 0.1))
    assert made.counters() == {"step": 3, "overflow_steps": 3, "loss_scale": 1.0, "good_steps": 0}


def test_ema_follows_weights_and_statistics() -> None:
    made = trainer(ema_decay=0.8)
    average = {n: a.astype(np.float64) for n, a in WEIGHTS.tensors.items()}
    for step in range(3):
        made.run_steps([batch(step)], lrs(0.1))
        state = made.state().tensors
        for name in average:
            average[name] = 0.8 * average[name] + 0.2 * state[f"weights/{name}"]
            np.testing.assert_allclose(state[f"ema/{name}"], average[name], rtol=1e-5, atol=1e-7)
    images = batch(9).images
    assert not np.allclose(made.predictor(ema=True).logits(images), made.predictor().logits(images))


def test_a_predictor_follows_the_weights() -> None:
    made, images = trainer(), batch(9).images
    server = made.predictor()
    before = server.logits(images)
    made.run_steps([batch(0)], lrs(0.5))
    assert not np.allclose(server.logits(images), before)
    assert np.array_equal(made.predictor().logits(images), server.logits(images))
    state = made.state()
    made.load_state(trainer().state())
    assert np.array_equal(server.logits(images), before)
    made.load_state(state)
    assert not np.allclose(server.logits(images), before)


def test_a_closed_trainer_does_nothing_more() -> None:
    made = trainer()
    server, state = made.predictor(), made.state()
    made.close()
    made.close()
    for call in (
        lambda: made.run_steps([batch(0)], lrs(0.1)), made.predictor, made.state, lambda: made.load_state(state)
    ):  # fmt: skip
        with pytest.raises(UsageError, match="trainer is closed"):
            call()
    with pytest.raises(UsageError, match="predictor is closed"):
        server.logits(batch(0).images)


def test_resume_is_exact_to_the_bit_and_chunks_do_not_matter() -> None:
    fields: dict[str, Any] = {
        "ema_decay": 0.9,
        "accumulate": 2,
        "precision": PrecisionConfig(loss_scale="dynamic", scale=2.0**130, growth_interval=2),
    }
    batches, rates = [batch(i) for i in range(6)], lrs(0.1, 0.1, 0.2, 0.2, 0.05, 0.05)
    whole = trainer(**fields)
    losses = whole.run_steps(batches, rates)
    first, second = trainer(**fields), trainer(**fields)
    left = [first.run_steps(batches[:1], rates[:1]), first.run_steps(batches[1:4], rates[1:4])]
    saved = first.state()
    first.run_steps(batches[:1], rates[:1])  # must not reach into the saved state
    second.load_state(saved)
    assert_same(second.state(), saved)
    assert np.array_equal(np.concatenate([*left, second.run_steps(batches[4:], rates[4:])]), losses)
    assert_same(second.state(), whole.state())


def test_a_state_that_does_not_fit_is_refused() -> None:
    made = trainer()
    good = made.state()
    name = "weights/fc.weight"
    without = {n: a for n, a in good.tensors.items() if n != name}
    for tensors, says in (
        (without, "missing weights/fc"),
        ({**good.tensors, "ema/fc.weight": good.tensors[name]}, "unexpected ema"),
        ({**good.tensors, name: good.tensors[name].T}, r"not float32 \(4, 64\)"),
        ({**good.tensors, name: good.tensors[name].astype(np.float64)}, "float64"),
    ):
        with pytest.raises(DataError, match=says):
            made.load_state(TrainState(tensors=tensors, scalars=good.scalars))
    with pytest.raises(DataError, match="missing good_steps"):
        made.load_state(
            TrainState(tensors=good.tensors, scalars={"step": 1, "overflow_steps": 0, "loss_scale": 1})
        )
    assert_same(made.state(), good)


def test_requests_and_batches_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="bfloat16"):
        trainer(precision=PrecisionConfig(compute="bfloat16"))
    with pytest.raises(UsageError, match="micro-batches"):
        trainer(accumulate=3)
    made = trainer()
    with pytest.raises(UsageError, match="learning rate"):
        made.run_steps([batch(0)], lrs(0.1, 0.1))
    with pytest.raises(UsageError, match="4 images a rank, not 2"):
        made.run_steps([batch(0, size=2)], lrs(0.1))
    with pytest.raises(UsageError, match="ema_decay"):
        made.predictor(ema=True)
    assert made.counters()["step"] == 0


def test_two_ranks_equal_one_that_accumulates() -> None:
    group, done, failures = ThreadGroup(2), {}, []
    optimizer = OptimizerConfig(weight_decay=0.01, clip_norm=0.5)
    wholes, rates = [batch(i) for i in range(3)], lrs(0.1, 0.1, 0.05)

    def run(rank: int) -> None:
        try:
            made = trainer(
                optimizer=optimizer,
                batch_size=2,
                rank=RankInfo(rank=rank, world=2),
                collectives=group.of(rank),
            )
            part = slice(2 * rank, 2 * rank + 2)
            own = [
                Batch(images=w.images[part], labels=w.labels[part], index=w.index[part], valid=w.valid[part])
                for w in wholes
            ]
            done[rank] = (made.run_steps(own, rates), made.state().tensors)
        except Exception as error:
            failures.append(error)
            group.abort()

    threads = [threading.Thread(target=run, args=(r,)) for r in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    one = trainer(optimizer=optimizer, accumulate=2, precision=PrecisionConfig(compute="float64"))
    np.testing.assert_allclose(done[0][0], exact_steps(one, wholes, rates), rtol=1e-5)
    assert np.array_equal(done[0][0], done[1][0])
    expected = one.state().tensors
    for name in TRAINABLE:
        assert np.array_equal(done[0][1][f"weights/{name}"], done[1][1][f"weights/{name}"]), name
        got, want = done[0][1][f"weights/{name}"], expected[f"weights/{name}"]
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max(), name
    for name in STATISTICS:  # local to a rank
        assert not np.array_equal(done[0][1][f"weights/{name}"], done[1][1][f"weights/{name}"]), name
