"""What infer leaves in files: a picture of each image with its classes, and a table."""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from command_line import CommandLine
from PIL import Image

from resnext_core.config import DataConfig
from resnext_core.data.index import Index, listed
from resnext_core.data.sources.kinds import SHARDS
from resnext_core.data.sources.ranges import LocalFiles
from resnext_core.errors import EXIT_DATA, EXIT_USAGE, DataError
from resnext_core.jobs.annotate import Pictures, picture

WORDS = ("--set", "data.workers=0", "--backend", "reference")


@pytest.fixture
def images(photos: Path, tmp_path: Path) -> Path:
    """Four images, of which one is broken and three have one name, but for the case of its letters."""
    root = tmp_path / "images"
    files = sorted((photos / "val" / "ant").iterdir())
    for name, source in (("a/x.png", files[1]), ("b/x.jpg", files[0]), ("b/X.png", files[1])):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, root / name)
    (root / "broken.jpg").write_bytes(b"no image")
    return root


def test_pictures_and_table(cli: CommandLine, weights_file: Path, images: Path, tmp_path: Path) -> None:
    table, folder = tmp_path / "new" / "table.csv", tmp_path / "pictures"
    words = ("--weights", weights_file, images, "--top", 2, "--csv", table, "--save", folder, *WORDS)
    outcome = cli("infer", *words)
    assert outcome.code == EXIT_DATA, "an image has no prediction"
    assert outcome.err.splitlines() == [
        f"resnext-run: saved 3 pictures in {folder}",
        "resnext-run: 1 of 4 images has no prediction",
    ]
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == [line["path"] for line in lines]
    for row, line in zip(rows, lines, strict=True):
        assert row["true"] == row["true_probability"] == ""
        if "error" in line:
            assert (row["error"], row["predicted"]) == (line["error"], "")
            continue
        first, second = line["top"]
        assert (row["predicted"], row["class_1"], row["class_2"]) == (
            first["name"],
            first["name"],
            second["name"],
        )
        assert float(row["probability_2"]) == pytest.approx(second["probability"], abs=1e-6)
    made = sorted(path.name for path in folder.iterdir())
    assert len({name.casefold() for name in made}) == len(made) == 3
    assert {name.casefold() for name in made} == {"x.jpg", "x-2.jpg", "x-3.jpg"}
    for path in folder.iterdir():
        with Image.open(path) as image:
            assert (image.format, image.width) == ("JPEG", 256)
            image.load()


def test_nothing_is_overwritten_and_that_is_found_before_the_work(
    cli: CommandLine, weights_file: Path, images: Path, tmp_path: Path
) -> None:
    full, there = tmp_path / "full", tmp_path / "there.csv"
    full.mkdir()
    (full / "x.jpg").write_bytes(b"mine")
    there.write_text("mine")
    missing = tmp_path / "no such weights"  # it is not even looked for
    for flags, says in (
        (("--save", full), "full is not empty; give a new folder for the pictures"),
        (("--save", there), "there.csv is a file, not a folder"),
        (("--csv", there), "there.csv already exists"),
        (("--csv", tmp_path), "already exists"),
    ):
        cli.refuses(EXIT_DATA, "infer", "--weights", missing, images, *flags, says=says)
    assert ((full / "x.jpg").read_bytes(), there.read_text()) == (b"mine", "mine")
    tensor = ("--tensor", tmp_path / "t.npy", "--logits", tmp_path / "l.npy", "--save", tmp_path / "new")
    cli.refuses(EXIT_USAGE, "infer", "--weights", weights_file, *tensor, says="--tensor holds no images")
    (tmp_path / "empty").mkdir()
    cli.ok("infer", "--weights", weights_file, images / "a", "--save", tmp_path / "empty", *WORDS)
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["x.jpg"]


