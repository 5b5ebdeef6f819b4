"""MindRecord files as a source: what MindSpore's own reader reads, the batches of the folder, and damaged files."""

from __future__ import annotations

import json
import pickle
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from resnext_mindspore.mindrecord import MindRecordReader
from resnext_mindspore.msgpack import unpacked

from resnext_core.config import AugmentConfig, DataConfig
from resnext_core.data.index import Index, find_splits, open_index
from resnext_core.data.loader import Loader
from resnext_core.data.sampler import Task, epoch_permutation, eval_tasks
from resnext_core.errors import DataError
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.plugins import load_plugins

mindrecord = pytest.importorskip("mindspore.mindrecord")

FIELDS = {"label": {"type": "int32"}, "file_name": {"type": "string"}, "data": {"type": "bytes"}}


@pytest.fixture(scope="module", autouse=True)
def _plugins() -> None:
    load_plugins()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of three classes, whose names are those of MindRecord's labels."""
    root, rng = tmp_path_factory.mktemp("data") / "train", np.random.default_rng(1)
    for label in range(3):
        (root / str(label)).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 255, (30 + 9 * i, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / str(label) / f"{i}.jpg")
    return root


def samples(root: Path) -> list[dict[str, Any]]:
    index = open_index(root)
    return [
        {"label": int(label), "file_name": name, "data": (root / name).read_bytes()}
        for name, label in zip(index.paths, index.labels, strict=True)
    ]


def write(
    path: Path, rows: Sequence[dict[str, Any]], fields: dict[str, Any] = FIELDS, shards: int = 1,
    index: Sequence[str] = (), page: int | None = None,
) -> Path:  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = mindrecord.FileWriter(str(path), shard_num=shards, overwrite=True)
    if page is not None:
        writer.set_page_size(page)
    writer.add_schema(fields, "images")
    if index:
        writer.add_index(list(index))
    writer.write_raw_data(list(rows))
    writer.commit()
    return path if shards == 1 else path.with_name(f"{path.name}0")


def oracle(path: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    """What MindSpore reads."""
    reader = mindrecord.FileReader(str(path), columns=list(fields), num_consumer=1)
    found = list(reader.get_next())
    reader.close()
    return found


def contents(index: Index) -> list[bytes]:
    reader = pickle.loads(pickle.dumps(index.source.reader()))
    return [reader.read(index.source.locator(i)) for i in range(len(index))]


def stream(index: Index, workers: int) -> list[Any]:
    """Pixels and labels of an epoch of training and of an evaluation."""
    found = []
    order = epoch_permutation(len(index), 5, 0)
    for augment, tasks in ((AugmentConfig(), [Task.of(0, order[:6]), Task.of(0, order[6:])]), (None, None)):
        with Loader(index, PreprocessSpec(size=24, resize=28), augment, seed=3, workers=workers) as loader:
            for batch in loader.batches(tasks or eval_tasks(len(index), 5)):
                found += [batch.images, batch.labels, batch.index, batch.valid]
    return found


@pytest.mark.parametrize(("shards", "index"), [(1, ()), (3, ("label", "file_name"))])
def test_the_batches_are_those_of_the_folder(
    tree: Path, tmp_path: Path, shards: int, index: Sequence[str]
) -> None:
    path = write(tmp_path / "train.mindrecord", samples(tree), shards=shards, index=index)
    part = find_splits(tmp_path, DataConfig())["train"]
    assert part.name == "train.mindrecord*"
    found, here = open_index(part), open_index(tree)
    assert np.array_equal(found.labels, here.labels)
    assert found.classes == here.classes
    assert not found.named
    assert found.paths[0] == f"{path.name}/{here.paths[0]}"
    assert open_index(path).paths == found.paths
    assert [row["data"] for row in oracle(path, ["data"])] == contents(found)
    for workers in (0, 2):
        for a, b in zip(stream(found, workers), stream(here, 0), strict=True):
            assert np.array_equal(a, b)


def test_many_pages_and_several_fields_of_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "f": 0.5, "image": rng.bytes(int(rng.integers(1, 20_000))), "labels": int(i % 300) - 1, "mask": b"m" * i,
            "vector": np.arange(i % 4, dtype=np.int32), "zname": "é" * (i % 90),
        }
        for i in range(400)
    ]  # fmt: skip
    fields = {
        "f": {"type": "float32"}, "image": {"type": "bytes"}, "labels": {"type": "int64"}, "mask": {"type": "bytes"},
        "vector": {"type": "int32", "shape": [-1]}, "zname": {"type": "string"},
    }  # fmt: skip
    rows[0]["labels"] = 5
    rows = [row | {"labels": abs(row["labels"])} for row in rows]
    path = write(tmp_path / "a.mindrecord", rows, fields, page=1 << 16, index=("zname",))
    with sqlite3.connect(path.with_name("a.mindrecord.db")) as database:
        assert "labels_0" not in {row[1] for row in database.execute("PRAGMA table_info(INDEXES)")}
    index = open_index(path)
    known = oracle(path, ["image", "labels"])
    assert contents(index) == [row["image"] for row in known] == [row["image"] for row in rows]
    assert index.labels.tolist() == [int(row["labels"]) for row in known]
    assert index.paths[7] == "a.mindrecord/007"  # the names are not unique
    assert path.stat().st_size > 10 * (1 << 16)


