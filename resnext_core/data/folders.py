"""Walking a folder of images: in one order on every machine, into every link once, and counting what is no image."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from resnext_core.data.paths import Paths, encoded
from resnext_core.errors import DataError, reason, shown

#: File names with these endings (in any case) are images; others are ignored and counted. They are what Pillow knows
#: for the formats of :mod:`resnext_core.data.decode`, but for .mpo (JPEG with several views) and .pfm (float pixels).
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".gif", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
#: What stands for the ending of a file without one, and of what is no file at all.
NO_ENDING, SPECIAL = "without an ending", "pipe, socket or device"


def is_image(name: str) -> bool:
    """Return whether a file of this name is an image."""
    return name.lower().endswith(SUFFIXES)


def entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """Return what a folder holds but for hidden files, in any order; DataError when it cannot be listed."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise _cannot_list(folder, error) from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one. A link that leads nowhere, or to itself, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_image_file(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry that is no folder is an image by its name.

    So is a broken link: an image that cannot be read. A pipe is none, since reading it could take for ever.
    """
    return is_image(entry.name) and not _is_special(entry)


def ending(entry: os.DirEntry[str]) -> str:
    """Return under what a file that is not an image is counted: its ending in lower case, with its dot."""
    if _is_special(entry):
        return SPECIAL
    return os.path.splitext(entry.name)[1].lower() or NO_ENDING


def walk(folder: Path, prefix: str, paths: Paths, ignored: Counter[str]) -> None:
    """Add the images under `folder` to `paths` as `prefix` + relative path, sorted, and count other files by ending.

    `prefix` is empty or ends with ``/``. Links are followed; a link to a folder above itself is not entered again.
    """
    above = [_identity(folder)]
    open_folders = [(prefix, _children(folder, ignored))]
    while open_folders:
        at, children = open_folders[-1]
        files: list[bytes] = []
        for name in children:
            if not name.endswith("/"):
                files.append(encoded(name))
                continue
            inside = os.path.join(folder, at[len(prefix) :] + name)
            identity = _identity(inside)
            if identity in above:
                continue
            paths.extend(at, files)
            above.append(identity)
            open_folders.append((at + name, _children(inside, ignored)))
            break
        else:
            paths.extend(at, files)
            open_folders.pop()
            above.pop()


def _children(folder: Path | str, ignored: Counter[str]) -> Iterator[str]:
    """Return the images and, with a ``/`` behind, the folders of a folder in the order of the paths that they begin."""
    names = []
    for entry in entries(folder):
        if is_folder(entry):
            names.append(f"{entry.name}/")
        elif is_image_file(entry):
            names.append(entry.name)
        else:
            ignored[ending(entry)] += 1
    return iter(sorted(names))


def _is_special(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.is_file() and os.path.exists(entry.path)
    except OSError:
        return False


def _identity(folder: Path | str) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise _cannot_list(folder, error) from error
    return status.st_dev, status.st_ino


def _cannot_list(folder: Path | str, error: OSError) -> DataError:
    return DataError(f"cannot list {shown(folder, 300)}: {reason(error)}; check the path and its rights")
