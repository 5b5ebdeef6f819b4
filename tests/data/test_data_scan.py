"""Scanning a data set: what is wrong with it is found, once, and a scan that ends early goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from command_line import CommandLine, environment
from images import bad_images, class_tree, endless_image, good_odd_images, picture
from PIL import Image, PngImagePlugin
from processes import data_workers, eventually, holds

from resnext_core.data.depth import DARK_16_BITS
from resnext_core.data.index import open_index
from resnext_core.data.loader import Loader
from resnext_core.data.quarantine import Quarantine, read_list
from resnext_core.data.scan import Facts, Scan, ScanCache, ScanFile
from resnext_core.data.scan import scan_files as scan_sources
from resnext_core.data.sources.files import FileReader
from resnext_core.errors import EXIT_DATA, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, DataError
from resnext_core.model.preprocess import PreprocessSpec


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A sound data set: nine images to train on, six to validate, and none twice."""
    class_tree(tmp_path / "data" / "train", per_class=3)
    for number, name in enumerate(("ant", "bee", "cat")):
        folder = tmp_path / "data" / "val" / name
        folder.mkdir(parents=True)
        for i in range(2):
            picture(40, 60, seed=100 + 10 * number + i).save(folder / f"{i}.png")
    return tmp_path / "data"


def scan_files(paths: Sequence[str], cache: ScanCache, workers: int) -> Scan | None:
    files = [ScanFile(path=path, reader=0, locator=os.fsencode(path)) for path in paths]
    return scan_sources(files, [FileReader()], cache, workers=workers)


def scanned(cli: CommandLine, data: Path, *more: object, code: int = EXIT_OK) -> dict[str, Any]:
    outcome = cli("data", "scan", data, "--cache", data.parent / "cache", "--workers", 1, "--json", *more)
    assert outcome.code == code, outcome
    assert len(outcome.err.splitlines()) == (code != EXIT_OK), outcome.err
    return outcome.json()


def names(groups: list[list[dict[str, str]]]) -> list[list[str]]:
    return sorted(sorted(f["name"] for f in group) for group in groups)


def test_a_sound_data_set(cli: CommandLine, data: Path) -> None:
    value = scanned(cli, data)
    assert value["images"] == {"train": 9, "val": 6}
    assert [value[k] for k in ("bad", "contradictions", "leaks", "duplicates", "empty")] == [[]] * 5
    assert value["classes"]["val"] == {"ant": 2, "bee": 2, "cat": 2}
    assert value["formats"] == {"JPEG": 9, "PNG": 6}
    assert value["bytes"] == sum(p.stat().st_size for p in data.rglob("*.*g"))
    assert value["sides"] == {"32": 15}
    sides = [Image.open(p).size for p in data.rglob("*.*g")]
    for key, axis in (("widths", 0), ("heights", 1)):
        assert value[key] == [
            min(s[axis] for s in sides),
            sorted(s[axis] for s in sides)[7],
            max(s[axis] for s in sides),
        ]
    assert (value["read"], value["remembered"]) == (15, 0)


def test_every_unreadable_file_is_named_and_listed_for_the_loader(
    cli: CommandLine, data: Path, tmp_path: Path
) -> None:
    bad = bad_images(tmp_path / "bad")
    for path in bad.values():
        if path.is_file():
            shutil.copy(path, data / "train" / "bee" / path.name)
    value = scanned(cli, data, "--list", tmp_path / "list.txt", code=EXIT_DATA)
    found = {entry["file"]["name"]: entry["reason"] for entry in value["bad"]}
    expected = {f"train/bee/{p.name}" for p in bad.values() if p.is_file()}
    assert set(found) == expected
    assert found["train/bee/empty.jpg"] == "the file is empty"
    assert set(read_list(tmp_path / "list.txt")) == expected
    index = open_index(data / "train")
    quarantine = Quarantine(data, known=tmp_path / "list.txt")
    spec = PreprocessSpec(size=32, resize=36)
    with Loader(index, spec, workers=0, quarantine=quarantine) as loader:
        assert len(quarantine.indices(index)) == len(expected)
        assert not loader.failures
    assert scanned(cli, data, code=EXIT_DATA)["read"] == 0, "the same bytes are as bad the next time"


