"""Small networks, batches and requests shared by the tests of the PyTorch engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from resnext_gpu.options import GpuOptions
from resnext_gpu.plugin import resnext_backends

from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig
from resnext_core.interfaces import Batch, StepInput, TrainRequest, TrainState
from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import ModelSpec
from resnext_core.model.weights import Weights
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.training.trainer import Trainer, create_trainer

CLASSES = 5


def tiny_weights(size: int = 16, **changes: Any) -> Weights:
    """Return a network of one stage and 5 classes in which every tensor matters."""
    fields = {"depths": (2,), "groups": 2, "base_width": 32, "stem": "cifar", "stem_width": 8} | changes
    spec = ModelSpec(variant="tiny", num_classes=CLASSES, image_size=size, **fields)
    return Weights(
        spec=spec,
        preprocess=PreprocessSpec(size=size, resize=size),
        classes=tuple("abcde"),
        tensors=random_weights(spec, 3),
    )


def batches(count: int, images: int = 6, size: int = 16, seed: int = 0) -> list[Batch]:
    """Return `count` batches of noise."""
    rng = np.random.default_rng(seed)
    return [
        Batch(
            images=rng.integers(0, 256, (images, size, size, 3), dtype=np.uint8),
            labels=rng.integers(0, CLASSES, images).astype(np.int32),
            index=np.arange(images),
            valid=np.ones(images, bool),
        )
        for _ in range(count)
    ]


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


def part(batch: Batch, rank: RankInfo) -> Batch:
    """Return the part of a batch that a rank takes."""
    size = len(batch) // rank.world
    rows = slice(rank.rank * size, (rank.rank + 1) * size)
    return Batch(
        images=batch.images[rows], labels=batch.labels[rows], index=batch.index[rows], valid=batch.valid[rows]
    )


def train_request(weights: Weights | None = None, **changes: Any) -> TrainRequest:
    """Return a request for batches of 6 in float32."""
    fields = {
        "weights": weights or tiny_weights(),
        "optimizer": OptimizerConfig(),
        "loss": LossConfig(),
        "precision": PrecisionConfig(),
        "batch_size": 6,
        "rank": RankInfo(),
        "collectives": SingleProcess(),
    }
    return TrainRequest(**(fields | changes))


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest difference over the largest wanted magnitude."""
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))


def differing(one: TrainState, other: TrainState) -> list[str]:
    """Return the names of the tensors that are not the same bits, and `scalars` where these differ."""
    names = [n for n, a in one.tensors.items() if a.tobytes() != other.tensors[n].tobytes()]
    return names + ([] if dict(one.scalars) == dict(other.scalars) else ["scalars"])


def trainer_with(options: GpuOptions, request: TrainRequest) -> Trainer:
    """Return the backend's trainer."""
    (record,) = resnext_backends()
    return create_trainer(record, replace(request, options=options))
