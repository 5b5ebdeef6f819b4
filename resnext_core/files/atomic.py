"""Atomic writes, which leave a whole file or none, and digests."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from resnext_core.errors import DataError, UsageError, quoted, reason

#: The beginning of a URL; :class:`pathlib.Path` leaves one slash of the two.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+:)/+")
#: Bytes of a temporary file's name before its random part: 255 in all is what file systems take.
_LONGEST_NAME = 240


def local_path(text: str | Path) -> Path:
    """Return a path that the user gave; UsageError where it is an address like ``https://...``.

    A path that exists is a path, whatever it looks like.
    """
    match = _ADDRESS.match(str(text))
    if match and not os.path.lexists(text):
        address = f"{match[1]}//{str(text)[match.end() :]}"
        raise UsageError(f"{quoted(address)} is a URL, not a file; download it first and give its path")
    return Path(text)


def make_folder(path: Path) -> None:
    """Make `path` and the folders above it where they are missing; OSError that says what stands in the way.

    A link to a folder counts as a folder. A broken link is not followed: it may name a disk that is not mounted, which
    would get a folder in its place.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        if (obstacle := _obstacle(path)) is not None:
            raise OSError(error.errno, obstacle) from error
        raise


def check_folder(path: Path) -> None:
    """Raise OSError where :func:`make_folder` could not make `path`, or no file in it. Nothing stays behind."""
    if (obstacle := _obstacle(path)) is not None:
        raise NotADirectoryError(errno.ENOTDIR, obstacle)
    os.unlink(_create(existing_folder(path), "resnext"))


def existing_folder(path: Path) -> Path:
    """Return `path` or the first above it that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _obstacle(path: Path) -> str | None:
    """Return what stands in the way of a folder `path`, in words."""
    for part in (*reversed(path.parents), path):
        if part.is_symlink() and not part.exists():
            return f"{part} is a link to {os.readlink(part)}, which does not exist"
        if part.exists() and not part.is_dir():
            return f"{part} is a file, not a folder"
    return None


@contextmanager
def atomic_path(path: Path, *, parents: bool = True) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well, what was written there is put in place of `path`.

    Missing folders above it are made, unless `parents` is False. A symbolic link is followed: the file that it names
    is replaced, and the link stays. A replaced file keeps its mode and, where the system allows, its owner. What
    exists and is no regular file (a device, a named pipe), or is a file that is open already (``/dev/stdout``), is
    written into, not replaced: the temporary file is then in the system's temporary folder. A regular file is fsynced
    and renamed.

    On any error the temporary file is removed and an old `path` stays as it was. Operating-system errors
    (disk full, read-only folder) become a DataError that names the path.
    """
    temporary = None
    try:
        descriptor = _open_as(path)
        target = path if descriptor is not None else _target(path)
        if parents and descriptor is None:
            make_folder(target.parent)
        old = _status(target)
        if old is not None and stat.S_ISDIR(old.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        special = descriptor is not None or (old is not None and not stat.S_ISREG(old.st_mode))
        temporary = _create(Path(tempfile.gettempdir()) if special else target.parent, path.name)
        new = os.stat(temporary)
        yield temporary
        if special:
            sys.stdout.flush()  # what was printed before comes before
            with (
                temporary.open("rb") as source,
                open(target if descriptor is None else os.dup(descriptor), "wb") as stream,
            ):
                shutil.copyfileobj(source, stream)
        else:
            _take_over(temporary, old or new)
            fsync(temporary)
            os.replace(temporary, target)
            temporary = None
            fsync(target.parent)
    except OSError as error:
        raise DataError(f"cannot write {path}: {reason(error)}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_target(path: Path) -> None:
    """Raise DataError where :func:`atomic_path` could not write `path`, before work is spent on what goes there.

    Nothing stays behind; what is no regular file is asked for its rights only.
    """
    if _open_as(path) is not None:
        return
    try:
        target = _target(path)
        old = _status(target)
        if old is not None and stat.S_ISDIR(old.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if old is not None and not stat.S_ISREG(old.st_mode):
            if not os.access(target, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        else:
            check_folder(target.parent)
    except OSError as error:
        raise DataError(f"cannot write {path}: {reason(error)}") from error


def write_atomic(path: Path, data: str | bytes, *, parents: bool = True) -> None:
    """Write `data` to `path` as :func:`atomic_path` does; DataError when it cannot be written.

    Text is written as UTF-8; names that are not (surrogates of :func:`os.fsdecode`) become their own bytes again.
    """
    with atomic_path(path, parents=parents) as temporary:
        temporary.write_bytes(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data)


def replace_file(made: Path, path: Path) -> None:
    """Move the regular file `made` to `path` by the rules of :func:`atomic_path`; DataError when that fails.

    The file systems may differ; `path` is then a copy, and whole or not there all the same.
    """
    try:
        target = _target(path)
        old = _status(target)
        if _open_as(path) is None and (old is None or stat.S_ISREG(old.st_mode)):
            if old is not None:
                _take_over(made, old)
            os.replace(made, target)
            fsync(target.parent)
            return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise DataError(f"cannot write {path}: {reason(error)}") from error
    with atomic_path(path) as temporary:
        shutil.copyfile(made, temporary)
    made.unlink()


def place_folder(made: Path, path: Path) -> None:
    """Move the folder `made` to `path`, on the same file system; DataError where there is something already."""
    try:
        for file in (*made.rglob("*"), made):
            fsync(file)
        os.rename(made, path)  # only an empty folder is replaced
        fsync(path.parent)
    except OSError as error:
        raise DataError(f"cannot write {path}: {reason(error)}") from error


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


def files_digest(path: Path, files: Sequence[Path]) -> str:
    """Return the digest of the file `path`, or of the digests of `files` and their names in the folder `path`."""
    if list(files) == [path]:
        return file_digest(path)
    lines = "".join(f"{file_digest(file)} {file.relative_to(path).as_posix()}\n" for file in files)
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def cache_folder() -> Path:
    """Return where to keep what can be had again: ``resnext`` in ``$XDG_CACHE_HOME`` or ``~/.cache``; it may not exist.

    Source: XDG Base Directory Specification.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "resnext"


def _target(path: Path) -> Path:
    """Return what is to be written where `path` is asked for: the end of its symbolic links (OSError in a loop)."""
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


def _open_as(path: Path) -> int | None:
    """Return the descriptor of this process that `path` stands for, as /dev/stdout and /dev/fd/3 do, or None."""
    for _ in range(40):  # as many links as Linux follows
        if not path.is_symlink():
            return None
        parts = Path(os.path.abspath(path)).parts
        if (
            parts[1:2] == ("proc",)
            and parts[2:3] in (("self",), (str(os.getpid()),))
            and parts[3:4] == ("fd",)
        ):
            return int(parts[4])
        path = path.parent / os.readlink(path)
    return None


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _create(folder: Path, name: str) -> Path:
    """Make a new empty file ``.<name>.<random><ending of name>`` in `folder`, with the mode that new files have."""
    ending = Path(name).suffix[:16]
    while len(os.fsencode(name + ending)) > _LONGEST_NAME:
        name = name[:-1]
    while True:
        made = folder / f".{name}.{secrets.token_hex(4)}{ending}"
        try:
            os.close(os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        except FileExistsError:
            continue
        return made


def _take_over(path: Path, old: os.stat_result) -> None:
    """Give `path` the mode of `old`, and its owner where the system allows it."""
    new = os.stat(path)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        with suppress(OSError):
            os.chown(path, old.st_uid, old.st_gid)
    os.chmod(path, stat.S_IMODE(old.st_mode) & 0o777)
