"""Text lists of images and labels, read in blocks: ten million lines need neither gigabytes nor minutes."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnext_core.data.classes import GIVE_NAMES, is_number
from resnext_core.data.lines import has_control, text_blocks
from resnext_core.data.paths import Paths
from resnext_core.errors import DataError, quoted, shown, suggest
from resnext_core.files import Place, Url

_KIND = "text list of 'path label' lines"
_MAX_CLASSES = 1_000_000
#: Characters allowed in a line for the fast path.
_PLAIN = bytes(range(0x20, 0x7F)) + b"\n\t"
#: Up to this many files of a folder are checked one by one; for more, the folder is listed once.
_FEW = 8
#: Number of wrong paths after which the check stops.
_ENOUGH = 1000

Missing = Callable[[bytes, Sequence[bytes]], set[bytes]]
#: Names of the files of each folder in order of the list, each ended by a line break, and their labels.
_Folders = dict[bytes, tuple[bytearray, "array[int]"]]


def read_list(
    path: Place, classes: Sequence[str] | None, *, named: bool, missing: Missing | None = None
) -> tuple[Paths, NDArray[np.int32], tuple[str, ...], bool]:
    """Return paths, labels, classes, and whether the classes are names, of a text list.

    See :func:`resnext_core.data.index.text_list`. `missing` says which of some names in a folder (b"" or with ``/``)
    are not there; None looks at the files of this machine.
    """
    lacking = partial(_missing, path.parent) if missing is None else missing
    texts: dict[bytes, int] = {}
    folders = _read(path, texts)
    if not folders:
        raise DataError(f"{path} lists no images; write a 'path label' line for each")
    label_of, known, by_name = _labels(path, [text.decode() for text in texts], classes, named)
    paths, labels = Paths(), array("i")
    wrong: set[bytes] = set()
    for folder, names, numbers in _in_order(folders):
        found = [label_of[number] for number in numbers]
        wrong |= _contradicting(folder, names, found)
        if len(wrong) < _ENOUGH:
            wrong |= lacking(folder, names)
        if wrong:
            continue
        paths.extend(folder.decode(), names)
        labels.extend(found)
    if wrong:
        _explain(path, wrong, {text: label_of[number] for text, number in texts.items()})
    return paths, np.frombuffer(labels, np.int32), known, by_name


# -- lines ---------------------------------------------------------------------------------------


def _read(path: Place, texts: dict[bytes, int]) -> _Folders:
    """Return the files by folder; in `texts` the text of each label is numbered in order of first appearance."""
    folders: _Folders = {}
    for number, block in text_blocks(path, _KIND):
        here: dict[bytes, tuple[list[bytes], list[bytes]]] = {}
        if block.startswith(b"./"):  # as find prints them
            block = (b"\n" + block).replace(b"\n./", b"\n")[1:]
        separator = _separator(block)
        if separator is None or not _quick(block, separator, here):
            here = {}
            for _, folder, name, label in _careful(path, number, block):
                names, labels = here.setdefault(folder, ([], []))
                names.append(name)
                labels.append(label)
        for folder, (names, labels) in here.items():
            for label in dict.fromkeys(labels):
                texts.setdefault(label, len(texts))
            if folder not in folders:
                folders[folder] = bytearray(), array("i")
            kept, numbers = folders[folder]
            kept += b"\n".join(names) + b"\n"
            numbers.extend(map(texts.__getitem__, labels))
    return folders


def _separator(block: bytes) -> bytes | None:
    """Return the separator of path and label if the lines are simple, or None if they need the careful parser."""
    separator = b"\t" if b"\t" in block else b" "
    text = b"\n" + block
    if text.translate(None, _PLAIN) or b" " + separator in text or separator + b" " in text:
        return None
    codes = np.frombuffer(text + b"\n\n", np.uint8)
    space, slash, dot = separator[0], ord("/"), ord(".")
    ends, slashes = np.flatnonzero(codes == ord("\n"))[:-2], np.flatnonzero(codes == slash)
    odd = [
        np.isin(codes[ends[:-1] + 1], list(b"\n# \t")),  # how a line begins
        (codes[ends[:-1] + 1] == dot) & np.isin(codes[ends[:-1] + 2], (slash, space)),
        np.isin(codes[ends[1:] - 1], list(b" \t")),  # how it ends
        np.isin(codes[slashes + 1], (slash, space)),
        (codes[slashes + 1] == dot) & np.isin(codes[slashes + 2], (slash, space)),
    ]
    return None if any(found.any() for found in odd) else separator


def _quick(block: bytes, separator: bytes, here: dict[bytes, tuple[list[bytes], list[bytes]]]) -> bool:
    """Sort the lines of a simple block into `here`; False if one of them is not simple after all."""
    get = here.get
    for line in block[:-1].split(b"\n"):
        path, _, label = line.rpartition(separator)
        folder, slash, name = path.rpartition(b"/")
        if not name:
            return False
        if slash and not folder:
            folder = b"/"
        found = get(folder)
        if found is None:
            here[folder] = [name], [label]
        else:
            found[0].append(name)
            found[1].append(label)
    return True


def _careful(path: Place, number: int, block: bytes) -> Iterator[tuple[int, bytes, bytes, bytes]]:
    """Yield line number, folder (``/`` for the root of the file system), file name and label of each line."""
    for at, text in enumerate(block.decode()[:-1].split("\n"), number):
        line = text.strip()
        if not line or line.startswith("#"):
            continue
        name, _, label = line.rpartition("\t" if "\t" in line else " ")
        name, label = name.strip(), label.strip()
        if not name:
            raise DataError(f"{path}:{at}: expected 'path label', got {quoted(line)}")
        if has_control(label):
            raise DataError(f"{path}:{at}: the label {quoted(label)} has a control character; remove it")
        folder, slash, file = Path(name).as_posix().rpartition("/")
        yield at, (folder if folder or not slash else "/").encode(), file.encode(), label.encode()


def _lines(path: Place) -> Iterator[tuple[int, bytes, bytes, bytes]]:
    """Yield the results of :func:`_careful` for the whole list, to find the line of an error."""
    for number, block in text_blocks(path, _KIND):
        yield from _careful(path, number, block)


# -- labels --------------------------------------------------------------------------------------


def _labels(
    path: Place, texts: Sequence[str], classes: Sequence[str] | None, named: bool
) -> tuple[list[int], tuple[str, ...], bool]:
    """Return the label of each text, the classes, and whether they are names.

    DataError with the first line that has an invalid label.
    """
    names = {name: label for label, name in enumerate(classes or ())}
    if classes is not None and all(text in names for text in texts):
        return [names[text] for text in texts], tuple(classes), named
    integers = all(is_number(text) and len(text) < 10 for text in texts)
    bound = _MAX_CLASSES if classes is None else len(classes)

    def wrong(text: str) -> str | None:
        if integers:
            return f"the label {text} is not below {bound}" if int(text) >= bound else None
        if text in names:
            return None
        if text[:1] in ("-", "+") and is_number(text[1:]):
            return f"the label {text} is neither an integer from 0 nor a class name"
        if classes is None:
            return None
        if named:
            return f"the training data has no class {quoted(text)}{suggest(text, names)}"
        return f"the weights have no class names, so {quoted(text)} is unknown; use numbers, or {GIVE_NAMES}"

    reasons = {text.encode(): reason for text in texts if (reason := wrong(text)) is not None}
    if reasons:
        line, label = next((line, label) for line, _, _, label in _lines(path) if label in reasons)
        raise DataError(f"{path}:{line}: {reasons[label]}")
    if integers:
        labels = [int(text) for text in texts]
        if classes is not None:
            return labels, tuple(classes), named
        return labels, tuple(str(i) for i in range(max(labels) + 1)), False
    known = tuple(sorted(texts))
    position = {name: label for label, name in enumerate(known)}
    return [position[text] for text in texts], known, True


# -- files ---------------------------------------------------------------------------------------


def _in_order(folders: _Folders) -> Iterator[tuple[bytes, list[bytes], Sequence[int]]]:
    """Empty `folders`: yield folder (``""`` or with ``/``), names and labels such that the paths are sorted.

    A folder comes in several parts if other folders sort between its files: ``a/1``, ``a/b/1``, ``a/c``.
    """
    key_of = {_prefix(folder): folder for folder in folders}
    around: list[_Part] = []  # the folders around the current one, and how far they are yielded
    for prefix in sorted(key_of):
        while around and not prefix.startswith(around[-1].prefix):
            yield from around.pop().until(None)
        if around:
            yield from around[-1].until(prefix[len(around[-1].prefix) :])
        around.append(_Part(prefix, *_sorted(*folders.pop(key_of[prefix]))))
    while around:
        yield from around.pop().until(None)


@dataclass
class _Part:
    """A folder's sorted names and their labels; those before `done` have been yielded."""

    prefix: bytes
    names: list[bytes]
    labels: Sequence[int]
    done: int = 0

    def until(self, name: bytes | None) -> Iterator[tuple[bytes, list[bytes], Sequence[int]]]:
        stop = len(self.names) if name is None else bisect_left(self.names, name, self.done)
        if stop > self.done:
            yield self.prefix, self.names[self.done : stop], self.labels[self.done : stop]
        self.done = stop


