"""Why a file cannot be read: because of the file itself, its folder, or the machine."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from resnext_core.errors import DataError, reason, shown

#: The process, or the machine, has too many files open.
_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


def blame(root: str, names: Sequence[str], sample: int, number: int) -> None:
    """Raise DataError if the operating system's error `number` on file `sample` of `names` is not about that alone.

    This covers a missing folder, a folder that can no longer be listed or has lost all its files (as when a file
    system is unmounted), and running out of file descriptors. Returns if only one file is missing or unreadable.
    """
    path = Path(os.path.abspath(os.path.join(root, names[sample])))
    blame_machine(path, number)
    lost = _lost(path.parent)
    if lost is None and _empty(path.parent) and not _alone(root, names, path):
        lost = path.parent, "it is empty now"
    if lost is not None:
        raise DataError(
            f"the data folder {shown(lost[0], None)} can no longer be read: {lost[1]}; "
            "check its permissions and whether it is mounted"
        )


def blame_machine(path: Path, number: int) -> None:
    """Raise DataError if the operating system's error `number` on `path` means that too many files are open."""
    if number in _DESCRIPTORS:
        raise DataError(
            f"cannot read {shown(path, None)}: {os.strerror(number)}; "
            "raise the limit (ulimit -n) or lower data.workers"
        )


def _lost(folder: Path) -> tuple[Path, str] | None:
    """Return the topmost of `folder` and its parents that is lost, and why; None if there is none."""
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


def _alone(root: str, names: Sequence[str], path: Path) -> bool:
    """True if there is no other name in the folder of `path`."""
    return not any(
        other.parent == path.parent and other != path
        for other in (Path(os.path.abspath(os.path.join(root, name))) for name in names)
    )
