"""Training checkpoints: each a folder that is written under another name, with checksums, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from resnext_core.errors import DataError, reason
from resnext_core.files import file_digest, fsync, write_atomic
from resnext_core.interfaces import TrainState
from resnext_core.model.weights import Weights, load_weights, save_weights
from resnext_core.runs.checkpoint_folder import (
    FORMAT_VERSION,
    REPLACED,
    SEAL,
    STATE,
    TENSORS,
    WEIGHTS,
    RunProgress,
    Saving,
    Summary,
    check_files,
    checkpoint_names,
    read_record,
    readable,
    restore_replaced,
    seal,
    step_name,
)
from resnext_core.runs.pointers import damages_at_resume, remove, set_pointers, superfluous


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A checkpoint read back: `weights` are servable, `state` continues the training."""

    path: Path
    weights: Weights
    state: TrainState
    progress: RunProgress
    run: Mapping[str, Any]
    saving: Saving

    @property
    def summary(self) -> Summary:
        """What :func:`read_summary` would return."""
        return Summary(
            name=self.path.name,
            progress=self.progress,
            saving=self.saving,
            metrics=dict(self.weights.metrics),
        )


def save_checkpoint(
    folder: Path,
    weights: Weights,
    state: TrainState,
    progress: RunProgress,
    *,
    run: Mapping[str, Any],
    keep: int,
    records: int | None = None,
    blocked_s: float = 0.0,
) -> Summary:
    """Write ``folder/step-XXXXXXXX``, then move the pointers, then remove what is beyond the newest `keep`.

    `weights` is what is served (the EMA where there is one). `progress` says which step was best: ``best`` names its
    checkpoint, which is never removed. `run` are JSON facts that resume checks: they must not change. `records` and
    `blocked_s` are kept as they are, see :class:`Saving`. Raises DataError when the disk refuses; nothing that was
    there before is lost.
    """
    started = time.perf_counter()
    with _replacing(folder, progress.step) as partial:
        save_weights(weights, partial / WEIGHTS, parents=False)
        served = _served(weights, state)
        tensors = {k: np.ascontiguousarray(v) for k, v in state.tensors.items() if k.split("/")[0] != served}
        safetensors.numpy.save_file(tensors, partial / TENSORS)
        fsync(partial / TENSORS)
        saving = _saving(partial, started, blocked_s, records)
        record = {
            "format": FORMAT_VERSION, "progress": vars(progress), "scalars": dict(state.scalars), "served": served,
            "run": dict(run), "files": {f: file_digest(partial / f) for f in (WEIGHTS, TENSORS)},
            "saving": vars(saving), "metrics": dict(weights.metrics),
        }  # fmt: skip
        _write_record(partial, record)
    return _point(folder, progress, saving, weights.metrics, keep)


