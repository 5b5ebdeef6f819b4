"""The training loop: one page, in order of use. Backends do the arithmetic, this decides everything else."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.data.sampler import Task, epoch_permutation, rank_slice
from resnext_core.errors import BackendUnavailable, DataError
from resnext_core.interfaces import Batch, Trainer, copy_seconds
from resnext_core.ranks.signals import StopRequest
from resnext_core.runs.checkpoint import Checkpoint
from resnext_core.runs.checkpoint_folder import RunProgress
from resnext_core.runs.records import Eval, Progress
from resnext_core.runs.saver import Saver
from resnext_core.runs.unreadable import Unreadable
from resnext_core.serving.evaluate import Evaluation, evaluate
from resnext_core.training.meter import Meter
from resnext_core.training.nonfinite import LossWatch
from resnext_core.training.schedule import lrs, scaled_lr
from resnext_core.training.work import Job as Job
from resnext_core.training.work import Work, agree, complete, end, note, remember, save, sum_up
from resnext_core.training.work import checkpoint_record as checkpoint_record


def fit(trainer: Trainer, job: Job, resume: Checkpoint | None = None) -> RunProgress:
    """Train to the last epoch and return where it ended; raises Interrupted after saving on a signal.

    Another error between two steps, on any rank, is raised after saving too. One in the middle of a step is not: its
    state may be half updated.
    """
    per_epoch, epochs = job.steps_per_epoch, job.config.train.epochs
    progress = RunProgress(step=0, epoch_closed=True)
    if resume is not None:
        _check_same(job, resume)
        trainer.load_state(resume.state)
        progress = resume.progress
    with StopRequest() as stop, Saver(job.saved, background=job.config.train.background_saving) as saver:
        watch = LossWatch(job.run.path / "nonfinite", job.train, tolerant=job.tolerates_nonfinite)
        bad = {"train": Unreadable(job.train, "train")}
        if job.val is not None:
            bad["val"] = Unreadable(job.val, "val")
        work = Work(
            trainer=trainer, job=job, saver=saver, stop=stop, watch=watch, bad=bad, progress=progress,
            saved=None if resume is None else progress,
        )  # fmt: skip
        if resume is not None:
            remember(work)
        if not progress.epoch_closed and progress.step % per_epoch == 0:
            _close_epoch(work)
        while work.progress.step < per_epoch * epochs:
            _train_epoch(work)
            _close_epoch(work)
        work.attempt(saver.wait)
        if work.fault is not None:
            end(work, work.fault, together=False)
        sum_up(work)
    return work.progress


def _train_epoch(work: Work) -> None:
    """Take the steps of the epoch that are not done yet."""
    trainer, job = work.trainer, work.job
    config, rank, per_epoch = job.config, job.rank, job.steps_per_epoch
    epoch, first = divmod(work.progress.step, per_epoch)
    order = epoch_permutation(len(job.train), config.train.seed, epoch)
    batch_size = config.train.batch_size
    base_lr = scaled_lr(config.optimizer, batch_size)
    tasks = (
        Task.of(epoch, rank_slice(order, s, batch_size, rank.rank, rank.world))
        for s in range(first, per_epoch)
    )
    meter = Meter(job.emit, batch_size=batch_size, total=per_epoch * config.train.epochs, epoch=epoch + 1)
    work.meter = meter

    def account(losses: NDArray[Any], lr: NDArray[Any], wait: float, compute: float) -> None:
        """Look at the losses of the steps just taken, and write what there is to write about them."""
        step = work.progress.step
        last = step + len(losses)
        for i in np.flatnonzero(~np.isfinite(losses)).tolist() or [len(losses) - 1]:
            samples = rank_slice(order, step + i - epoch * per_epoch, batch_size, 0, 1)
            record = work.watch.look(
                step + i + 1, epoch + 1, float(losses[i]), float(lr[i]), samples.tolist(), write=rank.is_main
            )
            if record is not None:
                job.emit(record)
        meter.add(last, losses, float(lr[-1]), wait=wait, compute=compute, copy=copy_seconds(trainer))
        if meter.steps >= config.train.log_every or last == (epoch + 1) * per_epoch or job.saves_at(last):
            meter.write(trainer.counters())

    with closing(job.train_loader.batches(tasks)) as batches:
        while work.progress.step < (epoch + 1) * per_epoch:
            step, started = work.progress.step, time.perf_counter()
            chunk = _fetch(work, batches, job.chunk(step))
            wait = time.perf_counter() - started
            agree(work)
            assert chunk, "the loader ended before the epoch"
            lr = lrs(
                step, len(chunk), config=config.schedule, base_lr=base_lr, steps_per_epoch=per_epoch,
                epochs=config.train.epochs,
            )  # fmt: skip
            started = time.perf_counter()
            losses = trainer.run_steps(chunk, lr)
            compute = time.perf_counter() - started
            work.attempt(partial(account, losses, lr, wait, compute), anyway=True)
            work.progress = replace(work.progress, step=step + len(chunk), epoch_closed=False)
            work.attempt(work.saver.look)
            if job.saves_at(work.progress.step):
                work.attempt(partial(save, work))


def _fetch(work: Work, batches: Iterator[Batch], n: int) -> list[Batch]:
    """Return the next `n` batches; none where this rank has failed or is to stop: the next exchange ends all."""
    if work.stop.requested:
        return []
    return work.attempt(lambda: list(itertools.islice(batches, n))) or []


def _close_epoch(work: Work) -> None:
    """Evaluate and save as the configuration says, at the end of an epoch.

    What will be evaluated is saved before, for an evaluation may fail, and completed after.
    """
    job, train = work.job, work.job.config.train
    work.meter = None
    epoch = work.progress.step // job.steps_per_epoch
    evaluates = job.evaluates(epoch)
    if evaluates and work.saved != work.progress:
        work.attempt(partial(save, work, tell=False))
    agree(work)
    if not evaluates:
        work.progress = replace(work.progress, epoch_closed=True)
        if epoch == train.epochs or epoch % train.checkpoint_every == 0:
            work.attempt(partial(save, work))
        return
    result = _evaluate(work)
    score, is_best = getattr(result, train.best), False
    metrics = {"split": "val", "top1": result.top1, "top5": result.top5}
    if work.progress.best is None:
        work.attempt(partial(_warn_at_chance, job, work.progress.step, result))
    if work.progress.best is None or score > work.progress.best:
        work.progress, is_best = replace(work.progress, best=score, best_step=work.progress.step), True
    record = Eval(
        step=work.progress.step, epoch=epoch, split="val", metrics={"top1": result.top1, "top5": result.top5},
        expected=result.expected, scored=result.scored, failed=result.failed, seconds=round(result.seconds, 3),
        best=is_best,
    )  # fmt: skip
    work.attempt(partial(job.emit, record))
    work.progress = replace(work.progress, epoch_closed=True)
    work.attempt(partial(complete, work, metrics))


def _evaluate(work: Work) -> Evaluation:
    """Evaluate on the validation part; a stop or an error ends it at the next batch, and resuming evaluates first."""
    job = work.job
    assert job.val is not None
    assert job.val_loader is not None
    share = -(-len(job.val) // job.rank.world)
    exchanges = -(-share // job.config.eval.batch_size)  # one a batch, on every rank the same

    def on_progress(done: int, total: int) -> None:
        nonlocal exchanges
        work.attempt(partial(job.emit, Progress(what="eval", done=done, total=total)))
        exchanges -= 1
        agree(work)

    try:
        _share_statistics(work.trainer, job)
        return evaluate(
            work.trainer.predictor(ema=job.config.train.ema_decay is not None), job.val_loader, job.val,
            batch_size=job.config.eval.batch_size, rank=job.rank, collectives=job.collectives,
            on_progress=on_progress,
        )  # fmt: skip
    except Exception as error:
        if work.ending:
            raise
        work.fault = work.fault or error
        if exchanges and not isinstance(error, BackendUnavailable):
            agree(work)
        end(work, work.fault, together=False)


def _warn_at_chance(job: Job, step: int, result: Evaluation) -> None:
    """Note a first accuracy that guessing would reach too."""
    chance = 1 / len(result.classes)
    if len(result.classes) > 1 and result.top1_interval[0] <= chance:
        text = (
            f"warning: the first evaluation has top-1 {100 * result.top1:.2f} %, no better than chance "
            f"({100 * chance:.2f} %); if the next ones stay there, check labels, class folders and optimizer.lr"
        )
        note(job, step, text)


def _share_statistics(trainer: Trainer, job: Job) -> None:
    """Give every rank the running statistics of rank 0, those of its checkpoints: all evaluate one network.

    In training a rank's statistics stay its own. Rank 0's chain is not touched, so a resumed run meets it again.
    """
    if job.rank.world == 1:
        return
    state = trainer.state()
    running = {t.name for t in job.weights.spec.tensors if not t.trainable}
    names = [n for n in sorted(state.tensors) if n.split("/", 1)[1] in running]
    own = np.concatenate([state.tensors[n].ravel() for n in names])
    shared = job.collectives.all_reduce_sum(own if job.rank.is_main else np.zeros_like(own))
    if job.rank.is_main:
        return
    ends = np.cumsum([state.tensors[n].size for n in names])[:-1]
    parts = zip(names, np.split(shared, ends), strict=True)
    tensors = {n: part.reshape(state.tensors[n].shape) for n, part in parts}
    trainer.load_state(replace(state, tensors={**state.tensors, **tensors}))


def _check_same(job: Job, resume: Checkpoint) -> None:
    now, then = job.facts(), dict(resume.run)
    changed = [f"{k} was {then.get(k)} and is {v}" for k, v in now.items() if then.get(k) != v]
    if changed:
        raise DataError(f"cannot resume {resume.path}: {'; '.join(changed)}")
