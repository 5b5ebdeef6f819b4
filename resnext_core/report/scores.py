"""The evaluation section of a report: confusion matrix, mistakes, and a row for each class."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.errors import DataError
from resnext_core.metrics import METRICS
from resnext_core.report.charts import heat_map
from resnext_core.serving.metrics import confused_pairs, per_class

#: Classes a heat map can show; above, the most confused pairs stand alone.
HEAT_CLASSES = 30
#: Classes listed before a table is folded.
TABLE_CLASSES = 30
#: Confused pairs listed beside a heat map, and instead of one.
PAIRS = (8, 25)

#: What is shown in a place of its own, or is of use to programs alone.
_ELSEWHERE = {*METRICS, *(f"{name}_interval" for name in METRICS)} | {
    "correct1", "correct5", "expected", "scored", "failed", "split", "seconds", "images_per_s", "tta",
    "failures", "confusion", "classes", "support", "recall", "calibration",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """A class, its rates (0..1, NaN where there is nothing to count), and its images in evaluation and training."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    trained: int | None


def evaluation_parts(evaluation: Mapping[str, Any], trained: Mapping[str, int]) -> dict[str, Any]:
    """Return the parts of the evaluation section; `trained` has the training images of each class, or nothing.

    DataError where the confusion matrix does not fit its classes.
    """
    confusion = _confusion(evaluation)
    parts: dict[str, Any] = {
        "facts": _facts(evaluation),
        "split": str(evaluation.get("split") or ""),
        "scored": evaluation.get("scored"),
        "expected": evaluation.get("expected"),
        "failures": _failures(evaluation.get("failures") or ()),
        "heat": None, "pairs": [], "rows": [], "shown": TABLE_CLASSES,
    }  # fmt: skip
    if confusion is None or not len(confusion):
        return parts
    classes = [str(c) for c in evaluation["classes"]]
    large = len(classes) > HEAT_CLASSES
    pairs = confused_pairs(confusion, PAIRS[large])
    totals = confusion.sum(axis=1)
    parts["pairs"] = [(classes[t], classes[p], n, n / totals[t]) for t, p, n in pairs]
    if not large:
        label = f"Confusion matrix of {len(classes)} classes, {confusion.trace()} of {confusion.sum()} right."
        if pairs:
            t, p, n = pairs[0]
            label += f" Most frequent mistake: {classes[t]} taken for {classes[p]}, {n} times."
        parts["heat"] = heat_map(confusion, classes, label=label)
    rates = per_class(confusion, support_of(evaluation))
    order = sorted(
        range(len(classes)), key=lambda k: (math.isnan(rates.recall[k]), rates.recall[k], -rates.support[k])
    )
    parts["rows"] = [
        ClassRow(
            name=classes[k], precision=float(rates.precision[k]), recall=float(rates.recall[k]),
            f1=float(rates.f1[k]), support=int(rates.support[k]), trained=trained.get(classes[k]),
        )
        for k in order
    ]  # fmt: skip
    return parts


def support_of(evaluation: Mapping[str, Any]) -> NDArray[np.int64] | None:
    """Return the images of each class, None where they are not known; DataError where they do not fit the classes."""
    if evaluation.get("support") is None:
        return None
    support = np.asarray(evaluation["support"], dtype=np.int64)
    classes = len(evaluation.get("classes") or [])
    if support.shape != (classes,):
        raise DataError(f"numbers of images of {support.shape} do not fit {classes} class names")
    return support


def words(key: str) -> str:
    """Return the name of a value in JSON as words."""
    return str(key).replace("_", " ")


def _facts(evaluation: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return what else the evaluation says, by name; its speed in the terminal's units."""
    facts = [(words(k), v) for k, v in evaluation.items() if k not in _ELSEWHERE]
    rate = evaluation.get("images_per_s")
    if isinstance(rate, (int, float)):
        facts.append(("speed", f"{rate:.0f} images/s"))
    if evaluation.get("tta") == "flip":
        facts.append(("each image", "with its mirror image"))
    return facts


def _confusion(evaluation: Mapping[str, Any]) -> NDArray[np.int64] | None:
    """Return the confusion matrix, None without one; DataError where it does not fit the classes."""
    if evaluation.get("confusion") is None:
        return None
    confusion = np.asarray(evaluation["confusion"], dtype=np.int64)
    classes = len(evaluation.get("classes") or [])
    if confusion.ndim != 2 or confusion.shape != (classes, classes):
        raise DataError(f"a confusion matrix of {confusion.shape} does not fit {classes} class names")
    return confusion


def _failures(failures: Mapping[str, Any] | Iterable[str]) -> list[str]:
    if isinstance(failures, Mapping):
        return [f"{path}: {reason}" for path, reason in failures.items()]
    return [str(path) for path in failures]
