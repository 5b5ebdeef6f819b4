"""Parquet files as the Hugging Face hub has them: the batches of the folder, in bounded memory, local and remote."""

from __future__ import annotations

import json
import pickle
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_server import CUT, DROP, FaultyServer, faulty_server
from images import CLASSES, class_tree
from stores import SPEC, s3_server, stream_digest, upload

from resnext_core.config import DataConfig
from resnext_core.data.index import find_splits, open_index
from resnext_core.data.loader import Loader
from resnext_core.data.sampler import eval_tasks
from resnext_core.data.sources import parquet_reader
from resnext_core.errors import DataError, UsageError

pa = pytest.importorskip("pyarrow", reason="needs pyarrow (the extra [parquet])")
pq = pytest.importorskip("pyarrow.parquet")

Row = tuple["bytes | None", "str | None", Any]


def schema(names: Sequence[str] | None = CLASSES, label: Any = None) -> Any:
    """The schema that the library ``datasets`` writes for an image and a ClassLabel."""
    feature = {"_type": "ClassLabel", "names": list(names)} if names is not None else {"_type": "Value"}
    about = {"info": {"features": {"image": {"_type": "Image"}, "label": feature}}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.schema(
        [("image", image), ("label", label or pa.int64())], metadata={"huggingface": json.dumps(about)}
    )


def write(path: Path, rows: Sequence[Row], group: int = 4, **kind: Any) -> Path:
    table = pa.Table.from_pylist(
        [{"image": {"bytes": content, "path": name}, "label": label} for content, name, label in rows],
        schema=schema(**kind),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def rows_of(root: Path) -> list[Row]:
    """The images of a folder in the order of its index."""
    index = open_index(root)
    return [
        ((root / name).read_bytes(), name.replace("/", "_"), int(label))
        for name, label in zip(index.paths, index.labels, strict=True)
    ]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_tree(tmp_path_factory.mktemp("data") / "train", per_class=6)


@pytest.fixture(scope="module")
def rows(tree: Path) -> list[Row]:
    return rows_of(tree)


@pytest.fixture(scope="module")
def hub(tree: Path, rows: list[Row]) -> Path:
    """A folder as a data set of the hub has it: two shards of train, one of validation."""
    folder = tree.parent / "hub" / "data"
    write(folder / "train-00000-of-00002.parquet", rows[:10])
    write(folder / "train-00001-of-00002.parquet", rows[10:])
    write(folder / "validation-00000-of-00001.parquet", rows[::5])
    write(folder / "test-00000-of-00001.parquet", [(content, name, -1) for content, name, _ in rows[::6]])
    return folder


def settings(folder: Path, **more: Any) -> DataConfig:
    return DataConfig(cache=str(folder / "cache"), **more)


def test_shards_of_the_hub_are_the_folder(tree: Path, hub: Path, rows: list[Row]) -> None:
    parts = find_splits(hub, DataConfig())
    assert {name: path.name for name, path in parts.items()} == {
        "train": "train-*.parquet", "val": "validation-*.parquet", "test": "test-*.parquet"
    }  # fmt: skip
    index, here = open_index(parts["train"]), open_index(tree)
    assert index.classes == here.classes == CLASSES
    assert index.named
    assert np.array_equal(index.labels, here.labels)
    assert index.paths[0] == f"train-00000-of-00002.parquet/{rows[0][1]}"
    assert index.paths[10] == f"train-00001-of-00002.parquet/{rows[10][1]}"
    assert stream_digest(index, 0) == stream_digest(index, 2) == stream_digest(here, 0)
    reader = pickle.loads(pickle.dumps(index.source.reader()))
    assert [reader.read(index.source.locator(i)) for i in range(len(index))] == [row[0] for row in rows]
    val = open_index(parts["val"], index.classes)
    assert val.labels.tolist() == [label for _, _, label in rows[::5]]
    assert not open_index(parts["test"], index.classes).labelled
    other = open_index(parts["val"], ("zebra", *reversed(CLASSES)))
    assert [other.classes[label] for label in other.labels] == [CLASSES[label] for _, _, label in rows[::5]]


def test_a_folder_and_one_file(hub: Path, rows: list[Row], tmp_path: Path) -> None:
    one = write(tmp_path / "some" / "0000.parquet", rows)
    assert open_index(one.parent).dataset_digest == open_index(one).dataset_digest
    with pytest.raises(DataError, match=r"there are no files .*none-\*.parquet"):
        open_index(hub / "none-*.parquet")
    with pytest.raises(DataError, match=r"1 of the 2 files of .* are missing, e.g. .*0001.parquet"):
        open_index(f"{one.parent}/{{0000..0001}}.parquet")


@pytest.mark.parametrize(("window", "whole"), [(1, 1), (5000, 1), (1 << 20, 1 << 20)])
def test_random_order_needs_bounded_memory(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, whole: int
) -> None:
    """Row groups that are large are read in windows, and few of these are kept."""
    monkeypatch.setattr(parquet_reader, "_WINDOW", window)
    monkeypatch.setattr(parquet_reader, "_WHOLE", whole)
    monkeypatch.setattr(parquet_reader, "_KEPT", 10_000)
    index = open_index(write(tmp_path / "a.parquet", rows * 2, group=30))
    reader = index.source.reader()
    longest = max(len(content or b"") for content, _, _ in rows)
    for i in [*np.random.default_rng(1).permutation(len(index)), *range(len(index))]:
        assert reader.read(index.source.locator(int(i))) == (rows * 2)[i][0]
        kept = sum(found.nbytes for found in reader._windows.values())
        assert kept <= max(10_000, 2 * longest if window == 1 else 1 << 17)
    if window == 1:
        assert max(len(found) for found in reader._windows.values()) == 1
    threads = [threading.Thread(target=_check, args=(index, reader, rows * 2, k)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not _WRONG


_WRONG: list[int] = []


def _check(index: Any, reader: Any, rows: list[Row], seed: int) -> None:
    for i in np.random.default_rng(seed).permutation(len(index)):
        if reader.read(index.source.locator(int(i))) != rows[i][0]:
            _WRONG.append(int(i))


def test_labels_of_every_kind(rows: list[Row], tmp_path: Path) -> None:
    numbers = open_index(write(tmp_path / "numbers.parquet", rows, names=None))
    assert (numbers.classes, numbers.named) == (("0", "1", "2"), False)
    small = open_index(write(tmp_path / "small.parquet", rows, label=pa.int16()))
    assert small.labels.tolist() == numbers.labels.tolist()
    named = [(content, name, f"class {2 - label}") for content, name, label in rows]
    texts = open_index(write(tmp_path / "texts.parquet", named, names=None, label=pa.string()))
    assert texts.classes == ("class 0", "class 1", "class 2")
    assert texts.labels.tolist() == [2 - label for label in numbers.labels]
    plain = pa.table({"image": pa.array([row[0] for row in rows], pa.binary()), "id": list(range(len(rows)))})
    pq.write_table(plain, tmp_path / "plain.parquet")
    unlabelled = open_index(tmp_path / "plain.parquet")
    assert not unlabelled.labelled
    assert unlabelled.paths[3] == "plain.parquet/03"
    assert unlabelled.source.reader().read(unlabelled.source.locator(3)) == rows[3][0]
    twice = open_index(
        write(tmp_path / "twice.parquet", [(content, "same.jpg", 0) for content, _, _ in rows[:3]])
    )
    assert twice.paths == [f"twice.parquet/{row}" for row in range(3)]


def test_rows_without_bytes_are_bad_images(rows: list[Row], tmp_path: Path) -> None:
    broken = [*rows[:3], (None, "null.jpg", 1), (b"", "empty.jpg", 1), (b"no image", "text.jpg", 2)]
    index = open_index(write(tmp_path / "a.parquet", broken))
    with Loader(index, SPEC, workers=0) as loader:
        valid = np.concatenate([batch.valid for batch in loader.batches(eval_tasks(len(index), 6))])
    assert valid.tolist() == [True] * 3 + [False] * 3
    assert loader.failures[3] == "its bytes are null"
    assert loader.failures[4] == "the file is empty"
    assert loader.failures[5].startswith("not an image of a known format")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"picture": [b""], "label": [0]},
            "has no column 'image' with the bytes of images; it has: picture, label",
        ),
        ({"image": ["a.jpg"], "label": [0]}, "the column 'image' has the type string, not bytes of images"),
        ({"image": [b""], "label": [0.5]}, "the column 'label' has the type double, not integers or texts"),
        ({"image": [b"", b""], "label": [0, None]}, "1 rows have no label, e.g. row 1; write -1"),
        ({"image": [b"", b""], "label": [0, -2]}, "the label -2 of row 1 is neither -1 nor a class"),
        (
            {"image": [b"", b"", b""], "label": [0, -1, 0]},
            "1 of 3 images in .* have no label, e.g. a.parquet/1; add",
        ),
    ],
)
def test_columns_that_are_wrong(tmp_path: Path, columns: dict[str, list[Any]], said: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=said) as caught:
        open_index(tmp_path / "a.parquet")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_beyond_the_classes_and_classes_that_differ(rows: list[Row], tmp_path: Path) -> None:
    beyond = [*rows[:4], (rows[4][0], "x.jpg", 3), (rows[5][0], "y.jpg", 7)]
    path = write(tmp_path / "beyond" / "a.parquet", beyond)
    with pytest.raises(DataError, match=r"a.parquet: the label 3 of row 4 is not below 3, .*; 2 rows are so"):
        open_index(path)
    write(tmp_path / "mixed" / "a.parquet", rows)
    write(tmp_path / "mixed" / "b.parquet", rows, names=("ant", "bee", "dog"))
    with pytest.raises(DataError, match=r"b.parquet has other classes than .*a.parquet"):
        open_index(tmp_path / "mixed")
    with pytest.raises(DataError, match="names two classes 'ant'"):
        open_index(write(tmp_path / "same.parquet", rows, names=("ant", "bee", "ant")))


