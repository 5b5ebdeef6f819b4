"""Paths of many files in little memory: the names of a folder in one block, and each folder stored once."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import overload

_ENCODING, _ERRORS = "utf-8", "surrogateescape"  # as os.fsencode does


def encoded(text: str) -> bytes:
    """Return the bytes of a path, which need not be UTF-8: :func:`os.fsencode`, independent of the locale."""
    return text.encode(_ENCODING, _ERRORS)


def decoded(name: bytes) -> str:
    """Return the text of a path's bytes: :func:`os.fsdecode`, independent of the locale."""
    return name.decode(_ENCODING, _ERRORS)


class StoredTexts(Sequence[str]):
    """A sequence of texts that are made when they are asked for. Equal to any sequence of the same texts."""

    def _one(self, i: int) -> str:
        """Return text `i`, from 0 and below the length."""
        raise NotImplementedError

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[str, ...]: ...
    def __getitem__(self, i: int | slice) -> str | tuple[str, ...]:
        places = range(len(self))[i]
        return self._one(places) if isinstance(places, int) else tuple(map(self._one, places))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class Paths(StoredTexts):
    """Paths with ``/``, in the order in which they were added. Equal to any sequence of the same texts.

    Ten million in ten thousand folders, with names of 19 bytes, take about 240 MB; a tuple of texts takes 900.
    """

    def __init__(self) -> None:
        # of each run of neighbours in one folder: the folder, their names one after another, and the first's index
        self._folders: list[str] = []
        self._pieces: list[bytes] = []
        self._starts = array("Q")
        self._ends = array("I")  # of each name, where it ends in its piece

    def extend(self, folder: str, names: Sequence[bytes]) -> None:
        """Add files of `folder`: ``""``, or a path that ends with ``/``; `names` are their bytes."""
        if not names:
            return
        self._starts.append(len(self._ends))
        self._folders.append(folder)
        self._pieces.append(b"".join(names))
        self._ends.extend(accumulate(map(len, names)))

    def __len__(self) -> int:
        return len(self._ends)

    def _one(self, i: int) -> str:
        run = bisect_right(self._starts, i) - 1
        start = self._ends[i - 1] if i > self._starts[run] else 0
        return self._folders[run] + decoded(self._pieces[run][start : self._ends[i]])

    def __iter__(self) -> Iterator[str]:
        runs = pairwise(chain(self._starts, (len(self),)))
        for folder, piece, (first, end) in zip(self._folders, self._pieces, runs, strict=True):
            start = 0
            for i in range(first, end):
                stop = self._ends[i]
                yield folder + decoded(piece[start:stop])
                start = stop

    def __repr__(self) -> str:
        return f"<{len(self)} paths>"
