"""The loss and its gradient against their formulas in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mindspore_cases import tiny_weights, train_request
from resnext_mindspore.device import Device, open_device

from resnext_core.config import LossConfig
from resnext_core.interfaces import Distillation, MixedRows, TrainRequest
from resnext_core.model.weights import Weights

pytest.importorskip("mindspore.nn")
from resnext_mindspore.loss import Loss
from resnext_mindspore.mixing import packed

ROWS = 6
OFFSETS = np.array([0.5, -3.0, 0.0, 1.0, -0.25], np.float32)
TEACHER = Distillation(weight=0.3, temperature=4.0)
CASES: dict[str, dict[str, Any]] = {
    "ce-offsets": {"loss": LossConfig(), "logit_offsets": OFFSETS},
    "ce-teacher": {"loss": LossConfig(smoothing_form="uniform"), "distillation": TEACHER, "logit_offsets": OFFSETS},
    "bce-mixed": {"loss": LossConfig(kind="bce", smoothing_form="uniform"), "mixes": True},
    "bce-sum-threshold": {"loss": LossConfig(kind="bce", bce_sum=True, bce_threshold=0.25), "mixes": True},
    "bce-everything": {
        "loss": LossConfig(kind="bce", bce_threshold=0.25), "mixes": True, "distillation": TEACHER,
        "logit_offsets": OFFSETS,
    },
}  # fmt: skip


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def _exact(
    request: TrainRequest,
    z: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    mix: MixedRows,
    teacher: np.ndarray,
) -> tuple[float, np.ndarray]:
    """Return loss and gradient of logits `z` (N, K)."""
    config, classes = request.loss, z.shape[1]
    rest = classes - 1 if config.smoothing_form == "others" else classes
    off = config.smoothing / rest
    on = 1 - config.smoothing + (off if config.smoothing_form == "uniform" else 0)
    targets = np.where(np.arange(classes) == labels[:, None], on, off)
    if request.mixes:
        second = np.where(np.arange(classes) == mix.labels[:, None], on, off)
        targets = mix.share[:, None] * targets + (1 - mix.share[:, None]) * second
    shifted = z if request.logit_offsets is None else z + request.logit_offsets
    if config.kind == "bce":
        if config.bce_threshold is not None:
            targets = (targets > config.bce_threshold).astype(float)
        divisor = 1 if config.bce_sum else classes
        rows = (np.logaddexp(0, shifted) - targets * shifted).sum(1) / divisor
        slope = (np.exp(-np.logaddexp(0, -shifted)) - targets) / divisor
    else:
        p = _softmax(shifted)
        rows, slope = -(targets * np.log(p)).sum(1), p * targets.sum(1, keepdims=True) - targets
    if request.distillation is not None:
        w, t = request.distillation.weight, request.distillation.temperature
        p = _softmax(z / t)
        rows = (1 - w) * rows - w * t**2 * (teacher * np.log(p)).sum(1)
        slope = (1 - w) * slope + w * t * (p * teacher.sum(1, keepdims=True) - teacher)
    return float((rows * weights).mean()), slope * weights[:, None] / len(z)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_the_formulas(name: str) -> None:
    """Logits at 0 too, where the gradient of a maximum jumps, and large ones, whose exponential overflows."""
    ms = open_device(Device())
    weights: Weights = tiny_weights()
    classes = weights.spec.num_classes
    assert classes == len(OFFSETS)
    request = train_request(weights, **CASES[name])
    rng = np.random.default_rng(6)
    z = (3 * rng.standard_normal((ROWS, classes))).astype(np.float32)
    z[0], z[1, :2] = 0, (200, -200)
    labels, row_weights = (np.arange(ROWS) % classes).astype(np.int32), np.array([1.5, 1, 0, 1, 2, 0.5])
    mix = MixedRows(
        partner=np.arange(ROWS, dtype=np.int32)[::-1], labels=labels[::-1], share=np.linspace(0, 1, ROWS),
        box=np.zeros((ROWS, 4), np.int32), blend=np.ones(ROWS),
    )  # fmt: skip
    teacher = _softmax(rng.standard_normal((ROWS, classes))).astype(np.float32)
    extras = [ms.Tensor(a) for a in packed(mix)] if request.mixes else []
    extras += [ms.Tensor(teacher)] if request.distillation else []
    given = [ms.Tensor(labels), ms.Tensor(row_weights.astype(np.float32)), *extras]
    loss, slope = ms.jit(ms.value_and_grad(Loss(request), 0, None))(ms.Tensor(z), *given)
    wanted, exact = _exact(
        request, z.astype(np.float64), labels, row_weights, mix, teacher.astype(np.float64)
    )
    np.testing.assert_allclose(float(loss), wanted, rtol=1e-5)
    np.testing.assert_allclose(slope.asnumpy(), exact, rtol=0, atol=1e-5 * np.abs(exact).max())