def test_labels_that_are_names(tree: Path, tmp_path: Path) -> None:
    rows = [row | {"label": f"class {2 - row['label']}"} for row in samples(tree)]
    index = open_index(write(tmp_path / "a.mindrecord", rows, FIELDS | {"label": {"type": "string"}}))
    assert index.classes == ("class 0", "class 1", "class 2")
    assert [index.classes[label] for label in index.labels] == [row["label"] for row in rows]


def test_files_that_are_missing_or_damaged(tree: Path, tmp_path: Path) -> None:
    rows = samples(tree)

    def case(shards: int = 1) -> Path:
        shutil.rmtree(tmp_path / "case", ignore_errors=True)
        return write(tmp_path / "case" / "a.mindrecord", rows, shards=shards)

    def refused(path: Path, said: str) -> None:
        with pytest.raises(DataError, match=said) as caught:
            open_index(path)
        assert "\n" not in str(caught.value)

    path = case(3)
    path.with_name("a.mindrecord2").unlink()
    refused(
        path, r"1 of the 3 files that belong to .*a.mindrecord0 are missing, e.g. .*a.mindrecord2; copy them"
    )
    path = case()
    path.with_name("a.mindrecord.db").unlink()
    refused(path, r"the index .*a.mindrecord.db is missing; copy it too")
    path = case()
    path.with_name("a.mindrecord.db").write_bytes(b"no database at all" * 100)
    refused(path, r"the index .*a.mindrecord.db is damaged: ")
    path = case()
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - (1 << 25) - 4000)
    refused(path, r"a.mindrecord is cut short, or a.mindrecord.db is not its index; copy both again")
    path = case()
    with path.open("r+b") as stream:
        stream.write(bytes(100))
    refused(path, r"a.mindrecord is not a MindRecord file, or it is encrypted")
    path = case().rename(tmp_path / "case" / "b.mindrecord")
    refused(path, r"b.mindrecord was renamed: it was written as one of a.mindrecord; rename it back")
    refused(tmp_path / "none.mindrecord", r"cannot read .*none.mindrecord: ")
    refused(tmp_path / "none.mindrecord*", r"there are no files .*none.mindrecord\*")
    path = case()
    with sqlite3.connect(path.with_name("a.mindrecord.db")) as database:
        database.execute("UPDATE INDEXES SET label_0 = -7 WHERE ROW_ID = 3")
    refused(path, r"the label -7 of sample 3 is no class; labels are integers from 0")
    text = write(tmp_path / "text.mindrecord", [{"label": 1, "words": "a"}], {"label": {"type": "int32"}, "words": {"type": "string"}})  # fmt: skip  # noqa: E501
    refused(
        text, r"text.mindrecord has no field 'image' or 'data' with the bytes of images; it has: label, words"
    )


