"""What ranks make sure of before they train together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from resnext_core.errors import DataError
from resnext_core.interfaces import TrainRequest
from resnext_core.ranks.info import RankInfo
from resnext_core.testing import cases
from resnext_core.testing.distributed import ThreadGroup
from resnext_core.training.together import check_same_step, with_first_weights
from resnext_core.training.trainer import create_trainer


def on_ranks(world: int, work: Callable[[TrainRequest], Any]) -> list[Any]:
    """Return what `work` returns, or the error that it raises, on each rank's request."""
    group, found = ThreadGroup(world), [None] * world

    def run(rank: int) -> None:
        info = RankInfo(rank=rank, world=world)
        request = cases.TRAIN_CASES["everything"].request(rank=info, collectives=group.of(rank))
        try:
            found[rank] = work(request)
        except Exception as error:
            found[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def scaled(request: TrainRequest) -> TrainRequest:
    """Return the request with weights that differ from rank to rank."""
    factor = np.float32(1 + request.rank.rank)
    tensors = {name: array * factor for name, array in request.weights.tensors.items()}
    return replace(request, weights=request.weights.replace(tensors=tensors))


def test_all_ranks_start_from_the_weights_of_rank_0() -> None:
    expected = cases.weights(cases.TRAIN_CASES["everything"].network)
    for found in on_ranks(3, lambda request: with_first_weights(scaled(request))):
        assert found.weights.digest == expected.digest
        assert {a.dtype for a in found.weights.tensors.values()} == {np.dtype(np.float32)}
    for state in on_ranks(2, lambda request: create_trainer(cases.oracle(), scaled(request)).state()):
        assert np.array_equal(state.tensors["ema/fc.weight"], expected.tensors["fc.weight"])


def test_equal_weights_are_not_sent() -> None:
    for same in on_ranks(2, lambda request: with_first_weights(request) is request):
        assert same is True


def test_ranks_at_different_steps_are_told_on_every_rank() -> None:
    assert on_ranks(3, lambda request: check_same_step(request, 7)) == [None] * 3
    for error in on_ranks(3, lambda request: check_same_step(request, 7 if request.rank.rank == 2 else 0)):
        assert isinstance(error, DataError)
        assert "rank 2 is at step 7, rank 0 at step 0: all servers must see the run folder" in str(error)


def test_the_steps_are_compared_before_the_first_gradients_are_added() -> None:
    case = cases.TRAIN_CASES["everything"]

    def resumed(request: TrainRequest) -> Any:
        trainer = create_trainer(cases.oracle(), request)
        state = trainer.state()
        trainer.load_state(replace(state, scalars={**state.scalars, "step": request.rank.rank}))
        part = [cases.batch(case.network, request.batch_size, seed=1)]
        with pytest.raises(DataError, match="rank 1 is at step 1, rank 0 at step 0"):
            trainer.run_steps(part, case.lr_array()[:1])
        return trainer.counters()["step"]

    assert on_ranks(2, resumed) == [0, 1]