def test_readable_files_of_every_kind_are_sound(cli: CommandLine, data: Path) -> None:
    odd = good_odd_images(data / "train" / "odd")
    (data / "val" / "odd").mkdir()
    picture(30, 30, seed=77).save(data / "val" / "odd" / "0.png")
    value = scanned(cli, data, code=EXIT_OK)
    assert value["images"]["train"] == 9 + len(odd)
    # the same pixels in several formats
    assert len(value["duplicates"]) >= 1
    assert all(f["name"].startswith("train/odd/") for group in value["duplicates"] for f in group)


def test_what_is_more_than_upright_8_bit_colour_is_counted(cli: CommandLine, data: Path) -> None:
    value = scanned(cli, data)
    assert (value["orientations"], value["alpha"], value["deep"]) == ({}, 0, {})
    assert "EXIF orientation in" not in cli.ok("data", "scan", data, "--no-cache", "--workers", 1).out
    folder = data / "train" / "ant"
    for number, orientation in enumerate((6, 6, 8, 1, 0)):
        turned = Image.Exif()
        turned[0x112] = orientation
        form = ("jpg", "png", "webp", "jpg", "jpg")[number]
        picture(30, 44, seed=50 + number).save(folder / f"turned{number}.{form}", exif=turned)
    colours = np.dstack([np.asarray(picture(30, 40, seed=70)), np.arange(1200).reshape(30, 40) % 256]).astype(
        np.uint8
    )
    Image.fromarray(colours).save(folder / "alpha.png")
    Image.fromarray(colours[::-1]).save(folder / "alpha.webp", lossless=True)
    Image.fromarray(colours[:, ::-1]).save(folder / "alpha.tif")
    picture(31, 40, seed=71).quantize(16).save(folder / "palette.png", transparency=3)
    Image.fromarray(colours[..., 0] * np.uint16(257)).save(folder / "deep.png")
    Image.fromarray(colours[..., 1] * np.uint16(257)).save(folder / "deep.tif")
    (folder / "deep.pgm").write_bytes(b"P5 3 2 65535 " + bytes(range(12)))
    broken = bytearray((folder / "turned0.jpg").read_bytes())
    broken[broken.index(b"Exif") + 6] = 0
    (folder / "broken.jpg").write_bytes(broken)
    value = scanned(cli, data)
    assert value["orientations"] == {"6": 2, "8": 1}
    assert value["alpha"] == 4
    assert value["deep"] == {"16": 3}
    (remarked,) = (entry for entry in value["remarks"] if "EXIF" in entry["remark"])
    assert [file["name"] for file in remarked["files"]] == ["train/ant/broken.jpg"]
    for _ in range(2):  # read, and remembered
        out = cli.ok("data", "scan", data, "--cache", data.parent / "cache2", "--workers", 1).out
        assert (
            "EXIF orientation in 3 images (6: 2, 8: 1): ignored; a training with preprocess.orientation=apply"
            in out
        )
        assert "transparency in 4 images: dropped" in out
        assert "more than 8 bits in 3 images (16 bits: 3): the upper 8" in out


