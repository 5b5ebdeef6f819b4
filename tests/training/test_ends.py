"""How a training ends before its last epoch or is fitted to a time: the same after a resume and on several ranks."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_loop import Constant, Recorder, configured

from resnext_core.data.index import open_index
from resnext_core.data.loader import Loader
from resnext_core.errors import DataError, Interrupted
from resnext_core.interfaces import Batch, Predictor
from resnext_core.metrics import METRICS, Metric
from resnext_core.model.weights import Weights
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.ranks.launch import free_port
from resnext_core.ranks.tcp import TcpCollectives
from resnext_core.runs.checkpoint import load_latest
from resnext_core.runs.checkpoint_folder import RunProgress
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.log import describe
from resnext_core.runs.records import Eval, Fit, Record, Saved, Train
from resnext_core.training.course import Course
from resnext_core.training.loop import fit
from resnext_core.training.training import Training

ALONE = RankInfo()
#: 48 images in batches of 8.
STEPS = 6
#: Seconds of an evaluation in the tests with a clock: 23 images in batches of 5, and a checkpoint's golden logits.
EVAL_S = 0.5 * 6


@pytest.fixture
def job(photos: Path, tiny_weights: Weights, tmp_path: Path) -> Callable[..., Training]:
    """Make a job on `photos`, of one rank or as one of several."""

    def make(
        *sets: str, rank: RankInfo = ALONE, collectives: Any = None, val: bool = True, steps_per_call: int = 1
    ) -> Training:
        train = open_index(photos / "train")
        index = open_index(photos / "val", train.classes) if val else None
        run = RunFolder(tmp_path)

        def loader(of: Any) -> Loader:
            return Loader(of, tiny_weights.preprocess, None, workers=0)

        def emit(record: Record) -> None:
            if record.stored and rank.is_main:
                run.append(record)

        return Training(
            config=configured(*sets), weights=tiny_weights, train=train, train_loader=loader(train), val=index,
            val_loader=loader(index) if index else None, rank=rank, collectives=collectives or SingleProcess(),
            run=run, steps_per_call=steps_per_call, listen=emit,
        )  # fmt: skip

    return make


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests write many checkpoints, and none of them pulls the plug."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def found(job: Training, kind: type[Record]) -> list[Any]:
    return [record for record in job.run.read_records() if isinstance(record, kind)]


def latest(job: Training) -> Any:
    return load_latest(job.run.checkpoints, pytest.fail)


# -- the course --------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    epochs=st.integers(1, 20),
    steps=st.integers(1, 30),
    fits=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 400)), max_size=4),
)
def test_every_fit_goes_on_from_where_it_was_and_ends_at_the_end(
    epochs: int, steps: int, fits: list[tuple[int, int]]
) -> None:
    made, at = [], 0
    for after, more in fits:
        at += after
        made.append((at, at + 1 + more))
    config = configured(f"train.epochs={epochs}")
    course = Course(config, steps, made)
    last = epochs * steps - 1
    positions = [course.position(step) for step in range(course.total)]
    assert all(a <= b for a, b in pairwise(positions))
    if not made:
        assert positions == list(range(last + 1))
        return
    assert positions[: made[0][0]] == [min(step, last) for step in range(made[0][0])]
    for k, (step, _) in enumerate(made):  # a fit moves the steps after its own
        if step < course.total:
            before = Course(config, steps, made[:k])
            assert course.position(step) == pytest.approx(min(before.position(step), last))
    at, total = made[-1]
    if total > at + 1:
        assert positions[-1] == pytest.approx(last)


def test_a_stretched_schedule_has_the_same_curve() -> None:
    config = configured(
        "train.epochs=10", "schedule.kind=cosine-step", "optimizer.lr=1", "schedule.warmup_epochs=2"
    )
    plain = Course(config, 10).lrs(range(100))
    twice = Course(config, 10, [(5, 195)])
    assert twice.lrs(range(5)).tolist() == plain[:5].tolist()
    fitted = twice.lrs(range(5, 195))
    assert 0.97 < fitted.max() <= 1
    assert fitted[-1] == pytest.approx(0, abs=1e-7)
    # positions 5, 5.497, 5.995, ...: between two steps of the plain one
    assert np.interp(5 + np.arange(190) * 94 / 189, np.arange(100), plain) == pytest.approx(fitted, abs=6e-3)


# -- patience ----------------------------------------------------------------------------------------


def test_patience_counts_evaluations_since_the_best(
    job: Callable[..., Training], tiny_weights: Weights
) -> None:
    """`Recorder` predicts another class at each evaluation: five of them have as many images."""
    made = job("train.epochs=20", "train.patience=2")
    progress = fit(Recorder(tiny_weights), made)
    assert [(e.epoch, e.best) for e in found(made, Eval)] == [(1, True), (2, False), (3, False)]
    assert (progress.step, progress.waits, progress.best_step) == (3 * STEPS, 2, STEPS)
    reason = made.why_ended(progress)
    assert reason is not None
    assert reason.startswith(
        "top-1 has not risen in 2 evaluations (train.patience); best 17.39 % after step 6"
    )
    assert latest(made).progress == progress


@pytest.mark.parametrize("at", [2, STEPS, STEPS + 1, 2 * STEPS])
def test_patience_survives_a_stop(job: Callable[..., Training], tiny_weights: Weights, at: int) -> None:
    whole = job("train.epochs=20", "train.patience=3")

    def stop(step: int) -> None:
        if step == at:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        fit(Recorder(tiny_weights, stop), whole)
    again = job("train.epochs=20", "train.patience=3")
    progress = fit(Recorder(tiny_weights), again, latest(again))
    assert (progress.step, progress.waits) == (4 * STEPS, 3)
    assert [e.step for e in found(again, Eval)] == [STEPS, 2 * STEPS, 3 * STEPS, 4 * STEPS]


def test_a_run_that_ended_early_goes_on_with_more_patience_only(
    job: Callable[..., Training], tiny_weights: Weights
) -> None:
    ended = fit(Recorder(tiny_weights), job("train.epochs=20", "train.patience=2"))
    same = job("train.epochs=20", "train.patience=2")
    trainer = Recorder(tiny_weights)
    assert fit(trainer, same, latest(same)) == ended
    assert trainer.calls == []
    more = job("train.epochs=20", "train.patience=3")
    assert fit(trainer, more, latest(more)).step == 4 * STEPS


def test_a_metric_that_rises_resets_the_count(
    job: Callable[..., Training], tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.4, 0.6, 0.6, 0.5, 0.9])
    rising = Metric(label="macro-F1", title="Macro F1", meaning="", compute=lambda counts: next(scores))
    monkeypatch.setitem(METRICS, "macro_f1", rising)  # type: ignore[arg-type]
    made = job("train.epochs=20", "train.patience=2", "train.best=macro_f1")
    progress = fit(Recorder(tiny_weights), made)
    assert (progress.step, progress.best, progress.best_step) == (5 * STEPS, 0.6, 3 * STEPS)
    assert (made.why_ended(progress) or "").startswith("macro-F1 has not risen")


def test_patience_that_runs_out_at_the_last_epoch_is_no_early_end(
    job: Callable[..., Training], tiny_weights: Weights
) -> None:
    made = job("train.epochs=3", "train.patience=2")
    progress = fit(Recorder(tiny_weights), made)
    assert progress.waits == 2
    assert made.why_ended(progress) is None


# -- a time ------------------------------------------------------------------------------------------


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("resnext_core.training.pace.now", lambda: made.now)
    return made


class Timed(Recorder):
    """A trainer whose steps take `step_s(step)` seconds of `clock`, and an evaluation's batches `batch_s`."""

    def __init__(
        self, weights: Weights, clock: Clock, step_s: Callable[[int], float] = lambda step: 1.0, batch_s: float = 0.5,
        stop_at: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(weights)
        self.clock, self.step_s, self.batch_s, self.stop_at = clock, step_s, batch_s, stop_at

    def run_steps(
        self, batches: Sequence[Batch], lrs: NDArray[Any], ema_decays: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        for k in range(len(batches)):
            self.clock.now += self.step_s(self.step + k + 1)
        losses = super().run_steps(batches, lrs, ema_decays)
        if self.stop_at is not None and self.step >= self.stop_at:
            self.stop_at = None
            os.kill(os.getpid(), signal.SIGINT)
        return losses

    def predictor(self, *, ema: bool = False) -> Predictor:
        timed = self

        class Slow(Constant):
            def logits(self, images: NDArray[Any]) -> NDArray[Any]:
                timed.clock.now += timed.batch_s
                return super().logits(images)

        return Slow(len(self.weights.classes), self.step)


#: Two minutes of steps of a second, an evaluation of EVAL_S after every 6: about 13 epochs.
TIME = ("train.minutes=2", "train.epochs=5", "schedule.kind=cosine-step", "schedule.warmup_epochs=1")


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_a_training_ends_in_its_time_at_the_end_of_its_curve(
    job: Callable[..., Training], tiny_weights: Weights, clock: Clock, steps_per_call: int
) -> None:
    made, trainer = job(*TIME, steps_per_call=steps_per_call), Timed(tiny_weights, clock)
    progress = fit(trainer, made)
    assert 0.95 * 120 <= clock.now - 100 <= 120
    assert progress.step == trainer.step == progress.fits[-1][1] == made.course.total
    fits = found(made, Fit)
    assert [(f.step, f.total) for f in fits] == list(progress.fits)
    assert len(fits) <= 3  # the first one took evaluations for slower than they are
    if steps_per_call == 1:
        assert fits[0].eval_s == pytest.approx(23 / 8, rel=1e-3), "before an evaluation: a guess"
    assert fits[0].step_s == pytest.approx(1)
    assert found(made, Eval)[-1].step == progress.step
    peak = float(np.float32(configured().optimizer.lr))
    assert max(trainer.lrs) == pytest.approx(peak, rel=0.02)
    assert trainer.lrs[-1] == pytest.approx(0, abs=1e-6)
    rise = int(np.argmax(trainer.lrs))
    assert (np.diff(trainer.lrs[:rise]) > 0).all()
    assert (np.diff(trainer.lrs[rise:]) <= 0).all()
    line = describe(fits[-1]) or ""
    assert line.startswith(f"fitted to 2 minutes: {progress.step} steps, ")
    assert "at 1 s a step and " in line


@pytest.mark.parametrize("slower", [0.25, 0.5, 2.0, 4.0])
@pytest.mark.parametrize("val", [True, False])
def test_a_machine_that_changes_its_speed_still_ends_in_time(
    job: Callable[..., Training], tiny_weights: Weights, clock: Clock, slower: float, val: bool
) -> None:
    made = job(*TIME, val=val)
    trainer = Timed(tiny_weights, clock, lambda step: 1.0 if step < 40 else slower)
    progress = fit(trainer, made)
    assert 0.93 * 120 <= clock.now - 100 <= 120
    assert len(progress.fits) >= 2
    assert trainer.lrs[-1] < 0.2 * max(trainer.lrs)
    assert latest(made).progress == progress


def test_a_machine_that_becomes_very_slow_still_reaches_the_end_of_the_curve(
    job: Callable[..., Training], tiny_weights: Weights, clock: Clock
) -> None:
    """The new pace counts after two steps: ten of them would take longer than there is."""
    made = job(*TIME)
    trainer = Timed(tiny_weights, clock, lambda step: 1.0 if step < 40 else 10.0)
    fit(trainer, made)
    assert clock.now - 100 <= 120
    assert trainer.lrs[-1] < 0.05 * max(trainer.lrs)


def test_a_sudden_halt_costs_at_most_the_steps_under_way(
    job: Callable[..., Training], tiny_weights: Weights, clock: Clock
) -> None:
    made = job(*TIME)
    fit(Timed(tiny_weights, clock, lambda step: 1.0 if step != 61 else 300.0), made)
    assert clock.now - 100 <= 60 + 10 * EVAL_S + 300 + 1 + EVAL_S
    assert made.course.total in (61, 62)
    assert found(made, Eval)[-1].step == made.course.total


def test_an_evaluation_that_takes_all_the_time_is_the_last(
    job: Callable[..., Training], tiny_weights: Weights, clock: Clock
) -> None:
    made = job(*TIME)
    progress = fit(Timed(tiny_weights, clock, batch_s=30.0), made)
    assert [e.step for e in found(made, Eval)] == [progress.step] == [STEPS]
    assert latest(made).progress == progress
    again = job(*TIME)
    trainer = Timed(tiny_weights, clock)
    assert fit(trainer, again, latest(again)) == progress
    assert trainer.calls == []


def test_less_time_than_an_epoch(job: Callable[..., Training], tiny_weights: Weights, clock: Clock) -> None:
    made = job(*TIME, "train.checkpoint_steps=1")
    trainer = Timed(tiny_weights, clock, lambda step: 22.0)
    progress = fit(trainer, made)
    assert [s.step for s in found(made, Saved)] == list(range(1, progress.step + 1)), "each of them once"
    assert progress.step < STEPS
    assert clock.now - 100 <= 120
    assert progress.epoch_closed
    assert [e.step for e in found(made, Eval)] == [progress.step]
    again = job(*TIME)
    assert fit(trainer, again, latest(again)) == progress


@pytest.mark.parametrize("at", [1, 4, STEPS, 15, 40, 70])
def test_a_resumed_run_has_the_same_schedule_and_the_time_that_is_left(
    job: Callable[..., Training], tiny_weights: Weights, clock: Clock, tmp_path: Path, at: int
) -> None:
    whole = Timed(tiny_weights, clock)
    expected = fit(whole, job(*TIME))
    taken = clock.now - 100
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "records.jsonl").unlink()
    clock.now = 7000.0
    first, second = Timed(tiny_weights, clock, stop_at=at), Timed(tiny_weights, clock)
    with pytest.raises(Interrupted):
        fit(first, job(*TIME))
    used = clock.now - 7000
    clock.now = 90000.0  # what passes in between does not count
    made = job(*TIME)
    saved = latest(made)
    progress = fit(second, made, saved)
    assert progress.fits[: len(saved.progress.fits)] == saved.progress.fits
    assert clock.now - 90000 + used <= 120
    if saved.progress.fits:
        assert (progress.step, progress.fits) == (expected.step, expected.fits)
        assert first.lrs + second.lrs == whole.lrs
        assert clock.now - 90000 + used == pytest.approx(taken, abs=1)


def test_a_stored_run_goes_on_at_its_length_without_the_time(
    job: Callable[..., Training], tiny_weights: Weights, clock: Clock
) -> None:
    with pytest.raises(Interrupted):
        fit(Timed(tiny_weights, clock, stop_at=30), job(*TIME))
    made = job(*TIME[1:])
    saved = latest(made).progress
    progress = fit(Timed(tiny_weights, clock), made, latest(made))
    assert progress.step == saved.fits[-1][1]
    assert progress.fits == saved.fits


def test_more_time_makes_a_resumed_run_longer(
    job: Callable[..., Training], tiny_weights: Weights, clock: Clock
) -> None:
    with pytest.raises(Interrupted):
        fit(Timed(tiny_weights, clock, stop_at=30), job(*TIME))
    made = job(*TIME, "train.minutes=4")
    fit(Timed(tiny_weights, clock), made, latest(made))
    assert 0.95 * 240 <= clock.now - 100 <= 240


def test_a_run_that_has_used_its_time_takes_no_more(
    job: Callable[..., Training], tiny_weights: Weights, clock: Clock
) -> None:
    """Its learning rate has come to the end of its curve: more steps would change nothing."""
    ended = fit(Timed(tiny_weights, clock), job(*TIME))
    made, trainer = job(*TIME, "train.minutes=4"), Timed(tiny_weights, clock)
    with pytest.raises(
        DataError, match=f"for 4 minutes: its schedule has ended, after {ended.step} steps; .* --pretrained"
    ):
        fit(trainer, made, latest(made))
    assert trainer.calls == []


def test_a_run_of_epochs_that_has_ended_takes_no_time(
    job: Callable[..., Training], tiny_weights: Weights
) -> None:
    fit(Recorder(tiny_weights), job("train.epochs=1"))
    made = job("train.epochs=1", "train.minutes=4")
    with pytest.raises(DataError, match=f"its schedule has ended, after {STEPS} steps"):
        fit(Recorder(tiny_weights), made, latest(made))
    longer = job("train.epochs=2")
    assert fit(Recorder(tiny_weights), longer, latest(longer)).step == 2 * STEPS


@pytest.mark.parametrize("minutes", ["2", "null"])
def test_a_fitted_run_keeps_the_epochs_of_its_schedule(
    job: Callable[..., Training], tiny_weights: Weights, clock: Clock, minutes: str
) -> None:
    with pytest.raises(Interrupted):
        fit(Timed(tiny_weights, clock, stop_at=30), job(*TIME))
    made = job(*TIME, "train.epochs=6", f"train.minutes={minutes}")
    with pytest.raises(DataError, match=r"train\.epochs, whose schedule .* time, was 5 and is 6"):
        fit(Timed(tiny_weights, clock), made, latest(made))


def test_records_before_the_first_fit_say_the_configured_length(
    job: Callable[..., Training], tiny_weights: Weights, clock: Clock
) -> None:
    made = job(*TIME, "train.log_every=1")
    fit(Timed(tiny_weights, clock), made)
    assert [r.step for r in found(made, Train)] == list(range(1, made.course.total + 1))
    assert [r.epoch for r in found(made, Train)] == [1 + k // STEPS for k in range(made.course.total)]


# -- several ranks -------------------------------------------------------------------------------------


def on_ranks(world: int, work: Callable[[RankInfo, TcpCollectives], Any]) -> list[Any]:
    """Do `work` on each of `world` ranks, in threads, and return the results."""
    port = free_port()

    def run(number: int) -> Any:
        rank = RankInfo(rank=number, world=world)
        with closing(TcpCollectives(rank, "127.0.0.1", port)) as collectives:
            return work(rank, collectives)

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(run, range(world)))


@pytest.mark.parametrize("world", [2, 3])
def test_all_ranks_end_at_once(
    job: Callable[..., Training], tiny_weights: Weights, clock: Clock, world: int
) -> None:
    """Rank 0 measures and decides; the others have no clock."""

    def work(
        rank: RankInfo, collectives: TcpCollectives, sets: Sequence[str]
    ) -> tuple[RunProgress, list[float]]:
        slow = (lambda step: 1.0 if step < 50 else 2.0) if rank.is_main else (lambda step: 0.0)
        trainer = Timed(tiny_weights, clock, slow, batch_s=0.5 if rank.is_main else 0.0)
        made = job("train.batch_size=6", *sets, rank=rank, collectives=collectives)
        return fit(trainer, made), trainer.lrs

    for sets in (("train.patience=2", "train.epochs=20"), TIME):
        results = on_ranks(world, lambda rank, sums, sets=sets: work(rank, sums, sets))
        steps = {progress.step for progress, _ in results}
        assert len(steps) == 1
        assert len({progress.fits for progress, _ in results}) == 1
        assert all(lrs == results[0][1] for _, lrs in results)
        assert len(results[0][1]) == steps.pop()
    assert len(results[0][0].fits) >= 2
