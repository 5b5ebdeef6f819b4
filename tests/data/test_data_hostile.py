"""Damaged, odd and hostile data: shards, packed files, Parquet files and web folders are refused in one line."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import tracemalloc
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine
from faulty_server import CUT, WHOLE, faulty_server
from images import picture
from PIL import Image

from resnext_core.config import DataConfig
from resnext_core.data.content import MAX_BYTES, BadImage
from resnext_core.data.index import find_splits, open_index
from resnext_core.data.look import matching, names_in
from resnext_core.data.packing import Smaller, pack
from resnext_core.data.quarantine import write_list
from resnext_core.data.remote import access, ranges
from resnext_core.data.remote.access import Access, Status, Unreachable
from resnext_core.data.remote.ranges import GoneThrough
from resnext_core.data.sources import table
from resnext_core.data.sources.names import PACKED_MAGIC, expanded
from resnext_core.data.sources.packed import PackedReader, packed_meta
from resnext_core.data.sources.ranges import RangeReader, Shard, located
from resnext_core.data.sources.shard_contents import contents
from resnext_core.data.sources.table import HEAD, TableBuilder
from resnext_core.errors import EXIT_DATA, EXIT_OK, EXIT_USAGE, DataError
from resnext_core.files import Url
from resnext_core.jobs.pack import make_index, verify


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    picture(16, 16, seed=seed).save(stream, "PNG")
    return stream.getvalue()


def error_of(path: Path | str) -> str:
    """The message of what cannot be opened, which is one line."""
    with pytest.raises(DataError) as caught:
        open_index(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- tar shards ----------------------------------------------------------------------------------


def webdataset(path: Path, labels: list[bytes], changed: int = 1) -> Path:
    """Write images with labels beside them; every member has the same time, as WebDataset's writers may have it."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for i, label in enumerate(labels):
            for name, content in ((f"{i}.png", png(i)), (f"{i}.cls", label)):
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(content), 0
                archive.addfile(info, io.BytesIO(content))
    os.utime(path, (changed, changed))
    return path


def header(name: bytes, size: bytes, stated: bytes | None = None) -> bytes:
    found = bytearray(512)
    found[: len(name)], found[100:107], found[156:157], found[257:265] = (
        name,
        b"0000644",
        b"0",
        b"ustar\x0000",
    )
    found[124 : 124 + len(size)] = size
    found[148:156] = b" " * 8
    found[148:156] = stated or b"%06o\0 " % sum(found)
    return bytes(found)


def test_labels_that_were_exchanged_are_seen(tmp_path: Path) -> None:
    """The members' headers are all as they were, and so is the size of the file."""
    path = webdataset(tmp_path / "a.tar", [b"0", b"1"])
    assert open_index(path).labels.tolist() == [0, 1]
    webdataset(path, [b"1", b"0"], changed=2)
    assert open_index(path).labels.tolist() == [1, 0]
    make_index(str(path))
    webdataset(path, [b"0", b"1"], changed=3)
    assert "does not fit its shards: a.tar has other content; make it again" in error_of(path)


@pytest.mark.parametrize(
    "damaged",
    [
        header(b"a/1.png", b"-0000001000"),
        header(b"a/1.png", b"+0000000010"),
        header(b"a/1.png", b"00000000_10"),
        header(b"a/1.png", b"00000000010", b"009999\0 "),
        header(b"a/1.png", b"00000000010", b"-00001\0 "),
    ],
)
def test_numbers_in_headers_that_are_not_octal(tmp_path: Path, damaged: bytes) -> None:
    for before in (b"", header(b"a/0.png", b"00000000010") + bytes(512)):
        (tmp_path / "b.tar").write_bytes(before + damaged + bytes(1024))
        said = error_of(tmp_path / "b.tar")
        assert "it is damaged: " in said or "it is not a tar archive" in said


def test_a_label_that_is_too_large(tmp_path: Path) -> None:
    said = error_of(webdataset(tmp_path / "a.tar", [b"0", b"999999999"]))
    assert "have the label 999999999; numbers are below 1000000, write names as text" in said


