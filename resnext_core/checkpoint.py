"""Training checkpoints: a folder written beside and renamed, digested, with `latest` and `best` pointers."""

from __future__ import annotations

import hashlib
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

from resnext_core.errors import DataError
from resnext_core.files import file_digest, fsync, write_atomic
from resnext_core.interfaces import TrainState
from resnext_core.weights import Weights, load_weights, save_weights

FORMAT_VERSION = 2
_STATE, _WEIGHTS, _TENSORS = "state.json", "weights.safetensors", "training.safetensors"
#: Ending of a checkpoint that another one of the same step is about to replace.
_REPLACED = ".replaced"
#: What a killed process leaves in the folder of the checkpoints.
_HALF_WRITTEN = (".step-*.partial", ".latest.*", ".best.*")
#: Field of ``state.json`` with the digest of all its other fields.
_SEAL = "sha256"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands: optimizer steps done, whether the epoch they end was closed (evaluated), best so far."""

    step: int
    epoch_closed: bool
    best: float | None = None
    best_step: int | None = None


@dataclass(frozen=True, kw_only=True)
class Saving:
    """What it took: `bytes` of the tensors on disk, `seconds` to write them, `blocked_s` that training stood still.

    `records` is the length in bytes of the run's ``records.jsonl`` when the state was taken (None: unknown).
    """

    bytes: int
    seconds: float
    blocked_s: float
    records: int | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What ``state.json`` says of a checkpoint; `metrics` are those of the evaluation it closed, if any."""

    name: str
    progress: Progress
    saving: Saving
    metrics: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A checkpoint read back: `weights` are servable, `state` continues the training."""

    path: Path
    weights: Weights
    state: TrainState
    progress: Progress
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
    progress: Progress,
    *,
    run: Mapping[str, Any],
    best: bool,
    keep: int,
    records: int | None = None,
    blocked_s: float = 0.0,
) -> Summary:
    """Write ``folder/step-XXXXXXXX``, then move the pointers, then remove what is beyond the newest `keep`.

    `weights` is what is served (the EMA where there is one). `run` are JSON facts that resume checks: they must
    not change. `records` and `blocked_s` are kept as they are, see :class:`Saving`. Raises DataError when the
    disk refuses; nothing that was there before is lost.
    """
    started = time.perf_counter()
    with _replacing(folder, progress.step) as partial:
        save_weights(weights, partial / _WEIGHTS, parents=False)
        served = _served(weights, state)
        tensors = {k: np.ascontiguousarray(v) for k, v in state.tensors.items() if k.split("/")[0] != served}
        safetensors.numpy.save_file(tensors, partial / _TENSORS)
        fsync(partial / _TENSORS)
        saving = _saving(partial, started, blocked_s, records)
        record = {
            "format": FORMAT_VERSION, "progress": vars(progress), "scalars": dict(state.scalars), "served": served,
            "run": dict(run), "files": {f: file_digest(partial / f) for f in (_WEIGHTS, _TENSORS)},
            "saving": vars(saving), "metrics": dict(weights.metrics),
        }  # fmt: skip
        _write_record(partial, record)
    return _point(folder, progress, saving, weights.metrics, best, keep)


def complete_checkpoint(
    folder: Path,
    progress: Progress,
    metrics: Mapping[str, Any],
    *,
    best: bool,
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
    name = f"step-{progress.step:08d}"
    old = next((p for p in (folder / name, folder / f"{name}{_REPLACED}") if p.is_dir()), folder / name)
    with _readable(old):
        record = _read_record(old)
        before = Saving(**record["saving"])
        weights = load_weights(old / _WEIGHTS).replace(metrics=dict(metrics))
    with _replacing(folder, progress.step) as partial:
        save_weights(weights, partial / _WEIGHTS, parents=False)
        try:
            os.link(old / _TENSORS, partial / _TENSORS)
        except OSError:  # a file system without hard links
            shutil.copyfile(old / _TENSORS, partial / _TENSORS)
            fsync(partial / _TENSORS)
        saving = _saving(partial, started - before.seconds, before.blocked_s + blocked_s, records)
        files = {**record["files"], _WEIGHTS: file_digest(partial / _WEIGHTS)}
        changes = {
            "progress": vars(progress),
            "files": files,
            "saving": vars(saving),
            "metrics": dict(metrics),
        }
        _write_record(partial, {**record, **changes})
    return _point(folder, progress, saving, metrics, best, keep)


def checkpoint_names(folder: Path) -> list[str]:
    """Return the names of all checkpoints in `folder`, oldest first."""
    names = (p.name for p in folder.glob("step-*") if p.is_dir())
    return sorted(names, key=lambda name: (name.removesuffix(_REPLACED), not name.endswith(_REPLACED)))


def best_weights(folder: Path) -> Path:
    """Return the weights file of the best checkpoint, or of the latest where none is best yet (DataError if none)."""
    for name in (pointed(folder, "best"), pointed(folder, "latest"), *reversed(checkpoint_names(folder))):
        path = folder / (name or "-") / _WEIGHTS
        if path.is_file():
            return path
    raise DataError(f"no checkpoint in {folder}")


def read_summary(path: Path) -> Summary:
    """Return what a checkpoint's ``state.json`` says, without reading its tensors; DataError when it is damaged."""
    with _readable(path):
        record = _read_record(path)
        return Summary(
            name=path.name, progress=Progress(**record["progress"]), saving=Saving(**record["saving"]),
            metrics=dict(record["metrics"]),
        )  # fmt: skip


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint folder; DataError when a file is missing or does not have its digest."""
    with _readable(path):
        record = _read_record(path)
        for name in (_WEIGHTS, _TENSORS):
            if file_digest(path / name) != record["files"][name]:
                raise DataError(f"{path / name} is damaged: it does not have the digest in {_STATE}")
        weights, tensors = load_weights(path / _WEIGHTS), safetensors.numpy.load_file(path / _TENSORS)
        if record["served"] is not None:
            tensors |= {f"{record['served']}/{name}": t.copy() for name, t in weights.tensors.items()}
        return Checkpoint(
            path=path,
            weights=weights,
            state=TrainState(tensors=tensors, scalars=dict(record["scalars"])),
            progress=Progress(**record["progress"]),
            run=dict(record["run"]),
            saving=Saving(**record["saving"]),
        )


def load_latest(folder: Path, tell: Callable[[str], None]) -> Checkpoint:
    """Read the newest checkpoint that is whole; `tell` gets a line about each damaged one that was passed over."""
    names = checkpoint_names(folder)
    for name in reversed(names):
        try:
            return load_checkpoint(folder / name)
        except DataError as error:
            tell(f"{error}; trying the checkpoint before it")
    raise DataError(f"no readable checkpoint in {folder}")


def pointed(folder: Path, pointer: str) -> str | None:
    """Return the name that the pointer ``latest`` or ``best`` holds, or None."""
    try:
        return (folder / pointer).read_text().strip() or None
    except OSError:
        return None


def superfluous(folder: Path, keep: int) -> list[Path]:
    """Return what may be removed: checkpoints beyond the newest `keep`, replaced ones, half-written ones and pointers.

    What ``latest`` and ``best`` name stays, however old. For the process that writes into `folder` alone.
    """
    keeping = {pointed(folder, "best"), pointed(folder, "latest")}
    names = checkpoint_names(folder)
    replaced = [name for name in names if name.endswith(_REPLACED)]
    old = [name for name in names if name not in replaced][:-keep]
    gone = [folder / name for name in replaced + old if name not in keeping]
    return gone + [path for part in _HALF_WRITTEN for path in sorted(folder.glob(part))]


def remove(path: Path) -> None:
    """Remove one of the superfluous: a folder or a file; OSError where it cannot be."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _replacing(folder: Path, step: int) -> Iterator[Path]:
    """Yield a folder to write a checkpoint in, which then takes the place of the one of that step, if there is one."""
    name = f"step-{step:08d}"
    final, partial = folder / name, folder / f".{name}.partial"
    try:
        folder.mkdir(
            exist_ok=True
        )  # but not the run around it: one that was moved away must not come back half
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        fsync(partial)
        if final.exists():  # the same step again, e.g. evaluated by now; the old one stays until then
            shutil.rmtree(folder / f"{name}{_REPLACED}", ignore_errors=True)
            os.replace(final, folder / f"{name}{_REPLACED}")
        os.replace(partial, final)
        fsync(folder)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"cannot write checkpoint {final}: {reason}; older checkpoints are kept") from error
    except DataError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _saving(partial: Path, started: float, blocked_s: float, records: int | None) -> Saving:
    """Return what it took to write the tensors into `partial` since `started` (``perf_counter``)."""
    return Saving(
        bytes=sum((partial / f).stat().st_size for f in (_WEIGHTS, _TENSORS)),
        seconds=round(time.perf_counter() - started, 3), blocked_s=round(blocked_s, 3), records=records,
    )  # fmt: skip


