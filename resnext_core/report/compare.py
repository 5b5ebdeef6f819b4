"""Two runs side by side on one page: their scores, curves, settings that differ, and the recall of each class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resnext_core.metrics import METRICS
from resnext_core.report import text
from resnext_core.report.build import flattened
from resnext_core.report.cards import interval_of
from resnext_core.report.charts import Series, line_chart
from resnext_core.report.curves import Figure
from resnext_core.report.model import ReportData
from resnext_core.report.page import render_page
from resnext_core.report.scores import TABLE_CLASSES, support_of
from resnext_core.report.series import History, column, read_history, smooth

#: Styles of the curves of the first and of the second run.
STYLES = ("line-1", "line-2")
#: Settings that say where a run is, not what it does.
_PLACES = {"output.name", "output.dir"}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A run in a comparison: its `name`, what its report shows, and its settings, nested as in its configuration."""

    name: str
    data: ReportData
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A value of both runs as text; `difference` is the second's less the first's, `better` whether that is good."""

    name: str
    values: tuple[str, str]
    notes: tuple[str, str] = ("", "")
    difference: str = ""
    better: bool | None = None


def render_comparison(first: Compared, second: Compared) -> str:
    """Return the comparison as one HTML page that loads nothing from anywhere; all text is escaped.

    Raises DataError on an evaluation that is damaged.
    """
    pair = (first, second)
    histories = tuple(read_history(run.data.records) for run in pair)
    evaluations = [run.data.evaluation for run in pair]
    same = _same_images(evaluations)
    return render_page(
        "compare.html.j2",
        runs=pair,
        styles_of=STYLES,
        facts=[{k: v for k, v in run.data.summary.items() if k in ("backend", "started")} for run in pair],
        notes=list(_notes(evaluations, same)),
        scores=list(_scores(evaluations, same)),
        costs=list(_costs(pair, histories)),
        figures=list(_figures(pair, histories)),
        settings=list(_differing(first.settings, second.settings, leave_out=_PLACES)),
        environment=list(_differing(first.data.environment, second.data.environment, leave_out={"command"})),
        classes=_classes(evaluations),
        shown=TABLE_CLASSES,
    )


def difference_interval(
    first: float, first_ends: tuple[float, float], second: float, second_ends: tuple[float, float]
) -> tuple[float, float]:
    """Return the 95 % interval of `second` - `first`, two shares, from the Wilson interval of each.

    It takes the two for independent samples, so on the same images, where most answers agree, it is too wide rather
    than too narrow. Source: Newcombe, Statistics in Medicine 17 (1998), 873-890, method 10.
    """
    difference = second - first
    low = math.hypot(second - second_ends[0], first_ends[1] - first)
    high = math.hypot(second_ends[1] - second, first - first_ends[0])
    return difference - low, difference + high


def _same_images(evaluations: Sequence[Mapping[str, Any]]) -> bool | None:
    """Return whether both evaluations are of the same images; None where one does not say, or is missing."""
    digests = [evaluation.get("dataset_digest") for evaluation in evaluations]
    return None if None in digests else digests[0] == digests[1]


def _notes(evaluations: Sequence[Mapping[str, Any]], same: bool | None) -> Iterator[str]:
    splits = [str(evaluation.get("split") or "?") for evaluation in evaluations]
    if not all(evaluations):
        yield "A run without an evaluation has no scores here."
    elif same is False or splits[0] != splits[1]:
        yield (
            f"The scores are of different images ({splits[0]} and {splits[1]}): their differences say little. Evaluate "
            "both on the same data with resnext-run eval."
        )
    classes = [list(evaluation.get("classes") or ()) for evaluation in evaluations]
    if all(classes) and classes[0] != classes[1]:
        yield f"The runs have different classes ({len(classes[0])} and {len(classes[1])}): recall is not compared."


def _scores(evaluations: Sequence[Mapping[str, Any]], same: bool | None) -> Iterator[Row]:
    for key, metric in METRICS.items():
        shares = [text.number(evaluation.get(key)) for evaluation in evaluations]
        if not any(map(math.isfinite, shares)):
            continue
        ends = [interval_of(evaluation, key) if metric.interval else None for evaluation in evaluations]
        difference, better = "", None
        if all(map(math.isfinite, shares)):
            difference, better = text.points(shares[1] - shares[0]), shares[1] - shares[0] > 0
            if ends[0] is not None and ends[1] is not None:
                low, high = difference_interval(shares[0], ends[0], shares[1], ends[1])
                difference += f" ({text.points(low)} to {text.points(high)})"
                better = better if low > 0 or high < 0 else None
            if same is False:
                better = None
        yield Row(
            name=metric.title, values=(text.percent(shares[0]), text.percent(shares[1])),
            notes=tuple(_interval_words(found) for found in ends),  # type: ignore[arg-type]
            difference=difference, better=better if metric.interval else None,
        )  # fmt: skip
    for name, key, write in (
        ("Loss (NLL)", "nll", text.loss),
        ("Calibration error (ECE)", "ece", text.percent),
    ):
        values = [text.number((evaluation.get("calibration") or {}).get(key)) for evaluation in evaluations]
        if any(map(math.isfinite, values)):
            change = values[1] - values[0]
            said = text.points(change) if key == "ece" else text.change(change)
            yield Row(name=name, values=(write(values[0]), write(values[1])), difference=said)
    if any("scored" in evaluation for evaluation in evaluations):
        counted = [
            f"{text.count(e['scored'])} of {text.count(e.get('expected'))}" if "scored" in e else text.DASH
            for e in evaluations
        ]
        yield Row(
            name="Images", values=(counted[0], counted[1]),
            notes=tuple(str(e.get("split") or "") for e in evaluations),  # type: ignore[arg-type]
        )  # fmt: skip


def _interval_words(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{ends[0] * 100:.2f} to {ends[1] * 100:.2f}"


def _costs(pair: Sequence[Compared], histories: Sequence[History]) -> Iterator[Row]:
    """Yield what the runs cost: sizes, steps, time."""
    made: tuple[tuple[str, Callable[[Compared, History], Any], Callable[[Any], str]], ...] = (
        ("Parameters", lambda run, _: run.data.summary.get("parameters"), text.count),
        ("Multiply-adds an image", lambda run, _: run.data.summary.get("macs"), text.short),
        ("Steps", lambda _, history: history.last_step or None, text.count),
        ("Epochs", lambda _, history: max((r.epoch for r in history.train), default=None), text.count),
        ("Training images/s", lambda _, history: history.images_per_s, text.rate),
        ("Time", lambda run, history: run.data.summary.get("wall_s", history.wall_s), text.duration),
        ("Artefacts", lambda run, _: sum(a["size"] for a in run.data.artefacts) or None, text.size),
    )
    for name, find, write in made:
        values = [write(find(run, history)) for run, history in zip(pair, histories, strict=True)]
        if values != [text.DASH, text.DASH]:
            yield Row(name=name, values=(values[0], values[1]))


def _figures(pair: Sequence[Compared], histories: Sequence[History]) -> Iterator[Figure]:
    """Yield the curves that at least one of the runs has, those of both in one chart."""
    best = pair[0].data.best if pair[0].data.best in METRICS else next(iter(METRICS))
    metric = METRICS[str(best)]
    longest = max(history.last_step for history in histories)
    for title, of_run, name, write, axis in (
        ("Training loss", _smoothed, "", text.loss, _three_digits),
        ("Validation loss", _of_evals, "loss", text.loss, _three_digits),
        (f"Validation {metric.label}", _of_evals, str(best), text.percent, _percent),
        ("Learning rate", _of_steps, "lr", text.sig, _three_digits),
    ):
        curves = []
        for run, style, history in zip(pair, STYLES, histories, strict=True):
            x, y = of_run(history, name)
            if any(map(math.isfinite, y)):
                curves.append(Series(name=run.name, style=style, x=x, y=y, dots=of_run is _of_evals))
        if not curves:
            continue
        tips: dict[float, str] = {}
        for curve in curves:
            for step, value in zip(curve.x, curve.y, strict=True):
                tips[step] = f"{tips.get(step) or f'step {text.count(step)}'}\n{curve.name} {write(value)}"
        ends = [f"{c.name} {write([v for v in c.y if math.isfinite(v)][-1])} at the end" for c in curves]
        yield Figure(
            title=title,
            legend=[(curve.style, curve.name) for curve in curves],
            chart=line_chart(
                curves, label=f"{title} over steps: {', '.join(ends)}.", x_max=longest, format_x=text.steps,
                format_y=axis, hover=sorted(tips.items()),
            ),
        )  # fmt: skip


def _of_steps(history: History, name: str) -> tuple[list[float], list[float]]:
    return column(history.train, "step"), column(history.train, name)


def _of_evals(history: History, name: str) -> tuple[list[float], list[float]]:
    return column(history.evals, "step"), column(history.evals, name)


def _smoothed(history: History, _: str) -> tuple[list[float], list[float]]:
    losses = column(history.train, "loss")
    return column(history.train, "step"), smooth(losses, max(len(losses) // 40, 1))


def _three_digits(value: float) -> str:
    return text.sig(value, 3)


def _percent(share: float) -> str:
    return f"{share * 100:.3g}\u202f%"


def _differing(
    first: Mapping[str, Any], second: Mapping[str, Any], *, leave_out: set[str]
) -> Iterator[tuple[str, str, str]]:
    """Yield each key that has not the same value in both, with both values as text, a dash where one lacks it."""
    one, other = dict(flattened(first)), dict(flattened(second))
    for key in dict.fromkeys([*one, *other]):
        if key not in leave_out and (key in one) + (key in other) and one.get(key) != other.get(key):
            yield key, text.fact(one.get(key)), text.fact(other.get(key))


def _classes(evaluations: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float, float, int]]:
    """Return name, recall in both runs, change and images of each class, largest change first.

    Nothing where the classes are not the same, or an evaluation has no recall. DataError where the numbers of images do
    not fit the classes.
    """
    names = [list(evaluation.get("classes") or ()) for evaluation in evaluations]
    recalls = [list(evaluation.get("recall") or ()) for evaluation in evaluations]
    if not names[0] or names[0] != names[1] or not all(len(r) == len(names[0]) for r in recalls):
        return []
    support = support_of(evaluations[1])
    images = [0] * len(names[0]) if support is None else support.tolist()
    rows = [
        (str(name), text.number(a), text.number(b), text.number(b) - text.number(a), int(n))
        for name, a, b, n in zip(names[0], *recalls, images, strict=True)
    ]
    return sorted(rows, key=lambda row: (math.isnan(row[3]), -abs(row[3])))
