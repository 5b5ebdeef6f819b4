"""Tar shards: every archive that tar writes is read, and what is wrong with one is said in a line."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import shutil
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from images import picture
from source_data import write_tar

from resnext_core.config import DataConfig
from resnext_core.data.index import Index, find_splits, open_index
from resnext_core.data.loader import Loader
from resnext_core.data.sampler import Task
from resnext_core.data.sources.names import expanded, is_shards
from resnext_core.data.sources.ranges import LocalFiles, RangeReader, Shard, located
from resnext_core.data.sources.registry import kind_of
from resnext_core.data.sources.shard_index import beside
from resnext_core.data.sources.tar import FILE, members
from resnext_core.errors import DataError, UsageError
from resnext_core.files import cache_folder
from resnext_core.jobs.pack import make_index
from resnext_core.model.preprocess import PreprocessSpec

SPEC = PreprocessSpec(size=16, resize=18)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def jpeg(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    picture(20, 24, seed=seed).save(stream, "JPEG")
    return stream.getvalue()


def shards(folder: Path, count: int = 2, each: int = 6) -> Path:
    """Write shards of class folders."""
    for k in range(count):
        named = [(f"{'ab'[i % 2]}/{k}{i}.jpg", jpeg(10 * k + i)) for i in range(each)]
        write_tar(folder / f"s-{k}.tar", sorted(named))
    return folder


def error_of(path: Path | str) -> str:
    """The message of what cannot be opened, which is one line."""
    with pytest.raises(DataError) as caught:
        open_index(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- archives ------------------------------------------------------------------------------------


def listed_by_us(path: Path) -> list[tuple[str, int, int]]:
    content = path.read_bytes()
    return [
        (m.name.decode(errors="surrogateescape"), m.offset, m.size)
        for m in members(lambda at, n: content[at : at + n], len(content))
        if m.kind == FILE
    ]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_finds(tmp_path: Path, form: int) -> None:
    names = ["a.jpg", "deep/" * 12 + "b.jpg", "ä/ö.jpg", "x" * 90 + ".jpg", "c d/e'f.jpg"]
    if form != tarfile.USTAR_FORMAT:
        names += ["long/" * 60 + "name" * 30 + ".jpg", "µ" * 120 + ".jpg"]
    sizes = (0, 1, 511, 512, 513, 9000, 5)
    given = [(name, bytes([i]) * sizes[i]) for i, name in enumerate(names)]
    path = write_tar(tmp_path / "x.tar", given, form)
    with tarfile.open(path) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive]
    assert listed_by_us(path) == expected
    assert [name for name, _, _ in expected] == names


def test_what_gnu_tar_writes(tmp_path: Path) -> None:
    if shutil.which("tar") is None:
        pytest.skip("there is no tar")
    (tmp_path / "d/ant").mkdir(parents=True)
    (tmp_path / "d/bee").mkdir()
    for name in ("ant/1.jpg", "bee/2.jpg", "bee/._2.jpg", "bee/notes.txt"):
        (tmp_path / "d" / name).write_bytes(jpeg())
    assert os.system(f"tar -C {tmp_path}/d -cf {tmp_path}/x.tar .") == 0
    index = open_index(tmp_path / "x.tar")
    assert sorted(index.paths) == ["x.tar/ant/1.jpg", "x.tar/bee/2.jpg"]
    assert index.classes == ("ant", "bee")
    assert index.ignored == {".txt": 1}


def test_a_damaged_archive_is_an_error_and_nothing_else(tmp_path: Path) -> None:
    """Random damage: the parser ends, with members or with ValueError."""
    whole = write_tar(
        tmp_path / "x.tar", [(f"n{i}" * (1 + 20 * i) + ".jpg", b"x" * i) for i in range(8)]
    ).read_bytes()
    rng, read = random.Random(1), 0
    for _ in range(400):
        content = bytearray(whole[: rng.choice((len(whole), rng.randrange(len(whole))))])
        for _ in range(rng.randrange(1, 4)):
            if content:
                content[rng.randrange(len(content))] = rng.randrange(256)
        with suppress(ValueError):
            list(members(lambda at, n, content=content: bytes(content[at : at + n]), len(content)))
            read += 1
    assert 0 < read < 200


# -- what is wrong with shards -------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1024, 512, 513, 600, 1500, 3000])
def test_a_shard_cut_short_is_named(tmp_path: Path, cut: int) -> None:
    """Also one that ends between two members, or in its end mark."""
    shards(tmp_path / "d")
    path = tmp_path / "d/s-1.tar"
    with tarfile.open(path) as archive:
        ends = [m.offset for m in archive][1:]
    size = path.stat().st_size
    for length in (ends[0], ends[-1], max(size - 10240 - cut, 0), cut):
        kept = path.read_bytes()
        os.truncate(path, length)
        assert f"{path} cannot be used: it is cut short" in error_of(tmp_path / "d")
        path.write_bytes(kept)
    os.truncate(path, 0)
    assert "it is cut short: it has 0 bytes and no end mark" in error_of(path)


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    shards(tmp_path / "d", count=1)
    (tmp_path / "d/s-1.tar.gz").write_bytes(gzip.compress((tmp_path / "d/s-0.tar").read_bytes()))
    assert "s-1.tar.gz is compressed" in error_of(tmp_path / "d")
    assert "unpack it to a .tar" in error_of(tmp_path / "d/s-1.tar.gz")
    (tmp_path / "d/s-1.tar.gz").rename(tmp_path / "d/s-1.tar")  # it says so itself
    assert "s-1.tar cannot be used: it is compressed (gzip)" in error_of(tmp_path / "d")


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no archive " * 100)
    assert "it is not a tar archive" in error_of(tmp_path / "x.tar")
    one, other = shards(tmp_path / "d"), tmp_path / "joined.tar"
    other.write_bytes((one / "s-0.tar").read_bytes() + (one / "s-1.tar").read_bytes())
    assert "data after its end mark" in error_of(other)
    damaged = bytearray((one / "s-0.tar").read_bytes())
    with tarfile.open(one / "s-0.tar") as archive:
        damaged[archive.getmembers()[2].offset + 5] ^= 1
    (one / "s-0.tar").write_bytes(damaged)
    assert "it is damaged: there is no header at byte" in error_of(one)


def test_members_that_are_ambiguous_are_refused(tmp_path: Path) -> None:
    twice = write_tar(tmp_path / "twice.tar", [("a/1.jpg", jpeg()), ("./a/1.jpg", jpeg(1))])
    assert "two members called a/1.jpg" in error_of(twice)
    keys = write_tar(tmp_path / "keys.tar", [("1.cls", b"0"), ("1.jpg", jpeg()), ("1.png", jpeg())])
    assert "two images with the key 1: 1.jpg and 1.png" in error_of(keys)
    views = write_tar(
        tmp_path / "views.tar", [("1.left.jpg", jpeg()), ("1.right.jpg", jpeg()), ("1.cls", b"0")]
    )
    assert "two images with the key 1: 1.left.jpg and 1.right.jpg" in error_of(views)
    labels = write_tar(tmp_path / "labels.tar", [("1.jpg", jpeg()), ("1.cls", b"0"), ("1.cls", b"1")])
    assert "two members called 1.cls" in error_of(labels)
    mixed = write_tar(tmp_path / "mixed.tar", [("a/1.jpg", jpeg()), ("2.jpg", jpeg())])
    assert "put every image into the folder of its class" in error_of(mixed)
    link = tmp_path / "link.tar"
    with tarfile.open(link, "w") as archive:
        info = tarfile.TarInfo("a/1.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "../b.jpg"
        archive.addfile(info)
    assert "a/1.jpg is a link" in error_of(link)


def test_missing_and_odd_labels(tmp_path: Path) -> None:
    some = write_tar(
        tmp_path / "some.tar", [("1.jpg", jpeg()), ("1.cls", b"3"), ("2.jpg", jpeg()), ("3.jpg", jpeg())]
    )
    assert "2 of 3 images in" in error_of(some)
    assert "have no label, e.g. some.tar/2.jpg" in error_of(some)
    for label in (b"", b" \n", b"\xff\xfe", b"a\nb"):
        bad = write_tar(tmp_path / "bad.tar", [("1.jpg", jpeg()), ("1.cls", label)])
        assert "1.cls holds no label" in error_of(bad)


def test_labels_from_json_and_keys_with_dots(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "j.tar",
        [
            ("d/v1.0.jpg", jpeg()), ("d/v1.0.json", b'{"label": "cat", "width": 3}'),
            ("d/v2.jpeg", jpeg()), ("d/v2.json", b'{"cls": "dog"}'), ("d/v2.txt", b"a caption"),
            ("k.image.jpg", jpeg()), ("k.json", b'{"label": "ant"}'), ("other.json", b"[1]"),
        ],
    )  # fmt: skip
    index = open_index(path)
    assert [index.classes[label] for label in index.labels] == ["cat", "dog", "ant"]
    assert index.ignored == {".txt": 1}


def test_images_alone_have_no_labels(tmp_path: Path) -> None:
    index = open_index(write_tar(tmp_path / "x.tar", [("1.jpg", jpeg()), ("2.jpg", jpeg())]))
    assert index.labels.tolist() == [-1, -1]
    assert "has no images" in error_of(write_tar(tmp_path / "y.tar", [("1.txt", b"x")]))


# -- patterns ------------------------------------------------------------------------------------


def test_patterns(tmp_path: Path) -> None:
    assert expanded("a-{08..11}.tar") == [f"a-{i}.tar" for i in ("08", "09", "10", "11")]
    assert expanded("{a,b}-{0..1}.tar") == ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]
    for wrong in ("{3..1}.tar", "{x}.tar", "{0..99999999}.tar"):
        with pytest.raises(DataError):
            expanded(wrong)
    shards(tmp_path / "d", count=3, each=2)
    assert len(open_index(tmp_path / "d/s-{1..2}.tar")) == 4
    assert len(open_index(str(tmp_path / "d/s-[02].tar"))) == 4
    assert "1 of the 4 shards" in error_of(tmp_path / "d/s-{0..3}.tar")
    assert "there are no shards" in error_of(tmp_path / "d/t-*.tar")


def test_a_folder_of_images_stays_one(tmp_path: Path) -> None:
    """The archive that a folder was unpacked from may lie in it, or beside it."""
    shards(tmp_path / "d", count=1)
    assert is_shards(str(tmp_path / "d"))
    for k in range(2):
        (tmp_path / f"d/{k}").mkdir()
        picture(20, 20).save(tmp_path / f"d/{k}/1.png")
    assert not is_shards(str(tmp_path / "d"))
    assert len(open_index(tmp_path / "d")) == 2
    assert open_index(tmp_path / "d").ignored == {".tar": 1}
    assert not is_shards(str(tmp_path / "nowhere"))
    assert kind_of(tmp_path) is None


def test_parts_of_a_data_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("set-train-0.tar", "set-train-1.tar", "val.tar"):
        write_tar(data / name, [("a/1.jpg", jpeg()), ("b/2.jpg", jpeg())])
    assert find_splits(data, DataConfig()) == {"train": data / "*-train-*.tar", "val": data / "val.tar"}
    assert len(open_index(data / "*-train-*.tar")) == 4
    (data / "val.pack").write_bytes(b"")
    with pytest.raises(UsageError, match=r"val.tar and val.pack; choose one"):
        find_splits(data, DataConfig())
    assert find_splits(data, DataConfig(val="set-train-{0..1}.tar"))["val"] == data / "set-train-{0..1}.tar"
    (data / "train").mkdir()
    (data / "val").mkdir()
    assert find_splits(data, DataConfig()) == {"train": data / "train", "val": data / "val"}
    with pytest.raises(UsageError, match="is one part of a data set"):
        find_splits(data / "val.tar", DataConfig())


# -- the index -----------------------------------------------------------------------------------


def cached() -> list[Path]:
    return sorted(cache_folder().glob("shards-*.index"))


def test_an_index_is_made_once_and_again_when_a_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shards(tmp_path / "d")
    first = open_index(folder)
    (kept,) = cached()
    made = kept.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr("resnext_core.data.sources.shard_index.indexed", lambda *_: pytest.fail("it is known"))
        assert open_index(folder).paths == first.paths
    assert kept.stat().st_mtime_ns == made
    os.utime(folder / "s-1.tar")  # a label may be another one
    assert open_index(folder).paths == first.paths
    assert kept.stat().st_mtime_ns != made
    write_tar(folder / "s-1.tar", [("a/9.jpg", jpeg())])
    assert list(open_index(folder).paths)[-1] == "s-1.tar/a/9.jpg"
    assert cached() == [kept]
    for damage in (b"", b"damaged", kept.read_bytes()[:-1]):
        kept.write_bytes(damage)
        assert len(open_index(folder)) == 7
    damaged = bytearray(kept.read_bytes())
    damaged[-70] ^= 1
    kept.write_bytes(damaged)
    assert len(open_index(folder)) == 7


def test_an_index_beside_the_shards_must_fit_them(tmp_path: Path) -> None:
    folder = shards(tmp_path / "d")
    result = make_index(str(folder))
    assert (result.file, result.shards, result.images) == (folder / "shards.index", 2, 12)
    assert len(open_index(folder)) == 12
    assert cached() == [], "nothing else is written"
    moved = folder.rename(tmp_path / "e")
    os.utime(moved / "s-0.tar")
    assert len(open_index(moved)) == 12
    content, size = (moved / "s-0.tar").read_bytes(), (moved / "s-0.tar").stat().st_size
    write_tar(moved / "s-0.tar", [(f"a/{i}.jpg", b"x") for i in range(6)])
    os.truncate(moved / "s-0.tar", size)  # zeros at the end belong to the archive
    assert "does not fit its shards: s-0.tar has other content; make it again" in error_of(moved)
    os.truncate(moved / "s-0.tar", size + 512)
    assert f"does not fit its shards: s-0.tar has {size + 512} bytes, and had {size}" in error_of(moved)
    (moved / "s-0.tar").write_bytes(content)
    os.utime(moved / "s-0.tar")
    assert len(open_index(moved)) == 12
    shutil.copy(moved / "s-0.tar", moved / "s-2.tar")
    assert "does not fit its shards: it is about 2 other shards; make it again" in error_of(moved)
    assert make_index(str(moved)).images == 18
    assert len(open_index(moved)) == 18
    (moved / "shards.index").write_bytes(beside(str(moved)).read_bytes()[:-9])
    assert "shards.index is cut short" in error_of(moved)
    with pytest.raises(UsageError, match="is not a tar archive"):
        make_index(str(tmp_path))


def test_an_index_that_cannot_be_kept_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    index = open_index(shards(tmp_path / "d"))
    assert len(index) == 12
    assert any("the index of the shards is not kept: cannot write" in remark for remark in index.remarks)


# -- while it is used ----------------------------------------------------------------------------


def first_then_all(index: Index, workers: int, between: Callable[[], object]) -> str:
    """The message of a loader for which something happens after its first batch."""
    tasks = iter([Task.of(0, np.arange(2)), *(Task.of(0, np.arange(len(index))) for _ in range(30))])
    with Loader(index, SPEC, workers=workers, prefetch=1) as loader:
        batches = loader.batches(tasks)
        assert next(batches).valid.all()
        between()
        with pytest.raises(DataError) as caught:
            list(batches)
    assert "\n" not in str(caught.value)
    assert loader.failures == {}
    return str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_changes_while_it_is_read_is_named(tmp_path: Path, workers: int) -> None:
    folder = shards(tmp_path / "d")
    said = first_then_all(open_index(folder), workers, lambda: os.truncate(folder / "s-0.tar", 2000))
    assert said.startswith(f"{folder / 's-0.tar'} has changed since the data was opened")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_disappears_is_named(tmp_path: Path, workers: int) -> None:
    """The loader has not opened the second one yet, or does so again with the next worker."""
    folder = shards(tmp_path / "d")
    index = open_index(folder)
    (folder / "s-1.tar").unlink()
    with Loader(index, SPEC, workers=workers) as loader:
        (batch,) = loader.batches([Task.of(0, np.arange(6))])
        assert batch.valid.all()
        with pytest.raises(DataError, match=r"s-1.tar can no longer be read: No such file"):
            list(loader.batches([Task.of(0, np.arange(12))]))


def test_sequential_reads_come_in_windows(tmp_path: Path) -> None:
    """The same bytes in any order, and far fewer reads in the order of the shard."""
    reads: list[int] = []

    class File:
        def __init__(self, path: str) -> None:
            self.file = LocalFiles().open(path)

        def read(self, offset: int, length: int) -> bytes:
            reads.append(length)
            return self.file.read(offset, length)

        def stamp(self) -> tuple[int, int]:
            return self.file.stamp()

    class Files:
        window = 32 << 10

        def open(self, name: str) -> File:
            return File(name)

    folder = shards(tmp_path / "d", count=1, each=100)
    index = open_index(folder)
    name = str(folder / "s-0.tar")
    reader = RangeReader([Shard(name=name, stamp=LocalFiles().open(name).stamp())], Files())
    with tarfile.open(name) as archive:
        found = [(m.offset_data, m.size, archive.extractfile(m).read()) for m in archive]  # type: ignore[union-attr]
    for order in (range(100), random.Random(3).sample(range(100), 100)):
        reads.clear()
        for i in order:
            offset, size, content = found[i]
            assert reader.read(located(0, offset, size)) == content
            assert index.source.reader().read(index.source.locator(i)) == content
        if order == range(100):
            assert len(reads) < 12
        else:
            assert len(reads) > 50


def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    folder = shards(tmp_path / "d", count=150, each=2)
    index = open_index(folder)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    reader = index.source.reader()
    for _ in range(2):
        for i in range(len(index)):
            assert reader.read(index.source.locator(i))[:2] == b"\xff\xd8"
    if before:
        assert len(os.listdir("/proc/self/fd")) - before <= 130


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    """More shards than may be open, each thread in an order of its own, or in that of the shards."""
    folder = shards(tmp_path / "d", count=140, each=3)
    index = open_index(folder)
    expected = [index.source.reader().read(index.source.locator(i)) for i in range(len(index))]
    reader = pickle.loads(pickle.dumps(index.source.reader()))

    def read(seed: int) -> int:
        order = list(range(len(index)))
        if seed % 2:
            random.Random(seed).shuffle(order)
        return sum(reader.read(index.source.locator(i)) == expected[i] for i in order)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(16))) == [len(index)] * 16