def test_predict_is_infer(cli: CommandLine, weights_file: Path, images: Path) -> None:
    words = ("--weights", weights_file, images / "a", *WORDS)
    assert cli.ok("predict", *words).out == cli.ok("infer", *words).out != ""
    assert "resnext-run predict" in cli.ok("predict", "--help").out


def test_a_picture_shows_the_image_and_bars_as_long_as_the_probabilities() -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 255, (300, 400, 3), np.uint8)
    made = np.asarray(picture(Image.fromarray(pixels), [("ant", 0.75), ("bee", 0.25), ("cat", 0.0)]))
    assert np.array_equal(made[:300, :], pixels)
    blue = (made[300:] == (0x00, 0x72, 0xB2)).all(axis=2)
    lengths = sorted({int(row.sum()) for row in blue if row.any()})
    assert lengths == [95, 285], "of 380 pixels"
    small = np.asarray(picture(Image.fromarray(pixels[:5, :4]), [("ant", 1.0)]))
    assert np.array_equal(small[:255:51, 26:230:51], pixels[:5, :4]), "every pixel is a square"
    assert max(picture(Image.new("L", (3000, 90)), []).size) == 640


@pytest.mark.parametrize("name", ["x" * 500, "\u202eevil\x1b[2J\n", "蟻", ""])
def test_any_class_name_stays_on_its_picture(name: str) -> None:
    made = np.asarray(picture(Image.new("RGB", (40, 40)), [(name, 0.5)]))
    paper = made[-26 - 10 :]
    assert (paper[:, :8] == 255).all(), "letters begin at the tenth pixel, give or take a soft edge"
    assert (paper[:, -8:] == 255).all()


def test_names_of_pictures_lie_in_the_folder_and_do_not_collide(tmp_path: Path) -> None:
    source = tmp_path / "s.png"
    Image.new("RGB", (4, 4)).save(source)
    paths = [
        "s.png",
        "../s.png",
        "a/..",
        ".hidden.png",
        "S.png",
        "s-2.png",
        f"{'n' * 300}.png",
        "\udcff.png",
        "-",
    ]
    index = Index(paths=paths, labels=np.full(len(paths), -1, np.int32), classes=("a",), root=tmp_path)
    made = Pictures(tmp_path / "out", index, oriented=False)
    names = [made._name(path) for path in paths]
    assert len({name.casefold() for name in names}) == len(paths)
    assert all("/" not in name and not name.startswith(".") and len(name) < 120 for name in names)
    Pictures(tmp_path / "other", index, oriented=False).save(0, [("a", 1.0)])
    again = Pictures(tmp_path / "other", index, oriented=False)  # two programs at once
    with pytest.raises(DataError, match=r"cannot write .*s\.jpg: File exists"):
        again.save(0, [("a", 1.0)])


def test_an_image_is_turned_as_the_network_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    Image.new("RGB", (400, 300)).save(path, exif=exif)
    index = Index(paths=[path.name], labels=np.full(1, -1, np.int32), classes=("a",), root=tmp_path)
    for oriented, size in ((False, (400, 300)), (True, (300, 400))):
        folder = tmp_path / str(oriented)
        Pictures(folder, index, oriented=oriented).save(0, [])
        with Image.open(folder / "turned.jpg") as made:
            assert made.size == (size[0], size[1] + 20)


def test_shards_are_opened_once_for_all_pictures(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for k in range(5):
            tar.add(sorted((photos / "val" / "ant").iterdir())[0], f"{k}.jpg")
    opened: list[str] = []
    open_ = LocalFiles.open
    monkeypatch.setattr(LocalFiles, "open", lambda files, name: (opened.append(name), open_(files, name))[1])
    listing = listed(SHARDS.open(str(tmp_path / "s.tar"), DataConfig()), labelled=False)
    before = len(opened)
    pictures = Pictures(tmp_path / "out", listing, oriented=False)
    for position in range(5):
        pictures.save(position, [("ant", 0.5)])
    assert pictures.saved == 5
    assert len(opened) - before == 1
