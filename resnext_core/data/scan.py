"""Examine every image file once: what it holds, or why it cannot be decoded; in parallel, and remembered."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from resnext_core.data.decode import BadImage, decode, not_regular, opened
from resnext_core.data.pool import Limits, Pool, WorkerDied
from resnext_core.data.scan_cache import Facts as Facts
from resnext_core.data.scan_cache import ScanCache as ScanCache
from resnext_core.errors import DataError, reason
from resnext_core.files import file_digest

#: Files that a process gets at a time, and how many such portions wait for each process.
_PORTION, _WAITING = 8, 2
#: A file at which a process died is examined again, alone. Any number of files may end their processes; processes that
#: end though they read none are the machine's fault.
_LIMITS = Limits(tries=1, deaths=None, idle=3)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Facts of every file that was asked for, by path; how many were read now, and how many were remembered."""

    facts: Mapping[str, Facts]
    read: int
    remembered: int


def scan_files(
    paths: Sequence[str],
    cache: ScanCache,
    *,
    workers: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> Scan | None:
    """Return the facts of `paths` (absolute), reading what `cache` lacks with `workers` processes.

    Each fact is in the cache as soon as it is known, so a scan that was killed continues where it was. A file that
    kills the process that reads it is a bad file. None when `stop` said so. `on_progress` gets files done and in
    all. Raises DataError where no process can be started.
    """
    unique = list(dict.fromkeys(paths))
    facts = {path: known for path in unique if (known := cache.recall(path)) is not None}
    missing = [path for path in unique if path not in facts]
    remembered = len(facts)
    on_progress(remembered, len(unique))
    with closing(_examine_all(missing, cache.orphans(unique), workers)) as portions:
        for found in portions:
            for path, fact in found:
                facts[path] = fact
                cache.add(path, fact)
            on_progress(len(facts), len(unique))
            if stop():
                return None
    cache.close(keep=unique)
    return Scan(facts={p: facts[p] for p in unique}, read=len(missing), remembered=remembered)


def examine(path: str, known: Mapping[str, Facts]) -> Facts:
    """Return the facts of one file; with the bytes of a `known` one (by digest) it is not decoded."""
    try:
        status = os.stat(path)
        special = not_regular(status.st_mode)
        if special is not None:  # a pipe would be waited for
            return Facts(size=-1, mtime_ns=-1, error=special)
        facts = Facts(size=status.st_size, mtime_ns=status.st_mtime_ns)
        sha256 = file_digest(Path(path)).removeprefix("sha256:")
    except OSError as error:
        return Facts(size=-1, mtime_ns=-1, error=reason(error))
    if sha256 in known:
        return replace(known[sha256], size=facts.size, mtime_ns=facts.mtime_ns)
    remarks: list[str] = []
    try:
        with opened(path) as source:
            form = source.format
            image = decode(source, path, remarks=remarks)[0]
    except BadImage as error:
        return replace(facts, sha256=sha256, error=error.reason)
    except MemoryError:
        return replace(facts, error="not enough memory to decode it")
    return replace(
        facts, sha256=sha256, pixels=_pixel_digest(image), width=image.width, height=image.height, format=form,
        remark="; ".join(remarks) or None,
    )  # fmt: skip


def _pixel_digest(image: Image.Image) -> str:
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Portion:
    """Some files, each with its number."""

    files: Sequence[tuple[int, str]]

    @property
    def items(self) -> Sequence[int]:
        return [number for number, _ in self.files]

    def without(self, items: Collection[int]) -> _Portion:
        return _Portion(files=[file for file in self.files if file[0] not in items]) if items else self


_Found = list[tuple[str, Facts]]


@dataclass(frozen=True, kw_only=True)
class _Examine:
    """The duty of the processes; `known` are facts by the digest of a file's bytes."""

    known: Mapping[str, Facts]

    def do(self, job: _Portion, at: Callable[[int], None], memory: int) -> _Found:
        found = []
        for number, path in job.files:
            at(number)
            found.append((path, examine(path, self.known)))
        return found


def _examine_all(
    paths: Sequence[str], known: Mapping[str, Facts], workers: int
) -> Generator[_Found, None, None]:
    """Yield the facts of `paths`, some at a time, in any order."""
    duty, files = _Examine(known=known), list(enumerate(paths))
    portions = deque(_Portion(files=files[i : i + _PORTION]) for i in range(0, len(files), _PORTION))
    try:
        if portions:
            with _pool(duty, min(workers, len(portions))) as pool:
                waiting = 0
                while portions or waiting:
                    while portions and waiting < _WAITING * workers:
                        pool.submit(portions.popleft())
                        waiting += 1
                    yield pool.result(pool.wait())
                    waiting -= 1
                suspects = pool.left_out()
            for number in suspects:
                yield [(paths[number], _examine_alone(number, paths[number], duty))]
    except WorkerDied as error:
        raise DataError("image loader processes end at once; check the machine's free memory") from error


def _examine_alone(number: int, path: str, duty: _Examine) -> Facts:
    """Return the facts of a file at which a process died, by one that has nothing else to do."""
    with _pool(duty, 1) as pool:
        found = pool.result(pool.submit(_Portion(files=[(number, path)])))
        if found:
            return found[0][1]
        pool.result(pool.submit(_Portion(files=[])))  # another process works: it was not the machine
    with suppress(OSError, DataError):
        status = os.stat(path)
        return Facts(
            size=status.st_size, mtime_ns=status.st_mtime_ns, error="the process that decoded it died",
            sha256=file_digest(Path(path)).removeprefix("sha256:"),
        )  # fmt: skip
    return Facts(size=-1, mtime_ns=-1, error="it is gone")


def _pool(duty: _Examine, workers: int) -> Pool[_Portion, _Found]:
    return Pool(duty, workers, _LIMITS, setting="--workers")
