"""The training loop: one page, in order of use. Backends do the arithmetic, this decides everything else."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.checkpoint import Checkpoint, Progress, save_checkpoint
from resnext_core.config import Config
from resnext_core.data.batch import Task
from resnext_core.data.index import Index
from resnext_core.data.loader import Loader
from resnext_core.data.sampler import epoch_permutation, rank_slice, steps_per_epoch
from resnext_core.distributed import Collectives, RankInfo
from resnext_core.errors import DataError, Interrupted
from resnext_core.evaluate import Evaluation, evaluate
from resnext_core.interfaces import Batch, Trainer
from resnext_core.runs import RunFolder
from resnext_core.schedule import lrs, scaled_lr
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


def fit(trainer: Trainer, job: Job, resume: Checkpoint | None = None) -> Progress:
    """Train to the last epoch and return where it ended; raises Interrupted after saving on a signal."""
    per_epoch, epochs = job.steps_per_epoch, job.config.train.epochs
    progress = Progress(step=0, epoch_closed=True)
    if resume is not None:
        _check_same(job, resume)
        trainer.load_state(resume.state)
        progress = resume.progress
    with StopRequest() as stop:
        if not progress.epoch_closed and progress.step % per_epoch == 0:
            progress = _close_epoch(trainer, job, progress)
        for epoch in range(progress.step // per_epoch, epochs):
            steps = _train_epoch(trainer, job, epoch, progress.step)
            for step in steps:
                progress = replace(progress, step=step, epoch_closed=False)
                if _agreed(stop.requested, job):
                    steps.close()  # writes the record of the last steps
                    _save(trainer, job, progress)
                    raise Interrupted(
                        f"stopped after step {progress.step}; continue with --resume {job.run.path}"
                    )
            progress = _close_epoch(trainer, job, progress)
    return progress


def _train_epoch(trainer: Trainer, job: Job, epoch: int, done: int) -> Generator[int, None, None]:
    """Take the steps of `epoch` that are not `done` yet; yields the number of steps after each call."""
    config, rank, per_epoch = job.config, job.rank, job.steps_per_epoch
    order = epoch_permutation(len(job.train), config.train.seed, epoch)
    first = max(done - epoch * per_epoch, 0)
    batch_size = config.train.batch_size
    base_lr = scaled_lr(config.optimizer, batch_size)
    tasks = (
        Task.of(epoch, rank_slice(order, s, batch_size, rank.rank, rank.world))
        for s in range(first, per_epoch)
    )
    meter, step = _Meter(job, epoch), epoch * per_epoch + first
    batches = job.train_loader.batches(tasks)
    while True:
        started = time.perf_counter()
        chunk: list[Batch] = list(itertools.islice(batches, job.steps_per_call))
        if not chunk:
            return
        loaded = time.perf_counter()
        lr = lrs(
            step, len(chunk), config=config.schedule, base_lr=base_lr, steps_per_epoch=per_epoch,
            epochs=config.train.epochs,
        )  # fmt: skip
        losses = trainer.run_steps(chunk, lr)
        step += len(chunk)
        meter.add(step, losses, float(lr[-1]), loaded - started, time.perf_counter() - loaded)
        if not np.isfinite(losses).all() and config.precision.loss_scale == "none":
            raise DataError(
                f"loss is not a number at step {step}, lr {lr[-1]:.3g}; lower optimizer.lr or check the data. "
                f"Checkpoints up to here are kept in {job.run.checkpoints}"
            )
        if meter.steps >= config.train.log_every or step == (epoch + 1) * per_epoch:
            meter.write(trainer.counters())
        try:
            yield step
        except GeneratorExit:
            if meter.steps:
                meter.write(trainer.counters())
            raise


def _close_epoch(trainer: Trainer, job: Job, progress: Progress) -> Progress:
    """Evaluate and save as the configuration says, at the end of an epoch."""
    train = job.config.train
    epoch = progress.step // job.steps_per_epoch
    last, is_best = epoch == train.epochs, False
    progress = replace(progress, epoch_closed=True)
    metrics: dict[str, Any] = {}
    if job.val is not None and (last or (epoch >= train.eval_start and epoch % train.eval_every == 0)):
        result = _evaluate(trainer, job)
        score = getattr(result, train.best)
        metrics = {"split": "val", "top1": result.top1, "top5": result.top5}
        if progress.best is None or score > progress.best:
            progress, is_best = replace(progress, best=score, best_step=progress.step), True
        job.emit(
            {
                "kind": "eval", "step": progress.step, "epoch": epoch, **metrics, "expected": result.expected,
                "scored": result.scored, "failed": result.failed, "seconds": round(result.seconds, 3),
                "best": is_best,
            }
        )  # fmt: skip
    if last or is_best or epoch % train.checkpoint_every == 0:
        _save(trainer, job, progress, best=is_best, metrics=metrics)
    return progress


def _evaluate(trainer: Trainer, job: Job) -> Evaluation:
    assert job.val is not None
    assert job.val_loader is not None
    _share_statistics(trainer, job)
    return evaluate(
        trainer.predictor(ema=job.config.train.ema_decay is not None),
        job.val_loader,
        job.val,
        batch_size=job.config.eval.batch_size,
        rank=job.rank,
        collectives=job.collectives,
        on_progress=lambda done, total: job.emit(
            {"kind": "progress", "what": "eval", "done": done, "total": total}
        ),
    )


def _save(
    trainer: Trainer,
    job: Job,
    progress: Progress,
    *,
    best: bool = False,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint on rank 0, then let every rank go on."""
    if job.rank.is_main:
        started = time.perf_counter()
        state = trainer.state()
        served = "ema/" if job.config.train.ema_decay is not None else "weights/"
        weights = job.weights.replace(
            tensors={t.name: state.tensors[served + t.name] for t in job.weights.spec.tensors},
            origin={**job.weights.origin, "run": job.run.path.name, "step": progress.step},
            metrics=dict(metrics or {}),
        )
        path = save_checkpoint(
            job.run.checkpoints, weights, state, progress,
            run=job.facts(), best=best, keep=job.config.train.keep,
        )  # fmt: skip
        job.emit(
            {
                "kind": "checkpoint", "step": progress.step, "epoch": progress.step // job.steps_per_epoch,
                "seconds": round(time.perf_counter() - started, 3), "path": path.name,
                "bytes": sum(f.stat().st_size for f in path.iterdir()),
            }
        )  # fmt: skip
    job.collectives.barrier()


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


