"""Pack a data set into one file a part, check packed files, and make the index of tar shards."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnext_core.data.index import Index
from resnext_core.data.loader import default_workers
from resnext_core.data.packing import Packed, Smaller
from resnext_core.data.packing import pack as pack_index
from resnext_core.data.sources.names import PACKED, is_shards
from resnext_core.data.sources.packed import damaged, read_packed
from resnext_core.data.sources.shards import keep_index
from resnext_core.errors import DataError, Interrupted, UsageError, shown
from resnext_core.files import Url
from resnext_core.jobs.data import data_info
from resnext_core.jobs.recorder import ignore
from resnext_core.ranks.signals import StopRequest
from resnext_core.runs.records import Listener, Progress

#: Damaged images that an error names, and images between two records of progress.
_NAMED, _STEP = 3, 256


@dataclass(frozen=True, kw_only=True)
class PackJob:
    """Pack `source`, a data folder or one part of it in any form.

    A data folder with parts becomes the folder `target` with ``train.pack``, ``val.pack`` and so on; anything else
    becomes the file `target`. With `side` images get that shorter side, as JPEG of `quality`, in `workers` processes
    (None: one per core, at most 8); without, their bytes are kept.
    """

    source: Path | Url
    target: Path
    side: int | None = None
    quality: int = 90
    workers: int | None = None


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """The packed files by part (``images`` where there is only one), and what each holds."""

    files: Mapping[str, Path]
    parts: Mapping[str, Packed]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            name: {
                "file": str(self.files[name]), "images": part.images, "smaller": part.smaller, "bytes": part.bytes,
                "unreadable": dict(part.unreadable),
            }
            for name, part in self.parts.items()
        }  # fmt: skip


def pack(job: PackJob, listen: Listener = ignore) -> PackResult:
    """Write the packed files; `listen` gets notes on the data and the progress in images.

    Raises UsageError or DataError, and Interrupted on SIGINT or SIGTERM. A file that was not finished is not there.
    """
    if job.side is not None and job.side < 1:
        raise UsageError(f"--side must be 1 or more, not {job.side}")
    if not 1 <= job.quality <= 95:
        raise UsageError(f"--quality must be from 1 to 95, not {job.quality}")
    parts = data_info(job.source, listen).parts
    files = _targets(job.target, parts)
    smaller = None if job.side is None else Smaller(side=job.side, quality=job.quality)
    done: dict[str, Packed] = {}
    with StopRequest() as stop:
        for name, index in parts.items():

            def progress(count: int, total: int, what: str = f"pack {name}") -> None:
                listen(Progress(what=what, done=count, total=total))

            packed = pack_index(
                index, files[name], smaller, workers=job.workers or max(default_workers(), 1),
                on_progress=progress, stop=lambda: stop.requested,
            )  # fmt: skip
            if packed is None:
                raise Interrupted(f"stopped; {files[name]} was not written")
            done[name] = packed
    return PackResult(files=files, parts=done)


def _targets(target: Path, parts: Mapping[str, Index]) -> dict[str, Path]:
    """Return the file of each part; UsageError where one exists or `target` is no name for them."""
    if set(parts) == {"images"}:
        if target.suffix != PACKED:
            raise UsageError(f"{target} must end with {PACKED}: the data is one part and becomes one file")
        files = {"images": target}
    else:
        if target.suffix == PACKED:
            raise UsageError(
                f"the data has the parts {', '.join(parts)}: give the name of a folder for them, not {target}"
            )
        files = {name: target / f"{name}{PACKED}" for name in parts}
    for file in files.values():
        if os.path.lexists(file):
            raise UsageError(f"{file} already exists; remove it, or give another name")
    return files


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """How many images were compared with their checksums, by file; all were as they should be."""

    files: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {"files": dict(self.files)}


def verify(path: Path, listen: Listener = ignore) -> VerifyResult:
    """Read every byte of a packed file, or of those in a folder, and compare checksums.

    Raises DataError that names the damaged file, and the first damaged images in it; UsageError where there is none.
    """
    files = sorted(path.glob(f"*{PACKED}")) if path.is_dir() else [path]
    if not files:
        raise UsageError(f"{path} has no packed files (*{PACKED})")
    counts: dict[str, int] = {}
    for file in files:
        table, bad = read_packed(file), []
        with StopRequest() as stop:
            for count, name in damaged(file, table):
                if name is not None:
                    bad.append(name)
                if count % _STEP == 0 or count == len(table.paths):
                    listen(Progress(what=f"verify {file.name}", done=count, total=len(table.paths)))
                if stop.requested:
                    raise Interrupted("stopped; the same command starts from the beginning")
        if bad:
            more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
            raise DataError(
                f"{file}: {len(bad)} of {len(table.paths)} images are damaged (checksum mismatch): "
                f"{', '.join(shown(name) for name in bad[:_NAMED])}{more}; copy it again, or pack it again"
            )
        counts[str(file)] = len(table.paths)
    return VerifyResult(files=counts)


@dataclass(frozen=True, kw_only=True)
class IndexResult:
    """Where the index of the shards was written, and how many shards and images it has."""

    file: Path
    shards: int
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {"file": str(self.file), "shards": self.shards, "images": self.images}


def make_index(path: str) -> IndexResult:
    """Write the index of tar shards beside them, where every later command finds it; a former one is replaced.

    Raises UsageError where `path` is not of tar shards, DataError where they cannot be indexed or it cannot be written.
    """
    if not is_shards(path):
        raise UsageError(
            f"{path} is not a tar archive, a pattern like a-{{000..127}}.tar, or a folder of archives"
        )
    file, shards, images = keep_index(path)
    return IndexResult(file=file, shards=shards, images=images)
