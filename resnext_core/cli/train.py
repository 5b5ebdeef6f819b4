"""``resnext-run train``: train from scratch, or continue a run, on one or several devices."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from resnext_core.cli.common import (
    add_config_flags,
    add_devices_flag,
    add_json_flag,
    add_resume_flag,
    print_config,
    resume_of,
    settings_of,
)  # fmt: skip
from resnext_core.cli.output import Output, ProgressBar
from resnext_core.config import Config
from resnext_core.data.index import remarks
from resnext_core.errors import Interrupted, ResnextError
from resnext_core.files import write_atomic
from resnext_core.interfaces import Backend, LaunchRequest
from resnext_core.jobs.environment import environment
from resnext_core.jobs.plan import Plan, plan_job, require
from resnext_core.jobs.recipes import DEFAULT_RECIPE
from resnext_core.jobs.settings import resolve_training
from resnext_core.jobs.training import connect, run_training, training_job
from resnext_core.plugins import load_plugins
from resnext_core.ranks.children import outliving_terminal
from resnext_core.ranks.info import RankInfo, rank_info
from resnext_core.ranks.launch import launch_local
from resnext_core.runs.checkpoint import load_latest
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.pointers import best_weights
from resnext_core.runs.records import End, Listener, Note, Record, Resume, Start

EPILOG = """\
examples:
  resnext-run train --recipe digits --data DIGITS
  resnext-run train --devices 8 --recipe imagenet-150e --data IMAGENET
  resnext-run train --resume runs/20260101-120000-resnext50_32x4d
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_config_flags(parser)
    add_resume_flag(parser)
    # for a rank of a whole job, whose parent prints the result
    parser.add_argument("--no-result", action="store_true", help=argparse.SUPPRESS)
    add_devices_flag(parser)
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    with outliving_terminal():
        return _handle(args)


def _handle(args: argparse.Namespace) -> int:
    plugins = load_plugins()
    rank = rank_info()
    settings = settings_of(args)
    resolved, resumed = resolve_training(
        settings, plugins, resume=resume_of(args), default_recipe=DEFAULT_RECIPE
    )
    if args.print_config:
        return print_config(resolved)
    config = resolved.config
    backend = plugins.choose(args.backend or backend_of(resumed), "train", lambda b: b.engine is not None)
    output = Output(json_result=args.json, quiet=not rank.is_main)
    several = args.devices > 1 and rank.world == 1
    plan = plan_job(config, plugins, backend, world=args.devices if several else rank.world, resumed=resumed)
    require(plan)  # before a run folder is made
    if several:
        run = resumed or prepare_run(config, backend)
        words = ["train", "--resume", str(run.path), *(settings.to_flags() if resumed else [])]
        return launch(backend, config, run, args.devices, words, args.json)
    for note in () if args.no_result else plan.notes:  # a whole job has said them
        output.say(note)
    run = train(plan, backend, rank, output)
    if rank.is_main and not args.no_result:
        weights = best_weights(run.checkpoints)
        output.result({"run": str(run.path), "weights": str(weights)}, f"weights: {weights}")
    return 0


def train(plan: Plan, backend: Backend, rank: RankInfo, output: Output) -> RunFolder:
    """Train what `plan` says on this process, as one of `rank.world`; returns the run folder."""
    config, splits, resumed = plan.config, plan.data, plan.resumed
    collectives = connect(backend, config, rank)
    with ExitStack() as stack:
        stack.callback(collectives.close)
        run = resumed or _shared_run(config, backend, rank, collectives)
        if rank.is_main:
            if resumed is None:
                stack.enter_context(_gone_if_refused(run))
            stack.enter_context(run.training())
            output.log = run.path / "log.txt"
        bar = ProgressBar(output)
        emit = _sink(run, bar, config) if rank.is_main else _nowhere
        checkpoint = None
        if resumed is not None and any(run.checkpoints.glob("step-*")):
            checkpoint = load_latest(run.checkpoints, output.say)
        job = stack.enter_context(
            training_job(config, backend, splits, run, rank, collectives, emit, checkpoint)
        )

        def ready() -> None:
            """Announce the run, now that its device is open, and begin its records."""
            at = f", from step {checkpoint.progress.step}" if checkpoint else ""
            output.say(
                f"training {config.model.variant} on backend {backend.id}: {len(splits.train)} images, "
                f"{len(splits.train.classes)} classes, batch {config.train.batch_size}, {config.train.epochs} "
                f"epochs{at}; run folder {run.path}"
            )
            for line in remarks(splits.parts.values()):
                output.say(line)
            if resumed is not None and rank.is_main:  # what follows the checkpoint will be written again
                run.rewind((checkpoint.saving.records or 0) if checkpoint else 0)
            if checkpoint is not None:
                if not job.awaits_evaluation(
                    checkpoint.progress
                ):  # else it has its record when it is completed
                    job.report_saved(checkpoint.summary)
                emit(Resume(step=checkpoint.progress.step))
            else:
                emit(Start())

        started = time.perf_counter()
        stack.callback(bar.close)
        progress = run_training(job, backend, checkpoint, ready)
        emit(End(step=progress.step, seconds=round(time.perf_counter() - started, 3)))
        bar.close()
    return run


