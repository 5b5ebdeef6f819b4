"""The result of ``resnext-run eval`` for people: a line or a table, calibration, the recall of each class."""

from __future__ import annotations

import math
from collections.abc import Sequence

from resnext_core.console.output import table
from resnext_core.errors import counted
from resnext_core.jobs.evaluate import EvaluateResult
from resnext_core.metrics import METRICS
from resnext_core.serving.evaluate import Evaluation

#: Of so many classes all are listed; of more, so many with the lowest recall.
_MOST, _LOWEST = 20, 10


def eval_text(results: Sequence[EvaluateResult], *, one_size: bool) -> str:
    """Return the lines of an evaluation at the size of the model (`one_size`) or of one at several sizes."""
    lines = [str(results[0]) if one_size else _table(results)]
    for result in results:
        of = f"{result.evaluation.image_size} pixels: " * (len(results) > 1)
        fitted = "" if result.calibrated is None else f"; {result.calibrated}"
        lines.append(f"{of}calibration: {result.evaluation.calibration.line()}{fitted}")
    if one_size:
        lines.append(_classes(results[0].evaluation))
    return "\n".join(lines)


def _classes(found: Evaluation) -> str:
    """Return the recall of the classes, lowest first: of all of them, or of the first where there are many."""
    rows = [
        (recall, images, name)
        for name, recall, images in zip(found.classes, found.recall, found.support.tolist(), strict=True)
        if recall is not None
    ]
    rows.sort(key=lambda row: (row[0], -row[1]))
    shown = rows if len(rows) <= _MOST else rows[:_LOWEST]
    lines = table(
        [[name, f"{100 * recall:.2f} %", str(images)] for recall, images, name in shown],
        ["class", "recall", "images"],
    )
    others = (
        ""
        if len(shown) == len(rows)
        else f"\n... and {counted(len(rows) - len(shown), 'more class', 'more classes')}: see --json"
    )
    return lines + others


def _table(results: Sequence[EvaluateResult]) -> str:
    header = ["size", *(metric.label for metric in METRICS.values()), "ECE", "images", "images/s"]
    rows = []
    for result in results:
        found = result.evaluation
        rate = f"{found.expected / found.seconds:.0f}" if found.seconds > 0 else "-"
        shares = [
            f"{100 * value:.2f} %" if math.isfinite(value) else "-"
            for value in (*(found.metrics[m] for m in METRICS), found.calibration.ece)
        ]
        rows.append([str(found.image_size), *shares, f"{found.scored} of {found.expected}", rate])
    return f"{results[0].weights} [{results[0].backend}]\n{table(rows, header)}"
