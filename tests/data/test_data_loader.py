"""The loader: the same batches for any number of workers, bad images, dead workers, nothing left behind."""

from __future__ import annotations

import dataclasses
import gc
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from images import bad_images, class_tree, endless_image, picture, pixels
from PIL import Image
from processes import alive, data_workers, eventually, holds

from resnext_core.config import AugmentConfig, Config, DataConfig
from resnext_core.data.batch_pool import LIMITS, most_batches
from resnext_core.data.decode import BadImage
from resnext_core.data.depth import DARK_16_BITS
from resnext_core.data.index import Index, image_folder, open_index
from resnext_core.data.loader import Loader, default_workers
from resnext_core.data.opening import eval_loader
from resnext_core.data.pillow import PILLOW
from resnext_core.data.pool import Limits
from resnext_core.data.quarantine import Quarantine, read_list, write_list
from resnext_core.data.render import load_eval, load_train
from resnext_core.data.sampler import Task, epoch_permutation, eval_tasks, rank_slice, sample_rng
from resnext_core.data.worker import HEADER
from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import Batch
from resnext_core.model.preprocess import PreprocessSpec

SPEC = PreprocessSpec(size=24, resize=28)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return open_index(class_tree(tmp_path_factory.mktemp("data") / "train", per_class=9))


@pytest.fixture
def with_bad(tmp_path: Path) -> Index:
    """Three good images in a folder with bad ones, of every kind that is a file."""
    root = tmp_path / "mixed"
    class_tree(root, per_class=1)
    bad_images(root / "ant" / "more")
    return open_index(root)


def train_tasks(index: Index, epoch: int, batch: int = 8) -> list[Task]:
    order = epoch_permutation(len(index), 5, epoch)
    return [Task.of(epoch, rank_slice(order, step, batch, 0, 1)) for step in range(len(index) // batch)]


def collect(batches: Iterator[Batch]) -> list[np.ndarray]:
    """Each batch as one array, all its fields side by side."""
    return [np.concatenate([_flat(getattr(b, f)) for f in FIELDS], axis=1) for b in batches]


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), int(np.prod(values.shape[1:])))


FIELDS = ("images", "labels", "index", "valid")


def test_batches_do_not_depend_on_workers(index: Index) -> None:
    tasks = train_tasks(index, 0) + train_tasks(index, 1) + list(eval_tasks(len(index), 5))
    results = []
    for workers, prefetch in [(0, 4), (1, 1), (2, 4), (3, 2)]:
        with Loader(index, SPEC, AugmentConfig(), seed=3, workers=workers, prefetch=prefetch) as loader:
            results.append(collect(loader.batches(tasks)))
            assert len(data_workers()) == workers
    assert len(results[0]) == len(tasks)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert np.array_equal(a, b)


def test_what_a_batch_holds(index: Index) -> None:
    with Loader(index, SPEC, workers=1) as loader:
        batches = list(loader.batches(eval_tasks(len(index), 8)))
    assert [len(b) for b in batches] == [8, 8, 8, 8]
    for batch in batches:
        assert batch.images.shape == (8, 24, 24, 3)
        kinds = (batch.images.dtype, batch.labels.dtype, batch.index.dtype, batch.valid.dtype)
        assert kinds == (np.uint8, np.int32, np.int64, np.bool_)
        for row in np.flatnonzero(batch.valid):
            sample = batch.index[row]
            assert np.array_equal(batch.images[row], load_eval(index.path(sample), SPEC))
            assert batch.labels[row] == index.labels[sample]
    last = batches[-1]
    assert last.valid.tolist() == [True] * 3 + [False] * 5
    assert (last.index[3:] == -1).all()
    assert not last.images[3:].any()


def test_augmentation_depends_on_seed_epoch_and_sample_only(index: Index) -> None:
    def images(seed: int, epoch: int, order: list[int]) -> np.ndarray:
        task = Task.of(epoch, np.array(order))
        with Loader(index, SPEC, AugmentConfig(), seed=seed, workers=0) as loader:
            return next(loader.batches([task])).images

    first = images(1, 0, [0, 1, 2, 0])
    assert np.array_equal(first[0], first[3])
    assert np.array_equal(first[:3], images(1, 0, [2, 1, 0])[::-1])
    for other in (images(1, 1, [0, 1, 2]), images(2, 0, [0, 1, 2])):
        assert not any(np.array_equal(a, b) for a, b in zip(first[:3], other, strict=True))


