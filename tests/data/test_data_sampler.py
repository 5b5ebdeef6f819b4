"""The data order: permutations, shares of ranks, evaluation batches, random streams."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnext_core.data.sampler import (
    check_repeats,
    epoch_permutation,
    eval_tasks,
    rank_slice,
    rank_task,
    sample_rng,
    steps_per_epoch,
)
from resnext_core.errors import UsageError


@given(st.integers(0, 500), st.integers(0, 2**63), st.integers(0, 10_000))
def test_a_permutation_has_every_index_once(n: int, seed: int, epoch: int) -> None:
    order = epoch_permutation(n, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))
    assert np.array_equal(order, epoch_permutation(n, seed, epoch))


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_permutation(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_the_order_is_the_same_for_ever() -> None:
    """These numbers may never change: resumed runs and published results rest on them."""
    assert epoch_permutation(10, 1, 0).tolist() == [0, 6, 5, 3, 4, 9, 7, 8, 2, 1]
    np.testing.assert_allclose(
        sample_rng(1, 0, 5).random(3), [0.09919087, 0.61072121, 0.94596621], atol=1e-8, rtol=0
    )


def test_first_places_are_uniform() -> None:
    first = np.bincount([epoch_permutation(8, 3, e)[0] for e in range(4000)], minlength=8)
    assert abs(first / 500 - 1).max() < 0.2  # 4.7 standard deviations


@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 8), st.integers(0, 3))
def test_ranks_share_each_step(n: int, share: int, world: int, epoch: int) -> None:
    batch = share * world
    if n < batch:
        with pytest.raises(UsageError, match=f"batch_size {batch} is larger than the {n} training image"):
            steps_per_epoch(n, batch)
        return
    order, seen = epoch_permutation(n, 1, epoch), []
    for step in range(steps_per_epoch(n, batch)):
        parts = [rank_slice(order, step, batch, rank, world) for rank in range(world)]
        assert {len(p) for p in parts} == {share}
        together = np.concatenate(parts)
        assert np.array_equal(together, rank_slice(order, step, batch, 0, 1))
        seen += together.tolist()
    assert seen == order[: len(seen)].tolist()
    assert n - len(seen) < batch


def test_batch_must_divide() -> None:
    with pytest.raises(UsageError, match=r"train\.batch_size 10 must be a multiple of the 4 processes"):
        rank_slice(np.arange(20), 0, 10, 0, 4)
    with pytest.raises(ValueError, match="no step 2"):
        rank_slice(np.arange(20), 2, 10, 0, 1)


@given(st.integers(0, 70), st.integers(1, 17), st.integers(1, 9))
def test_evaluation_scores_every_index_once(n: int, batch_size: int, world: int) -> None:
    ranks = [list(eval_tasks(n, batch_size, rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    scored: list[int] = []
    for tasks in ranks:
        for task in tasks:
            indices, valid = task.indices, task.valid
            assert task.epoch == 0
            assert indices.dtype == np.int64
            assert valid.dtype == np.bool_
            assert indices.shape == valid.shape == (batch_size,)
            assert (indices[~valid] == 0).all()
            scored += indices[valid].tolist()
    assert sorted(scored) == list(range(n))
    assert sum(len(b) for b in ranks) * batch_size < n + batch_size * world + world


def test_a_stream_starts_afresh_whatever_its_generator_did_before() -> None:
    """Also beside others that are alive, in several threads, and from the middle of a block of numbers."""

    def fresh(purpose: int, sample: int) -> list[float]:
        key, counter = np.array([9, purpose], np.uint64), np.array([0, 0, sample, 4], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter)).random(7).tolist()

    def check(first: int) -> None:
        for sample in range(first, first + 60):
            one, other = sample_rng(9, 4, sample), sample_rng(9, 4, sample + 1)
            drawn = [one.random() for _ in range(sample % 7)]
            auto = one.stream("auto")
            assert other.random(7).tolist() == fresh(2, sample + 1)
            del other
            assert auto.random(7).tolist() == fresh(3, sample)
            assert sample_rng(9, 4, sample).stream("erasing").random(7).tolist() == fresh(4, sample)
            assert drawn + one.random(7 - len(drawn)).tolist() == fresh(2, sample)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(check, range(0, 4000, 1000)))


def test_streams_of_samples_are_independent() -> None:
    draws = {
        tuple(sample_rng(seed, epoch, sample).random(4))
        for seed in range(3)
        for epoch in range(4)
        for sample in range(50)
    }
    assert len(draws) == 600
    # a stream is long: it must not run into the next sample's
    long = sample_rng(0, 0, 0).random(10_000)
    assert not np.isin(sample_rng(0, 0, 1).random(100), long).any()
    values = np.array([sample_rng(7, 2, s).random(2) for s in range(3000)])
    assert abs(values.mean(0) - 0.5).max() < 0.03
    assert abs(np.corrcoef(values.T)[0, 1]) < 0.08


@given(st.integers(1, 80), st.integers(1, 6), st.integers(1, 4), st.integers(1, 12), st.integers(0, 2))
def test_repeats_are_dealt_out_over_ranks(n: int, share: int, world: int, repeats: int, epoch: int) -> None:
    batch = share * world
    if n < batch or repeats > batch:
        return
    order, seen = epoch_permutation(n, 1, epoch), []
    steps = steps_per_epoch(n, batch)
    for step in range(steps):
        tasks = [
            rank_task(order, step, batch, rank, world, epoch=epoch, repeats=repeats) for rank in range(world)
        ]
        whole = rank_task(order, step, batch, 0, 1, epoch=epoch, repeats=repeats)
        assert np.array_equal(np.concatenate([t.indices for t in tasks]), whole.indices)
        assert np.array_equal(np.concatenate([t.row_views() for t in tasks]), whole.row_views())
        assert all(len(t) == share and t.epoch == epoch and t.valid.all() for t in tasks)
        rows = list(zip(whole.indices.tolist(), whole.row_views().tolist(), strict=True))
        if batch % repeats == 0:  # all views of an image are in one step
            assert {sample: sum(s == sample for s, _ in rows) for sample, _ in rows} == dict.fromkeys(
                whole.indices.tolist(), repeats
            )
            for start in range(0, batch, batch // repeats):  # and apart from each other
                assert len(set(whole.indices[start : start + batch // repeats].tolist())) == batch // repeats
        seen += rows
    # as if each image stood in the permutation `repeats` times in a row
    expected = [(sample, view) for sample in order.tolist() for view in range(repeats)][: steps * batch]
    assert sorted(seen) == sorted(expected)


def test_without_repeats_a_task_is_the_slice() -> None:
    order = epoch_permutation(20, 3, 0)
    task = rank_task(order, 1, 8, 1, 2, epoch=4)
    assert task.epoch == 4
    assert task.views is None
    assert np.array_equal(task.indices, rank_slice(order, 1, 8, 1, 2))


def test_two_ranks_get_two_views_of_each_image() -> None:
    order = np.arange(100, 140)
    first, second = (rank_task(order, 2, 8, rank, 2, epoch=0, repeats=2) for rank in range(2))
    assert first.indices.tolist() == second.indices.tolist() == [108, 109, 110, 111]
    assert first.row_views().tolist() == [0, 0, 0, 0]
    assert second.row_views().tolist() == [1, 1, 1, 1]
    assert first != second


def test_repeats_of_an_epoch_start_anywhere() -> None:
    """A resumed run asks for a step in mid-epoch, and nothing before it."""
    order = epoch_permutation(37, 1, 0)
    steps = [rank_task(order, step, 6, 0, 1, epoch=0, repeats=4) for step in range(6)]
    assert steps[3:] == [rank_task(order, step, 6, 0, 1, epoch=0, repeats=4) for step in range(3, 6)]


def test_repeats_must_fit_into_a_step() -> None:
    check_repeats(8, 8)
    with pytest.raises(UsageError, match=r"augment\.repeats 9 is more than train\.batch_size 8") as caught:
        check_repeats(9, 8)
    assert "\n" not in str(caught.value)