@contextmanager
def _gone_if_refused(run: RunFolder) -> Iterator[None]:
    """Remove a new run folder when its training ends before the first step: it would only have the name."""
    try:
        yield
    except Interrupted:  # it can be resumed, from the start
        raise
    except ResnextError:
        begun = not all(isinstance(record, (Start, Note)) for record in run.read_records())
        if not begun and not run.checkpoints.exists() and not (run.path / "nonfinite").exists():
            shutil.rmtree(run.path, ignore_errors=True)
        raise


def prepare_run(config: Config, backend: Backend, name: str | None = None) -> RunFolder:
    """Make the run folder with its resolved config and what it is made with."""
    run = RunFolder.create(Path(config.output.dir), name or config.output.name, config.model.variant)
    data, model = config.data, config.model
    if data.dir is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(data, dir=os.path.abspath(data.dir)))
    if data.quarantine is not None:
        listed = os.path.abspath(data.quarantine)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, quarantine=listed))
    if model.pretrained is not None:
        pretrained = os.path.abspath(model.pretrained)
        config = dataclasses.replace(config, model=dataclasses.replace(model, pretrained=pretrained))
    write_atomic(run.config, config.to_yaml())
    run.write_result("run", {"backend": backend.id, "environment": environment()})
    return run


def launch(
    backend: Backend, config: Config, run: RunFolder, devices: int, argv: list[str], json_result: bool
) -> int:
    """Start `devices` ranks of ``resnext-run argv`` and return their exit code."""
    words = ["--backend", backend.id, *argv] + (["--json"] if json_result else [])
    request = LaunchRequest(
        module="resnext_core.cli", argv=words, devices=devices, log_dir=run.logs,
        options=config.backends.get(backend.id),
    )  # fmt: skip
    return (backend.launch or launch_local)(request)


def backend_of(run: RunFolder | None) -> str | None:
    """Return the id of the backend that a run was made with."""
    about = run.read_result("run") if run is not None else None
    return about.get("backend") if about else None


def _shared_run(config: Config, backend: Backend, rank: RankInfo, collectives: Any) -> RunFolder:
    """Let rank 0 make the run folder; other ranks learn its time-stamped name through the collectives."""
    import numpy as np

    if rank.world == 1:
        return prepare_run(config, backend)
    stamp = int(collectives.all_reduce_sum(np.array([int(time.time()) if rank.is_main else 0], np.int64))[0])
    name = (
        config.output.name or time.strftime("%Y%m%d-%H%M%S", time.gmtime(stamp)) + f"-{config.model.variant}"
    )
    run = prepare_run(config, backend, name) if rank.is_main else RunFolder(Path(config.output.dir) / name)
    collectives.barrier()
    return run


def _sink(run: RunFolder, bar: ProgressBar, config: Config) -> Listener:
    """Return a function that sends a record to the run folder, the terminal and, if wanted, TensorBoard."""
    board = _tensorboard(run) if config.output.tensorboard else None

    def emit(record: Record) -> None:
        if record.stored:
            for text in run.lost():
                note = Note(step=record.step, text=text)
                run.append(note)
                bar(note)
            run.append(record)
            if board is not None:
                for key, value in record.to_dict().items():
                    if key not in ("step", "epoch", "seconds") and isinstance(value, (int, float)):
                        board.add_scalar(f"{record.kind}/{key}", value, record.step)
                board.flush()
        bar(record)

    return emit


def _tensorboard(run: RunFolder) -> Any:
    from tensorboardX import SummaryWriter  # that it is there was asked before the run began

    return SummaryWriter(str(run.path))


def _nowhere(record: Record) -> None:
    pass