def test_batches_are_the_callers_to_keep(index: Index) -> None:
    tasks = train_tasks(index, 0, batch=3) * 3
    with Loader(index, SPEC, workers=2, prefetch=1) as loader:
        held = list(loader.batches(tasks))
        copies = [b.images.copy() for b in held]
        list(loader.batches(tasks))
        assert all(np.array_equal(b.images, c) for b, c in zip(held, copies, strict=True))
        assert all(b.images.flags.writeable for b in held)


def test_batches_may_change_in_size(index: Index) -> None:
    order = np.arange(len(index))
    tasks = [Task.of(0, order[:n]) for n in (2, 9, 1, 27, 27, 3, 0, 5)]
    with Loader(index, SPEC, workers=2) as loader:
        got = collect(loader.batches(tasks))
    with Loader(index, SPEC, workers=0) as loader:
        expected = collect(loader.batches(tasks))
    assert [len(g) for g in got] == [2, 9, 1, 27, 27, 3, 0, 5]
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def growing_tasks(index: Index) -> list[Task]:
    """Three epochs of images that grow from 8 to 40 pixels, with an evaluation between."""
    sizes = (8, 24, None, 40)
    return [
        *(
            dataclasses.replace(t, size=size)
            for epoch, size in enumerate(sizes)
            for t in train_tasks(index, epoch)
        ),
        *train_tasks(index, 9),
    ]


