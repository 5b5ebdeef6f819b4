"""What a source of images is: it knows where each image lies, and gives a reader that workers read them with."""

from __future__ import annotations

from typing import Protocol

from resnext_core.data.content import Content


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
