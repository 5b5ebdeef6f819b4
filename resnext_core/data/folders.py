"""Walking a folder of images: the same order on every machine, links followed, other files counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from resnext_core.data.paths import Paths, encoded
from resnext_core.errors import DataError, reason, shown
from resnext_core.files import Place

#: File names with these endings (in any case) are images; others are ignored and counted. They are what Pillow knows
#: for the formats of :mod:`resnext_core.data.decode`, but for .mpo (JPEG with several views) and .pfm (float pixels).
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".gif", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
#: What is counted in place of an ending, for a file without one and for what is not a file.
NO_ENDING, SPECIAL = "without an ending", "pipe, socket or device"


def is_image(name: str) -> bool:
    """Return whether a file of this name is an image."""
    return name.lower().endswith(SUFFIXES)


class Entry(Protocol):
    """What is in a folder, as :class:`os.DirEntry`."""

    @property
    def name(self) -> str:
        """The last part of its path."""

    @property
    def path(self) -> str:
        """Its whole path."""

    def is_dir(self) -> bool:
        """Return whether it is a folder or a link to one."""

    def is_file(self) -> bool:
        """Return whether it is a regular file or a link to one."""


class Lister(Protocol):
    """Lists folders that are not on this machine."""

    def entries(self, folder: str) -> Sequence[Entry]:
        """Return what is in `folder` without hidden files, in any order; DataError when it cannot be listed."""

    def expect(self, folders: Iterable[str]) -> None:
        """Take note that `folders` will be listed in this order."""


def entries(folder: Place | str, lister: Lister | None = None) -> Sequence[Entry]:
    """Return the entries of a folder without hidden files, in any order; DataError when it cannot be listed."""
    if lister is not None:
        return lister.entries(str(folder))
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise _cannot_list(folder, error) from error


def is_folder(entry: Entry) -> bool:
    """Return whether an entry is a folder or a link to one; False for a broken link or a link to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_image_file(entry: Entry) -> bool:
    """Return whether an entry that is not a folder is an image by its name.

    A broken link counts as an image that cannot be read. A pipe does not count, since reading it could block.
    """
    return is_image(entry.name) and not _is_special(entry)


def ending(entry: Entry) -> str:
    """Return the key under which a file that is not an image is counted: its ending in lower case, with the dot."""
    if _is_special(entry):
        return SPECIAL
    return os.path.splitext(entry.name)[1].lower() or NO_ENDING


def walk(
    folder: Place, prefix: str, paths: Paths, ignored: Counter[str], lister: Lister | None = None
) -> None:
    """Add the images under `folder` to `paths` as `prefix` + relative path, sorted, and count other files by ending.

    `prefix` is empty or ends with ``/``. Links are followed; a link to a folder above itself is not entered again.
    """
    identify = _identity if lister is None else str  # a store has no links
    above: list[object] = [identify(folder)]
    open_folders = [(prefix, _children(folder, ignored, lister))]
    while open_folders:
        at, children = open_folders[-1]
        files: list[bytes] = []
        for name in children:
            if not name.endswith("/"):
                files.append(encoded(name))
                continue
            inside = os.path.join(folder, at[len(prefix) :] + name)
            identity = identify(inside)
            if identity in above:
                continue
            paths.extend(at, files)
            above.append(identity)
            open_folders.append((at + name, _children(inside, ignored, lister)))
            break
        else:
            paths.extend(at, files)
            open_folders.pop()
            above.pop()


def _children(folder: Place | str, ignored: Counter[str], lister: Lister | None) -> Iterator[str]:
    """Return the images of a folder and, with a trailing ``/``, its folders, in the order of the resulting paths."""
    names = []
    for entry in entries(folder, lister):
        if is_folder(entry):
            names.append(f"{entry.name}/")
        elif is_image_file(entry):
            names.append(entry.name)
        else:
            ignored[ending(entry)] += 1
    return iter(sorted(names))


def _is_special(entry: Entry) -> bool:
    try:
        return not entry.is_file() and os.path.exists(entry.path)
    except OSError:
        return False


def _identity(folder: Place | str) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise _cannot_list(folder, error) from error
    return status.st_dev, status.st_ino


def _cannot_list(folder: Place | str, error: OSError) -> DataError:
    return DataError(f"cannot list {shown(folder, 300)}: {reason(error)}; check the path and its permissions")
