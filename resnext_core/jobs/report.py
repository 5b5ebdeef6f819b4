"""Write the report of a run again, or a comparison of two runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnext_core.errors import UsageError
from resnext_core.files import check_target
from resnext_core.runs.folder import RunFolder

#: Where runs are looked for when none is named.
RUNS = Path("runs")


@dataclass(frozen=True, kw_only=True)
class ReportJob:
    """`run` is a run folder; None takes the one in ./runs whose records changed last.

    With `other`, a second run, the two are compared. `output` is the page to write: None is ``report.html`` in the run
    folder, of a comparison ``compare-OTHER.html``.
    """

    run: Path | None = None
    other: Path | None = None
    output: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """Where the report was written."""

    path: Path

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {"report": str(self.path)}


def report(job: ReportJob) -> ReportResult:
    """Write the page; UsageError or DataError where there is no such run, or the report cannot be written."""
    from resnext_core.report.gather import make_comparison, make_report  # jinja2, for those who write one

    run = RunFolder.open(job.run) if job.run is not None else RunFolder.newest(RUNS)
    other = None if job.other is None else RunFolder.open(job.other)
    if other is not None and other.path.resolve() == run.path.resolve():
        raise UsageError(f"{other.path} is the same run twice; name two runs to compare")
    if job.output is not None:
        check_target(job.output)
    made = make_report(run, job.output) if other is None else make_comparison(run, other, job.output)
    return ReportResult(path=made)
