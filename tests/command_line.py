"""The command line as a function for tests, and plugins installed on disk for it to find."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from resnext_core.cli.main import main
from resnext_core.testing.processes import job_environment

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox")
#: Images of a class of `photos` in train (48 in all) and val (23 in all, which no batch and no world divides).
TRAIN, VAL = (8, 8, 8, 8, 8, 8), (4, 4, 4, 4, 4, 3)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run of the command line ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Return the one JSON line on standard output."""
        return json.loads(self.out)


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """``resnext-run`` as a function of its words, by `call`; every path may be given as it is."""

    call: Callable[[list[str]], Outcome]

    def __call__(self, *words: object) -> Outcome:
        return self.call([str(word) for word in words])

    def ok(self, *words: object) -> Outcome:
        """Run; the exit code must be 0."""
        outcome = self(*words)
        assert outcome.code == 0, outcome
        return outcome

    def refuses(self, code: int, *words: object, says: tuple[str, ...] | str) -> Outcome:
        """Run; it must end with `code` and one line on standard error that holds every text of `says`."""
        outcome = self(*words)
        assert outcome.code == code, outcome
        lines = outcome.err.splitlines()
        assert len(lines) == 1, outcome.err
        assert lines[0].startswith("resnext-run: ")
        for text in (says,) if isinstance(says, str) else says:
            assert text in lines[0], lines[0]
        return outcome


def in_process(capfd: pytest.CaptureFixture[str]) -> CommandLine:
    """Return the command line in this process."""

    def call(words: list[str]) -> Outcome:
        capfd.readouterr()
        try:
            code = main(words)
        except SystemExit as stop:  # --help and --print-config
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return Outcome(code=code, out=out, err=err)

    return CommandLine(call=call)


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a fresh process: few threads, no rank of an outer launch."""
    return job_environment(**{"OMP_NUM_THREADS": "1"} | changes)


def write_plugin(site: Path, name: str, source: str, distribution: str | None = None) -> None:
    """Put an installed distribution into `site`: a module and its entry point `name`."""
    distribution = distribution or f"dist-{name}"
    folder = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    module = f"plugin_{name}_{distribution.replace('-', '_')}"
    (folder / "entry_points.txt").write_text(f"[resnext]\n{name} = {module}\n")
    (site / f"{module}.py").write_text(source)
