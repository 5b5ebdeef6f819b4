"""Sources: one stream of batches whatever holds the images, and the same treatment of bad ones."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from images import CLASSES, class_tree
from source_data import all_sources, bad_kinds, write_tar

from resnext_core.config import AugmentConfig
from resnext_core.data.content import BadImage
from resnext_core.data.index import Index, listed, open_index
from resnext_core.data.loader import Loader
from resnext_core.data.packing import pack
from resnext_core.data.quarantine import Quarantine, read_list
from resnext_core.data.sampler import Task, epoch_permutation, eval_tasks, rank_slice
from resnext_core.data.sources.joined import JoinedSource
from resnext_core.data.sources.registry import kind_of
from resnext_core.jobs.scan import ScanJob, scan
from resnext_core.model.preprocess import PreprocessSpec

SPEC = PreprocessSpec(size=16, resize=18)
NAMES = (
    "folder",
    "list",
    "class folders in shards",
    "a pattern",
    "webdataset",
    "one tar",
    "packed",
    "packed from shards",
)
BATCH, STEPS, EPOCHS = 6, 3, 2


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    index = open_index(class_tree(root / "train", per_class=6))
    return all_sources(index, root / "forms", NAMES)


def steps(count: int, rank: int, world: int, begin: int = 0) -> list[Task]:
    """The training steps from `begin` on, of a rank."""
    order = [epoch_permutation(count, 5, epoch) for epoch in range(EPOCHS)]
    every = [(epoch, step) for epoch in range(EPOCHS) for step in range(STEPS)]
    return [
        Task.of(epoch, rank_slice(order[epoch], step, BATCH, rank, world)) for epoch, step in every[begin:]
    ]


def rows(loader: Loader, tasks: list[Task]) -> list[list[bytes]]:
    """Of each batch, each valid row: pixels, label and number."""
    return [
        [
            b.images[r].tobytes() + b.labels[r].tobytes() + b.index[r].tobytes()
            for r in np.flatnonzero(b.valid)
        ]
        for b in loader.batches(tasks)
    ]


def stream_digest(index: Index, workers: int) -> set[str]:
    """The digests of training and evaluation: with one to three ranks, and with a restart in mid-epoch."""
    found = set()
    with (
        Loader(index, SPEC, AugmentConfig(), seed=3, workers=workers) as train,
        Loader(index, SPEC, workers=workers) as score,
    ):
        for world in (1, 2, 3):
            ranks = [rows(train, steps(len(index), rank, world)) for rank in range(world)]
            joined = [row for batch in zip(*ranks, strict=True) for part in batch for row in part]
            seen = [rows(score, list(eval_tasks(len(index), 4, rank, world))) for rank in range(world)]
            scored = sorted(
                (row for part in seen for batch in part for row in batch), key=lambda row: row[-8:]
            )
            assert len(scored) == len(index)
            found.add(hashlib.sha256(b"".join(joined + scored)).hexdigest())
        before = rows(train, steps(len(index), 0, 1))[:3]
        train.close()  # and its workers
        after = rows(train, steps(len(index), 0, 1, begin=3))
        whole = [row for batch in before + after for row in batch]
        found.add(hashlib.sha256(b"".join(whole + scored)).hexdigest())
    return found


@pytest.fixture(scope="module")
def digest(forms: Mapping[str, Path]) -> str:
    """That of the folder, read in this process."""
    (found,) = stream_digest(open_index(forms["folder"]), 0)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_one_digest_in_this_process(forms: Mapping[str, Path], digest: str, name: str) -> None:
    index = open_index(forms[name])
    assert index.classes == CLASSES
    assert index.named
    assert stream_digest(index, 0) == {digest}


#: The product of these is left to -m slow: processes take their time to start.
SOME = [("list", 1), ("webdataset", 2), ("packed", 3), ("folder", 4)]
ALL = [(name, n) for name in ("folder", "list", "webdataset", "packed") for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("name", "workers"),
    [pytest.param(*one, marks=[] if one in SOME else pytest.mark.slow) for one in ALL],
)
def test_one_digest_for_any_number_of_workers(
    forms: Mapping[str, Path], digest: str, name: str, workers: int
) -> None:
    assert stream_digest(open_index(forms[name]), workers) == {digest}


def test_a_packed_file_has_the_names_and_the_digest_of_its_folder(forms: Mapping[str, Path]) -> None:
    folder, packed = open_index(forms["folder"]), open_index(forms["packed"])
    assert packed.paths == folder.paths
    assert packed.dataset_digest == folder.dataset_digest
    assert packed.path(3) == forms["packed"] / folder.paths[3]


def test_names_in_shards_begin_with_the_shard(forms: Mapping[str, Path]) -> None:
    index = open_index(forms["class folders in shards"])
    assert index.paths[0] == "a-0000.tar/ant/000.jpg"
    assert index.path(17) == forms["class folders in shards"] / "a-0002.tar/cat/005.jpg"
    assert index.paths.index("a-0001.tar/bee/003.jpg") == 9
    assert list(index.paths) == [index.paths[i] for i in range(len(index))] == list(index.paths[:])
    with pytest.raises(ValueError, match="not there"):
        index.paths.index("bee/003.jpg")


def test_joined_sources_read_as_one(forms: Mapping[str, Path]) -> None:
    parts = [open_index(forms[name]) for name in ("packed", "folder", "webdataset")]
    joined = JoinedSource([part.source for part in parts], [len(part) for part in parts])
    reader = joined.reader()
    at = 0
    for part in parts:
        for i in range(len(part)):
            assert reader.read(joined.locator(at)) == part.source.reader().read(part.source.locator(i))
            assert joined.size(at) == part.source.size(i) == reader.stamp(joined.locator(at))[0]
            at += 1


# -- bad images ----------------------------------------------------------------------------------


SPOILT = ("list", "class folders in shards", "webdataset", "packed")


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """5,000 files that are no images, of twelve kinds, among 30 good ones."""
    root = tmp_path_factory.mktemp("spoilt")
    kinds = list(bad_kinds().items())
    class_tree(root / "train", per_class=10)
    for i in range(5000):
        name, content = kinds[i % 12]
        (root / "train" / CLASSES[i % 3] / f"x{i:05}_{name}").write_bytes(content)
    return all_sources(open_index(root / "train"), root / "forms", SPOILT)


@pytest.fixture(scope="module")
def reasons(spoilt: Mapping[str, Path]) -> dict[str, str]:
    """Why each bad file of the folder cannot be read, by its name."""
    index = open_index(spoilt["folder"])
    with Loader(index, SPEC, workers=0) as loader:
        for _ in loader.batches(eval_tasks(len(index), 64)):
            pass
        found = {index.paths[i].rpartition("/")[2]: why for i, why in loader.failures.items()}
    assert len(found) == 5000
    assert len(set(found.values())) >= 9, "the kinds differ"
    return found


@pytest.mark.parametrize("name", SPOILT)
def test_5000_bad_images_are_named_and_counted(
    spoilt: Mapping[str, Path], reasons: dict[str, str], name: str, tmp_path: Path
) -> None:
    folder, index = open_index(spoilt["folder"]), open_index(spoilt[name])
    quarantine = Quarantine(spoilt[name], own=tmp_path / "quarantine.txt")
    tasks = list(eval_tasks(len(index), 64))
    with Loader(index, SPEC, workers=2, bad_images="quarantine", quarantine=quarantine) as loader:
        batches = list(loader.batches(tasks))
        valid = np.concatenate([b.valid[b.index >= 0] for b in batches])
        assert int(valid.sum()) == 30
        called = {folder.paths[i].rpartition("/")[2]: why for i, why in loader.failures.items()}
        assert called == reasons
    assert len(read_list(tmp_path / "quarantine.txt")) == 5000
    again = Quarantine(spoilt[name], known=tmp_path / "quarantine.txt")
    with Loader(index, SPEC, workers=0, quarantine=again) as loader:
        assert sum(int(b.valid.sum()) for b in loader.batches(tasks)) == 30
        assert set(loader.failures.values()) == {"it is on the quarantine list"}
        assert len(loader.failures) == 5000
    scanned = [again.name(index, i) for i in loader.failures]
    assert set(scanned) == set(read_list(tmp_path / "quarantine.txt"))
    bad = next(i for i, name in enumerate(folder.paths) if name.rpartition("/")[2] in reasons)
    with Loader(index, SPEC, workers=0, bad_images="fail") as loader, pytest.raises(BadImage) as caught:
        list(loader.batches([Task.of(0, np.array([bad]))]))
    assert str(index.path(bad)) in str(caught.value)


@pytest.mark.parametrize("name", ["packed", pytest.param("webdataset", marks=pytest.mark.slow)])
def test_a_scan_names_5000_bad_images(
    spoilt: Mapping[str, Path], reasons: dict[str, str], name: str, tmp_path: Path
) -> None:
    result = scan(
        ScanJob(folder=spoilt[name], workers=2, cache=tmp_path / "cache", list_file=tmp_path / "bad.txt")
    )
    assert Counter(bad.reason for bad in result.findings.bad) == Counter(reasons.values())
    assert result.findings.images == {"images": 5030}
    assert (result.read, result.remembered) == (5030, 0)
    assert len(Quarantine(spoilt[name], known=tmp_path / "bad.txt").indices(open_index(spoilt[name]))) == 5000
    again = scan(ScanJob(folder=spoilt[name], workers=1, cache=tmp_path / "cache"))
    assert (again.read, again.remembered) == (0, 5030)


# -- what the user gives -------------------------------------------------------------------------


def test_labels_that_are_numbers(tmp_path: Path) -> None:
    image = next(iter(bad_kinds().values()))
    members = [
        (f"{i}.{end}", content) for i in (2, 0) for end, content in (("jpg", image), ("cls", b"%d\n" % i))
    ]
    path = write_tar(tmp_path / "a.tar", members)
    index = open_index(path)
    assert (index.classes, index.named, index.labels.tolist()) == (("0", "1", "2"), False, [2, 0])
    kept = open_index(path, classes=("ant", "bee", "cat"))
    assert (kept.classes, kept.labels.tolist()) == (("ant", "bee", "cat"), [2, 0])
    with pytest.raises(Exception, match="label 2 is not below 2"):
        open_index(path, classes=("ant", "bee"))


def test_an_unknown_class_in_shards_is_named(forms: Mapping[str, Path]) -> None:
    with pytest.raises(Exception, match="has the class 'cat', which is not in the training data"):
        open_index(forms["webdataset"], classes=("ant", "bee"))
    index = open_index(forms["webdataset"], classes=("ape", "ant", "bee", "cat"))
    assert sorted(set(index.labels.tolist())) == [1, 2, 3]


def test_without_labels_any_layout_is_a_set_of_images(forms: Mapping[str, Path]) -> None:
    from resnext_core.config import DataConfig

    kind = kind_of(forms["webdataset"])
    assert kind is not None
    index = listed(kind.open(str(forms["webdataset"]), DataConfig()), labelled=False)
    assert set(index.labels.tolist()) == {-1}
    assert len(index) == 18


def test_a_packed_file_of_images_without_labels(tmp_path: Path, forms: Mapping[str, Path]) -> None:
    index = open_index(forms["folder"] / "ant")
    assert pack(index, tmp_path / "a.pack", None, workers=1) is not None
    found = open_index(tmp_path / "a.pack", classes=("x", "y"))
    assert set(found.labels.tolist()) == {-1}
    assert found.classes == ("x", "y")


def test_a_list_of_a_scan_is_known_to_whoever_names_the_same_file(
    forms: Mapping[str, Path], tmp_path: Path
) -> None:
    """Names are relative to the folder of a list, a packed file or a pattern, in a scan as in an evaluation."""
    for name, first in (
        ("packed", "packed.pack/ant/000.jpg"),
        ("a pattern", "a-0000.tar/ant/000.jpg"),
        ("class folders in shards", "a-0000.tar/ant/000.jpg"),
        ("one tar", "single.tar/ant/000.jpg"),
    ):
        index = open_index(forms[name])
        (tmp_path / "known.txt").write_text(f"{first}\n")
        assert Quarantine(forms[name], known=tmp_path / "known.txt").indices(index) == {0}, name