def test_one_picture_twice_is_found_by_its_pixels(cli: CommandLine, data: Path) -> None:
    train, val = data / "train", data / "val"
    shutil.copy(train / "ant" / "000.jpg", train / "ant" / "copy.jpg")  # a duplicate
    note = PngImagePlugin.PngInfo()
    note.add_text("comment", "the same pixels in other bytes")
    Image.open(val / "bee" / "0.png").save(train / "bee" / "leak.png", pnginfo=note, compress_level=1)
    Image.open(train / "cat" / "001.jpg").save(train / "bee" / "wrong.png")  # a contradiction
    Image.open(val / "cat" / "1.png").save(train / "ant" / "both.bmp")  # a leak and a contradiction
    value = scanned(cli, data, code=EXIT_DATA)
    both = ["train/ant/both.bmp", "val/cat/1.png"]
    assert names(value["duplicates"]) == [["train/ant/000.jpg", "train/ant/copy.jpg"]]
    assert names(value["leaks"]) == [both, ["train/bee/leak.png", "val/bee/0.png"]]
    assert names(value["contradictions"]) == [both, ["train/bee/wrong.png", "train/cat/001.jpg"]]


def test_duplicates_alone_are_no_error(cli: CommandLine, data: Path) -> None:
    shutil.copy(data / "train" / "ant" / "000.jpg", data / "train" / "ant" / "copy.jpg")
    assert len(scanned(cli, data)["duplicates"]) == 1


def test_images_that_may_hold_12_bits_are_named(cli: CommandLine, data: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (30, 40)).astype(np.uint16)
    for name in ("a", "b"):
        Image.fromarray(values + (name == "b")).save(data / "train" / "ant" / f"{name}.png")
    for times in ("read", "remembered"):
        value = scanned(cli, data)
        assert value[times] == 17
        (remarked,) = value["remarks"]
        assert remarked["remark"] == DARK_16_BITS
        assert [f["name"] for f in remarked["files"]] == ["train/ant/a.png", "train/ant/b.png"]
    outcome = cli("data", "scan", data, "--no-cache", "--workers", 1)
    assert f"{DARK_16_BITS}: 2\n  train/ant/a.png\n" in outcome.out


def test_what_is_no_regular_file_is_corrupt_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    scan = scan_files([str(tmp_path / "pipe.png")], ScanCache(None, tmp_path), workers=1)
    assert scan is not None
    assert scan.facts[str(tmp_path / "pipe.png")].error == "a pipe, not a regular file"


def test_one_file_in_two_lists_leaks(cli: CommandLine, data: Path) -> None:
    lists = data.parent / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text(f"{data}/train/ant/000.jpg ant\n{data}/train/bee/000.jpg bee\n")
    (lists / "val.txt").write_text(f"{data}/train/ant/000.jpg ant\n")
    value = scanned(cli, lists, code=EXIT_DATA)
    assert names(value["leaks"]) == [[f"{data}/train/ant/000.jpg"] * 2]
    assert value["empty"] == [["val", "bee"]]


def test_people_see_lists_shortened_and_what_to_do(cli: CommandLine, data: Path) -> None:
    for i in range(13):
        (data / "train" / "ant" / f"x{i:02}.jpg").write_bytes(b"nothing")
    words = ["data", "scan", data, "--no-cache", "--workers", 1]
    outcome = cli(*words, "--list", data.parent / "bad.txt")
    assert outcome.code == EXIT_DATA
    assert "corrupt: 13" in outcome.out
    assert "and 3 more (--all prints them" in outcome.out
    assert f"--set data.quarantine={data.parent / 'bad.txt'}" in outcome.out
    assert outcome.err == f"resnext-run: {data} has problems: 13 corrupt\n"
    assert "more (--all" not in cli(*words, "--all").out


# -- what is remembered --------------------------------------------------------------------------


def test_only_what_changed_is_read_again(cli: CommandLine, data: Path) -> None:
    scanned(cli, data)
    first = data / "train" / "ant" / "000.jpg"
    os.utime(first, ns=(1, 1))
    (data / "train" / "bee" / "000.jpg").write_bytes(b"broken")
    picture(33, 44, seed=500).save(data / "val" / "ant" / "new.png")
    value = scanned(cli, data, code=EXIT_DATA)
    assert (value["read"], value["remembered"]) == (3, 13)
    assert [b["file"]["name"] for b in value["bad"]] == ["train/bee/000.jpg"]


