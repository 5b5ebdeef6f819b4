"""Optimizers, clipping and EMA against their formulas in float64, on gradients that are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from mindspore_cases import tiny_weights, train_request
from resnext_mindspore.device import Device, open_device

from resnext_core.config import OptimizerConfig, PrecisionConfig
from resnext_core.interfaces import AGC_EPS, AGC_LEAST, TrainRequest
from resnext_core.training.rules import UPDATES, TensorRule, tensor_rules

pytest.importorskip("mindspore.nn")
from resnext_mindspore.average import Average, Copy
from resnext_mindspore.clipping import clipping_of
from resnext_mindspore.optimizers import OneMinusPower, optimizer_of
from resnext_mindspore.parameters import Parameters

LRS = (0.02, 0.01, 0.005)
SETTINGS = {
    "nesterov": OptimizerConfig(nesterov=True, weight_decay=0.01, decay_norm=True, stage_lr=0.5),
    "adamw": OptimizerConfig(kind="adamw", weight_decay=0.1, decay_bias=True, stage_lr=0.25),
    "adamw-betas": OptimizerConfig(kind="adamw", betas=(0.0, 0.95), eps=1e-3, weight_decay=0.0),
    "lamb": OptimizerConfig(kind="lamb", weight_decay=0.02, stage_lr=0.5),
}


def _request(optimizer: OptimizerConfig, **changes: Any) -> TrainRequest:
    return train_request(optimizer=optimizer, **changes)


def _gradients(request: TrainRequest, seed: int) -> dict[str, np.ndarray]:
    """Return gradients of unlike sizes, some next to 0, one all 0."""
    rng = np.random.default_rng(seed)
    found = {}
    for place, name in enumerate(tensor_rules(request)):
        size = 10.0 ** (place % 7 - 5)
        found[name] = (size * rng.standard_normal(request.weights.tensors[name].shape)).astype(np.float32)
    found["layer1.0.conv1.weight"][...] = 0
    return found


@dataclass(eq=False)
class Exact:
    """The formulas of the contract, in float64."""

    request: TrainRequest
    step: int = 0

    def __post_init__(self) -> None:
        self.p = {n: a.astype(np.float64) for n, a in self.request.weights.tensors.items()}
        self.m = {n: np.zeros_like(a) for n, a in self.p.items()}
        self.v = {n: np.zeros_like(a) for n, a in self.p.items()}

    def take(self, gradients: dict[str, np.ndarray], lr: float) -> None:
        self.step += 1
        method = {"sgd": self._nesterov, "adamw": self._adamw, "lamb": self._lamb}[
            self.request.optimizer.kind
        ]
        for name, rule in tensor_rules(self.request).items():
            method(name, rule, gradients[name].astype(np.float64), float(np.float32(lr)))

    def _nesterov(self, name: str, rule: TensorRule, g: np.ndarray, lr: float) -> None:
        momentum, p = self.request.optimizer.momentum, self.p[name]
        g = g + rule.weight_decay * p
        self.m[name] = momentum * self.m[name] + g
        p -= lr * rule.lr_scale * (g + momentum * self.m[name])

    def _moments(self, name: str, g: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
        b1, b2 = self.request.optimizer.betas
        self.m[name] = b1 * self.m[name] + (1 - b1) * g
        self.v[name] = b2 * self.v[name] + (1 - b2) * g * g
        return self.m[name], self.v[name], 1 - b1**self.step, 1 - b2**self.step

    def _adamw(self, name: str, rule: TensorRule, g: np.ndarray, lr: float) -> None:
        m, v, c1, c2 = self._moments(name, g)
        p, rate = self.p[name], lr * rule.lr_scale
        p -= rate * rule.weight_decay * p
        p -= rate * (m / c1) / (np.sqrt(v / c2) + (self.request.optimizer.eps or 1e-8))

    def _lamb(self, name: str, rule: TensorRule, g: np.ndarray, lr: float) -> None:
        m, v, c1, c2 = self._moments(name, g)
        p = self.p[name]
        u = (m / c1) / (
            np.sqrt(v) / np.sqrt(c2) + (self.request.optimizer.eps or 1e-6)
        ) + rule.weight_decay * p
        norms = np.linalg.norm(p), np.linalg.norm(u)
        ratio = norms[0] / norms[1] if rule.trust and min(norms) > 0 else 1.0
        p -= lr * rule.lr_scale * (min(ratio, 1.0) if self.request.optimizer.trust_clip else ratio) * u


def _near(found: np.ndarray, wanted: np.ndarray, what: str) -> None:
    """To 1e-5 of the largest: each tensor by itself."""
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max() + 1e-30, what


@pytest.mark.parametrize(
    ("name", "checked"),
    [
        ("nesterov", True),
        ("adamw", True),
        ("adamw-betas", False),
        ("lamb", True),
    ],
)
def test_three_steps_equal_the_formulas(name: str, checked: bool) -> None:
    """And how far each went to 1e-5, of which the weights alone would say little."""
    ms = open_device(Device())
    precision = PrecisionConfig(loss_scale="fixed" if checked else "none")
    request = _request(SETTINGS[name], precision=precision)
    table, exact = Parameters.create(request), Exact(request)
    cell = optimizer_of(request, table)
    begin = {n: a.astype(np.float64) for n, a in request.weights.tensors.items()}
    for step, lr in enumerate(LRS):
        gradients = _gradients(request, step)
        given = tuple(ms.Tensor(g) for g in gradients.values())
        if checked and step == 2:  # a step that is skipped leaves everything, and does not count
            before = {n: p.asnumpy().tobytes() for n, p in table.named().items()}
            bad = (ms.Tensor(np.full(given[0].shape, np.nan, np.float32)), *given[1:])
            cell(bad, ms.Tensor(np.float32(lr)), ms.Tensor(False))
            assert {n: p.asnumpy().tobytes() for n, p in table.named().items()} == before
        cell(given, ms.Tensor(np.float32(lr)), ms.Tensor(True))
        exact.take(gradients, lr)
    found = {n: p.asnumpy() for n, p in table.named().items()}
    if request.optimizer.kind != "sgd":
        assert found[UPDATES].tolist() == [3.0]
    for tensor in tensor_rules(request):
        _near(found[f"momentum/{tensor}"], exact.m[tensor], f"momentum of {tensor}")
        if f"variance/{tensor}" in found:
            _near(found[f"variance/{tensor}"], exact.v[tensor], f"variance of {tensor}")
        rounding = 3 * np.spacing(np.abs(found[f"weights/{tensor}"]).max())
        way, wanted = found[f"weights/{tensor}"] - begin[tensor], exact.p[tensor] - begin[tensor]
        assert np.abs(way - wanted).max() <= 1e-5 * np.abs(wanted).max() + rounding, tensor


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99, 0.999, 0.999999])
def test_one_minus_a_power_has_its_digits(beta: float) -> None:
    ms = open_device(Device())
    t = np.array([1, 2, 6, 9, 10, 11, 70, 1000, 1001, 1e5, 1e7], np.float32)
    found = OneMinusPower(beta)(ms.Tensor(t)).asnumpy()
    wanted = -np.expm1(t.astype(np.float64) * np.log(beta)) if beta else np.ones(len(t))
    np.testing.assert_allclose(found, wanted, rtol=3e-6)


def test_one_minus_a_power_overflows_nowhere() -> None:
    """Neither in the branch that is not taken: its slope, which takes part in that of the choice, is a number."""
    ms = open_device(Device())
    t = np.array([1e5, 1e6, 1e7], np.float32)
    slope = ms.grad(OneMinusPower(0.9))(ms.Tensor(t)).asnumpy()
    np.testing.assert_allclose(slope, 0, atol=1e-30)


def test_adaptive_clipping_bounds_each_output_by_its_weights() -> None:
    ms = open_device(Device())
    request = _request(OptimizerConfig(agc=0.05))
    gradients = _gradients(request, 3)
    gradients["layer1.0.conv2.weight"][0] *= 1e4
    request.weights.tensors["layer1.0.bn1.bias"][...] = 0  # clipped by AGC_EPS
    table = Parameters.create(request)
    cell = clipping_of(request, table)
    found = cell(tuple(ms.Tensor(g) for g in gradients.values()))
    clipped = 0
    for (name, rule), tensor in zip(table.rules.items(), found, strict=True):
        g, w = gradients[name].astype(np.float64), request.weights.tensors[name].astype(np.float64)
        axes = tuple(range(1, g.ndim)) or None
        most = 0.05 * np.maximum(np.sqrt(np.square(w).sum(axes, keepdims=True)), AGC_EPS)
        norm = np.sqrt(np.square(g).sum(axes, keepdims=True))
        over = (norm > most) & rule.agc
        clipped += np.count_nonzero(over)
        _near(tensor.asnumpy(), np.where(over, g * most / np.maximum(norm, AGC_LEAST), g), name)
        if not rule.agc:
            assert np.array_equal(tensor.asnumpy(), gradients[name]), name
    assert clipped > 20


def test_the_ema_moves_by_its_share_or_copies() -> None:
    ms = open_device(Device())
    request = _request(OptimizerConfig(), ema_decay=0.9)
    table, rng = Parameters.create(request), np.random.default_rng(1)
    unlike = {n: rng.standard_normal(p.shape).astype(np.float32) for n, p in table.averages.items()}
    for name, parameter in table.averages.items():
        parameter.set_data(ms.Tensor(unlike[name]))
    average = Average(table)
    average(ms.Tensor(np.float32(1e-4)))
    for name, parameter in table.averages.items():
        weight = request.weights.tensors[name].astype(np.float64)
        wanted = 0.9999 * unlike[name] + 1e-4 * weight
        error = np.abs(parameter.asnumpy() - wanted).max()
        assert error <= 2e-7 * max(np.abs(wanted).max(), np.abs(weight).max()), name
    Copy(table)(ms.Tensor(np.float32(1)))
    for _ in range(2):  # what equals the weights stays so
        for name, parameter in table.averages.items():
            assert parameter.asnumpy().tobytes() == request.weights.tensors[name].tobytes(), name
        average(ms.Tensor(np.float32(0.3)))


def test_what_is_frozen_has_no_state() -> None:
    open_device(Device())
    table = Parameters.create(
        _request(OptimizerConfig(kind="lamb"), weights=tiny_weights(depths=(1, 1)), frozen=2)
    )
    named = table.named()
    for name in ("conv1.weight", "bn1.bias", "layer1.0.conv1.weight"):
        assert f"weights/{name}" in named
        assert f"momentum/{name}" not in named
        assert f"variance/{name}" not in named
    assert "variance/layer2.0.conv1.weight" in named
