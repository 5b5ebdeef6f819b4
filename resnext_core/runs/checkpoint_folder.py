"""The folder of checkpoints: which there are, and the ``state.json`` of each, which has a checksum of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnext_core.errors import DataError, one_line
from resnext_core.files import file_digest
from resnext_core.files.plain import MOST_JSON, read_text

FORMAT_VERSION = 2
STATE, WEIGHTS, TENSORS = "state.json", "weights.safetensors", "training.safetensors"
#: Ending of a checkpoint that another one of the same step is about to replace.
REPLACED = ".replaced"
#: Field of ``state.json`` with the digest of all its other fields.
SEAL = "sha256"


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """How far a run is: optimizer steps, whether the epoch they end was closed (evaluated), the best metric so far.

    `waits` are the evaluations since the best one. In a run that is fitted to a time, `seconds` is how long it has
    trained, and `fits` are the decisions on its length, each (step, total steps).
    """

    step: int
    epoch_closed: bool
    best: float | None = None
    best_step: int | None = None
    waits: int = 0
    seconds: float | None = None
    fits: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:  # JSON has lists
        object.__setattr__(self, "fits", tuple((int(step), int(total)) for step, total in self.fits))


@dataclass(frozen=True, kw_only=True)
class Saving:
    """The cost of a checkpoint: `bytes` of the tensors, `seconds` to write them, `blocked_s` that training waited.

    `records` is the length in bytes of the run's ``records.jsonl`` when the state was taken (None: unknown).
    """

    bytes: int
    seconds: float
    blocked_s: float
    records: int | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The content of a checkpoint's ``state.json``; `metrics` are those of the evaluation that completed it, if any."""

    name: str
    progress: RunProgress
    saving: Saving
    metrics: Mapping[str, Any]

    @property
    def best(self) -> str | None:
        """The name of the checkpoint that was best when this one was written, or None."""
        return None if self.progress.best_step is None else step_name(self.progress.best_step)


# -- one checkpoint ------------------------------------------------------------------------------


def step_name(step: int) -> str:
    """Return the name of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def read_record(path: Path) -> dict[str, Any]:
    """Return ``state.json`` of a checkpoint, its format and checksum verified."""
    try:
        text = read_text(path / STATE, MOST_JSON)
    except DataError as error:
        raise DataError(f"{path} is not a readable checkpoint: {STATE}: {error}") from error
    record = json.loads(text)
    version = record["format"]
    if version != FORMAT_VERSION:
        raise DataError(f"{path} has checkpoint format {version}, this version reads {FORMAT_VERSION}")
    if record.pop(SEAL) != seal(record):
        raise DataError(f"{path / STATE} is damaged: checksum mismatch")
    return dict(record)


def read_summary(path: Path) -> Summary:
    """Return the content of a checkpoint's ``state.json`` without reading its tensors; DataError when it is damaged."""
    with readable(path):
        record = read_record(path)
        return Summary(
            name=path.name, progress=RunProgress(**record["progress"]), saving=Saving(**record["saving"]),
            metrics=dict(record["metrics"]),
        )  # fmt: skip


def check_files(path: Path, record: Mapping[str, Any]) -> None:
    """Raise DataError where the checksum of a file of a checkpoint is not the one in `record`."""
    for name in (WEIGHTS, TENSORS):
        if file_digest(path / name) != record["files"][name]:
            raise DataError(f"{path / name} is damaged: checksum mismatch with {STATE}")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn any error of reading a damaged checkpoint into a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # a damaged record can be any JSON at all
        raise DataError(f"{path} is not a readable checkpoint: {one_line(error)}") from error


def seal(record: Mapping[str, Any]) -> str:
    """Return the digest of the fields of ``state.json``."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


# -- all of them ---------------------------------------------------------------------------------


def checkpoint_names(folder: Path) -> list[str]:
    """Return the names of all checkpoints in `folder`, oldest first."""
    names = (p.name for p in folder.glob("step-*") if p.is_dir())
    return sorted(names, key=checkpoint_age)


def checkpoint_age(name: str) -> tuple[int, str, bool]:
    """Return the sort key of a checkpoint: the step, the replaced one first."""
    return len(plain_name(name)), plain_name(name), not name.endswith(REPLACED)


def newest_whole(folder: Path) -> Summary | None:
    """Return the newest checkpoint without damage; None where there is none."""
    for name in reversed(checkpoint_names(folder)):
        try:
            with readable(folder / name):
                check_files(folder / name, read_record(folder / name))
                return read_summary(folder / name)
        except DataError:
            continue
    return None


def newest_readable(folder: Path) -> Summary | None:
    """Return the newest checkpoint whose ``state.json`` is not damaged; its tensors may be."""
    for name in reversed(checkpoint_names(folder)):
        try:
            return read_summary(folder / name)
        except DataError:
            continue
    return None


def readable_before(folder: Path, summary: Summary) -> Summary | None:
    """Return the newest checkpoint before that of `summary` whose ``state.json`` is not damaged."""
    for name in reversed(checkpoint_names(folder)):
        if checkpoint_age(plain_name(name)) < checkpoint_age(plain_name(summary.name)):
            try:
                return read_summary(folder / name)
            except DataError:
                continue
    return None


def find_checkpoint(folder: Path, name: str) -> Path | None:
    """Return the folder of the checkpoint `name`; None where it does not exist."""
    found = (folder / name, folder / f"{name}{REPLACED}")
    return next((path for path in found if (path / WEIGHTS).is_file()), None)


def restore_replaced(folder: Path) -> None:
    """Rename a replaced checkpoint back where its successor was not finished because the process was killed."""
    for name in checkpoint_names(folder):
        if name.endswith(REPLACED) and not (folder / plain_name(name)).exists():
            (folder / name).rename(folder / plain_name(name))


def plain_name(name: str) -> str:
    """Return the name without the ending of a replaced one."""
    return name.removesuffix(REPLACED)