def test_the_product_of_braces_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before its names are made."""
    monkeypatch.setattr("resnext_core.data.sources.names._MOST", 500)
    assert len(expanded("{0..9}-{0..49}.tar")) == 500
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="stands for more than 500 shards"):
            expanded("{0..499}-{0..499}.tar")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20, "250,000 names take 15 MB"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [RangeReader, PackedReader])
def test_an_image_above_the_limit_is_not_read(kind: type[RangeReader]) -> None:
    class Files:
        window = 0

        def open(self, name: str) -> Any:
            pytest.fail("it is opened")

    reader = kind([Shard(name="a", stamp=(1, 1))], Files())
    with pytest.raises(BadImage, match=f"it has {MAX_BYTES + 1} bytes; the limit is {MAX_BYTES}"):
        reader.read(located(0, 512, MAX_BYTES + 1))


@pytest.mark.parametrize("first", [2000, 12 << 20])
def test_requests_after_a_large_member_stay_few(first: int) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for k in range(200):
            info = tarfile.TarInfo(f"{k}.jpg")
            info.size = first if k == 0 else 2000
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    data, asked = stream.getvalue(), []

    class Store:
        def status(self, url: str) -> Status:
            return Status(name="x", folder=False, size=len(data), version="v")

        def content(self, url: str, offset: int, length: int, *, whole: bool) -> bytes:
            asked.append(length)
            return data[offset : offset + length]

    file = GoneThrough("s3://b/x.tar", SimpleNamespace(access=Store()))  # type: ignore[arg-type]
    assert len(contents(file.read, len(data)).images) == 200
    assert len(asked) < 10


# -- packing -------------------------------------------------------------------------------------


def test_a_folder_that_disappears_is_not_packed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for k in range(20):
        (source / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        (source / "ab"[k % 2] / f"{k}.png").write_bytes(png(k))

    def moved(done: int, total: int) -> None:
        if source.exists():
            source.rename(tmp_path / "away")

    with pytest.raises(DataError, match="source") as caught:
        pack(open_index(source), tmp_path / "out.pack", None, workers=1, on_progress=moved)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["away"]


def test_an_image_too_long_for_jpeg_keeps_its_bytes(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "source" / name).mkdir(parents=True)
    long = tmp_path / "source/a/1.png"
    Image.fromarray(np.zeros((80_000, 11), np.uint8)).save(long)
    picture(300, 200).save(tmp_path / "source/b/2.png")
    made = pack(
        open_index(tmp_path / "source"), tmp_path / "out.pack", Smaller(side=10, quality=90), workers=1
    )
    assert made is not None
    assert (made.images, made.smaller, dict(made.unreadable)) == (2, 1, {})
    index = open_index(tmp_path / "out.pack")
    assert index.source.reader().read(index.source.locator(0)) == long.read_bytes()


# -- web folders ---------------------------------------------------------------------------------


def test_a_web_folder_that_cannot_be_listed_now_is_not_taken_for_an_empty_one() -> None:
    quick = Access(tries=2, pause=0.001)
    with faulty_server({"/data/train/a/1.png": png()}) as server:
        folder = Url(f"{server.url}/data")
        assert names_in(folder, quick).folders == ("train",)
        server.everything = 503
        for question in (
            lambda: names_in(folder, quick),
            lambda: matching(folder / "train-*.tar", quick),
            lambda: find_splits(folder, DataConfig(tries=1)),
        ):
            with pytest.raises(DataError, match=f"cannot read {server.url}/data.*HTTP status 503") as caught:
                question()
            assert isinstance(caught.value, Unreachable)
            assert caught.value.exit_code == EXIT_DATA
            assert "\n" not in str(caught.value)


# -- Parquet -------------------------------------------------------------------------------------


def parquet(path: Path, columns: dict[str, Any]) -> Path:
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow (the extra [parquet])")
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table(columns), path)
    return path


def test_odd_parquet_files(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow (the extra [parquet])")
    said = error_of(parquet(tmp_path / "dot.parquet", {"image.bytes": [png(), png()], "label": [0, 1]}))
    assert "has no column 'image' with the bytes of images; it has: image.bytes, label" in said
    texts = arrow.array([b"\xffa", b"b"], arrow.binary()).view(arrow.string())
    said = error_of(parquet(tmp_path / "utf.parquet", {"image": [png(), png()], "label": texts}))
    assert "the column 'label' has texts that are not UTF-8; write it again" in said
    (tmp_path / "links").mkdir()
    (tmp_path / "links/a.parquet").symlink_to(tmp_path / "nowhere.parquet")
    assert "there are no Parquet files in" in error_of(tmp_path / "links")


def test_parquet_paths_that_are_no_texts_are_not_names(tmp_path: Path) -> None:
    images = [{"bytes": png(), "path": 1}, {"bytes": png(), "path": 2}]
    index = open_index(parquet(tmp_path / "a.parquet", {"image": images, "label": [0, 1]}))
    assert index.paths == ["a.parquet/0", "a.parquet/1"]
    assert index.source.reader().read(index.source.locator(1)) == png()


# -- packed files that are not what `data pack` writes -------------------------------------------


def forged(path: Path, labels: list[int], meta: dict[str, Any], offset: int = HEAD, size: int = 9) -> Path:
    """Write a packed file whose checksums are right and whose content may be anything."""
    with path.open("w+b") as stream:
        stream.write(bytes(HEAD) + b"image" * 20)
        rows = TableBuilder(checksums=True)
        for k, label in enumerate(labels):
            rows.add(b"%d.png" % k, label, offset, size)
        rows.write(stream, PACKED_MAGIC, meta)
    return path


GOOD = packed_meta(("a", "b"), True, {}, None)


@pytest.mark.parametrize(
    ("labels", "meta", "place", "said"),
    [
        ([0, 5], GOOD, {}, "labels that are no classes"),
        ([0, -7], GOOD, {}, "labels that are no classes"),
        ([0, 2**31 - 1], GOOD, {}, "labels that are no classes"),
        ([0, 1], {}, {}, "lacks something"),
        ([0, 1], {**GOOD, "classes": "ab"}, {}, "lacks something"),
        ([0, 1], {**GOOD, "classes": ["a", 1]}, {}, "lacks something"),
        ([0, 1], {**GOOD, "named": None}, {}, "lacks something"),
        ([0, 1], {**GOOD, "unreadable": {"x": "y"}}, {}, "lacks something"),
        ([0, 1], GOOD, {"offset": 2**63 + 5}, "images outside the file"),
        ([0, 1], GOOD, {"size": 2**63}, "images outside the file"),
        ([0, 1], GOOD, {"size": 300}, "images outside the file"),
    ],
)
def test_packed_files_with_content_that_cannot_be(
    tmp_path: Path, labels: list[int], meta: dict[str, Any], place: dict[str, int], said: str
) -> None:
    assert len(open_index(forged(tmp_path / "good.pack", [0, 1], GOOD))) == 2
    path = forged(tmp_path / "a.pack", labels, meta, **place)
    assert f"{path} is not as this release packs files: it" in error_of(path)
    assert said in error_of(path)
    with pytest.raises(DataError, match=said):
        verify(path)


@pytest.mark.parametrize("change", ["lengths", "missing", "type", "order", "name", "text"])
def test_tables_with_columns_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    dumps = json.dumps

    def changed(meta: dict[str, Any]) -> str:
        columns = meta["columns"]
        if change == "lengths":
            columns["labels"][1] = 1
        elif change == "missing":
            del columns["sizes"]
        elif change == "type":
            columns["labels"][0] = "|O"
        elif change == "order":
            columns["names"][1] = 3
        elif change == "name":
            columns["other"] = ["<i4", 2]
        return "no json" if change == "text" else dumps(meta)

    monkeypatch.setattr(table, "json", SimpleNamespace(dumps=changed, loads=json.loads))
    path = forged(tmp_path / "a.pack", [0, 1], GOOD)
    assert f"{path}: the table of this packed file is not as this release writes it: " in error_of(path)


@pytest.mark.parametrize(
    "change", ["shards", "images", "size", "classes", "named", "ignored", "changed", "text"]
)
def test_an_index_beside_shards_with_content_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    dumps = json.dumps

    def changed(meta: dict[str, Any]) -> str:
        if change in ("images", "size"):
            meta["shards"][0][change] = {"images": 3, "size": 700}[change]
        elif change == "changed":
            del meta["shards"][0][change]
        elif change == "text":
            meta["shards"] = ["a.tar"]
        else:
            meta[change] = {"shards": None, "classes": ["0"], "named": 1, "ignored": []}[change]
        return dumps(meta)

    path = webdataset(tmp_path / "a.tar", [b"0", b"1"])
    monkeypatch.setattr(table, "json", SimpleNamespace(dumps=changed, loads=json.loads))
    make_index(str(path))
    said = error_of(path)
    assert f"{path}.index is not as this release writes it: " in said
    assert "make it again with 'resnext-run data index'" in said


# -- names, empty data and places ----------------------------------------------------------------


def test_data_without_images_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    assert f"{tmp_path}/empty.tar has no images" in error_of(tmp_path / "empty.tar")
    found = error_of(
        parquet(tmp_path / "empty.parquet", {"image": np.zeros(0, "S1"), "label": np.zeros(0, int)})
    )
    assert f"{tmp_path}/empty.parquet has no images" in found


def test_names_with_a_line_break_are_not_listed(tmp_path: Path) -> None:
    write_list(tmp_path / "bad.txt", ["a/1.png", "b\n2.png"], "header")
    assert (tmp_path / "bad.txt").read_text() == "# header\na/1.png\n"


def test_places_with_dots(tmp_path: Path) -> None:
    folder = Url("s3://bucket/lists/val")
    assert str(folder / "../other/3.jpg") == "s3://bucket/lists/other/3.jpg"
    assert str(folder / "../../../../3.jpg") == "s3://bucket/3.jpg"
    assert str(folder / "a..b/../3.jpg") == "s3://bucket/lists/val/3.jpg"
    assert str(folder / "a..b//3.jpg") == "s3://bucket/lists/val/a..b//3.jpg"


def test_a_list_in_a_store_may_name_images_beside_its_folder(tmp_path: Path) -> None:
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.pipe("/dots/other/1.png", png())
    memory.pipe("/dots/lists/val.txt", b"../other/1.png cat\n")
    memory.pipe("/dots/lists/wrong.txt", b"../other/2.png cat\n")
    try:
        data = DataConfig(cache=str(tmp_path / "images"))
        index = open_index("memory://dots/lists/val.txt", data=data)
        assert str(index.path(0)) == "memory://dots/other/1.png"
        assert index.source.reader().read(index.source.locator(0)) == png()
        with pytest.raises(DataError, match=r"no such file: memory://dots/other/2.png"):
            open_index("memory://dots/lists/wrong.txt", data=data)
    finally:
        memory.rm("/dots", recursive=True)


def test_commands_take_file_urls(tmp_path: Path, cli: CommandLine) -> None:
    forged(tmp_path / "a.pack", [-1], packed_meta((), True, {}, None), size=0)
    assert cli("data", "verify", f"file://{tmp_path}/a.pack").code == EXIT_OK
    webdataset(tmp_path / "a.tar", [b"0"])
    assert cli("data", "index", f"file://{tmp_path}/a.tar").code == EXIT_OK
    assert (tmp_path / "a.tar.index").is_file()
    assert cli("data", "verify", "s3://bucket/a.pack").code == EXIT_USAGE


# -- what is in a store --------------------------------------------------------------------------


def test_a_shard_in_a_store_that_changes_is_noticed_within_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(ranges, "time", SimpleNamespace(monotonic=lambda: now[0]))
    content = webdataset(tmp_path / "a.tar", [b"0", b"1", b"0"]).read_bytes()
    with faulty_server({"/a.tar": content}) as server:
        index = open_index(f"{server.url}/a.tar", data=DataConfig(cache=str(tmp_path / "images")))
        reader = index.source.reader()
        assert reader.read(index.source.locator(0)) == png(0)
        server.files["/a.tar"] = content[:-1] + b"x"
        questions = server.questions
        now[0] += 59
        assert reader.read(index.source.locator(1)) == png(1)
        assert server.questions == questions + 1
        now[0] += 2
        for _ in range(2):
            with pytest.raises(DataError, match=r"a.tar has changed since the data was opened"):
                reader.read(index.source.locator(2))


def test_a_server_without_ranges_is_found_out_before_it_sends_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "_BLOCK", 1000)
    monkeypatch.setattr(access, "_WITH_RANGES", set())
    content = webdataset(tmp_path / "a.tar", [b"0"]).read_bytes()
    with faulty_server({"/a.tar": content, "/b.tar": content}) as server:
        for name in ("a.tar", "a.pack", "a.parquet"):
            if name == "a.parquet" and find_spec("pyarrow") is None:
                continue
            server.files[f"/{name}"], server.always[f"/{name}"] = content, WHOLE
            said = f"{name}: the server sends the whole file where a part is asked for"
            with pytest.raises(DataError, match=re.escape(said)):
                open_index(f"{server.url}/{name}", data=DataConfig(tries=2))
            assert server.asked == [(f"/{name}", "bytes=1-1")]
            server.asked.clear()
        server.always.clear()
        server.asked.clear()
        server.faults["/a.tar"].extend([503, CUT])
        for _ in range(2):
            assert len(open_index(f"{server.url}/a.tar", data=DataConfig(tries=4))) == 1
        open_index(f"{server.url}/b.tar")
        assert server.asked.count(("/a.tar", "bytes=1-1")) == 3
        assert server.asked.count(("/b.tar", "bytes=1-1")) == 0, "the server is known"
