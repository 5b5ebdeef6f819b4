"""Put the report together: data to sections, sections to one HTML file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from resnext_core.files import write_atomic
from resnext_core.report import text
from resnext_core.report.cards import CARDS, notes, other_cards, scores
from resnext_core.report.curves import training_figures
from resnext_core.report.model import ReportData, Sample
from resnext_core.report.page import render_page
from resnext_core.report.pictures import data_uri
from resnext_core.report.reliability import calibration_figures
from resnext_core.report.scores import TABLE_CLASSES, evaluation_parts, words
from resnext_core.report.series import read_history

_VALIDATION = {
    "name", "backend", "source_backend", "passed", "images", "max_abs_diff", "max_rel_diff", "tolerance",
    "top1_agreement", "top1_artefact", "top1_source", "latency_artefact", "latency_source", "agreement_interval",
    "drop", "drop_interval", "max_drop",
}  # fmt: skip
#: Shown in another column, or only of use where something is wrong.
_VALIDATION_OMITTED = {
    "artefact", "artefact_backend", "source", "digest", "mean_abs_diff", "disagreements", "labelled",
    "min_agreement", "agreement_interval", "drop", "drop_interval", "max_drop", "failures", "unwritten",
}  # fmt: skip
_VALIDATION_USUAL = [("nonfinite", 0), ("same_weights", True)]


def write_report(path: Path, data: ReportData) -> None:
    """Write :func:`render_report` to `path` atomically; raises DataError when it cannot be written."""
    write_atomic(path, render_report(data))


def render_report(data: ReportData) -> str:
    """Return the report as one HTML page that loads nothing from anywhere.

    All text is escaped, and names that are not UTF-8 are shown by their bytes. The page's own content security policy
    allows no script but its own, which shows tooltips and sorts tables. Raises DataError on a thumbnail that is no
    image or a confusion matrix that does not fit its classes.
    """
    history = read_history(data.records)
    counts = _counts(data.images)
    return render_page(
        "report.html.j2",
        data=data,
        scores=scores(data.evaluation),
        cards=other_cards(data.summary, history),
        facts=[(words(k), v) for k, v in data.summary.items() if k not in CARDS],
        notes=notes(data, history),
        figures=training_figures(history, data.best),
        evaluation=evaluation_parts(data.evaluation, counts["train"]),
        counts=counts,
        calibration=calibration_figures(data.evaluation.get("calibration") or {}),
        galleries=_galleries(data.samples),
        environment=list(flattened(data.environment)),
        validations=[_validation(v) for v in data.validations],
    )


def _counts(images: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Return the images of each part of the data, and of each class in each part, largest class of training first."""
    train = images.get("train", {})
    classes = list(dict.fromkeys(name for part in images.values() for name in part))
    classes.sort(key=lambda name: -train.get(name, 0))
    most = max(train.values(), default=0)
    return {
        "train": train,
        "parts": [(name, sum(part.values())) for name, part in images.items()],
        "rows": [
            (name, [part.get(name, 0) for part in images.values()], 100 * train.get(name, 0) / max(most, 1))
            for name in classes
        ],
        "shown": TABLE_CLASSES,
    }


def _galleries(samples: Iterable[Sample]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Return the samples by title, with what they are: mistakes in their order, then those that are right."""
    shown = [_sample(sample) for sample in samples]
    parts = (
        (
            "Confident mistakes",
            "Wrong, and sure of it. Classes take turns: the most confident one of each comes before the second of any.",
            [s for s in shown if not s["right"]],
        ),
        (
            "Right",
            "The first images of each class that were recognised, for comparison.",
            [s for s in shown if s["right"]],
        ),
    )
    return [part for part in parts if part[2]]


def _sample(sample: Sample) -> dict[str, Any]:
    right = sample.true == sample.predicted
    source, small = data_uri(sample.thumbnail, sample.path or sample.true)
    said = f"predicted {sample.predicted} ({text.percent(sample.probability, 0)})"
    probability = text.number(sample.probability)
    probability = min(max(probability, 0.0), 1.0) if math.isfinite(probability) else 0.0
    return {
        "source": source,
        "small": small,
        "right": right,
        "sample": sample,
        "width": round(100 * probability, 1),
        "alt": f"{sample.true}, {said}, {'right' if right else 'wrong'}",
    }


def _validation(validation: Mapping[str, Any]) -> dict[str, Any]:
    shown = {key: validation.get(key) for key in _VALIDATION}
    shown["details"] = [
        (words(key), value)
        for key, value in validation.items()
        if value not in (None, [])
        and key not in _VALIDATION | _VALIDATION_OMITTED
        and (key, value) not in _VALIDATION_USUAL
    ]
    return shown


def flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the values of nested mappings, each with its keys joined by dots."""
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += flattened(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows
