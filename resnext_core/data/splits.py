"""The parts of a data folder: train, val and test, and what is wrong with each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnext_core.config import Config, DataConfig
from resnext_core.data.balance import class_counts
from resnext_core.data.index import NO_SPLIT, SPLITS, Index, find_splits, open_index, split_candidates
from resnext_core.data.look import names_in, what_is
from resnext_core.data.remote.fetch import fetch_of
from resnext_core.errors import DataError, ResnextError, UsageError, counted, shown
from resnext_core.files import Place, place


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The indices of a data folder; all share the classes of `train`, and all have labels.

    `notes` has a line about each part that is missing or was left out.
    """

    train: Index
    val: Index | None
    test: Index | None
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, Index]:
        """Those that are there, by name."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: index for name, index in parts.items() if index is not None}

    def counts(self) -> dict[str, Any]:
        """Return ``classes``, their names, and ``parts``: how many images of each class each part has; JSON types."""
        classes = self.train.classes
        parts = {
            name: class_counts(index.labels, len(classes)).tolist() for name, index in self.parts.items()
        }
        return {"classes": list(classes), "parts": parts}


def examine_splits(config: Config) -> tuple[Splits | None, list[ResnextError]]:
    """Open train, val and test of ``config.data`` and return them with everything that speaks against them.

    A training needs two classes in train and labels in val; a test part without labels is left out. The splits
    are None where there is no train part to use. Raises UsageError where there is no data folder to look at.
    """
    if config.data.dir is None:
        raise UsageError("no data given: use --data DIR, a folder with train/ and val/")
    paths = find_splits(place(config.data.dir), config.data, need=("train",))
    faults: list[ResnextError] = []
    notes: list[str] = []
    train, classes = None, None
    try:
        train = open_index(paths["train"], data=config.data)
        _check_classes(train, paths["train"])
        classes = train.classes
    except ResnextError as error:
        train = None
        faults.append(error)
    found: dict[str, Index] = {}
    for name in ("val", "test"):
        if name not in paths:
            continue
        try:
            index = open_index(paths[name], classes=classes, data=config.data)
        except ResnextError as error:
            faults.append(error)
            continue
        if index.labelled:
            found[name] = index
        elif name == "test":
            notes.append(
                f"{shown(paths[name], None)} has {counted(len(index), 'image')} without labels: it is left out"
                + (", val is evaluated in its place" if "val" in paths else "")
            )
        else:
            faults.append(
                DataError(
                    f"{_without_labels(index, paths[name])} and name it with --set data.val=val.txt, or train "
                    "without an evaluation: --set data.val=none"
                )
            )
    if train is None:
        return None, faults
    if "val" not in paths:
        notes.append("no val split: nothing is evaluated during training, and no checkpoint is the best")
    return Splits(train=train, val=found.get("val"), test=found.get("test"), notes=tuple(notes)), faults


def _check_classes(index: Index, path: Place) -> None:
    """Raise DataError unless every image has a label and there are two classes to tell apart."""
    if not index.labelled:
        raise DataError(f"{_without_labels(index, path)} and name it with --set data.train=train.txt")
    present = np.unique(index.labels)
    if len(present) < 2:
        raise DataError(
            f"{path} has images of one class only, '{index.classes[present[0]]}': a classifier needs two; "
            "add images of another class, each in a folder of its class"
        )


def _without_labels(index: Index, path: Place) -> str:
    return (
        f"{path} has "
        f"{counted(len(index), 'image')} without labels, e.g. {index.paths[0]}; put them into class folders, or "
        "write a list of 'path label' lines beside it"
    )


def open_split(data: DataConfig, split: str | None, classes: Sequence[str], *, named: bool = True) -> Index:
    """Open one part of ``data.dir`` with `classes`: the part `split`, or else test, val, or the folder itself.

    `named` False: the model has numbers for class names. A test part without labels is passed over for val, as by a
    whole job. Raises UsageError or DataError.
    """
    if data.dir is None:
        raise UsageError("no data given: use --data DIR, or give a run as --weights to take its own")
    root = place(data.dir)
    paths = part_paths(root, data)
    passed: tuple[str, ...] = ()
    for name in (split,) if split else ("test", "val"):
        if name in paths:
            index = open_index(paths[name], classes, named=named, data=data)
            if split is None and name == "test" and "val" in paths and not index.labelled:
                passed = (f"{shown(paths[name], None)} has no labels: taking val",)
                continue
            return dataclasses.replace(index, remarks=(*index.remarks, *passed))
    if split is not None or "train" in paths:
        raise UsageError(f"{root} has no {split or 'test or val'} part; it has: {', '.join(paths) or 'none'}")
    return open_index(root, classes, named=named, data=data)


def part_paths(root: Place, data: DataConfig) -> dict[str, Place]:
    """Return the train, val and test parts of `root`; none where it is itself a folder of classes or a list."""
    access = fetch_of(data).access
    if what_is(root, access) != "folder":
        return {}
    inside = names_in(root, access)
    usual = any(split_candidates(names, inside) for names in SPLITS.values())
    configured = any(part not in (None, NO_SPLIT) for part in (data.train, data.val, data.test))
    return find_splits(root, data) if usual or configured else {}
