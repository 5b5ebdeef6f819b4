"""Small networks, batches and requests shared by the tests of the PyTorch engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from resnext_gpu.options import GpuOptions
from resnext_gpu.plugin import resnext_backends

from resnext_core.interfaces import Batch, StepInput, TrainRequest, TrainState
from resnext_core.model.weights import Weights
from resnext_core.testing import tiny
from resnext_core.testing.cases import relative_error as relative
from resnext_core.testing.tiny import rank_part as part
from resnext_core.training.trainer import Trainer, create_trainer

__all__ = [
    "FAR_FROM_KINKS", "batches", "differing", "inputs_of", "part", "relative", "tiny_weights", "train_request",
    "trainer_with", "with_bad_rows",
]  # fmt: skip


#: Stem, pixels a side and seed of a batch on which one step of `tiny_weights` comes near to no kink (4e-5 and more).
FAR_FROM_KINKS = [("cifar", 16, 37), ("imagenet", 32, 4)]


def tiny_weights(size: int = 16, **changes: Any) -> Weights:
    """Return a network of one stage with two blocks, and 5 classes, in which every tensor matters."""
    return tiny.tiny_weights(size, **({"depths": (2,)} | changes))


def batches(count: int, images: int = 6, size: int = 16, seed: int = 0) -> list[Batch]:
    """Return `count` batches of noise."""
    return tiny.noise_batches(count, images=images, size=size, seed=seed)


def with_bad_rows(given: list[Batch]) -> list[Batch]:
    """Return the batches with rows that are not valid: none in the first, one in the second, and so on."""
    made = []
    for bad, one in enumerate(given):
        valid = np.arange(len(one)) >= bad
        made.append(
            replace(one, images=one.images * valid[:, None, None, None].astype(np.uint8), valid=valid)
        )
    return made


def inputs_of(given: list[Batch]) -> list[StepInput]:
    """Return the inputs of steps on these batches, with row weights that are all different."""
    return [
        StepInput(images=b.images, labels=b.labels, weights=np.arange(len(b)) / 7 + i, lr=0.1)
        for i, b in enumerate(given)
    ]


def train_request(weights: Weights | None = None, *, batch_size: int = 6, **changes: Any) -> TrainRequest:
    """Return a request for batches of 6 in float32."""
    return tiny.train_request(weights or tiny_weights(), batch_size=batch_size, **changes)


def differing(one: TrainState, other: TrainState) -> list[str]:
    """Return the names of the tensors that are not the same bits, and `scalars` where these differ."""
    names = [n for n, a in one.tensors.items() if a.tobytes() != other.tensors[n].tobytes()]
    return names + ([] if dict(one.scalars) == dict(other.scalars) else ["scalars"])


def trainer_with(options: GpuOptions, request: TrainRequest) -> Trainer:
    """Return the backend's trainer."""
    (record,) = resnext_backends()
    return create_trainer(record, replace(request, options=options))
