"""Check every file of a run folder: configuration, records, checkpoints, pointers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnext_core.errors import DataError, ResnextError
from resnext_core.jobs.settings import stored_config
from resnext_core.plugins import load_plugins
from resnext_core.runs.checkpoint import load_checkpoint
from resnext_core.runs.checkpoint_folder import Summary, checkpoint_age, checkpoint_names
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.pointers import pointer_damages
from resnext_core.runs.records import Note, Record, Saved, Start, count_unknown


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """What was checked of the run `path`, and every problem in a line.

    `unknown` of the `records` are of kinds that this version cannot interpret; a newer version may have written them.
    """

    path: Path
    checkpoints: int
    records: int
    unknown: int
    damages: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "run": str(self.path), "checkpoints": self.checkpoints, "unknown_records": self.unknown,
            "damages": list(self.damages),
        }  # fmt: skip


def verify(folder: Path) -> VerifyResult:
    """Read every file of the run `folder` and compare it with its digest; DataError when it is no run."""
    run = RunFolder.open(folder)
    damages: list[str] = []
    try:
        stored_config(run, load_plugins())
    except ResnextError as error:
        damages.append(str(error))
    damages += [f"{run.records}:{number}: not a JSON record" for number in run.torn_records()]
    names, newest = checkpoint_names(run.checkpoints), None
    for name in names:
        try:
            newest = load_checkpoint(run.checkpoints / name).summary
        except DataError as error:
            damages.append(str(error))
    damages += [*pointer_damages(run.checkpoints, newest), *_missing(run, newest)]
    records = run.read_records()
    return VerifyResult(
        path=run.path, checkpoints=len(names), records=len(records), unknown=count_unknown(records),
        damages=tuple(damages),
    )  # fmt: skip


def _missing(run: RunFolder, newest: Summary | None) -> list[str]:
    """Return which records and checkpoints are missing, by what is left; `newest` is the newest readable checkpoint."""
    records, found = run.read_records(), []
    if newest is not None and not records:
        found.append(f"{run.records} has no records, but {newest.name} exists")
    elif records and not _is_beginning(records):
        found.append(f"{run.records} does not begin with a start record: earlier records are missing")
    elif newest is not None and run.position() < (newest.saving.records or 0):
        found.append(f"{run.records} is shorter than when {newest.name} was saved: records are missing")
    saved = [r.path for r in records if isinstance(r, Saved)]
    present = checkpoint_names(run.checkpoints)
    if saved and (not present or checkpoint_age(saved[-1]) > checkpoint_age(present[-1])):
        found.append(f"{run.checkpoints / saved[-1]} is missing, the last checkpoint in {run.records.name}")
    return found


def _is_beginning(records: Sequence[Record]) -> bool:
    """True where a start record is first, but for notes: a run from --pretrained begins with what it took from it."""
    return isinstance(next((r for r in records if not isinstance(r, Note)), None), Start)
