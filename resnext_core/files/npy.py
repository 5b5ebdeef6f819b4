"""NumPy files that are written row by row, whole or not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.errors import DataError, reason
from resnext_core.files.apart import kept_apart
from resnext_core.files.atomic import atomic_path


@contextmanager
def npy_rows(path: Path, shape: tuple[int, ...]) -> Iterator[Callable[[NDArray[Any]], None]]:
    """Yield a function that appends float32 rows (n, *shape[1:]) to the array of `shape` in the file `path`.

    Nothing is kept in memory. The file is put in place when the block ends, as :func:`atomic_path` does. Raises
    DataError when it cannot be written, ValueError for rows of another shape or another number of them.
    """
    done = 0
    with kept_apart() as block, atomic_path(path) as temporary, temporary.open("wb") as stream:
        head = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, head)  # type: ignore[no-untyped-call]

        def write(rows: NDArray[Any]) -> None:
            nonlocal done
            if rows.shape[1:] != shape[1:]:
                raise ValueError(f"rows of {rows.shape[1:]} do not fit {shape}")
            done += len(rows)
            try:
                stream.write(np.ascontiguousarray(rows, "<f4").data)
            except OSError as error:
                raise DataError(f"cannot write {path}: {reason(error)}") from error

        with block():
            yield write
        if done != shape[0]:
            raise ValueError(f"{done} rows were written of {shape[0]}")