@pytest.mark.parametrize("auto", ["none", "rand-m7-mstd0.5-inc1"])
def test_images_of_any_size_do_not_depend_on_workers(index: Index, auto: str) -> None:
    """What is read ahead over the border between two sizes, too; and each is what a loader of that size makes."""
    augment = AugmentConfig(auto=auto, erasing=0.5)
    tasks = growing_tasks(index)
    results: list[list[np.ndarray]] = []
    for workers, prefetch in [(0, 4), (1, 1), (2, 5), (3, 2)]:
        with Loader(index, SPEC, augment, seed=3, workers=workers, prefetch=prefetch) as loader:
            loader.read_ahead(tasks)
            results.append([batch.images for batch in loader.batches(tasks)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert np.array_equal(a, b)
    for task, images in zip(tasks, results[0], strict=True):
        side = 24 if task.size is None else task.size
        assert images.shape == (8, side, side, 3)
        spec = dataclasses.replace(SPEC, size=side, resize=side + 4)
        with Loader(index, spec, augment, seed=3, workers=0) as loader:
            (alone,) = loader.batches([dataclasses.replace(task, size=None)])
        assert np.array_equal(images, alone.images)


def test_memory_is_that_of_the_largest_images(index: Index) -> None:
    """Slots that are too small for larger images are given back to the system, not kept beside them."""
    tasks = [
        dataclasses.replace(task, size=size) for size in range(32, 256, 8) for task in train_tasks(index, 0)
    ]
    with Loader(index, SPEC, AugmentConfig(), workers=1, prefetch=2) as loader:
        for task, batch in zip(tasks, loader.batches(tasks), strict=True):
            assert batch.images.shape[1] == task.size
        pool = loader._pool
        assert pool is not None
        del batch
        used = os.fstat(pool._pool.memory).st_blocks * 512
    most = most_batches(8, 1, 2) + 2  # under way, the one in use, and the one before it
    assert used <= most * (8 * 248 * 248 * 3 + mmap.PAGESIZE) + HEADER


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_counted_and_never_replaced(with_bad: Index, workers: int) -> None:
    tasks = list(eval_tasks(len(with_bad), 4))
    with Loader(with_bad, SPEC, workers=workers) as loader:
        # a full round first: rows of reused memory must not show an older image
        list(loader.batches([Task.of(0, np.zeros(4, np.int64))] * 8))
        batches = list(loader.batches(tasks))
    good = [i for i in range(len(with_bad)) if "more" not in with_bad.paths[i]]
    assert len(good) == 3
    assert sorted(loader.failures) == sorted(set(range(len(with_bad))) - set(good))
    assert len(loader.failures) >= 8
    assert all(reason and "\n" not in reason for reason in loader.failures.values())
    for batch, task in zip(batches, tasks, strict=True):
        failed = task.valid & ~batch.valid
        assert [int(i) in loader.failures for i in batch.index[failed]] == [True] * failed.sum()
        assert not batch.images[~batch.valid].any()
        assert np.array_equal(batch.labels[failed], with_bad.labels[batch.index[failed]])
    assert sum(int(b.valid.sum()) for b in batches) == 3


def test_evaluation_is_never_augmented(index: Index) -> None:
    """Whatever the configuration says of training."""
    strong = AugmentConfig(
        auto="trivialaugment-wide",
        erasing=1.0,
        erasing_mode="pixel",
        flip=1.0,
        color_jitter=(1, 1, 1),
        repeats=4,
    )
    config = dataclasses.replace(Config(), augment=strong, data=DataConfig(workers=0))
    tasks = list(eval_tasks(len(index), 8))
    with Loader(index, SPEC, workers=0) as plain, eval_loader(index, SPEC, config, decoder=PILLOW) as loader:
        expected, found = collect(plain.batches(tasks)), collect(loader.batches(tasks))
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_views_of_one_image_in_a_batch(with_bad: Index, workers: int) -> None:
    """Each with its own draws; of an image that cannot be read, no view is valid, and it is one failure."""
    good = next(i for i in range(len(with_bad)) if "more" not in with_bad.paths[i])
    bad = next(i for i in range(len(with_bad)) if with_bad.paths[i].endswith("text.jpg"))
    indices, views = np.array([good, bad, good, bad, good, good]), np.array([0, 0, 1, 1, 2, 1])
    with Loader(with_bad, SPEC, AugmentConfig(), seed=3, workers=workers) as loader:
        [batch] = loader.batches([dataclasses.replace(Task.of(4, indices), views=views)])
        [plain] = loader.batches([Task.of(4, indices)])
    assert batch.valid.tolist() == [True, False, True, False, True, True]
    assert list(loader.failures) == [bad]
    assert not batch.images[1::2][:2].any()
    assert np.array_equal(batch.images[2], batch.images[5])
    assert len({picture.tobytes() for picture in batch.images[[0, 2, 4]]}) == 3
    assert np.array_equal(batch.images[0], plain.images[0])
    assert np.array_equal(plain.images[0], plain.images[4])
    augment = AugmentConfig()
    for row in (0, 2, 4):
        expected = load_train(with_bad.path(good), SPEC, augment, sample_rng(3, 4, good, int(views[row])))  # type: ignore[arg-type]
        assert np.array_equal(batch.images[row], expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_policy_fail_names_the_image(with_bad: Index, workers: int) -> None:
    good = next(i for i in range(len(with_bad)) if "more" not in with_bad.paths[i])
    bad = next(i for i in range(len(with_bad)) if with_bad.paths[i].endswith("text.jpg"))
    tasks = [
        Task.of(0, np.array([good, good])),
        Task.of(0, np.array([good, bad])),
        Task.of(0, np.array([good])),
    ]
    with Loader(with_bad, SPEC, workers=workers, bad_images="fail") as loader:
        batches = loader.batches(tasks)
        next(batches)  # the bad one is due in the second batch, not before
        with pytest.raises(BadImage, match=r"text\.jpg: not an image .*data\.bad_images=count"):
            next(batches)
        assert next(loader.batches(tasks)).valid.all()  # and the loader goes on


def test_iterator_left_early_and_two_at_once(index: Index) -> None:
    with Loader(index, SPEC, workers=2) as loader:
        batches = loader.batches(train_tasks(index, 0, batch=4))
        first = next(batches)
        with pytest.raises(RuntimeError, match="already"):
            next(loader.batches(train_tasks(index, 0)))
        batches.close()
        again = next(loader.batches(train_tasks(index, 0, batch=4)))
        assert np.array_equal(first.images, again.images)


def test_close_leaves_nothing(index: Index) -> None:
    gc.collect()  # what earlier tests left open is closed now, and not in between
    descriptors = psutil.Process().num_fds()
    loader = Loader(index, SPEC, workers=2)
    batches = loader.batches(train_tasks(index, 0, batch=2))
    next(batches)
    pids = data_workers()
    assert all(alive(pid) for pid in pids)
    batches.close()
    loader.close()
    assert not any(alive(pid) for pid in pids)
    assert psutil.Process().num_fds() <= descriptors
    assert len(collect(loader.batches(train_tasks(index, 0)))) == 3  # usable again
    loader.close()


@pytest.fixture
def slow(index: Index) -> Iterator[Index]:
    """`index` and a file without an end: who reads it does nothing else, so that which file it reads is certain."""
    endless = endless_image(index.root / "slow.jpg")
    yield Index(
        root=index.root, paths=(*index.paths, "slow.jpg"), labels=np.append(index.labels, 0).astype(np.int32),
        classes=index.classes,
    )  # fmt: skip
    endless.unlink()


def killing_twice(path: Path, number: signal.Signals) -> threading.Thread:
    """Start a thread that kills the reader of `path`, and the one that takes its place."""

    def reader() -> int | None:
        return next((pid for pid in data_workers() if holds(pid, path)), None)

    def kill() -> None:
        killed: set[int | None] = {None}
        for _ in range(2):
            assert eventually(lambda: reader() not in killed)
            pid = reader()
            assert pid is not None
            killed.add(pid)
            os.kill(pid, number)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_file_that_kills_its_reader_twice_is_left_out_and_named(
    slow: Index, number: signal.Signals
) -> None:
    last = len(slow) - 1
    with Loader(slow, SPEC, workers=2) as loader:
        batches = loader.batches([Task.of(0, np.array([0, 1])), Task.of(0, np.array([2, last]))])
        first = next(batches)
        killing = killing_twice(slow.path(last), number)
        second = next(batches)
        killing.join()
        assert (first.valid.tolist(), second.valid.tolist()) == ([True, True], [True, False])
        assert second.index.tolist() == [2, last]
        assert not second.images[1].any()
        assert loader.failures == {last: "reading it ended two decoding processes"}
        notes = loader.take_notes()
        assert len(notes) == 2
        assert all(f"killed by {number.name}); it was started again" in note for note in notes)
        assert "slow.jpg" in notes[-1]
        assert loader.take_notes() == []


def test_such_a_file_ends_a_run_that_wants_no_bad_images(slow: Index) -> None:
    last = len(slow) - 1
    with Loader(slow, SPEC, workers=1, bad_images="fail") as loader:
        batches = loader.batches([Task.of(0, np.array([0, last]))])
        killing = killing_twice(slow.path(last), signal.SIGKILL)
        with pytest.raises(BadImage, match=r"slow\.jpg: reading it ended two decoding processes"):
            next(batches)
        killing.join()


def test_workers_that_die_change_no_bit(index: Index) -> None:
    tasks = train_tasks(index, 0, batch=2) * 20
    with Loader(index, SPEC, AugmentConfig(), workers=0) as loader:
        expected = [batch.images for batch in loader.batches(tasks)]
    rng = np.random.default_rng(0)
    with Loader(index, SPEC, AugmentConfig(), workers=2) as loader:
        kills = 0
        for number, batch in enumerate(loader.batches(tasks)):
            assert np.array_equal(batch.images, expected[number]), number
            assert batch.valid.all()
            if number % 25 == 0:
                os.kill(int(rng.choice(data_workers())), signal.SIGKILL)
                kills += 1
        assert LIMITS.deaths is not None
        assert 5 <= kills < LIMITS.deaths
        assert len(loader.take_notes()) >= kills - 1  # of the last one it may not have heard


def test_a_machine_that_kills_every_worker_is_said(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resnext_core.data.batch_pool.LIMITS", Limits(tries=2, deaths=3, idle=20))
    monkeypatch.setattr("resnext_core.data.pool._START", "import sys; sys.exit(9)")
    with Loader(index, SPEC, workers=2) as loader:
        with pytest.raises(
            DataError, match=r"died \(exit code 9\); check .* free memory, or set data.workers=0"
        ):
            next(loader.batches(train_tasks(index, 0)))
        assert data_workers() == []


# -- the quarantine list ---------------------------------------------------------------------------


def test_a_bad_image_is_listed_once_and_not_tried_again(tmp_path: Path) -> None:
    index = open_index(class_tree(tmp_path / "data" / "train", per_class=2))
    bad = index.root / index.paths[1]
    bad.write_bytes(b"junk")
    own = tmp_path / "quarantine.txt"
    tasks = [Task.of(e, np.arange(len(index))) for e in range(2)]

    def load(workers: int) -> Loader:
        loader = Loader(
            index,
            SPEC,
            workers=workers,
            bad_images="quarantine",
            quarantine=Quarantine(index.root.parent, own=own),
        )
        with loader:
            for batch in loader.batches(tasks):
                assert batch.valid.tolist() == [i != 1 for i in range(len(index))]
                assert len(batch) == len(index), "the denominator stays"
        return loader

    for workers in (0, 1):
        own.unlink(missing_ok=True)
        assert "not an image" in load(workers).failures[1]
        assert own.read_text() == f"{index.root.name}/{index.paths[1]}\n"
    bad.unlink()
    os.mkfifo(bad)  # who tried to read it would call it a pipe
    assert load(1).failures == {1: "it is on the quarantine list"}
    assert own.read_text().count("\n") == 1


def test_a_list_is_obeyed_under_every_policy(index: Index, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    write_list(listed, [f"{index.root.name}/{index.paths[2]}", "elsewhere/x.jpg"], header="made by\na test")
    assert read_list(listed) == ("elsewhere/x.jpg", f"{index.root.name}/{index.paths[2]}")
    for policy in ("fail", "count", "quarantine"):
        quarantine = Quarantine(index.root.parent, known=listed)
        with Loader(index, SPEC, workers=0, bad_images=policy, quarantine=quarantine) as loader:  # type: ignore[arg-type]
            (batch,) = loader.batches([Task.of(0, np.arange(len(index)))])
        assert np.flatnonzero(~batch.valid).tolist() == [2]
        assert loader.failures == {2: "it is on the quarantine list"}
    with pytest.raises(UsageError, match="cannot read the quarantine list"):
        Quarantine(index.root, known=tmp_path / "gone.txt")


def test_an_interrupt_is_the_parents_to_handle(index: Index) -> None:
    with Loader(index, SPEC, workers=2) as loader:
        batches = loader.batches(train_tasks(index, 0, batch=1))
        next(batches)
        for pid in data_workers():
            os.kill(pid, signal.SIGINT)
            assert os.getsid(pid) != os.getsid(0)  # Ctrl-C of the terminal does not reach it
        assert len(list(batches)) == len(index) - 1


PARENT = """
import os, signal, sys, time
import psutil
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
import numpy as np
from resnext_core.data.index import open_index
from resnext_core.data.loader import Loader, Task
from resnext_core.model.preprocess import PreprocessSpec
print("main module runs once", flush=True)  # no guard: a worker must not import this module
index = open_index(sys.argv[1])
loader = Loader(index, PreprocessSpec(size=8, resize=8), workers=2, prefetch=1)
batches = loader.batches(Task.of(0, np.arange(4)) for _ in range(1000))
next(batches)
print(*(child.pid for child in psutil.Process().children()), flush=True)
{then}
"""


@pytest.mark.parametrize("start", ["file", "stdin", "-c"])
def test_any_main_module_will_do(index: Index, tmp_path: Path, start: str) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('a file of the working folder was imported')")
    code = PARENT.format(then="")
    script = tmp_path / "deep" / "script.py"
    script.parent.mkdir()
    script.write_text(code)
    flags = {
        "file": [str(script)],
        "stdin": ["-P" if sys.version_info >= (3, 11) else "-", "-"],
        "-c": ["-c", code],
    }
    if start != "file" and sys.version_info < (3, 11):
        pytest.skip("without -P Python itself imports from the working folder")
    if start == "-c":
        flags["-c"].insert(0, "-P")
    done = subprocess.run(
        [sys.executable, *flags[start], str(index.root)],
        input=code, capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("runs once") == 1
    pids = [int(p) for p in done.stdout.splitlines()[-1].split()]
    assert len(pids) == 2
    assert eventually(lambda: not any(alive(p) for p in pids))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(index: Index, number: signal.Signals) -> None:
    then = "time.sleep(600)"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(then=then), str(index.root)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    parent.stdout.readline()
    pids = [int(p) for p in parent.stdout.readline().split()]
    parent.send_signal(number)
    assert parent.wait(timeout=300) != 0
    assert len(pids) == 2
    assert eventually(lambda: not any(alive(p) for p in pids))
    parent.communicate()


def test_workers_end_though_a_fork_holds_their_link(index: Index) -> None:
    then = "child = os.fork()\ntime.sleep(600 if child == 0 else print(child, flush=True) or 600)"
    parent = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PARENT.format(then=then), str(index.root)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    parent.stdout.readline()
    pids = [int(p) for p in parent.stdout.readline().split()]
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait(timeout=300)
    try:
        assert alive(child)
        assert eventually(lambda: not any(alive(p) for p in pids))
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


def test_a_bug_in_a_worker_is_not_a_bad_image(index: Index) -> None:
    task = Task.of(0, np.array([0]))
    broken = AugmentConfig(scale=(None, None))  # type: ignore[arg-type]
    for workers, error in [(0, TypeError), (1, RuntimeError)]:
        loader = Loader(index, SPEC, broken, workers=workers)
        with loader, pytest.raises(error, match=r"NoneType"):
            next(loader.batches([task]))
        assert loader.failures == {}


def test_workers_import_no_more_than_they_need() -> None:
    code = (
        "import sys; import resnext_core.data.batch_worker, resnext_core.data.worker; "
        "print(sorted(m for m in sys.modules if m.startswith('resnext_core')))"
        "; print(sorted({'torch', 'mindspore', 'scipy', 'rich', 'pluggy', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    modules = done.stdout.splitlines()[0]
    assert "cli" not in modules
    assert "interfaces" not in modules
    assert done.stdout.splitlines()[1] == "[]"


def test_unlabelled_images(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels(30, 40)).save(tmp_path / "x.png")
    with Loader(image_folder(tmp_path), SPEC, workers=0) as loader:
        assert next(loader.batches([Task.of(0, np.array([0]))])).labels.tolist() == [-1]


def test_limits(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= default_workers() <= 32
    assert Loader(index, SPEC).workers == default_workers()
    loader = Loader(index, SPEC, workers=10_000)
    with loader, pytest.raises(UsageError, match=r"data\.workers must be at most"):
        next(loader.batches(train_tasks(index, 0)))
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    descriptors = psutil.Process().num_fds()
    loader = Loader(index, SPEC, workers=2)
    with loader, pytest.raises(DataError, match="cannot start a data worker"):
        next(loader.batches(train_tasks(index, 0)))
    assert psutil.Process().num_fds() == descriptors


def test_readers_of_a_rank_whose_cores_were_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Binding a rank to its share and dividing that by the ranks again would leave it a reader or none."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.delenv("RESNEXT_CORES", raising=False)
    assert default_workers(4) == 4
    monkeypatch.setenv("RESNEXT_CORES", "6")
    assert default_workers(4) == 6
    monkeypatch.setenv("RESNEXT_CORES", "224")
    assert default_workers(8) == 32


# -- whose fault it is -----------------------------------------------------------------------------


def read_all(index: Index, workers: int, **options: Any) -> Loader:
    with Loader(index, SPEC, workers=workers, **options) as loader:
        for _ in loader.batches(eval_tasks(len(index), 5)):
            pass
    return loader


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanishes_is_a_bad_image(tmp_path: Path, workers: int) -> None:
    index = open_index(class_tree(tmp_path / "train", per_class=2))
    index.path(1).unlink()
    loader = read_all(index, workers)
    assert loader.failures == {1: "No such file or directory"}
    assert loader.take_failures() == [(1, "No such file or directory")]
    assert loader.take_failures() == []


def moved(root: Path) -> Path:
    root.rename(root.with_name("elsewhere"))
    return root


def unmounted(root: Path) -> Path:
    """The folder above stays, and is empty, as where a file system is no longer mounted."""
    above = root.parent
    root.rename(above.parent / "elsewhere")
    return root


def class_moved(root: Path) -> Path:
    (root / "bee").rename(root.parent / "bee")
    return root / "bee"


def emptied(root: Path) -> Path:
    for path in (root / "bee").iterdir():
        path.unlink()
    return root / "bee"


def a_file_now(root: Path) -> Path:
    class_moved(root)
    (root / "bee").write_text("no folder")
    return root / "bee"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("lose", [moved, unmounted, class_moved, emptied, a_file_now])
def test_a_folder_that_vanishes_is_no_bad_image(
    tmp_path: Path, lose: Callable[[Path], Path], workers: int
) -> None:
    """Under every policy, in training and evaluation; nothing is counted or listed as bad."""
    root = class_tree(tmp_path / "mounted" / "train", per_class=2)
    index, own = open_index(root), tmp_path / "quarantine.txt"
    lost = lose(root)
    for policy in ("count", "quarantine"):
        quarantine = Quarantine(tmp_path, own=own)
        with pytest.raises(DataError) as caught:
            read_all(index, workers, bad_images=policy, quarantine=quarantine)
        assert not isinstance(caught.value, BadImage)
        assert f"the data folder {lost} can no longer be read: " in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not own.exists()
    assert len(read_all(index, workers, watch_folders=False).failures) >= 2, (
        "files that nobody has seen before"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_any_more_is_named(tmp_path: Path) -> None:
    index = open_index(class_tree(tmp_path / "train", per_class=2))
    (tmp_path / "train" / "bee").chmod(0)
    try:
        with pytest.raises(
            DataError, match=r"the data folder .*bee can no longer be read: Permission denied"
        ):
            read_all(index, 0)
    finally:
        (tmp_path / "train" / "bee").chmod(0o755)


@pytest.mark.parametrize("workers", [0, 1])
def test_descriptors_that_run_out_are_no_bad_image(tmp_path: Path, workers: int) -> None:
    """The limit is met where files are opened, or where a worker is started."""
    index = open_index(class_tree(tmp_path / "train", per_class=2))
    code = (
        "import resource, sys\n"
        "from resnext_core.data.index import open_index\n"
        "from resnext_core.data.loader import Loader\n"
        "from resnext_core.data.sampler import Task\n"
        "from resnext_core.model.preprocess import PreprocessSpec\n"
        "import numpy as np\n"
        "index = open_index(sys.argv[1])\n"
        "loader = Loader(index, PreprocessSpec(size=24, resize=28), workers=int(sys.argv[2]))\n"
        "list(Loader(index, PreprocessSpec(size=24, resize=28), workers=0).batches([Task.of(0, np.arange(2))]))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "try:\n"
        "    list(loader.batches([Task.of(0, np.arange(2))]))\n"
        "except BaseException as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(index.root), str(workers)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("DataError cannot ")
    assert "Too many open files" in done.stdout


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_may_hold_12_bits_is_noted_once(tmp_path: Path, workers: int) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (30, 40)).astype(np.uint16)
    for name, image in {
        "a": picture(30, 40),
        "b": Image.fromarray(values),
        "c": Image.fromarray(values),
    }.items():
        image.save(tmp_path / f"{name}.png")
    index = Index(
        root=tmp_path, paths=("a.png", "b.png", "c.png"), labels=np.zeros(3, np.int32), classes=("x",)
    )
    with Loader(index, SPEC, workers=workers) as loader:
        for _ in range(2):
            list(loader.batches([Task.of(0, np.array([0, 1])), Task.of(0, np.array([2]))]))
        (note,) = loader.take_notes()
    assert note == f"{index.path(1)}: {DARK_16_BITS}; resnext-run data scan names all such files"
    assert loader.failures == {}
