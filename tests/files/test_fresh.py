"""New files that are there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from resnext_core.errors import DataError
from resnext_core.files import fresh
from resnext_core.files.fresh import fresh_file


@pytest.fixture(params=["without a name", "in a hidden folder"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in a hidden folder":
        monkeypatch.setattr(fresh, "_anonymous", lambda folder: None)


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new/x"
    with fresh_file(path) as stream:
        stream.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert os.listdir(path.parent) == ["x"]
    with pytest.raises(DataError, match="already exists"), fresh_file(path):
        pytest.fail("it is refused at once")


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with fresh_file(tmp_path / "x") as stream:
            stream.write(b"half" * 100_000)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert os.listdir(tmp_path) == []


def test_a_file_is_replaced_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for content in (b"one", b"two"):
        with fresh_file(path, replace=True) as stream:
            stream.write(content)
        assert path.read_bytes() == content
    with pytest.raises(ZeroDivisionError), fresh_file(path, replace=True):
        raise ZeroDivisionError
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["x"]


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(DataError, match="is a file, not a folder"),
        fresh_file(tmp_path / "file/x"),
    ):
        pytest.fail("there is no such folder")
    with pytest.raises(DataError, match="cannot write"), fresh_file(tmp_path / ("n" * 300)):
        pass
