"""Files that are whole or not there: atomic writes and digests."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resnext_core.errors import DataError


@contextmanager
def atomic_path(path: Path, *, parents: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it is fsynced and renamed to `path`.

    Missing folders above it are made, unless `parents` is False.

    On any error the temporary file is removed and an old `path` stays as it was. Operating-system errors
    (disk full, read-only folder) become a DataError that names the path.
    """
    temporary = None
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        fsync(temporary)
        os.replace(temporary, path)
        temporary = None
        fsync(path.parent)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: str | bytes, *, parents: bool = True) -> None:
    """Write `data` (text as UTF-8) to `path` as :func:`atomic_path` does; DataError when it cannot be written."""
    with atomic_path(path, parents=parents) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def fsync(path: Path) -> None:
    """Flush a file's or folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """Return ``sha256:<hex>`` of the bytes of `path`."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 18):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def cache_folder() -> Path:
    """Return where to keep what can be had again: ``resnext`` in ``$XDG_CACHE_HOME`` or ``~/.cache``; it may not exist.

    Source: XDG Base Directory Specification.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "resnext"
