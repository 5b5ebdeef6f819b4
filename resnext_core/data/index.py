"""Index: which images a data set has, their labels and classes, in an order that no machine changes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import DataConfig
from resnext_core.errors import DataError, UsageError, suggest

#: File names with these endings (in any case) are images; others are ignored and counted.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
#: The usual names of each split.
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_MAX_CLASSES = 1_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """The images of one split, sorted by path.

    `paths` are relative to `root`, with ``/`` (absolute where a list says so); `labels` int32 (N,) are
    positions in `classes`, or -1 for images without label (`classes` is then empty unless given).
    `ignored` counts files that are not images by their name; hidden files are not counted.
    """

    root: Path
    paths: Sequence[str]
    labels: NDArray[np.int32]
    classes: tuple[str, ...]
    ignored: int = 0

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, i: int) -> Path:
        """Return where image `i` is."""
        return self.root / self.paths[i]

    @property
    def labelled(self) -> bool:
        """True when every image has a label."""
        return bool((self.labels >= 0).all())

    @cached_property
    def dataset_digest(self) -> str:
        """``sha256:<hex>`` over the path, label and size in bytes of each image (-1 for a file that is gone).

        It tells data sets apart without reading their pixels; it does not depend on where they lie.
        """
        digest = hashlib.sha256()
        for name, label in zip(self.paths, self.labels.tolist(), strict=True):
            try:
                size = os.stat(self.root / name).st_size
            except OSError:
                size = -1
            digest.update(os.fsencode(name) + f"\0{label}\0{size}\n".encode())
        return f"sha256:{digest.hexdigest()}"


def open_index(path: str | Path, classes: Sequence[str] | None = None) -> Index:
    """Return the index of `path`: a text list, a folder of class folders, or a folder of unlabelled images.

    A folder with folders in it is one of class folders. With `classes` (those of the training) labels are
    positions in them; a class that they lack is a DataError naming it, one without images is fine. Raises
    DataError for what is missing, empty or ambiguous.
    """
    path = Path(path)
    if path.is_file():
        return text_list(path, classes)
    if not path.is_dir():
        raise DataError(
            f"there is no data at {path}; give a folder of class folders, of images, or a text list"
        )
    entries = [e for e in _entries(path) if not e.name.startswith(".")]
    folders = [e.name for e in entries if e.is_dir()]
    images = [e.name for e in entries if _is_image(e.name) and e.is_file()]
    if folders and images:
        raise DataError(
            f"{path} holds both images ({min(images)}) and folders ({min(folders)}); "
            "put every image into a class folder, or move the folders away"
        )
    return class_folders(path, classes) if folders else image_folder(path, classes)


def class_folders(root: Path, classes: Sequence[str] | None = None) -> Index:
    """Return the index of a folder with a folder of images for each class, searched to any depth.

    Without `classes` they are the folder names in code-point order, and a folder without images is a
    DataError naming it.
    """
    names = sorted(e.name for e in _entries(root) if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise DataError(
            f"{root} has no class folders; put the images of each class into a folder of its name"
        )
    known = tuple(names) if classes is None else tuple(classes)
    label_of = {name: label for label, name in enumerate(known)}
    found, ignored = [], 0
    for name in names:
        if name not in label_of:
            raise DataError(
                f"{root} has the class '{name}', which the training data lacks{suggest(name, known)}"
            )
        images, others = _images(root / name, f"{name}/")
        if not images and classes is None:
            raise DataError(
                f"class folder {root / name} has no images ({', '.join(SUFFIXES)}); fill it or remove it"
            )
        found += [(image, label_of[name]) for image in images]
        ignored += others
    return _index(root, found, known, ignored)


def image_folder(root: Path, classes: Sequence[str] | None = None) -> Index:
    """Return the index of every image under a folder, without labels. DataError when there is none."""
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; give a folder of images")
    images, ignored = _images(root, "")
    return _index(root, [(image, -1) for image in images], tuple(classes or ()), ignored)


def text_list(path: Path, classes: Sequence[str] | None = None) -> Index:
    """Return the index of a UTF-8 text file of ``path label`` lines, paths relative to its folder.

    The label is what follows the last tab, or the last blank in a line without tabs; it is an integer from 0
    or a class name, of one kind in the whole file (names, where every one is among `classes`). Empty
    lines and lines that begin with # are skipped. Raises DataError naming file and line, also for
    files that do not exist and for a path listed with two labels.
    """
    lines = list(_list_lines(path))
    if not lines:
        raise DataError(f"{path} lists no images; write a 'path label' line for each")
    texts = {label for _, _, label in lines}
    label_of = _list_labels(path, lines, texts, classes)
    seen: dict[str, int] = {}
    found = []
    for number, name, text in lines:
        label = label_of[text]
        if seen.setdefault(name, label) != label:
            raise DataError(f"{path}:{number}: {name} was listed before with another label; keep one of them")
        if not (path.parent / name).is_file():
            raise DataError(
                f"{path}:{number}: there is no file {path.parent / name}; correct or remove the line"
            )
        found.append((name, label))
    known = (
        tuple(classes) if classes is not None else tuple(sorted(label_of, key=lambda name: label_of[name]))
    )
    if classes is None and _all_integers(texts):
        known = tuple(str(label) for label in range(max(label_of.values()) + 1))
    return _index(path.parent, found, known, 0)


def find_splits(folder: str | Path, config: DataConfig, need: Sequence[str] = ()) -> dict[str, Path]:
    """Return where the splits ``train``, ``val`` and ``test`` are; splits that are not there are left out.

    `config.train`, `.val` and `.test` are relative to `folder`; where one is None, the usual names are looked
    for, as a folder or as a list ``<name>.txt``. Raises UsageError for a missing folder, a configured path
    that does not exist, two candidates for one split, no split at all, or one of `need` missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"there is no data folder {folder}; give one with --data DIR")
    splits = {}
    for split, names in SPLITS.items():
        given = getattr(config, split)
        if given is not None:
            if not (folder / given).exists():
                raise UsageError(f"data.{split}: there is no {folder / given}; correct it or leave it out")
            splits[split] = folder / given
            continue
        found = [name for name in names if (folder / name).is_dir()]
        found += [f"{name}.txt" for name in names if (folder / f"{name}.txt").is_file()]
        if len(found) > 1:
            raise UsageError(
                f"{folder} has {' and '.join(found)}; say which one with --set data.{split}={found[0]}"
            )
        if found:
            splits[split] = folder / found[0]
    missing = [split for split in need if split not in splits]
    if missing or not splits:
        wanted = ", ".join("/".join(SPLITS[split]) for split in missing or SPLITS)
        raise UsageError(
            f"{folder} has no {wanted} (a folder of class folders, or <name>.txt); "
            f"add it or say where it is with --set data.{(missing or ['train'])[0]}=PATH"
        )
    return splits


