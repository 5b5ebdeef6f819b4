"""Core's oracle, which the contract kit compares engines with, against torch.optim in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig  # noqa: E402
from resnext_core.reference.loss import loss_function  # noqa: E402
from resnext_core.reference.network import normalize, train_pass  # noqa: E402
from resnext_core.testing.cases import oracle_trainer  # noqa: E402
from resnext_core.testing.tiny import CLASSES, noise_batches, tiny_weights, train_request  # noqa: E402

WEIGHTS = tiny_weights(8)
BATCHES = noise_batches(4, images=4, size=8)
LRS = np.array([0.05, 0.02, 0.0, 0.07], np.float32)
LEARNED = [t.name for t in WEIGHTS.spec.tensors if t.trainable]
WD = 0.03
Groups = list[dict[str, Any]]


def by_torch(make: Callable[[Groups], Any], decayed: Callable[[str, str], bool]) -> dict[str, Any]:
    """Return the weights after the steps of an optimizer of torch, with the oracle's gradients."""
    roles = {t.name: t.role for t in WEIGHTS.spec.tensors}
    tensors = {n: torch.from_numpy(a.astype(np.float64)) for n, a in WEIGHTS.tensors.items()}
    groups = [
        {"params": [tensors[n] for n in LEARNED if decayed(n, roles[n]) == which], "weight_decay": decay}
        for which, decay in ((True, WD), (False, 0.0))
    ]
    optimizer = make([group for group in groups if group["params"]])
    for batch, lr in zip(BATCHES, LRS, strict=True):
        x = normalize(batch.images, WEIGHTS.preprocess, np.dtype("float64"))
        loss = loss_function(LossConfig(), CLASSES, batch.labels)
        found = train_pass(WEIGHTS.spec, {n: t.numpy() for n, t in tensors.items()}, x, loss)
        for name in LEARNED:
            tensors[name].grad = torch.from_numpy(found.gradients[name].copy())
        for group in optimizer.param_groups:
            group["lr"] = float(lr)
        optimizer.step()
    return {name: tensors[name].numpy() for name in LEARNED}


def compare(config: OptimizerConfig, expected: dict[str, Any]) -> None:
    request = train_request(
        WEIGHTS, batch_size=4, optimizer=config, precision=PrecisionConfig(compute="float64")
    )
    trainer = oracle_trainer(request)
    trainer.run_steps(BATCHES, LRS)
    state = trainer.state().tensors
    trainer.close()
    for name in LEARNED:  # the state is rounded to float32
        np.testing.assert_allclose(
            state[f"weights/{name}"], expected[name], rtol=2e-7, atol=1e-9, err_msg=name
        )


@pytest.mark.parametrize("everything", [False, True])
def test_nesterov_is_torchs(everything: bool) -> None:
    config = OptimizerConfig(
        momentum=0.85, nesterov=True, weight_decay=WD, decay_norm=everything, decay_bias=everything
    )
    expected = by_torch(
        lambda groups: torch.optim.SGD(groups, lr=1.0, momentum=0.85, nesterov=True),
        lambda name, role: everything or role in ("conv", "fc_weight"),
    )
    compare(config, expected)


@pytest.mark.parametrize("bias", [False, True])
def test_adamw_is_torchs(bias: bool) -> None:
    config = OptimizerConfig(kind="adamw", betas=(0.8, 0.97), weight_decay=WD, decay_bias=bias)
    expected = by_torch(
        lambda groups: torch.optim.AdamW(groups, lr=1.0, betas=(0.8, 0.97), eps=1e-8),
        lambda name, role: role in ("conv", "fc_weight") or (bias and role == "fc_bias"),
    )
    compare(config, expected)
