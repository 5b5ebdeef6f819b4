"""The plot of a learning-rate range test: one HTML page that loads nothing from anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from resnext_core.files import write_atomic
from resnext_core.report import text
from resnext_core.report.charts import Series, line_chart
from resnext_core.report.page import render_page


@dataclass(frozen=True, kw_only=True)
class LrPlot:
    """What is plotted: the losses at rising rates, `suggested` by name, and `facts` by name."""

    title: str
    lead: str
    facts: Mapping[str, str]
    lrs: Sequence[float]
    losses: Sequence[float]
    smoothed: Sequence[float]
    suggested: Mapping[str, float]


def write_lr_plot(path: Path, data: LrPlot) -> None:
    """Write the page atomically; raises DataError when it cannot be written."""
    suggested = [(name, text.sig(lr, 3)) for name, lr in data.suggested.items()]
    write_atomic(path, render_page("lr_plot.html.j2", data=data, chart=_chart(data), suggested=suggested))


def _chart(data: LrPlot) -> Markup:
    low = data.lrs[0]
    places = [math.log10(lr / low) for lr in data.lrs]
    lowest = min(data.smoothed)
    return line_chart(
        [
            Series(name="smoothed", style="line-1", x=places, y=data.smoothed),
            Series(name="loss", style="line-1", x=places, y=data.losses, faint=True),
        ],
        label=f"Loss over the learning rate, from {text.sig(data.lrs[0])} to {text.sig(data.lrs[-1])}; the smoothed "
        f"loss is {text.sig(lowest)} at its lowest.",
        x_max=places[-1],
        x_name="lr",
        whole_x=False,
        format_x=lambda x: text.sig(low * 10**x, 2),
        format_y=lambda y: text.sig(y, 3),
        marks=[math.log10(lr / low) for lr in data.suggested.values() if data.lrs[0] <= lr <= data.lrs[-1]],
    )
