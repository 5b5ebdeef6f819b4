"""Lists of image files that cannot be read, so that they are not tried again.

A UTF-8 text file (a name that is not UTF-8 is stored as its bytes) with one path per line, with forward slashes,
relative to the data folder, or to the folder of a list or a packed file (absolute, or a URL, if outside); empty lines
and lines that begin with # are ignored. ``resnext-run data scan --list`` writes one, and a run with
``data.bad_images: quarantine`` keeps its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from resnext_core.data.index import Index
from resnext_core.data.lines import byte_lines
from resnext_core.data.paths import decoded, encoded
from resnext_core.errors import DataError, UsageError, reason
from resnext_core.files import Place, absolute, is_url, write_atomic


def read_list(path: Path) -> tuple[str, ...]:
    """Return the paths of a list; UsageError when it cannot be read."""
    try:
        with path.open("rb") as stream:
            lines = [decoded(line) for line in byte_lines(stream, str(path))]
    except (OSError, DataError) as error:
        raise UsageError(f"cannot read the quarantine list {path}: {reason(error)}") from error
    return tuple(line for line in lines if line and not line.startswith("#"))


def write_list(path: Path, names: Iterable[str], header: str = "") -> None:
    """Write the sorted `names` atomically, under `header` as comments; DataError when it cannot be written.

    A name with a line break, which a member of an archive may have, is left out: it would be two other names.
    """
    comments = "".join(f"# {line}\n" for line in header.splitlines())
    write_atomic(
        path, encoded(comments + "".join(f"{name}\n" for name in sorted(set(names)) if "\n" not in name))
    )


class Quarantine:
    """The unreadable files of the data in `folder`: those of the list `known`, and those that this run finds.

    `folder` may also be what is not a folder: a list, a packed file, a pattern of shards. With `own` the files that
    this run finds are added to that file at once, one line each, and read back when the run is resumed.
    """

    def __init__(self, folder: Place, *, known: Path | None = None, own: Path | None = None) -> None:
        self._folder, self._own = absolute(folder), own
        if not is_url(self._folder) and not os.path.isdir(self._folder):
            self._folder = os.path.dirname(self._folder)
        self._names = set(read_list(known)) if known is not None else set()
        if own is not None and own.exists():
            self._names |= set(read_list(own))

    def indices(self, index: Index) -> set[int]:
        """Return which images of `index` are listed."""
        if not self._names:
            return set()
        files = {name.rpartition("/")[2] for name in self._names}  # a fast filter for millions of names
        alike = (i for i, path in enumerate(index.paths) if path.rpartition("/")[2] in files)
        return {i for i in alike if self.name(index, i) in self._names}

    def add(self, index: Index, sample: int) -> None:
        """Add an image that could not be read; DataError when the list cannot be written."""
        name = self.name(index, sample)
        if name in self._names:
            return
        self._names.add(name)
        if self._own is None or "\n" in name:
            return
        try:
            with self._own.open("ab") as stream:  # one short write is atomic beside those of other ranks
                stream.write(os.fsencode(f"{name}\n"))
        except OSError as error:
            raise DataError(f"cannot write {self._own}: {reason(error)}") from error

    def name(self, index: Index, sample: int) -> str:
        """Return the name of an image in a list."""
        path = absolute(index.path(sample))
        if is_url(self._folder) or is_url(path):
            return path.removeprefix(f"{self._folder}/")
        relative = os.path.relpath(path, self._folder)
        return Path(path if relative.startswith("..") else relative).as_posix()