def complete_checkpoint(
    folder: Path,
    progress: RunProgress,
    metrics: Mapping[str, Any],
    *,
    keep: int,
    records: int | None = None,
    blocked_s: float = 0.0,
) -> Summary:
    """Write the checkpoint of ``progress.step`` again with what its evaluation found; returns the sum of both savings.

    The state stays as it is: the weights file gets its `metrics`, the file of the other tensors is kept (a hard link,
    or a copy where there are none). Raises DataError when the disk refuses or the checkpoint is damaged; the old one
    is kept until the new one is whole.
    """
    started = time.perf_counter()
    old = folder / step_name(progress.step)
    with readable(old):
        restore_replaced(folder)
        record = read_record(old)
        before = Saving(**record["saving"])
        weights = load_weights(old / WEIGHTS).replace(metrics=dict(metrics))
    with _replacing(folder, progress.step) as partial:
        save_weights(weights, partial / WEIGHTS, parents=False)
        try:
            os.link(old / TENSORS, partial / TENSORS)
        except OSError:  # a file system without hard links
            shutil.copyfile(old / TENSORS, partial / TENSORS)
            fsync(partial / TENSORS)
        saving = _saving(partial, started - before.seconds, before.blocked_s + blocked_s, records)
        files = {**record["files"], WEIGHTS: file_digest(partial / WEIGHTS)}
        changes = {
            "progress": vars(progress),
            "files": files,
            "saving": vars(saving),
            "metrics": dict(metrics),
        }
        _write_record(partial, {**record, **changes})
    return _point(folder, progress, saving, metrics, keep)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint folder; DataError when a file is missing or damaged."""
    with readable(path):
        record = read_record(path)
        check_files(path, record)
        weights, tensors = load_weights(path / WEIGHTS), safetensors.numpy.load_file(path / TENSORS)
        if record["served"] is not None:
            tensors |= {f"{record['served']}/{name}": t.copy() for name, t in weights.tensors.items()}
        return Checkpoint(
            path=path,
            weights=weights,
            state=TrainState(tensors=tensors, scalars=dict(record["scalars"])),
            progress=RunProgress(**record["progress"]),
            run=dict(record["run"]),
            saving=Saving(**record["saving"]),
        )


def load_latest(folder: Path, warn: Callable[[str], None]) -> Checkpoint:
    """Read the newest checkpoint without damage; `warn` gets a line about each damaged one that was skipped.

    And about each damaged pointer: ``latest`` and ``best`` are not needed here, and are written again with the next
    checkpoint.
    """
    for name in reversed(checkpoint_names(folder)):
        try:
            found = load_checkpoint(folder / name)
        except DataError as error:
            warn(f"{error}; trying the previous one")
            continue
        for line in damages_at_resume(folder, found.summary):
            warn(line)
        return found
    raise DataError(f"no readable checkpoint in {folder}")


@contextmanager
def _replacing(folder: Path, step: int) -> Iterator[Path]:
    """Yield a folder to write a checkpoint in, which then replaces that of the same step, if there is one."""
    name = step_name(step)
    final, partial = folder / name, folder / f".{name}.partial"
    try:
        folder.mkdir(
            exist_ok=True
        )  # but not the run around it: one that was moved away must not come back half
        restore_replaced(folder)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        fsync(partial)
        if final.exists():  # the same step again, e.g. evaluated by now; the old one stays until then
            shutil.rmtree(folder / f"{name}{REPLACED}", ignore_errors=True)
            os.replace(final, folder / f"{name}{REPLACED}")
        os.replace(partial, final)
        fsync(folder)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DataError(
            f"cannot write checkpoint {final}: {reason(error)}; older checkpoints are kept"
        ) from error
    except DataError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _saving(partial: Path, started: float, blocked_s: float, records: int | None) -> Saving:
    """Return what it took to write the tensors into `partial` since `started` (``perf_counter``)."""
    return Saving(
        bytes=sum((partial / f).stat().st_size for f in (WEIGHTS, TENSORS)),
        seconds=round(time.perf_counter() - started, 3), blocked_s=round(blocked_s, 3), records=records,
    )  # fmt: skip


def _write_record(partial: Path, record: Mapping[str, Any]) -> None:
    write_atomic(partial / STATE, json.dumps({**record, SEAL: seal(record)}, indent=1), parents=False)


def _point(
    folder: Path, progress: RunProgress, saving: Saving, metrics: Mapping[str, Any], keep: int
) -> Summary:
    """Move the pointers to the checkpoint that was written, and remove what is beyond the newest `keep`."""
    set_pointers(folder, progress)
    _sweep(folder, keep, progress)
    return Summary(name=step_name(progress.step), progress=progress, saving=saving, metrics=dict(metrics))


def _served(weights: Weights, state: TrainState) -> str | None:
    """Return the group of the state that has the very arrays of the served weights: it is not stored twice."""
    for group in ("weights", "ema"):
        if all(state.tensors.get(f"{group}/{name}") is t for name, t in weights.tensors.items()):
            return group
    return None


def _sweep(folder: Path, keep: int, progress: RunProgress) -> None:
    """Remove what the checkpoint of `progress` makes superfluous; it names the best one."""
    steps = (progress.step, progress.best_step)
    for path in superfluous(folder, keep, [step_name(step) for step in steps if step is not None]):
        with suppress(OSError):
            remove(path)