def _index(root: Path, found: Sequence[tuple[str, int]], classes: tuple[str, ...], ignored: int) -> Index:
    if not found:
        raise DataError(
            f"{root} has no images ({', '.join(SUFFIXES)}); put some there or give another folder"
        )
    ordered = sorted(found)
    return Index(
        root=root,
        paths=tuple(name for name, _ in ordered),
        labels=np.array([label for _, label in ordered], np.int32),
        classes=classes,
        ignored=ignored,
    )


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(
            f"cannot list {folder}: {error.strerror or error}; check the path and its rights"
        ) from error


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _images(folder: Path, prefix: str, above: tuple[tuple[int, int], ...] = ()) -> tuple[list[str], int]:
    """Return the images under `folder` as `prefix` + relative path, and how many other files there are.

    Links are followed; a link to a folder above itself is not entered again.
    """
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return [], 0
    images, ignored = [], 0
    for entry in _entries(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            more, others = _images(folder / entry.name, f"{prefix}{entry.name}/", (*above, identity))
            images += more
            ignored += others
        elif _is_image(entry.name) and entry.is_file():
            images.append(prefix + entry.name)
        else:
            ignored += 1
    return images, ignored


def _list_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line number, image path, label text)."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a UTF-8 text list of 'path label' lines") from None
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, _, label = line.rpartition("\t" if "\t" in line else " ")
        name, label = name.strip(), label.strip()
        if not name:
            raise DataError(f"{path}:{number}: expected 'path label', got '{line[:100]}'")
        yield number, Path(name).as_posix(), label


def _list_labels(
    path: Path, lines: Sequence[tuple[int, str, str]], texts: set[str], classes: Sequence[str] | None
) -> dict[str, int]:
    """Return the label of each text, or raise DataError naming the first line that has none."""
    integers = _all_integers(texts)
    if classes is None:
        if not integers:
            return {name: label for label, name in enumerate(sorted(texts))}
        bound, names = _MAX_CLASSES, dict[str, int]()
    else:
        bound, names = len(classes), {name: label for label, name in enumerate(classes)}
        if texts <= set(names):
            return {text: names[text] for text in texts}
    label_of = {}
    for number, _, text in lines:
        if not integers:
            if text not in names:
                raise DataError(
                    f"{path}:{number}: the training data lacks the class '{text}'{suggest(text, names)}"
                )
        elif int(text) >= bound:
            raise DataError(f"{path}:{number}: the label {text} is not below {bound}")
        label_of[text] = names[text] if not integers else int(text)
    return label_of


def _all_integers(texts: set[str]) -> bool:
    return all(text.isascii() and text.isdigit() and len(text) < 10 for text in texts)
