"""Stochastic depth: shares that stay, expectation one, one stream a step, rows of ranks."""

from __future__ import annotations

import numpy as np
import pytest

from resnext_core.data.branches import draw_branches, drop_rates

ALL = slice(0, 64)


def draw(step: int = 0, seed: int = 1, rows: slice = ALL) -> np.ndarray:
    return draw_branches(0.4, 5, seed=seed, step=step, global_batch=64, rows=rows)


def test_rates_are_linear_from_none_to_the_last() -> None:
    assert drop_rates(0.4, 5) == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert drop_rates(0.4, 1).tolist() == [0.0]


def test_what_stays_is_divided_by_its_probability() -> None:
    branches = np.concatenate([draw(step) for step in range(300)])
    assert branches.dtype == np.float32
    stay = 1 - drop_rates(0.4, 5)
    for block in range(5):
        kept = branches[:, block] > 0
        assert set(np.unique(branches[:, block])) <= {np.float32(0), np.float32(1 / stay[block])}
        # 19,200 rows: the share has a deviation of at most 0.0036
        assert kept.mean() == pytest.approx(stay[block], abs=0.018)
    assert (branches[:, 0] == 1).all()
    dropped = branches[:, 1:] == 0
    assert abs(np.corrcoef(dropped.T) - np.eye(4)).max() < 0.04, "blocks are left out together"


def test_draws_depend_on_seed_and_step_alone() -> None:
    assert np.array_equal(draw(3), draw(3))
    assert not np.array_equal(draw(3), draw(4))
    assert not np.array_equal(draw(3), draw(3, seed=2))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_take_their_rows(world: int) -> None:
    share = 64 // world
    parts = [draw(7, rows=slice(rank * share, (rank + 1) * share)) for rank in range(world)]
    assert np.array_equal(np.concatenate(parts), draw(7))


def test_the_first_draws_are_these_for_ever() -> None:
    """A resumed run of another release must leave out the same branches."""
    kept = [
        (draw_branches(0.5, 3, seed=1, step=step, global_batch=4, rows=slice(0, 4)) > 0).astype(int).tolist()
        for step in (0, 7)
    ]
    assert kept == [
        [[1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 0, 1]],
        [[1, 0, 1], [1, 1, 0], [1, 1, 0], [1, 1, 1]],
    ]
