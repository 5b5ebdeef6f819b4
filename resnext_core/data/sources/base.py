"""What a source of images is: it knows where each image lies, and gives a reader that workers read them with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from resnext_core.data.content import Content
from resnext_core.files import Place


class Reader(Protocol):
    """Reads the image files of a source by locator, in any process, with any number of threads at once.

    It is pickled for each worker, so it is small and opens its files when it first needs them.
    """

    def read(self, locator: bytes) -> Content:
        """Return the whole image file at `locator`.

        Raises BadImage where this image cannot be read, and DataError where no image can: the source is gone or
        has changed.
        """

    def stamp(self, locator: bytes) -> tuple[int, int]:
        """Return size in bytes and time of the last change in ns; the same as long as the bytes are the same.

        Raises BadImage or DataError as :meth:`read`.
        """


@runtime_checkable
class RemoteReader(Reader, Protocol):
    """A reader that waits less when it knows what comes."""

    def ahead(self, locators: Sequence[bytes]) -> None:
        """Begin to read what :meth:`read` will be called with."""

    def take_notes(self) -> list[str]:
        """Return what someone should know, once each."""


class ImageSource(Protocol):
    """The images of an index, by their position in it; it stays in the main process."""

    def locator(self, i: int) -> bytes:
        """Return where image `i` is, for the reader: at most a few hundred bytes that mean nothing to others."""

    def reader(self) -> Reader:
        """Return a new reader of this source."""

    def size(self, i: int) -> int:
        """Return the bytes of image `i`, -1 where it is gone; nothing is read."""

    def blame(self, i: int, number: int) -> None:
        """Raise DataError if the operating system's error `number` on image `i` is not about that image alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """What a :class:`~resnext_core.extensions.SourceKind` found: the images in an order that is always the same.

    `paths` are unique names with ``/``; with `root` before them they are what messages and results call the images.
    `labels` int32 (N,) are positions in `classes`, unique sorted names; or, with `named` False, integers below
    their number; or all -1 where nothing says what the images show. `ignored` counts files that are no images, by
    ending, and `remarks` are messages for the user.
    """

    root: Place
    paths: Sequence[str]
    source: ImageSource
    labels: NDArray[np.int32]
    classes: tuple[str, ...] = ()
    named: bool = True
    ignored: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
