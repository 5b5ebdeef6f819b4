"""Examine every image file once: what it holds, or why it cannot be decoded; in parallel, and remembered."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial

from PIL import Image

from resnext_core.data.content import BadImage
from resnext_core.data.decode import decode, opened_bytes
from resnext_core.data.exif import upright
from resnext_core.data.pool import Limits, Pool, WorkerDied
from resnext_core.data.scan_cache import Facts as Facts
from resnext_core.data.scan_cache import ScanCache as ScanCache
from resnext_core.data.sources.base import Reader
from resnext_core.data.worker import Memory, Portion
from resnext_core.errors import DataError

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


@dataclass(frozen=True, kw_only=True)
class ScanFile:
    """An image file to examine: its absolute path, the number of its reader, and the locator for that."""

    path: str
    reader: int
    locator: bytes


def scan_files(
    files: Sequence[ScanFile],
    readers: Sequence[Reader],
    cache: ScanCache,
    *,
    workers: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> Scan | None:
    """Return the facts of `files`, reading what `cache` lacks with `workers` processes.

    Each fact is in the cache as soon as it is known, so a scan that was killed continues where it was. A file that
    kills the process that reads it is a bad file. None when `stop` said so. `on_progress` gets files done and in
    all. Raises DataError where no process can be started, and where a source is gone.
    """
    unique = {file.path: file for file in files}
    facts = {}
    for path, file in unique.items():
        known = cache.recall(path, partial(readers[file.reader].stamp, file.locator))
        if known is not None:
            facts[path] = known
    missing = [file for path, file in unique.items() if path not in facts]
    remembered = len(facts)
    on_progress(remembered, len(unique))
    with closing(_examine_all(missing, readers, cache.orphans(list(unique)), workers)) as portions:
        for found in portions:
            for path, fact in found:
                facts[path] = fact
                cache.add(path, fact)
            on_progress(len(facts), len(unique))
            if stop():
                return None
    cache.close(keep=list(unique))
    return Scan(facts={p: facts[p] for p in unique}, read=len(missing), remembered=remembered)


def examine(path: str, reader: Reader, locator: bytes, known: Mapping[str, Facts]) -> Facts:
    """Return the facts of one file; with the bytes of a `known` one (by digest) it is not decoded.

    Raises DataError where its source is gone.
    """
    try:
        size, mtime_ns = reader.stamp(locator)
        content = reader.read(locator)
    except BadImage as error:
        return Facts(size=-1, mtime_ns=-1, error=error.reason)
    except MemoryError:
        return Facts(size=-1, mtime_ns=-1, error="not enough memory to read it")
    facts = Facts(size=size, mtime_ns=mtime_ns)
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 in known:
        return replace(known[sha256], size=facts.size, mtime_ns=facts.mtime_ns)
    remarks: list[str] = []
    turn = upright(content, remarks)
    try:
        with opened_bytes(content, path) as source:
            form, alpha, bits = source.format, source.alpha, source.bits
            image = decode(source, path, remarks=remarks)[0]
    except BadImage as error:
        return replace(facts, sha256=sha256, error=error.reason)
    except MemoryError:
        return replace(facts, error="not enough memory to decode it")
    return replace(
        facts, sha256=sha256, pixels=_pixel_digest(image), width=image.width, height=image.height, format=form,
        remark="; ".join(remarks) or None, orientation=turn, alpha=alpha, bits=bits,
    )  # fmt: skip


def _pixel_digest(image: Image.Image) -> str:
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Facts by path; or why a source can no longer be read."""

    facts: Sequence[tuple[str, Facts]] = ()
    lost: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Examine:
    """The duty of the processes; `known` are facts by the digest of a file's bytes."""

    readers: Sequence[Reader]
    known: Mapping[str, Facts]

    def prepare(self) -> None:
        """Nothing needs to be opened."""

    def do(self, job: Portion[ScanFile], at: Callable[[int], None], memory: Memory) -> _Found:
        found = []
        for number, file in job.files:
            at(number)
            try:
                facts = examine(file.path, self.readers[file.reader], file.locator, self.known)
            except DataError as error:
                return _Found(lost=str(error))
            found.append((file.path, facts))
        return _Found(facts=found)


def _examine_all(
    files: Sequence[ScanFile], readers: Sequence[Reader], known: Mapping[str, Facts], workers: int
) -> Generator[Sequence[tuple[str, Facts]], None, None]:
    """Yield the facts of `files`, some at a time, in any order."""
    duty, numbered = _Examine(readers=readers, known=known), list(enumerate(files))
    portions = deque(Portion(files=numbered[i : i + _PORTION]) for i in range(0, len(numbered), _PORTION))
    try:
        if portions:
            with _pool(duty, min(workers, len(portions))) as pool:
                waiting = 0
                while portions or waiting:
                    while portions and waiting < _WAITING * workers:
                        pool.submit(portions.popleft())
                        waiting += 1
                    yield _facts(pool.result(pool.wait()))
                    waiting -= 1
                suspects = pool.left_out()
            for number in suspects:
                yield [(files[number].path, _examine_alone(number, files[number], duty))]
    except WorkerDied as error:
        raise DataError("image loader processes end at once; check the machine's free memory") from error


def _facts(found: _Found) -> Sequence[tuple[str, Facts]]:
    if found.lost is not None:
        raise DataError(found.lost)
    return found.facts


def _examine_alone(number: int, file: ScanFile, duty: _Examine) -> Facts:
    """Return the facts of a file at which a process died, by one that has nothing else to do."""
    with _pool(duty, 1) as pool:
        found = _facts(pool.result(pool.submit(Portion(files=[(number, file)]))))
        if found:
            return found[0][1]
        pool.result(pool.submit(Portion(files=[])))  # another process works: it was not the machine
    reader = duty.readers[file.reader]
    with suppress(BadImage):
        size, mtime_ns = reader.stamp(file.locator)
        return Facts(
            size=size, mtime_ns=mtime_ns, error="the process that decoded it died",
            sha256=hashlib.sha256(reader.read(file.locator)).hexdigest(),
        )  # fmt: skip
    return Facts(size=-1, mtime_ns=-1, error="it is gone")


def _pool(duty: _Examine, workers: int) -> Pool[Portion[ScanFile], _Found]:
    return Pool(duty, workers, _LIMITS, setting="--workers")
