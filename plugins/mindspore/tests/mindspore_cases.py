"""Small networks, batches and requests shared by the tests of the MindSpore engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from resnext_mindspore.device import Device
from resnext_mindspore.plugin import resnext_backends

from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig
from resnext_core.interfaces import Batch, TrainRequest
from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import ModelSpec
from resnext_core.model.weights import Weights
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.training.trainer import Trainer, create_trainer

CLASSES = 5


def tiny_weights(size: int = 16, **changes: Any) -> Weights:
    """Return a one-stage network of 5 classes in which every tensor matters."""
    fields = {"depths": (1,), "groups": 2, "base_width": 32, "stem": "cifar", "stem_width": 8} | changes
    spec = ModelSpec(variant="tiny", num_classes=CLASSES, image_size=size, **fields)
    return Weights(
        spec=spec,
        preprocess=PreprocessSpec(size=size, resize=size),
        classes=tuple("abcde"),
        tensors=random_weights(spec, 3),
    )


def batches(count: int, size: int = 16, images: int = 4, seed: int = 30) -> list[Batch]:
    """Return `count` batches of noise; with this seed the first steps keep away from kinks, which tests assert."""
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


def train_request(weights: Weights | None = None, **changes: Any) -> TrainRequest:
    """Return a request for batches of 4 in float32."""
    fields = {
        "weights": weights or tiny_weights(),
        "optimizer": OptimizerConfig(),
        "loss": LossConfig(),
        "precision": PrecisionConfig(),
        "batch_size": 4,
        "rank": RankInfo(),
        "collectives": SingleProcess(),
    }
    return TrainRequest(**(fields | changes))


def trainer_on(device: Device, request: TrainRequest) -> Trainer:
    """Return core's trainer on an engine of `device`."""
    from resnext_mindspore.engine import MindsporeEngine

    (record,) = resnext_backends()
    return create_trainer(replace(record, engine=lambda given: MindsporeEngine(given, device)), request)


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest difference over the largest wanted magnitude."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
