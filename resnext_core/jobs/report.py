"""Write the report of a run again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnext_core.runs.folder import RunFolder

#: Where runs are looked for when none is named.
RUNS = Path("runs")


@dataclass(frozen=True, kw_only=True)
class ReportJob:
    """`run` is a run folder; None takes the one in ./runs whose records changed last."""

    run: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """Where the report was written."""

    path: Path

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {"report": str(self.path)}


def report(job: ReportJob) -> ReportResult:
    """Write ``report.html``; DataError where there is no run, or the report cannot be written."""
    from resnext_core.report.gather import make_report  # jinja2, for those who write one

    run = RunFolder.open(job.run) if job.run is not None else RunFolder.newest(RUNS)
    return ReportResult(path=make_report(run))
