"""Index: the images of a data set, their labels and classes, in the same order on every machine."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import DataConfig
from resnext_core.data.classes import by_folder, by_label, folder_remarks, ignored_remark
from resnext_core.data.folders import SUFFIXES, ending, entries, is_folder, is_image, is_image_file, walk
from resnext_core.data.lists import read_list
from resnext_core.data.look import Names, names_in, what_is
from resnext_core.data.paths import Paths, encoded
from resnext_core.data.remote.fetch import fetch_of
from resnext_core.data.remote.tree import Tree
from resnext_core.data.sources.base import ImageSource, Listing
from resnext_core.data.sources.files import FileSource
from resnext_core.data.sources.registry import kind_of, parts_in
from resnext_core.errors import DataError, UsageError
from resnext_core.files import Place, Url, is_url, place

#: The usual names of each split.
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
#: Leaves a split out when given as its path; for a folder of that name use ``./none``.
NO_SPLIT = "none"


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """The images of one split, sorted by path.

    `paths` are relative to `root`, with ``/`` (absolute where a list says so); `labels` int32 (N,) are
    positions in `classes`, or -1 for images without label (`classes` is then empty unless given). `named` is False
    if the classes are only numbers, from a list of integers. `ignored` counts files that are not images by their
    name, by ending; hidden files are not counted. `remarks` are messages for the user, see :func:`remarks`. `source`
    says where the images are; by default each is a file of its own at its path.
    """

    root: Place
    paths: Sequence[str]
    labels: NDArray[np.int32]
    classes: tuple[str, ...]
    named: bool = True
    ignored: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    source: ImageSource = field(default=None, repr=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.source is None:
            object.__setattr__(self, "source", FileSource(self.root, self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, i: int) -> Place:
        """Return the path or the URL of image `i`, for messages and results: what is in a shard is no file."""
        return self.root / self.paths[i]

    @property
    def labelled(self) -> bool:
        """True when every image has a label."""
        return bool((self.labels >= 0).all())

    @cached_property
    def dataset_digest(self) -> str:
        """``sha256:<hex>`` over the path, label and size in bytes of each image (-1 for a file that is gone).

        It distinguishes data sets without reading pixels, and does not depend on their location.
        """
        digest = hashlib.sha256()
        for i, (name, label) in enumerate(zip(self.paths, map(int, self.labels), strict=True)):
            digest.update(b"%s\0%d\0%d\n" % (encoded(name), label, self.source.size(i)))
        return f"sha256:{digest.hexdigest()}"


def open_index(
    path: str | Place,
    classes: Sequence[str] | None = None,
    *,
    named: bool = True,
    data: DataConfig | None = None,
) -> Index:
    """Return the index of `path`: a text list, a folder of class folders, a folder of unlabelled images, or what a kind
    of :mod:`resnext_core.data.sources` claims.

    A folder that contains folders is a folder of class folders. With `classes` (those of the training) labels are
    positions in them; an unknown class is a DataError that names it, a class without images is allowed. `named` is
    False if these classes are only numbers: see :func:`resnext_core.data.classes.by_folder`. `data` says how what is
    behind a URL is read. Raises DataError if the data is missing, empty or ambiguous.
    """
    if (kind := kind_of(path)) is not None:
        return listed(kind.open(os.fspath(path), data or DataConfig()), classes, named=named, where=path)
    path, fetch = place(path), fetch_of(data)
    what = what_is(path, fetch.access)
    if what is None:
        raise DataError(
            f"there is no data at {path}; give a folder of class folders, of images, or a text list"
        )
    if not isinstance(path, Url):
        return text_list(path, classes, named=named) if what == "file" else _folder(path, classes, named)
    with Tree(path.parent if what == "file" else path, fetch) as tree:
        if what == "file":
            return text_list(path, classes, named=named, tree=tree)
        names = names_in(path, fetch.access)
        shards = None if names.folders or any(map(is_image, names.files)) else _shards(path, names.files)
        if shards is not None:
            return open_index(shards, classes, named=named, data=data)
        return _folder(path, classes, named, tree)


def _shards(folder: Url, files: Sequence[str]) -> Url | None:
    """Return the pattern of those of the `files` in a folder that a kind of source claims, None where none does."""
    endings = sorted({os.path.splitext(name)[1] for name in files} - {""})
    patterns = (folder / f"*{ending}" for ending in endings)
    return next((pattern for pattern in patterns if kind_of(pattern) is not None), None)


def _folder(path: Place, classes: Sequence[str] | None, named: bool, tree: Tree | None = None) -> Index:
    found = entries(path, tree)
    folders = [e.name for e in found if is_folder(e)]
    images = [e.name for e in found if not is_folder(e) and is_image_file(e)]
    if folders and images:
        raise DataError(
            f"{path} holds both images ({min(images)}) and folders ({min(folders)}); "
            "put every image into a class folder, or remove the folders"
        )
    if folders:
        return class_folders(path, classes, named=named, tree=tree)
    return image_folder(path, classes, tree=tree)


def class_folders(
    root: Place, classes: Sequence[str] | None = None, *, named: bool = True, tree: Tree | None = None
) -> Index:
    """Return the index of a folder with a folder of images for each class, searched to any depth.

    Without `classes` they are the folder names in code-point order, and a folder without images is a
    DataError naming it. `tree` lists the folders of a URL.
    """
    found = entries(root, tree)
    names = sorted(e.name for e in found if is_folder(e))
    ignored = Counter(ending(e) for e in found if not is_folder(e))
    if not names:
        raise DataError(
            f"{root} has no class folders; put the images of each class into a folder of its name"
        )
    if classes is None:
        label_of, known, said = {name: i for i, name in enumerate(names)}, tuple(names), folder_remarks(names)
    else:
        label_of, known, remark = by_folder(root, names, classes, named=named)
        said = () if remark is None else (remark,)
    paths, labels, counts = Paths(), [], []
    names.sort(key=lambda name: f"{name}/")
    if tree is not None:
        tree.expect(str(root / name) for name in names)
    for name in names:
        before = len(paths)
        walk(root / name, f"{name}/", paths, ignored, tree)
        if len(paths) == before and classes is None:
            raise DataError(
                f"class folder {root / name} has no images ({', '.join(SUFFIXES)}); fill it or remove it"
            )
        labels.append(label_of[name])
        counts.append(len(paths) - before)
    return _index(root, paths, np.repeat(np.array(labels, np.int32), counts), known, ignored, said, tree)


def image_folder(root: Place, classes: Sequence[str] | None = None, *, tree: Tree | None = None) -> Index:
    """Return the index of every image under a folder, without labels. DataError when there is none."""
    if tree is None and not os.path.isdir(root):
        raise DataError(f"there is no folder {root}; give a folder of images")
    paths, ignored = Paths(), Counter[str]()
    walk(root, "", paths, ignored, tree)
    return _index(root, paths, np.full(len(paths), -1, np.int32), tuple(classes or ()), ignored, tree=tree)


def text_list(
    path: Place, classes: Sequence[str] | None = None, *, named: bool = True, tree: Tree | None = None
) -> Index:
    """Return the index of a UTF-8 text file of ``path label`` lines, paths relative to its folder.

    The label follows the last tab, or the last blank in a line without tabs; it is an integer from 0
    or a class name, the same kind in the whole file (names, if all of them are among `classes`). Empty
    lines and lines that begin with # are skipped. Raises DataError with file and line, also for
    files that do not exist and for a path listed with two labels.
    """
    missing = None if tree is None else tree.missing
    paths, labels, known, by_name = read_list(path, classes, named=named, missing=missing)
    said = folder_remarks(known) if classes is None and by_name else ()
    return replace(_index(path.parent, paths, labels, known, {}, said, tree), named=by_name)


def listed(
    found: Listing,
    classes: Sequence[str] | None = None,
    *,
    named: bool = True,
    labelled: bool = True,
    where: str | Place | None = None,
) -> Index:
    """Return the index of what a source holds, with `classes` as for :func:`open_index`; without `labelled`, no labels.

    Labels that are names belong to classes as names of folders do, and numbers as in a text list. Messages call it
    `where`, without that by its root.
    """
    where = found.root if where is None else where
    if not len(found.paths):
        raise DataError(f"{where} has no images ({', '.join(SUFFIXES)}); add some or give another one")
    index = Index(
        root=found.root, paths=found.paths, labels=np.full(len(found.paths), -1, np.int32),
        classes=tuple(classes or ()), ignored=found.ignored, remarks=found.remarks, source=found.source,
    )  # fmt: skip
    present = (
        np.flatnonzero(np.bincount(found.labels + 1)) - 1
    )  # as unique gives them, without sorting millions
    if not labelled or present[-1] < 0:
        return index
    if present[0] < 0:
        without = np.flatnonzero(found.labels < 0)
        raise DataError(
            f"{len(without)} of {len(index)} images in {where} have no label, e.g. {found.paths[without[0]]}; "
            "add the labels, or leave these images out"
        )
    if classes is None:
        said = folder_remarks(found.classes) if found.named else ()
        return replace(
            index,
            labels=found.labels,
            classes=found.classes,
            named=found.named,
            remarks=(*found.remarks, *said),
        )
    names = [found.classes[label] for label in present.tolist()]
    if found.named or all(name in classes for name in names):
        label_of, known, remark = by_folder(found.root, names, classes, named=named)
        said = () if remark is None else (remark,)
    else:
        label_of, known, said = by_label(found.root, names, classes), tuple(classes), ()
    table = np.full(len(found.classes), -1, np.int32)
    table[present] = [label_of[name] for name in names]
    return replace(
        index, labels=table[found.labels], classes=known, named=named, remarks=(*found.remarks, *said)
    )


def find_splits(folder: str | Place, config: DataConfig, need: Sequence[str] = ()) -> dict[str, Place]:
    """Return the paths of the splits ``train``, ``val`` and ``test``; missing splits are left out.

    `config.train`, `.val` and `.test` are relative to `folder`; for None the usual names are tried, as a folder, as a
    list ``<name>.txt``, or as what a kind of source has; ``none`` leaves the split out. Raises UsageError for a missing
    folder, a configured path that does not exist, two candidates for one split, no split at all, or one of `need`
    missing.
    """
    folder, access = place(folder), fetch_of(config).access
    if (what := what_is(folder, access)) != "folder":
        if what is not None:
            if kind_of(folder) is not None:
                raise UsageError(
                    f"{folder} is one part of a data set; put it into a folder as train{folder.suffix}, with "
                    f"val{folder.suffix} beside it, and give that folder with --data DIR"
                )
            raise UsageError(
                f"{folder} is a file, not a folder; unpack an archive and give its folder with --data DIR"
            )
        raise UsageError(f"there is no data folder {folder}; give one with --data DIR")
    splits: dict[str, Place] = {}
    inside = names_in(folder, access)
    for split, names in SPLITS.items():
        given = getattr(config, split)
        if given == NO_SPLIT:
            continue
        if given is not None:
            part = place(given) if is_url(given) or given.startswith("file://") else folder / given
            if kind_of(part) is None and what_is(part, access) is None:
                raise UsageError(f"data.{split}: {part} does not exist; correct it or leave it out")
            splits[split] = part
            continue
        found = split_candidates(names, inside)
        if len(found) > 1:
            raise UsageError(
                f"{folder} has {' and '.join(found)}; choose one with --set data.{split}={found[0]}"
            )
        if found:
            splits[split] = folder / found[0]
    missing = [split for split in need if split not in splits]
    if missing or not splits:
        wanted = ", ".join("/".join(SPLITS[split]) for split in missing or SPLITS)
        raise UsageError(
            f"{folder} has no {wanted} (a folder of class folders, or <name>.txt); "
            f"add it or set its path with --set data.{(missing or ['train'])[0]}=PATH{_below(folder, missing, inside)}"
        )
    return splits


def split_candidates(names: Sequence[str], inside: Names) -> list[str]:
    """Return what is there under one of the usual `names` of a split: a folder, a list, or a part of a source.

    `inside` is what the data folder holds.
    """
    found = [name for name in names if name in inside.folders]
    found += [f"{name}.txt" for name in names if f"{name}.txt" in inside.files]
    # the archive that a folder was unpacked from may still lie beside it
    return found or [part for name in names for part in parts_in(inside.files, name)]


def _below(folder: Place, missing: Sequence[str], inside: Names) -> str:
    """Return a hint at a folder inside `folder` that has the splits: archives often contain a top folder."""
    names = [name for split in missing or SPLITS for name in SPLITS[split]]
    for entry in inside.folders if isinstance(folder, Path) else ():
        if any(os.path.isdir(folder / entry / name) for name in names):
            return f"; or did you mean --data {folder / entry}?"
    return ""


def remarks(parts: Iterable[Index]) -> Iterator[str]:
    """Yield messages about the indices that a command opened, each once: ignored files, classes by position."""
    ignored: Counter[str] = Counter()
    said: dict[str, None] = {}
    for index in parts:
        ignored.update(index.ignored)
        said |= dict.fromkeys(index.remarks)
    yield from said
    if (line := ignored_remark(ignored)) is not None:
        yield line


def _index(
    root: Place,
    paths: Paths,
    labels: NDArray[np.int32],
    classes: tuple[str, ...],
    ignored: Mapping[str, int],
    said: tuple[str, ...] = (),
    tree: Tree | None = None,
) -> Index:
    if not len(paths):
        line = ignored_remark(ignored)
        raise DataError(
            f"{root} has no images ({', '.join(SUFFIXES)}){'; ' + line if line else ''}; add some or give "
            "another folder"
        )
    source = FileSource(root, paths) if tree is None else tree.source(paths)
    return Index(
        root=root, paths=paths, labels=labels, classes=classes, ignored=ignored, remarks=said, source=source
    )
