"""Reading ahead: what was announced is made at the same time, in order or not, in bounded memory."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resnext_core.data.remote import ahead
from resnext_core.data.remote.access import Access
from resnext_core.data.remote.ahead import Ahead
from resnext_core.data.remote.cache import Cache
from resnext_core.data.remote.fetch import Fetch


def test_results_are_those_of_the_work_in_any_order() -> None:
    made = []

    def work(item: int) -> int:
        made.append(item)
        return item * item

    reading = Ahead(work)
    for _ in range(3):
        reading.expect(range(300))
        for item in [*range(0, 300, 2), *range(299, 0, -2), 1000]:
            assert reading.take(item) == item * item
    assert sorted(made) == sorted([*range(300), 1000] * 3)  # each once
    assert not reading._coming
    assert reading._begun == 0
    assert pickle.loads(pickle.dumps(Ahead(abs))).take(-3) == 3


def test_work_is_done_at_the_same_time_and_threads_end() -> None:
    together = threading.Barrier(ahead._AT_A_TIME)
    reading = Ahead(lambda item: together.wait(timeout=60))
    reading.expect(range(ahead._AT_A_TIME))
    threads = [thread for thread in threading.enumerate() if thread.name == "resnext-fetch"]
    assert sorted(reading.take(item) for item in range(ahead._AT_A_TIME)) == list(range(ahead._AT_A_TIME))
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
        assert thread.daemon


def test_results_that_wait_are_bounded() -> None:
    begun = threading.Semaphore(0)

    def work(item: int) -> int:
        begun.release()
        return item

    reading = Ahead(work)
    reading.expect(range(10 * ahead._WAITING))
    for _ in range(ahead._WAITING):
        assert begun.acquire(timeout=60)
    while reading._threads:  # they end where no more may wait
        for thread in [thread for thread in threading.enumerate() if thread.name == "resnext-fetch"]:
            thread.join(timeout=60)
    assert not begun.acquire(blocking=False)
    assert reading.take(0) == 0
    assert begun.acquire(timeout=60)  # one was taken, so another is begun


def test_what_nobody_takes_is_forgotten() -> None:
    reading = Ahead(lambda item: item)
    reading.expect(["given up"])
    for number in range(ahead._STALE):
        reading.expect([number])
        assert reading.take(number) == number
    assert not reading._coming
    assert reading._begun == 0


def test_errors_are_raised_where_they_are_taken() -> None:
    def work(item: int) -> int:
        raise ValueError(f"number {item}")

    reading = Ahead(work)
    reading.expect([1])
    for item in (2, 1):
        with pytest.raises(ValueError, match=f"number {item}"):
            reading.take(item)


def test_two_that_want_the_same_part_at_once_cause_one_request(tmp_path: Path) -> None:
    asked: list[str] = []
    second = threading.Event()

    class Slow(Access):
        def content(self, url: str, offset: int, length: int, *, whole: bool = False) -> bytes:
            asked.append(url)
            if len(asked) > 1:
                second.set()
            second.wait(0.2)  # gives another thread the time to ask too
            return bytes(length)

    fetch = Fetch(access=Slow(), cache=Cache(folder=tmp_path / "cache", limit=1 << 20))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: fetch.content("http://host/file", "1", 8, 16), range(4)))
    assert found == [bytes(16)] * 4
    assert len(asked) == 1
    with fetch.locks.of("key"):
        assert pickle.loads(pickle.dumps(Fetch(cache=fetch.cache))) == Fetch(cache=fetch.cache)
