"""Making the run folder of a training: by one process or several, with the configuration that it is made with."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from resnext_core.config import Config
from resnext_core.errors import Interrupted, ResnextError
from resnext_core.files import absolute, write_atomic
from resnext_core.interfaces import Backend
from resnext_core.jobs.environment import environment
from resnext_core.ranks.collectives import Collectives
from resnext_core.ranks.exchange import from_main
from resnext_core.ranks.info import RankInfo
from resnext_core.runs.folder import RunFolder, stamp
from resnext_core.runs.records import Note, Start


def new_run(
    config: Config, backend: Backend, *, name: str | None = None, command: str | None = None
) -> RunFolder:
    """Make the run folder with its resolved configuration and what it is made with.

    `name` None takes ``output.name``, or the time in UTC. `command` is what the user called; None takes the command
    line of this process. Raises DataError where the folder cannot be made or already exists.
    """
    run = RunFolder.create(Path(config.output.dir), name or config.output.name, config.model.variant)
    store_config(run, config)
    made = environment()
    if command is not None:
        made["command"] = command
    run.write_result("run", {"backend": backend.id, "environment": made})
    return run


def store_config(run: RunFolder, config: Config) -> None:
    """Write the configuration that a run is made with, or what it has become before its first step."""
    write_atomic(run.config, _absolute(config).to_yaml())


def shared_run(
    config: Config, backend: Backend, rank: RankInfo, collectives: Collectives, command: str | None = None
) -> RunFolder:
    """Let rank 0 make the run folder; the other ranks learn its time-stamped name through the collectives."""
    if rank.world == 1:
        return new_run(config, backend, command=command)
    agreed = int(from_main(rank, collectives, np.array([int(time.time())], np.int64))[0])
    name = config.output.name or f"{stamp(agreed)}-{config.model.variant}"
    if rank.is_main:
        run = new_run(config, backend, name=name, command=command)
    else:
        run = RunFolder(Path(config.output.dir) / name)
    collectives.barrier()
    return run


@contextmanager
def removed_if_refused(run: RunFolder) -> Iterator[None]:
    """Remove a new run folder when its training ends before the first step: it would hold nothing but its name."""
    try:
        yield
    except Interrupted:  # it can be resumed, from the start
        raise
    except ResnextError:
        begun = not all(isinstance(record, (Start, Note)) for record in run.read_records())
        if not begun and not run.checkpoints.exists() and not (run.path / "nonfinite").exists():
            shutil.rmtree(run.path, ignore_errors=True)
        raise


def backend_of(run: RunFolder | None) -> str | None:
    """Return the id of the backend that a run was made with; None without a run, or where it does not say."""
    about = run.read_result("run") if run is not None else None
    return about.get("backend") if about else None


def _absolute(config: Config) -> Config:
    """Return the configuration with absolute paths: a run is resumed from anywhere."""
    data, model, train = config.data, config.model, config.train
    if data.dir is not None:
        data = dataclasses.replace(data, dir=absolute(data.dir))
    if data.cache is not None:
        data = dataclasses.replace(data, cache=os.path.abspath(data.cache))
    if data.quarantine is not None:
        data = dataclasses.replace(data, quarantine=os.path.abspath(data.quarantine))
    if model.pretrained is not None:
        model = dataclasses.replace(model, pretrained=os.path.abspath(model.pretrained))
    if train.teacher is not None:
        train = dataclasses.replace(train, teacher=os.path.abspath(train.teacher))
    return dataclasses.replace(config, data=data, model=model, train=train)
