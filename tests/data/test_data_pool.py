"""The pool of worker processes: deaths are noticed, blamed on an item or on none, and counted against the limits."""

from __future__ import annotations

from pathlib import Path

import pytest
from deadly_duties import DieAtOdd, DieIdle, DieOnce, Numbers
from processes import alive, data_workers

from resnext_core.data.pool import Limits, Pool, WorkerDied
from resnext_core.errors import UsageError


def test_any_number_of_items_may_end_their_workers_where_the_limits_allow() -> None:
    limits = Limits(tries=1, deaths=None, idle=0)
    with Pool(DieAtOdd(), 2, limits, setting="workers") as pool:
        tickets = {pool.submit(Numbers(range(n, n + 5))): n for n in range(0, 50, 5)}
        found = []
        while tickets:
            ticket = pool.wait()
            start = tickets.pop(ticket)
            found += pool.result(ticket)
            assert set(found) >= {n for n in range(start, start + 5) if n % 2 == 0}
        assert sorted(found) == list(range(0, 50, 2))
        assert sorted(pool.left_out()) == list(range(1, 50, 2))
        assert len(pool.notes) == 25
        assert all("died (exit code 7)" in note for note in pool.notes)
        pids = data_workers()
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)


def test_an_item_that_another_worker_survives_is_not_to_blame(tmp_path: Path) -> None:
    with Pool(DieOnce(tmp_path / "died"), 1, Limits(tries=2, deaths=1, idle=0), setting="workers") as pool:
        assert pool.result(pool.submit(Numbers([0, 1, 2]))) == [0, 1, 2]
        assert pool.left_out() == []
        assert len(pool.notes) == 1


@pytest.mark.parametrize(
    ("duty", "limits", "item"),
    [
        (DieIdle(), Limits(tries=1, deaths=None, idle=2), -1),
        (DieAtOdd(), Limits(tries=9, deaths=2, idle=0), 1),
    ],
)
def test_too_many_deaths_end_the_pool(duty: DieIdle | DieAtOdd, limits: Limits, item: int) -> None:
    with Pool(duty, 1, limits, setting="workers") as pool:
        with pytest.raises(WorkerDied, match=r"worker 0 died \(exit code 7\)") as caught:
            pool.result(pool.submit(Numbers([1])))
        assert caught.value.item == item
        assert len(pool.notes) == 2
        assert data_workers() == []


def test_too_many_workers_are_refused_by_the_name_of_the_setting() -> None:
    with pytest.raises(UsageError, match=r"data\.workers must be at most 512, not 513"):
        Pool(DieIdle(), 513, Limits(tries=1, deaths=0, idle=0), setting="data.workers")
