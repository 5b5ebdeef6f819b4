"""Put the report together: data to sections, sections to one HTML file."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from resnext_core.data.balance import REMEDIES, unlike_classes
from resnext_core.errors import DataError
from resnext_core.files import write_atomic
from resnext_core.metrics import METRICS
from resnext_core.report import text
from resnext_core.report.charts import heat_map
from resnext_core.report.curves import training_figures
from resnext_core.report.model import ReportData, Sample
from resnext_core.report.pictures import data_uri
from resnext_core.report.reliability import calibration_figures
from resnext_core.report.series import History, read_history
from resnext_core.runs.records import count_unknown
from resnext_core.serving.metrics import confused_pairs, per_class, wilson_interval
from resnext_core.terminal import printable

#: Classes a heat map can show; above, the most confused pairs stand alone.
HEAT_CLASSES = 30
#: Classes listed before the table is folded.
TABLE_CLASSES = 30
#: Confused pairs listed beside a heat map, and instead of one.
PAIRS = (8, 25)

_CARDS = {"parameters", "macs", "images_per_s", "wall_s", "backend", "device"}
_EVALUATION = {*METRICS, *(f"{name}_interval" for name in METRICS)} | {
    "correct1", "correct5", "expected", "scored", "failed",
    "failures", "confusion", "classes", "support", "recall", "calibration",
}  # fmt: skip
_VALIDATION = {
    "name", "backend", "source_backend", "passed", "images", "max_abs_diff", "max_rel_diff", "tolerance",
    "top1_agreement", "top1_artefact", "top1_source", "latency_artefact", "latency_source",
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
    allows no script but the one that shows tooltips. Raises DataError on a thumbnail that is no image or a confusion
    matrix that does not fit its classes.
    """
    folder = importlib.resources.files("resnext_core.report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["dash"] = text.DASH
    for name in ("percent", "count", "short", "sig", "size", "duration", "fact", "latency"):
        environment.filters[name] = getattr(text, name)
    script = (folder / "script.js.j2").read_text(encoding="utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    history = read_history(data.records)
    confusion = _confusion(data.evaluation)
    template = environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        data=data,
        style=Markup((folder / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_digest=digest,
        cards=_cards(data, history),
        facts=[(_words(k), v) for k, v in data.summary.items() if k not in _CARDS],
        notes=_notes(data, history),
        figures=training_figures(history),
        evaluation=_evaluation(data.evaluation, confusion),
        calibration=calibration_figures(data.evaluation.get("calibration") or {}),
        galleries=_galleries(data.samples),
        environment=list(_flatten(data.environment)),
        validations=[_validation(v) for v in data.validations],
    )
    return printable(page.strip()) + "\n"  # names need not be UTF-8


def _cards(data: ReportData, history: History) -> list[dict[str, str]]:
    """Return the headline numbers that are known: label, value and a line below it."""
    cards = []
    for key, metric in METRICS.items():
        if not math.isfinite(text.number(data.evaluation.get(key))):
            continue
        card = {"label": metric.title, "value": text.percent(data.evaluation[key]), "key": key}
        if metric.interval:
            low, high = _interval(data.evaluation, key)
            card["note"] = f"95\u202f% interval {low * 100:.2f} to {high * 100:.2f}" if low <= high else ""
            card["low"], card["width"] = f"{low * 100:.2f}", f"{max(high - low, 0.0) * 100:.2f}"
        else:
            card["note"] = metric.meaning
        cards.append(card)
    summary = data.summary
    rate, wall = text.number(summary.get("images_per_s")), text.number(summary.get("wall_s"))
    rate = rate if math.isfinite(rate) else history.images_per_s
    wall = wall if math.isfinite(wall) else history.wall_s
    for key, label, value, note in (
        (
            "parameters",
            "Parameters",
            text.short(summary.get("parameters")),
            text.count(summary.get("parameters")),
        ),
        ("macs", "MACs", text.short(summary.get("macs")), "an image"),
        ("images_per_s", "Images / s", text.short(rate), "training"),
        ("wall_s", "Wall time", text.duration(wall), "start to end"),
        ("backend", "Backend", str(summary.get("backend") or text.DASH), str(summary.get("device") or "")),
    ):
        if value != text.DASH:
            cards.append({"label": label, "value": value, "note": note, "key": key})
    return cards


def _interval(evaluation: Mapping[str, Any], key: str) -> tuple[float, float]:
    """Return the interval that the evaluation gives, or Wilson's; (1, 0) where neither can be had."""
    given = evaluation.get(f"{key}_interval")
    if given is not None:
        return text.number(given[0]), text.number(given[1])
    share, total = text.number(evaluation[key]), text.number(evaluation.get("expected"))
    if math.isfinite(total) and total > 0 and 0 <= share <= 1:
        return wilson_interval(round(share * total), round(total))
    return 1.0, 0.0


def _notes(data: ReportData, history: History) -> list[str]:
    """Return what a reader must know before believing the numbers."""
    notes = []
    bad = sum(r.loss is None or not math.isfinite(r.loss) for r in history.train)
    if bad:
        notes.append(f"The loss was not a finite number in {bad} of {len(history.train)} training records.")
    if history.overflow_steps:
        notes.append(f"{history.overflow_steps} steps overflowed and were skipped.")
    if history.train and history.started and not history.ended:
        notes.append("The records have no end: the run was interrupted or is still going.")
    if history.ended_early is not None:
        notes.append(f"The training ended early: {history.ended_early}.")
    if history.fit is not None:
        fit = history.fit
        notes.append(
            f"The training was fitted to {fit.minutes:g} minutes: {fit.total} steps, {text.sig(fit.epochs)} epochs."
        )
    if unknown := count_unknown(data.records):
        notes.append(f"{unknown} records are of kinds unknown to this version and are not shown.")
    if data.samples_missing:
        notes.append(f"{data.samples_missing} sample images cannot be read any more and are not shown.")
    support = _support(data.evaluation)
    unlike = None if support is None else unlike_classes(support)
    if unlike is not None and support is not None:
        most, least = (data.evaluation["classes"][k] for k in unlike)
        notes.append(
            f"Classes are imbalanced: {most} has {support[unlike[0]]} of the evaluated images, {least} "
            f"{support[unlike[1]]}. Accuracy is mostly that of the large ones, balanced accuracy is not. If training "
            f"images are alike, see {REMEDIES}."
        )
    failed, expected = text.number(data.evaluation.get("failed")), data.evaluation.get("expected")
    if failed > 0:
        notes.append(
            f"{failed:.0f} of {text.count(expected)} images could not be decoded and count as wrong."
        )
    broken = [v for v in data.validations if v.get("passed") is False]
    if broken:
        notes.append(f"{len(broken)} of {len(data.validations)} validations failed.")
    return notes


def _support(evaluation: Mapping[str, Any]) -> NDArray[np.int64] | None:
    """Return the images of each class, None where they are not known; DataError where they do not fit the classes."""
    if evaluation.get("support") is None:
        return None
    support = np.asarray(evaluation["support"], dtype=np.int64)
    classes = len(evaluation.get("classes") or [])
    if support.shape != (classes,):
        raise DataError(f"numbers of images of {support.shape} do not fit {classes} class names")
    return support


def _confusion(evaluation: Mapping[str, Any]) -> NDArray[np.int64] | None:
    """Return the confusion matrix, None without one; DataError where it does not fit the classes."""
    if evaluation.get("confusion") is None:
        return None
    confusion = np.asarray(evaluation["confusion"], dtype=np.int64)
    classes = len(evaluation.get("classes") or [])
    if confusion.ndim != 2 or confusion.shape != (classes, classes):
        raise DataError(f"a confusion matrix of {confusion.shape} does not fit {classes} class names")
    return confusion


def _evaluation(evaluation: Mapping[str, Any], confusion: NDArray[np.int64] | None) -> dict[str, Any]:
    """Return the parts of the evaluation section."""
    parts: dict[str, Any] = {
        "facts": [(_words(k), v) for k, v in evaluation.items() if k not in _EVALUATION],
        "scored": evaluation.get("scored"),
        "expected": evaluation.get("expected"),
"failures": _failures(evaluation.get("failures") or ()),
        "heat": None, "pairs": [], "rows": [],
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
    rates = per_class(confusion, _support(evaluation))
    order = sorted(
        range(len(classes)), key=lambda k: (math.isnan(rates.recall[k]), rates.recall[k], -rates.support[k])
    )
    parts["rows"] = [
        (
            classes[k],
            float(rates.precision[k]),
            float(rates.recall[k]),
            float(rates.f1[k]),
            int(rates.support[k]),
        )
        for k in order
    ]
    parts["shown"] = TABLE_CLASSES
    return parts


def _galleries(samples: Iterable[Sample]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the samples by title: mistakes in their order, then those that are right."""
    shown = [_sample(sample) for sample in samples]
    parts = {
        "Most confident mistakes": [s for s in shown if not s["right"]],
        "Right": [s for s in shown if s["right"]],
    }
    return [(title, part) for title, part in parts.items() if part]


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


def _failures(failures: Mapping[str, Any] | Iterable[str]) -> list[str]:
    if isinstance(failures, Mapping):
        return [f"{path}: {reason}" for path, reason in failures.items()]
    return [str(path) for path in failures]


def _validation(validation: Mapping[str, Any]) -> dict[str, Any]:
    shown = {key: validation.get(key) for key in _VALIDATION}
    shown["details"] = [
        (_words(key), value)
        for key, value in validation.items()
        if key not in _VALIDATION | _VALIDATION_OMITTED and (key, value) not in _VALIDATION_USUAL
    ]
    return shown


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def _words(key: str) -> str:
    return str(key).replace("_", " ")
