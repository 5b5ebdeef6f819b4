"""Trainings with today's ingredients: their requests, and batches that bring branches, a teacher and mixes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from gpu_cases import batches, tiny_weights, train_request, with_bad_rows

from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig
from resnext_core.interfaces import Batch, Distillation, Mix, TrainRequest

#: Pixels a side, and stages: parts can be frozen below one that learns.
SIZE, DEPTHS = 6, (1, 1)
LRS = np.array([0.02, 0.01, 0.02], np.float32)
OFFSETS = np.array([0.5, -1.0, 0.0, 2.0, -0.25], np.float32)
TEACHER = Distillation(weight=0.3, temperature=2.0)
#: The large ε keeps float32 near: an update of Adam's is otherwise ±1 however small its gradient is.
EPS = 1e-2

#: What a request has, by name, with a seed of which no step comes near to a kink.
CASES: Mapping[str, tuple[dict[str, Any], int]] = {
    "nesterov": ({"optimizer": OptimizerConfig(nesterov=True, weight_decay=0.05)}, 0),
    "lamb": ({"optimizer": OptimizerConfig(kind="lamb", weight_decay=0.1, clip_norm=1.0, eps=EPS), "accumulate": 2}, 0),
    "lamb, all trusted": (
        {"optimizer": OptimizerConfig(kind="lamb", weight_decay=0.1, eps=EPS, trust_all=True, trust_clip=True)}, 1,
    ),
    "adamw": ({"optimizer": OptimizerConfig(kind="adamw", weight_decay=0.1, eps=EPS), "accumulate": 3}, 4),
    "agc": ({"optimizer": OptimizerConfig(agc=0.02, weight_decay=0.05), "accumulate": 2}, 0),
    "groups": ({"optimizer": OptimizerConfig(decay_norm=True, decay_bias=True, stage_lr=0.5, weight_decay=0.1)}, 3),
    "scaled": (
        {"optimizer": OptimizerConfig(kind="lamb", weight_decay=0.1, eps=EPS), "accumulate": 2,
         "precision": PrecisionConfig(loss_scale="fixed", scale=512.0)}, 1,
    ),
    "bce": ({"loss": LossConfig(kind="bce"), "mixes": True}, 1),
    "bce, summed and uniform": (
        {"loss": LossConfig(kind="bce", bce_sum=True, smoothing_form="uniform"), "accumulate": 2}, 0,
    ),
    "bce with a threshold": (
        {"loss": LossConfig(kind="bce", bce_threshold=0.2, smoothing=0.3), "mixes": True}, 1,
    ),
    "branches": ({"drops": True, "accumulate": 2}, 1),
    "teacher": ({"distillation": TEACHER, "mixes": True, "logit_offsets": OFFSETS}, 1),
    "offsets": ({"logit_offsets": OFFSETS, "loss": LossConfig(smoothing_form="uniform")}, 0),
    "frozen stem": ({"frozen": 1, "ema_decay": 0.9}, 0),
    "frozen stage": ({"frozen": 2, "drops": True, "optimizer": OptimizerConfig(agc=0.02)}, 5),
    "frozen but the classifier": ({"frozen": 3, "ema_decay": 0.5, "accumulate": 2}, 5),
    "everything": (
        {
            "optimizer": OptimizerConfig(
                kind="lamb", weight_decay=0.1, eps=EPS, clip_norm=1.0, stage_lr=0.7, decay_bias=True
            ),
            "loss": LossConfig(kind="bce", smoothing=0.2), "accumulate": 2, "mixes": True, "drops": True,
            "distillation": TEACHER, "frozen": 1, "ema_decay": 0.9,
            "skip_nonfinite": True,
        }, 0,
    ),
}  # fmt: skip


def request_of(name: str, **changes: Any) -> TrainRequest:
    """Return the request of a case."""
    return train_request(**{"weights": tiny_weights(SIZE, depths=DEPTHS), **CASES[name][0], **changes})


def batches_of(request: TrainRequest, count: int, *, seed: int, size: int | None = None) -> list[Batch]:
    """Return batches with what `request` says that they have, some rows of them not valid."""
    size = size or request.weights.spec.image_size
    rng = np.random.default_rng(seed + 1)
    return [
        with_extras(request, batch, rng, step)
        for step, batch in enumerate(with_bad_rows(batches(count, size=size, seed=seed)))
    ]


def with_extras(request: TrainRequest, batch: Batch, rng: np.random.Generator, step: int) -> Batch:
    """Return the batch with branches, a teacher's probabilities and mixes, where `request` has them."""
    rows, spec = len(batch), request.weights.spec
    if request.drops:
        kept = rng.random((rows, len(spec.blocks))) < 0.6
        batch = replace(batch, branches=(kept / 0.6).astype(np.float32))
    if request.distillation is not None:
        raw = np.exp(rng.standard_normal((rows, spec.num_classes)))
        batch = replace(batch, teacher=(raw / raw.sum(1, keepdims=True)).astype(np.float32))
    if request.mixes:
        size = batch.images.shape[1]
        box = (0, 1, size // 2, size)
        lam = 1 - (size // 2) * (size - 1) / size**2
        kinds = [Mix(kind="mixup", lam=0.3), Mix(kind="cutmix", lam=lam, box=box, partner="rolled"), Mix()]
        mixes = tuple(kinds[(step + i) % 3] for i in range(request.accumulate))
        batch = replace(batch, mix=mixes)
    return batch
