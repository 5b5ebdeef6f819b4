"""The headline numbers of a report, and what a reader must know before believing them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resnext_core.data.balance import REMEDIES, unlike_classes
from resnext_core.errors import counted
from resnext_core.metrics import METRICS
from resnext_core.report import text
from resnext_core.report.model import ReportData
from resnext_core.report.scores import support_of
from resnext_core.report.series import History
from resnext_core.runs.records import count_unknown
from resnext_core.serving.metrics import wilson_interval

#: Keys of a summary that are cards; the others are facts.
CARDS = {"parameters", "macs", "images_per_s", "wall_s", "backend", "device"}


@dataclass(frozen=True, kw_only=True)
class Card:
    """A number with its `label` and a line below it; `split` is the part of the data that it was measured on.

    `low` and `high` (0..1) are the ends of its interval, None where there is none.
    """

    key: str
    label: str
    value: str
    note: str = ""
    split: str = ""
    low: float | None = None
    high: float | None = None


def scores(evaluation: Mapping[str, Any]) -> list[Card]:
    """Return the metrics of an evaluation that say something: five guesses of five classes are always right."""
    cards = []
    for key, metric in METRICS.items():
        always = key == "top5" and 0 < len(evaluation.get("classes") or ()) <= 5
        if always or not math.isfinite(text.number(evaluation.get(key))):
            continue
        ends = interval_of(evaluation, key) if metric.interval else None
        note = metric.meaning
        if ends is not None:
            note = f"95\u202f% interval {ends[0] * 100:.2f} to {ends[1] * 100:.2f}"
        cards.append(
            Card(
                key=key, label=metric.title, value=text.percent(evaluation[key]), note=note,
                split=str(evaluation.get("split") or ""), low=ends and ends[0], high=ends and ends[1],
            )
        )  # fmt: skip
    return cards


def other_cards(summary: Mapping[str, Any], history: History) -> list[Card]:
    """Return size, speed and time of a run, as far as they are known."""
    rate, wall = text.number(summary.get("images_per_s")), text.number(summary.get("wall_s"))
    rate = rate if math.isfinite(rate) else history.images_per_s
    wall = wall if math.isfinite(wall) else history.wall_s
    parameters = summary.get("parameters")
    made = (
        ("parameters", "Parameters", text.short(parameters), text.count(parameters)),
        ("macs", "Multiply-adds", text.short(summary.get("macs")), "an image"),
        ("images_per_s", "Training", text.rate(rate), "images/s"),
        ("wall_s", "Time", text.duration(wall), "start to end"),
        ("backend", "Backend", str(summary.get("backend") or text.DASH), str(summary.get("device") or "")),
    )
    return [
        Card(key=key, label=label, value=value, note=note)
        for key, label, value, note in made
        if value not in (text.DASH, "nan")
    ]


def interval_of(evaluation: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    """Return the interval that the evaluation gives, or Wilson's; None where neither can be had."""
    given = evaluation.get(f"{key}_interval")
    if isinstance(given, (list, tuple)) and len(given) == 2:
        return text.number(given[0]), text.number(given[1])
    share, total = text.number(evaluation.get(key)), text.number(evaluation.get("expected"))
    if math.isfinite(total) and total > 0 and 0 <= share <= 1:
        return wilson_interval(round(share * total), round(total))
    return None


def notes(data: ReportData, history: History) -> list[str]:
    """Return what a reader must know before believing the numbers."""
    found = []
    bad = sum(r.loss is None or not math.isfinite(r.loss) for r in history.train)
    if bad:
        found.append(
            f"The loss was not a finite number in {bad} of {counted(len(history.train), 'training record')}."
        )
    if history.overflow_steps:
        was = "was" if history.overflow_steps == 1 else "were"
        found.append(f"{counted(history.overflow_steps, 'step')} overflowed and {was} skipped.")
    if history.train and history.started and not history.ended:
        found.append("The records have no end: the run was interrupted or is still going.")
    if history.ended_early is not None:
        found.append(f"The training ended early: {history.ended_early}.")
    if history.fit is not None:
        fit = history.fit
        found.append(
            f"The training was fitted to {fit.minutes:g} {'minute' if fit.minutes == 1 else 'minutes'}: "
            f"{counted(fit.total, 'step')}, {text.sig(fit.epochs)} epochs."
        )
    if unknown := count_unknown(data.records):
        found.append(
            f"{counted(unknown, 'record is', 'records are')} of kinds unknown to this version and not shown."
        )
    if missing := data.samples_missing:
        found.append(
            f"{counted(missing, 'sample image')} cannot be read any more and "
            f"{'is' if missing == 1 else 'are'} not shown."
        )
    found += _imbalance(data.evaluation)
    failed, expected = (
        text.number(data.evaluation.get("failed")),
        text.number(data.evaluation.get("expected")),
    )
    if failed > 0:
        found.append(
            f"{failed:.0f} of {text.count(expected)} {'image' if expected == 1 else 'images'} could not be decoded "
            f"and {'counts' if failed == 1 else 'count'} as wrong."
        )
    broken = [v for v in data.validations if v.get("passed") is False]
    if broken:
        found.append(f"{len(broken)} of {counted(len(data.validations), 'validation')} failed.")
    return found


def _imbalance(evaluation: Mapping[str, Any]) -> list[str]:
    support = support_of(evaluation)
    unlike = None if support is None else unlike_classes(support)
    if unlike is None or support is None:
        return []
    most, least = (evaluation["classes"][k] for k in unlike)
    return [
        f"Classes are imbalanced: {most} has {support[unlike[0]]} of the evaluated images, {least} "
        f"{support[unlike[1]]}. Accuracy is mostly that of the large ones, balanced accuracy is not. If training "
        f"images are alike, see {REMEDIES}."
    ]
