"""The arithmetic of one update on given gradients: against torch.optim in float64, LAMB and AGC written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gpu_cases import tiny_weights, train_request  # noqa: E402
from resnext_gpu.clipping import AdaptiveClip  # noqa: E402
from resnext_gpu.optimizers import Update  # noqa: E402
from resnext_gpu.table import Table  # noqa: E402

from resnext_core.config import OptimizerConfig  # noqa: E402
from resnext_core.interfaces import TrainRequest  # noqa: E402
from resnext_core.training.rules import UPDATES, tensor_rules  # noqa: E402

CPU = torch.device("cpu")
LRS = (0.03, 0.0, 0.01)
Tensors = dict[str, Any]
Reference = Callable[[TrainRequest, Tensors, list[Tensors]], Tensors]


def noise(request: TrainRequest, step: int) -> Tensors:
    """Return float32 gradients of all sizes, from 1e-8 to 1."""
    rng = np.random.default_rng(step)
    shapes = {t.name: t.shape for t in request.weights.spec.tensors}
    return {
        name: torch.from_numpy(
            (rng.standard_normal(shapes[name]) * 10 ** rng.uniform(-8, 0, shapes[name])).astype(np.float32)
        )
        for name in tensor_rules(request)
    }


def start(request: TrainRequest, *, channels_last: bool = False) -> tuple[Table, Update]:
    table = Table.create(request, CPU, channels_last=channels_last)
    return table, Update(request, table)


def give(table: Table, gradients: Tensors) -> None:
    for name, gradient in gradients.items():
        weight = table.weights[name]
        weight.grad = torch.empty_like(weight).copy_(gradient)


def scalar(value: float) -> Any:
    return torch.tensor(value, dtype=torch.float32)


def doubles(request: TrainRequest) -> Tensors:
    return {n: torch.tensor(request.weights.tensors[n], dtype=torch.float64) for n in tensor_rules(request)}


def by_torch(make: Callable[..., Any]) -> Reference:
    """Return steps of an optimizer of torch.optim in float64, whose groups are the rules of the tensors."""

    def reference(request: TrainRequest, weights: Tensors, gradients: list[Tensors]) -> Tensors:
        rules = tensor_rules(request)
        parameters = {n: torch.nn.Parameter(w) for n, w in weights.items()}
        groups = [
            {"params": [p], "weight_decay": rules[n].weight_decay, "name": n} for n, p in parameters.items()
        ]
        optimizer = make(groups)
        for lr, given in zip(LRS, gradients, strict=True):
            for group in optimizer.param_groups:
                name = group["name"]
                group["lr"] = float(np.float32(lr)) * rules[name].lr_scale
                parameters[name].grad = given[name].double()
            optimizer.step()
        return {n: p.detach() for n, p in parameters.items()}

    return reference


def lamb(
    *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6, decayed: bool = True, most: float = math.inf
) -> Reference:  # fmt: skip
    """Return steps of timm's LAMB in float64; the trust ratio is of tensors that decay, or of all."""

    def reference(request: TrainRequest, weights: Tensors, gradients: list[Tensors]) -> Tensors:
        rules, found = tensor_rules(request), {}
        for name, w in weights.items():
            p, m, v = w.clone(), torch.zeros_like(w), torch.zeros_like(w)
            decay = rules[name].weight_decay
            for t, (lr, given) in enumerate(zip(LRS, gradients, strict=True), 1):
                g = given[name].double()
                m = betas[0] * m + (1 - betas[0]) * g
                v = betas[1] * v + (1 - betas[1]) * g * g
                root = v.sqrt() / math.sqrt(1 - betas[1] ** t) + eps
                u = m / (1 - betas[0] ** t) / root + decay * p
                norms, ratio = (float(p.norm()), float(u.norm())), 1.0
                if (decay > 0 or not decayed) and min(norms) > 0:
                    ratio = min(norms[0] / norms[1], most)
                p = p - float(np.float32(lr)) * rules[name].lr_scale * ratio * u
            found[name] = p
        return found

    return reference


