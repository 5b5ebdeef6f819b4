"""Folders and lists in stores: the same batches as on disk, the cache, and what goes wrong on the way."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine
from faulty_server import CUT, DROP, FaultyServer, faulty_server
from images import CLASSES, class_tree
from stores import SPEC, s3_server, stream_digest, upload

from resnext_core.config import DataConfig
from resnext_core.data.index import Index, find_splits, open_index, remarks
from resnext_core.data.loader import Loader
from resnext_core.data.quarantine import Quarantine
from resnext_core.data.remote import access
from resnext_core.data.sampler import Task, eval_tasks
from resnext_core.errors import EXIT_DATA, EXIT_OK, EXIT_USAGE, DataError, UsageError
from resnext_core.files import Url


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = class_tree(tmp_path_factory.mktemp("local") / "train", per_class=6)
    (root / "ant" / "more").mkdir()
    (root / "ant" / "000.jpg").rename(root / "ant" / "more" / "zé.jpg")
    (root / "bee" / "notes.md").write_text("no image")
    (root / "bee" / ".hidden.jpg").write_text("no image")
    lines = [
        f"{p.relative_to(root).as_posix()} {p.relative_to(root).parts[0]}" for p in root.rglob("*0?.jpg")
    ]
    (root.parent / "listed").mkdir()
    (root.parent / "train.txt").write_text("".join(f"train/{line}\n" for line in lines))
    return root


@pytest.fixture(scope="module")
def s3(tree: Path) -> Iterator[Any]:
    with s3_server() as client:
        client.mkdir("photos")
        upload(client, tree.parent, "photos")
        yield client


@pytest.fixture(scope="module")
def web(tree: Path) -> Iterator[FaultyServer]:
    files = {f"/{p.relative_to(tree.parent).as_posix()}": p for p in tree.parent.rglob("*") if p.is_file()}
    with faulty_server(
        {name.replace("é", "%C3%A9"): path.read_bytes() for name, path in files.items()}
    ) as server:
        yield server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between tries."""
    monkeypatch.setattr(access.time, "sleep", lambda seconds: None)


def settings(folder: Path, **more: Any) -> DataConfig:
    return DataConfig(cache=str(folder / "cache"), **more)


def test_a_folder_in_a_store_is_that_on_disk(tree: Path, s3: Any, tmp_path: Path) -> None:
    here = open_index(tree)
    there = open_index("s3://photos/train/", data=settings(tmp_path))
    assert there.paths == here.paths
    assert there.classes == here.classes == CLASSES
    assert np.array_equal(there.labels, here.labels)
    assert there.ignored == here.ignored == {".md": 1}
    assert there.dataset_digest == here.dataset_digest
    assert str(there.path(3)) == f"s3://photos/train/{here.paths[3]}"
    assert stream_digest(here, 0) == stream_digest(there, 0) == stream_digest(there, 2)
    assert len([p for p in (tmp_path / "cache").glob("??/*") if p.is_file()]) == len(here)
    assert len(pickle.dumps(there.source.reader())) < 1000


def test_a_list_in_a_store_is_that_on_disk(tree: Path, s3: Any, tmp_path: Path) -> None:
    here = open_index(tree.parent / "train.txt")
    there = open_index("s3://photos/train.txt", data=settings(tmp_path))
    assert there.paths == here.paths
    assert there.dataset_digest == here.dataset_digest
    assert stream_digest(here, 0) == stream_digest(there, 0)
    s3.pipe_file("photos/wrong.txt", b"train/ant/001.jpg 0\ntrain/ant/none.jpg 1\n")
    with pytest.raises(
        DataError, match=r"s3://photos/wrong.txt:2: no such file: s3://photos/train/ant/none.jpg; "
    ):
        open_index("s3://photos/wrong.txt", data=settings(tmp_path))


def test_parts_of_a_data_folder(s3: Any, tmp_path: Path) -> None:
    data = settings(tmp_path)
    with pytest.raises(UsageError, match=r"has train and train.txt; choose one with --set data.train=train"):
        find_splits("s3://photos", data)
    data = settings(tmp_path, train="train", val="s3://photos/train.txt")
    found = find_splits("s3://photos/", data, need=("train", "val"))
    assert found == {"train": Url("s3://photos/train"), "val": Url("s3://photos/train.txt")}
    with pytest.raises(UsageError, match=r"data.val: s3://photos/nothing does not exist"):
        find_splits("s3://photos", settings(tmp_path, train="train", val="nothing"))
    with pytest.raises(UsageError, match=r"there is no data folder s3://photos/nothing"):
        find_splits("s3://photos/nothing", DataConfig())
    with pytest.raises(UsageError, match=r"s3://photos/train.txt is a file, not a folder"):
        find_splits("s3://photos/train.txt", DataConfig())
    with pytest.raises(DataError, match=r"there is no data at s3://photos/nothing"):
        open_index("s3://photos/nothing")


