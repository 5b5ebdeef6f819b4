"""The bytes of one image file, and the error that says why there are none."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import TypeAlias

from resnext_core.data.png import SIGNATURE as PNG
from resnext_core.errors import DataError, reason
from resnext_core.files import Place

#: First bytes of a JPEG.
JPEG = b"\xff\xd8\xff"
#: JPEG and PNG files above this are refused, since they are read whole: more than any image that is decoded needs.
MAX_BYTES = 1 << 31
#: Files of other formats above this are mapped, not read: only the pages of the first frame are needed.
_MAPPED = 64 << 20

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class BadImage(DataError):
    """An image file that cannot be decoded; the message is one line, `reason` is the message without the path."""

    def __init__(self, path: str | Place, reason: str) -> None:
        super().__init__(f"cannot read image {path}: {reason}")
        self.reason = reason

    @property
    def errno(self) -> int | None:
        """The operating system's error number if that is the cause, None if the image itself is bad."""
        return self.__cause__.errno if isinstance(self.__cause__, OSError) else None


class Mapped(mmap.mmap):
    """A file in memory, read as its pages are touched; libtiff gets the file itself from :meth:`fileno`."""

    _descriptor: int = -1

    @classmethod
    def of(cls, descriptor: int) -> Mapped:
        """Return the whole file of an open `descriptor`, which may be closed afterwards."""
        mapped = cls(descriptor, 0, access=mmap.ACCESS_READ)
        mapped._descriptor = os.dup(descriptor)
        return mapped

    def fileno(self) -> int:
        """Return the descriptor of the file; it is closed with this object."""
        return self._descriptor

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


#: What a source gives for an image: the whole file, as an object with ``len``, slices and the buffer protocol.
Content: TypeAlias = bytes | Mapped


def read_file(path: str | Path) -> Content:
    """Return the content of a regular file, without ever blocking on anything else; raises BadImage.

    A large file of a format other than JPEG and PNG is mapped: see :class:`Mapped`. A JPEG or PNG above
    :data:`MAX_BYTES` is refused.
    """
    try:
        descriptor = open_regular(path)
        with open(descriptor, "rb", buffering=0) as stream:
            size = os.fstat(descriptor).st_size
            if size > _MAPPED:
                head = stream.read(len(PNG)) or b""
                if not head.startswith((PNG, JPEG)):
                    return Mapped.of(descriptor)
                check_bytes(path, size)
                stream.seek(0)
            return stream.readall() or b""
    except (OSError, ValueError, OverflowError) as error:  # ValueError: a null character in the name
        raise BadImage(path, reason(error)[:300]) from error


def check_bytes(path: str | Path, size: int) -> None:
    """Raise BadImage for a JPEG or PNG of `size` bytes that is above the bound."""
    if size > MAX_BYTES:
        raise BadImage(path, f"the file has {size} bytes; the limit for JPEG and PNG is {MAX_BYTES}")


def open_regular(path: str | Path) -> int:
    """Return a descriptor of a regular file, opened without ever blocking; BadImage or OSError otherwise.

    Most other kinds of files are not opened at all.
    """
    why = not_regular(os.stat(path).st_mode)
    if why is None:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        why = not_regular(os.fstat(descriptor).st_mode)  # it may have been replaced since
        if why is None:
            return descriptor
        os.close(descriptor)
    raise BadImage(path, why)


def not_regular(mode: int) -> str | None:
    """Return what kind of file `st_mode` is, as a reason, if it is not a regular file; otherwise None."""
    if stat.S_ISREG(mode):
        return None
    return f"{next((name for test, name in _KINDS if test(mode)), 'something else')}, not a regular file"
