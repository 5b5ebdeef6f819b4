"""The training loop: one page, in order of use. Backends do the arithmetic, this decides everything else."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np

from resnext_core.checkpoint import Checkpoint, save_checkpoint
from resnext_core.checkpoint_folder import Progress, Summary
from resnext_core.config import Config
from resnext_core.data.batch import Task
from resnext_core.data.index import Index
from resnext_core.data.loader import Loader
from resnext_core.data.sampler import epoch_permutation, rank_slice, steps_per_epoch
from resnext_core.distributed import Collectives, RankInfo
from resnext_core.errors import DataError, Interrupted
from resnext_core.evaluate import Evaluation, evaluate
from resnext_core.interfaces import Batch, Trainer, copy_seconds
from resnext_core.meter import Meter
from resnext_core.nonfinite import Nonfinite
from resnext_core.runs import RunFolder
from resnext_core.saver import Saver
from resnext_core.schedule import lrs, scaled_lr
from resnext_core.selfcheck import make_golden
from resnext_core.signals import StopRequest
from resnext_core.weights import Weights

Emit = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """Everything a training run is made of. `val` None trains without evaluation; `emit` takes every record."""

    config: Config
    weights: Weights
    train: Index
    train_loader: Loader
    val: Index | None
    val_loader: Loader | None
    rank: RankInfo
    collectives: Collectives
    run: RunFolder
    steps_per_call: int
    emit: Emit

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.train), self.config.train.batch_size)

    @property
    def tolerates_nonfinite(self) -> bool:
        """True where a step whose loss is not a number is skipped: by policy, or as an overflow of the loss scale."""
        return self.config.train.nonfinite == "skip" or self.config.precision.loss_scale != "none"

    def saves_at(self, step: int) -> bool:
        """True where a checkpoint is due within an epoch."""
        every = self.config.train.checkpoint_steps
        return every is not None and step % every == 0 and step % self.steps_per_epoch != 0

    def chunk(self, step: int) -> int:
        """Return how many steps to take in one call after `step`: as the backend likes, but not past a checkpoint."""
        every = self.config.train.checkpoint_steps
        return self.steps_per_call if every is None else min(self.steps_per_call, every - step % every)

    def saved(self, summary: Summary) -> None:
        """Write the record of a checkpoint."""
        self.emit(checkpoint_record(summary, self.steps_per_epoch))

    def facts(self) -> dict[str, Any]:
        """What a resumed run must share with its checkpoint for the same images to be seen."""
        train = self.config.train
        return {
            "seed": train.seed,
            "batch_size": train.batch_size,
            "train_images": len(self.train),
            "train_digest": self.train.dataset_digest,
            "variant": self.weights.spec.variant,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """What the parts of the loop share."""

    trainer: Trainer
    job: Job
    saver: Saver
    stop: StopRequest
    watch: Nonfinite


def fit(trainer: Trainer, job: Job, resume: Checkpoint | None = None) -> Progress:
    """Train to the last epoch and return where it ended; raises Interrupted after saving on a signal."""
    per_epoch, epochs = job.steps_per_epoch, job.config.train.epochs
    progress = Progress(step=0, epoch_closed=True)
    if resume is not None:
        _check_same(job, resume)
        trainer.load_state(resume.state)
        progress = resume.progress
    with StopRequest() as stop, Saver(job.saved, background=job.config.train.background_saving) as saver:
        watch = Nonfinite(job.run.path / "nonfinite", job.train, tolerant=job.tolerates_nonfinite)
        work = _Work(trainer=trainer, job=job, saver=saver, stop=stop, watch=watch)
        if not progress.epoch_closed and progress.step % per_epoch == 0:
            progress = _close_epoch(work, progress)
        for epoch in range(progress.step // per_epoch, epochs):
            steps = _train_epoch(work, epoch, progress.step)
            for step in steps:
                progress = replace(progress, step=step, epoch_closed=False)
                saver.look()
                if _agreed(stop.requested, job):
                    steps.close()  # writes the record of the last steps
                    _stop(work, progress)
                if job.saves_at(step):
                    _save(work, progress)
            progress = _close_epoch(work, progress)
    return progress


def _train_epoch(work: _Work, epoch: int, done: int) -> Generator[int, None, None]:
    """Take the steps of `epoch` that are not `done` yet; yields the number of steps after each call."""
    trainer, job = work.trainer, work.job
    config, rank, per_epoch = job.config, job.rank, job.steps_per_epoch
    order = epoch_permutation(len(job.train), config.train.seed, epoch)
    first = max(done - epoch * per_epoch, 0)
    batch_size = config.train.batch_size
    base_lr = scaled_lr(config.optimizer, batch_size)
    tasks = (
        Task.of(epoch, rank_slice(order, s, batch_size, rank.rank, rank.world))
        for s in range(first, per_epoch)
    )
    meter = Meter(job.emit, batch_size=batch_size, total=per_epoch * config.train.epochs, epoch=epoch + 1)
    step = epoch * per_epoch + first
    batches = job.train_loader.batches(tasks)
    while True:
        started = time.perf_counter()
        chunk: list[Batch] = list(itertools.islice(batches, job.chunk(step)))
        if not chunk:
            return
        loaded = time.perf_counter()
        lr = lrs(
            step, len(chunk), config=config.schedule, base_lr=base_lr, steps_per_epoch=per_epoch,
            epochs=config.train.epochs,
        )  # fmt: skip
        losses = trainer.run_steps(chunk, lr)
        meter.add(
            step + len(chunk), losses, float(lr[-1]), wait=loaded - started,
            compute=time.perf_counter() - loaded, copy=copy_seconds(trainer),
        )  # fmt: skip
        for i in np.flatnonzero(~np.isfinite(losses)).tolist() or [len(losses) - 1]:
            samples = rank_slice(order, step + i - epoch * per_epoch, batch_size, 0, 1)
            record = work.watch.look(
                step + i + 1, epoch + 1, float(losses[i]), float(lr[i]), samples.tolist(), write=rank.is_main
            )
            if record is not None:
                job.emit(record)
        step += len(chunk)
        for text in job.train_loader.take_notes():
            job.emit({"kind": "note", "step": step, "text": text})
        if meter.steps >= config.train.log_every or step == (epoch + 1) * per_epoch or job.saves_at(step):
            meter.write(trainer.counters())
        try:
            yield step
        except GeneratorExit:
            if meter.steps:
                meter.write(trainer.counters())
            raise


def _close_epoch(work: _Work, progress: Progress) -> Progress:
    """Evaluate and save as the configuration says, at the end of an epoch."""
    job = work.job
    train = job.config.train
    epoch = progress.step // job.steps_per_epoch
    last, is_best = epoch == train.epochs, False
    metrics: dict[str, Any] = {}
    if job.val is not None and (last or (epoch >= train.eval_start and epoch % train.eval_every == 0)):
        result = _evaluate(work, progress)
        score = getattr(result, train.best)
        metrics = {"split": "val", "top1": result.top1, "top5": result.top5}
        if progress.best is None:
            _warn_at_chance(job, progress.step, result)
        if progress.best is None or score > progress.best:
            progress, is_best = replace(progress, best=score, best_step=progress.step), True
        job.emit(
            {
                "kind": "eval", "step": progress.step, "epoch": epoch, **metrics, "expected": result.expected,
                "scored": result.scored, "failed": result.failed, "seconds": round(result.seconds, 3),
                "best": is_best,
            }
        )  # fmt: skip
    progress = replace(progress, epoch_closed=True)
    if last or is_best or epoch % train.checkpoint_every == 0:
        _save(work, progress, metrics=metrics)
    return progress


def _evaluate(work: _Work, progress: Progress) -> Evaluation:
    """Evaluate on the validation part; a signal ends it at the next batch, and the epoch is closed on resuming."""
    job = work.job
    assert job.val is not None
    assert job.val_loader is not None
    _share_statistics(work.trainer, job)

    def on_progress(done: int, total: int) -> None:
        job.emit({"kind": "progress", "what": "eval", "done": done, "total": total})
        if _agreed(work.stop.requested, job):
            _stop(work, progress)

    return evaluate(
        work.trainer.predictor(ema=job.config.train.ema_decay is not None), job.val_loader, job.val,
        batch_size=job.config.eval.batch_size, rank=job.rank, collectives=job.collectives,
        on_progress=on_progress,
    )  # fmt: skip


def _warn_at_chance(job: Job, step: int, result: Evaluation) -> None:
    """Note a first accuracy that guessing would reach too."""
    chance = 1 / len(result.classes)
    if len(result.classes) > 1 and result.top1_interval[0] <= chance:
        text = (
            f"warning: the first evaluation has top-1 {100 * result.top1:.2f} %, no better than chance "
            f"({100 * chance:.2f} %); if the next ones stay there, check labels, class folders and optimizer.lr"
        )
        job.emit({"kind": "note", "step": step, "text": text})


def _stop(work: _Work, progress: Progress) -> NoReturn:
    """Save where the run stands and end it."""
    _save(work, progress)
    work.saver.wait()
    work.job.collectives.barrier()  # a rank that leaves early would have the launcher stop rank 0 while it writes
    raise Interrupted(f"stopped after step {progress.step}; continue with --resume {work.job.run.path}")


def _save(work: _Work, progress: Progress, *, metrics: Mapping[str, Any] | None = None) -> None:
    """Take the state and have it written, on rank 0; the other ranks go on."""
    trainer, job = work.trainer, work.job
    if not job.rank.is_main:
        return
    started = time.perf_counter()
    work.saver.wait()  # the record of the one before belongs before the position that this one keeps
    ema = job.config.train.ema_decay is not None
    state = trainer.state()
    weights = job.weights.replace(
        tensors={
            t.name: state.tensors[("ema/" if ema else "weights/") + t.name] for t in job.weights.spec.tensors
        },
        origin={**job.weights.origin, "run": job.run.path.name, "step": progress.step},
        metrics=dict(metrics or {}),
        golden=make_golden(trainer.predictor(ema=ema), job.weights.spec, job.config.precision.compute),
    )
    records, facts = job.run.position(), job.facts()
    work.saver.save(
        lambda blocked_s: save_checkpoint(
            job.run.checkpoints, weights, state, progress, run=facts, keep=job.config.train.keep,
            records=records, blocked_s=blocked_s,
        ),
        since=started,
    )  # fmt: skip


def checkpoint_record(saved: Summary, steps_per_epoch: int) -> dict[str, Any]:
    """Return the record of a checkpoint, the same when it was just written and when it is read again."""
    return {
        "kind": "checkpoint", "step": saved.progress.step, "epoch": saved.progress.step // steps_per_epoch,
        "seconds": saved.saving.seconds, "blocked_s": saved.saving.blocked_s, "path": saved.name,
        "bytes": saved.saving.bytes,
    }  # fmt: skip


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


def _agreed(requested: bool, job: Job) -> bool:
    """True on every rank at the same step once any rank was asked to stop."""
    if job.rank.world == 1:
        return requested
    return bool(job.collectives.all_reduce_sum(np.array([int(requested)], np.int64))[0])


def _check_same(job: Job, resume: Checkpoint) -> None:
    now, then = job.facts(), dict(resume.run)
    changed = [f"{k} was {then.get(k)} and is {v}" for k, v in now.items() if then.get(k) != v]
    if changed:
        raise DataError(f"cannot resume {resume.path}: {'; '.join(changed)}")