def test_a_file_that_moved_is_not_decoded_again(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture(20, 30).save(path)
    assert scan_files([str(path)], ScanCache(tmp_path / "cache", tmp_path), workers=1) is not None
    memory = tmp_path / "cache" / os.listdir(tmp_path / "cache")[0]
    # what was remembered of these bytes is recognisable
    memory.write_text(memory.read_text().replace('"width": 30', '"width": 31'))
    moved = path.rename(tmp_path / "b.png")
    scan = scan_files([str(moved)], ScanCache(tmp_path / "cache", tmp_path), workers=1)
    assert scan is not None
    assert scan.read == 1
    assert scan.facts[str(moved)].width == 31


@pytest.mark.parametrize("spoil", ["torn", "other", "binary", "nonsense"])
def test_a_damaged_memory_costs_time_only(cli: CommandLine, data: Path, spoil: str) -> None:
    before = scanned(cli, data)
    memory = next((data.parent / "cache").iterdir())
    text = memory.read_text()
    lines = text.splitlines(keepends=True)
    assert len(lines) == 16
    if spoil == "torn":
        memory.write_text("".join(lines[:8]) + lines[8][:30])
    elif spoil == "other":
        memory.write_text(text.replace('"format": 3', '"format": 2', 1))
    elif spoil == "binary":
        memory.write_bytes(os.urandom(3000))
    else:
        memory.write_text(lines[0] + '[]\n{}\n{"path": 1}\n{"path": "x", "other": 2}\n')
    value = scanned(cli, data)
    assert value["read"] == (8 if spoil == "torn" else 15)
    assert {k: v for k, v in value.items() if k not in ("read", "remembered", "seconds")} == {
        k: v for k, v in before.items() if k not in ("read", "remembered", "seconds")
    }
    assert scanned(cli, data)["read"] == 0


def test_a_memory_that_cannot_be_written_is_said_and_ends_nothing(cli: CommandLine, data: Path) -> None:
    (data.parent / "file").write_text("no folder")
    outcome = cli.ok("data", "scan", data, "--cache", data.parent / "file", "--workers", 1)
    assert "warning: results are not cached: cannot write" in outcome.out


def test_a_full_disk_ends_the_memory_and_not_the_scan(data: Path, tmp_path: Path) -> None:
    memory = ScanCache(tmp_path / "cache", data)
    memory._stream = open("/dev/full", "a", buffering=1)  # noqa: SIM115
    paths = sorted(map(str, data.rglob("*.*g")))
    scan = scan_files(paths, memory, workers=1)
    assert scan is not None
    assert all(scan.facts[path].pixels for path in paths)
    assert memory.trouble is not None
    assert "No space left on device" in memory.trouble


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_scan_that_ends_early_goes_on(cli: CommandLine, data: Path, number: signal.Signals) -> None:
    """It is ended while it reads a file that it never comes to the end of."""
    for i in range(80):
        picture(40, 60, seed=200 + i).save(data / "train" / "ant" / f"z{i:02}.png")
    endless = endless_image(data / "train" / "ant" / "z40.png")  # half of the others are read before
    cache = data.parent / "cache"
    words = ["data", "scan", data, "--cache", cache, "--workers", 1]
    process = subprocess.Popen(
        [sys.executable, "-m", "resnext_core.cli", *map(str, words)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def remembers() -> bool:
        assert process.poll() is None, process.communicate()
        files = list(cache.iterdir()) if cache.exists() else []
        return bool(files) and len(files[0].read_bytes().splitlines()) >= 30

    assert eventually(remembers, 300)
    process.send_signal(number)
    picture(40, 60, seed=240).save(endless)  # truncates it first: a process that reads it comes to its end
    _, err = process.communicate(timeout=300)
    if number != signal.SIGKILL:
        assert process.returncode == EXIT_INTERRUPTED
        assert err.splitlines() == ["resnext-run: stopped; the same command continues"]
    value = scanned(cli, data)
    assert value["remembered"] >= 20
    assert value["read"] + value["remembered"] == 95
    assert value["read"] > 0


# -- processes that die --------------------------------------------------------------------------


def test_a_file_that_kills_its_reader_is_a_bad_file(tmp_path: Path) -> None:
    class_tree(tmp_path / "few", per_class=4)
    paths = sorted(map(str, (tmp_path / "few").rglob("*.jpg")))
    endless = endless_image(
        tmp_path / "endless.jpg"
    )  # who opens it stays at it: then it is certain who reads it
    killed: list[int] = []

    def kill_readers() -> None:
        for _ in range(2):
            while not (found := [pid for pid in data_workers() if pid not in killed and holds(pid, endless)]):
                time.sleep(0.01)
            os.kill(found[0], signal.SIGSTOP)
            killed.append(found[0])
            while psutil.Process(found[0]).status() != psutil.STATUS_STOPPED:
                time.sleep(0.01)
            if len(killed) == 2:
                os.truncate(endless, 5)  # its digest is taken then, in this process
            os.kill(found[0], signal.SIGSEGV)
            os.kill(found[0], signal.SIGCONT)

    thread = threading.Thread(target=kill_readers, daemon=True)
    thread.start()
    scan = scan_files([*paths, str(endless)], ScanCache(None, tmp_path), workers=2)
    thread.join()
    assert len(set(killed)) == 2
    assert scan is not None
    assert scan.facts[str(endless)].error == "the process that decoded it died"
    assert [scan.facts[p].error for p in paths] == [None] * 12


def test_any_main_module_will_do(data: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom resnext_core.data.scan import *\n"
        "from resnext_core.data.sources.files import FileReader\n"
        "print('main module runs once')\n"  # no guard: a worker must not import this module
        "paths = [str(p) for p in Path(sys.argv[1]).rglob('*.jpg')]\n"
        "files = [ScanFile(path=p, reader=0, locator=p.encode()) for p in paths]\n"
        "scan = scan_files(files, [FileReader()], ScanCache(None, Path(sys.argv[1])), workers=2)\n"
        "print(sum(fact.pixels is not None for fact in scan.facts.values()))\n"
    )
    script = data.parent / "script.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), str(data)], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout.split("\n"), done.stderr) == (["main module runs once", "9", ""], "")


def test_processes_that_cannot_start_blame_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    picture(20, 30).save(path)
    monkeypatch.setattr("resnext_core.data.pool._START", "import sys; sys.exit(9)")
    with pytest.raises(DataError, match="end at once"):
        scan_files([str(path)], ScanCache(None, tmp_path), workers=1)


def test_a_file_that_is_gone_is_not_remembered(tmp_path: Path) -> None:
    memory = ScanCache(tmp_path / "cache", tmp_path)
    scan = scan_files([str(tmp_path / "gone.png")], memory, workers=1)
    assert scan is not None
    assert scan.facts[str(tmp_path / "gone.png")] == Facts(
        size=-1, mtime_ns=-1, error="No such file or directory"
    )
    (stored,) = (tmp_path / "cache").iterdir()
    assert len(stored.read_text().split()) == len(json.dumps(json.loads(stored.read_text())).split())


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nowhere"], EXIT_DATA, "nowhere"),
        (["DATA", "--workers", "0"], EXIT_USAGE, "must be an integer from 1"),
        (["DATA", "--cache", "x", "--no-cache"], EXIT_USAGE, "not allowed with"),
        (
            ["DATA", "--no-cache", "--list", "/proc/nowhere/list"],
            EXIT_DATA,
            "cannot write /proc/nowhere/list",
        ),
    ],
)
def test_wrong_words(cli: CommandLine, data: Path, words: list[str], code: int, says: str) -> None:
    cli.refuses(code, "data", "scan", *[str(data) if w == "DATA" else w for w in words], says=says)
