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
    """A captioned chart, or numbers in its place where there are too few for a curve.

    `legend` pairs a style with its words, `note` is the one number to take away.
    """

    title: str
    chart: Markup
    legend: Sequence[tuple[str, str]] = ()
    note: str = ""


def training_figures(history: History, best: str | None = None) -> list[Figure]:
    """Return the figures that `history` has data for; `best` is the metric that decides which weights are kept."""
    made = (
        _loss(history),
        _metrics(history, best),
        _lr(history),
        _throughput(history),
        _time(history),
        _clock(history),
    )
    return [figure for figure in made if figure is not None]


def _loss(history: History) -> Figure | None:
    x, raw = column(history.train, "step"), column(history.train, "loss")
    finite = [v for v in raw if math.isfinite(v)]
    evals, validated = column(history.evals, "step"), column(history.evals, "loss")
    of_val = [v for v in validated if math.isfinite(v)]
    if not finite and not of_val:
        return None
    span = max(len(raw) // 40, 1)
    last = sum(finite[-span:]) / len(finite[-span:]) if finite else math.nan
    ends = [("training", last)] if finite else []
    ends += [("validation", of_val[-1])] if of_val else []
    if len(finite) < 2 and len(of_val) < 2:
        return Figure(title="Loss", chart=number_list([(name, text.loss(v), "") for name, v in ends]))
    smoothed = smooth(raw, span)
    curves, legend, tips = [], [], dict[float, str]()
    if finite:
        curves.append(Series(name="loss", style="line-1", x=x, y=smoothed))
        legend.append(("line-1", f"training, smoothed over {span} records" if span > 1 else "training"))
        tips = {
            s: f"{_where(r)}\nloss {text.loss(v)}" + (f"\nsmoothed {text.loss(m)}" if span > 1 else "")
            for r, s, v, m in zip(history.train, x, raw, smoothed, strict=True)
        }
    if span > 1:
        curves.append(Series(name="raw", style="line-1", x=x, y=raw, faint=True))
        legend.append(("line-1 faint", "each record"))
    if of_val:
        curves.append(Series(name="validation", style="line-2", x=evals, y=validated, dots=True))
        legend.append(("line-2", "validation, plain labels"))
        for r, s, v in zip(history.evals, evals, validated, strict=True):
            if math.isfinite(v):
                tips[s] = f"{tips.get(s) or _where(r)}\nvalidation loss {text.loss(v)}"
    said = "; ".join(f"{name} {text.loss(v)} at the end" for name, v in ends)
    return Figure(
        title="Loss",
        legend=[*legend, *_resumed(history)],
        note=", ".join(f"{name} {text.loss(v)}" for name, v in ends),
        chart=_lines(
            history,
            curves,
            label=f"Loss over steps: {said}.",
            format_y=lambda y: text.sig(y, 3),
            hover=sorted(tips.items()),
        ),
    )


def _metrics(history: History, wanted: str | None) -> Figure | None:
    x = column(history.evals, "step")
    found = {name: column(history.evals, name) for name in METRICS}
    found = {name: values for name, values in found.items() if any(map(math.isfinite, values))}
    if not found:
        return None
    headline = wanted if wanted in found else next(iter(found))
    values = found[headline]
    label = METRICS[headline].label
    value, index = max((v, -k) for k, v in enumerate(values) if math.isfinite(v))
    best = history.evals[-index]
    split = best.split
    if sum(map(math.isfinite, values)) == 1:  # a number, and no curve of one point
        last = [(METRICS[name].label, text.percent(y[-index]), "") for name, y in found.items()]
        return Figure(title=f"Accuracy on {split}", note=_where(best), chart=number_list(last))
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
        title=f"Accuracy on {split}",
        legend=[
            *((styles[n], METRICS[n].label) for n in found),
            (f"best {styles[headline]}", f"best {label}"),
            *_resumed(history),
        ],
        note=f"best {label} {text.percent(value)}",
        chart=_lines(
            history,
            curves,
            label=f"Accuracy on {split} over steps; best {label} {text.percent(value)}, at {_where(best)}.",
            format_y=lambda y: f"{y * 100:.3g}\u202f%",
            y_range=(None, 1.0 if highest > 0.9 else None),
            best=(x[-index], value, styles[headline]),
            hover=hover,
        ),
    )


def _lr(history: History) -> Figure | None:
    x, lr = column(history.train, "step"), column(history.train, "lr")
    finite = [v for v in lr if math.isfinite(v)]
    if not finite:
        return None
    if len(finite) == 1:
        return Figure(title="Learning rate", chart=number_list([("learning rate", text.sig(finite[0]), "")]))
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
    known = [v for v in rate if math.isfinite(v)]
    if not known:
        return None
    if len(known) == 1:
        return Figure(
            title="Throughput", chart=number_list([("training", f"{text.rate(known[0])} images/s", "")])
        )
    span = max(len(rate) // 40, 1)
    curves = [Series(name="images/s", style="line-2", x=x, y=smooth(rate, span))]
    legend = [("line-2", "training images a second")]
    if span > 1:
        curves.append(Series(name="raw", style="line-2", x=x, y=rate, faint=True))
        legend = [("line-2", f"smoothed over {span} records"), ("line-2 faint", "each record")]
    hover = [
        (s, f"{_where(r)}\n{text.rate(v)} images/s") for r, s, v in zip(history.train, x, rate, strict=True)
    ]
    mean = text.rate(history.images_per_s)
    return Figure(
        title="Throughput",
        legend=[*legend, *_resumed(history)],
        note=f"mean {mean} images/s",
        chart=_lines(
            history,
            curves,
            label=f"Training images a second over steps; mean {mean}.",
            format_y=text.tick,
            y_range=(0.0, None),
            hover=hover,
        ),
    )


def _time(history: History) -> Figure | None:
    slices = time_slices(history.train)
    if len(slices) < 2 or history.train_s <= 0:  # one stretch is what the bar of the whole run shows
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
    rows = number_list(
        [(name, text.duration(seconds), text.percent(seconds / total, 1)) for _, name, seconds in parts],
        [style for style, _, _ in parts],
    )
    chart = Markup('<div class="bar" aria-hidden="true">{}</div>{}').format(bar, rows)
    return Figure(title="Where the run's time went", note=text.duration(total), chart=chart)


def number_list(rows: Sequence[tuple[str, str, str]], styles: Sequence[str] = ()) -> Markup:
    """Return names with a number and what is to say of it, one under the other; `styles` are their colours."""
    keys = [Markup('<i class="key {}"></i>').format(style) for style in styles] or [Markup("")] * len(rows)
    items = (
        Markup("<li>{}{}<b>{}</b>{}</li>").format(
            key, name, value, Markup("<span>{}</span>").format(more) if more else ""
        )
        for key, (name, value, more) in zip(keys, rows, strict=True)
    )
    return Markup('<ul class="split">{}</ul>').format(Markup("").join(items))


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
