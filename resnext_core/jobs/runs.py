"""List and show run folders, and remove checkpoints that are not needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from resnext_core.errors import DataError, UsageError, reason
from resnext_core.jobs.recorder import ignore
from resnext_core.metrics import METRICS
from resnext_core.runs.checkpoint_folder import Summary, checkpoint_names, read_summary
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.pointers import best_checkpoint, latest_checkpoint, remove, superfluous
from resnext_core.runs.records import (
    End,
    Eval,
    Fit,
    Listener,
    Nonfinite,
    Note,
    Record,
    Resume,
    Saved,
    Start,
    Train,
)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """How far a run is and how good, by its records and checkpoints; None for what they do not say.

    `state` is ``new``, ``training``, ``stopped`` or ``done``, `ended` why a run that is done ended early. `best` is the
    best value (0..1) of the `metric` that ``train.best`` names, `bytes` the size of the whole folder.
    """

    name: str
    backend: str | None
    variant: str | None
    state: str
    ended: str | None
    step: int
    epoch: int
    epochs: int | None
    best: float | None
    metric: str
    checkpoints: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        plain = asdict(self)
        return {"run": plain.pop("name"), **plain}


@dataclass(frozen=True, kw_only=True)
class RunList:
    """The runs in a folder, by name."""

    folder: Path
    runs: tuple[RunSummary, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {"folder": str(self.folder), "runs": [run.to_dict() for run in self.runs]}


@dataclass(frozen=True, kw_only=True)
class CheckpointEntry:
    """One checkpoint of a run: `summary`, or the `damage` that it has. `marks` are of latest and best."""

    name: str
    marks: tuple[str, ...]
    summary: Summary | None = None
    damage: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        plain: dict[str, Any] = {"name": self.name, "marks": list(self.marks)}
        if self.summary is None:
            return plain | {"damage": self.damage}
        saving = self.summary.saving
        return plain | {
            "step": self.summary.progress.step, "bytes": saving.bytes, "seconds": saving.seconds,
            "blocked_s": saving.blocked_s, "metrics": dict(self.summary.metrics),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunDetails:
    """A run with its checkpoints, oldest first; `made_by` is its backend and environment, as stored."""

    path: Path
    summary: RunSummary
    checkpoints: tuple[CheckpointEntry, ...]
    made_by: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            **self.summary.to_dict(), "path": str(self.path),
            "checkpoints": [entry.to_dict() for entry in self.checkpoints], "made_by": dict(self.made_by),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PruneJob:
    """Remove checkpoints of the run `folder`, or of every run in it, but for latest, best and the `keep` newest."""

    folder: Path
    keep: int = 1
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """What was removed, or would be in a dry run, and the runs that were skipped because they are being trained."""

    removed: tuple[str, ...] = ()
    bytes: int = 0
    being_trained: tuple[str, ...] = field(default=())
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "removed": list(self.removed), "bytes": self.bytes, "being_trained": list(self.being_trained),
            "dry_run": self.dry_run,
        }  # fmt: skip


def list_runs(folder: Path) -> RunList:
    """Return every run in `folder`; DataError when there is none."""
    return RunList(folder=folder, runs=tuple(summarise(run) for run in _runs_in(folder)))


def show_run(folder: Path, listen: Listener = ignore) -> RunDetails:
    """Return the run `folder` with its checkpoints; DataError when it is no run."""
    run = RunFolder.open(folder)
    pointers = {
        "latest": latest_checkpoint(run.checkpoints),
        "best": best_checkpoint(run.checkpoints, lambda line: listen(Note(text=line))),
    }
    entries = []
    for name, found in _checkpoints(run):
        marks = tuple(word for word, target in pointers.items() if target == name)
        what = {"summary": found} if isinstance(found, Summary) else {"damage": found}
        entries.append(CheckpointEntry(name=name, marks=marks, **what))
    made_by = run.read_result("run") or {}
    return RunDetails(path=run.path, summary=summarise(run), checkpoints=tuple(entries), made_by=made_by)


def summarise(run: RunFolder) -> RunSummary:
    """Return how far `run` is and how good."""
    records, checkpoints = run.read_records(), _checkpoints(run)
    turns = [r for r in records if isinstance(r, (Start, Resume, End))]
    newest = next((found for _, found in reversed(checkpoints) if isinstance(found, Summary)), None)
    return RunSummary(
        name=run.path.name,
        backend=(run.read_result("run") or {}).get("backend"),
        variant=run.setting("model", "variant"),
        state=_state(run, turns),
        ended=turns[-1].reason if turns and isinstance(turns[-1], End) else None,
        step=max([r.step for r in records] + ([newest.progress.step] if newest else []), default=0),
        epoch=max((r.epoch for r in records if isinstance(r, (Train, Nonfinite, Eval, Saved))), default=0),
        epochs=_epochs(run, records),
        best=newest.progress.best if newest else None,
        metric=metric if isinstance(metric := run.setting("train", "best"), str) else next(iter(METRICS)),
        checkpoints=len(checkpoints),
        bytes=_bytes(run.path),
    )


def _epochs(run: RunFolder, records: Sequence[Record]) -> int | None:
    """Return the epochs of the run, as far as is known where it is fitted to a time."""
    fits = [r for r in records if isinstance(r, Fit)]
    return math.ceil(fits[-1].epochs) if fits else run.setting("train", "epochs")


def prune(job: PruneJob, listen: Listener = ignore) -> PruneResult:
    """Remove what `job` says; `listen` gets a note for each removal. Raises UsageError, or DataError on a failure."""
    if job.keep < 1:
        raise UsageError(f"--keep must be 1 or more, not {job.keep}")
    folder = job.folder
    runs = [RunFolder(folder)] if (folder / "config.yaml").is_file() else _runs_in(folder)
    removed, busy, freed = [], [], 0
    for run in runs:
        if run.is_training():
            busy.append(str(run.path))
            listen(Note(text=f"skipped {run.path}: it is being trained"))
            continue
        for path in superfluous(run.checkpoints, job.keep):
            size = _bytes(path)
            if not job.dry_run:
                try:
                    remove(path)
                except OSError as error:
                    raise DataError(f"cannot remove {path}: {reason(error)}") from error
            freed += size
            removed.append(str(path))
            listen(Note(text=f"{'would remove' if job.dry_run else 'removed'} {path} ({amount(size)})"))
    return PruneResult(removed=tuple(removed), bytes=freed, being_trained=tuple(busy), dry_run=job.dry_run)


def best_words(run: RunSummary) -> str:
    """Return the best value of a run in percent with the name of its metric; empty before the first evaluation."""
    return "" if run.best is None else f"{100 * run.best:.2f} % {metric_label(run.metric)}"


def metric_label(name: str) -> str:
    """Return how a metric is called; one of another version by its key."""
    return METRICS[name].label if name in METRICS else name


def amount(size: int) -> str:
    """Return bytes for people, in MB or GB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _runs_in(folder: Path) -> list[RunFolder]:
    runs = [RunFolder(path.parent) for path in sorted(folder.glob("*/config.yaml"))]
    if not runs:
        raise DataError(f"no run folder in {folder}")
    return runs


def _checkpoints(run: RunFolder) -> list[tuple[str, Summary | str]]:
    """Return name and summary of every checkpoint, oldest first; the damage instead where there is some."""
    found: list[tuple[str, Summary | str]] = []
    for name in checkpoint_names(run.checkpoints):
        try:
            found.append((name, read_summary(run.checkpoints / name)))
        except DataError as error:
            found.append((name, str(error)))
    return found


def _state(run: RunFolder, turns: Sequence[Start | Resume | End]) -> str:
    if run.is_training():
        return "training"
    if not turns:
        return "new"
    return "done" if isinstance(turns[-1], End) else "stopped"


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and not p.is_symlink()]
    return sum(p.lstat().st_size for p in files)
