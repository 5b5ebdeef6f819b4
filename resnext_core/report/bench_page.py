"""The page of ``bench all``: a bar and a row of a table for every way of serving; it loads nothing from anywhere."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from resnext_core.files import write_atomic
from resnext_core.report import text
from resnext_core.report.charts import tag, ticks
from resnext_core.terminal import printable

_WIDTH, _BAR, _STEP, _TOP, _BOTTOM = 1040.0, 15.0, 30.0, 6.0, 26.0
#: Width of a character of the labels and of the numbers, at 12 px.
_CHARACTER = 6.7


@dataclass(frozen=True, kw_only=True)
class PageRow:
    """A row: its rate with the least and the greatest of the rounds, and what the table says, in the page's order."""

    label: str
    precision: str
    rate: float
    low: float
    high: float
    cells: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class PageData:
    """What the page says: `columns` name the cells of each row, `skipped` are labels and reasons, `facts` by name."""

    title: str
    lead: str
    facts: Mapping[str, str]
    rows: Sequence[PageRow]
    columns: Sequence[str]
    skipped: Sequence[tuple[str, str]]


def write_bench_page(path: Path, data: PageData) -> None:
    """Write the page atomically; raises DataError when it cannot be written."""
    folder = importlib.resources.files("resnext_core.report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((folder / "bench.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        data=data, chart=bars(data.rows), style=Markup((folder / "style.css").read_text(encoding="utf-8"))
    )
    write_atomic(path, printable(page.strip()) + "\n")


def _rate(value: float) -> str:
    return text.sig(value) if abs(value) < 1e4 else text.count(value)


def bars(rows: Sequence[PageRow]) -> Markup:
    """Return a horizontal bar a row, with the rate at its end and a line from the least to the greatest round."""
    most = max(max(row.high, row.rate) for row in rows)
    names = [row.label if row.precision in row.label else f"{row.label}, {row.precision}" for row in rows]
    left = 12 + _CHARACTER * max(map(len, names))
    right = 16 + _CHARACTER * max(len(_rate(row.rate)) for row in rows)
    height = _TOP + _STEP * len(rows) + _BOTTOM
    base = height - _BOTTOM

    def x(rate: float) -> float:
        return left + (_WIDTH - left - right) * rate / most

    parts = []
    for value in ticks(0, most, 5):
        parts.append(tag("line", class_="rule", x1=x(value), x2=x(value), y1=_TOP, y2=base))
        parts.append(tag("text", _rate(value), class_="tick middle", x=x(value), y=base + 18))
    for place, (row, name) in enumerate(zip(rows, names, strict=True)):
        top = _TOP + _STEP * place + (_STEP - _BAR) / 2
        middle = top + _BAR / 2
        said = f"{row.label}: {_rate(row.rate)} images/s, {_rate(row.low)} to {_rate(row.high)} in the rounds"
        parts.append(
            tag(
                "g",
                tag("title", said),
                tag("text", name, class_="end", x=left - 8, y=middle + 4),
                tag("rect", class_="share", x=left, width=max(x(row.rate) - left, 0.5), y=top, height=_BAR, rx=2),
                tag("line", class_="whisker", x1=x(row.low), x2=x(row.high), y1=middle, y2=middle),
                tag("text", _rate(row.rate), class_="value", x=x(max(row.high, row.rate)) + 6, y=middle + 4),
            )
        )  # fmt: skip
    parts.append(tag("line", class_="base", x1=left, x2=left, y1=_TOP, y2=base))
    fastest = f"{rows[0].label} is the fastest with {_rate(rows[0].rate)}"
    return tag(
        "svg", *parts, viewBox=f"0 0 {_WIDTH:.0f} {height:.0f}", class_="chart", role="img",
        aria_label=f"Images per second of {len(rows)} ways of serving; {fastest}.",
    )  # fmt: skip
