"""The records of a run: one dataclass a kind, and how each is stored as a line of ``records.jsonl`` and read again."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Record:
    """Something that happened, after `step` optimizer steps; `kind` names it in files.

    `time` is when it was stored, in seconds since 1970, None before. `more` has fields of a stored line that this
    version does not know: they are kept. A record that is not `stored` is only shown.
    """

    kind: ClassVar[str]
    stored: ClassVar[bool] = True
    step: int = 0
    more: Mapping[str, Any] = field(default_factory=dict, repr=False)
    time: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the kind first, the time last and only where there is one; mappings field by field."""
        plain: dict[str, Any] = {"kind": self.kind}
        for name in _names(type(self)):
            value = getattr(self, name)
            plain |= value if isinstance(value, Mapping) else {name: value}
        plain |= self.more
        return plain if self.time is None else plain | {"time": self.time}


@dataclass(frozen=True, kw_only=True)
class Opened(Record):
    """The run folder of a job is known, and its log takes lines."""

    kind: ClassVar[str] = "opened"
    stored: ClassVar[bool] = False
    path: Path


#: Takes every record of a job as it comes.
Listener = Callable[[Record], None]


@dataclass(frozen=True, kw_only=True)
class Start(Record):
    """A training begins at its first step. `decoder` decodes its images; None in records of earlier versions."""

    kind: ClassVar[str] = "start"
    decoder: str | None = None


@dataclass(frozen=True, kw_only=True)
class Resume(Record):
    """A training continues from the checkpoint of `step`. `decoder` is as in :class:`Start`."""

    kind: ClassVar[str] = "resume"
    decoder: str | None = None


@dataclass(frozen=True, kw_only=True)
class Train(Record):
    """The steps since the last such record, up to `step`; `epoch` counts from 1.

    `loss` is the mean of the finite ones, None without any. `seconds` are those of training, of which `wait_s` passed
    waiting for data and `compute_s` in the backend; in `copy_s` of the latter the device waited for its images (None:
    not measured), in `teacher_s` of it the teacher computed (None: there is none). `nonfinite_steps` had no finite
    loss; `overflow_steps` counts the skipped steps of the whole run.
    """

    kind: ClassVar[str] = "train"
    epoch: int
    loss: float | None
    lr: float
    images: int
    seconds: float
    wait_s: float
    compute_s: float
    copy_s: float | None = None
    teacher_s: float | None = None
    images_per_s: float
    nonfinite_steps: int = 0
    overflow_steps: int
    loss_scale: float


@dataclass(frozen=True, kw_only=True)
class Nonfinite(Record):
    """A step whose loss is not a finite number was skipped; `path` lists its samples (None: not written down)."""

    kind: ClassVar[str] = "nonfinite"
    epoch: int
    loss: str
    lr: float
    path: str | None


@dataclass(frozen=True, kw_only=True)
class BadImage(Record):
    """An image could not be read for the first time; `count` of its `split` could not so far.

    `index` is its number in the split, sorted by path.
    """

    kind: ClassVar[str] = "bad_image"
    split: str
    index: int
    path: str
    reason: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Eval(Record):
    """The result of an evaluation: `metrics` by name, stored as fields of the record beside the others.

    `expected` images were to be scored, `scored` were, `failed` could not be read. `best` is True for the best so far.
    `recall` is the share of each class that was recognised, in the order of the classes, None for a class without
    images. `loss` is the mean of -log p of the true class over the scored images, in nats, None where it is no finite
    number: what training minimises without smoothed or mixed labels. Records of earlier versions have neither.
    """

    kind: ClassVar[str] = "eval"
    epoch: int
    split: str
    metrics: Mapping[str, float]
    expected: int
    scored: int
    failed: int
    seconds: float
    best: bool
    recall: list[float | None] | None = None
    loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Saved(Record):
    """A checkpoint was written: `path` is its name, `blocked_s` of the `seconds` the training stood still for it."""

    kind: ClassVar[str] = "checkpoint"
    epoch: int
    seconds: float
    blocked_s: float | None = None
    path: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Fit(Record):
    """The length of a training was fitted to its time: it will end after `total` steps, which are `epochs`.

    `minutes` are those of ``train.minutes``, `trained_s` the seconds used by now. The fit expects `step_s` seconds a
    step and `eval_s` an evaluation.
    """

    kind: ClassVar[str] = "fit"
    total: int
    epochs: float
    minutes: float
    trained_s: float
    step_s: float
    eval_s: float


