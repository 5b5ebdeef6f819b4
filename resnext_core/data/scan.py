"""Look at every image file once: what it holds, or why it cannot be decoded; in parallel, and remembered."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import PIL
from PIL import Image

from resnext_core.data.decode import BadImage, decode, not_regular, opened
from resnext_core.errors import DataError, reason
from resnext_core.files import file_digest, make_folder, write_atomic

#: Format of the memory; another one, or another Pillow, begins anew.
_FORMAT = 2
#: Files that a process gets at a time, and how many such portions wait for each process.
_PORTION, _WAITING = 8, 2
#: Seconds between two looks at the parent process.
_LOOK_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a file. `pixels` is the digest of size and RGB pixels, None where `error` says why not.

    `sha256` is of the bytes; `width` and `height` are in pixels, 0 where unknown; `format` is Pillow's name.
    `remark` says what is probably wrong with a file that can be read.
    """

    size: int
    mtime_ns: int
    sha256: str = ""
    pixels: str | None = None
    width: int = 0
    height: int = 0
    format: str | None = None
    error: str | None = None
    remark: str | None = None

    @property
    def lasting(self) -> bool:
        """True where the same bytes would give the same again: not for a file that could not be opened."""
        return self.sha256 != ""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Facts of every file that was asked for, by path; how many were read now, and how many were remembered."""

    facts: Mapping[str, Facts]
    read: int
    remembered: int


def scan_files(
    paths: Sequence[str],
    memory: Memory,
    *,
    workers: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> Scan | None:
    """Return the facts of `paths` (absolute), reading what `memory` lacks with `workers` processes.

    Each fact is in the memory as soon as it is known, so a scan that was killed continues where it was. A file that
    kills the process that reads it is a bad file. None when `stop` said so. `on_progress` gets files done and in
    all. Raises DataError where no process can be started.
    """
    unique = list(dict.fromkeys(paths))
    facts = {path: known for path in unique if (known := memory.recall(path)) is not None}
    missing = [path for path in unique if path not in facts]
    remembered = len(facts)
    on_progress(remembered, len(unique))
    with _Readers(workers, memory.orphans(unique)) as readers:
        for found in readers.look(missing):
            for path, fact in found:
                facts[path] = fact
                memory.add(path, fact)
            on_progress(len(facts), len(unique))
            if stop():
                return None
    memory.close(keep=unique)
    return Scan(facts={p: facts[p] for p in unique}, read=len(missing), remembered=remembered)


def look(path: str, known: Mapping[str, Facts]) -> Facts:
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


class Memory:
    """Facts of earlier scans of a data folder, a JSON line each, in ``<folder>/scan-<digest of root>.jsonl``.

    A file whose size and time of change are those of its line is not read again. Where `folder` is None, or cannot be
    written, nothing is remembered; :attr:`trouble` then says why.
    """

    def __init__(self, folder: Path | None, root: Path) -> None:
        self.trouble: str | None = None
        self._stream: IO[str] | None = None
        self._path: Path | None = None
        self._facts: dict[str, Facts] = {}
        if folder is None:
            return
        name = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:16]
        self._path = folder / f"scan-{name}.jsonl"
        self._head = {"format": _FORMAT, "pillow": PIL.__version__, "root": os.path.abspath(root)}
        try:
            make_folder(folder)
            self._facts = self._read()
            if not self._facts:
                self._path.write_text(self._line(self._head), encoding="utf-8")
            self._stream = self._path.open("a", encoding="utf-8", buffering=1)
            self._stream.write("\n")  # the last line may be torn
        except OSError as error:
            self.trouble = f"nothing is remembered: cannot write {self._path}: {reason(error)}"

    def recall(self, path: str) -> Facts | None:
        """Return the facts of a file that has not changed since, None of any other."""
        known = self._facts.get(path)
        if known is None:
            return None
        try:
            status = os.stat(path)
        except OSError:
            return None
        return known if (status.st_size, status.st_mtime_ns) == (known.size, known.mtime_ns) else None

    def orphans(self, paths: Sequence[str]) -> dict[str, Facts]:
        """Return by digest what is known of files that are not among `paths`: they may have moved."""
        present = set(paths)
        return {f.sha256: f for path, f in self._facts.items() if path not in present}

    def add(self, path: str, facts: Facts) -> None:
        """Remember the facts of a file."""
        if self._stream is None or not facts.lasting:
            return
        try:
            self._stream.write(self._line({"path": path, **asdict(facts)}))
        except OSError as error:
            self.trouble = f"no more is remembered: cannot write {self._path}: {reason(error)}"
            self._stream = None
        self._facts[path] = facts

    def close(self, keep: Sequence[str]) -> None:
        """Write the file anew with one line for each of `keep`."""
        if self._stream is None or self._path is None:
            return
        self._stream.close()
        kept = [self._line({"path": p, **asdict(f)}) for p in keep if (f := self._facts.get(p)) is not None]
        try:
            write_atomic(self._path, self._line(self._head) + "".join(kept))
        except DataError as error:
            self.trouble = str(error)

    def _read(self) -> dict[str, Facts]:
        assert self._path is not None
        if not self._path.exists():
            return {}
        found: dict[str, Facts] = {}
        with self._path.open(encoding="utf-8", errors="replace") as stream:
            head = _parse(stream.readline())
            if head != self._head:
                return {}
            for line in stream:
                value = _parse(line)
                if value is None or "path" not in value:  # torn by the end of a process
                    continue
                path = value.pop("path")
                with suppress(TypeError):
                    found[path] = Facts(**value)
        return found

    @staticmethod
    def _line(value: Mapping[str, Any]) -> str:
        return json.dumps(value, ensure_ascii=True) + "\n"


def _parse(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class _Readers:
    """Processes that look at files; one that dies is found out and replaced."""

    def __init__(self, workers: int, known: Mapping[str, Facts]) -> None:
        self._workers, self._known = workers, known
        self._single: ProcessPoolExecutor | None = None

    def __enter__(self) -> _Readers:
        self._stack = ExitStack()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def look(self, paths: Sequence[str]) -> Iterator[list[tuple[str, Facts]]]:
        """Yield the facts of `paths`, some at a time, in any order."""
        portions = [paths[i : i + _PORTION] for i in range(0, len(paths), _PORTION)]
        while portions:
            pool = self._pool(min(self._workers, len(portions)))
            flying: dict[Future[list[Facts]], Sequence[str]] = {}
            try:
                while portions or flying:
                    while portions and len(flying) < _WAITING * self._workers:
                        portion = portions.pop()
                        flying[pool.submit(_look_all, portion)] = portion
                    for done in wait(flying, return_when=FIRST_COMPLETED).done:
                        yield list(zip(flying[done], done.result(), strict=True))
                        del flying[done]
            except BrokenProcessPool:
                for portion in flying.values():
                    for path in portion:
                        yield [(path, self._alone(path))]

    def _alone(self, path: str) -> Facts:
        """Look at a file in a process that has nothing else to do, so that it is known who killed it."""
        if self._single is None:
            self._single = self._pool(1)
        try:
            return self._single.submit(_look_all, [path]).result()[0]
        except BrokenProcessPool:
            self._single = self._pool(1)
        try:
            self._single.submit(_look_all, []).result()
        except BrokenProcessPool:
            raise DataError("processes that read images die at once; is there memory left?") from None
        with suppress(OSError, DataError):
            status = os.stat(path)
            return Facts(
                size=status.st_size, mtime_ns=status.st_mtime_ns, error="the process that decoded it died",
                sha256=file_digest(Path(path)).removeprefix("sha256:"),
            )  # fmt: skip
        return Facts(size=-1, mtime_ns=-1, error="it is gone")

    def _pool(self, workers: int) -> ProcessPoolExecutor:
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), _initialise, (dict(self._known), os.getpid())
        )
        self._stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        return pool


_known: dict[str, Facts] = {}


def _initialise(known: dict[str, Facts], parent: int) -> None:
    """Begin a process; it ends with its parent, however that ends."""
    _known.update(known)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


def _look_all(paths: Sequence[str]) -> list[Facts]:
    return [look(path, _known) for path in paths]
