"""Folders behind a URL as the stores list them, for those who walk over folders."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from resnext_core.data.look import WEB
from resnext_core.data.paths import decoded, encoded
from resnext_core.data.remote.access import NotThere, Status
from resnext_core.data.remote.fetch import Fetch
from resnext_core.data.remote.files import Facts, ObjectSource
from resnext_core.errors import DataError
from resnext_core.files import Url

#: Folders that are listed at a time.
_AT_A_TIME = 16


@dataclass(frozen=True)
class Entry:
    """What is in a folder, with what is asked of an :class:`os.DirEntry`."""

    name: str
    path: str
    folder: bool

    def is_dir(self) -> bool:
        """Return whether it is a folder."""
        return self.folder

    def is_file(self) -> bool:
        """Return whether it is an object."""
        return not self.folder


class Tree:
    """The folders below `root`. Sizes and versions of what it lists are kept for :meth:`source`."""

    def __init__(self, root: Url, fetch: Fetch) -> None:
        self.root, self.fetch = root, fetch
        self._facts = Facts()
        self._pool = ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="resnext-list")
        self._coming: dict[str, Future[list[Status]]] = {}
        self._later: deque[str] = deque()

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def expect(self, folders: Iterable[str]) -> None:
        """Begin to list the URLs `folders`, which will be asked for in this order."""
        self._later.extend(map(self._below, folders))
        self._fill()

    def entries(self, folder: str) -> list[Entry]:
        """Return what is in the URL `folder`, without hidden files, in any order; raises as :meth:`Access.names`."""
        folder = self._below(folder)
        found = self._coming.pop(folder, None)
        if found is None:
            listed = self._list(folder)
        else:
            self._fill()
            listed = found.result()
        self._facts.add(
            folder, [(encoded(one.name), one.size, one.version) for one in listed if not one.folder]
        )
        return [
            Entry(name=one.name, path=f"{self.root}/{folder}{one.name}", folder=one.folder) for one in listed
        ]

    def missing(self, folder: bytes, names: Sequence[bytes]) -> set[bytes]:
        """Return which objects ``folder + name`` are not there. A web server need not list its folders."""
        web = self.root.scheme in WEB
        there: set[bytes] = set()
        try:
            there = {
                encoded(one.name) for one in self.entries(f"{self.root}/{decoded(folder)}") if not one.folder
            }
        except NotThere:
            pass
        except DataError:
            if not web:
                raise
        if web and not there.intersection(names):
            return set()  # it has pages in place of listings: each object is looked up when it is read
        return {folder + name for name in names if name not in there}

    def source(self, paths: Sequence[str]) -> ObjectSource:
        """Return the source of the objects `paths`."""
        return self._facts.source(self.root, paths, self.fetch)

    def _below(self, folder: str) -> str:
        """Return a folder as its path below the root: '' for the root, else with ``/`` at its end."""
        path = folder.removeprefix(str(self.root)).strip("/")
        return path and f"{path}/"

    def _fill(self) -> None:
        while self._later and len(self._coming) < _AT_A_TIME:
            folder = self._later.popleft()
            self._coming[folder] = self._pool.submit(self._list, folder)

    def _list(self, folder: str) -> list[Status]:
        beside = ".." in folder.split("/")  # a list may name it
        return self.fetch.access.names(f"{self.root / folder}/" if beside else f"{self.root}/{folder}")
