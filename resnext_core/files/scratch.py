"""Temporary folders that do not outlive their process for long: what `kill -9` leaves, the next one clears away."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import TracebackType


class Scratch:
    """A new empty folder :attr:`path` for one `purpose`, in `parent` or where temporary files go (OSError).

    It is locked by the kernel (``flock``) as long as this process lives, and removed by :meth:`close`. Folders for the
    same purpose in the same place that belong to this user and that nobody has locked were left by killed processes:
    they are removed first, except on systems without locks.
    """

    def __init__(self, purpose: str, parent: Path | None = None) -> None:
        parent = Path(tempfile.gettempdir()) if parent is None else parent
        prefix = f".resnext-{purpose}-"
        _clear(parent, prefix)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            # Another process may have cleared it away before it was locked, or before it was opened.
            try:
                self._descriptor = os.open(self.path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            _lock(self._descriptor, wait=True)
            if self.path.is_dir():
                break
            os.close(self._descriptor)

    def close(self) -> None:
        """Remove the folder with what is in it."""
        if self._descriptor >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _clear(parent: Path, prefix: str) -> None:
    """Remove the folders in `parent` whose processes are gone."""
    for path in parent.glob(f"{prefix}*"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except (OSError, AttributeError):  # no folder, of another user, or no such flags here
            continue
        try:
            if os.fstat(descriptor).st_uid == os.geteuid() and _lock(descriptor, wait=False):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open folder; False where another process holds it, or where that cannot be known."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
