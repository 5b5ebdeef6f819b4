"""Training checkpoints: a folder written beside and renamed, digested, with `latest` and `best` pointers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
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

FORMAT_VERSION = 1
_STATE, _WEIGHTS, _TENSORS = "state.json", "weights.safetensors", "training.safetensors"
#: Ending of a checkpoint that another one of the same step is about to replace.
_REPLACED = ".replaced"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands: optimizer steps done, whether the epoch they end was closed (evaluated), best so far."""

    step: int
    epoch_closed: bool
    best: float | None = None
    best_step: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A checkpoint read back: `weights` are servable, `state` continues the training."""

    path: Path
    weights: Weights
    state: TrainState
    progress: Progress
    run: Mapping[str, Any]


def save_checkpoint(
    folder: Path,
    weights: Weights,
    state: TrainState,
    progress: Progress,
    *,
    run: Mapping[str, Any],
    best: bool,
    keep: int,
) -> Path:
    """Write ``folder/step-XXXXXXXX``, then move the pointers, then remove what is beyond the newest `keep`.

    `weights` is what is served (the EMA where there is one). `run` are JSON facts that resume checks: they must
    not change. Raises DataError when the disk refuses; nothing that was there before is lost.
    """
    name = f"step-{progress.step:08d}"
    final, partial = folder / name, folder / f".{name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_weights(weights, partial / _WEIGHTS)
        tensors = {k: np.ascontiguousarray(v) for k, v in state.tensors.items()}
        safetensors.numpy.save_file(tensors, partial / _TENSORS)
        fsync(partial / _TENSORS)
        record = {
            "format": FORMAT_VERSION,
            "progress": vars(progress),
            "scalars": dict(state.scalars),
            "run": dict(run),
            "files": {f: file_digest(partial / f) for f in (_WEIGHTS, _TENSORS)},
        }
        write_atomic(partial / _STATE, json.dumps(record, indent=1))
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
    write_atomic(folder / "latest", name)
    if best:
        write_atomic(folder / "best", name)
    _prune(folder, keep)
    return final


def checkpoint_names(folder: Path) -> list[str]:
    """Return the names of all checkpoints in `folder`, oldest first."""
    names = (p.name for p in folder.glob("step-*") if p.is_dir())
    return sorted(names, key=lambda name: (name.removesuffix(_REPLACED), not name.endswith(_REPLACED)))


def best_weights(folder: Path) -> Path:
    """Return the weights file of the best checkpoint, or of the latest where none is best yet (DataError if none)."""
    for name in (_pointed(folder, "best"), _pointed(folder, "latest"), *reversed(checkpoint_names(folder))):
        path = folder / name / _WEIGHTS
        if path.is_file():
            return path
    raise DataError(f"no checkpoint in {folder}")


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint folder; DataError when a file is missing or does not have its digest."""
    try:
        record = json.loads((path / _STATE).read_text())
        if record["format"] != FORMAT_VERSION:
            raise DataError(
                f"{path} has checkpoint format {record['format']}, this resnext reads {FORMAT_VERSION}"
            )
        for name, digest in record["files"].items():
            if file_digest(path / name) != digest:
                raise DataError(f"{path / name} is damaged: it does not have the digest in {_STATE}")
        return Checkpoint(
            path=path,
            weights=load_weights(path / _WEIGHTS),
            state=TrainState(
                tensors=safetensors.numpy.load_file(path / _TENSORS), scalars=dict(record["scalars"])
            ),
            progress=Progress(**record["progress"]),
            run=dict(record["run"]),
        )
    except DataError:
        raise
    except Exception as error:  # a damaged record can be any JSON at all
        raise DataError(f"{path} is not a readable checkpoint: {' '.join(str(error).split())}") from error


def load_latest(folder: Path, tell: Callable[[str], None]) -> Checkpoint:
    """Read the newest checkpoint that is whole; `tell` gets a line about each damaged one that was passed over."""
    names = checkpoint_names(folder)
    for name in reversed(names):
        try:
            return load_checkpoint(folder / name)
        except DataError as error:
            tell(f"{error}; trying the checkpoint before it")
    raise DataError(f"no readable checkpoint in {folder}")


def _pointed(folder: Path, pointer: str) -> str:
    try:
        return (folder / pointer).read_text().strip() or "-"
    except OSError:
        return "-"


def _prune(folder: Path, keep: int) -> None:
    """Remove what is beyond the newest `keep`, what was replaced, and what a killed process left half written."""
    keeping = {_pointed(folder, "best"), _pointed(folder, "latest")}
    names = checkpoint_names(folder)
    replaced = [name for name in names if name.endswith(_REPLACED)]
    old = [name for name in names if name not in replaced][:-keep]
    for path in [folder / name for name in replaced + old if name not in keeping]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".step-*.partial"):
        shutil.rmtree(path, ignore_errors=True)
