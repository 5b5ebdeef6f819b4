"""Which images there are and what their classes are: the program and resnext-run decide the same, case by case."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cpp_cases import Done, manifest
from images import picture

from resnext_core.data.index import open_index, remarks
from resnext_core.errors import DataError
from resnext_core.model.preprocess import PreprocessSpec

Infer = Callable[..., Done]
Build = Callable[[Path], object]
SPEC = PreprocessSpec(size=8, resize=8)
NUMBERS = tuple(str(i) for i in range(10))
PETS = ("cat", "dog")
ODD = ("crane", "caf\u00e9")


def folders(*names: str) -> Build:
    """A folder with an image in each of the folders `names`."""

    def build(root: Path) -> None:
        for name in names:
            image(root / "data" / name / "1.png")

    return build


def listed(text: str | bytes) -> Build:
    """A list of the images a.png, b.png and deep/c.png."""

    def build(root: Path) -> Path:
        for name in ("a.png", "b.png", "deep/c.png"):
            image(root / name)
        (root / "list.txt").write_bytes(text.encode() if isinstance(text, str) else text)
        return root / "list.txt"

    return build


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(9, 9).save(path, format="PNG")


def odd_files(root: Path) -> None:
    data = root / "data"
    for name in ("cat/1.jfif", "cat/2.JPE", "cat/3.apng", "dog/1.pbm", "dog/2.pnm", "dog/deep/3.png"):
        image(data / name)
    for name in ("cat/1.heic", "cat/2.HEIC", "dog/x.avif", "notes.txt", "dog/LICENSE", "dog/.hidden.txt"):
        (data / name).write_bytes(b"x")
    os.mkfifo(data / "dog" / "pipe.png")


def links(root: Path) -> None:
    data = root / "data"
    image(data / "cat" / "1.png")
    image(data / "dog" / "1.png")
    os.symlink("..", data / "cat" / "up")
    os.symlink("itself.png", data / "cat" / "itself.png")
    os.symlink("nowhere.png", data / "dog" / "gone.png")
    os.symlink("itself", data / "dog" / "itself")
    os.symlink("itself", data / "itself")


def many_endings(root: Path) -> None:
    folders(*PETS)(root)
    for i in range(12):
        (root / "data" / "cat" / f"x.{i:02}").touch()


CASES: dict[str, tuple[Build, tuple[str, ...], bool | None]] = {
    "by name": (folders("dog"), PETS, None),
    "numbers by value": (folders("0", "3", "9"), NUMBERS, None),
    "numbers with zeros": (folders(*(f"{i:03}" for i in range(10))), NUMBERS, None),
    "1 to 10": (folders(*(str(i + 1) for i in range(10))), NUMBERS, None),
    "one number twice": (folders("1", "01"), NUMBERS, None),
    "a long number": (folders("0", "99999999999999999999"), NUMBERS, None),
    "numbers and names": (folders("0", "cat"), ("0", "1"), None),
    "by position": (folders("x", "a b"), ("0", "1"), None),
    "too few for a position": (folders("x"), ("0", "1"), None),
    "names that are numbers": (folders("0", "1"), ("0", "1"), True),
    "names that are numbers, others": (folders("x", "y"), ("0", "1"), True),
    "names that are numbers, with zeros": (folders("00", "01"), ("0", "1"), True),
    "numbers for names": (folders("0", "1"), PETS, None),
    "numbers by what is said": (folders("x", "y"), PETS, False),
    "normalisation": (folders("cafe\u0301"), ODD, None),
    "odd files": (odd_files, PETS, None),
    "many endings": (many_endings, PETS, None),
    "links": (links, PETS, None),
    "list of names": (listed("a.png cat\nb.png\tdog\n"), PETS, None),
    "list of numbers": (listed("a.png 1\ndeep/c.png 0\n"), PETS, None),
    "numbers that are names": (listed("a.png 11\nb.png 2\n"), ("11", "2"), None),
    "mixed list": (listed("a.png 1\nb.png cat\n"), PETS, None),
    "names for no names": (listed("a.png cat\nb.png dog\n"), ("0", "1"), None),
    "not below": (listed("a.png 0\nb.png 2\n"), PETS, None),
    "minus one": (listed("a.png 0\nb.png -1\n"), PETS, None),
    "minus one as a name": (listed("a.png -1\n"), ("-1", "1"), None),
    "no label": (listed("a.png cat\nb.png\n"), PETS, None),
    "no label behind a tab": (listed("a.png\t\n"), PETS, None),
    "control character": (listed("a.png cat\nb.png c\x07at\n"), PETS, None),
    "line separator": (listed("a.png cat\nb.png c\u2028at\n"), PETS, None),
    "unknown": (listed("a.png cat\nb.png bird\n"), PETS, None),
    "missing": (listed("a.png cat\ngone.png cat\n"), PETS, None),
    "a folder": (listed("a.png cat\ndeep cat\n"), PETS, None),
    "two labels": (listed("a.png cat\n./a.png dog\n"), PETS, None),
    "the same twice": (listed("a.png cat\n./a.png cat\n"), PETS, None),
    "from Windows": (listed(b"\xef\xbb\xbfa.png cat\r\ndeep/c.png dog\r\n"), PETS, None),
    "UTF-16": (listed("a.png cat\n".encode("utf-16")), PETS, None),
    "Latin-1": (listed("a.png caf\u00e9\n".encode("latin-1")), ODD, None),
    "blanks": (listed("  # none\n\n  .//a.png  \t cat \n\tdeep//./c.png dog\n"), PETS, None),
    "nothing": (listed("# none\n"), PETS, None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_program_and_resnext_run_decide_the_same(infer: Infer, tmp_path: Path, case: str) -> None:
    build, classes, named = CASES[case]
    data = build(tmp_path) or tmp_path / "data"
    assert isinstance(data, Path)
    told = manifest(SPEC, classes) | ({} if named is None else {"named_classes": named})
    (tmp_path / "model.bin.json").write_text(json.dumps(told))
    has_names = named if named is not None else classes not in (NUMBERS, ("0", "1"))
    done = infer("--model", tmp_path / "model.bin", "--engine", "null", "--quiet", "--data", data)
    try:
        index = open_index(data, classes, named=has_names)
    except DataError as error:
        assert done.code == 3, done
        assert done.out == ""
        line = str(error).removeprefix(f"{data}:").split(":")[0]
        if str(error).startswith(f"{data}:"):  # a list: both name the same line
            assert done.err.startswith(f"resnext-infer: {data}:{line}: "), done.err
        return
    rows = [json.loads(row) for row in done.out.splitlines()]
    found = [(str(index.path(i)), int(label)) for i, label in enumerate(index.labels)]
    assert [(row["path"], row["label"]) for row in rows] == found, done.err
    assert done.err.splitlines() == list(remarks([index]))
    assert done.code == (3 if any("error" in row for row in rows) else 0)


def test_a_refusal_says_what_to_do(infer: Infer, tmp_path: Path) -> None:
    data = tmp_path / "data"
    folders(*(str(i + 1) for i in range(10)))(tmp_path)
    (tmp_path / "model.bin.json").write_text(json.dumps(manifest(SPEC, NUMBERS)))
    done = infer("--model", tmp_path / "model.bin", "--engine", "null", "--quiet", "--data", data)
    with pytest.raises(DataError) as caught:
        open_index(data, NUMBERS, named=False)
    assert done.err == f"resnext-infer: {caught.value}\n"
    assert "has folders numbered 1 to 10" in done.err
    assert "--classes FILE" in done.err


def test_labels_that_contradict_each_other_are_refused(infer: Infer, tmp_path: Path) -> None:
    image(tmp_path / "flat" / "a.png")
    (tmp_path / "model.bin.json").write_text(json.dumps(manifest(SPEC, PETS)))
    (tmp_path / "labels.json").write_text('{"x/a.png": "cat", "y/a.png": "dog"}')
    words = ["--model", tmp_path / "model.bin", "--engine", "null", "--quiet", "--data", tmp_path / "flat"]
    done = infer(*words, "--labels", tmp_path / "labels.json")
    assert (done.code, "a.png is already listed with another label" in done.err) == (3, True), done
    (tmp_path / "labels.json").write_text('{"x/a.png": "1"}')
    assert json.loads(infer(*words, "--labels", tmp_path / "labels.json").out)["label"] == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classes": ["cat", "cat"]}, "the class name cat is that of class 0 and of class 1"),
        ({"classes": ["cat", ""]}, "class 1 has an empty name"),
        ({"named_classes": "yes"}, "named_classes"),
    ],
)
def test_class_names_that_are_none(
    infer: Infer, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    folders("cat")(tmp_path)
    (tmp_path / "model.bin.json").write_text(json.dumps(manifest(SPEC, PETS) | change))
    done = infer(
        "--model", tmp_path / "model.bin", "--engine", "null", "--quiet", "--data", tmp_path / "data"
    )
    assert (done.code, says in done.err) == (3, True), done