CASES: Mapping[str, tuple[dict[str, Any], Reference]] = {
    "sgd": (
        {"momentum": 0.9, "weight_decay": 0.05},
        by_torch(lambda groups: torch.optim.SGD(groups, lr=1, momentum=0.9)),
    ),
    "nesterov": (
        {"nesterov": True, "momentum": 0.8, "weight_decay": 0.05, "decay_norm": True},
        by_torch(lambda groups: torch.optim.SGD(groups, lr=1, momentum=0.8, nesterov=True)),
    ),
    "nesterov without momentum": (
        {"nesterov": True, "momentum": 0.0, "weight_decay": 0.05},
        by_torch(lambda groups: torch.optim.SGD(groups, lr=1)),
    ),
    "rates of stages": (
        {"stage_lr": 0.5, "weight_decay": 0.05, "decay_bias": True},
        by_torch(lambda groups: torch.optim.SGD(groups, lr=1, momentum=0.9)),
    ),
    "adamw": (
        {"kind": "adamw", "weight_decay": 0.1},
        by_torch(lambda groups: torch.optim.AdamW(groups, lr=1)),
    ),
    "adamw with its own": (
        {"kind": "adamw", "weight_decay": 0.1, "betas": (0.0, 0.7), "eps": 1e-3, "stage_lr": 0.5, "decay_norm": True},
        by_torch(lambda groups: torch.optim.AdamW(groups, lr=1, betas=(0.0, 0.7), eps=1e-3)),
    ),
    "lamb": ({"kind": "lamb", "weight_decay": 0.1}, lamb()),
    "lamb with its own": (
        {"kind": "lamb", "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "trust_all": True, "stage_lr": 0.5},
        lamb(betas=(0.8, 0.95), eps=1e-3, decayed=False),
    ),
    "lamb with a bound": ({"kind": "lamb", "weight_decay": 2.0, "trust_clip": True}, lamb(most=1.0)),
    "lamb without decay": ({"kind": "lamb", "weight_decay": 0.0}, lamb()),
}  # fmt: skip


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_three_steps_equal_the_formulas(case: str, channels_last: bool, divided: bool) -> None:
    """On weights of which one tensor is 0; with a divisor of the gradients, and a flag that nothing is skipped."""
    settings, reference = CASES[case]
    weights = tiny_weights(depths=(1, 1))
    tensors = {**weights.tensors, "layer1.0.conv2.weight": 0 * weights.tensors["layer1.0.conv2.weight"]}
    request = train_request(weights.replace(tensors=tensors), optimizer=OptimizerConfig(**settings))
    gradients = [noise(request, step) for step in range(len(LRS))]
    table, update = start(request, channels_last=channels_last)
    for lr, given in zip(LRS, gradients, strict=True):
        give(table, {n: 3 * g if divided else g for n, g in given.items()})
        with torch.no_grad():
            update(scalar(lr), scalar(3.0) if divided else None, scalar(0.0) if divided else None)
    wanted = reference(request, doubles(request), gradients)
    for name, array in wanted.items():
        error = (table.weights[name].detach().double() - array).abs().max()
        change = (array - torch.tensor(request.weights.tensors[name]).double()).abs().max()
        rounding = 2**-23 * array.abs().max()
        assert change > 20 * rounding, f"{name} has moved"
        assert error <= 1e-5 * change + 2 * rounding, name
    if table.updates is not None:
        assert table.named()[UPDATES].tolist() == [3.0]


@pytest.mark.parametrize("trust_all", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "lamb", "adamw"])
def test_a_skipped_update_changes_no_bit(kind: Any, trust_all: bool) -> None:
    """With gradients that are no numbers, weights of -0, and a weight decay that would move them."""
    weights = tiny_weights()
    tensors = {n: np.where(np.abs(a) < 0.1, np.float32(-0.0), a) for n, a in weights.tensors.items()}
    assert any((a == 0).any() for a in tensors.values())
    optimizer = OptimizerConfig(kind=kind, weight_decay=0.3, trust_all=trust_all)
    request = train_request(weights.replace(tensors=tensors), optimizer=optimizer)
    table, update = start(request)
    give(table, noise(request, 0))
    with torch.no_grad():
        update(scalar(0.1), None, scalar(0.0))
    before = {n: t.clone() for n, t in table.named().items()}
    give(table, {n: g * math.nan for n, g in noise(request, 1).items()})
    with torch.no_grad():
        update(scalar(0.1), None, scalar(1.0))
    for name, tensor in table.named().items():
        assert tensor.numpy().tobytes() == before[name].numpy().tobytes(), name


