"""What a data folder holds, part by part; and the demo data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnext_core.config import DataConfig
from resnext_core.data.demo import write_digits
from resnext_core.data.findings import class_counts
from resnext_core.data.index import Index, open_index, remarks
from resnext_core.data.splits import part_paths
from resnext_core.files import Place
from resnext_core.jobs.recorder import ignore
from resnext_core.runs.records import Listener, Note


@dataclass(frozen=True, kw_only=True, eq=False)
class DataResult:
    """The parts of `folder` by name: train, val and test, or ``images`` where it has no such parts."""

    folder: Place
    parts: Mapping[str, Index]

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, which all parts share."""
        return tuple(next(iter(self.parts.values())).classes)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of images by part, then by class."""
        return {name: class_counts(index) for name, index in self.parts.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        counts = self.counts()
        parts = {
            name: {
                "images": len(index), "digest": index.dataset_digest, "classes": counts[name],
                "ignored": dict(index.ignored),
            }
            for name, index in self.parts.items()
        }  # fmt: skip
        return {"folder": str(self.folder), "parts": parts}


def write_demo(folder: Path, listen: Listener = ignore) -> DataResult:
    """Write image folders of handwritten digits into the new `folder`, and return what it holds."""
    write_digits(folder)
    return data_info(folder, listen)


def data_info(folder: Place, listen: Listener = ignore) -> DataResult:
    """Return the parts of `folder`, or of a list; `listen` gets a note for each thing that is odd.

    Raises UsageError or DataError where they cannot be opened. No image is decoded.
    """
    parts = _open_parts(folder)
    for line in remarks(parts.values()):
        listen(Note(text=line))
    return DataResult(folder=folder, parts=parts)


def _open_parts(folder: Place) -> dict[str, Index]:
    paths = part_paths(folder, DataConfig())
    if "train" not in paths:
        return {"images": open_index(folder)}
    train = open_index(paths["train"])
    others = {name: path for name, path in paths.items() if name != "train"}
    return {"train": train} | {name: open_index(path, classes=train.classes) for name, path in others.items()}
