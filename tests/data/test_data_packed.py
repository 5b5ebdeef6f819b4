"""Packed files: what goes in comes out, damage is named, and nothing is left of one that was not finished."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from command_line import CommandLine, Outcome, environment
from images import class_tree, endless_image, picture
from PIL import Image
from processes import alive, data_workers, eventually, holds

from resnext_core.data import packing
from resnext_core.data.content import BadImage
from resnext_core.data.exif import orientation
from resnext_core.data.index import open_index
from resnext_core.data.loader import Loader
from resnext_core.data.packing import Smaller, made_smaller, pack
from resnext_core.data.sampler import Task
from resnext_core.data.sources import table
from resnext_core.data.sources.stored import content_of
from resnext_core.errors import EXIT_DATA, EXIT_OK, EXIT_USAGE, DataError
from resnext_core.files import fresh
from resnext_core.model.preprocess import PreprocessSpec

SPEC = PreprocessSpec(size=16, resize=18)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return class_tree(tmp_path / "photos", per_class=4)


def packed(tree: Path, path: Path, smaller: Smaller | None = None, workers: int = 1) -> Path:
    assert pack(open_index(tree), path, smaller, workers=workers) is not None
    return path


def run(cli: CommandLine, *arguments: object, code: int = EXIT_OK) -> Outcome:
    outcome = cli("data", *arguments)
    assert outcome.code == code, outcome
    return outcome


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_index(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- contents ------------------------------------------------------------------------------------


def test_the_bytes_are_kept(tree: Path, tmp_path: Path) -> None:
    index = open_index(packed(tree, tmp_path / "p.pack"))
    reader = index.source.reader()
    for i, name in enumerate(index.paths):
        assert reader.read(index.source.locator(i)) == (tree / name).read_bytes()
        assert index.source.size(i) == (tree / name).stat().st_size
        assert content_of(str(index.path(i))) == (tree / name).read_bytes()
    with pytest.raises(BadImage, match="not there"):
        content_of(str(tmp_path / "p.pack/ant/999.jpg"))
    with pytest.raises(BadImage):
        content_of(str(tmp_path / "q.pack/ant/999.jpg"))


def test_the_same_data_gives_the_same_file(tree: Path, tmp_path: Path) -> None:
    one, other = packed(tree, tmp_path / "1.pack"), packed(tree, tmp_path / "2.pack")
    assert one.read_bytes() == other.read_bytes()
    smaller = Smaller(side=24, quality=80)
    one, other = packed(tree, tmp_path / "3.pack", smaller, 1), packed(tree, tmp_path / "4.pack", smaller, 3)
    assert one.read_bytes() == other.read_bytes()
    assert one.stat().st_size < (tmp_path / "1.pack").stat().st_size


def test_images_are_made_smaller(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    (kept / "a").mkdir(parents=True)
    (kept / "b").mkdir()
    picture(300, 200).save(kept / "a/photo.jpg", quality=95)
    picture(200, 640).save(kept / "a/wide.png")
    picture(40, 64).save(kept / "b/small.png")
    (kept / "b/bad.jpg").write_bytes(b"no image")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(300, 200).save(kept / "b/turned.jpg", quality=95, exif=turned)
    turned[0x0112] = 8
    picture(200, 640).save(kept / "b/turned.png", exif=turned)
    index = open_index(kept)
    result = pack(index, tmp_path / "s.pack", Smaller(side=64, quality=90), workers=2)
    assert result is not None
    assert (result.images, result.smaller, dict(result.unreadable)) == (6, 4, {})
    found = open_index(tmp_path / "s.pack")
    contents = {name: content_of(str(found.path(i))) for i, name in enumerate(found.paths)}
    sizes = {n: Image.open(io.BytesIO(c)).size for n, c in contents.items() if n != "b/bad.jpg"}
    assert sizes["b/small.png"] == (64, 40)
    assert [sizes[f"a/{name}"] for name in ("photo.jpg", "wide.png")] == [(64, 96), (205, 64)]
    assert [sizes[f"b/{name}"] for name in ("turned.jpg", "turned.png")] == [(64, 96), (205, 64)]
    assert contents["b/bad.jpg"] == b"no image"
    assert contents["b/small.png"] == (kept / "b/small.png").read_bytes()
    assert Image.open(io.BytesIO(contents["a/wide.png"])).format == "JPEG"
    assert {name: orientation(contents[name]) for name in sizes if orientation(contents[name]) != 1} == {
        "b/turned.jpg": 6, "b/turned.png": 8
    }  # fmt: skip
    assert dict(Image.open(io.BytesIO(contents["a/photo.jpg"])).getexif()) == {}


def test_smaller_pixels_are_those_of_pillow() -> None:
    stream = io.BytesIO()
    picture(100, 80).save(stream, "PNG")
    made = made_smaller(stream.getvalue(), "x", Smaller(side=40, quality=95))
    assert made is not None
    exact = picture(100, 80).resize((40, 50), Image.Resampling.BICUBIC)
    found = np.asarray(Image.open(io.BytesIO(made)).convert("RGB"), np.float64)
    assert found.shape == (50, 40, 3)
    assert np.abs(found - np.asarray(exact, np.float64)).mean() < 6  # what JPEG loses
    assert made_smaller(stream.getvalue(), "x", Smaller(side=80, quality=95)) is None
    with pytest.raises(BadImage):
        made_smaller(b"no image", "x", Smaller(side=40, quality=95))


@pytest.mark.parametrize("smaller", [None, Smaller(side=24, quality=80)])
def test_files_that_cannot_be_opened_stay_with_the_reason(
    tree: Path, tmp_path: Path, smaller: Smaller | None
) -> None:
    os.symlink("/nowhere/x.jpg", tree / "ant/gone.jpg")
    os.mkfifo(tree / "bee/x")
    os.symlink(os.devnull, tree / "cat/z.jpg")
    os.rename(tree / "cat/z.jpg", tree / "cat/device.jpg")
    index = open_index(tree)
    reasons = {}
    for where in (tree, tmp_path / "p.pack"):
        if where != tree:
            result = pack(index, where, smaller, workers=2)
            assert result is not None
            assert dict(result.unreadable) == {index.paths[i]: why for i, why in reasons[tree].items()}
        found = open_index(where)
        assert found.dataset_digest == index.dataset_digest or smaller
        with Loader(found, SPEC, workers=0) as loader:
            (batch,) = loader.batches([Task.of(0, np.arange(len(found)))])
            reasons[where] = dict(loader.failures)
        assert int(batch.valid.sum()) == 12
    assert reasons[tree] == reasons[tmp_path / "p.pack"]
    assert "No such file or directory" in reasons[tree].values()


def test_names_of_a_list_stay_inside(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    listed = tmp_path / "lists/all.txt"
    listed.write_text(f"../photos/ant/000.jpg ant\n{tree}/bee/001.jpg bee\n")
    index = open_index(packed(listed, tmp_path / "p.pack"))
    assert sorted(index.paths) == sorted(["_up/photos/ant/000.jpg", f"{tree}/bee/001.jpg".lstrip("/")])
    assert [index.classes[label] for label in index.labels] == [n.split("/")[-2] for n in index.paths]


# -- damage --------------------------------------------------------------------------------------


def test_damage_is_named(tree: Path, tmp_path: Path, cli: CommandLine) -> None:
    path = packed(tree, tmp_path / "p.pack")
    whole = path.read_bytes()
    start = int.from_bytes(whole[24:32], "little")
    outcome = run(cli, "verify", path)
    assert (outcome.code, outcome.out.strip()) == (EXIT_OK, f"{path}: 12 images are sound")
    for length in (0, 10, 127, 128, start, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "is not a packed file" in error_of(path) if length < 128 else "is cut short" in error_of(path)
    path.write_bytes(whole + b"\0")
    assert "is too long" in error_of(path)
    damage = {3: "is not a packed file", 20: "are damaged", 50: "are damaged"}
    damage |= {start + 9: "checksum mismatch", len(whole) - 65: "checksum mismatch"}
    for at, what in damage.items():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert what in error_of(path)
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 4]) + whole[201:])
    assert len(open_index(path)) == 12, "opening does not read the images"
    outcome = run(cli, "verify", path, code=EXIT_DATA)
    assert "1 of 12 images are damaged (checksum mismatch): ant/000.jpg; copy it again" in outcome.err


def test_a_newer_version_is_refused(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(table, "VERSION", 9)
        path = packed(tree, tmp_path / "p.pack")
    assert "is a packed file of version 9, this release reads version 1" in error_of(path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_packed_file_that_changes_is_named(tree: Path, tmp_path: Path, workers: int) -> None:
    path = packed(tree, tmp_path / "p.pack")
    index = open_index(path)
    with Loader(index, SPEC, workers=workers) as loader:
        (batch,) = loader.batches([Task.of(0, np.arange(6))])
        assert batch.valid.all()
        os.utime(path, ns=(1, 1))
        with pytest.raises(DataError, match="has changed since the data was opened"):
            list(loader.batches([Task.of(0, np.arange(6))]))


# -- writing -------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, cli: CommandLine) -> None:
    data = tmp_path / "data"
    class_tree(data / "train", per_class=4)
    class_tree(data / "val", per_class=2)
    value = run(cli, "pack", data, tmp_path / "out", "--json").json()
    assert {name: part["images"] for name, part in value.items()} == {"train": 12, "val": 6}
    assert sorted(os.listdir(tmp_path / "out")) == ["train.pack", "val.pack"]
    before, after = (run(cli, "info", where, "--json").json()["parts"] for where in (data, tmp_path / "out"))
    assert before == after
    scanned = run(cli, "scan", tmp_path / "out", "--no-cache", "--json", code=EXIT_DATA).json()
    assert scanned["images"] == {"train": 12, "val": 6}
    assert {f["name"] for group in scanned["leaks"] for f in group} >= {
        "train.pack/ant/000.jpg",
        "val.pack/ant/000.jpg",
    }
    assert run(cli, "verify", tmp_path / "out").out.count("are sound") == 2
    small = run(cli, "pack", data / "val", tmp_path / "v.pack", "--side", 20, "--quality", 70)
    assert "v.pack: 6 images, 6 made smaller" in small.out
    for arguments, said in (
        (("pack", data, tmp_path / "out"), "train.pack already exists"),
        (("pack", data / "val", tmp_path / "v.pack"), "v.pack already exists"),
        (("pack", data / "val", tmp_path / "w"), "must end with .pack"),
        (("pack", data, tmp_path / "w.pack"), "give the name of a folder"),
        (("pack", data, tmp_path / "w", "--quality", 70), "give --side too"),
        (("pack", data, tmp_path / "w", "--side", 20, "--quality", 96), "from 1 to 95"),
        (("verify", data), "has no packed files"),
        (("index", data), "is not a tar archive"),
    ):
        outcome = run(cli, *arguments, code=EXIT_USAGE)
        assert said in outcome.err
        assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "w").exists()


def test_a_disk_that_is_too_small_is_said_first(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: free)
    with pytest.raises(DataError, match=r"p.pack: the images have \d+ bytes, and the disk has 1000 left"):
        packed(tree, tmp_path / "p.pack")
    assert os.listdir(tmp_path) == ["photos"]


@pytest.mark.parametrize("anonymous", [True, False])
def test_a_file_that_appears_meanwhile_is_not_replaced(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anonymous: bool
) -> None:
    if not anonymous:
        monkeypatch.setattr(fresh, "_anonymous", lambda folder: None)
    path = tmp_path / "new/p.pack"

    def appear(done: int, total: int) -> None:
        if not path.exists():
            path.write_text("mine")

    with pytest.raises(DataError, match="already exists"):
        pack(open_index(tree), path, None, workers=1, on_progress=appear)
    assert path.read_text() == "mine"
    path.unlink()
    assert len(open_index(packed(tree, path))) == 12
    assert os.listdir(path.parent) == ["p.pack"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("smaller", [None, Smaller(side=24, quality=80)])
def test_nothing_is_left_of_one_that_was_stopped(tree: Path, tmp_path: Path, smaller: Smaller | None) -> None:
    seen: list[int] = []
    stopped = pack(
        open_index(tree), tmp_path / "new/p.pack", smaller, workers=1,
        on_progress=lambda done, total: seen.append(done), stop=lambda: len(seen) == 2,
    )  # fmt: skip
    assert stopped is None
    assert seen == [0, 8]
    assert os.listdir(tmp_path / "new") == []
    assert data_workers() == []


def test_nothing_is_left_of_one_that_was_killed(tmp_path: Path) -> None:
    tree = class_tree(tmp_path / "photos", per_class=10)
    endless = endless_image(tree / "cat/zzz.ppm")  # whoever reads it stays at it
    command = [sys.executable, "-m", "resnext_core.cli", "data", "pack", tree, tmp_path / "new/p.pack"]
    process = subprocess.Popen(
        [*map(str, command), "--side", "8", "--workers", "2"], env=environment(), stderr=subprocess.PIPE
    )
    try:
        workers: list[int] = []

        def reading() -> bool:
            workers[:] = [child.pid for child in psutil.Process(process.pid).children()]
            return any(holds(pid, endless) for pid in workers)

        assert eventually(reading)
        assert (tmp_path / "new").is_dir()
    finally:
        process.kill()
        process.communicate()
    assert eventually(lambda: not any(alive(pid) for pid in workers))
    assert os.listdir(tmp_path / "new") == []
