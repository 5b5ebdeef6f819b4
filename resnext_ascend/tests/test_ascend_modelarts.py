"""ModelArts with a stand-in for moxing: what is copied where, once a server, again after failures, and back."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from resnext_ascend import modelarts
from resnext_core.errors import BackendUnavailable, DataError, UsageError


class Moxing:
    """The object store is a folder: obs://x/y is <root>/x/y. Fails the first `failures` times."""

    def __init__(self, root: Path, failures: int = 0) -> None:
        self.root, self.failures = root, failures
        self.copies: list[tuple[str, str]] = []
        self.file = self

    def copy_parallel(self, source: str, target: str) -> None:
        self.copies.append((source, target))
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the store does not answer")
        shutil.copytree(self._place(source), self._place(target), dirs_exist_ok=True)

    def _place(self, name: str) -> Path:
        return self.root / name.removeprefix("obs://") if modelarts.is_url(name) else Path(name)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Moxing:
    fake = Moxing(tmp_path / "store")
    for name in ("bucket/data/a/1.jpg", "bucket/data/b/2.jpg", "bucket/old/resnext.ckpt"):
        (fake.root / name).parent.mkdir(parents=True, exist_ok=True)
        (fake.root / name).write_text(name)
    module = types.ModuleType("moxing")
    module.file = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "moxing", module)
    monkeypatch.setattr(modelarts, "PAUSE_S", 0.0)
    for name in ("RANK_ID", "VC_TASK_INDEX"):
        monkeypatch.delenv(name, raising=False)
    return fake


def given(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    places = {key: str(tmp_path / key) for key in ("data_path", "output_path", "load_path")}
    return {**places, "data_url": "obs://bucket/data", "train_url": "obs://bucket/out", **changes}


def test_data_comes_and_output_goes(store: Moxing, tmp_path: Path) -> None:
    flags = given(tmp_path, checkpoint_url="obs://bucket/old")
    with modelarts.synchronised(flags) as local:
        assert sorted(p.name for p in Path(local["data_dir"]).rglob("*.jpg")) == ["1.jpg", "2.jpg"]
        assert Path(local["pretrained"]).read_text() == "bucket/old/resnext.ckpt"
        assert local["train_url"] == str(tmp_path / "output_path")
        run = Path(local["train_url"]) / "run"
        run.mkdir(parents=True)
        (run / "log.txt").write_text("trained")
    assert (store.root / "bucket/out/run/log.txt").read_text() == "trained"


def test_what_there_is_goes_back_after_a_failure(store: Moxing, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a bad image"), modelarts.synchronised(given(tmp_path)) as local:  # noqa: PT012
        Path(local["train_url"]).mkdir()
        (Path(local["train_url"]) / "log.txt").write_text("half")
        raise DataError("a bad image")
    assert (store.root / "bucket/out/log.txt").read_text() == "half"


def test_other_processes_send_nothing(store: Moxing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK_ID", "1")
    with modelarts.synchronised(given(tmp_path)) as local:
        Path(local["train_url"]).mkdir()
    assert not (store.root / "bucket/out").exists()
    assert modelarts.first_of_job({"VC_TASK_INDEX": "0"})
    assert not modelarts.first_of_job({"VC_TASK_INDEX": "1"})


def test_failures_are_tried_again_and_reported(
    store: Moxing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.failures = 2
    place = modelarts.fetch("obs://bucket/data", tmp_path / "cache")
    assert (place / "a/1.jpg").is_file()
    assert len(store.copies) == 3
    assert "failed (the store does not answer); try 3 of 3" in capsys.readouterr().err
    store.failures = 99
    with pytest.raises(DataError, match=r"cannot copy obs://bucket/old to .*, tried 3 times: the store does"):
        modelarts.fetch("obs://bucket/old", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.lock")), "the lock goes with its process"
    store.failures = 0
    assert (modelarts.fetch("obs://bucket/old", tmp_path / "cache") / "resnext.ckpt").is_file()


def _copy_slowly(place: Path, counts: Path) -> None:
    def work() -> None:
        time.sleep(0.5)
        with counts.open("a") as stream:
            stream.write(f"{os.getpid()}\n")

    modelarts.once(place, work, patience=300)
    assert counts.read_text().count("\n") == 1


def test_one_process_of_a_server_copies(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    place, counts = tmp_path / "cache" / "data", tmp_path / "counts"
    workers = [context.Process(target=_copy_slowly, args=(place, counts)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=300)
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert counts.read_text().count("\n") == 1
    assert not place.with_name("data.lock").exists()


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "data.lock").write_text(str(dead.pid))
    done: list[int] = []
    modelarts.once(tmp_path / "data", lambda: done.append(1), patience=5)
    assert done == [1]


def test_waiting_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "data.lock").write_text(str(os.getpid()))
    start = time.monotonic()
    with pytest.raises(
        DataError, match=r"waited 1 s for the process that copies; if none does, remove .*data.lock"
    ):
        modelarts.once(tmp_path / "data", lambda: None, patience=1)
    assert time.monotonic() - start < 100


def test_without_moxing_it_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "moxing", None)
    for changes in ({}, {"data_url": None}):
        with (
            pytest.raises(BackendUnavailable, match="need moxing, which is part of ModelArts' images"),
            modelarts.synchronised(given(tmp_path, **changes)),
        ):
            pass


def test_urls_that_lack_something(store: Moxing, tmp_path: Path) -> None:
    (store.root / "bucket/old/second.ckpt").write_text("x")
    with (
        pytest.raises(UsageError, match="obs://bucket/old holds 2 checkpoints"),
        modelarts.synchronised(given(tmp_path, checkpoint_url="obs://bucket/old")),
    ):
        pass
    with modelarts.synchronised({"data_url": "/local/data", "train_url": "outputs"}) as local:
        assert local["data_dir"] == "/local/data"
        assert local["train_url"] == "outputs"
