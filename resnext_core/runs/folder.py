"""The run folder: resolved configuration, records, log, results."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from resnext_core.config import read_layer
from resnext_core.errors import DataError, UsageError, quoted, reason, shown, suggest
from resnext_core.files import check_folder, make_folder, write_atomic
from resnext_core.files.plain import MOST_JSON, read_text
from resnext_core.runs.records import Record, decode, encode


class RunFolder:
    """A folder holding ``config.yaml``, ``records.jsonl``, ``log.txt``, ``checkpoints/``, results and report."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end, self._has_checkpoints = 0, False

    # -- where things are --------------------------------------------------------------------

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def records(self) -> Path:
        return self.path / "records.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def logs(self) -> Path:
        """Folder of the output of each rank of a run of several processes."""
        return self.path / "ranks"

    # -- making and finding ------------------------------------------------------------------

    @classmethod
    def create(cls, parent: Path, name: str | None, label: str) -> RunFolder:
        """Make a new folder ``parent/name``, or ``parent/<time>-<label>`` without a name.

        Raises DataError when it cannot be made or a run of that name is there already.
        """
        try:
            make_folder(parent)
        except OSError as error:
            raise DataError(f"cannot make the run folder in {parent}: {reason(error)}") from error
        if name is not None:
            check_free(parent, name)
        now = stamp(time.time())
        for attempt in range(100):
            path = parent / (name or f"{now}-{label}{f'-{attempt}' if attempt else ''}")
            try:
                path.mkdir(parents=True)
                return cls(path)
            except FileExistsError:
                continue
            except OSError as error:
                raise DataError(f"cannot make the run folder {path}: {reason(error)}") from error
        raise DataError(f"cannot find a free run folder name in {parent}")

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Return the run at `path`; DataError when there is none."""
        run = cls(path)
        if not run.config.is_file():
            why = "it has no config.yaml" if path.exists() else "it does not exist"
            raise DataError(f"{path} is not a run folder ({why}){other_runs(path)}")
        return run

    @classmethod
    def newest(cls, parent: Path) -> RunFolder:
        """Return the run in `parent` whose records changed last; DataError when there is none."""
        found = [cls(p.parent) for p in parent.glob("*/config.yaml")]
        if not found:
            raise DataError(
                f"no run folder in {parent}; name the run, or give its parent with --output where the command takes it"
            )
        return max(found, key=lambda run: run._changed())

    def _changed(self) -> float:
        """Return when the records changed last, by the file's time; when the run was made, where it has none yet."""
        for path in (self.records, self.config):
            try:
                return path.stat().st_mtime
            except OSError:
                continue
        return 0.0

    # -- records and results -----------------------------------------------------------------

    def append(self, record: Record) -> None:
        """Add a record to ``records.jsonl``, with the time, and hand it to the operating system at once."""
        line = encode(dataclasses.replace(record, time=round(time.time(), 3)))
        try:
            with self.records.open("a", encoding="utf-8") as stream:
                stream.write(line)
                self._end = stream.tell()
        except OSError as error:
            raise DataError(f"cannot write {self.records}: {reason(error)}") from error

    def lost(self) -> list[str]:
        """Return a line for each thing that this process wrote or saw and that is gone: once, when it is noticed.

        For before a record is appended, which makes a new file. A folder that is gone altogether is none of this.
        """
        if not self.path.is_dir():
            return []
        found, position = [], self.position()
        if position < self._end:
            found.append(
                f"{self.records} was deleted or truncated by another program: earlier records are lost"
            )
        there = any(self.checkpoints.glob("step-*"))
        if self._has_checkpoints and not there:
            found.append(
                f"the checkpoints in {self.checkpoints} were deleted by another program: the next is the only one"
            )
        self._end, self._has_checkpoints = position, there
        return found

    def read_records(self) -> list[Record]:
        """Return the records of all whole lines of ``records.jsonl``; a torn last line is left out."""
        return [record for _, record in _lines(self.records) if record is not None]

    def torn_records(self) -> list[int]:
        """Return the numbers of the lines that are not records."""
        return [number for number, record in _lines(self.records) if record is None]

    def position(self) -> int:
        """Return the length of ``records.jsonl`` in bytes: where the next record will start."""
        try:
            return self.records.stat().st_size
        except FileNotFoundError:
            return 0

    def rewind(self, position: int) -> None:
        """Drop the records from `position` on, so that a resumed run repeats none.

        What is kept ends with a whole line, also where the file was torn.
        """
        for leftover in self.path.glob(f".{self.records.name}.*"):  # of a process killed right here
            leftover.unlink(missing_ok=True)
        if self.records.exists():
            kept = self.records.read_bytes()[:position]
            write_atomic(self.records, kept[: kept.rfind(b"\n") + 1], parents=False)
        self._end = self.position()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Hold the run for a training; UsageError when another process trains it now.

        The lock is the kernel's (``flock``): it goes with its process, however that ends. Network file systems
        may not pass it on to other machines.
        """
        path = self.path / "lock"
        try:
            stream = path.open("a")
        except OSError as error:
            raise DataError(f"cannot write {path}: {reason(error)}") from error
        with stream:
            for _ in range(10):  # someone who only looks (`runs list`) holds it for a moment
                if _lock(stream):
                    break
                time.sleep(0.05)
            else:
                raise UsageError(f"{self.path} is being trained by another process; wait for it, or stop it")
            yield

    def is_training(self) -> bool:
        """True while a process holds the run for a training."""
        try:
            with (self.path / "lock").open() as stream:
                return not _lock(stream)
        except OSError:
            return False

    def write_result(self, name: str, value: Any) -> None:
        """Write ``<name>.json`` atomically."""
        write_atomic(self.path / f"{name}.json", json.dumps(value, indent=1), parents=False)

    def read_result(self, name: str) -> Any:
        """Return the content of ``<name>.json``, or None when there is none."""
        try:
            return json.loads(read_text(self.path / f"{name}.json", MOST_JSON))
        except (DataError, ValueError):
            return None

    def setting(self, section: str, key: str) -> Any:
        """Return one value of the stored configuration as it is written, None where it cannot be read."""
        try:
            values = read_layer(self.config).values.get(section)
        except UsageError:
            return None
        return values.get(key) if isinstance(values, Mapping) else None


def stamp(seconds: float) -> str:
    """Return the time in UTC, in seconds since 1970, as names of runs begin with it."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime(seconds))


