"""What ranks make sure of before they train together: the same first weights, the same step."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from resnext_core.errors import DataError
from resnext_core.interfaces import TrainRequest
from resnext_core.ranks.exchange import from_each, from_main


def with_first_weights(request: TrainRequest) -> TrainRequest:
    """Return the request with the initial weights of rank 0, whatever the other ranks have.

    Ranks make the same weights from the same seed, so comparing digests is usually all there is to do; where they
    differ, rank 0 sends its tensors one by one.
    """
    rank, collectives = request.rank, request.collectives
    if rank.world == 1:
        return request
    own = int(hashlib.sha256(request.weights.digest.encode()).hexdigest()[:14], 16)
    digests = from_each(rank, collectives, own)
    if (digests == digests[0]).all():
        return request
    tensors = {
        tensor.name: from_main(rank, collectives, request.weights.tensors[tensor.name])
        for tensor in request.weights.spec.tensors
    }
    return replace(request, weights=request.weights.replace(tensors=tensors))


def check_same_step(request: TrainRequest, step: int) -> None:
    """Raise DataError on every rank where ranks are at different steps: gradients of different steps would be added."""
    if request.rank.world == 1:
        return
    steps = from_each(request.rank, request.collectives, step)
    others = np.flatnonzero(steps != steps[0])
    if len(others):
        raise DataError(
            f"rank {others[0]} is at step {steps[others[0]]}, rank 0 at step {steps[0]}: all servers must see the "
            "run folder, checkpoints included; put it on storage that they share"
        )
