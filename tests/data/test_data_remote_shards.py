"""Tar shards in stores: the same batches as from a folder, range requests, and what goes wrong on the way."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_server import CUT, DROP, SHORT, WHOLE, FaultyServer, faulty_server
from images import class_tree
from stores import SPEC, s3_server, stream_digest, upload

from resnext_core.config import DataConfig
from resnext_core.data.index import Index, find_splits, open_index
from resnext_core.data.loader import Loader
from resnext_core.data.remote import ranges
from resnext_core.data.sampler import eval_tasks
from resnext_core.errors import DataError
from resnext_core.jobs.pack import PackJob, pack


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ``train`` of class folders, and the same images in the same order in three shards beside it."""
    root = class_tree(tmp_path_factory.mktemp("data") / "train", per_class=6)
    files = sorted(root.rglob("*.jpg"), key=lambda path: path.relative_to(root).as_posix())
    shards = root.parent / "shards"
    shards.mkdir()
    for number in range(3):
        with tarfile.open(shards / f"train-{number}.tar", "w") as tar:
            for path in files[6 * number : 6 * number + 6]:
                tar.add(path, path.relative_to(root).as_posix())
    return root


@pytest.fixture(autouse=True)
def _own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture(scope="module")
def s3(tree: Path) -> Iterator[Any]:
    with s3_server() as client:
        client.mkdir("photos")
        upload(client, tree.parent / "shards", "photos/shards")
        yield client


@pytest.fixture(scope="module")
def running(tree: Path) -> Iterator[FaultyServer]:
    files = (tree.parent / "shards").iterdir()
    with faulty_server({f"/shards/{path.name}": path.read_bytes() for path in files}) as server:
        yield server


@pytest.fixture
def web(running: FaultyServer) -> FaultyServer:
    running.faults.clear()
    running.always.clear()
    running.asked.clear()
    return running


def settings(folder: Path, **more: Any) -> DataConfig:
    return DataConfig(cache=str(folder / "cache"), **more)


@pytest.mark.parametrize("name", ["train-{0..2}.tar", "train-*.tar", "", "train-[0-2].tar"])
def test_shards_in_a_store_are_the_folder(tree: Path, s3: Any, tmp_path: Path, name: str) -> None:
    index = open_index(f"s3://photos/shards/{name}", data=settings(tmp_path))
    here = open_index(str(tree.parent / "shards" / name))
    assert index.paths == here.paths
    assert index.classes == here.classes
    assert index.dataset_digest == here.dataset_digest
    assert str(index.path(0)) == "s3://photos/shards/train-0.tar/ant/000.jpg"
    assert stream_digest(index, 0) == stream_digest(open_index(tree), 0)


def test_workers_read_shards_in_a_store(tree: Path, s3: Any, tmp_path: Path) -> None:
    data = settings(tmp_path)
    part = find_splits("s3://photos/shards", data)["train"]
    assert str(part) == "s3://photos/shards/train-*.tar"
    assert stream_digest(open_index(part, data=data), 2) == stream_digest(open_index(tree), 0)


def test_members_are_ranges_and_an_index_is_made_once(web: FaultyServer, tmp_path: Path) -> None:
    def opened() -> Index:
        return open_index(f"{web.url}/shards/train-{{0..2}}.tar", data=settings(tmp_path))

    index = opened()
    made = len(web.asked)
    stream_digest(index, 0)
    images = web.asked[made:]
    assert len(images) == len(index)  # one range for each image, whatever the epochs
    assert all(asked is not None and asked.startswith("bytes=") for _, asked in images)
    again = len(web.asked)
    stream_digest(opened(), 0)
    assert all(
        path == "/shards/" for path, _ in web.asked[again:]
    )  # neither the index nor an image was asked for


def test_an_index_is_made_from_blocks(
    web: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "_BLOCK", 8192)
    url = f"{web.url}/shards/train-*.tar"
    index = open_index(url, data=settings(tmp_path))
    assert len(index) == 18
    wide = [asked for _, asked in web.asked if asked is not None]
    spans = [tuple(map(int, asked.removeprefix("bytes=").split("-"))) for asked in wide]
    total = sum(map(len, web.files.values()))
    assert sum(last - first + 1 for first, last in spans) < 2 * total
    assert max(last - first + 1 for first, last in spans) == 8192


