"""Patterns of the names of shards: braces that count or list."""

from __future__ import annotations

import re

from resnext_core.errors import DataError

_BRACES = re.compile(r"\{([^{}]*)\}")
_SPAN = re.compile(r"(\d+)\.\.(\d+)")
#: More shards than this are a slip of the keyboard.
_MOST = 1_000_000


def expanded(pattern: str) -> list[str]:
    """Return the texts of a pattern with braces: ``{000..127}`` counts, with leading zeros, ``{a,b}`` lists."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    inside = match[1]
    if (span := _SPAN.fullmatch(inside)) is not None:
        first, last = int(span[1]), int(span[2])
        if not first <= last < first + _MOST:
            raise DataError(f"{pattern}: {{{inside}}} is not a range of at most {_MOST} shards")
        width = len(span[1]) if span[1].startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(first, last + 1)]
    elif "," in inside:
        choices = inside.split(",")
    else:
        raise DataError(f"{pattern}: {{{inside}}} must be a range like 000..127 or a list like a,b")
    before, after = pattern[: match.start()], pattern[match.end() :]
    found = [before + choice + rest for choice in choices for rest in expanded(after)]
    if len(found) > _MOST:
        raise DataError(f"{pattern} stands for more than {_MOST} shards")
    return found
