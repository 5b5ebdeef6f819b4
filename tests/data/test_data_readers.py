"""Readers as threads, and what they share: decoders in use, memory of batches, what is read ahead."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images import class_tree
from odd_decoders import Deadly, Threaded, Unsure, threaded, unopened
from processes import alive, data_workers, eventually

from resnext_core.config import AugmentConfig
from resnext_core.data.batch_pool import LIMITS
from resnext_core.data.index import Index, open_index
from resnext_core.data.loader import Loader
from resnext_core.data.pool import Pool
from resnext_core.data.sampler import Task, epoch_permutation, eval_tasks, rank_slice
from resnext_core.data.slots import Slots
from resnext_core.errors import DataError
from resnext_core.model.preprocess import PreprocessSpec

SPEC = PreprocessSpec(size=24, resize=28)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return open_index(class_tree(tmp_path_factory.mktemp("data") / "train", per_class=9))


def train_tasks(index: Index, epoch: int, batch: int = 8) -> list[Task]:
    order = epoch_permutation(len(index), 5, epoch)
    return [Task.of(epoch, rank_slice(order, step, batch, 0, 1)) for step in range(len(index) // batch)]


def images_of(loader: Loader, tasks: Sequence[Task]) -> list[np.ndarray]:
    with loader:
        return [batch.images.copy() for batch in loader.batches(tasks)]


@pytest.mark.parametrize("open", [Threaded, Unsure])
def test_batches_depend_neither_on_threads_nor_on_the_decoder(
    index: Index, open: Callable[[], Threaded]
) -> None:
    tasks = train_tasks(index, 0) + train_tasks(index, 1, batch=27)
    expected = images_of(Loader(index, SPEC, AugmentConfig(), seed=3, workers=0), tasks)
    for workers, words in [
        (0, "in the main process"),
        (1, "1 thread in 1 process"),
        (5, "5 threads in 2 processes"),
    ]:
        loader = Loader(index, SPEC, AugmentConfig(), seed=3, workers=workers, decoder=threaded(open))
        assert loader.readers == words
        for got, wanted in zip(images_of(loader, tasks), expected, strict=True):
            assert np.array_equal(got, wanted)
        assert loader.take_notes() == [], "a remark on an image that Pillow read after all is dropped"
    assert Loader(index, SPEC, workers=2).readers == "2 processes"


def test_what_was_beside_a_deadly_image_is_tried_alone_and_kept(index: Index, tmp_path: Path) -> None:
    """Several images are at work when the process dies, each in a batch of its own; one of them is to blame."""
    root = class_tree(tmp_path / "train", per_class=9)
    deadly = root / "ant" / "0_deadly.png"
    deadly.write_bytes(b"deadly")
    with_deadly = open_index(root)
    number = with_deadly.paths.index("ant/0_deadly.png")
    beside = [i for i in range(len(with_deadly)) if i != number][:5]
    tasks = [Task.of(0, np.array([i])) for i in (beside[0], number, *beside[1:])]
    open = partial(Deadly, tmp_path / "died", tmp_path / "alone")
    with Loader(with_deadly, SPEC, workers=4, prefetch=8, decoder=threaded(open)) as loader:
        batches = list(loader.batches(tasks))
        notes = loader.take_notes()
    assert [batch.valid.tolist() for batch in batches] == [[True], [False], *[[True]] * 4]
    assert loader.failures == {number: "reading it ended two decoding processes"}
    assert (tmp_path / "alone").exists()
    assert len(notes) == 2
    assert all("data worker 0 died (killed by SIGSEGV); it was started again" in note for note in notes)
    assert str(deadly) not in notes[0]
    assert notes[1].endswith(f"left out: {deadly}")
    with Loader(with_deadly, SPEC, workers=0) as plain:
        for got, wanted in zip(batches, plain.batches(tasks), strict=True):
            assert np.array_equal(got.images, wanted.images)


def test_processes_of_threads_that_die_change_no_bit(index: Index) -> None:
    tasks = train_tasks(index, 0, batch=2) * 10
    expected = images_of(Loader(index, SPEC, AugmentConfig(), workers=0), tasks)
    rng = np.random.default_rng(0)
    with Loader(index, SPEC, AugmentConfig(), workers=6, decoder=threaded()) as loader:
        for number, batch in enumerate(loader.batches(tasks)):
            assert np.array_equal(batch.images, expected[number]), number
            assert batch.valid.all()
            if number % 40 == 0:
                os.kill(int(rng.choice(data_workers())), signal.SIGKILL)
        assert LIMITS.deaths is not None
        assert len(tasks) // 40 < LIMITS.deaths
        assert len(loader.take_notes()) >= len(tasks) // 40 - 1


def test_a_decoder_that_does_not_open_is_no_bad_image(index: Index) -> None:
    for workers, error in [(0, OSError), (2, RuntimeError)]:
        loader = Loader(index, SPEC, workers=workers, decoder=threaded(unopened))
        with loader, pytest.raises(error, match="its library is gone"):
            next(loader.batches(eval_tasks(len(index), 8)))
        assert loader.failures == {}


PARENT = """
import sys
sys.path[:0] = sys.argv[2:4]
from functools import partial
from pathlib import Path
import numpy as np
from odd_decoders import Busy, threaded
from resnext_core.data.index import open_index
from resnext_core.data.loader import Loader, Task
from resnext_core.model.preprocess import PreprocessSpec
open = partial(Busy, Path(sys.argv[1]))
loader = Loader(open_index(sys.argv[4]), PreprocessSpec(size=8, resize=8), workers=6, decoder=threaded(open))
list(loader.batches(Task.of(0, np.arange(1)) for _ in range(20)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pause() of the C library")
def test_threads_in_native_code_end_with_a_parent_that_is_killed(index: Index, tmp_path: Path) -> None:
    here = Path(__file__).parent
    there = tmp_path / "there"
    there.mkdir()
    words = [sys.executable, "-c", PARENT, there, here, here.parent, index.root]
    parent = subprocess.Popen([str(word) for word in words])
    try:
        assert eventually(lambda: len(list(there.iterdir())) == 6 or parent.poll() is not None)
        pids = {int(path.name.split("-")[0]) for path in there.iterdir()}
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
    finally:
        parent.kill()
        parent.wait(timeout=300)
    assert eventually(lambda: not any(alive(pid) for pid in pids))


# -- read ahead ------------------------------------------------------------------------------------


class Submitted:
    """The number of jobs that were handed out, over all pools."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.jobs = 0
        original = Pool.submit

        def submit(pool: Any, job: Any) -> int:
            self.jobs += 1
            return original(pool, job)

        patch.setattr(Pool, "submit", submit)


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> Submitted:
    return Submitted(monkeypatch)


def test_what_was_read_ahead_is_taken_and_not_read_again(index: Index, submitted: Submitted) -> None:
    tasks = list(eval_tasks(len(index), 8))
    expected = images_of(Loader(index, SPEC, workers=0), tasks)
    with Loader(index, SPEC, workers=2, prefetch=8) as loader:
        for _ in range(2):
            submitted.jobs = 0
            loader.read_ahead(iter(tasks))
            assert submitted.jobs == len(tasks), "there was room for all"
            got = [batch.images for batch in loader.batches(tasks)]
            assert submitted.jobs == len(tasks)
            assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_what_was_read_ahead_for_something_else_is_dropped(index: Index) -> None:
    tasks = list(eval_tasks(len(index), 8))
    other = [Task.of(0, np.array([3, 1])), *tasks[:1]]
    expected = images_of(Loader(index, SPEC, workers=0), other)
    with Loader(index, SPEC, workers=2, prefetch=2) as loader:
        for ahead in (tasks, [other[0], *tasks[1:]], other):
            loader.read_ahead(ahead)
            got = [batch.images for batch in loader.batches(other)]
            assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
        loader.read_ahead(tasks)
        loader.close()
        assert len(list(loader.batches(other))) == len(other)
    with Loader(index, SPEC, workers=0) as loader:
        loader.read_ahead(tasks)
        assert len(list(loader.batches(tasks))) == len(tasks)


def test_no_more_is_read_ahead_than_there_is_room_for(index: Index, submitted: Submitted) -> None:
    taken = 0

    def tasks() -> Iterator[Task]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield Task.of(0, np.arange(20))

    # 2 batches wait, and 2 workers with 2 portions of 16 images each fill 4 of 20
    with Loader(index, SPEC, workers=2, prefetch=2) as loader:
        batches = loader.batches(tasks())
        next(batches)
        assert taken == 1 + (2 + 4) + 1
        assert submitted.jobs == 2 * (taken - 1)
        batches.close()


# -- memory ----------------------------------------------------------------------------------------


def test_memory_of_batches_is_used_again_once_nobody_has_them(index: Index) -> None:
    tasks = train_tasks(index, 0, batch=4) * 10
    with Loader(index, SPEC, workers=1, prefetch=1) as loader:
        places = {batch.images.ctypes.data for batch in loader.batches(tasks)}
        assert len(places) < 10 < len(tasks)
        held = [(batch.images[1:], batch.images[1:].copy()) for batch in loader.batches(tasks)]
        assert len({images.ctypes.data for images, _ in held}) == len(tasks)
        list(loader.batches(tasks))
        assert all(np.array_equal(images, copy) for images, copy in held), "a view keeps the memory"
    assert all(np.array_equal(images, copy) for images, copy in held), "also when the loader is closed"


@pytest.fixture
def file() -> Iterator[int]:
    descriptor = os.memfd_create("slots") if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
def test_slots_grow_and_give_memory_back(file: int) -> None:
    slots = Slots(file, 4096)
    slots.spare = 2

    def allocated() -> int:
        return os.fstat(file).st_blocks * 512

    arrays = []
    for n in range(8):
        slot = slots.take(100_000)
        os.pwrite(file, bytes([n]) * slot.size, slot.offset)
        arrays.append(slots.array(slot, (10, 10_000)))
    assert allocated() >= 8 * 100_000
    assert [int(array[9, 9_999]) for array in arrays] == list(range(8)), "they do not overlap"
    arrays[0][:] = 99
    assert os.pread(file, 3, 4096) == b"ccc", "it is the same memory"
    del arrays[2:]
    small = slots.take(50)
    assert small.size >= 100_000, "a smaller batch takes one of the six that came back"
    assert allocated() < 5 * 102_400, "of which two were kept"
    slots.give_back(small)
    bigger = slots.take(200_000)
    assert allocated() < 2 * 102_400 + 210_000, "those that are too small now are not"
    assert [int(array[9, 9_999]) for array in arrays] == [99, 1]
    assert not np.shares_memory(slots.array(bigger, (200_000,)), arrays[1])


def test_slots_on_a_system_that_cannot_allocate_or_free_pages(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS: pages are written once, and stay."""
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.delattr(mmap, "MADV_REMOVE", raising=False)
    slots = Slots(file, 4096)
    first = slots.array(slots.take(5000), (5000,))
    second = slots.array(slots.take(5000), (5000,))
    first[:], second[:] = 1, 2
    assert os.fstat(file).st_blocks * 512 >= 2 * 5000
    del second
    assert slots.array(slots.take(9000), (9000,)).max() == 0
    assert first.min() == 1


def test_a_system_without_memory_is_said(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    says = r"no memory for another batch of 1 MiB: No space left on device; lower data.prefetch or the batch size"
    with pytest.raises(DataError, match=says):
        Slots(file, 4096).take(1 << 20)