@pytest.mark.parametrize("kind", ["lamb", "adamw"])
def test_the_first_updates_are_exact(kind: Any) -> None:
    """1 - 0.999 is known to 1e-4 in float32: the first step would be off by as much."""
    request = train_request(optimizer=OptimizerConfig(kind=kind, weight_decay=0.0, betas=(0.9, 0.999999)))
    table, update = start(request)
    give(table, {n: torch.full_like(g, 0.5) for n, g in noise(request, 0).items()})
    before = {n: t.detach().double().clone() for n, t in table.weights.items()}
    with torch.no_grad():
        update(scalar(0.25), None, None)
    for name in tensor_rules(request):
        change = (table.weights[name].detach().double() - before[name]) / -0.25
        assert float((change - 1).abs().max()) <= 1e-5, name


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("divisor", [None, 2.0])
def test_adaptive_clipping_is_that_of_its_paper(divisor: float | None, channels_last: bool) -> None:
    """Output by output in float64; the classifier is left alone, and what is small enough keeps its bits."""
    request = train_request(optimizer=OptimizerConfig(agc=0.05))
    table, _ = start(request, channels_last=channels_last)
    rules, gradients = tensor_rules(request), noise(request, 4)
    for index, name in enumerate(gradients):
        gradients[name] *= (1e-4, 1.0, 30.0)[index % 3]
    gradients["layer1.0.conv1.weight"][1] = 0
    with torch.no_grad():
        table.weights["layer1.0.conv1.weight"][2] = 0  # whose norm counts as 1e-3
    give(table, gradients)
    clip = AdaptiveClip([table.weights[n] for n, rule in rules.items() if rule.agc], 0.05, CPU)
    with torch.no_grad():
        clip(None if divisor is None else scalar(divisor))
    seen = set()
    for name, gradient in gradients.items():
        found, weight = table.weights[name].grad, table.weights[name].detach().double()
        if name.startswith("fc."):
            assert torch.equal(found, gradient), name
            continue
        outputs = range(len(weight)) if weight.ndim > 1 else [slice(None)]
        for i in outputs:
            norm = float(gradient[i].double().norm()) / (divisor or 1)
            most = 0.05 * max(float(weight[i].norm()), 1e-3)
            seen.add(norm > most)
            if norm <= most:
                assert torch.equal(found[i], gradient[i]), name
            else:
                wanted = gradient[i].double() * (most / max(norm, 1e-6))
                assert float((found[i] - wanted).abs().max() / wanted.abs().max()) <= 1e-5, name
    assert seen == {False, True}


def test_adaptive_clipping_of_the_classifier_alone_does_nothing() -> None:
    """Where all parts but it are frozen."""
    request = train_request(optimizer=OptimizerConfig(agc=0.05), frozen=2)
    table, _ = start(request)
    assert set(table.momentum) == {"fc.weight", "fc.bias"}
    give(table, noise(request, 0))
    clip = AdaptiveClip([], 0.05, CPU)
    clip(None)
    assert torch.equal(table.weights["fc.bias"].grad, noise(request, 0)["fc.bias"])
