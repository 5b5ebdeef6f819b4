"""Find a learning rate: some steps of the job's own training with rising rates, and what the loss says about them."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from resnext_core.config import Config
from resnext_core.data.sampler import steps_per_epoch
from resnext_core.errors import DataError, UsageError, counted
from resnext_core.files import check_target
from resnext_core.files.scratch import Scratch
from resnext_core.jobs.plan import Plan, faults, plan_job, training_backend
from resnext_core.jobs.recipes import DEFAULT_RECIPE
from resnext_core.jobs.recorder import ignore
from resnext_core.jobs.result import Result
from resnext_core.jobs.settings import Settings, resolve_training
from resnext_core.jobs.training import new_trainer, training_job
from resnext_core.plugins import load_plugins
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo, rank_info
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.records import Listener, Progress
from resnext_core.training.lr_sweep import LEAST_STEPS, Suggestion, Sweep, suggest_lr, sweep, sweep_lrs


@dataclass(frozen=True, kw_only=True)
class FindLrJob:
    """Train `steps` steps with rates from `low` to `high`, those of a step: ``optimizer.lr_batch`` is not applied.

    The loss over the rate is written to the page `plot`, where one is given; nothing else is left.
    """

    settings: Settings = field(default_factory=Settings)
    backend: str | None = None
    steps: int = 200
    low: float = 1e-6
    high: float = 10.0
    plot: Path | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class FindLrResult(Result):
    """What was found on `backend` at a global batch of `batch_size`: rates of a step, and `lr` for the configuration.

    `lr` is what ``optimizer.lr`` should be for steps with the rate ``suggestion.valley``: it is meant at `lr_batch`
    images (None: at any batch).
    """

    backend: str
    batch_size: int
    lr_batch: int | None
    sweep: Sweep
    suggestion: Suggestion
    seconds: float
    plot: Path | None = None

    @property
    def lr(self) -> float:
        """``optimizer.lr``, with two digits: the loss of single batches gives no more."""
        scale = 1.0 if self.lr_batch is None else self.lr_batch / self.batch_size
        return float(f"{self.suggestion.valley * scale:.1e}")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        found = self.suggestion
        return {
            "backend": self.backend, "batch_size": self.batch_size, "lr": self.lr, "lr_batch": self.lr_batch,
            "valley": found.valley, "steepest": found.steepest, "tenth": found.tenth,
            "diverged": self.sweep.diverged, "lrs": self.sweep.lrs.tolist(), "losses": self.sweep.losses.tolist(),
            "smoothed": self.sweep.smoothed.tolist(), "seconds": round(self.seconds, 3),
            "plot": None if self.plot is None else str(self.plot),
        }  # fmt: skip

    def __str__(self) -> str:
        sweep, found = self.sweep, self.suggestion
        end = "where the loss diverged" if sweep.diverged else "without divergence"
        meant = "" if self.lr_batch is None else f" (per {counted(self.lr_batch, 'image')})"
        lines = [
            f"{counted(len(sweep.lrs), 'step')} of "
            f"{counted(self.batch_size, 'image')}, rates {sweep.lrs[0]:.2g} to {sweep.lrs[-1]:.2g}, "
            f"{end}",
            f"rates of a step: valley {found.valley:.2g}, steepest {found.steepest:.2g}, a tenth of the one with the "
            f"lowest loss {found.tenth:.2g}",
            f"try --set optimizer.lr={self.lr:g}{meant}",
        ]
        return "\n".join([*lines, *([f"plot: {self.plot}"] if self.plot is not None else [])])


def find_lr(job: FindLrJob, listen: Listener = ignore) -> FindLrResult:
    """Find a learning rate in one process; `listen` gets the progress.

    Raises what :func:`~resnext_core.jobs.train.train` raises before its first step, and DataError where the loss
    suggests nothing.
    """
    _check(job)
    started = time.perf_counter()
    plugins = load_plugins()
    resolved, _ = resolve_training(job.settings, plugins, default_recipe=DEFAULT_RECIPE, finds_batch=False)
    backend = training_backend(plugins, job.backend)
    plan = plan_job(resolved.config, plugins, backend, sources=resolved.sources)
    for topic, error in faults(plan):
        if topic in ("data", "fit"):  # nothing is saved or exported
            raise error
    plan = replace(plan, config=_swept(plan, job.steps))
    with (
        Scratch("find-lr") as folder,
        training_job(plan, RunFolder(folder), RankInfo(), SingleProcess(), listen) as training,
        closing(new_trainer(training, backend, plan.momentum)) as trainer,
    ):
        found = sweep(
            trainer, training, sweep_lrs(job.low, job.high, job.steps),
            lambda done: listen(Progress(step=done, what="find-lr", done=done, total=job.steps)),
        )  # fmt: skip
        unreadable = training.train_loader.take_failures()
    if len(unreadable) * 10 > job.steps * plan.config.train.batch_size:
        raise DataError(
            f"{counted(len(unreadable), 'image')} cannot be read, e.g. {unreadable[0][1]}; use 'data scan'"
        )
    config = plan.config
    result = FindLrResult(
        backend=backend.id, batch_size=config.train.batch_size, lr_batch=config.optimizer.lr_batch, sweep=found,
        suggestion=suggest_lr(found), seconds=time.perf_counter() - started, plot=job.plot,
    )  # fmt: skip
    if job.plot is not None:
        _plot(job.plot, result, config)
    return result


def _check(job: FindLrJob) -> None:
    if not 0 < job.low < job.high < math.inf:
        raise UsageError(f"rates must rise from above 0, not from {job.low:g} to {job.high:g}")
    if job.steps < LEAST_STEPS * 2:
        raise UsageError(f"a sweep needs {LEAST_STEPS * 2} steps or more, not {job.steps}")
    if rank_info().world > 1:
        raise UsageError("find-lr runs in one process; start it without a launcher")
    if job.plot is not None:
        check_target(job.plot)


def _swept(plan: Plan, steps: int) -> Config:
    """Return the configuration for a sweep: without an EMA or what ends a training, as long as it takes."""
    epochs = -(-steps // steps_per_epoch(len(plan.data.train), plan.config.train.batch_size))
    train = replace(
        plan.config.train, epochs=epochs, minutes=None, patience=None, checkpoint_steps=None, ema_decay=None
    )
    return replace(plan.config, train=train)


def _plot(path: Path, result: FindLrResult, config: Config) -> None:
    from resnext_core.report.lr_plot import LrPlot, write_lr_plot  # jinja2, for those who want a plot

    found = result.suggestion
    write_lr_plot(
        path,
        LrPlot(
            title=f"Learning rate of {config.model.variant}",
            lead=f"Try optimizer.lr={result.lr:g}"
            + (f", which is per {counted(result.lr_batch, 'image')}." if result.lr_batch is not None else "."),
            facts={
                "backend": result.backend, "batch": str(result.batch_size), "optimizer": config.optimizer.kind,
                "steps": str(len(result.sweep.lrs)), "end": "diverged" if result.sweep.diverged else "last rate",
            },
            lrs=result.sweep.lrs.tolist(), losses=result.sweep.losses.tolist(),
            smoothed=result.sweep.smoothed.tolist(),
            suggested={"valley": found.valley, "steepest": found.steepest, "tenth of the lowest": found.tenth},
        ),
    )  # fmt: skip
