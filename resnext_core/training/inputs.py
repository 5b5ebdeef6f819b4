"""Checks of what a trainer is given, and the weights of a batch's rows in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from resnext_core.data.mix import check_micro_batch, mixed_rows
from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import Backend, Batch, Mix, StepInput, TrainRequest


def check_split(request: TrainRequest) -> None:
    """Raise UsageError where the batch of a rank does not split into equal micro-batches."""
    if request.accumulate < 1 or request.batch_size < 1 or request.batch_size % request.accumulate:
        raise UsageError(
            f"a batch of {request.batch_size} a rank does not split into {request.accumulate} equal "
            "micro-batches; change train.batch_size or train.accumulate"
        )


def check_mixing(backend: Backend | None, micro_batch: int) -> None:
    """Raise UsageError where images are to be mixed and `backend` cannot, or a micro-batch has no two of them."""
    if backend is not None and not backend.mixes:
        raise UsageError(
            f"the backend {backend.id} cannot mix images; set mix.mixup=0 and mix.cutmix=0, or choose another "
            "--backend"
        )
    check_micro_batch(micro_batch)


def step_inputs(
    request: TrainRequest, batches: Sequence[Batch], lrs: Sequence[float] | Any
) -> list[StepInput]:
    """Check the arguments of :meth:`Trainer.run_steps` and return the input of every step.

    A row's weight is 0 where it is not valid, else rows / valid rows, both counted over the step's batch on all ranks;
    0 everywhere where none is valid. The mean of weight x loss over equal micro-batches and ranks is then the mean loss
    of the valid rows. All weights of a batch without invalid rows are 1. With several ranks the counts of all `batches`
    are added in one message.

    Raises UsageError on batches that are not what `request` says, DataError on labels that are no class.
    """
    if len(batches) != len(lrs):
        raise UsageError(f"{len(batches)} batches need as many learning rates, not {len(lrs)}")
    for batch in batches:
        _check_batch(request, batch)
    valid = [np.asarray(batch.valid, np.bool_) for batch in batches]
    counts = np.array([np.count_nonzero(v) for v in valid], np.int64)
    if request.rank.world > 1 and batches:
        counts = request.collectives.all_reduce_sum(counts)
    total = request.batch_size * request.rank.world
    labels = [np.where(v, batch.labels, 0).astype(np.int32) for batch, v in zip(batches, valid, strict=True)]
    mixes = [None] * len(batches) if not request.mixes else [
        mixed_rows(batch.mix or (Mix(),) * request.accumulate, own, v, batch.images.shape[1:3])
        for batch, own, v in zip(batches, labels, valid, strict=True)
    ]  # fmt: skip
    return [
        StepInput(
            images=batch.images,
            labels=own,
            weights=v * (total / int(count) if count else 0.0),
            lr=float(lr),
            mix=mix,
        )
        for batch, own, mix, v, count, lr in zip(batches, labels, mixes, valid, counts, lrs, strict=True)
    ]


def _check_batch(request: TrainRequest, batch: Batch) -> None:
    size, images, classes = request.batch_size, batch.images, request.weights.spec.num_classes
    if len(batch.labels) != size or len(images) != size:
        raise UsageError(f"a training step takes {size} images a rank, not {len(images)}")
    if batch.valid.shape != (size,):
        raise UsageError(f"valid must be bool ({size},), not {batch.valid.dtype} {batch.valid.shape}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UsageError(f"images must be uint8 (N, H, W, 3), not {images.dtype} {images.shape}")
    _check_mix(request, batch)
    labels = batch.labels[batch.valid]
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(
            f"training labels must be 0 to {classes - 1}, not {labels.min()} to {labels.max()}; "
            "train on labelled images of the classes of the model"
        )


def _check_mix(request: TrainRequest, batch: Batch) -> None:
    if not batch.mix:
        return
    if not request.mixes:
        raise UsageError("a batch says how to mix its images, and this training was not asked to mix any")
    if len(batch.mix) != request.accumulate:
        raise UsageError(f"{request.accumulate} micro-batches need as many mixes, not {len(batch.mix)}")
    height, width = batch.images.shape[1:3]
    for mix in batch.mix:
        top, left, bottom, right = mix.box
        if not 0 <= mix.lam <= 1 or not 0 <= top <= bottom <= height or not 0 <= left <= right <= width:
            raise UsageError(f"{mix} does not fit images of {height} x {width} pixels and shares from 0 to 1")