class _Meter:
    """Sums what one training record says, and writes it."""

    def __init__(self, job: Job, epoch: int) -> None:
        self._job, self._epoch = job, epoch
        self._reset()

    def _reset(self) -> None:
        self._losses: list[float] = []
        self._wait = self._compute = 0.0
        self._started = time.perf_counter()

    @property
    def steps(self) -> int:
        """Steps since the last record."""
        return len(self._losses)

    def add(self, step: int, losses: NDArray[Any], lr: float, wait: float, compute: float) -> None:
        self._losses += [float(x) for x in losses]
        self._step, self._lr = step, lr
        self._wait += wait
        self._compute += compute
        job = self._job
        self._job.emit(
            {
                "kind": "progress", "what": "train", "done": step, "loss": float(losses[-1]), "lr": lr,
                "total": job.steps_per_epoch * job.config.train.epochs, "epoch": self._epoch + 1,
                "images": len(losses) * job.config.train.batch_size,
            }
        )  # fmt: skip

    def write(self, counters: Mapping[str, float | int]) -> None:
        seconds = time.perf_counter() - self._started
        images = len(self._losses) * self._job.config.train.batch_size
        self._job.emit(
            {
                "kind": "train", "step": self._step, "epoch": self._epoch + 1,
                "loss": float(np.mean(self._losses)), "lr": self._lr, "images": images,
                "seconds": round(seconds, 4), "wait_s": round(self._wait, 4),
                "compute_s": round(self._compute, 4), "images_per_s": round(images / seconds, 2),
                "overflow_steps": counters["overflow_steps"], "loss_scale": counters["loss_scale"],
            }
        )  # fmt: skip
        self._reset()
