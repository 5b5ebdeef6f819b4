"""Run folders: names, records with a torn end, rewinding, results; and the atomic files below them."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resnext_core.errors import DataError, UsageError
from resnext_core.files import atomic_path, file_digest, write_atomic
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.records import End, Note, Resume, Start


def test_a_folder_is_named_after_time_and_label(tmp_path: Path) -> None:
    made = [RunFolder.create(tmp_path / "runs", None, "net").path for _ in range(3)]
    assert len(set(made)) == 3
    assert all(p.is_dir() and "-net" in p.name and p.name[:2] == "20" for p in made)


def test_a_named_folder_is_made_once(tmp_path: Path) -> None:
    assert RunFolder.create(tmp_path, "mine", "net").path == tmp_path / "mine"
    with pytest.raises(DataError, match=r"mine already exists; continue it with --resume .*mine or"):
        RunFolder.create(tmp_path, "mine", "net")


def test_opening_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a run folder"):
        RunFolder.open(tmp_path)
    with pytest.raises(DataError, match="no run folder in"):
        RunFolder.newest(tmp_path)


def test_the_newest_run_is_the_one_whose_records_changed_last(tmp_path: Path) -> None:
    runs = {name: RunFolder.create(tmp_path, name, "net") for name in ("first", "second", "empty")}
    for age, run in enumerate(runs.values()):
        run.config.write_text("model: {}")
        os.utime(run.config, (1000 + age, 1000 + age))
    assert RunFolder.newest(tmp_path).path.name == "empty", "no records: by when they were made"
    for name, when in (("first", 3000), ("second", 2000)):
        runs[name].append(Start())
        os.utime(runs[name].records, (when, when))
    assert RunFolder.newest(tmp_path).path.name == "first", "made first, and trained last"


def test_records_survive_a_torn_line_and_rewind(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in range(1, 7):
        run.append(End(step=step, seconds=1 / step))
    run.append(Note(text="no step"))
    with run.records.open("a") as stream:
        stream.write('{"kind": "train", "step": 7, "lo')
    assert [r.step for r in run.read_records()] == [1, 2, 3, 4, 5, 6, 0]
    assert run.read_records()[2] == End(step=3, seconds=1 / 3, time=run.read_records()[2].time)
    assert run.torn_records() == [8]
    whole = run.records.read_bytes().splitlines(keepends=True)
    run.rewind(len(b"".join(whole[:4])))
    assert run.records.read_bytes() == b"".join(whole[:4])
    assert run.position() == len(b"".join(whole[:4]))
    run.append(Resume(step=5))
    assert [r.step for r in run.read_records()] == [1, 2, 3, 4, 5]
    run.rewind(run.position() - 3)
    assert [r.step for r in run.read_records()] == [1, 2, 3, 4], "no torn line is kept"
    run.rewind(0)
    assert run.read_records() == []


def test_what_someone_deletes_is_noticed_once(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.append(Start())
    (run.checkpoints / "step-00000001").mkdir(parents=True)
    assert run.lost() == []
    run.append(Resume(step=2))
    assert run.lost() == []
    run.records.unlink()
    (line,) = run.lost()
    assert line.startswith(f"{run.records} was deleted or truncated")
    assert run.lost() == []
    run.append(Resume(step=3))
    run.rewind(0)  # by us
    assert run.lost() == []
    shutil.rmtree(run.checkpoints)
    (line,) = run.lost()
    assert line.startswith(f"the checkpoints in {run.checkpoints} were deleted")
    assert run.lost() == []


def test_a_clock_that_jumps_back_moves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, clock = RunFolder(tmp_path), iter([2e9, 1e9, 1.5e9])
    monkeypatch.setattr("resnext_core.runs.folder.time.time", lambda: next(clock))
    for step in (1, 2, 3):
        run.append(Resume(step=step))
    assert [(r.step, r.time) for r in run.read_records()] == [(1, 2e9), (2, 1e9), (3, 1.5e9)]


def test_one_process_at_a_time_trains_a_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert not run.is_training()
    with run.training():
        assert run.is_training()
        with (
            pytest.raises(UsageError, match="is being trained by another process"),
            RunFolder(tmp_path).training(),
        ):
            pass
    assert not run.is_training()
    with run.training():
        pass


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    body = (
        "import sys, time; from pathlib import Path; from resnext_core.runs.folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).training(): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", body, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert RunFolder(tmp_path).is_training()
    process.kill()
    process.wait()
    assert not RunFolder(tmp_path).is_training()


def test_no_records_yet(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.rewind(3)
    assert run.position() == 0
    assert run.read_records() == []
    assert not run.records.exists()


def test_results(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_result("x", {"a": [1, 2.5, None]})
    assert run.read_result("x") == {"a": [1, 2.5, None]}
    (tmp_path / "x.json").write_text("{")
    assert run.read_result("x") is None
    assert run.read_result("y") is None


def test_records_that_cannot_be_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.records.mkdir()
    with pytest.raises(DataError, match=r"cannot write .*records.jsonl: Is a directory"):
        run.append(Start())


# -- files ---------------------------------------------------------------------------------------


def test_an_atomic_file_is_whole_or_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "f.txt"
    write_atomic(path, "old é")
    assert path.read_text(encoding="utf-8") == "old é"

    def half_written(error: Exception) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("new")
            assert temporary.parent == path.parent
            raise error

    with pytest.raises(RuntimeError, match="in the middle"):
        half_written(RuntimeError("in the middle"))
    with pytest.raises(DataError, match=r"cannot write .*f\.txt: No space left"):
        half_written(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert path.read_text(encoding="utf-8") == "old é"
    assert list(path.parent.iterdir()) == [path]


def test_an_atomic_file_has_the_rights_of_any_other(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"]
    assert modes[0] == modes[1]


def test_file_digest(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "f").write_bytes(data)
    assert file_digest(tmp_path / "f") == f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_a_run_without_a_name_has_the_time_in_utc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ranks on several machines, and a run that moves, mean the same time by it."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "XXX-9")
        time.tzset()
        patched.setattr(time, "time", lambda: 86400.0)
        assert RunFolder.create(tmp_path, None, "net").path.name == "19700102-000000-net"
    time.tzset()
