"""The saver: beside the training or in its place, one at a time, and no error lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from resnext_core.errors import DataError
from resnext_core.runs.checkpoint_folder import RunProgress, Saving, Summary
from resnext_core.runs.saver import Saver


def summary(step: int) -> Summary:
    return Summary(
        name=f"step-{step}",
        progress=RunProgress(step=step, epoch_closed=True),
        saving=Saving(bytes=0, seconds=0.0, blocked_s=0.0, records=None),
        metrics={},
    )


class Disk:
    """Checkpoints that are written when `gate` is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.told: list[tuple[str, int]] = []
        self.blocked: list[float] = []

    def done(self, saved: Summary) -> None:
        self.told.append((saved.name, threading.get_ident()))

    def writer(self, step: int, error: BaseException | None = None) -> Callable[[float], Summary]:
        def write(blocked_s: float) -> Summary:
            assert self.gate.wait(20)
            self.blocked.append(blocked_s)
            if error is not None:
                raise error
            return summary(step)

        return write

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.told]


def test_training_goes_on_while_it_writes_and_hears_of_it_in_its_own_thread() -> None:
    disk = Disk()
    with Saver(disk.done, background=True) as saver:
        saver.save(disk.writer(1), since=time.perf_counter())
        saver.report_written()
        assert disk.names == []
        disk.gate.set()
        deadline = time.monotonic() + 120
        while not disk.names and time.monotonic() < deadline:
            saver.report_written()
            time.sleep(0.001)
        assert disk.told == [("step-1", threading.get_ident())]


def test_a_second_one_waits_for_the_first_and_says_how_long() -> None:
    disk = Disk()
    with Saver(disk.done, background=True) as saver:
        saver.save(disk.writer(1), since=time.perf_counter())
        stopped = time.perf_counter()
        threading.Timer(0.2, disk.gate.set).start()
        saver.save(disk.writer(2), since=stopped)
        assert disk.names == ["step-1"]
    assert disk.names == ["step-1", "step-2"]
    assert disk.blocked[1] > 0.1


def test_in_the_foreground_it_is_done_on_return() -> None:
    disk = Disk()
    disk.gate.set()
    with Saver(disk.done, background=False) as saver:
        saver.save(disk.writer(1), since=time.perf_counter())
        assert disk.names == ["step-1"]
        with pytest.raises(DataError, match="full"):
            saver.save(disk.writer(2, DataError("full")), since=time.perf_counter())


@pytest.mark.parametrize("call", ["report_written", "wait", "save", "leave"])
def test_an_error_in_the_background_is_raised_where_the_training_looks(call: str) -> None:
    disk = Disk()
    disk.gate.set()
    saver = Saver(disk.done, background=True)
    saver.save(disk.writer(1, DataError("full")), since=time.perf_counter())
    assert saver._thread is not None
    saver._thread.join()
    calls: dict[str, Callable[[], object]] = {
        "save": lambda: saver.save(disk.writer(2), since=time.perf_counter()),
        "leave": lambda: saver.__exit__(None, None, None),
        "report_written": saver.report_written,
        "wait": saver.wait,
    }
    with pytest.raises(DataError, match="full"):
        calls[call]()
    saver.wait()  # once is enough
    assert disk.names == []


def leave_with(disk: Disk, error: BaseException, in_writer: BaseException | None = None) -> None:
    """Raise `error` in a saver's block while it is writing."""
    with Saver(disk.done, background=True) as saver:
        saver.save(disk.writer(1, in_writer), since=time.perf_counter())
        raise error


def test_another_error_keeps_its_place_and_waits_for_the_writer() -> None:
    disk = Disk()
    threading.Timer(0.1, disk.gate.set).start()
    with pytest.raises(DataError, match="first"):
        leave_with(disk, DataError("first"), DataError("second"))
    assert disk.blocked, "left before the checkpoint was written"


def test_a_second_signal_waits_for_nothing() -> None:
    disk = Disk()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        leave_with(disk, KeyboardInterrupt())
    assert time.monotonic() - started < 60, "it waited for a writer that never ends"
    disk.gate.set()
