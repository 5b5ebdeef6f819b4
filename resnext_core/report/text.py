"""Numbers as people read them; anything that is not a finite number reads as a dash."""

from __future__ import annotations

import math
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
    """Return a number of steps: as it is below 1000, else as :func:`short` does."""
    value = number(value)
    return short(value) if not abs(value) < 1000 else f"{value:.4g}"


def sig(value: Any, digits: int = 4) -> str:
    """Return a number with `digits` significant digits, in powers of ten when very small or large."""
    value = number(value)
    if not math.isfinite(value):
        return DASH
    mantissa, e, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def size(value: Any) -> str:
    """Return bytes as ``438.6 MiB``."""
    value = number(value)
    if not math.isfinite(value):
        return DASH
    for factor, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= factor:
            return f"{value / factor:.1f}\u202f{unit}"
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