def test_a_bucket_that_is_not_there(s3: Any) -> None:
    for question in (
        lambda: open_index("s3://no-such-bucket/x"),
        lambda: find_splits("s3://no-such-bucket", DataConfig()),
    ):
        with pytest.raises((DataError, UsageError), match=r"s3://no-such-bucket") as caught:
            question()
        assert "\n" not in str(caught.value)


def test_no_credentials(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    access._filesystem.cache_clear()
    try:
        with pytest.raises(DataError, match=r"no credentials for s3://photos/train: .*; set AWS_PROFILE, or"):
            open_index("s3://photos/train")
    finally:
        access._filesystem.cache_clear()


def images_asked(web: FaultyServer) -> list[str]:
    return [path for path, _ in web.asked if path.endswith(".jpg")]


def test_the_cache_saves_requests_and_sees_changes(web: FaultyServer, tmp_path: Path) -> None:
    web.asked.clear()
    url, data = f"{web.url}/train", settings(tmp_path)
    index = open_index(url, data=data)
    first = stream_digest(index, 0)
    assert len(set(images_asked(web))) == len(index)
    # Two epochs and an evaluation ask for each once; a busy machine may have to ask again.
    assert len(images_asked(web)) < 1.5 * len(index)
    web.asked.clear()
    assert stream_digest(open_index(url, data=data), 0) == first
    assert not images_asked(web)
    changed = "/train/bee/001.jpg"
    old = web.files[changed]
    try:
        web.files[changed] = web.files["/train/cat/001.jpg"]
        assert stream_digest(open_index(url, data=data), 0) != first
        assert set(images_asked(web)) == {changed}
    finally:
        web.files[changed] = old
    web.asked.clear()
    nothing_kept = settings(tmp_path, cache_gb=0)
    assert stream_digest(open_index(url, data=nothing_kept), 0) == first
    assert len(images_asked(web)) > 2 * len(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_faults_on_the_way_change_no_batch(
    web: FaultyServer, tree: Path, tmp_path: Path, workers: int
) -> None:
    names = sorted(name for name in web.files if name.endswith(".jpg"))
    for name, faults in zip(names, [[503], [DROP], [CUT], [503, CUT], [429]], strict=False):
        web.faults[name].extend(faults)
    index = open_index(f"{web.url}/train", data=settings(tmp_path))
    assert stream_digest(index, workers) == stream_digest(open_index(tree), 0)
    assert not any(web.faults.values())


@pytest.mark.parametrize("workers", [0, 1])
def test_images_are_asked_for_together(web: FaultyServer, tree: Path, tmp_path: Path, workers: int) -> None:
    """The server answers none of eight questions before it has them all."""
    index = open_index(f"{web.url}/train", data=settings(tmp_path))
    together = threading.Barrier(8)
    for name in index.paths[:8]:
        web.faults[f"/train/{name}"].append(together)
    with Loader(index, SPEC, workers=workers) as loader:
        (batch,) = loader.batches([Task.of(0, np.arange(8))])
    assert batch.valid.all()
    assert not any(web.faults.values())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_cache_that_cannot_be_used_is_told_once(tree: Path, s3: Any, tmp_path: Path, workers: int) -> None:
    (tmp_path / "cache").write_text("a file")
    index = open_index("s3://photos/train", data=settings(tmp_path))
    with Loader(index, SPEC, workers=workers) as loader:
        valid = [
            batch.valid.all() for batch in loader.batches(Task.of(0, np.arange(i, i + 4)) for i in (0, 4, 8))
        ]
        notes = loader.take_notes()
    assert all(valid)
    assert notes == [
        f"the cache {tmp_path / 'cache'} is not used any more: {tmp_path / 'cache'} is a file, not a folder"
    ]


@pytest.mark.parametrize(
    ("fault", "said"), [(503, ""), (DROP, ""), (403, "no permission to read s3://photos/train")]
)
def test_an_object_store_that_does_not_answer(
    web: FaultyServer, s3: Any, monkeypatch: pytest.MonkeyPatch, quick: None, fault: int | str, said: str
) -> None:
    """Tries are counted in one place: those of the libraries below are turned off."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
    access._filesystem.cache_clear()
    web.everything, web.questions = fault, 0
    try:
        with pytest.raises(DataError) as caught:
            open_index("s3://photos/train", data=DataConfig(tries=3))
    finally:
        web.everything = None
        access._filesystem.cache_clear()
    assert "\n" not in str(caught.value)
    if said:
        assert said in str(caught.value)
    else:
        assert "(3 tries in " in str(caught.value)
    assert web.questions <= 6  # a question about a folder may be two requests


@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_that_fails_for_good_ends_the_run_with_one_line(
    web: FaultyServer, tmp_path: Path, workers: int
) -> None:
    index = open_index(f"{web.url}/train", data=settings(tmp_path, tries=2))
    name = f"/train/{index.paths[4]}"
    web.always[name] = 503
    try:
        with Loader(index, SPEC, workers=workers) as loader, pytest.raises(DataError) as caught:
            list(loader.batches(eval_tasks(len(index), 4)))
    finally:
        web.always.clear()
    assert str(caught.value).startswith(f"cannot read {web.url}{name}: HTTP status 503 ")
    assert str(caught.value).endswith(
        "; check the network and the store, then start again, or raise data.tries"
    )


def test_objects_that_vanish_are_bad_images_and_a_bucket_that_vanishes_ends_the_run(
    s3: Any, tree: Path, tmp_path: Path, quick: None
) -> None:
    s3.mkdir("fleeting")
    upload(s3, tree, "fleeting/train")
    index = open_index("s3://fleeting/train", data=settings(tmp_path, tries=2))
    gone, cut = 2, 5
    s3.rm_file(f"fleeting/train/{index.paths[gone]}")
    s3.pipe_file(f"fleeting/train/{index.paths[cut]}", b"another content")
    quarantine = Quarantine(Url("s3://fleeting"), own=tmp_path / "quarantine.txt")
    with Loader(index, SPEC, workers=0, bad_images="quarantine", quarantine=quarantine) as loader:
        batches = list(loader.batches(eval_tasks(len(index), 8)))
        reasons = loader.failures
    assert sum(int(batch.valid.sum()) for batch in batches) == len(index) - 2
    assert reasons[gone] == "there is no such object"
    assert reasons[cut].startswith("15 bytes came instead of ")
    listed = (tmp_path / "quarantine.txt").read_text().splitlines()
    assert listed == [f"train/{index.paths[gone]}", f"train/{index.paths[cut]}"]
    assert Quarantine(Url("s3://fleeting/"), own=tmp_path / "quarantine.txt").indices(index) == {gone, cut}
    s3.rm("fleeting", recursive=True)
    fresh = settings(tmp_path / "empty", tries=2)
    with (
        Loader(_with(index, fresh), SPEC, workers=0) as loader,
        pytest.raises(DataError, match="s3://fleeting"),
    ):
        list(loader.batches(eval_tasks(len(index), 8)))


def _with(index: Index, data: DataConfig) -> Index:
    """`index` with nothing in its cache."""
    import dataclasses

    from resnext_core.data.remote.fetch import fetch_of

    return dataclasses.replace(index, source=dataclasses.replace(index.source, fetch=fetch_of(data)))


def test_any_store_that_fsspec_knows(tree: Path, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    try:
        upload(memory, tree, "/photos/train")
        index = open_index("memory://photos/train", data=settings(tmp_path))
        assert index.dataset_digest == open_index(tree).dataset_digest
        assert stream_digest(index, 0) == stream_digest(open_index(tree), 0)
        assert list(remarks([index])) == ["ignored 1 file that is not an image by its name: 1 .md"]
    finally:
        memory.rm("/photos", recursive=True)


def test_the_command_line_takes_urls(
    cli: CommandLine, s3: Any, photos: Path, recipe: Path, tmp_path: Path
) -> None:
    upload(s3, photos, "photos/small")
    cache = ["--set", f"data.cache={tmp_path / 'cache'}"]
    words = ["train", "--recipe", recipe, "--output", tmp_path, *cache]
    here = cli(*words, "--data", photos, "--name", "here")
    there = cli(*words, "--data", "s3://photos/small", "--name", "there")
    assert here.code == there.code == EXIT_OK, there
    losses = [
        [
            json.loads(line).get("loss")
            for line in (tmp_path / name / "records.jsonl").read_text().splitlines()
        ]
        for name in ("here", "there")
    ]
    assert [loss for loss in losses[0] if loss] == [loss for loss in losses[1] if loss] != []
    scored = cli("eval", "--weights", tmp_path / "there", "--json", *cache)  # its own data
    assert json.loads(scored.out)["scored"] == 23, scored
    info = cli("data", "info", "s3://photos/small", "--json")
    assert json.loads(info.out)["parts"]["train"]["images"] == 48, info
    scanned = cli(
        "data", "scan", "s3://photos/small", "--json", "--cache", tmp_path / "scans", "--workers", 1
    )
    assert json.loads(scanned.out)["read"] == 71, scanned
    again = cli("data", "scan", "s3://photos/small", "--json", "--cache", tmp_path / "scans", "--workers", 1)
    assert json.loads(again.out)["remembered"] == 71, again
    checked = cli("doctor", "--run", recipe, "--data", "s3://photos/small", *cache)
    assert checked.code == EXIT_OK, checked
    resumed = cli("train", "--resume", tmp_path / "there", "--set", "train.epochs=3")
    assert resumed.code == EXIT_OK, resumed
    wrong = cli("data", "info", "s3://photos/nothing")
    assert (wrong.code, wrong.err.count("\n")) == (EXIT_DATA, 1), wrong
    other = cli("eval", "--weights", "s3://photos/w.safetensors", "--data", photos)
    assert other.code == EXIT_USAGE
    assert "is a URL, not a file" in other.err
