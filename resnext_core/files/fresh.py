"""A large new file that is there as a whole or not at all, and of which `kill -9` leaves nothing."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from resnext_core.errors import DataError, reason
from resnext_core.files.atomic import check_target, fsync, make_folder
from resnext_core.files.scratch import Scratch

#: What says that a file system has no files without a name.
_NO_ANONYMOUS = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)


def check_new(path: Path) -> None:
    """Raise DataError where `path` exists, or :func:`fresh_file` could not write it, before work is spent on it."""
    if os.path.lexists(path):
        raise _exists(path)
    check_target(path)


@contextmanager
def fresh_file(path: Path, *, replace: bool = False) -> Iterator[IO[bytes]]:
    """Yield an empty file, open for reading and writing, that gets the name `path` when the block ends well.

    Until then it has none, where the file system allows it (``O_TMPFILE``), or one in a hidden folder that the next
    call in the same place removes. Missing folders are made. DataError where it cannot be written and, unless
    `replace`, where `path` exists, at the beginning or at the end.
    """
    if not replace and os.path.lexists(path):
        raise _exists(path)
    try:
        make_folder(path.parent)
    except OSError as error:
        raise DataError(f"cannot write {path}: {reason(error)}") from error
    try:
        descriptor = _anonymous(path.parent)
        if descriptor is not None:
            with os.fdopen(descriptor, "w+b") as stream:
                yield stream
                _flush(stream)
                _place(f"/proc/self/fd/{stream.fileno()}", path, replace)
        else:
            with Scratch("new", path.parent) as scratch:
                with (scratch / "file").open("w+b") as stream:
                    yield stream
                    _flush(stream)
                _place(str(scratch / "file"), path, replace)
        fsync(path.parent)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise DataError(f"cannot write {path}: {reason(error)}") from error


def _flush(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _place(made: str, path: Path, replace: bool) -> None:
    """Give the file `made`, which may be a link of /proc, the name `path`; FileExistsError unless `replace`."""
    name = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}") if replace else path
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.link(
            made, name, src_dir_fd=folder, follow_symlinks=True
        )  # it follows the link since a folder is given
    finally:
        os.close(folder)
    if replace:
        os.replace(name, path)


def _anonymous(folder: Path) -> int | None:
    """Return a descriptor of a new file without a name, None where there is no such thing."""
    flag = getattr(os, "O_TMPFILE", 0)
    if not flag or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return os.open(folder, flag | os.O_RDWR, 0o666)
    except OSError as error:
        if error.errno in _NO_ANONYMOUS:
            return None
        raise


def _exists(path: Path) -> DataError:
    return DataError(f"{path} already exists; remove it, or give another name")
