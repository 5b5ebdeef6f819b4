"""A plugin of pytest: a line of JSON as each test begins and ends, so that a run that is killed leaves its results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FILE = "GPU_DAY_OUTCOMES"


def pytest_configure(config: Any) -> None:
    path = os.environ.get(FILE)
    if path and not hasattr(
        config, "workerinput"
    ):  # not in the processes of pytest-xdist, which report to this one
        config.pluginmanager.register(Outcomes(Path(path)))


class Outcomes:
    """Writes to `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(test=nodeid, outcome="running")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._write(
                test=report.nodeid,
                outcome=report.outcome,
                seconds=round(report.duration, 2),
                said=_said(report),
            )

    def pytest_collectreport(self, report: Any) -> None:
        if report.outcome == "failed":
            self._write(test=report.nodeid, outcome="failed", seconds=0.0, said=_said(report))

    def _write(self, **row: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _said(report: Any) -> str:
    if report.outcome == "passed":
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return " ".join(text.split())[:300]


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return what is known of each test: its ``outcome`` (passed, failed, skipped, running) and what was said."""
    found: dict[str, dict[str, Any]] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # cut off by a kill
                continue
            name = row.pop("test")
            if found.get(name, {}).get("outcome") != "failed":  # a failure stays, whatever its teardown says
                found[name] = row
    return found
