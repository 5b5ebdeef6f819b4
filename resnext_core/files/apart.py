"""Errors of a block that is not about the file that is written around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


class _BlockFailed(Exception):
    """Stands for an OSError of the block, which the writer of a file would take for its own."""


@contextmanager
def kept_apart() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Yield what makes an inner block whose OSError passes every handler between the two, and is raised at the end."""
    failure: OSError | None = None

    @contextmanager
    def block() -> Iterator[None]:
        nonlocal failure
        try:
            yield
        except OSError as error:
            failure = error
            raise _BlockFailed from error

    try:
        yield block
    except _BlockFailed:
        if failure is not None:
            raise failure from None
        raise
