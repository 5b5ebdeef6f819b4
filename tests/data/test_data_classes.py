"""Which class is meant: names, numbers, positions; class names that are none; and who says what."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import CLASSES, CommandLine

from resnext_core.data.classes import by_folder
from resnext_core.data.index import open_index, remarks
from resnext_core.data.lines import class_names
from resnext_core.data.quarantine import Quarantine, read_list, write_list
from resnext_core.errors import EXIT_DATA, EXIT_USAGE, DataError, UsageError
from resnext_core.model.weights import Weights, load_weights, save_weights

NUMBERS = tuple(str(i) for i in range(10))
BY_POSITION = "the weights have no class names; using the 2 folder names in sorted order"
IGNORED = "ignored 2 files that are not images by their names: 1 .heic, 1 .txt"


# -- folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "classes", "named", "labels", "said"),
    [
        (["b"], ("a", "b"), True, {"b": 1}, None),
        (["0", "9"], NUMBERS, False, {"0": 0, "9": 9}, None),
        (["00", "09", "1"], NUMBERS, False, {"00": 0, "09": 9, "1": 1}, None),
        (["x", "y"], ("0", "1"), False, {"x": 0, "y": 1}, BY_POSITION),
        (["0", "1"], ("1", "0"), True, {"0": 1, "1": 0}, None),
    ],
)
def test_folders_and_their_classes(
    folders: Sequence[str], classes: Sequence[str], named: bool, labels: dict[str, int], said: str | None
) -> None:
    found, known, remark = by_folder(Path("data"), folders, classes, named=named)
    assert (found, remark) == (labels, said)
    assert known == (tuple(folders) if said else tuple(classes))


@pytest.mark.parametrize(
    ("folders", "classes", "named", "says"),
    [
        (
            sorted(str(i + 1) for i in range(10)),
            NUMBERS,
            False,
            "has folders numbered 1 to 10, .*--classes FILE",
        ),
        (["1", "01"], NUMBERS, False, "has folders 01 and 1, which are the same number"),
        (["0", "9" * 20], NUMBERS, False, "numbered 0 to 9+"),
        (["0", "cat"], ("0", "1"), False, r"with numbers \(0\) and with names \(cat\)"),
        (["cat"], ("0", "1"), False, "has 1 class folders, and the weights have 2 classes without names"),
        (["x", "y"], ("0", "1"), True, "has the class 'x', which is not in the training data"),
        (["00", "01"], ("0", "1"), True, "has the class '00'"),
        (["cafe\u0301"], ("caf\u00e9", "b"), True, r"only in Unicode normalisation: .*e\\u0301.* is .*\\xe9"),
        (["Cat"], ("cat", "b"), True, "did you mean 'cat'"),
    ],
)
def test_folders_that_are_refused(
    folders: Sequence[str], classes: Sequence[str], named: bool, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        by_folder(Path("data"), sorted(folders), classes, named=named)


def folder_of(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "1.jpg").touch()
    return root


def test_classes_that_are_easily_mistaken_are_said(tmp_path: Path) -> None:
    def said(folder: str, *names: str) -> list[str]:
        return list(remarks([open_index(folder_of(tmp_path / folder, *names))]))

    assert said("plain", "a", "b", "10") == []
    assert said("few", *map(str, range(10))) == []
    assert said("sorted", *(f"{i:02}" for i in range(1, 12))) == []
    (line,) = said("text", *map(str, range(1, 12)))
    assert line == "the classes are numbers and sorted as text: label 2 is '11', 3 is '2'"
    assert said("forms", "cafe\u0301", "caf\u00e9") == [
        "the classes 'cafe\\u0301' and 'caf\\xe9' differ only in Unicode normalisation; are they one class?"
    ]
    probe = tmp_path / "Probe"
    probe.mkdir()
    if not (tmp_path / "probe").exists():  # a file system that tells them apart
        assert said("case", "Cat", "cat") == [
            "the classes 'Cat' and 'cat' differ only in case; are they one class?"
        ]


# -- files of names ------------------------------------------------------------------------------


def test_class_names_are_read_from_any_editors_file(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffa b\r\n \r\ncaf\u00e9 \r\nlast".encode())
    assert class_names(path) == ("a b", "caf\u00e9", "last")
    path.write_text("crane\nb\n\ncrane\n")
    with pytest.raises(DataError, match=r"names\.txt:4: the class name 'crane' is already on line 1"):
        class_names(path)
    path.write_text("a\nb\x07\n")
    with pytest.raises(DataError, match=r"names\.txt:2: the class name has a control character"):
        class_names(path)
    path.write_bytes("a\nb".encode("utf-16"))
    with pytest.raises(UsageError, match="it is UTF-16"):
        class_names(path)
    with pytest.raises(UsageError, match=r"cannot read .*nowhere"):
        class_names(tmp_path / "nowhere")


def test_quarantine_lists_from_windows_and_with_names_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(b"\xef\xbb\xbfval/1.jpg\r\n\r\n# x\r\nval/\xe9.jpg\r\n")
    assert read_list(path) == ("val/1.jpg", "val/\udce9.jpg")
    write_list(path, ["val/\udce9.jpg", "val/1.jpg"], header="two")
    assert path.read_bytes() == b"# two\nval/1.jpg\nval/\xe9.jpg\n"
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / os.fsdecode(b"\xe9.jpg")).touch()
    index = open_index(tmp_path / "val")
    assert Quarantine(tmp_path, known=path).indices(index) == {0}
    own = tmp_path / "own.txt"
    Quarantine(tmp_path, own=own).add(index, 0)
    assert Quarantine(tmp_path, own=own).indices(index) == {0}


# -- weights that have names, and others ----------------------------------------------------------


def test_whether_there_are_names_travels_with_the_weights(tiny_weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    numbers = tuple(str(i) for i in range(6))
    for classes, named, has_names in [
        (numbers, None, False), (numbers, True, True), (numbers, False, False),
        (tuple("abcdef"), None, True), (tuple("abcdef"), False, False),
    ]:  # fmt: skip
        save_weights(tiny_weights.replace(classes=classes, named=named), path)
        found = load_weights(path)
        assert (found.named, found.has_names) == (named, has_names)
    for bad, says in [
        (("a", "b", "c", "d", "e", "a"), "classes 0 and 5 have the same name"),
        ((*"abcde", ""), "empty name"),
    ]:
        with pytest.raises(DataError, match=says):
            tiny_weights.replace(classes=bad)


def numbered(photos: Path, root: Path, first: int = 0) -> Path:
    """The photos, with classes called first, first + 1, ..."""
    for part in ("train", "val"):
        for i, name in enumerate(CLASSES):
            shutil.copytree(photos / part / name, root / part / str(first + i))
    return root


def test_a_training_on_numbered_folders_has_names(
    cli: CommandLine, photos: Path, recipe: Path, tmp_path: Path
) -> None:
    data, quick = numbered(photos, tmp_path / "data"), ["--set", "data.workers=0"]
    words = ["--recipe", recipe, "--epochs", 1, "--output", tmp_path, "--name", "run", *quick]
    cli.ok("train", "--data", data, *words)
    weights = load_weights(tmp_path / "run" / "checkpoints" / "step-00000006" / "weights.safetensors")
    assert (weights.classes, weights.named) == (tuple("012345"), True)
    cli.ok("eval", "--weights", tmp_path / "run", "--data", data, *quick)
    for other in (photos, numbered(photos, tmp_path / "from-1", 1)):
        cli.refuses(
            EXIT_DATA, "eval", "--weights", tmp_path / "run", "--data", other, *quick,
            says="which is not in the training data",
        )  # fmt: skip
    words[words.index("run")] = "tuned"
    cli.refuses(
        EXIT_USAGE,
        "train",
        "--data",
        photos,
        *words,
        "--pretrained",
        tmp_path / "run",
        says="--num-classes 6",
    )


def test_weights_without_names_get_them_by_convert(
    cli: CommandLine, photos: Path, tiny_weights: Weights, tmp_path: Path
) -> None:
    bare, named, quick = (
        tmp_path / "bare.safetensors",
        tmp_path / "n.safetensors",
        ["--set", "data.workers=0"],
    )
    save_weights(tiny_weights.replace(classes=tuple("012345"), named=None), bare)  # as earlier releases did
    out = cli.ok("eval", "--weights", bare, "--data", photos, *quick).out
    assert out.splitlines()[0] == BY_POSITION.replace("2 folder", "6 folder")
    from_1 = numbered(photos, tmp_path / "from-1", 1)
    refused = cli.refuses(
        EXIT_DATA,
        "eval",
        "--weights",
        bare,
        "--data",
        from_1,
        *quick,
        says=("numbered 1 to 6", "--classes FILE"),
    )
    assert "convert SOURCE TARGET" in refused.err
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbf1\r\n2\r\n3\r\n4\r\n5\r\n6\r\n")
    cli.ok("convert", bare, named, "--classes", tmp_path / "names.txt")
    assert load_weights(named).digest == tiny_weights.digest
    cli.ok("eval", "--weights", named, "--data", from_1, *quick)
    cli.refuses(
        EXIT_USAGE, "convert", named, tmp_path / "x.safetensors", "--classes", tmp_path / "names.txt",
        says="has a manifest; drop --classes",
    )  # fmt: skip


def test_a_head_without_names_is_not_kept_for_other_numbers(
    cli: CommandLine, photos: Path, recipe: Path, tiny_weights: Weights, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.safetensors"
    save_weights(tiny_weights.replace(classes=tuple("012345"), named=False), bare)
    words = ["train", "--recipe", recipe, "--epochs", 1, "--output", tmp_path, "--set", "data.workers=0"]
    cli.refuses(
        EXIT_USAGE, *words, "--data", numbered(photos, tmp_path / "from-1", 1), "--pretrained", bare,
        says=("has class numbers from 0, no names", "--num-classes 6"),
    )  # fmt: skip
    out = cli.ok(*words, "--data", photos, "--pretrained", bare).out
    assert "its head is kept; its classes have no names: using the 6 folder names" in out


# -- what every command says ---------------------------------------------------------------------


@pytest.fixture
def strewn(photos: Path, tmp_path: Path) -> Path:
    """The photos, with a .heic in train and a .txt in val."""
    root = tmp_path / "strewn"
    shutil.copytree(photos, root)
    (root / "train" / "ant" / "x.heic").touch()
    (root / "val" / "notes.txt").touch()
    return root


def said(outcome: object) -> int:
    return f"{outcome}".count("ignored ")


def test_every_command_says_once_what_it_ignored(
    cli: CommandLine, strewn: Path, recipe: Path, weights_file: Path, tmp_path: Path
) -> None:
    quick = ["--set", "data.workers=0"]
    both = [
        ["data", "info", strewn],
        ["data", "scan", strewn, "--no-cache", "--workers", 1],
        ["train", "--recipe", recipe, "--epochs", 1, "--data", strewn, "--output", tmp_path, *quick],
        ["doctor", "--run", recipe, "--data", strewn],
    ]
    for words in both:
        outcome = cli.ok(*words)
        assert (said(outcome), IGNORED in outcome.out) == (1, True), words
    one = [
        (["eval", "--weights", weights_file, "--data", strewn, *quick], ".txt"),
        (["infer", "--weights", weights_file, strewn / "train", *quick], ".heic"),
        (
            ["validate", "--artefact", weights_file, "--weights", weights_file, "--data", strewn, *quick],
            ".txt",
        ),
        (["bench", "data", "--recipe", recipe, "--data", strewn, "--steps", 1, *quick], ".heic"),
    ]
    for words, ending in one:
        outcome = cli.ok(*words)
        text = f"ignored 1 file that is not an image by its name: 1 {ending}"
        assert (said(outcome), text in outcome.out + outcome.err) == (1, True), words
    parts = cli.ok("data", "info", strewn, "--json").json()["parts"]
    assert (parts["train"]["ignored"], parts["val"]["ignored"]) == ({".heic": 1}, {".txt": 1})


def test_the_whole_job_says_it_once(cli: CommandLine, strewn: Path, recipe: Path, tmp_path: Path) -> None:
    words = ["run", "--recipe", recipe, "--epochs", 1, "--data", strewn, "--output", tmp_path]
    assert said(cli.ok(*words, "--set", "data.workers=0")) == 1


def test_lists_on_standard_input_are_read_from_any_system(
    cli: CommandLine, weights_file: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    odd = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    with open(odd, "wb") as stream:
        stream.write((photos / "val" / "ant" / "00.jpg").read_bytes())
    plain = os.fsencode(photos / "val" / "bee" / "01.png")
    given = b"\xef\xbb\xbf" + plain + b"\r\n\r\n" + odd + b"\r\n" + plain
    stdin = io.TextIOWrapper(io.BytesIO(given), encoding="utf-8", errors="strict")
    monkeypatch.setattr("sys.stdin", stdin)
    out = cli.ok("infer", "--weights", weights_file, "-", "--set", "data.workers=0").out
    rows = [json.loads(line) for line in out.splitlines()]
    assert [os.fsencode(row["path"]) for row in rows] == [plain, odd, plain]
    assert all("top" in row for row in rows)
