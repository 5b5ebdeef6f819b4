"""The index: folders, lists, splits, labels, digests, and the message of everything that is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from resnext_core.config import DataConfig
from resnext_core.data.index import find_splits, image_folder, open_index
from resnext_core.errors import DataError, UsageError


def touch(root: Path, *names: str, content: bytes = b"x") -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_class_folders(tmp_path: Path) -> None:
    touch(
        tmp_path, "b/2.PNG", "b/10.jpg", "B/x.jpeg", "a/deep/er/1.webp", "a/0.gif", "a/notes.txt",
        "b/.hidden.jpg", ".cache/1.jpg", "readme.md",
    )  # fmt: skip
    index = open_index(tmp_path)
    assert index.classes == ("B", "a", "b")  # code points, no locale
    assert index.paths == ("B/x.jpeg", "a/0.gif", "a/deep/er/1.webp", "b/10.jpg", "b/2.PNG")
    assert index.labels.tolist() == [0, 1, 1, 2, 2]
    assert index.labels.dtype == np.int32
    assert (len(index), index.ignored, index.labelled) == (5, {".md": 1, ".txt": 1}, True)
    assert index.path(3) == tmp_path / "b" / "10.jpg"


def test_order_does_not_depend_on_the_file_system(tmp_path: Path) -> None:
    names = [f"{c}/{i}.jpg" for c in ("x", "y", "é") for i in (1, 10, 2)]
    first = open_index(touch(tmp_path / "one", *names))
    second = open_index(touch(tmp_path / "two", *reversed(names)))
    assert first.paths == second.paths == tuple(sorted(names))
    assert first.dataset_digest == second.dataset_digest


def test_digest_sees_names_labels_and_sizes(tmp_path: Path) -> None:
    base = open_index(touch(tmp_path / "0", "a/1.jpg", "b/1.jpg")).dataset_digest
    others = [
        open_index(touch(tmp_path / "1", "a/2.jpg", "b/1.jpg")),
        open_index(touch(tmp_path / "2", "a/1.jpg", "b/1.jpg", content=b"xx")),
        open_index(touch(tmp_path / "3", "a/1.jpg", "b/1.jpg"), classes=("b", "a")),
    ]
    assert base.startswith("sha256:")
    assert len({base, *(o.dataset_digest for o in others)}) == 4


def test_classes_of_the_training(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "dog/1.jpg")
    (tmp_path / "bird").mkdir()
    index = open_index(tmp_path, classes=("dog", "bird", "emu", "cat"))
    assert index.labels.tolist() == [3, 0]
    assert index.classes == ("dog", "bird", "emu", "cat")
    touch(tmp_path, "brid/1.jpg")
    with pytest.raises(
        DataError, match=r"the class 'brid', which the training data lacks; did you mean 'bird'\?"
    ):
        open_index(tmp_path, classes=("dog", "bird", "emu", "cat"))


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no data at .*nowhere; give a folder"):
        open_index(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"empty has no images \(\.jpg"):
        open_index(empty)
    touch(tmp_path / "hollow", "full/1.jpg", "hollow_class/readme.txt")
    with pytest.raises(DataError, match=r"class folder .*hollow_class has no images"):
        open_index(tmp_path / "hollow")
    touch(tmp_path / "mixed", "a/1.jpg", "stray.png")
    with pytest.raises(DataError, match=r"both images \(stray\.png\) and folders \(a\)"):
        open_index(tmp_path / "mixed")


def test_unlabelled_images(tmp_path: Path) -> None:
    touch(tmp_path, "2.jpg", "1.jpg", "x.txt")
    index = open_index(tmp_path)
    assert (index.paths, index.classes, index.ignored) == (("1.jpg", "2.jpg"), (), {".txt": 1})
    assert index.labels.tolist() == [-1, -1]
    assert not index.labelled
    touch(tmp_path, "deep/0.jpg")
    assert image_folder(tmp_path, ("a", "b")).paths == ("1.jpg", "2.jpg", "deep/0.jpg")
    with pytest.raises(DataError, match="there is no folder"):
        image_folder(tmp_path / "1.jpg")


def test_links_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "data", "a/1.jpg")
    touch(tmp_path / "elsewhere", "2.jpg")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "b")
    os.symlink(tmp_path / "data", tmp_path / "data" / "a" / "loop")
    index = open_index(tmp_path / "data")
    assert index.classes == ("a", "b")
    assert len(index) == len({os.path.realpath(index.path(i)) for i in range(len(index))}) + 1
    os.mkfifo(tmp_path / "elsewhere" / "pipe.jpg")  # reading it would wait for ever
    assert open_index(tmp_path / "data").ignored == {"pipe, socket or device": 2}


def test_text_list_of_names(tmp_path: Path) -> None:
    touch(tmp_path, "img/b 1.jpg", "img/a.jpg", "img/c.jpg")
    (tmp_path / "train.txt").write_text(
        "# a comment\n\nimg/c.jpg dog\nimg/b 1.jpg   cat\r\n./img/a.jpg\tlong sleeve\n", encoding="utf-8-sig"
    )
    with pytest.raises(DataError, match="class 'long sleeve'"):
        open_index(tmp_path / "train.txt", classes=("dog", "cat"))
    index = open_index(tmp_path / "train.txt")
    assert index.classes == ("cat", "dog", "long sleeve")
    assert index.paths == ("img/a.jpg", "img/b 1.jpg", "img/c.jpg")
    assert index.labels.tolist() == [2, 0, 1]
    assert index.root == tmp_path


def test_text_list_of_integers(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    lists = tmp_path / "l.txt"
    lists.write_text("a.jpg 11\nb.jpg 2\n")
    index = open_index(lists)
    assert index.classes == tuple(str(i) for i in range(12))
    assert index.labels.tolist() == [11, 2]
    # classes named by numbers are meant by their names, whatever their order
    assert open_index(lists, classes=("11", "2")).labels.tolist() == [0, 1]
    assert open_index(lists, classes=tuple(f"class {i}" for i in range(12))).labels.tolist() == [11, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 0\nb.jpg\n", r"l\.txt:2: expected 'path label', got 'b\.jpg'"),
        ("a.jpg 0\n\nmissing.jpg 1\n", r"l\.txt:3: there is no file .*missing\.jpg"),
        ("a.jpg 0\na.jpg 1\n", r"l\.txt:2: a\.jpg was listed before with another label"),
        ("# nothing\n", "lists no images"),
        ("a.jpg 1000000\n", r"l\.txt:1: the label 1000000 is not below 1000000"),
        ("b.jpg cat\na.jpg 5\n", None),  # 5 is then a name
    ],
)
def test_text_list_errors_name_the_line(tmp_path: Path, text: str, message: str | None) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "l.txt").write_text(text)
    if message is None:
        assert open_index(tmp_path / "l.txt").classes == ("5", "cat")
        return
    with pytest.raises(DataError, match=message) as caught:
        open_index(tmp_path / "l.txt")
    assert "\n" not in str(caught.value)


def test_text_list_against_the_training(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    lists = tmp_path / "l.txt"
    lists.write_text("a.jpg cat\nb.jpg emu\n")
    with pytest.raises(DataError, match=r"l\.txt:2: the training data lacks the class 'emu'"):
        open_index(lists, classes=("cat", "dog"))
    lists.write_text("a.jpg 1\nb.jpg 2\n")
    with pytest.raises(DataError, match=r"l\.txt:2: the label 2 is not below 2"):
        open_index(lists, classes=("cat", "dog"))
    lists.write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(DataError, match="not a UTF-8 text list"):
        open_index(lists)


def test_splits(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "validation/a/1.jpg", "lists/test.txt", "test.txt")
    splits = find_splits(tmp_path, DataConfig(), need=("train", "val"))
    assert splits == {
        "train": tmp_path / "train",
        "val": tmp_path / "validation",
        "test": tmp_path / "test.txt",
    }
    assert find_splits(tmp_path, DataConfig(test="lists/test.txt"))["test"] == tmp_path / "lists" / "test.txt"
    with pytest.raises(UsageError, match=r"data\.val: there is no .*typo"):
        find_splits(tmp_path, DataConfig(val="typo"))
    (tmp_path / "val").mkdir()
    with pytest.raises(UsageError, match=r"has val and validation; say which one with --set data\.val=val"):
        find_splits(tmp_path, DataConfig())
    assert find_splits(tmp_path, DataConfig(val="validation"))["val"] == tmp_path / "validation"
    with pytest.raises(UsageError, match="there is no data folder"):
        find_splits(tmp_path / "nowhere", DataConfig())


def test_missing_splits(tmp_path: Path) -> None:
    touch(tmp_path, "test/a/1.jpg")
    assert set(find_splits(tmp_path, DataConfig())) == {"test"}
    with pytest.raises(UsageError, match=r"has no train, val/valid/validation .*--set data\.train=PATH"):
        find_splits(tmp_path, DataConfig(), need=("train", "val", "test"))
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="has no train, val/valid/validation, test "):
        find_splits(tmp_path / "other", DataConfig())
