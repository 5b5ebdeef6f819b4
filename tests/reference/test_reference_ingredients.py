"""The oracle's ingredients against formulas written out here, and against slopes of the loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig
from resnext_core.interfaces import Distillation, MixedRows
from resnext_core.reference import ops
from resnext_core.reference.loss import loss_function
from resnext_core.reference.network import TrainPass, evaluate, normalize, train_pass
from resnext_core.reference.optimizers import adaptively_clipped, bias_correction
from resnext_core.testing.cases import oracle_trainer
from resnext_core.testing.tiny import CLASSES, noise_batches, tiny_weights, train_request
from resnext_core.training.rules import part_of

Array = np.ndarray[Any, Any]
EXACT = PrecisionConfig(compute="float64")
WEIGHTS = tiny_weights(8, depths=(1, 1))
SPEC = WEIGHTS.spec
LEARNED = [t.name for t in SPEC.tensors if t.trainable]
BATCHES = noise_batches(3, images=4, size=8)
LRS = (0.05, 0.02, 0.07)


def passed(tensors: dict[str, Array], step: int, **given: Any) -> TrainPass:
    x = normalize(BATCHES[step].images, WEIGHTS.preprocess, np.dtype("float64"))
    return train_pass(SPEC, tensors, x, loss_function(LossConfig(), CLASSES, BATCHES[step].labels), **given)


def start() -> dict[str, Array]:
    return {name: array.astype(np.float64) for name, array in WEIGHTS.tensors.items()}


def stepped(optimizer: OptimizerConfig) -> dict[str, Array]:
    """Return the state of the oracle in float64 after the steps."""
    trainer = oracle_trainer(train_request(WEIGHTS, batch_size=4, optimizer=optimizer, precision=EXACT))
    trainer.run_steps(BATCHES, np.array(LRS, np.float32))
    state = dict(trainer.state().tensors)
    trainer.close()
    return state


def decays(name: str) -> bool:
    return name.endswith(("conv1.weight", "conv2.weight", "conv3.weight", "downsample.0.weight", "fc.weight"))


def timm_lamb(
    *, wd: float, betas: tuple[float, float], eps: float, max_norm: float | None, always: bool, clip: bool
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """LAMB as timm computes it: weights, first and second moments after the steps, in float64."""
    tensors = start()
    first = {name: np.zeros_like(tensors[name]) for name in LEARNED}
    second = {name: np.zeros_like(tensors[name]) for name in LEARNED}
    for step, lr in enumerate(LRS, start=1):
        gradients = passed(tensors, step - 1).gradients
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        divisor = max(norm / max_norm, 1.0) if max_norm is not None else 1.0
        for name in LEARNED:
            gradient, decay = gradients[name] / divisor, wd if decays(name) else 0.0
            first[name] = betas[0] * first[name] + (1 - betas[0]) * gradient
            second[name] = betas[1] * second[name] + (1 - betas[1]) * gradient**2
            denominator = np.sqrt(second[name]) / math.sqrt(1 - betas[1] ** step) + eps
            update = first[name] / (1 - betas[0] ** step) / denominator
            update = update + decay * tensors[name]
            if decay or always:
                ratio = math.sqrt(float((tensors[name] ** 2).sum()) / float((update**2).sum()))
                update = update * (min(ratio, 1.0) if clip else ratio)
            tensors[name] = tensors[name] - float(np.float32(lr)) * update
    return tensors, first, second


@pytest.mark.parametrize(("always", "clip"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_lamb_is_timms(always: bool, clip: bool, max_norm: float | None) -> None:
    optimizer = OptimizerConfig(
        kind="lamb",
        weight_decay=0.02,
        betas=(0.9, 0.99),
        clip_norm=max_norm,
        trust_all=always,
        trust_clip=clip,
    )
    state = stepped(optimizer)
    tensors, first, second = timm_lamb(
        wd=0.02, betas=(0.9, 0.99), eps=1e-6, max_norm=max_norm, always=always, clip=clip
    )
    assert state["optimizer/updates"].tolist() == [3.0]
    for name in LEARNED:  # 1e-6 is what our clipping adds to the norm
        for group, expected in (("weights", tensors), ("momentum", first), ("variance", second)):
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(
                state[f"{group}/{name}"], expected[name], rtol=0, atol=5e-6 * scale, err_msg=f"{group} {name}"
            )


def test_bias_correction_is_exact() -> None:
    for beta, updates in ((0.999, 1), (0.9, 7), (0.5, 1), (0.999999, 3)):
        assert bias_correction(beta, updates) == pytest.approx(1 - beta**updates, rel=1e-9)
    assert bias_correction(0.0, 5) == 1.0
    assert bias_correction(0.999999, 1) == pytest.approx(1e-6, rel=1e-12)


def test_adaptive_clipping_by_channel() -> None:
    """A channel above its share is scaled down to it, one below stays, and weights of 0 count as 1e-3."""
    weight = np.array([[[[3.0]], [[4.0]]], [[[0.3]], [[0.4]]], [[[0.0]], [[0.0]]]])
    gradient = np.array([[[[0.3]], [[0.4]]], [[[0.6]], [[0.8]]], [[[1.0]], [[0.0]]]])
    clipped = adaptively_clipped(gradient, weight, 0.2)
    assert np.array_equal(clipped[0], gradient[0])
    np.testing.assert_allclose(clipped[1], gradient[1] * 0.1)
    np.testing.assert_allclose(clipped[2].ravel(), [2e-4, 0.0])
    vector = adaptively_clipped(np.array([3.0, 4.0]), np.array([0.6, 0.8]), 0.5)
    np.testing.assert_allclose(vector, [0.3, 0.4])
    assert not adaptively_clipped(np.zeros(3), np.zeros(3), 0.1).any()


# -- losses ------------------------------------------------------------------------------------------


def slopes(function: Any, logits: Array) -> Array:
    found = np.empty_like(logits)
    for place in np.ndindex(*logits.shape):
        shift = np.zeros_like(logits)
        shift[place] = 1e-6
        found[place] = (function(logits + shift)[0] - function(logits - shift)[0]) / 2e-6
    return found


MIX = MixedRows(
    partner=np.array([1, 0, 2], np.int32), labels=np.array([2, 4, 1], np.int32), share=np.array([0.3, 0.6, 1.0]),
    box=np.zeros((3, 4), np.int32), blend=np.ones(3),
)  # fmt: skip
LOSSES: dict[str, tuple[LossConfig, dict[str, Any]]] = {
    "bce": (LossConfig(kind="bce", smoothing=0.1), {}),
    "bce sum": (LossConfig(kind="bce", smoothing=0.2, smoothing_form="uniform", bce_sum=True), {}),
    "bce threshold": (LossConfig(kind="bce", smoothing=0.1, bce_threshold=0.25), {"mix": MIX}),
    "offsets": (LossConfig(), {"offsets": np.array([0.5, -1.0, 0.25, 2.0, 0.0], np.float32)}),
    "teacher": (LossConfig(smoothing=0.1), {"distillation": Distillation(weight=0.3, temperature=2.5)}),
    "teacher and bce": (
        LossConfig(kind="bce", smoothing=0.1),
        {"mix": MIX, "distillation": Distillation(weight=0.8, temperature=0.5)},
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_losses_are_their_slopes(name: str) -> None:
    config, given = LOSSES[name]
    rng = np.random.default_rng(4)
    if "distillation" in given:
        odds = np.exp(rng.normal(size=(3, 5)))
        given = given | {"teacher": (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)}
    logits = rng.normal(0, 3, (3, 5))
    loss = loss_function(config, 5, np.array([2, 0, 1]), weights=np.array([1.5, 0.0, 1.5]), **given)
    gradient = loss(logits)[1]
    np.testing.assert_allclose(gradient, slopes(loss, logits), atol=1e-8)
    assert not gradient[1].any(), "a row of weight 0 counts"


def test_binary_cross_entropy_is_its_definition() -> None:
    logits, targets = np.array([[0.5, -2.0, 3.0]]), np.array([[0.9, 0.05, 0.3]])
    sigmoid = 1 / (1 + np.exp(-logits))
    terms = -(targets * np.log(sigmoid) + (1 - targets) * np.log(1 - sigmoid))
    assert ops.binary_cross_entropy(logits, targets, summed=False)[0] == pytest.approx(terms.mean())
    assert ops.binary_cross_entropy(logits, targets, summed=True)[0] == pytest.approx(terms.sum())
    extreme = np.array([[1e4, -1e4]], np.float32)
    loss, gradient = ops.binary_cross_entropy(extreme, np.array([[0.0, 1.0]], np.float32), summed=True)
    assert loss == pytest.approx(2e4)
    assert gradient.tolist() == [[1.0, -1.0]]


def test_a_teacher_with_the_students_own_view_pulls_nowhere() -> None:
    """The gradient of its part is 0 where the softmax at that temperature is the teacher's."""
    logits = np.random.default_rng(1).normal(size=(2, 5))
    odds = np.exp(logits / 3)
    teacher = odds / odds.sum(axis=1, keepdims=True)
    given = {"distillation": Distillation(weight=1.0, temperature=3.0), "teacher": teacher}
    loss, gradient = loss_function(LossConfig(), 5, np.array([0, 1]), **given)(logits)
    entropy = -(teacher * np.log(teacher)).sum(axis=1).mean()
    assert loss == pytest.approx(9 * entropy)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)


