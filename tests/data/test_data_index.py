"""The index: folders, lists, splits, labels, digests, and the message of everything that is wrong."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnext_core.config import DataConfig
from resnext_core.data.decode import BadImage, read_image
from resnext_core.data.folders import SUFFIXES
from resnext_core.data.index import find_splits, image_folder, open_index, remarks
from resnext_core.data.paths import Paths
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
        DataError, match=r"the class 'brid', which is not in the training data; did you mean 'bird'\?"
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
        ("a.jpg 0\n\nmissing.jpg 1\n", r"l\.txt:3: no such file: .*missing\.jpg"),
        ("a.jpg 0\na.jpg 1\n", r"l\.txt:2: a\.jpg is already listed with another label"),
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
    with pytest.raises(DataError, match=r"l\.txt:2: the training data has no class 'emu'"):
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
    with pytest.raises(UsageError, match=r"data\.val: .*typo does not exist"):
        find_splits(tmp_path, DataConfig(val="typo"))
    (tmp_path / "val").mkdir()
    with pytest.raises(UsageError, match=r"has val and validation; choose one with --set data\.val=val"):
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


# -- endings, links, depth -----------------------------------------------------------------------


def test_every_ending_of_a_format_that_can_be_read_is_an_image(tmp_path: Path) -> None:
    picture = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    formats = Image.registered_extensions()
    for suffix in SUFFIXES:
        picture.save(tmp_path / f"x{suffix.upper()}", format=formats[suffix])
    index = open_index(tmp_path)
    assert len(index) == len(SUFFIXES) == 15
    assert {".jfif", ".jpe", ".pbm", ".pnm", ".apng"} <= set(SUFFIXES)
    for i in range(len(index)):
        assert read_image(index.path(i)).size == (4, 4)


def test_what_is_ignored_is_counted_by_ending(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.png", "a/x.heic", "a/deep/y.HEIC", "b/LICENSE", "b/.hidden", "notes.txt")
    first = open_index(tmp_path)
    assert first.ignored == {".heic": 2, ".txt": 1, "without an ending": 1}
    line = "ignored 4 files that are not images by their names: 2 .heic, 1 .txt, 1 without an ending"
    assert list(remarks([first])) == [line]
    touch(tmp_path / "other", "1.jpg", "x.avif")
    assert list(remarks([open_index(tmp_path / "other")])) == [
        "ignored 1 file that is not an image by its name: 1 .avif"
    ]
    both = list(remarks([first, open_index(tmp_path / "other")]))  # of all parts, once
    assert both == [line.replace("4 files", "5 files").replace("1 .txt", "1 .avif, 1 .txt")]
    touch(tmp_path / "many", "1.jpg", *(f"x.{i:02}" for i in range(13)), "y.\x1b[31m")
    (said,) = remarks([open_index(tmp_path / "many")])
    assert said.endswith(", and 4 other endings")
    assert said.isprintable()
    with pytest.raises(DataError, match=r"has no images .*; ignored 1 file .*: 1 \.heic; add some"):
        open_index(touch(tmp_path / "none", "x.heic"))


def test_links_that_lead_nowhere_are_images_that_cannot_be_read(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg")
    os.symlink("itself.jpg", tmp_path / "a" / "itself.jpg")
    os.symlink("nowhere.jpg", tmp_path / "a" / "gone.jpg")
    os.symlink("itself", tmp_path / "a" / "itself")
    os.symlink("itself", tmp_path / "itself")  # no class
    os.symlink("..", tmp_path / "a" / "up")  # the whole again, but a is not entered twice
    index = open_index(tmp_path)
    assert index.classes == ("a",)
    assert index.paths == ("a/1.jpg", "a/gone.jpg", "a/itself.jpg")
    assert index.ignored == {"without an ending": 3}  # a/itself, itself, a/up/itself
    assert index.dataset_digest.startswith("sha256:")
    for i in (1, 2):
        with pytest.raises(BadImage):
            read_image(index.path(i))


def test_folders_may_be_deep_and_names_long(tmp_path: Path) -> None:
    """1,100 folders in each other are walked; a path that the system takes no more is one line."""
    here = os.getcwd()
    try:
        (tmp_path / "data" / "a").mkdir(parents=True)
        os.chdir(tmp_path / "data" / "a")
        for _ in range(1100):
            os.mkdir("d")
            os.chdir("d")
        Path("1.jpg").touch()
        os.chdir(here)
        index = open_index(tmp_path / "data")
        assert list(index.paths) == ["a/" + 1100 * "d/" + "1.jpg"]
        os.chdir(tmp_path / "data" / "a")
        for _ in range(30):
            os.mkdir("e" * 200)
            os.chdir("e" * 200)
        os.chdir(here)
        with pytest.raises(DataError, match=r"cannot list .*: File name too long") as caught:
            open_index(tmp_path / "data")
        assert len(str(caught.value)) < 1000
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", tmp_path / "data"], check=True)  # Python's own is recursive
    with pytest.raises(DataError, match="there is no data at"):
        open_index("x" * 300)
    with pytest.raises(UsageError, match="there is no data folder"):
        find_splits("x" * 300, DataConfig())


# -- long lists ----------------------------------------------------------------------------------


def test_paths_are_a_sequence(tmp_path: Path) -> None:
    names = ["a/1", "a/\udce9", "a/b/1", "a/c", "2\n", "\u3042"]
    paths = Paths()
    for name in names:
        folder, slash, file = name.rpartition("/")
        paths.extend(folder + slash, [os.fsencode(file)])
    paths.extend("none/", [])
    assert len(paths) == 6
    assert list(paths) == [paths[i] for i in range(6)] == names
    assert (paths[-1], paths[2:4], paths[::-1]) == (names[-1], tuple(names[2:4]), tuple(names[::-1]))
    assert paths == names
    assert paths == tuple(names)
    assert paths != names[:-1]
    assert "a/c" in paths
    with pytest.raises(IndexError):
        paths[6]


def test_lists_and_folders_give_what_sorting_gives(tmp_path: Path) -> None:
    """Every order of folders in folders, against sorted(); and the digest against its definition."""
    rng = random.Random(3)
    parts = ["a", "b", "a-b", "a.b", "a b", "é", "~", "0", "aa"]
    for trial in range(10):
        root = tmp_path / str(trial)
        label_of: dict[str, int] = {}
        for _ in range(40):
            folder = "/".join(rng.choice(parts) for _ in range(rng.randrange(1, 4)))
            name = f"{folder}/{rng.choice(parts)}{rng.randrange(3)}.jpg"
            touch(root, f"d/{name}", content=b"x" * rng.randrange(4))
            label_of[name] = rng.randrange(3)
        lines = [f"d/{name}\t{label}\n" for name, label in label_of.items()]
        (root / "tabs.txt").write_text("".join(lines))
        (root / "blanks.txt").write_text("".join(lines).replace("\t", " "))
        (root / "find.txt").write_text("".join(f"./{line}" for line in lines))
        (root / "up.txt").write_text("".join(f"../{trial}/{line}" for line in lines))
        (root / "odd.txt").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).replace("d/", "./d//").encode())
        ordered = sorted(label_of)
        assert open_index(root / "d").paths == ordered
        digest = hashlib.sha256()
        for name in ordered:
            size = (root / "d" / name).stat().st_size
            digest.update(f"d/{name}\0{label_of[name]}\0{size}\n".encode())
        assert open_index(root / "up.txt").paths == [f"../{trial}/d/{name}" for name in ordered]
        for kind in ("tabs", "blanks", "find", "odd"):
            index = open_index(root / f"{kind}.txt")
            assert index.paths == [f"d/{name}" for name in ordered], kind
            assert index.labels.tolist() == [label_of[name] for name in ordered], kind
            assert index.dataset_digest == f"sha256:{digest.hexdigest()}", kind


def test_the_digest_is_what_it_always_was(tmp_path: Path) -> None:
    """Runs of earlier releases are resumed by it."""
    touch(tmp_path, "a/1.jpg", "a/b/2.jpg", "a-b/3.jpg", "é/4.png", content=b"four")
    digest = open_index(tmp_path).dataset_digest
    assert digest == "sha256:36dd523ef13dd714b522a9a23b015dde6f9afc39f0bde50b2e05114944e615e0"


def wide(tmp_path: Path, classes: int, files: int) -> Path:
    """A list of `classes` x `files` paths, through a link for each class, with CRLF."""
    names = [f"n{i:08}_{i * 7}.JPEG" for i in range(files)]
    touch(tmp_path, *(f"files/{name}" for name in names), content=b"")
    (tmp_path / "train").mkdir()
    for label in range(classes):
        os.symlink("../files", tmp_path / "train" / f"n{label:08}")
    lines = [f"train/n{label:08}/{name} {label}\r\n" for label in range(classes) for name in names]
    random.Random(1).shuffle(lines)
    (tmp_path / "train.txt").write_text("".join(lines))
    return tmp_path / "train.txt"


def test_a_long_list_takes_little_memory(tmp_path: Path) -> None:
    path = wide(tmp_path, 40, 1000)
    tracemalloc.start()
    try:
        index = open_index(path)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(index) == 40_000
    assert index.paths[-1] == "train/n00000039/n00000999_6993.JPEG"
    assert index.labels.tolist() == [label for label in range(40) for _ in range(1000)]
    assert kept < 40 * len(index)  # a tuple of texts takes 100
    assert peak - kept < 60 * len(index) + 24 * 2**20  # what is read at a time does not grow with the list


def test_what_is_wrong_in_a_long_list_is_named_with_its_line(tmp_path: Path) -> None:
    path = wide(tmp_path, 3, 1500)
    lines = path.read_text().split("\n")
    gone, twice = 2900, 1700
    name = lines[gone].split(" ")[0]
    path.write_text("\n".join(lines).replace(name, name.replace(".JPEG", ".gone")))
    with pytest.raises(DataError, match=rf"train\.txt:{gone + 1}: no such file: .*\.gone; correct"):
        open_index(path)
    first, again = lines[twice].split(" ")[0], lines[-2].split(" ")[0]
    changed = [*lines[:-2], f"{first} 7"]
    path.write_text("\n".join(changed))
    with pytest.raises(DataError, match=rf"train\.txt:{len(changed)}: {first} is already listed"):
        open_index(path)
    path.write_text("\n".join([*lines[:40], "train/n00000001 1", *lines[40:]]))
    with pytest.raises(DataError, match=r"train\.txt:41: .*n00000001 is not a regular file"):
        open_index(path)
    path.write_text("".join(f"{line} 1\n" for line in sorted({again, *(x.split(" ")[0] for x in lines[:9])})))
    assert len(open_index(path)) in (9, 10)  # few files of a large folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 0\nb.jpg -1\n", r"l\.txt:2: the label -1 is neither an integer from 0 nor a class name"),
        ("a.jpg -1\nb.jpg cat\n", r"l\.txt:1: the label -1"),
        ("a.jpg c\x07at\n", r"l\.txt:1: the label 'c\\x07at' has a control character"),
        ("a.jpg cat\nb.jpg\t\n", r"l\.txt:2: expected 'path label'"),
        (
            "a.jpg cat\nb.jpg c\xe9\n".encode("latin-1"),
            r"not a UTF-8 text list.*\(line 2\); save it as UTF-8",
        ),
        ("a.jpg cat\n".encode("utf-16"), r"not a UTF-8 text list.*\(it is UTF-16\)"),
        (b"x" * (3 << 20), r"l\.txt:1: the line is longer than 1 MiB"),
        ("a\0.jpg cat\n", r"l\.txt:1: no such file:"),
    ],
)
def test_labels_and_files_that_are_none(tmp_path: Path, text: str | bytes, message: str) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "l.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError, match=message) as caught:
        open_index(tmp_path / "l.txt")
    assert str(caught.value).isprintable()


def test_minus_one_may_be_a_class_of_the_training(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "l.txt").write_text("a.jpg -1\n")
    assert open_index(tmp_path / "l.txt", ("x", "-1")).labels.tolist() == [1]