def test_a_file_that_changes_ends_the_run_and_a_damaged_sample_does_not(tree: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.mindrecord", samples(tree))
    index = open_index(path)
    with path.open("r+b") as stream:
        stream.seek(int(index.source._offsets[4]))  # type: ignore[attr-defined]
        stream.write(b"\xff" * 8)
    damaged = open_index(path)
    with Loader(damaged, PreprocessSpec(size=24, resize=28), workers=0) as loader:
        list(loader.batches(eval_tasks(12, 6)))
    assert loader.failures == {4: "its length is not that of the sample"}
    with (
        Loader(index, PreprocessSpec(size=24, resize=28), workers=0) as loader,
        pytest.raises(DataError, match="has changed since the data was opened"),
    ):
        list(loader.batches(eval_tasks(12, 6)))


def forged(path: Path, rows: Sequence[Sequence[Any]], about: dict[str, Any]) -> Path:
    """Write a file with a header and a database whose content may be anything."""
    schema = {"blob_fields": ["image"], "schema": {"image": {"type": "bytes"}, "label": {"type": "int32"}}}
    known = {"header_size": 16384, "page_size": 4096, "schema": [schema], "shard_addresses": [path.name]}
    text = json.dumps(known | about).encode()
    path.write_bytes((len(text).to_bytes(8, "little") + text).ljust(40_000, b"\0"))
    columns = "ROW_ID, PAGE_ID_RAW, PAGE_OFFSET_RAW, PAGE_OFFSET_RAW_END, PAGE_ID_BLOB, PAGE_OFFSET_BLOB"
    with closing(sqlite3.connect(path.with_name(f"{path.name}.db"))) as database:
        database.execute(f"CREATE TABLE INDEXES ({columns}, PAGE_OFFSET_BLOB_END, label_0)")
        database.executemany("INSERT INTO INDEXES VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        database.commit()
    return path


GOOD = (0, 0, 0, 10, 1, 0, 100, 0)


@pytest.mark.parametrize(
    ("row", "about", "said"),
    [
        ((1, "x", 0, 10, 1, 0, 100, 0), {}, "is damaged, or of another kind"),
        ((1, None, 0, 10, 1, 0, 100, 0), {}, "is damaged, or of another kind"),
        ((1, 0, 0, 10, b"x", 0, 100, 0), {}, "is damaged, or of another kind"),
        ((1, 0, 0, 10, -900, 0, 100, 0), {}, "is cut short, or a.mindrecord.db is not its index"),
        (GOOD, {"shard_addresses": ["a.mindrecord", "other"]}, "names other as one of its files"),
        (GOOD, {"shard_addresses": 5}, "is damaged, or of another kind"),
        (GOOD, {"page_size": 2**70}, "is cut short, or a.mindrecord.db is not its index"),
        (
            GOOD,
            {"schema": [{"blob_fields": ["image"], "schema": ["image"]}]},
            "is damaged, or of another kind",
        ),
        (GOOD, {"schema": [{"blob_fields": [["image"]], "schema": {}}]}, "is damaged, or of another kind"),
        (GOOD, {"schema": 7}, "has a header of another kind"),
        (GOOD, {"header_size": "x"}, "has a header of another kind"),
    ],
)
def test_content_that_cannot_be(tmp_path: Path, row: Sequence[Any], about: dict[str, Any], said: str) -> None:
    assert len(open_index(forged(tmp_path / "good.mindrecord", [GOOD], {}))) == 1
    path = forged(tmp_path / "a.mindrecord", [GOOD, row], about)
    (tmp_path / "other").write_bytes(b"")
    with pytest.raises(DataError, match=said) as caught:
        open_index(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_in_a_store(tree: Path, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    path = write(tmp_path / "train.mindrecord", samples(tree), shards=2)
    memory = fsspec.filesystem("memory")
    for one in path.parent.iterdir():
        memory.pipe_file(f"/records/{one.name}", one.read_bytes())
    try:
        data = DataConfig(cache=str(tmp_path / "cache"))
        part = find_splits("memory://records", data)["train"]
        index = open_index(part, data=data)
        assert contents(index) == contents(open_index(path))
        assert str(index.path(0)) == "memory://records/train.mindrecord0/0/0.jpg"
    finally:
        memory.rm("/records", recursive=True)


def test_the_fields_of_a_sample_are_checked() -> None:
    class Sample:
        def read(self, locator: bytes) -> bytes:
            return locator

        def stamp(self, locator: bytes) -> tuple[int, int]:
            return 0, 0

    two = bytes(8) + (3).to_bytes(8, "big") + b"abc" + (2).to_bytes(8, "big") + b"de"
    for position, expected in ((0, b"abc"), (1, b"de")):
        assert MindRecordReader(Sample(), position, 2).read(two) == expected  # type: ignore[arg-type]
        with pytest.raises(DataError, match="longer than the sample"):
            MindRecordReader(Sample(), position, 2).read(two[:10] if position == 0 else two[:-1])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        (b"\x80", {}),
        (b"\x82\xa1a\x07\xa1b\xff", {"a": 7, "b": -1}),
        (b"\x81\xa1a\xca\x3f\x00\x00\x00", {"a": 0.5}),
        (
            b"\x83\xa1a\xcd\x01\x00\xa1b\xd2\xff\xff\xff\x00\xa1c\xcf" + bytes(7) + b"\x09",
            {"a": 256, "b": -256, "c": 9},
        ),
        (b"\x81\xd9\x01a\xda\x00\x02\xc3\xa9", {"a": "é"}),
        (b"\xde\x00\x01\xa1a\xc3", {"a": True}),
    ],
)
def test_messagepack(content: bytes, fields: dict[str, Any]) -> None:
    assert unpacked(content) == fields
    for wrong in [content[:k] for k in range(len(content))] + [content + b"\0"]:
        with pytest.raises(ValueError, match="fields"):
            unpacked(wrong)


def test_messagepack_of_other_kinds_is_refused() -> None:
    for content in (b"\x90", b"\x81\xa1a\x90", b"\x81\xa1a\xc4\x01a"):
        with pytest.raises(ValueError, match="0x"):
            unpacked(content)
