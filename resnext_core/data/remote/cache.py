"""A bounded cache on the local disk for bytes that come from far away, shared by any number of processes.

Layout of the folder: ``<2 hex>/<38 hex>`` holds an entry, its content followed by 8 bytes that check it; ``new/`` holds
entries that are being written; ``state`` holds the bytes that are taken and how long ago the oldest entry was used. An
entry is named after the SHA-256 of its key; the key contains the version of the object, so an object that changes
gets another entry.

An entry appears complete or not at all (rename). Nothing is fsynced: what a power failure leaves torn fails its check,
is removed, and is read from its source again. Locks are the kernel's (flock) and end with their process. Use one
folder a machine; a network file system is slower than most object stores.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from resnext_core.errors import reason
from resnext_core.files import make_folder

#: After the content: its CRC-32 and the format of this file.
_TRAILER = struct.Struct("<I4s")
_FORMAT = b"rxc1"
#: Bytes taken by all entries and by those being written, and the time of last use of the oldest entry, in ns.
_STATE = struct.Struct("<qq")
#: Files take whole blocks of the file system; this is the usual size.
_BLOCK = 4096
#: Making room goes down to this share of the limit, so that it is rarely done: it looks at every entry.
_ROOM = 0.9


@dataclass
class Cache:
    """At most `limit` bytes in `folder`. Small and picklable; made once by a job and given to its workers.

    When it is full, the entries that were used least recently make room, but none that was used after `since` (ns since
    1970): by default since the job began. A data set larger than the cache would otherwise push out what an epoch has
    read before the next one asks for it, and few reads would find anything; this way the share of it that fits stays.

    The disk keeps `left_free` bytes for others, such as the checkpoints of a training.

    No method raises: a cache that cannot be used (disk full, no permission, no locks) is only left out, and
    :attr:`trouble` says why in one line.
    """

    folder: Path
    limit: int
    left_free: int = 1 << 30
    since: int = field(default_factory=time.time_ns)
    trouble: str | None = None
    _closed: bool = False

    def get(self, key: str) -> bytes | None:
        """Return the content under `key`, or None. It counts as used now."""
        path = self._path(key)
        try:
            with open(path, "rb", buffering=0) as stream:
                found = stream.readall() or b""
                with suppress(OSError):  # on a disk that is mounted read-only
                    os.utime(stream.fileno() if os.utime in os.supports_fd else path)
        except OSError:
            return None
        content = found[: -_TRAILER.size]
        if len(found) < _TRAILER.size or found[-_TRAILER.size :] != _trailer(content):
            self._remove(path)
            return None
        return content

    def put(self, key: str, content: bytes | memoryview) -> bool:
        """Keep `content` under `key`; False where it was not kept."""
        if self._closed or self.limit <= 0:
            return False
        need = _blocks(len(content) + _TRAILER.size)
        try:
            return need <= self.limit and self._put(self._path(key), content, need)
        except OSError as error:
            self._closed = True
            self.trouble = f"the cache {self.folder} is not used any more: {reason(error)}"
            return False

    def _put(self, path: Path, content: bytes | memoryview, need: int) -> bool:
        new = self.folder / "new"
        make_folder(new)
        disk = os.statvfs(new)
        if disk.f_bavail * disk.f_frsize < need + self.left_free:
            raise OSError(f"less than {self.left_free >> 20} MiB would be left on its disk")
        temporary, descriptor = _create(new, need)
        reserved = False
        try:
            reserved = self._reserve(need, temporary.name)
            if not reserved:
                return False
            _write(descriptor, content)
            _write(descriptor, _trailer(content))
            path.parent.mkdir(exist_ok=True)
            if path.exists():  # another process was faster
                return True
            os.rename(temporary, path)
            reserved = False
            return True
        finally:
            with suppress(OSError):
                os.unlink(temporary)
            os.close(descriptor)
            if reserved:
                self._release(need)

    # -- accounting --------------------------------------------------------------------------------

    def _reserve(self, need: int, own: str) -> bool:
        """Count `need` bytes of the new entry `own` as taken, after making room; False where there can be none."""
        for last in (False, True):
            with self._state() as state:
                if state.taken + need <= self.limit:
                    state.taken += need
                    return True
                if state.oldest >= self.since:  # all of it is in use, by this job or a later one
                    return False
            if last or not self._make_room(need, own):
                return False
        return False

    def _release(self, need: int) -> None:
        with suppress(OSError), self._state() as state:
            state.taken -= need

    def _remove(self, path: Path) -> None:
        """Remove an entry that fails its check."""
        with suppress(OSError):
            size = os.stat(path).st_size
            os.unlink(path)
            self._release(_blocks(size))

    def _make_room(self, need: int, own: str) -> bool:
        """Remove what was used least recently; False where another process is doing it.

        What other processes store meanwhile is counted twice rather than not at all, until this is done again.
        """
        descriptor = os.open(self.folder / "making-room", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _lock(descriptor, wait=False):
                return False
            with self._state() as state:
                before = state.taken
                writing = self._writing(own)
            began = time.time_ns()
            entries = sorted(self._entries())
            taken = sum(size for _, size, _ in entries) + writing
            goal = max(int(self.limit * _ROOM) - need, 0)
            oldest = began  # of what is stored from now on
            for used, size, path in entries:
                if taken <= goal or used >= self.since:
                    oldest = min(oldest, used)
                    break
                with suppress(FileNotFoundError):
                    os.unlink(path)
                taken -= size
            with self._state() as state:
                state.taken, state.oldest = taken + max(state.taken - before, 0), oldest
            return True
        finally:
            os.close(descriptor)

    def _entries(self) -> Iterator[tuple[int, int, str]]:
        """Yield when each entry was used last (ns), the bytes that it takes, and its path."""
        for folder in os.scandir(self.folder):
            if len(folder.name) == 2 and folder.is_dir():
                for entry in os.scandir(folder):
                    with suppress(FileNotFoundError):
                        status = entry.stat()
                        yield status.st_mtime_ns, _blocks(status.st_size), entry.path

    def _writing(self, own: str) -> int:
        """Return the bytes of entries that others are writing; remove what killed processes left."""
        total = 0
        for entry in os.scandir(self.folder / "new"):
            size, _, _ = entry.name.partition("-")
            with suppress(OSError, ValueError):
                descriptor = os.open(entry.path, os.O_RDWR)
                try:
                    if _lock(descriptor, wait=False):
                        os.unlink(entry.path)
                    elif entry.name != own:
                        total += int(size)
                finally:
                    os.close(descriptor)
        return total

    @contextmanager
    def _state(self) -> Iterator[_State]:
        """Yield the state for a change, with no other process changing it."""
        descriptor = os.open(self.folder / "state", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(descriptor)
            found = os.pread(descriptor, _STATE.size, 0)
            # what nobody has counted is counted before anything is stored
            state = _State(*_STATE.unpack(found)) if len(found) == _STATE.size else _State(self.limit, 0)
            before = _State(state.taken, state.oldest)
            yield state
            if state != before:
                os.pwrite(descriptor, _STATE.pack(max(state.taken, 0), state.oldest), 0)
        finally:
            os.close(descriptor)

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:40]
        return self.folder / name[:2] / name[2:]


@dataclass
class _State:
    taken: int
    oldest: int


def _create(folder: Path, need: int) -> tuple[Path, int]:
    """Return a new file for an entry, and its descriptor with a lock on it.

    Whoever makes room counts what is being written by its name, and removes what nobody has locked.
    """
    while True:
        path = folder / f"{need}-{secrets.token_hex(8)}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _lock(descriptor)
            if path.exists():  # it may have been removed before it was locked
                return path, descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _trailer(content: bytes | memoryview) -> bytes:
    return _TRAILER.pack(zlib.crc32(content), _FORMAT)


def _blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _write(descriptor: int, content: bytes | memoryview) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


def _lock(descriptor: int, *, wait: bool = True) -> bool:
    """Lock an open file for this process; False where another one has it. OSError where there are no locks."""
    if sys.platform == "win32":
        raise OSError("this system has no file locks")
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
