"""Train from scratch, or continue a run, on one or several devices."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnext_core.data.balance import REMEDIES
from resnext_core.data.index import remarks
from resnext_core.errors import counted
from resnext_core.jobs.fitting import with_fitting_batch
from resnext_core.jobs.launching import Lines, launch
from resnext_core.jobs.new_run import backend_of, new_run, removed_if_refused, shared_run, store_config
from resnext_core.jobs.plan import Plan, plan_job, require, training_backend
from resnext_core.jobs.recipes import DEFAULT_RECIPE
from resnext_core.jobs.recorder import Recorder, ignore
from resnext_core.jobs.result import Result
from resnext_core.jobs.settings import AUTO, Settings, resolve_training
from resnext_core.jobs.training import connect, run_training, training_job
from resnext_core.metrics import metric_lines
from resnext_core.plugins import load_plugins
from resnext_core.ranks.info import RankInfo, rank_info
from resnext_core.runs.checkpoint import load_latest
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.pointers import best_weights
from resnext_core.runs.records import End, Eval, Listener, Note, Resume, Start
from resnext_core.training.course import length
from resnext_core.training.imbalance import imbalance, remedies


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """What to train.

    `backend` None takes the best one here, or that of the run that `resume` continues: a run folder, or True for the
    newest in ``settings.output``. `devices` processes are started, unless this process is a rank of a launcher
    already; `lines` is where their first one prints. `command` is what the run says it was made by (None: the command
    line of this process). `of_launch` marks a rank that another process's job has started.
    """

    settings: Settings = field(default_factory=Settings)
    backend: str | None = None
    resume: Path | bool = False
    devices: int = 1
    lines: Lines = "stdout"
    command: str | None = None
    of_launch: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainResult(Result):
    """A trained run. It stands for its folder wherever a path is taken (:func:`os.fspath`)."""

    run: Path

    @property
    def weights(self) -> Path:
        """The weights file of the best checkpoint; DataError where there is none."""
        return best_weights(RunFolder(self.run).checkpoints)

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the best evaluation during the training, shares from 0 to 1; empty without any."""
        records = [r for r in RunFolder(self.run).read_records() if isinstance(r, Eval)]
        best = [r for r in records if r.best] or records
        return dict(best[-1].metrics) if best else {}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {"run": str(self.run), "weights": str(self.weights)}

    def __fspath__(self) -> str:
        return str(self.run)

    def __str__(self) -> str:
        return ", ".join([f"run {self.run}", *metric_lines(self.metrics)])


def train(job: TrainJob, listen: Listener = ignore) -> TrainResult:
    """Train to the last epoch; every rank of a job calls this, and `listen` gets the records on rank 0.

    Raises UsageError, DataError or BackendUnavailable for what would end it before a run folder is made; Interrupted
    after a signal, once the run is saved; RanksFailed where a process that was started failed.
    """
    plugins, rank = load_plugins(), rank_info()
    resolved, resumed = resolve_training(
        job.settings, plugins, resume=job.resume, default_recipe=DEFAULT_RECIPE
    )
    backend = training_backend(plugins, job.backend or backend_of(resumed))
    devices = job.devices if rank.world == 1 else 1
    plan = plan_job(
        resolved.config,
        plugins,
        backend,
        world=devices * rank.world,
        resumed=resumed,
        finds_batch=job.settings.batch_size == AUTO,
        sources=resolved.sources,
    )
    require(plan)
    flags = job.settings.to_flags() if resumed else []
    run = (
        train_plan(plan, rank, listen, command=job.command, notes=not job.of_launch)
        if devices == 1
        else train_on(plan, devices, listen, flags=flags, lines=job.lines, command=job.command)
    )
    return TrainResult(run=run.path)


def train_on(
    plan: Plan, devices: int, listen: Listener, *, flags: list[str], lines: Lines, command: str | None
) -> RunFolder:
    """Train what `plan` says in a process for each of `devices`; returns the run folder.

    `flags` give the ranks what the run's own configuration does not say. The ranks print and record; `listen` learns
    the run folder and what is left out.
    """
    backend = plan.trainer
    run = plan.resumed or new_run(plan.settled, backend, command=command)
    recorder = Recorder(run, listen)
    for note in plan.notes:
        recorder.say(note)
    words = ["train", "--resume", str(run.path), "--no-result", *flags]
    if plan.finds_batch and plan.resumed is None:
        words.append(f"--batch-size={AUTO}")
    launch(backend, plan.config, words, devices=devices, logs=run.logs, lines=lines)
    return run


def train_plan(
    plan: Plan, rank: RankInfo, listen: Listener, *, command: str | None = None, notes: bool = True
) -> RunFolder:
    """Train what `plan` says in this process, as one of `rank.world`; returns the run folder.

    `notes` False: what is left out has been said already.
    """
    backend, fitting = plan.trainer, ""
    with ExitStack() as stack:
        collectives = connect(backend, plan.settled, rank)
        stack.callback(collectives.close)
        if plan.finds_batch:
            if rank.is_main:
                listen(Note(text="looking for the largest batch size that fits"))
            plan, fitting = with_fitting_batch(plan, rank, collectives)
        config, splits, resumed = plan.settled, plan.data, plan.resumed
        run = resumed or shared_run(config, backend, rank, collectives, command)
        emit: Listener = ignore
        say: Callable[[str], None] = ignore
        if rank.is_main:
            if resumed is None:
                stack.enter_context(removed_if_refused(run))
            stack.enter_context(run.training())
            recorder = Recorder(run, listen, tensorboard=config.output.tensorboard)
            emit, say = recorder, recorder.say
            if fitting:
                say(fitting)
                store_config(run, config)
        for note in plan.notes if notes else ():
            say(note)
        checkpoint = None
        if resumed is not None and any(run.checkpoints.glob("step-*")):
            checkpoint = load_latest(run.checkpoints, say)
        training = stack.enter_context(training_job(plan, run, rank, collectives, emit, checkpoint))

        def ready() -> None:
            """Announce the run, now that its device is open, and begin its records."""
            at = f", from step {checkpoint.progress.step}" if checkpoint else ""
            say(
                f"training {config.model.variant} on backend {backend.id}: {counted(len(splits.train), 'image')}, "
                f"{counted(len(splits.train.classes), 'class', 'classes')}, batch {config.train.batch_size}, "
                f"{length(config.train)}{at}; run folder {run.path}"
            )
            say(f"images are decoded by {plan.decoder.name}: {training.train_loader.readers}")
            for line in remarks(splits.parts.values()):
                say(line)
            unlike = imbalance(splits.train)
            if unlike is not None:
                say(f"{unlike}; {', '.join(remedies(config)) or f'see {REMEDIES}'}")
            if resumed is not None and rank.is_main:  # what follows the checkpoint will be written again
                run.rewind((checkpoint.saving.records or 0) if checkpoint else 0)
            if rank.is_main:
                run.write_result("data", splits.counts())
            if checkpoint is None:
                emit(Start(decoder=plan.decoder.name))
                return
            if not training.awaits_evaluation(
                checkpoint.progress
            ):  # else its record is written when it is completed
                training.report_saved(checkpoint.summary)
            emit(Resume(step=checkpoint.progress.step, decoder=plan.decoder.name))

        started = time.perf_counter()
        momentum = None if checkpoint is not None else plan.momentum
        progress = run_training(training, backend, checkpoint, momentum, ready)
        seconds = round(time.perf_counter() - started, 3)
        emit(End(step=progress.step, seconds=seconds, reason=training.why_ended(progress)))
    return run