def _prefix(folder: bytes) -> bytes:
    return folder if folder in (b"", b"/") else folder + b"/"


def _sorted(kept: bytearray, labels: Sequence[int]) -> tuple[list[bytes], Sequence[int]]:
    names = bytes(kept)[:-1].split(b"\n")
    ordered = sorted(names)
    if ordered == names:
        return names, labels
    order = sorted(range(len(names)), key=names.__getitem__)
    return ordered, array("i", [labels[i] for i in order])


def _missing(root: Place, prefix: bytes, names: Sequence[bytes]) -> set[bytes]:
    """Return the paths of `names` that are not files."""
    where = os.path.join(os.fsencode(root), prefix)
    lacking = set(names)
    if len(lacking) > _FEW:
        with suppress(OSError, ValueError), os.scandir(where) as found:
            some = islice(found, 16 * len(lacking) + 1000)  # not the whole of a far larger folder
            lacking -= {entry.name for entry in some if entry.is_file()}
    return {prefix + name for name in lacking if not os.path.isfile(where + name)}


def _contradicting(prefix: bytes, names: Sequence[bytes], labels: Sequence[int]) -> set[bytes]:
    """Return the paths that are listed with two labels."""
    if len(set(names)) == len(names):
        return set()
    pairs = zip(names, names[1:], labels, labels[1:], strict=False)
    return {prefix + one for one, other, a, b in pairs if one == other and a != b}


def _explain(path: Place, wrong: set[bytes], label_of: Mapping[bytes, int]) -> None:
    """Raise DataError for the first line with one of the paths `wrong`."""
    seen: dict[bytes, int] = {}
    for number, folder, name, label in _lines(path):
        full = _prefix(folder) + name
        if full not in wrong:
            continue
        if seen.setdefault(full, label_of[label]) != label_of[label]:
            raise DataError(
                f"{path}:{number}: {shown(full, 300)} is already listed with another label; keep one of them"
            )
        file = path.parent / full.decode()
        if isinstance(file, Url) or not os.path.isfile(file):
            there = not isinstance(file, Url) and os.path.exists(file)
            what = (
                f"{shown(file, 300)} is not a regular file" if there else f"no such file: {shown(file, 300)}"
            )
            hint = "" if there or "\\" not in str(file) else "; separate folders with /, not \\"
            raise DataError(f"{path}:{number}: {what}; correct or remove the line{hint}")
    raise DataError(f"{path} or its files changed while it was read; try again")
