"""What ranks make sure of before they train together: the same first weights, the same step."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from resnext_core.errors import DataError
from resnext_core.interfaces import TrainRequest


def with_first_weights(request: TrainRequest) -> TrainRequest:
    """Return the request with the initial weights of rank 0, whatever the other ranks have.

    Ranks make the same weights from the same seed, so comparing digests is usually all there is to do; where they
    differ, rank 0 sends its tensors one by one.
    """
    rank, add = request.rank, request.collectives.all_reduce_sum
    if rank.world == 1:
        return request
    own = int(hashlib.sha256(request.weights.digest.encode()).hexdigest()[:14], 16)
    digests = np.zeros(rank.world, np.int64)
    digests[rank.rank] = own
    digests = add(digests)
    if (digests == digests[0]).all():
        return request
    tensors = {}
    for tensor in request.weights.spec.tensors:
        array = request.weights.tensors[tensor.name]
        tensors[tensor.name] = add(array if rank.is_main else np.zeros_like(array))
    return replace(request, weights=request.weights.replace(tensors=tensors))


def check_same_step(request: TrainRequest, step: int) -> None:
    """Raise DataError on every rank where ranks are at different steps: gradients of different steps would be added."""
    rank = request.rank
    if rank.world == 1:
        return
    steps = np.zeros(rank.world, np.int64)
    steps[rank.rank] = step
    steps = request.collectives.all_reduce_sum(steps)
    others = np.flatnonzero(steps != steps[0])
    if len(others):
        raise DataError(
            f"rank {others[0]} is at step {steps[others[0]]}, rank 0 at step {steps[0]}: all servers must see the "
            "run folder, checkpoints included; put it on storage that they share"
        )
