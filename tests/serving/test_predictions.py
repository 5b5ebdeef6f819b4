"""The table of predictions: formats, order, unreadable images, formulas, and files that are whole or not there."""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from resnext_core.data.index import Index
from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import Batch
from resnext_core.ranks.collectives import Collectives, SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.serving.metrics import softmax
from resnext_core.serving.predictions import check_predictions, predictions

CLASSES = ("=1+1", "-2", "cat", "dog")
PATHS = ("=cmd.jpg", "a.jpg", "@b.jpg", "c,d.jpg", "e\udcff.jpg", "-f.jpg", "g.jpg")


@pytest.fixture
def index() -> Index:
    return Index(paths=PATHS, labels=np.array([0, 1, 2, 3, 0, 1, 2], np.int32), classes=CLASSES, root=Path())


def logits_of(positions: NDArray[Any]) -> NDArray[np.float32]:
    rows = np.random.default_rng(5).normal(size=(len(PATHS), len(CLASSES))).astype(np.float32) * 3
    rows[6] = np.nan
    return rows[positions]


def batches(index: Index, size: int, rank: int = 0, world: int = 1) -> list[Batch]:
    """The batches of an evaluation, as its tasks cut them; image 3 cannot be read."""
    made = []
    share = -(-len(index) // world)
    mine = np.arange(rank, len(index), world)
    for start in range(0, share, size):
        part = mine[start : start + size]
        positions = np.full(size, -1, np.int64)
        positions[: len(part)] = part
        valid = (positions >= 0) & (positions != 3)
        images = np.zeros((size, 2, 2, 3), np.uint8)
        made.append(Batch(images=images, labels=index.labels[positions], index=positions, valid=valid))
    return made


def write(path: Path, index: Index, size: int = 3, top: int = 2, world: int = 1) -> None:
    """Write the table on `world` threads."""
    failed: list[BaseException] = []
    barrier, parts = threading.Barrier(world, timeout=60), dict[int, NDArray[Any]]()

    class Rank(SingleProcess):
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def all_reduce_sum(self, values: NDArray[Any]) -> NDArray[Any]:
            parts[self.rank] = values
            barrier.wait()
            total = np.sum([parts[r] for r in range(world)], axis=0)
            barrier.wait()
            return total

    def one(rank: int) -> None:
        together: Collectives = Rank(rank)
        try:
            with predictions(path, index, top, RankInfo(rank=rank, world=world), together) as take:
                for batch in batches(index, size, rank, world):
                    take(batch, logits_of(batch.index), lambda position: f"=broken {position}")
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def test_csv_has_what_was_predicted_and_no_formula(index: Index, tmp_path: Path) -> None:
    write(tmp_path / "p.csv", index)
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == [
        "path", "true", "predicted", "true_probability", "error", "class_1", "probability_1", "class_2",
        "probability_2",
    ]  # fmt: skip
    assert [row["path"] for row in rows] == [
        "./=cmd.jpg", "a.jpg", "./@b.jpg", "c,d.jpg", "e\udcff.jpg", "./-f.jpg", "g.jpg",
    ]  # fmt: skip
    shown = ("'=1+1", "-2", "cat", "dog")
    for position, row in enumerate(rows):
        true = int(index.labels[position])
        assert row["true"] == shown[true], "a number is no formula, even a negative one"
        if position in (3, 6):
            assert row["error"] == ("'=broken 3" if position == 3 else "the network's output is not a number")
            assert row["predicted"] == row["class_1"] == row["probability_2"] == row["true_probability"] == ""
            continue
        shares = softmax(logits_of(np.array([position]))[0])
        best = np.argsort(-shares)
        assert [row["class_1"], row["class_2"]] == [shown[i] for i in best[:2]]
        assert row["predicted"] == row["class_1"]
        got = [float(row[name]) for name in ("probability_1", "probability_2", "true_probability")]
        assert got == pytest.approx([*shares[best[:2]], shares[true]], rel=1e-5)


def test_json_lines_and_parquet_say_the_same(index: Index, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write(tmp_path / "p.jsonl", index, top=9)
    write(tmp_path / "p.parquet", index, top=9)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text("ascii").splitlines()]
    table = parquet.read_table(tmp_path / "p.parquet").to_pylist()
    assert [line["path"] for line in lines] == list(PATHS)
    for line, row in zip(lines, table, strict=True):
        assert row["path"] == line["path"].replace("\udcff", "\\udcff")
        assert row["true"] == line["true"]
        assert row["error"] == line.get("error")
        assert row["predicted"] == line.get("predicted")
        assert row["true_probability"] == line.get("true_probability")
        top = line.get("top", [])
        assert row["classes"] == [guess["name"] for guess in top] == [CLASSES[guess["id"]] for guess in top]
        assert row["probabilities"] == [guess["probability"] for guess in top]
        assert len(top) in (0, 4), "no more classes than there are"
    assert sum("error" in line for line in lines) == 2


@pytest.mark.parametrize(("size", "world"), [(1, 1), (7, 1), (64, 1), (2, 2), (1, 3), (4, 5)])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_the_file_does_not_depend_on_batch_or_world(
    index: Index, tmp_path: Path, size: int, world: int, kind: str
) -> None:
    write(tmp_path / f"a.{kind}", index)
    write(tmp_path / f"b.{kind}", index, size=size, world=world)
    assert (tmp_path / f"b.{kind}").read_bytes() == (tmp_path / f"a.{kind}").read_bytes()


def test_many_rows_are_written_in_groups(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    count = 10_000
    index = Index(
        paths=[f"{i}.png" for i in range(count)],
        labels=np.zeros(count, np.int32),
        classes=CLASSES,
        root=Path(),
    )
    positions = np.arange(count)
    batch = Batch(
        images=np.zeros((count, 1, 1, 3), np.uint8), labels=index.labels, index=positions,
        valid=np.ones(count, np.bool_),
    )  # fmt: skip
    path = tmp_path / "p.parquet"
    with predictions(path, index, 1, RankInfo(), SingleProcess()) as take:
        take(batch, np.zeros((count, 4), np.float32), str)
    assert parquet.ParquetFile(path).num_row_groups == 3
    assert [row["path"] for row in parquet.read_table(path).to_pylist()] == list(index.paths)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("error", [OSError(5, "of an image"), ValueError("other")])
def test_an_evaluation_that_fails_leaves_no_file(
    index: Index, tmp_path: Path, kind: str, error: Exception
) -> None:
    """And an error of the evaluation is not taken for one of the file."""
    if kind == "parquet":
        pytest.importorskip("pyarrow")

    def fail() -> None:
        with predictions(tmp_path / f"p.{kind}", index, 2, RankInfo(), SingleProcess()) as take:
            take(batches(index, 3)[0], logits_of(np.arange(3)), str)
            raise error

    with pytest.raises(type(error), match=str(error.args[-1])):
        fail()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "top", "kind", "says"),
    [
        ("p.txt", 5, UsageError, r"predictions are written to .csv, .jsonl, .parquet files, not 'p.txt'"),
        ("p.csv", 0, UsageError, "1 or more classes"),
        ("there.csv", 5, DataError, "already exists; remove it, or give another name"),
        ("there.csv/p.csv", 5, DataError, "cannot write .*Not a directory"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, name: str, top: int, kind: type[Exception], says: str
) -> None:
    (tmp_path / "there.csv").write_text("kept")
    with pytest.raises(kind, match=says):
        check_predictions(tmp_path / name, top)
    assert (tmp_path / "there.csv").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["there.csv"]


def test_a_table_without_pyarrow_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"Parquet files need pyarrow.*\[parquet\]"):
        check_predictions(tmp_path / "p.parquet", 5)


def test_a_full_disk_is_one_line(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from resnext_core.serving import predictions as module

    class Full(module._JsonLines):
        def add(self, row: module.Row) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_JsonLines", Full)
    take: Callable[..., None]
    with (
        pytest.raises(DataError, match=r"cannot write .*p\.jsonl: No space left on device"),
        predictions(tmp_path / "p.jsonl", index, 2, RankInfo(), SingleProcess()) as take,
    ):
        take(batches(index, 3)[0], logits_of(np.arange(3)), str)
    assert not list(tmp_path.iterdir())


def test_a_csv_file_keeps_names_with_line_ends_and_quotes(tmp_path: Path) -> None:
    names = ("a\rb.jpg", "c\nd.jpg", 'e"f",g.jpg', "h\r\ni.jpg")
    classes = ("one\rtwo", 'th"ree')
    odd = Index(paths=names, labels=np.array([0, 1, 0, 1], np.int32), classes=classes, root=Path())
    with predictions(tmp_path / "p.csv", odd, 2, RankInfo(), SingleProcess()) as take:
        batch = Batch(
            images=np.zeros((4, 2, 2, 3), np.uint8), labels=odd.labels.copy(), index=np.arange(4),
            valid=np.array([True, True, True, False]),
        )  # fmt: skip
        take(batch, np.eye(4, 2, dtype=np.float32), lambda position: "broken\rimage")
    with (tmp_path / "p.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(row["path"] for row in rows) == names
    assert [row["true"] for row in rows] == [classes[label] for label in odd.labels]
    assert rows[3]["error"] == "broken\rimage"
    assert (tmp_path / "p.csv").read_bytes().count(b"\r\n") == 1  # that of the last path
