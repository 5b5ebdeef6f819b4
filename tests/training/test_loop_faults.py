"""The training loop when something fails between two steps: they are saved, every rank ends, nothing is repeated."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_loop import Constant, Diverges, Recorder, configured, records

from resnext_core.data.index import Index, open_index
from resnext_core.data.loader import Loader
from resnext_core.data.sampler import epoch_permutation
from resnext_core.errors import BackendUnavailable, DataError, Interrupted
from resnext_core.interfaces import Predictor
from resnext_core.jobs.new_run import removed_if_refused
from resnext_core.model.weights import Weights
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.ranks.launch import free_port
from resnext_core.ranks.tcp import TcpCollectives
from resnext_core.runs.checkpoint import checkpoint_names, load_latest
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.records import Record
from resnext_core.runs.unreadable import allowed
from resnext_core.training.loop import fit
from resnext_core.training.training import Training

ALONE = RankInfo()


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> Path:
    """A copy of `photos` that a test may damage: 48 images for 6 steps of 8 an epoch, 23 to evaluate."""
    return Path(shutil.copytree(photos, tmp_path / "data"))


@pytest.fixture
def job(data: Path, tiny_weights: Weights, tmp_path: Path) -> Callable[..., Training]:
    """Make a job on `data`, of one rank or as one of several."""
    (tmp_path / "run").mkdir()

    def make(*sets: str, rank: RankInfo = ALONE, collectives: Any = None, val: bool = True) -> Training:
        config = configured(*sets)
        train = open_index(data / "train")
        index = open_index(data / "val", train.classes) if val else None
        run = RunFolder(tmp_path / "run")

        def loader(of: Index) -> Loader:
            return Loader(of, tiny_weights.preprocess, None, workers=0, bad_images=config.data.bad_images)

        def emit(record: Record) -> None:
            if record.stored and rank.is_main:
                run.append(record)

        return Training(
            config=config, weights=tiny_weights, train=train, train_loader=loader(train), val=index,
            val_loader=loader(index) if index else None, rank=rank, collectives=collectives or SingleProcess(),
            run=run, steps_per_call=1, listen=emit,
        )  # fmt: skip

    return make


def latest(job: Training) -> Any:
    return load_latest(job.run.checkpoints, pytest.fail)


def failing_at(job: Training, kind: str, nth: int, error: Exception) -> Training:
    """Return the job whose `nth` record of a kind cannot be written."""
    seen = 0

    def emit(record: Record) -> None:
        nonlocal seen
        seen += record.kind == kind
        if record.kind == kind and seen == nth:
            raise error
        job.listen(record)

    return dataclasses.replace(job, listen=emit)


class Broken(Loader):
    """Fails when the batch after `good` ones is due."""

    good, error = 8, Exception()

    def batches(self, tasks: Any) -> Any:
        for batch in super().batches(tasks):
            if self.good == 0:
                raise self.error
            self.good -= 1
            yield batch


def broken(loader: Loader, good: int, error: Exception, tiny_weights: Weights) -> Loader:
    made = Broken(loader.index, tiny_weights.preprocess, None, workers=0)
    made.good, made.error = good, error
    return made


ERRORS: dict[str, Callable[[], Exception]] = {
    "expected": lambda: DataError("a data worker died"),
    "system": lambda: OSError(5, "Input/output error"),
    "memory": lambda: MemoryError("no room"),
    "bug": lambda: RuntimeError("a bug"),
}


@pytest.mark.parametrize(
    ("where", "kind", "log_every"),
    [
        ("loader", "expected", 100),
        ("loader", "system", 1),
        ("loader", "memory", 100),
        ("tracker", "bug", 1),
        ("tracker", "expected", 100),
    ],
)
def test_an_error_between_two_steps_is_raised_after_saving(
    job: Callable[..., Training], tiny_weights: Weights, kind: str, log_every: int, where: str
) -> None:
    made, error = job(f"train.log_every={log_every}"), ERRORS[kind]()
    if where == "loader":
        failing = dataclasses.replace(made, train_loader=broken(made.train_loader, 8, error, tiny_weights))
    else:  # the bar, or who follows the run: after step 8 it has seen 6 steps, 5 batches of an evaluation, 2 steps
        failing = failing_at(made, "progress", 13, error)
    first = Recorder(tiny_weights)
    with pytest.raises(type(error)) as caught:
        fit(first, failing)
    assert caught.value is error
    checkpoint = latest(made)
    assert (first.step, checkpoint.progress.step, checkpoint.progress.epoch_closed) == (8, 8, False)
    assert records(made, "train", "step")[-1] == (8,), "the record of the last steps is written"
    told = [str(error), *(t for (t,) in records(made, "note", "text"))]
    assert sum(f"saved after step 8, continue with --resume {made.run.path}" in text for text in told) == 1
    assert all("\n" not in text for text in told)

    second = Recorder(tiny_weights)
    made.run.rewind(checkpoint.saving.records)
    fit(second, job(f"train.log_every={log_every}"), checkpoint)
    assert sum(images for (images,) in records(made, "train", "images")) == 18 * 8
    for epoch in range(3):
        seen = np.concatenate((first.seen + second.seen)[6 * epoch : 6 * epoch + 6])
        assert np.array_equal(seen, epoch_permutation(48, 1, epoch))


@pytest.mark.parametrize("kind", ["eval", "checkpoint", "train"])
def test_a_record_that_cannot_be_written_loses_no_step(
    job: Callable[..., Training], tiny_weights: Weights, kind: str
) -> None:
    made = job("train.log_every=1")
    error = DataError("cannot write records.jsonl: No space left on device")
    trainer = Recorder(tiny_weights)
    with pytest.raises(DataError, match=r"No space left on device; saved after step \d+, continue with"):
        fit(trainer, failing_at(made, kind, 1, error))
    assert latest(made).progress.step == trainer.step


def test_an_error_before_the_first_step_saves_nothing(
    job: Callable[..., Training], tiny_weights: Weights
) -> None:
    made = job()
    loader = broken(made.train_loader, 0, DataError("a data worker died"), tiny_weights)
    with pytest.raises(DataError, match=r"^a data worker died$"):
        fit(Recorder(tiny_weights), dataclasses.replace(made, train_loader=loader))
    assert checkpoint_names(made.run.checkpoints) == []


def test_a_stop_before_the_first_step_leaves_a_run_that_can_be_resumed(
    job: Callable[..., Training], tiny_weights: Weights
) -> None:
    made = job()

    class Stops(Broken):
        def batches(self, tasks: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            yield from super().batches(tasks)

    loader = Stops(made.train, tiny_weights.preprocess, None, workers=0)
    loader.good = 99
    trainer = Recorder(tiny_weights)
    with pytest.raises(Interrupted, match=r"continue with --resume"), removed_if_refused(made.run):
        fit(trainer, dataclasses.replace(made, train_loader=loader))
    assert trainer.step == 0
    assert checkpoint_names(made.run.checkpoints) == []
    assert made.run.path.is_dir()


def test_a_step_that_failed_half_way_is_not_saved(
    job: Callable[..., Training], tiny_weights: Weights
) -> None:
    made = job()

    def fails(step: int) -> None:
        if step == 9:
            raise MemoryError

    with pytest.raises(MemoryError):
        fit(Recorder(tiny_weights, fails), made)
    assert latest(made).progress.step == 6


def test_a_diverged_state_is_not_saved_though_its_samples_cannot_be_written(
    job: Callable[..., Training], tiny_weights: Weights
) -> None:
    made = job()
    (made.run.path / "nonfinite").write_text("in the way")
    with pytest.raises(
        DataError, match=r"loss is not a number at step 9, .*cannot write .*lower optimizer.lr"
    ):
        fit(Diverges(tiny_weights), made)
    assert latest(made).progress.step == 6


def test_a_diverged_state_is_not_saved_though_something_else_failed_before(
    job: Callable[..., Training], tiny_weights: Weights
) -> None:
    """The record of a bad image cannot be written, and the step that it is in diverges."""
    made = job("train.batch_size=48")
    spoil(made, 1)
    trainer = Diverges(tiny_weights)
    trainer.at = range(1, 2)
    with pytest.raises(DataError, match="loss is not a number at step 1"):
        fit(trainer, failing_at(made, "bad_image", 1, DataError("cannot write records.jsonl")))
    assert checkpoint_names(made.run.checkpoints) == []


# -- evaluation ----------------------------------------------------------------------------------


class EvaluationFails(Recorder):
    """Its predictor gives up at the second batch of an evaluation, as often as `times` says; golden images are 2."""

    times = 1

    def predictor(self, *, ema: bool = False) -> Predictor:
        trainer, predictor = self, Constant(6, self.step)
        calls = 0

        class Fails(Constant):
            def __init__(self) -> None:
                pass

            def logits(self, images: NDArray[Any]) -> NDArray[Any]:
                nonlocal calls
                calls += len(images) != 2
                if calls == 2 and trainer.times:
                    trainer.times -= 1
                    raise OSError(24, "Too many open files")
                return predictor.logits(images)

        return Fails()


def test_what_was_trained_is_saved_before_an_evaluation_that_fails(
    job: Callable[..., Training], tiny_weights: Weights, data: Path, tmp_path: Path
) -> None:
    """However often it is resumed: nothing is trained again, and once the fault is mended all is as without it."""
    made = job("train.log_every=1")
    with pytest.raises(OSError, match="Too many open files"):
        fit(EvaluationFails(tiny_weights), made)
    for _ in range(2):
        checkpoint = latest(made)
        assert (checkpoint.progress.step, checkpoint.progress.epoch_closed) == (6, False)
        assert checkpoint_names(made.run.checkpoints) == ["step-00000006"]
        made.run.rewind(checkpoint.saving.records)
        again = EvaluationFails(tiny_weights)
        with pytest.raises(OSError, match="Too many open files"):
            fit(again, made, checkpoint)
        assert again.seen == [], "it trained again"
    made.run.rewind(checkpoint.saving.records)
    fit(Recorder(tiny_weights), made, latest(made))
    ours, progress = latest(made), latest(made).progress
    stories = [records(made, kind, *keys) for kind, keys in KEYS.items()]
    shutil.rmtree(made.run.path)
    made.run.path.mkdir()
    fit(Recorder(tiny_weights), made)
    assert progress == latest(made).progress
    assert ours.weights.manifest() == latest(made).weights.manifest()
    assert stories == [records(made, kind, *keys) for kind, keys in KEYS.items()]


KEYS = {
    "train": ("step", "loss", "images"),
    "eval": ("step", "top1", "best"),
    "checkpoint": ("step", "path", "bytes"),
}


def test_a_bad_file_of_the_evaluation_is_named_once(
    job: Callable[..., Training], tiny_weights: Weights, data: Path
) -> None:
    made = job()
    assert made.val is not None
    made.val.path(20).write_bytes(b"junk")
    fit(Recorder(tiny_weights), made)
    assert records(made, "bad_image", "split", "index", "path", "step", "count") == [
        ("val", 20, str(made.val.path(20)), 6, 1)
    ]
    assert [failed for (failed,) in records(made, "eval", "failed")] == [1, 1, 1]
    assert "1 of 23 val images could not be read" in records(made, "note", "text")[-1][0]


# -- images that cannot be read --------------------------------------------------------------------


def test_how_many_may_be_bad() -> None:
    by_default = {1: 1, 16: 1, 48: 4, 99: 9, 100: 10, 1000: 10, 1001: 10, 5000: 50, 1_281_167: 12811}
    assert {n: allowed(n, None) for n in by_default} == by_default
    assert [allowed(1000, share) for share in (0.0, 0.001, 0.05, 1.0)] == [0, 1, 50, 1000]
    assert allowed(100, 0.29) == 29, "0.29 * 100 is 28.999999999999996"


def spoil(job: Training, count: int) -> list[str]:
    paths = [job.train.path(i) for i in range(0, 2 * count, 2)]
    for path in paths:
        path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{0:064d}\nsize 9\n")
    return [str(path) for path in paths]


def test_bad_images_are_said_once_with_path_and_reason(
    job: Callable[..., Training], tiny_weights: Weights
) -> None:
    made = job()
    paths = spoil(made, 4)
    fit(Recorder(tiny_weights), made)
    found = records(made, "bad_image", "path", "reason", "count", "split", "step")
    assert sorted(path for path, *_ in found) == sorted(paths), "each once in three epochs"
    assert [row[1:4] for row in found] == [
        ("a Git LFS pointer, not an image; run git lfs pull", n, "train") for n in (1, 2, 3, 4)
    ]
    assert all(step < 6 for *_, step in found), "in the first epoch"
    (note,) = (text for (text,) in records(made, "note", "text") if "could not" in text)
    assert note.startswith("4 of 48 training images could not be read: ")
    assert note.count("a Git LFS pointer") == 3
    assert note.endswith("; and 1 more")


@pytest.mark.parametrize("policy", ["count", "quarantine"])
def test_too_many_bad_images_stop_after_saving(
    job: Callable[..., Training], tiny_weights: Weights, policy: str
) -> None:
    made = job(f"data.bad_images={policy}")
    paths = spoil(made, 5)
    trainer = Recorder(tiny_weights)
    with pytest.raises(DataError) as caught:
        fit(trainer, made)
    text = str(caught.value)
    for word in (
        "of 48 training images",
        "Git LFS pointer",
        "data.max_bad allows 4",
        "resnext-run data scan",
    ):
        assert word in text
    assert sum(path in text for path in paths) == 3
    assert "\n" not in text
    assert trainer.step < 6, "in the first epoch"
    if trainer.step:
        assert latest(made).progress.step == trainer.step
        assert "continue with --resume" in text
    assert len(records(made, "bad_image", "path")) == 5
    fit(Recorder(tiny_weights), job(f"data.bad_images={policy}", "data.max_bad=0.2"))  # as the message says


def test_a_resumed_run_knows_the_bad_images_before_it(
    job: Callable[..., Training], tiny_weights: Weights
) -> None:
    """Those are not said again, and count; what is only in the records that were cut off is found anew."""
    made = job("train.epochs=1")
    spoil(made, 4)
    fit(Recorder(tiny_weights), made)
    checkpoint = latest(made)
    made.run.rewind(checkpoint.saving.records)
    fit(Recorder(tiny_weights), job("train.epochs=2"), checkpoint)
    assert len(records(made, "bad_image", "path")) == 4
    checkpoint = latest(made)
    size = made.train.path(1).stat().st_size
    made.train.path(1).write_bytes(bytes(size))  # of the size it had: the data is known by names and sizes
    made.run.rewind(checkpoint.saving.records)
    with pytest.raises(DataError, match=r"5 of 48 training images could not be read.*saved after step"):
        fit(Recorder(tiny_weights), job("train.epochs=3"), checkpoint)


# -- several ranks ---------------------------------------------------------------------------------


class Counted(TcpCollectives):
    sums = 0

    def all_reduce_sum(self, values: NDArray[Any]) -> NDArray[Any]:
        self.sums += 1
        return super().all_reduce_sum(values)


def on_two(
    job: Callable[..., Training],
    weights: Weights,
    *sets: str,
    change: Callable[[Training], Training] = lambda j: j,
    trainer: Callable[[int], Recorder] | None = None,
    val: bool = True,
) -> list[tuple[Any, Recorder, int]]:
    """Fit on two ranks in two threads; return outcome or error, trainer and number of sums of each."""
    port, results = free_port(), [None, None]

    def work(number: int) -> None:
        rank = RankInfo(rank=number, world=2)
        with_ranks = Counted(rank, "127.0.0.1", port)
        trained = Recorder(weights) if trainer is None else trainer(number)
        try:
            outcome: Any = fit(trained, change(job(*sets, rank=rank, collectives=with_ranks, val=val)))
        except Exception as error:
            outcome = error
        finally:
            with_ranks.close()
        results[number] = (outcome, trained, with_ranks.sums)  # type: ignore[call-overload]

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive(), "a rank hangs"
    return results  # type: ignore[return-value]


def test_ranks_exchange_once_a_chunk(job: Callable[..., Training], tiny_weights: Weights) -> None:
    for _, trainer, sums in on_two(job, tiny_weights, val=False):
        assert trainer.step == 18
        assert sums == 18 + 3, "a chunk, and the end of an epoch"


@pytest.mark.parametrize("faulty", [0, 1])
@pytest.mark.parametrize("kind", ["expected", "memory"])
def test_a_rank_whose_loader_fails_stops_all_and_the_steps_are_saved(
    job: Callable[..., Training], tiny_weights: Weights, faulty: int, kind: str
) -> None:
    error = ERRORS[kind]()
    before = str(error)

    def change(made: Training) -> Training:
        if made.rank.rank != faulty:
            return made
        return dataclasses.replace(made, train_loader=broken(made.train_loader, 8, error, tiny_weights))

    results = on_two(job, tiny_weights, change=change)
    assert [trainer.step for _, trainer, _ in results] == [8, 8], "nobody took the step that one could not"
    assert results[faulty][0] is error
    other = results[1 - faulty][0]
    assert isinstance(other, Interrupted)
    assert f"rank {faulty} failed: " in str(other)
    assert before in str(other)
    assert "saved after step 8" in str(other)
    assert latest(job()).progress.step == 8


@pytest.mark.parametrize("faulty", [0, 1])
def test_a_rank_that_fails_in_an_evaluation_stops_all(
    job: Callable[..., Training], tiny_weights: Weights, faulty: int
) -> None:
    results = on_two(
        job, tiny_weights, trainer=lambda n: (EvaluationFails if n == faulty else Recorder)(tiny_weights)
    )
    assert [trainer.step for _, trainer, _ in results] == [6, 6]
    assert isinstance(results[faulty][0], OSError)
    assert isinstance(results[1 - faulty][0], Interrupted)
    assert "Too many open files" in str(results[1 - faulty][0])
    checkpoint = latest(job())
    assert (checkpoint.progress.step, checkpoint.progress.epoch_closed) == (6, False)


def test_a_rank_that_is_lost_between_steps_costs_no_step(
    job: Callable[..., Training], tiny_weights: Weights
) -> None:
    """As after `kill -9`: its connection ends while the other one waits for it."""

    def change(made: Training) -> Training:
        if made.rank.is_main:
            return made

        class Gone(Broken):
            def batches(self, tasks: Any) -> Any:
                for n, batch in enumerate(super().batches(tasks)):
                    if n == 4:
                        made.collectives._socket.close()  # type: ignore[attr-defined]
                    yield batch

        loader = Gone(made.train, tiny_weights.preprocess, None, workers=0)
        loader.good = 99
        return dataclasses.replace(made, train_loader=loader)

    (lost, trainer, _), _ = on_two(job, tiny_weights, change=change)
    assert isinstance(lost, BackendUnavailable)
    assert "saved after step 4, continue with" in str(lost)
    assert latest(job()).progress.step == trainer.step == 4


def test_bad_images_of_every_rank_are_known_to_rank_0(
    job: Callable[..., Training], tiny_weights: Weights
) -> None:
    paths = spoil(job(), 4)
    for outcome, trainer, sums in on_two(job, tiny_weights, val=False):
        assert not isinstance(outcome, Exception)
        assert trainer.step == 18
        assert 18 + 3 < sums <= 18 + 3 + 4, "more only where there is news"
    found = records(job(), "bad_image", "path", "reason")
    assert sorted(path for path, _ in found) == sorted(paths)
    assert {reason for _, reason in found} == {"a Git LFS pointer, not an image; run git lfs pull"}


def test_too_many_bad_images_over_all_ranks_stop_all(
    job: Callable[..., Training], tiny_weights: Weights
) -> None:
    """Neither rank alone has met so many."""
    spoil(job(), 5)
    results = on_two(job, tiny_weights)
    steps = {trainer.step for _, trainer, _ in results}
    assert len(steps) == 1
    for outcome, _, _ in results:
        assert isinstance(outcome, DataError)
        assert "of 48 training images could not be read" in str(outcome)
    (step,) = steps
    if step:
        assert latest(job()).progress.step == step
    assert json.loads(job().run.records.read_text().splitlines()[-1])["kind"] in (
        "note",
        "checkpoint",
        "bad_image",
    )
