"""Results of a scan of a data set: files that cannot be read, duplicate pictures, balance, sizes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from resnext_core import files
from resnext_core.data.index import Index
from resnext_core.data.quarantine import Quarantine
from resnext_core.data.scan import Facts

#: Lower ends of the classes of the histogram, in pixels of the shorter side; 224 is what most networks see.
SIDES = (0, 32, 64, 128, 224, 256, 384, 512, 1024, 2048)


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of a data set: its split, its name relative to the data folder, its class (None if it has none)."""

    part: str
    name: str
    label: str | None


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A file that cannot be decoded, with the reason."""

    file: File
    reason: str


@dataclass(frozen=True, kw_only=True)
class Remarked:
    """Files that can be read, but probably not as intended, for one reason."""

    remark: str
    files: Sequence[File]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Groups are files with the same picture, pixel for pixel.

    `contradictions` have more than one class, `leaks` are in more than one split, `duplicates` are all others.
    A group may be a contradiction and a leak. `classes` counts images by split, then by class. `sides` counts images by
    the lower end of their class of :data:`SIDES`; `widths` and `heights` are (least, median, largest) in pixels.
    `orientations` counts images whose EXIF data says that they are stored turned or mirrored, by its number (2 to 8),
    `alpha` those with transparency, and `deep` those with more than 8 bits, by the number of bits.
    """

    images: Mapping[str, int]
    bytes: int
    bad: Sequence[Bad]
    remarks: Sequence[Remarked]
    contradictions: Sequence[Sequence[File]]
    leaks: Sequence[Sequence[File]]
    duplicates: Sequence[Sequence[File]]
    classes: Mapping[str, Mapping[str, int]]
    empty: Sequence[tuple[str, str]]
    sides: Mapping[int, int]
    widths: tuple[int, int, int]
    heights: tuple[int, int, int]
    formats: Mapping[str, int]
    orientations: Mapping[int, int]
    alpha: int
    deep: Mapping[int, int]

    @property
    def wrong(self) -> bool:
        """True if something would make training or accuracy wrong."""
        return bool(self.bad or self.contradictions or self.leaks)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def find(parts: Mapping[str, Index], facts: Mapping[str, Facts], names: Quarantine) -> Findings:
    """Return the findings for `parts`, given the facts of every file by absolute path."""
    bad, groups, remarks = [], defaultdict(list), defaultdict(list)
    sizes, sides, formats = [], Counter[int](), Counter[str]()
    orientations, deep, alpha = Counter[int](), Counter[int](), 0
    for part, index in parts.items():
        for i in range(len(index)):
            label = index.classes[index.labels[i]] if index.labels[i] >= 0 else None
            file = File(part=part, name=names.name(index, i), label=label)
            fact = facts[absolute(index, i)]
            if fact.pixels is None:
                bad.append(Bad(file=file, reason=fact.error or "unknown"))
                continue
            if fact.remark is not None:
                remarks[fact.remark].append(file)
            groups[fact.pixels].append(file)
            sizes.append((fact.width, fact.height))
            sides[max(s for s in SIDES if s <= min(fact.width, fact.height))] += 1
            formats[fact.format or "?"] += 1
            orientations[fact.orientation] += 1
            deep[fact.bits] += 1
            alpha += fact.alpha
    same = [group for group in groups.values() if len(group) > 1]
    counts = {part: class_counts(index) for part, index in parts.items()}
    return Findings(
        images={part: len(index) for part, index in parts.items()},
        bytes=sum(max(f.size, 0) for f in facts.values()),
        bad=bad,
        remarks=[Remarked(remark=remark, files=files) for remark, files in remarks.items()],
        contradictions=[g for g in same if _disagree(g)],
        leaks=[g for g in same if _spans(g)],
        duplicates=[g for g in same if not (_disagree(g) or _spans(g))],
        classes=counts,
        empty=[(part, name) for part, found in counts.items() for name, n in found.items() if n == 0],
        sides=dict(sorted(sides.items())),
        widths=_spread(w for w, _ in sizes),
        heights=_spread(h for _, h in sizes),
        formats=dict(formats.most_common()),
        orientations={value: n for value, n in sorted(orientations.items()) if value > 1},
        alpha=alpha,
        deep={bits: n for bits, n in sorted(deep.items()) if bits > 8},
    )


def absolute(index: Index, i: int) -> str:
    """Return the absolute path of an image without resolving links, or its URL."""
    return files.absolute(index.path(i))


def class_counts(index: Index) -> dict[str, int]:
    """Return the number of images of each class in an index."""
    counts = np.bincount(index.labels[index.labels >= 0], minlength=len(index.classes))
    return dict(zip(index.classes, counts.tolist(), strict=True))


def _disagree(group: Sequence[File]) -> bool:
    return len({f.label for f in group} - {None}) > 1


def _spans(group: Sequence[File]) -> bool:
    return len({f.part for f in group}) > 1


def _spread(values: Iterable[int]) -> tuple[int, int, int]:
    ordered = sorted(values)
    return (ordered[0], ordered[len(ordered) // 2], ordered[-1]) if ordered else (0, 0, 0)
