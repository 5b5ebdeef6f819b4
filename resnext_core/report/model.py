"""What a report is made from: plain data that any command can gather; every part may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from resnext_core.runs.records import Record

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One evaluated image: `thumbnail` as a Pillow image or the bytes of a JPEG or PNG file.

    `true` and `predicted` are class names, `probability` (0..1) is that of the predicted class. `link` is a URL,
    relative to the report, of the file named `path`; empty for what is no file.
    """

    thumbnail: Image | bytes
    true: str
    predicted: str
    probability: float
    path: str = ""
    link: str = ""


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """A file that a run has: `name` as shown, what it `holds`, its `link`, a URL relative to the report.

    `size` in bytes is that of a file which no longer grows, None of others.
    """

    name: str
    holds: str
    link: str
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class NextStep:
    """A command that can be typed next, and what it does."""

    does: str
    command: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """Everything a report shows; a section whose data is missing is left out.

    `summary`: ``parameters`` and ``macs`` (integers), ``images_per_s`` (training), ``wall_s``, ``backend``,
    ``device``; rates missing here are taken from the records. Other keys are shown as facts below the title.
    `records`: those of the run folder, in order. `evaluation`: ``top1``, ``top5`` (shares 0..1), ``top1_interval``,
    ``top5_interval`` (low, high), ``expected``, ``scored``, ``failed``, ``failures`` (path to reason, or paths),
    ``confusion`` (classes, classes) counts [true, predicted] and ``classes`` (names), and ``calibration`` as
    :meth:`~resnext_core.serving.calibration.Calibration.to_dict` gives it; other scalars are shown as facts.
    `evaluation` has ``split`` too, the part of the data. `best` is the metric that decides which weights are kept.
    `samples_missing`: images that were chosen as samples and cannot be read any more. `images`: how many each class
    has, by part of the data, ``train`` first.
    `artefacts`: dicts of ``path``, ``size`` (bytes), ``digest``, ``format`` and ``link``, a relative URL.
    `validations`: dicts of ``name``, ``backend``, ``source_backend`` and the values of a ValidationResult's `to_dict`;
    of keys not known there, all that have a value are shown as details. `files` and `steps`: what can be opened, and
    typed, next.
    """

    title: str
    subtitle: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    records: Sequence[Record] = ()
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    samples_missing: int = 0
    best: str | None = None
    images: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    files: Sequence[RunFile] = ()
    steps: Sequence[NextStep] = ()
    config_yaml: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    artefacts: Sequence[Mapping[str, Any]] = ()
    validations: Sequence[Mapping[str, Any]] = ()
