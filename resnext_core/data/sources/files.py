"""Images that are files of their own: what folders and lists hold."""

from __future__ import annotations

import os
from collections.abc import Sequence

from resnext_core.data.content import BadImage, Content, not_regular, read_file
from resnext_core.data.faults import blame
from resnext_core.data.paths import decoded, encoded
from resnext_core.errors import reason
from resnext_core.files import Place


class FileReader:
    """Reads files; a locator is the bytes of an absolute path."""

    def read(self, locator: bytes) -> Content:
        """See :class:`~resnext_core.data.sources.base.Reader`; raises BadImage for what is no regular file."""
        return read_file(decoded(locator))

    def stamp(self, locator: bytes) -> tuple[int, int]:
        """See :class:`~resnext_core.data.sources.base.Reader`."""
        path = decoded(locator)
        try:
            status = os.stat(path)
        except (OSError, ValueError) as error:
            raise BadImage(path, reason(error)) from error
        if (special := not_regular(status.st_mode)) is not None:  # a pipe would be waited for
            raise BadImage(path, special)
        return status.st_size, status.st_mtime_ns


class FileSource:
    """The files `paths` under `root`, which may be relative to the current folder of now."""

    def __init__(self, root: Place, paths: Sequence[str]) -> None:
        self._root, self._paths = os.path.abspath(root), paths

    def locator(self, i: int) -> bytes:
        """Return the bytes of the absolute path of image `i`."""
        return encoded(os.path.join(self._root, self._paths[i]))

    def reader(self) -> FileReader:
        """Return a reader of files, whichever."""
        return FileReader()

    def size(self, i: int) -> int:
        """Return the bytes of image `i`, -1 where it is gone."""
        try:
            return os.stat(self.locator(i)).st_size
        except (OSError, ValueError):
            return -1

    def blame(self, i: int, number: int) -> None:
        """Raise DataError if the folder of image `i` is lost: see :func:`resnext_core.data.faults.blame`."""
        blame(self._root, self._paths, i, number)
