"""Numbers as people read them; anything that is not a finite number reads as a dash."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

DASH = "–"


def number(value: Any) -> float:
    """Return `value` as a float, NaN where it is no number (None, text, bool)."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return math.nan
    return float(value)


def percent(share: Any, digits: int = 2) -> str:
    """Return a share 0..1 as ``93.42 %``."""
    value = number(share)
    return f"{value * 100:.{digits}f}\u202f%" if math.isfinite(value) else DASH


def points(value: Any) -> str:
    """Return a difference of shares in points of percent: ``+1.25``."""
    value = number(value)
    return f"{value * 100:+.2f}".replace("-", "\u2212") if math.isfinite(value) else DASH


def count(value: Any) -> str:
    """Return an integer with narrow spaces between thousands: ``49 984``."""
    value = number(value)
    return f"{value:,.0f}".replace(",", "\u202f") if math.isfinite(value) else DASH


def short(value: Any) -> str:
    """Return a large number with three significant digits and a unit: ``22.9 G``, ``115 M``, ``1.2 k``."""
    value = number(value)
    if not math.isfinite(value):
        return DASH
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor * 0.9995:
            return f"{_digits(value / factor)}\u202f{unit}"
    return _digits(value)


def steps(value: Any) -> str:
    """Return a number of steps as a whole number, ``12 500``; in thousands or millions from 100 000 on."""
    value = number(value)
    return short(value) if abs(value) >= 100_000 else count(value)


def tick(value: Any) -> str:
    """Return a number beside an axis: with the digits that it needs below 1000, else as :func:`short` does."""
    value = number(value)
    return short(value) if not abs(value) < 1000 else f"{value:.4g}"


def rate(value: Any) -> str:
    """Return images a second: in whole numbers from 10 on, as the terminal prints them."""
    value = number(value)
    return count(value) if value >= 10 else sig(value, 2)


def loss(value: Any) -> str:
    """Return a loss as the terminal prints it: ``0.1234``; in powers of ten where it is very small or large."""
    value = number(value)
    return sig(value) if not 1e-3 <= abs(value) < 1e5 else f"{value:.4f}"


def change(value: Any) -> str:
    """Return a difference of losses with its sign: ``+0.1234``."""
    value = number(value)
    return f"{value:+.4f}".replace("-", "\u2212") if math.isfinite(value) else DASH


def moment(seconds: Any) -> str:
    """Return a time in seconds since 1970 as ``2026-11-22 14:30 UTC``."""
    value = number(seconds)
    if not 0 <= value < 253_402_300_800:  # the year 10000, which strftime writes otherwise
        return DASH
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(value))


def sig(value: Any, digits: int = 4) -> str:
    """Return a number with `digits` significant digits, in powers of ten when very small or large."""
    value = number(value)
    if not math.isfinite(value):
        return DASH
    mantissa, e, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def size(value: Any) -> str:
    """Return bytes as the terminal prints them: ``438.6 MB``, ``1.25 GB``; below a megabyte as ``12.3 kB``."""
    value = number(value)
    if not math.isfinite(value):
        return DASH
    for factor, unit, digits in ((1e9, "GB", 2), (1e6, "MB", 1), (1e3, "kB", 1)):
        if value >= factor:
            return f"{value / factor:.{digits}f}\u202f{unit}"
    return f"{value:.0f}\u202fB"


def duration(seconds: Any) -> str:
    """Return seconds as ``2 h 13 min``, ``4 min 12 s``, ``8.3 s`` or ``12 ms``."""
    value = number(seconds)
    if not math.isfinite(value):
        return DASH
    if value >= 3600:
        hours, minutes = divmod(round(value / 60), 60)
        return f"{hours}\u202fh {minutes}\u202fmin"
    if value >= 59.95:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes}\u202fmin {rest}\u202fs"
    if value >= 1:
        return f"{value:.1f}\u202fs"
    return f"{value * 1e3:.0f}\u202fms"


def latency(value: Any) -> str:
    """Return the p50 and p99 of an image, ``12.3 / 15``, from a mapping with image_p50 and image_p99 (ms)."""
    if not isinstance(value, Mapping):
        return DASH
    return f"{sig(value.get('image_p50'), 3)} / {sig(value.get('image_p99'), 3)}"


def fact(value: Any) -> str:
    """Return any value of a summary as text."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value) if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return sig(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(fact(v) for v in value)
    return str(value)


def _digits(value: float) -> str:
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.3g}"