def test_files_that_are_damaged_or_change(rows: list[Row], tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", rows)
    content = path.read_bytes()
    for wrong in (content[:-10], content[:100], b"", b"text" * 100):
        (tmp_path / "wrong.parquet").write_bytes(wrong)
        with pytest.raises(
            DataError, match=r"cannot read .*wrong.parquet: .*; is it a whole Parquet file\?"
        ) as caught:
            open_index(tmp_path / "wrong.parquet")
        assert "\n" not in str(caught.value)
    at = content.index(rows[5][0][100:160] if rows[5][0] else b"")  # inside the second row group
    path.write_bytes(content[: at - 2000] + bytes(4000) + content[at + 2000 :])
    index = open_index(path)
    with Loader(index, SPEC, workers=0) as loader:
        batches = list(loader.batches(eval_tasks(len(index), 6)))
    assert sum(int(batch.valid.sum()) for batch in batches) < len(index)
    assert loader.failures
    for change in (lambda: write(path, rows), path.unlink):
        index = open_index(write(path, rows[:-1]))
        change()
        with Loader(index, SPEC, workers=0) as loader, pytest.raises(DataError, match=r"a.parquet"):
            list(loader.batches(eval_tasks(len(index), 6)))


def test_without_pyarrow(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        UsageError, match=r"Parquet files need pyarrow: pip install 'resnext-core\[parquet\]'"
    ):
        open_index(hub / "train-*.parquet")


@pytest.fixture(scope="module")
def s3(hub: Path) -> Iterator[Any]:
    with s3_server() as client:
        client.mkdir("hub")
        upload(client, hub, "hub/data")
        yield client


@pytest.fixture
def web(hub: Path) -> Iterator[FaultyServer]:
    with faulty_server({f"/data/{path.name}": path.read_bytes() for path in hub.iterdir()}) as server:
        yield server


def test_shards_in_a_store_are_the_folder(tree: Path, s3: Any, tmp_path: Path) -> None:
    data = settings(tmp_path)
    part = find_splits("s3://hub/data", data)["train"]
    assert str(part) == "s3://hub/data/train-*.parquet"
    index = open_index(part, data=data)
    assert stream_digest(index, 0) == stream_digest(open_index(tree), 0)
    assert stream_digest(index, 2) == stream_digest(open_index(tree), 0)
    assert len(pickle.dumps(index.source.reader())) < 3000


def test_a_row_group_is_fetched_once_and_its_images_are_kept(web: FaultyServer, tmp_path: Path) -> None:
    url, data = f"{web.url}/data/train-*.parquet", settings(tmp_path)
    index = open_index(url, data=data)
    opened = len(web.asked)
    first = stream_digest(index, 0)
    groups = 3 + 2  # row groups of four in files of ten and eight images
    assert len(web.asked) - opened <= groups + 2
    again = len(web.asked)
    assert stream_digest(open_index(url, data=data), 0) == first
    assert {path for path, _ in web.asked[again:]} <= {"/data/"}


def test_faults_on_the_way(web: FaultyServer, tree: Path, tmp_path: Path) -> None:
    for name in ("/data/train-00000-of-00002.parquet", "/data/train-00001-of-00002.parquet"):
        web.faults[name].extend([503, CUT])
    index = open_index(f"{web.url}/data/train-*.parquet", data=settings(tmp_path))
    for name in ("/data/train-00000-of-00002.parquet", "/data/train-00001-of-00002.parquet"):
        web.faults[name].extend([DROP, 500])
    assert stream_digest(index, 0) == stream_digest(open_index(tree), 0)
    lasting = open_index(f"{web.url}/data/train-*.parquet", data=settings(tmp_path / "other", tries=2))
    web.always["/data/train-00001-of-00002.parquet"] = 503
    with (
        Loader(lasting, SPEC, workers=0) as loader,
        pytest.raises(DataError, match=r"HTTP status 503 .*2 tries") as e,
    ):
        list(loader.batches(eval_tasks(len(lasting), 6)))
    assert "\n" not in str(e.value)
    with pytest.raises(DataError, match=r"HTTP status 503 .*2 tries"):
        open_index(f"{web.url}/data/train-*.parquet", data=settings(tmp_path / "third", tries=2))
