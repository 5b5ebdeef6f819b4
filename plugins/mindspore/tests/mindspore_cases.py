"""Small networks, batches and requests shared by the tests of the MindSpore engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from resnext_mindspore.device import Device
from resnext_mindspore.plugin import resnext_backends

from resnext_core.interfaces import Batch, TrainRequest
from resnext_core.model.weights import Weights
from resnext_core.testing import tiny
from resnext_core.testing.cases import relative_error as relative
from resnext_core.testing.tiny import tiny_weights
from resnext_core.training.trainer import Trainer, create_trainer

__all__ = ["batches", "relative", "tiny_weights", "train_request", "trainer_on"]


def batches(count: int, size: int = 16, images: int = 4, seed: int = 30) -> list[Batch]:
    """Return `count` batches of noise; with this seed the first steps keep away from kinks, which tests assert."""
    return tiny.noise_batches(count, images=images, size=size, seed=seed)


def train_request(weights: Weights | None = None, *, batch_size: int = 4, **changes: Any) -> TrainRequest:
    """Return a request for batches of 4 in float32."""
    return tiny.train_request(weights, batch_size=batch_size, **changes)


def trainer_on(device: Device, request: TrainRequest) -> Trainer:
    """Return core's trainer on an engine of `device`."""
    from resnext_mindspore.engine import MindsporeEngine

    (record,) = resnext_backends()
    return create_trainer(replace(record, engine=lambda given: MindsporeEngine(given, device)), request)
