"""A small network, batches and requests shared by the tests of resnext-ascend."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from resnext_ascend.options import AscendOptions
from resnext_ascend.plugin import resnext_backends

from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig
from resnext_core.interfaces import Batch, TrainRequest
from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import ModelSpec
from resnext_core.model.weights import Weights
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.training.trainer import Trainer, create_trainer

CLASSES, SIZE = 5, 16


def tiny_weights(seed: int = 3) -> Weights:
    """Return a one-stage network of 5 classes in which every tensor matters."""
    spec = ModelSpec(
        variant="tiny", num_classes=CLASSES, image_size=SIZE, depths=(1,), groups=2, base_width=32, stem="cifar",
        stem_width=8,
    )  # fmt: skip
    return Weights(
        spec=spec, preprocess=PreprocessSpec(size=SIZE, resize=SIZE), classes=tuple("abcde"),
        tensors=random_weights(spec, seed),
    )  # fmt: skip


def batches(count: int, images: int = 6) -> list[Batch]:
    """Return `count` batches of noise; with this seed the first steps keep away from kinks, which tests assert."""
    rng = np.random.default_rng(27)
    return [
        Batch(
            images=rng.integers(0, 256, (images, SIZE, SIZE, 3), dtype=np.uint8),
            labels=rng.integers(0, CLASSES, images).astype(np.int32),
            index=np.arange(images),
            valid=np.ones(images, bool),
        )
        for _ in range(count)
    ]


def share(batch: Batch, rank: RankInfo) -> Batch:
    """Return a rank's part of a batch."""
    size = len(batch) // rank.world
    part = slice(rank.rank * size, (rank.rank + 1) * size)
    return Batch(
        images=batch.images[part], labels=batch.labels[part], index=batch.index[part], valid=batch.valid[part]
    )


def train_request(**changes: Any) -> TrainRequest:
    """Return a request for batches of 6 in float32."""
    fields = {
        "weights": tiny_weights(),
        "optimizer": OptimizerConfig(),
        "loss": LossConfig(),
        "precision": PrecisionConfig(),
        "batch_size": 6,
        "rank": RankInfo(),
        "collectives": SingleProcess(),
    }
    return TrainRequest(**(fields | changes))


def trainer_with(options: AscendOptions, request: TrainRequest) -> Trainer:
    """Return the backend's trainer."""
    (record,) = resnext_backends()
    return create_trainer(record, replace(request, options=options))
