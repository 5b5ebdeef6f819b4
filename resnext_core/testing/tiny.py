"""A tiny network, batches of noise and training requests, for a backend's own tests beside the contract kit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig
from resnext_core.interfaces import Batch, TrainRequest
from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import ModelSpec
from resnext_core.model.weights import Weights
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo

CLASSES = 5


def tiny_weights(size: int = 16, *, seed: int = 3, **changes: Any) -> Weights:
    """Return a network of one stage and 5 classes in which every tensor matters; `changes` are of its spec."""
    fields: dict[str, Any] = {
        "depths": (1,),
        "groups": 2,
        "base_width": 32,
        "stem": "cifar",
        "stem_width": 8,
    } | changes
    spec = ModelSpec(variant="tiny", num_classes=CLASSES, image_size=size, **fields)
    return Weights(
        spec=spec, preprocess=PreprocessSpec(size=size, resize=size), classes=tuple("abcde"),
        tensors=random_weights(spec, seed),
    )  # fmt: skip


def noise_batches(count: int, *, images: int, size: int = 16, seed: int = 0) -> list[Batch]:
    """Return `count` batches of `images` images of noise, (images, size, size, 3), all rows valid.

    With most seeds some step comes near a kink of a ReLU: see :mod:`resnext_core.testing.kinks`.
    """
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


def rank_part(batch: Batch, rank: RankInfo) -> Batch:
    """Return the part of a batch that a rank takes, of its mixes and of what else comes with its rows."""

    def part(length: int) -> slice:
        size = length // rank.world
        return slice(rank.rank * size, (rank.rank + 1) * size)

    rows = part(len(batch))
    return replace(
        batch, images=batch.images[rows], labels=batch.labels[rows], index=batch.index[rows], valid=batch.valid[rows],
        mix=batch.mix[part(len(batch.mix))],
        branches=None if batch.branches is None else batch.branches[rows],
        teacher=None if batch.teacher is None else batch.teacher[rows],
    )  # fmt: skip


def train_request(weights: Weights | None = None, *, batch_size: int, **changes: Any) -> TrainRequest:
    """Return a request to train `weights` (default: :func:`tiny_weights`) in float32 on one rank."""
    fields: dict[str, Any] = {
        "weights": weights or tiny_weights(), "batch_size": batch_size, "optimizer": OptimizerConfig(),
        "loss": LossConfig(), "precision": PrecisionConfig(), "rank": RankInfo(), "collectives": SingleProcess(),
    }  # fmt: skip
    return TrainRequest(**(fields | changes))
