"""NumPy files row by row: the bytes of ``np.save``, whole or not there, and errors that name who failed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from resnext_core.errors import DataError
from resnext_core.files.npy import npy_rows


def test_the_file_is_what_numpy_saves(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    with npy_rows(tmp_path / "a.npy", (7, 3)) as write:
        write(rows[:4])
        assert not (tmp_path / "a.npy").exists()
        write(rows.astype(np.float64)[::-1][:3][::-1])  # another type, and not contiguous
    expected = io.BytesIO()
    np.save(expected, rows)
    assert (tmp_path / "a.npy").read_bytes() == expected.getvalue()


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files", "x.jpg"), RuntimeError("no"), KeyboardInterrupt()]
)
def test_what_fails_in_the_block_is_raised_as_it_is(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a.npy").write_bytes(b"old")

    def failing() -> None:
        with npy_rows(tmp_path / "a.npy", (2, 3)) as write:
            write(np.zeros((1, 3), np.float32))
            raise error

    with pytest.raises(type(error)) as caught:
        failing()
    assert caught.value is error
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]
    assert (tmp_path / "a.npy").read_bytes() == b"old"


@pytest.mark.parametrize("path", ["/proc/nowhere/a.npy", "/dev/full"])
def test_a_file_that_cannot_be_written_is_named(path: str) -> None:
    with pytest.raises(DataError, match=f"cannot write {path}: "), npy_rows(Path(path), (1, 1)) as write:
        write(np.zeros((1, 1), np.float32))


def test_rows_must_be_as_announced(tmp_path: Path) -> None:
    for rows in (np.zeros((1, 3), np.float32), np.zeros((2, 2), np.float32)):
        with pytest.raises(ValueError, match="rows"), npy_rows(tmp_path / "a.npy", (2, 3)) as write:
            write(rows)
    assert not list(tmp_path.iterdir())
