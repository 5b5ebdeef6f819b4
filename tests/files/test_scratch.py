"""Temporary folders: gone with their process, or when the next one comes; those that are in use or foreign stay."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from resnext_core.files.scratch import Scratch

HOLDER = """
import sys
from pathlib import Path
from resnext_core.files.scratch import Scratch
folder = Scratch("test", Path(sys.argv[1]))
(folder.path / "content").write_text("x")
print(folder.path, flush=True)
sys.stdin.read()
"""


def hold(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a process that has a folder in `parent`; return both."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_leaves_is_cleared_away_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    living, used = hold(tmp_path)
    dead, left = hold(tmp_path)
    try:
        dead.kill()
        dead.wait()
        assert left.is_dir()
        other = Scratch("else", tmp_path)  # for another purpose
        assert left.is_dir()
        with Scratch("test", tmp_path) as folder:
            assert not left.exists()
            assert (used / "content").read_text() == "x"
            assert sorted(tmp_path.iterdir()) == sorted([used, folder, other.path])
        assert not folder.exists()
        other.close()
        other.close()
    finally:
        living.communicate()
        dead.communicate()
    assert used.is_dir(), "it was neither closed nor cleared away"
    Scratch("test", tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_provably_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / ".resnext-test-link").symlink_to(tmp_path / "kept", target_is_directory=True)
    (tmp_path / ".resnext-test-file").write_text("x")
    (tmp_path / "resnext-test-old").mkdir()  # as earlier releases named them, without a lock
    if os.geteuid() == 0:
        (tmp_path / ".resnext-test-theirs").mkdir()
        os.chown(tmp_path / ".resnext-test-theirs", 12345, 12345)
    before = sorted(tmp_path.iterdir())
    Scratch("test", tmp_path).close()
    assert sorted(tmp_path.iterdir()) == before


def test_without_locks_nothing_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refused(descriptor: int, operation: int) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", refused)
    (tmp_path / ".resnext-test-unknown").mkdir()
    with Scratch("test", tmp_path) as folder:
        assert folder.is_dir()
    assert [p.name for p in tmp_path.iterdir()] == [".resnext-test-unknown"]


def test_a_folder_that_is_cleared_away_before_it_is_opened_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another process, which finds it without a lock."""
    made, make = [], tempfile.mkdtemp

    def cleared_away(**where: Any) -> str:
        made.append(make(**where))
        if len(made) == 1:
            Path(made[0]).rmdir()
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", cleared_away)
    with Scratch("test", tmp_path) as folder:
        assert folder.is_dir()
        assert str(folder) == made[1]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_moved_away_is_left_there(tmp_path: Path) -> None:
    with Scratch("test", tmp_path) as folder:
        (folder / "content").touch()
        folder.rename(tmp_path / "kept")
    assert (tmp_path / "kept" / "content").is_file()


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Scratch("test", tmp_path / "nowhere")
