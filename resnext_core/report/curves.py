"""The figures of the training section: loss, accuracy, learning rate, throughput and where the time went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from resnext_core.metrics import METRICS
from resnext_core.report import text
from resnext_core.report.charts import Series, line_chart, time_chart
from resnext_core.report.series import History, column, smooth, time_slices
from resnext_core.runs.records import Eval, Train

#: Styles line-1, line-2, ... that style.css has.
LINE_STYLES = 4


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A captioned chart; `legend` pairs a style with its words, `note` is the one number to take away."""

    title: str
    chart: Markup
    legend: Sequence[tuple[str, str]] = ()
    note: str = ""


def training_figures(history: History) -> list[Figure]:
    """Return the figures that `history` has data for."""
    made = (
        _loss(history),
        _metrics(history),
        _lr(history),
        _throughput(history),
        _time(history),
        _clock(history),
    )
    return [figure for figure in made if figure is not None]


def _loss(history: History) -> Figure | None:
    x, raw = column(history.train, "step"), column(history.train, "loss")
    finite = [v for v in raw if math.isfinite(v)]
    if not finite:
        return None
    span = max(len(raw) // 40, 1)
    smoothed = smooth(raw, span)
    curves = [Series(name="loss", style="line-1", x=x, y=smoothed)]
    legend = [("line-1", "training loss")]
    if span > 1:
        curves.append(Series(name="raw", style="line-1", x=x, y=raw, faint=True))
        legend = [("line-1", f"smoothed over {span} records"), ("line-1 faint", "each record")]
    hover = [
        (s, f"{_where(r)}\nloss {text.sig(v)}" + (f"\nsmoothed {text.sig(m)}" if span > 1 else ""))
        for r, s, v, m in zip(history.train, x, raw, smoothed, strict=True)
    ]
    last = sum(finite[-span:]) / len(finite[-span:])
    return Figure(
        title="Training loss",
        legend=[*legend, *_resumed(history)],
        note=f"at the end {text.sig(last)}",
        chart=_lines(
            history,
            curves,
            label=f"Training loss over steps, from {text.sig(finite[0])} at first to {text.sig(last)}.",
            format_y=lambda y: text.sig(y, 3),
            hover=hover,
        ),
    )


def _metrics(history: History) -> Figure | None:
    x = column(history.evals, "step")
    found = {name: column(history.evals, name) for name in METRICS}
    found = {name: values for name, values in found.items() if any(map(math.isfinite, values))}
    if not found:
        return None
    headline, values = next(iter(found.items()))
    label = METRICS[headline].label
    value, index = max((v, -k) for k, v in enumerate(values) if math.isfinite(v))
    best = history.evals[-index]
    styles = {name: f"line-{k % LINE_STYLES + 1}" for k, name in enumerate(METRICS)}
    curves = [
        Series(name=METRICS[name].label, style=styles[name], x=x, y=y, dots=True) for name, y in found.items()
    ]
    hover = [
        (s, "\n".join([_where(r), *(f"{METRICS[n].label} {text.percent(y[k])}" for n, y in found.items())]))
        for k, (r, s) in enumerate(zip(history.evals, x, strict=True))
    ]
    highest = max(v for y in found.values() for v in y if math.isfinite(v))
    return Figure(
        title="Validation accuracy",
        legend=[
            *((styles[n], METRICS[n].label) for n in found),
            ("best", f"best {label}"),
            *_resumed(history),
        ],
        note=f"best {text.percent(value)}",
        chart=_lines(
            history,
            curves,
            label=f"Validation accuracy over steps; best {label} {text.percent(value)}, at {_where(best)}.",
            format_y=lambda y: f"{y * 100:.3g}\u202f%",
            y_range=(None, 1.0 if highest > 0.9 else None),
            best=(x[-index], value),
            hover=hover,
        ),
    )


def _lr(history: History) -> Figure | None:
    x, lr = column(history.train, "step"), column(history.train, "lr")
    finite = [v for v in lr if math.isfinite(v)]
    if not finite:
        return None
    hover = [(s, f"{_where(r)}\nlr {text.sig(v, 5)}") for r, s, v in zip(history.train, x, lr, strict=True)]
    return Figure(
        title="Learning rate",
        legend=[("line-3", "learning rate"), *_resumed(history)],
        note=f"peak {text.sig(max(finite))}",
        chart=_lines(
            history,
            [Series(name="lr", style="line-3", x=x, y=lr)],
            label=f"Learning rate over steps, at most {text.sig(max(finite))}, last {text.sig(finite[-1])}.",
            format_y=lambda y: text.sig(y, 3),
            y_range=(0.0, None),
            hover=hover,
        ),
    )


def _throughput(history: History) -> Figure | None:
    x, rate = column(history.train, "step"), column(history.train, "images_per_s")
    if not any(map(math.isfinite, rate)):
        return None
    span = max(len(rate) // 40, 1)
    curves = [Series(name="images/s", style="line-2", x=x, y=smooth(rate, span))]
    legend = [("line-2", "training images a second")]
    if span > 1:
        curves.append(Series(name="raw", style="line-2", x=x, y=rate, faint=True))
        legend = [("line-2", f"smoothed over {span} records"), ("line-2 faint", "each record")]
    hover = [
        (s, f"{_where(r)}\n{text.sig(v)} images/s") for r, s, v in zip(history.train, x, rate, strict=True)
    ]
    mean = text.short(history.images_per_s)
    return Figure(
        title="Throughput",
        legend=[*legend, *_resumed(history)],
        note=f"mean {mean} images/s",
        chart=_lines(
            history,
            curves,
            label=f"Training images a second over steps; mean {mean}.",
            format_y=text.short,
            y_range=(0.0, None),
            hover=hover,
        ),
    )


def _time(history: History) -> Figure | None:
    slices = time_slices(history.train)
    if not slices or history.train_s <= 0:
        return None
    waiting = history.wait_s / history.train_s
    shares = ", ".join(f"{name} {text.percent(s / history.train_s, 1)}" for _, name, s in _parts(history)[:3])
    return Figure(
        title="Where a training step's time goes",
        legend=[(style, name) for style, name, _ in _parts(history)[:3]],
        note=f"waiting {text.percent(waiting, 1)}",
        chart=time_chart(slices, label=f"Shares of training time: {shares}.", format_x=text.steps),
    )


def _clock(history: History) -> Figure | None:
    """The whole run as one bar."""
    parts = [p for p in _parts(history) if p[2] > 0]
    total = sum(seconds for _, _, seconds in parts)
    if not total:
        return None
    bar = Markup("").join(
        Markup('<i class="{}" style="width:{:.3f}%"></i>').format(style, 100 * seconds / total)
        for style, _, seconds in parts
    )
    rows = Markup("").join(
        Markup('<li><i class="key {}"></i>{}<b>{}</b><span>{}</span></li>').format(
            style, name, text.duration(seconds), text.percent(seconds / total, 1)
        )
        for style, name, seconds in parts
    )
    chart = Markup('<div class="bar" aria-hidden="true">{}</div><ul class="split">{}</ul>').format(bar, rows)
    return Figure(title="Where the run's time went", note=text.duration(total), chart=chart)


def _parts(history: History) -> list[tuple[str, str, float]]:
    return [
        ("time-compute", "computing", history.compute_s),
        ("time-other", "other", history.other_s),
        ("time-wait", "waiting for data", history.wait_s),
        ("time-eval", "evaluating", history.eval_s),
        ("time-checkpoint", "saving checkpoints", history.checkpoint_s),
    ]


def _lines(history: History, curves: Sequence[Series], **options: Any) -> Markup:
    return line_chart(curves, x_max=history.last_step, format_x=text.steps, marks=history.resumes, **options)


def _resumed(history: History) -> list[tuple[str, str]]:
    return [("mark", "resumed here")] if history.resumes else []


def _where(record: Train | Eval) -> str:
    return f"step {text.count(record.step)} · epoch {record.epoch}"