def test_faults_on_the_way_change_no_batch(web: FaultyServer, tree: Path, tmp_path: Path) -> None:
    index = open_index(f"{web.url}/shards/train-*.tar", data=settings(tmp_path))
    for number, faults in enumerate([[503, CUT], [DROP, SHORT], [429]]):
        web.faults[f"/shards/train-{number}.tar"].extend(faults)
    assert stream_digest(index, 0) == stream_digest(open_index(tree), 0)
    assert not any(web.faults.values())


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (503, "HTTP status 503"),
        (WHOLE, "the server sends the whole file where a part is asked for"),
        (404, "there is no file"),
        (403, "no permission to read"),
    ],
)
def test_a_shard_that_fails_for_good_ends_the_run_with_one_line(
    web: FaultyServer, tmp_path: Path, fault: int | str, said: str
) -> None:
    index = open_index(f"{web.url}/shards/train-*.tar", data=settings(tmp_path, tries=2))
    web.always["/shards/train-1.tar"] = fault
    with Loader(index, SPEC, workers=0) as loader, pytest.raises(DataError) as caught:
        list(loader.batches(eval_tasks(len(index), 4)))
    assert said in str(caught.value)
    assert f"{web.url}/shards/train-1.tar" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_shard_that_changes_is_noticed_by_the_next_worker(web: FaultyServer, tmp_path: Path) -> None:
    index = open_index(f"{web.url}/shards/train-*.tar", data=settings(tmp_path))
    old = web.files["/shards/train-2.tar"]
    try:
        web.files["/shards/train-2.tar"] = old[:-1] + b"x"
        with (
            Loader(index, SPEC, workers=0) as loader,
            pytest.raises(DataError, match="has changed since the data"),
        ):
            list(loader.batches(eval_tasks(len(index), 4)))
    finally:
        web.files["/shards/train-2.tar"] = old


def test_a_packed_file_in_a_store_is_the_folder(
    web: FaultyServer, s3: Any, tree: Path, tmp_path: Path
) -> None:
    pack(PackJob(source=tree, target=tmp_path / "train.pack"))
    here = open_index(tmp_path / "train.pack")
    content = (tmp_path / "train.pack").read_bytes()
    s3.pipe_file("photos/packed/train.pack", content)
    data = settings(tmp_path)
    part = find_splits("s3://photos/packed", data)["train"]
    assert str(part) == "s3://photos/packed/train.pack"
    index = open_index(part, data=data)
    assert index.dataset_digest == here.dataset_digest
    assert stream_digest(index, 0) == stream_digest(here, 0) == stream_digest(open_index(tree), 0)
    web.files["/a/train.pack"] = content
    there = open_index(f"{web.url}/a/train.pack", data=data)
    opened = len(web.asked)
    web.faults["/a/train.pack"].extend([503, CUT, DROP])
    assert stream_digest(there, 0) == stream_digest(index, 0)
    assert len(web.asked) >= opened + len(index) + 3
    for wrong, said in (
        (content[:-1], "is cut short"),
        (content[:9000] + b"x" + content[9001:], None),
        (content[:-9] + b"x" + content[-8:], "checksum mismatch"),
        (b"no pack" * 2000, "is not a packed file"),
        (b"short", "is not a packed file"),
    ):
        web.files["/a/wrong.pack"] = wrong
        if said is None:
            open_index(f"{web.url}/a/wrong.pack", data=data)  # an image is damaged, not the table
            continue
        with pytest.raises(DataError, match=f"{web.url}/a/wrong.pack.*{said}"):
            open_index(f"{web.url}/a/wrong.pack", data=data)


def test_missing_and_damaged_shards(web: FaultyServer, s3: Any, tmp_path: Path) -> None:
    data = settings(tmp_path, tries=2)
    with pytest.raises(
        DataError, match=r"1 of the 4 files of s3://photos/shards/train-\{0..3\}.tar are missing, e.g. "
    ):
        open_index("s3://photos/shards/train-{0..3}.tar", data=data)
    with pytest.raises(
        DataError, match=r"there are no files s3://photos/shards/val-\*.tar; correct the pattern"
    ):
        open_index("s3://photos/shards/val-*.tar", data=data)
    with pytest.raises(DataError, match=r"there is no file s3://photos/shards/val.tar; correct the URL"):
        open_index("s3://photos/shards/val.tar", data=data)
    s3.pipe_file("photos/damaged/a.tar", web.files["/shards/train-0.tar"][:3000])
    with pytest.raises(DataError, match=r"s3://photos/damaged/a.tar cannot be used: "):
        open_index("s3://photos/damaged/a.tar", data=data)
    packed = io.BytesIO()
    tarfile.open(fileobj=packed, mode="w:gz").close()
    s3.pipe_file("photos/packed/a.tar.gz", packed.getvalue())
    with pytest.raises(DataError, match=r"is compressed"):
        open_index("s3://photos/packed/a.tar.gz", data=data)
