"""Progress counters: each rank counts its progress in a small file, so that the launcher can find one that hangs."""

from __future__ import annotations

import os
from pathlib import Path

#: Environment variable with the file in which a rank counts; the launcher sets it.
VARIABLE = "RESNEXT_ASCEND_BEAT"
#: What a rank writes before it looks for the others, and once it has found them.
JOINING, JOINED = "joining", "joined"

_count, _last = 0, ""


def last() -> str:
    """Return the last progress, '' before the first."""
    return _last


def beat(what: str) -> None:
    """Count one more piece of progress, `what`; writes nothing without a launcher."""
    global _count, _last
    _last = what
    path = os.environ.get(VARIABLE)
    if not path:
        return
    _count += 1
    # The same few bytes in place: no flush, no rename. A reader that meets half of it looks again.
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(f"{_count} {what}\n")


def read(path: Path) -> tuple[int, str]:
    """Return a rank's last count and progress, (0, "") before the first."""
    try:
        number, _, what = path.read_text(encoding="utf-8", errors="replace").strip().partition(" ")
    except OSError:
        return 0, ""
    return (int(number), what) if number.isdecimal() else (0, "")
