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


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """Everything a report shows; a section whose data is missing is left out.

    `summary`: ``parameters`` and ``macs`` (integers), ``images_per_s`` (training), ``wall_s``, ``backend``,
    ``device``; rates missing here are taken from the records. Other keys are shown as facts below the title.
    `records`: those of the run folder, in order. `evaluation`: ``top1``, ``top5`` (shares 0..1), ``top1_interval``,
    ``top5_interval`` (low, high), ``expected``, ``scored``, ``failed``, ``failures`` (path to reason, or paths),
    ``confusion`` (classes, classes) counts [true, predicted] and ``classes`` (names), and ``calibration`` as
    :meth:`~resnext_core.serving.calibration.Calibration.to_dict` gives it; other scalars are shown as facts.
    `samples_missing`: images that were chosen as samples and cannot be read any more.
    `artefacts`: dicts of ``path``, ``size`` (bytes), ``digest``, ``format``. `validations`: dicts of
    ``name``, ``backend``, ``source_backend`` and the values of a ValidationResult's `to_dict`; of keys not
    known there, all are shown as details.
    """

    title: str
    subtitle: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    records: Sequence[Record] = ()
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    samples_missing: int = 0
    config_yaml: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    artefacts: Sequence[Mapping[str, Any]] = ()
    validations: Sequence[Mapping[str, Any]] = ()
