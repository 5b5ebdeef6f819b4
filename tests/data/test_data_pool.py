"""The pool of worker processes: deaths are noticed, blamed on an item or on none, and counted against the limits."""

from __future__ import annotations

from pathlib import Path

import pytest
from deadly_duties import DieAtOdd, DieBeside, DieIdle, DieOnce, Meet, Numbers, Unready
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
    ("duty", "limits", "items"),
    [
        (DieIdle(), Limits(tries=1, deaths=None, idle=2), ()),
        (DieAtOdd(), Limits(tries=9, deaths=2, idle=0), (1,)),
    ],
)
def test_too_many_deaths_end_the_pool(
    duty: DieIdle | DieAtOdd, limits: Limits, items: tuple[int, ...]
) -> None:
    with Pool(duty, 1, limits, setting="workers") as pool:
        with pytest.raises(WorkerDied, match=r"worker 0 died \(exit code 7\)") as caught:
            pool.result(pool.submit(Numbers([1])))
        assert caught.value.items == items
        assert len(pool.notes) == 2
        assert data_workers() == []


def test_too_many_workers_are_refused_by_the_name_of_the_setting() -> None:
    with pytest.raises(UsageError, match=r"data\.workers must be at most 512, not 513"):
        Pool(DieIdle(), 513, Limits(tries=1, deaths=0, idle=0), setting="data.workers")


# -- threads ---------------------------------------------------------------------------------------


def test_workers_are_threads_of_as_few_processes_as_do() -> None:
    with Pool(Meet(3), 6, Limits(tries=1, deaths=0, idle=0), setting="workers", threads=4) as pool:
        tickets = [pool.submit(Numbers([n])) for n in range(12)]
        found = [pool.result(ticket) for ticket in tickets]
        assert len(data_workers()) == 2
    assert [numbers for _, *numbers in found] == [[n] for n in range(12)]
    assert len({pid for pid, _ in found}) == 2


@pytest.mark.parametrize("tries", [1, 2])
def test_items_beside_a_deadly_one_are_tried_alone_and_not_left_out(tmp_path: Path, tries: int) -> None:
    duty = DieBeside(others=3, mark=tmp_path / "died")
    limits = Limits(tries=tries, deaths=2, idle=0)
    with Pool(duty, 4, limits, setting="workers", threads=4) as pool:
        tickets = [pool.submit(Numbers([n])) for n in (0, 1, 2, 3, 4, 5)]
        assert [pool.result(ticket) for ticket in tickets] == [[], [1], [2], [3], [4], [5]]
        assert pool.left_out() == [0]
        assert len(pool.notes) == 2, "once beside others, once alone"
        assert len(data_workers()) == 1


def test_a_job_that_comes_while_others_are_tried_alone_is_done_after_them(tmp_path: Path) -> None:
    duty = DieBeside(others=1, mark=tmp_path / "died")
    with Pool(duty, 2, Limits(tries=2, deaths=2, idle=0), setting="workers", threads=2) as pool:
        first = [pool.submit(Numbers([n])) for n in (0, 1)]
        assert pool.result(first[1]) == [1]  # of the process that follows
        later = [pool.submit(Numbers([n])) for n in (0, 2)]
        assert [pool.result(ticket) for ticket in (*first[:1], *later)] == [[], [], [2]]


def test_a_duty_that_cannot_begin_is_a_bug_of_every_job() -> None:
    with Pool(Unready(), 2, Limits(tries=1, deaths=0, idle=0), setting="workers", threads=2) as pool:
        for ticket in [pool.submit(Numbers([n])) for n in range(3)]:
            with pytest.raises(RuntimeError, match="its library is gone"):
                pool.result(ticket)
