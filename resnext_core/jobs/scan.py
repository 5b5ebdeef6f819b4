"""Decode every file of a data folder once, and find what would spoil a training."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnext_core.data.findings import Findings, absolute, find
from resnext_core.data.loader import default_workers
from resnext_core.data.look import what_is
from resnext_core.data.quarantine import Quarantine, write_list
from resnext_core.data.scan import ScanCache, ScanFile, scan_files
from resnext_core.errors import Interrupted
from resnext_core.files import Place, cache_folder, check_target
from resnext_core.jobs.data import data_info
from resnext_core.jobs.recorder import ignore
from resnext_core.ranks.signals import StopRequest
from resnext_core.runs.records import Listener, Progress


@dataclass(frozen=True, kw_only=True)
class ScanJob:
    """Scan `folder`, or a list of images.

    The names of corrupt files are written to `list_file`, for ``data.quarantine``. `workers` None means one process
    per core, at most 8. Results are kept in the folder `cache` (None: the user's cache folder) unless `use_cache` is
    False, so that an unchanged file is not read again.
    """

    folder: Place
    list_file: Path | None = None
    workers: int | None = None
    cache: Path | None = None
    use_cache: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanResult:
    """What was found, how many files were `read` and how many were `remembered` from an earlier scan.

    `trouble` says why results could not be cached, None where they were or should not be.
    """

    folder: Place
    findings: Findings
    read: int
    remembered: int
    seconds: float
    list_file: Path | None
    trouble: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "folder": str(self.folder), "read": self.read, "remembered": self.remembered,
            "seconds": round(self.seconds, 3), **self.findings.to_dict(),
            "list": None if self.list_file is None else str(self.list_file),
        }  # fmt: skip


def scan(job: ScanJob, listen: Listener = ignore) -> ScanResult:
    """Decode every file as training does; `listen` gets notes on the data and the progress in files.

    Files that are wrong are in the result and no error. Raises UsageError or DataError where the folder cannot be
    scanned, Interrupted on SIGINT or SIGTERM.
    """
    folder = job.folder
    parts = data_info(folder, listen).parts
    names = Quarantine(folder.parent if what_is(folder) == "file" else folder)
    files = [
        ScanFile(path=absolute(index, i), reader=number, locator=index.source.locator(i))
        for number, index in enumerate(parts.values())
        for i in range(len(index))
    ]
    readers = [index.source.reader() for index in parts.values()]
    if job.list_file is not None:
        check_target(job.list_file)  # before hours of decoding
    cache = ScanCache((job.cache or cache_folder()) if job.use_cache else None, folder)
    started = time.perf_counter()
    with StopRequest() as stop:
        scanned = scan_files(
            files, readers, cache, workers=job.workers or max(default_workers(), 1), stop=lambda: stop.requested,
            on_progress=lambda done, total: listen(Progress(what="scan", done=done, total=total)),
        )  # fmt: skip
    if scanned is None:
        cached = job.use_cache and cache.trouble is None
        raise Interrupted(
            f"stopped; the same command {'continues' if cached else 'starts from the beginning'}"
        )
    seconds = time.perf_counter() - started
    found = find(parts, scanned.facts, names)
    if job.list_file is not None:
        header = "files that cannot be decoded, by resnext-run data scan"
        write_list(job.list_file, [bad.file.name for bad in found.bad], header)
    return ScanResult(
        folder=folder, findings=found, read=scanned.read, remembered=scanned.remembered, seconds=seconds,
        list_file=job.list_file, trouble=cache.trouble,
    )  # fmt: skip
