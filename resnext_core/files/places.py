"""Where data is: a path of the local file system, or a URL of a store."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path, PurePosixPath

_FILE = "file://"
#: Schemes have two letters or more: one is a drive of Windows.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://[^/]")


class Url(os.PathLike[str]):
    """A URL such as ``s3://bucket/folder``, with what :class:`pathlib.Path` has for joining and naming.

    It is a text with parts between slashes; nothing is asked of a store. Slashes at the end are dropped.
    """

    def __init__(self, text: str) -> None:
        self._text = text.rstrip("/")

    def __str__(self) -> str:
        return self._text

    def __fspath__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Url({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Url) and self._text == other._text

    def __lt__(self, other: Url) -> bool:
        return self._text < other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __truediv__(self, name: str) -> Url:
        """Return the place `name` below this one, or beside it with ``..``; a `name` that is a URL itself stands alone.

        No ``..`` leads out of the bucket or the host.
        """
        if is_url(name):
            return Url(name)
        joined = f"{self._text}/{name.lstrip('/')}"
        if ".." not in name.split("/"):
            return Url(joined)
        scheme, sign, below = joined.partition("://")
        first, _, rest = below.partition("/")
        return Url(f"{scheme}{sign}{first}{posixpath.normpath(f'/{rest}')}")

    @property
    def scheme(self) -> str:
        """What stands before ``://``, in lower case."""
        return self._text.partition("://")[0].lower()

    @property
    def name(self) -> str:
        """The last part, '' where there is none but the bucket."""
        return self._below.rpartition("/")[2] if "/" in self._below else ""

    @property
    def parent(self) -> Url:
        """The folder that this is in; that of a bucket is the bucket."""
        return Url(self._text.rpartition("/")[0]) if "/" in self._below else self

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def _below(self) -> str:
        return self._text.partition("://")[2]


#: A path or a URL.
Place = Path | Url


def is_url(text: str) -> bool:
    """Return whether a text is a URL, ``scheme://...``, and not a path."""
    return _URL.match(text) is not None


def place(text: str | os.PathLike[str]) -> Place:
    """Return what a text names, ``file:///...`` too. What exists as a path is a path, whatever it looks like."""
    if isinstance(text, (Path, Url)):
        return text
    text = os.fspath(text)
    if text.startswith(_FILE):
        return Path(text[len(_FILE) :])
    return Url(text) if is_url(text) and not os.path.lexists(text) else Path(text)


def absolute(text: str | os.PathLike[str]) -> str:
    """Return the text of a place that does not depend on the current folder."""
    found = place(text)
    return str(found) if isinstance(found, Url) else os.path.abspath(found)
