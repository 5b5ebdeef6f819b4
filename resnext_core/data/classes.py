"""The class of a folder or a label: by name, by number, or by position if there is neither."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from resnext_core.errors import DataError, quoted, shown, suggest
from resnext_core.files import Place

#: How to give names to weights that have none.
GIVE_NAMES = "give the classes names: resnext-run convert SOURCE TARGET --classes FILE"
#: Most endings that are listed when files are ignored.
_MOST_ENDINGS = 10


def is_number(text: str) -> bool:
    """Return whether `text` is an integer from 0, written only in digits."""
    return text.isascii() and text.isdigit()


def number(text: str) -> int:
    """Return the value of a text for which :func:`is_number` is True; 10**9 for more than nine digits."""
    digits = text.lstrip("0")
    return int(digits or "0") if len(digits) < 10 else 10**9


def by_folder(
    root: Place, folders: Sequence[str], classes: Sequence[str], *, named: bool
) -> tuple[dict[str, int], tuple[str, ...], str | None]:
    """Return the label of each of the sorted `folders`, the classes to use, and messages for the user.

    `classes` are those of a network. If they are names (`named`), a folder belongs to the class of its name.
    Otherwise, folders that are all numbers belong to the class of that number, and as many other folders as there are
    classes are assigned in sorted order, as in other programs. DataError for everything else.
    """
    classes = tuple(classes)
    position = {name: label for label, name in enumerate(classes)}
    if all(name in position for name in folders):
        return {name: position[name] for name in folders}, classes, None
    if named:
        unknown = next(name for name in folders if name not in position)
        raise DataError(
            f"{root} has the class {quoted(unknown)}, which is not in the training data{_alike(unknown, classes)}"
        )
    numbers = [name for name in folders if is_number(name)]
    if len(numbers) == len(folders):
        return _by_number(root, folders, len(classes)), classes, None
    if numbers:
        raise DataError(
            f"{root} has folders with numbers ({numbers[0]}) and with names "
            f"({next(f for f in folders if f not in numbers)}), and the weights have no class names; {GIVE_NAMES}"
        )
    if len(folders) != len(classes):
        raise DataError(
            f"{root} has {len(folders)} class folders, and the weights have {len(classes)} classes without names; "
            f"{GIVE_NAMES}"
        )
    said = f"the weights have no class names; using the {len(folders)} folder names in sorted order"
    return {name: label for label, name in enumerate(folders)}, tuple(folders), said


def by_label(root: Place, labels: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """Return the class of each of the `labels`, integers from 0 in a source; DataError for one without a class."""
    for label in labels:
        if int(label) >= len(classes):
            raise DataError(f"{root}: the label {label} is not below {len(classes)}, the number of classes")
    return {label: int(label) for label in labels}


def _by_number(root: Place, folders: Sequence[str], classes: int) -> dict[str, int]:
    labels = {name: number(name) for name in folders}
    ordered = sorted(folders, key=number)
    if number(ordered[-1]) >= classes:
        raise DataError(
            f"{root} has folders numbered {ordered[0]} to {ordered[-1]}, and the weights have no class names but the "
            f"numbers 0 to {classes - 1}; rename the folders, or {GIVE_NAMES}"
        )
    for one, other in itertools.pairwise(ordered):
        if labels[one] == labels[other]:
            raise DataError(f"{root} has folders {one} and {other}, which are the same number; rename one")
    return labels


def alike(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the first two names that differ only in case or in Unicode normalisation, None if there are none."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_folded(name), name)
        if other != name:
            return other, name
    return None


def order_remark(names: Sequence[str]) -> str | None:
    """Return a message if the sorted class `names` are numbers that are not in the order of their values."""
    if not all(is_number(name) for name in names):
        return None
    for label, (one, other) in enumerate(itertools.pairwise(names)):
        if number(one) > number(other):
            return f"the classes are numbers and sorted as text: label {label} is '{one}', {label + 1} is '{other}'"
    return None


def folder_remarks(names: Sequence[str]) -> tuple[str, ...]:
    """Return messages about class folders that define the classes."""
    said = []
    if (remark := order_remark(names)) is not None:
        said.append(remark)
    if (pair := alike(names)) is not None:
        one, other = (ascii(name)[1:-1] if _same_letters(*pair) else name for name in pair)
        how = "Unicode normalisation" if _same_letters(*pair) else "case"
        said.append(f"the classes '{one}' and '{other}' differ only in {how}; are they one class?")
    return tuple(said)


def _alike(name: str, known: Sequence[str]) -> str:
    """Return a hint for a message about an unknown class."""
    for other in known:
        if _same_letters(name, other):
            return (
                f"; it differs from a class of the training only in Unicode normalisation: {name!a} is "
                f"{other!a} there; rename the folder"
            )
    return suggest(name, known)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _same_letters(one: str, other: str) -> bool:
    return unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)


def ignored_remark(ignored: Mapping[str, int]) -> str | None:
    """Return a message about ignored files, None if there are none; `ignored` counts them by ending."""
    total = sum(ignored.values())
    if not total:
        return None
    ordered = sorted(ignored.items(), key=lambda pair: (-pair[1], pair[0]))
    parts = ", ".join(f"{n} {shown(ending)}" for ending, n in ordered[:_MOST_ENDINGS])
    if len(ordered) > _MOST_ENDINGS:
        parts += f", and {len(ordered) - _MOST_ENDINGS} other endings"
    what = (
        "file that is not an image by its name" if total == 1 else "files that are not images by their names"
    )
    return f"ignored {total} {what}: {parts}"
