"""A small network, batches and requests shared by the tests of resnext-ascend."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from resnext_ascend.options import AscendOptions
from resnext_ascend.plugin import resnext_backends

from resnext_core.interfaces import Batch, TrainRequest
from resnext_core.testing import tiny
from resnext_core.testing.tiny import rank_part as share
from resnext_core.testing.tiny import tiny_weights
from resnext_core.training.trainer import Trainer, create_trainer

__all__ = ["batches", "share", "tiny_weights", "train_request", "trainer_with"]


def batches(count: int, images: int = 6) -> list[Batch]:
    """Return `count` batches of noise; with this seed the first steps keep away from kinks, which tests assert."""
    return tiny.noise_batches(count, images=images, seed=27)


def train_request(*, batch_size: int = 6, **changes: Any) -> TrainRequest:
    """Return a request for batches of 6 in float32."""
    return tiny.train_request(batch_size=batch_size, **changes)


def trainer_with(options: AscendOptions, request: TrainRequest) -> Trainer:
    """Return the backend's trainer."""
    (record,) = resnext_backends()
    return create_trainer(record, replace(request, options=options))
