"""What is at a place, on this machine or behind a URL: a file, a folder, nothing."""

from __future__ import annotations

import fnmatch
import os
import re
from dataclasses import dataclass
from typing import Literal

from resnext_core.data.folders import entries, is_folder
from resnext_core.data.remote.access import Access, NotThere, Unreachable
from resnext_core.data.sources.names import expanded
from resnext_core.errors import DataError
from resnext_core.files import Place, Url

WEB = ("http", "https")


@dataclass(frozen=True, kw_only=True)
class Names:
    """The names in a folder, sorted."""

    folders: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def what_is(where: Place, access: Access | None = None) -> Literal["file", "folder"] | None:
    """Return what is at a place, None where there is nothing; DataError where its store cannot be asked.

    A web server does not tell a page from a file: there, what has an ending is a file.
    """
    if not isinstance(where, Url):
        return "file" if os.path.isfile(where) else "folder" if os.path.isdir(where) else None
    found = (access or Access()).status(str(where))
    if where.scheme in WEB:
        if where.suffix:
            return None if found is None else "file"
        return "folder" if found is not None or _is_listed(where, access) else None
    return None if found is None else "folder" if found.folder else "file"


def names_in(folder: Place, access: Access | None = None) -> Names:
    """Return what is in a folder, without hidden files; a web server that lists nothing has nothing in it."""
    if not isinstance(folder, Url):
        found = entries(folder)
        return Names(
            folders=tuple(sorted(entry.name for entry in found if is_folder(entry))),
            files=tuple(sorted(entry.name for entry in found if os.path.isfile(entry.path))),
        )
    try:
        listed = (access or Access()).names(f"{folder}/")
    except DataError as error:
        if folder.scheme not in WEB or isinstance(error, Unreachable):
            raise
        return Names()
    return Names(
        folders=tuple(sorted(one.name for one in listed if one.folder)),
        files=tuple(sorted(one.name for one in listed if not one.folder)),
    )


def matching(pattern: Place, access: Access | None = None) -> list[str]:
    """Return the names of the files that a place stands for, in order: with braces, with ``*``, or one name as it is.

    DataError where one of those in braces is not there, or where no name matches.
    """
    folder, name = pattern.parent, pattern.name
    if not re.search(r"[{*?\[]", name):
        return [name]
    names = names_in(folder, access).files
    if "{" not in name:
        found = fnmatch.filter(names, name)
        if not found:
            raise DataError(f"there are no files {pattern}; correct the pattern")
        return found
    wanted = expanded(name)
    if isinstance(folder, Url) and folder.scheme in WEB and not names:
        return wanted  # a web server that lists nothing: each is asked for when it is opened
    there = set(names)
    if missing := [one for one in wanted if one not in there]:
        raise DataError(
            f"{len(missing)} of the {len(wanted)} files of {pattern} are missing, e.g. {folder / missing[0]}; "
            "correct the pattern, or copy them"
        )
    return wanted


def _is_listed(folder: Url, access: Access | None) -> bool:
    try:
        return bool((access or Access()).names(f"{folder}/"))
    except NotThere:
        return False
