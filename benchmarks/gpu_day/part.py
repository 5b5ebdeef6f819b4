"""What a part of the day is: what it runs, for how long at most, and what its end means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_day.place import Place
from gpu_day.process import Ended

#: What a part's end means. Only the first is fine; the last three say that it did not run.
RIGHT, WRONG, FAILED, CUT = "right", "WRONG", "failed", "out of time"
MISSING, NO_TIME, STOPPED = "missing", "no time left", "stopped"


@dataclass(frozen=True, kw_only=True)
class Context:
    """Where and how the parts run; `found` is what those before have found, by name."""

    place: Place
    python: str
    smoke: bool
    cpus: int
    found: Mapping[str, Any] = field(default_factory=dict)

    def file(self, name: str) -> Path:
        """Return where the part called so writes what it finds."""
        return self.place.work / f"{name}.json"


@dataclass(frozen=True, kw_only=True)
class Command:
    """What is run: the words, and what is added to the environment."""

    words: list[str]
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a part's end means, in a word and a line; `data` is what it found, `table` lines to show last."""

    status: str
    said: str
    data: Any = None
    table: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part: at most so many `seconds`, of which `least` must be left; not run without the modules that it `needs`.

    What it prints goes to the end of ``log``.log, and to `judge` as text.
    """

    name: str
    what: str
    seconds: float
    command: Callable[[Context, float], Command | str]
    judge: Callable[[Context, Ended, str], Verdict]
    log: str = ""
    least: float = 10.0
    needs: tuple[str, ...] = ()
