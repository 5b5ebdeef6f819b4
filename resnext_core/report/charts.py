"""Charts as inline SVG: lines, stacked time shares, confusion heat map. Colours come from style.css."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from resnext_core.report.series import TimeSlice, thin

WIDTH, HEIGHT = 520.0, 246.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 14.0, 12.0, 26.0


@dataclass(frozen=True, kw_only=True)
class Series:
    """A curve: `style` is a class line-1 .. line-4 of style.css; `faint` ones lie behind the others."""

    name: str
    style: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar over `left`..`right` from `low` to `high`, 0 to 1; `style` is a class of style.css, `said` a tooltip."""

    left: float
    right: float
    low: float
    high: float
    style: str
    said: str = ""


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """Return an element; every attribute and every child that is not Markup is escaped.

    ``class_`` is class, other underscores are hyphens; attributes of None are left out.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
            words.append(f'{key.rstrip("_").replace("_", "-")}="{escape(text)}"')
    return Markup("<{}>{}</{}>").format(
        Markup(" ".join(words)), Markup("").join(escape(child) for child in children), Markup(name)
    )


def ticks(low: float, high: float, wanted: int = 5, *, whole: bool = False) -> list[float]:
    """Return about `wanted` round numbers (1, 2, 2.5 or 5 times a power of ten) within low..high.

    With `whole` all are whole numbers: there is no half step.
    """
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return []
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [m * power for m in (1, 2, 2.5, 5, 10)]
    if whole:
        steps = [step for step in steps if step >= 1 and step == round(step)] or [1.0]
    step = min(steps, key=lambda s: abs(math.log(s / rough)))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_max: float,
    x_name: str = "step",
    whole_x: bool = True,
    format_x: Callable[[float], str],
    format_y: Callable[[float], str],
    y_range: tuple[float | None, float | None] = (None, None),
    marks: Sequence[float] = (),
    best: tuple[float, float, str] | None = None,
    hover: Iterable[tuple[float, str]] = (),
) -> Markup:
    """Return curves over 0..`x_max`, which are `x_name`; values that are not finite break a curve.

    With `whole_x` the horizontal axis has whole numbers only, as steps are.

    `label` is the text alternative. `y_range` fixes an end of the axis, None fits it. `marks` are dotted
    vertical lines, `best` rings a point in a style, `hover` gives (x, text) for the tooltip.
    """
    low, high = _range(series, y_range)
    frame = _Frame(x_max=max(x_max, 1.0), low=low, high=high)
    parts = [_grid(frame, format_x, format_y, axis=x_name, whole=whole_x)]
    parts += [
        tag("line", class_="mark", x1=frame.x(m), x2=frame.x(m), y1=_TOP, y2=HEIGHT - _BOTTOM) for m in marks
    ]
    for curve in sorted(series, key=lambda s: not s.faint):
        style = f"{curve.style} faint" if curve.faint else curve.style
        xs, ys = thin(curve.x, curve.y)
        for run in _runs(xs, ys):
            points = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in run)
            if len(run) > 1:
                parts.append(tag("polyline", class_=style, points=points))
            if (curve.dots and len(xs) <= 60) or (len(run) == 1 and not curve.faint):
                parts += [
                    tag("circle", class_=f"{style} dot", cx=frame.x(x), cy=frame.y(y), r=3) for x, y in run
                ]
    if best is not None:
        parts.append(tag("circle", class_=f"best {best[2]}", cx=frame.x(best[0]), cy=frame.y(best[1]), r=6))
    parts.append(tag("line", class_="cursor", x1=0, x2=0, y1=_TOP, y2=HEIGHT - _BOTTOM))
    tips = [(round(frame.x(x), 1), text) for x, text in _every(list(hover), 250)]
    return _svg(parts, WIDTH, HEIGHT, label=label, hover=tips)


def time_chart(slices: Sequence[TimeSlice], *, label: str, format_x: Callable[[float], str]) -> Markup:
    """Return stacked bars of the shares of training time: computing at the bottom, waiting on top."""
    frame = _Frame(x_max=max((s.end for s in slices), default=1.0), low=0.0, high=1.0)
    parts, hover = [_grid(frame, format_x, lambda y: f"{y * 100:.0f}\u202f%", whole=True)], []
    for part in slices:
        left, right = frame.x(part.start), frame.x(part.end)
        gap = min(1.0, (right - left) / 5)
        base = 0.0
        for name, share in (("compute", part.compute), ("other", part.other), ("wait", part.wait)):
            if share > 0:
                parts.append(
                    tag(
                        "rect",
                        class_=f"time-{name}",
                        x=left + gap / 2,
                        width=max(right - left - gap, 0.3),
                        y=frame.y(base + share),
                        height=frame.y(base) - frame.y(base + share),
                    )
                )
                base += share
        text = (
            f"steps {format_x(part.start)} to {format_x(part.end)}\ncomputing {part.compute:.1%}"
            f"\nwaiting for data {part.wait:.1%}\nother {part.other:.1%}"
        )
        hover.append((round((left + right) / 2, 1), text))
    parts.append(tag("line", class_="cursor", x1=0, x2=0, y1=_TOP, y2=HEIGHT - _BOTTOM))
    return _svg(parts, WIDTH, HEIGHT, label=label, hover=hover)


def bar_chart(bars: Sequence[Bar], *, label: str, y_max: float = 1.0, diagonal: bool = False) -> Markup:
    """Return bars over shares from 0 to 1, up to `y_max`; `diagonal` draws where both axes are the same."""
    frame = _Frame(x_max=1.0, low=0.0, high=y_max)
    parts = [_grid(frame, _whole_percent, _whole_percent, axis="")]
    for bar in bars:
        left, right = frame.x(bar.left) + 0.5, frame.x(bar.right) - 0.5
        top, base = frame.y(bar.high), frame.y(bar.low)
        parts.append(
            tag("rect", class_=bar.style, x=left, width=right - left, y=top, height=max(base - top, 0.3))
        )
    if diagonal:
        ends = {"x1": frame.x(0), "y1": frame.y(0), "x2": frame.x(1), "y2": frame.y(1)}
        parts.append(tag("line", class_="mark", **ends))
    parts.append(tag("line", class_="cursor", x1=0, x2=0, y1=_TOP, y2=HEIGHT - _BOTTOM))
    hover = [(round(frame.x((bar.left + bar.right) / 2), 1), bar.said) for bar in bars if bar.said]
    return _svg(parts, WIDTH, HEIGHT, label=label, hover=hover)


def _whole_percent(share: float) -> str:
    return f"{share * 100:.3g}\u202f%"


def heat_map(confusion: NDArray[np.int64], classes: Sequence[str], *, label: str) -> Markup:
    """Return the confusion matrix [true, predicted] for up to about 30 classes.

    Right answers and mistakes have a colour of their own; its strength is the square root of the share of
    the true class, so that rare mistakes can be seen. Counts stand in the cells, except zeros.
    """
    size = len(classes)
    names = [name if len(name) <= 14 else f"{name[:13]}…" for name in classes]
    longest = max((len(name) for name in names), default=1)
    cell = max(22.0, min(46.0, 520.0 / max(size, 1)))
    slanted = longest * 6.6 > cell - 4
    left = 30 + longest * 6.8
    top = 40 + (longest * 4.9 if slanted else 10)
    right = 12 + (longest * 4.9 if slanted else 0)
    totals = confusion.sum(axis=1)
    parts = []
    for row in range(size):
        y = top + row * cell
        parts.append(tag("text", names[row], class_="tick end", x=left - 8, y=y + cell / 2 + 4))
        x = left + row * cell + cell / 2
        turn = f"rotate(-45 {x + 3:.1f} {top - 8:.1f})" if slanted else None
        style = "tick" if slanted else "tick middle"
        parts.append(tag("text", names[row], class_=style, x=x, y=top - 8, transform=turn))
        for column in range(size):
            value = int(confusion[row, column])
            share = value / totals[row] if totals[row] else 0.0
            parts.append(_cell(left + column * cell, y, cell, value, share, classes[row], classes[column]))
    side = size * cell
    middle = f"rotate(-90 12 {top + side / 2:.1f})"
    parts.append(tag("text", "true class", class_="axis middle", x=12.0, y=top + side / 2, transform=middle))
    parts.append(tag("text", "predicted class", class_="axis middle", x=left + side / 2, y=14))
    return _svg(parts, left + side + right, top + side + 6, label=label, kind="heat")


def _cell(x: float, y: float, cell: float, value: int, share: float, true: str, predicted: str) -> Markup:
    right = true == predicted
    strength = math.sqrt(share)
    style = "hit" if right else "miss"
    parts = [
        tag("title", f"{true} → {predicted}: {value} ({share:.1%} of {true})"),
        tag("rect", class_="empty", x=x + 0.75, y=y + 0.75, width=cell - 1.5, height=cell - 1.5, rx=3),
    ]
    if value:
        box = {"x": x + 0.75, "y": y + 0.75, "width": cell - 1.5, "height": cell - 1.5, "rx": 3}
        parts.append(tag("rect", class_=style, fill_opacity=cell_opacity(strength), **box))
        small = "tiny " if len(str(value)) * 7.5 > cell else ""
        ink = ink_of(strength, right=right)
        parts.append(tag("text", value, class_=f"{small}middle {ink}", x=x + cell / 2, y=y + cell / 2 + 4))
    return tag("g", *parts)


def cell_opacity(strength: float) -> float:
    """Return the opacity of a cell's colour; even a rare mistake can be told from none."""
    return 0.12 + 0.88 * strength


