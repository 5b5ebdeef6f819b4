"""The metrics of an evaluation, in one table: results, records, checkpoints, ``train.best`` and reports follow it.

To add one, add it here. NumPy is not imported: configuration needs the names alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class EvaluationCounts(Protocol):
    """What metrics are computed from, for K classes.

    `correct1` and `correct5` of `expected` images have their class first, or among the first five. `support` int64 (K,)
    counts the images of each class, `confusion` int64 (K, K) those with a prediction, as [true, predicted]. An image
    that could not be read has no prediction, but is in `expected` and `support`: it counts as wrong.
    """

    @property
    def expected(self) -> int: ...
    @property
    def correct1(self) -> int: ...
    @property
    def correct5(self) -> int: ...
    @property
    def support(self) -> Any: ...
    @property
    def confusion(self) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number from 0 to 1, better when larger, that is shown in percent.

    `label` is its name within a line, `title` its name in a heading, `meaning` says what it is. With `interval` it is a
    share of all images, whose 95 % interval (Wilson) is shown too. `compute` gives NaN where there is nothing to count.
    """

    label: str
    title: str
    meaning: str
    compute: Callable[[EvaluationCounts], float]
    interval: bool = False

    def line(self, value: float) -> str:
        """Return the name and the value in percent."""
        return f"{self.label} {100 * value:.2f} %"


def _share(correct: int, counts: EvaluationCounts) -> float:
    return correct / counts.expected if counts.expected else float("nan")


def _balanced_accuracy(counts: EvaluationCounts) -> float:
    known = counts.support > 0
    if not known.any():
        return float("nan")
    return float((counts.confusion.diagonal()[known] / counts.support[known]).mean())


def _macro_f1(counts: EvaluationCounts) -> float:
    of_class = counts.support + counts.confusion.sum(axis=0)
    known = of_class > 0
    if not known.any():
        return float("nan")
    return float((2 * counts.confusion.diagonal()[known] / of_class[known]).mean())


#: By name: the key in results and records, and the value of ``train.best``. The first one is the headline.
METRICS: Mapping[str, Metric] = {
    "top1": Metric(
        label="top-1", title="Top-1 accuracy", meaning="the class with the largest logit is right",
        compute=lambda counts: _share(counts.correct1, counts), interval=True,
    ),
    "top5": Metric(
        label="top-5", title="Top-5 accuracy", meaning="one of the five largest logits is right",
        compute=lambda counts: _share(counts.correct5, counts), interval=True,
    ),
    "balanced_accuracy": Metric(
        label="balanced accuracy", title="Balanced accuracy", meaning="mean recall of the classes",
        compute=_balanced_accuracy,
    ),
    "macro_f1": Metric(
        label="macro-F1", title="Macro F1", meaning="mean F1 score of the classes", compute=_macro_f1,
    ),
}  # fmt: skip


def metric_lines(values: Mapping[str, float]) -> list[str]:
    """Return each of `values` that the table has, with its name and in percent, in the order of the table."""
    return [metric.line(values[name]) for name, metric in METRICS.items() if name in values]