# -- the network -------------------------------------------------------------------------------------


def test_gradients_with_dropped_branches_are_slopes() -> None:
    found_slopes(start(), branches=np.array([[1, 0], [0, 2], [1.25, 2], [1.25, 0]], np.float32))


def found_slopes(tensors: dict[str, Array], **given: Any) -> TrainPass:
    """Return what a pass finds, with gradients that are central differences along a random direction."""
    rng, found = np.random.default_rng(6), passed(tensors, 0, **given)
    for name, gradient in found.gradients.items():
        direction = rng.normal(size=gradient.shape)
        direction /= np.linalg.norm(direction)
        sides = [
            passed({**tensors, name: tensors[name] + side * direction}, 0, **given).loss
            for side in (1e-6, -1e-6)
        ]
        slope = (sides[0] - sides[1]) / 2e-6
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-8), name
    return found


def test_a_network_without_branches_is_its_shortcuts() -> None:
    """All dropped: nothing of a bottleneck has a gradient; all kept as 1: as without."""
    tensors, none = start(), np.zeros((4, 2), np.float32)
    found = passed(tensors, 0, branches=none)
    inside = [n for n in LEARNED if n.startswith("layer") and "downsample" not in n]
    assert inside
    assert not any(found.gradients[name].any() for name in inside)
    assert found.gradients["layer1.0.downsample.0.weight"].any()
    whole, ones = passed(tensors, 0), passed(tensors, 0, branches=np.ones((4, 2), np.float32))
    assert whole.loss == ones.loss
    assert all(np.array_equal(whole.gradients[n], ones.gradients[n]) for n in LEARNED)


@pytest.mark.parametrize("frozen", [1, 2, 3])
def test_frozen_parts_are_evaluated(frozen: int) -> None:
    """Gradients of the others are slopes; those of frozen parts and their statistics are not there."""
    tensors = start()
    found = found_slopes(tensors, frozen=frozen)
    assert set(found.gradients) == {n for n in LEARNED if part_of(n) >= frozen}
    assert set(found.running) == {
        t.name for t in SPEC.tensors if not t.trainable and part_of(t.name) >= frozen
    }
    if frozen == 3:  # all but the classifier: the logits are those of evaluation
        x = normalize(BATCHES[0].images, WEIGHTS.preprocess, np.dtype("float64"))
        np.testing.assert_allclose(found.logits, evaluate(SPEC, tensors, x), rtol=1e-12)
