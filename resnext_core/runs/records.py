"""The records of a run: one dataclass a kind; what is written to ``records.jsonl``, shown, and read again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Record:
    """Something that happened, after `step` optimizer steps; `kind` names it in files.

    A record that is not `stored` is for whoever watches alone.
    """

    kind: ClassVar[str]
    stored: ClassVar[bool] = True
    step: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types, the kind first."""
        return {"kind": self.kind} | dataclasses.asdict(self)


#: Takes every record of a job as it comes.
Listener = Callable[[Record], None]


@dataclass(frozen=True, kw_only=True)
class Start(Record):
    """A training begins at its first step."""

    kind: ClassVar[str] = "start"


@dataclass(frozen=True, kw_only=True)
class Resume(Record):
    """A training goes on from a checkpoint."""

    kind: ClassVar[str] = "resume"


@dataclass(frozen=True, kw_only=True)
class End(Record):
    """A training is complete, `seconds` after it was started or resumed."""

    kind: ClassVar[str] = "end"
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Note(Record):
    """A line for people."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True, kw_only=True)
class Progress(Record):
    """How far the work `what` is, in its own units; a training adds what its last step did."""

    kind: ClassVar[str] = "progress"
    stored: ClassVar[bool] = False
    what: str
    done: int
    total: int
    epoch: int | None = None
    loss: float | None = None
    lr: float | None = None
    images: int | None = None