def ink_of(strength: float, *, right: bool) -> str:
    """Return the class of a count that can be read on its cell in the light and in the dark theme.

    ``ink`` is the text's colour, ``ink-over`` its opposite, ``ink-mid`` one in light, the other in dark.
    """
    if strength < 0.57:
        return "ink"
    return "ink-over" if strength > (0.75 if right else 0.88) else "ink-mid"


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """The plot area: from data to SVG units."""

    x_max: float
    low: float
    high: float

    def x(self, value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * value / self.x_max

    def y(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - self.low) / (self.high - self.low)


def _range(series: Sequence[Series], fixed: tuple[float | None, float | None]) -> tuple[float, float]:
    """Fit the y axis to the curves; of faint ones the outer hundredths may be cut off."""
    ends = []
    for curve in series:
        values = np.asarray([y for y in curve.y if math.isfinite(y)])
        if values.size:
            ends += np.percentile(values, [1, 99] if curve.faint else [0, 100]).tolist()
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low = low - pad if fixed[0] is None else min(fixed[0], low)
    high = high + pad if fixed[1] is None else max(fixed[1], high)
    return low, high if high > low else low + 1.0


def _grid(
    frame: _Frame,
    format_x: Callable[[float], str],
    format_y: Callable[[float], str],
    *,
    axis: str = "step",
    whole: bool = False,
) -> Markup:
    parts = []
    for value in ticks(frame.low, frame.high, 4):
        y = frame.y(value)
        parts.append(tag("line", class_="rule", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y))
        parts.append(tag("text", format_y(value), class_="tick end", x=_LEFT - 8, y=y + 4))
    for index, value in enumerate(ticks(0, frame.x_max, 5, whole=whole)):
        style = "tick middle" if index % 2 == 0 else "tick middle minor"
        parts.append(tag("text", format_x(value), class_=style, x=frame.x(value), y=HEIGHT - _BOTTOM + 18))
    beside = _LEFT - 9 - 4 * len(format_x(0.0))  # left of the first number, whose middle is at _LEFT
    parts.append(tag("text", axis, class_="tick end", x=beside, y=HEIGHT - _BOTTOM + 18))
    base = HEIGHT - _BOTTOM
    parts.append(tag("line", class_="base", x1=_LEFT, x2=WIDTH - _RIGHT, y1=base, y2=base))
    return tag("g", *parts)


def _runs(xs: Sequence[float], ys: Sequence[float]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _every(points: list[tuple[float, str]], limit: int) -> list[tuple[float, str]]:
    return points[:: max(1, -(-len(points) // limit))]


def _svg(
    parts: Iterable[Markup],
    width: float,
    height: float,
    *,
    label: str,
    hover: Sequence[tuple[float, str]] = (),
    kind: str = "chart",
) -> Markup:
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        class_=kind,
        role="img",
        aria_label=label,
        data_hover=json.dumps(hover) if hover else None,
        # A heat map keeps a size at which its counts can be read, and scrolls where there is less room.
        style=f"min-width:{0.8 * width:.0f}px;max-width:{1.12 * width:.0f}px" if kind == "heat" else None,
    )