def _write_record(partial: Path, record: Mapping[str, Any]) -> None:
    write_atomic(partial / _STATE, json.dumps({**record, _SEAL: _seal(record)}, indent=1), parents=False)


def _point(
    folder: Path, progress: Progress, saving: Saving, metrics: Mapping[str, Any], best: bool, keep: int
) -> Summary:
    """Move the pointers to the checkpoint that was written, and remove what is beyond the newest `keep`."""
    name = f"step-{progress.step:08d}"
    for pointer in ("latest", "best") if best else ("latest",):
        write_atomic(folder / pointer, name, parents=False)
    _sweep(folder, keep)
    return Summary(name=name, progress=progress, saving=saving, metrics=dict(metrics))


def _served(weights: Weights, state: TrainState) -> str | None:
    """Return which group of the state the served weights are, array by array: it need not be stored twice."""
    for group in ("weights", "ema"):
        if all(state.tensors.get(f"{group}/{name}") is t for name, t in weights.tensors.items()):
            return group
    return None


def _sweep(folder: Path, keep: int) -> None:
    for path in superfluous(folder, keep):
        with suppress(OSError):
            remove(path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever a damaged checkpoint does to its reader into a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # a damaged record can be any JSON at all
        raise DataError(f"{path} is not a readable checkpoint: {' '.join(str(error).split())}") from error


def _read_record(path: Path) -> dict[str, Any]:
    """Return ``state.json`` in the present format, its seal checked."""
    record = json.loads((path / _STATE).read_text())
    version = record["format"]
    if version != FORMAT_VERSION:
        raise DataError(f"{path} has checkpoint format {version}, this resnext reads {FORMAT_VERSION}")
    if record.pop(_SEAL) != _seal(record):
        raise DataError(f"{path / _STATE} is damaged: it does not have its own digest")
    return dict(record)


def _seal(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