def check_free(path: Path, name: str) -> None:
    """Raise DataError when there is a run `name` in the folder `path` already, UsageError when it is no name."""
    if {"", ".", ".."} & set(name.split("/")) or "\0" in name:
        raise UsageError(f"output.name must name a folder below output.dir, not {quoted(name)}")
    path = path / name
    if os.path.lexists(path):
        raise DataError(f"{path} already exists; continue it with --resume {path} or choose another --name")


def check_writable(path: Path) -> None:
    """Raise DataError when nothing can be made in the folder `path`, which need not exist yet."""
    try:
        check_folder(path)
    except OSError as error:
        raise DataError(
            f"cannot make the run folder in {path}: {reason(error)}; choose another place with --output"
        ) from error


def run_of(path: Path) -> RunFolder | None:
    """Return the run that `path` is, or lies in: a checkpoint, its weights, an artefact. None where it is elsewhere."""
    path = path.absolute()
    for folder in (path, *path.parents[:3]):
        if (folder / "config.yaml").is_file() and (folder / "run.json").is_file():
            return RunFolder(folder)
    return None


def run_names(folder: Path) -> list[str]:
    """Return the names of the runs in `folder`."""
    return sorted(p.parent.name for p in folder.glob("*/config.yaml"))


def other_runs(path: Path) -> str:
    """Return the end of a message on `path`, which is not a run: the runs in or beside it, or how to make one."""
    inside = run_names(path) if path.is_dir() else []
    if inside:
        return (
            f"; name one of its runs: {', '.join(map(shown, inside[:8]))}{', ...' if len(inside) > 8 else ''}"
        )
    return (
        suggest(path.name, run_names(path.parent)) or "; 'resnext-run train' and 'resnext-run run' make one"
    )


def _lock(stream: IO[str]) -> bool:
    """Take the lock of an open file; False when another open file has it."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _lines(path: Path) -> Iterator[tuple[int, Record | None]]:
    """Yield number and record of each line, None for one that is not a record."""
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        yield from enumerate(map(decode, lines), 1)
