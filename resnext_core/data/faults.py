"""Whose fault it is that a file cannot be read: its own, that of the folder it is in, or the machine's."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from resnext_core.data.index import Index
from resnext_core.errors import DataError, reason, shown

#: The process, or the machine, has too many files open.
_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


def blame(index: Index, sample: int, number: int) -> None:
    """Raise DataError where error `number` of the operating system on image `sample` is not about that file alone.

    That is a folder that is gone, cannot be listed any more, or has lost all its files (as where a file system was
    unmounted), and file descriptors that ran out. Returns where one file is gone or unreadable in a healthy folder.
    """
    path = Path(os.path.abspath(index.path(sample)))
    if number in _DESCRIPTORS:
        raise DataError(
            f"cannot read {shown(path, None)}: {os.strerror(number)}; "
            "raise the limit (ulimit -n) or lower data.workers"
        )
    lost = _lost(path.parent)
    if lost is None and _empty(path.parent) and not _alone(index, path):
        lost = path.parent, "it is empty now"
    if lost is not None:
        raise DataError(
            f"the data folder {shown(lost[0], None)} cannot be read any more: {lost[1]}; bring it back, "
            "look at its rights and at what is mounted"
        )


def _lost(folder: Path) -> tuple[Path, str] | None:
    """Return the uppermost folder of `folder` and those above it that is lost, and why; None where it is well."""
    try:
        with os.scandir(folder):
            return None
    except OSError as error:
        why = reason(error)
    while folder != folder.parent:
        try:
            os.stat(folder.parent)
            break
        except OSError as error:
            folder, why = folder.parent, reason(error)
    return folder, why


def _empty(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return False


def _alone(index: Index, path: Path) -> bool:
    """True where the index has no other image in the folder of `path`."""
    return not any(
        other.parent == path.parent and other != path
        for other in (Path(os.path.abspath(index.path(i))) for i in range(len(index)))
    )