@dataclass(frozen=True, kw_only=True)
class End(Record):
    """A training is complete, `seconds` after it was started or resumed.

    `reason` says why it ended before its last epoch; None where it did not, and in records of earlier versions.
    """

    kind: ClassVar[str] = "end"
    seconds: float
    reason: str | None = None


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


@dataclass(frozen=True, kw_only=True)
class Unknown(Record):
    """A stored line that this version cannot interpret, all of it in `more`: of a newer version, or changed by hand."""

    kind: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the line as it was read."""
        return dict(self.more)


#: Every kind of record that a run folder can hold.
KINDS: Mapping[str, type[Record]] = {
    cls.kind: cls for cls in (Start, Resume, Train, Nonfinite, BadImage, Eval, Saved, Fit, End, Note)
}


def count_unknown(records: Iterable[Record]) -> int:
    """Return how many records this version cannot interpret."""
    return sum(isinstance(record, Unknown) for record in records)


def encode(record: Record) -> str:
    """Return the line of ``records.jsonl`` that holds `record`, with its end."""
    return json.dumps(record.to_dict()) + "\n"


def decode(line: str) -> Record | None:
    """Return the record that a line holds; None where it is no JSON object.

    Whatever version wrote it: fields that are new are kept in `more`, those that were not written yet have their
    defaults, and a line that lacks a field that has none, or of an unknown kind, becomes :class:`Unknown`.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return from_dict(found) if isinstance(found, dict) else None


def from_dict(found: Mapping[str, Any]) -> Record:
    """Return the record of what :meth:`Record.to_dict` gives; never fails, see :func:`decode`."""
    kind = found.get("kind")
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        return _unknown(found)
    types, needed = _LAYOUTS[cls].types, _LAYOUTS[cls].needed
    given: dict[str, Any] = {name: value for name, value in found.items() if name in types}
    more = {name: value for name, value in found.items() if name not in types and name != "kind"}
    if not all(_fits(value, types[name]) for name, value in given.items()):
        return _unknown(found)
    if cls is Eval:
        given["metrics"] = {name: more.pop(name) for name in [*more] if _fits(more[name], float)}
    if not needed <= given.keys():
        return _unknown(found)
    return cls(**given, more=more)


def _unknown(found: Mapping[str, Any]) -> Unknown:
    step, time = found.get("step"), found.get("time")
    return Unknown(
        step=step if type(step) is int else 0, time=time if _fits(time, float) else None, more=dict(found)
    )


def _names(cls: type[Record]) -> list[str]:
    """Return the fields of a kind of record in the order of a stored line, without kind, time and unknown ones."""
    return [f.name for f in dataclasses.fields(cls) if f.name not in ("more", "time")]


@dataclass(frozen=True)
class _Layout:
    """What a stored line of a kind may and must hold."""

    types: Mapping[str, Any]
    needed: frozenset[str]

    @classmethod
    def of(cls, kind: type[Record]) -> _Layout:
        hints, missing = typing.get_type_hints(kind), dataclasses.MISSING
        return cls(
            types={
                n: hints[n] for n in (*_names(kind), "time") if typing.get_origin(hints[n]) is not Mapping
            },
            needed=frozenset(
                f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is missing
            ),
        )


_LAYOUTS = {cls: _Layout.of(cls) for cls in KINDS.values()}


def _fits(value: Any, hint: Any) -> bool:
    """True where a JSON value is of a field's type; an integer is a number too."""
    if isinstance(hint, UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is list:
        return type(value) is list and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    return type(value) is hint or (hint is float and type(value) is int)
