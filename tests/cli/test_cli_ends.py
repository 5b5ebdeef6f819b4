"""A training that ends early or in a given time, on the command line: flags, lines, ``runs show`` and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine

from resnext_core.errors import EXIT_USAGE


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    return [record for record in found if record["kind"] == kind]


def test_patience_is_said_shown_and_reported(
    cli: CommandLine, recipe: Path, photos: Path, tmp_path: Path
) -> None:
    """At a rate of 0 only running statistics move, so accuracy soon rises no more."""
    flags = ("--recipe", recipe, "--data", photos, "--output", tmp_path, "--name", "run", "--epochs", 99)
    out = cli.ok("train", *flags, "--set", "optimizer.lr=0", "--set", "train.patience=1").out
    reason = "top-1 has not risen in 1 evaluation (train.patience); best "
    [end] = records(tmp_path / "run", "end")
    assert end["reason"].startswith(reason)
    assert end["reason"].endswith(f" % after step {end['step'] - 6}")
    assert [r["best"] for r in records(tmp_path / "run", "eval")][-2:] == [True, False]
    assert f"\nended after step {end['step']}: {reason}" in out
    shown = cli.ok("runs", "show", tmp_path / "run", "--json").json()
    assert (shown["state"], shown["step"], shown["ended"]) == ("done", end["step"], end["reason"])
    assert f"done, {reason}" in cli.ok("runs", "show", tmp_path / "run").out
    cli.ok("report", tmp_path / "run")
    assert "The training ended early: top-1 has not risen" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("devices", [1, 2])
def test_minutes_are_a_flag_and_the_length_is_recorded(
    cli: CommandLine, recipe: Path, photos: Path, tmp_path: Path, devices: int
) -> None:
    """Three seconds by the real clock: how many steps that are depends on the machine."""
    flags = ("--recipe", recipe, "--data", photos, "--output", tmp_path, "--name", "run", "--minutes", 0.05)
    cli.ok("train", *flags, "--devices", devices)
    run = tmp_path / "run"
    fits, [end] = records(run, "fit"), records(run, "end")
    assert end["reason"] is None
    assert end["step"] == fits[-1]["total"] == records(run, "eval")[-1]["step"]
    assert fits[-1]["minutes"] == 0.05
    shown = cli.ok("runs", "show", run, "--json").json()
    assert (shown["epoch"], shown["epochs"]) == (-(-end["step"] // 6), -(-end["step"] // 6))
    cli.ok("report", run)
    assert "The training was fitted to 0.05 minutes: " in (run / "report.html").read_text()
    before = len(records(run, "train"))
    cli.ok("train", "--resume", run)
    assert len(records(run, "train")) == before


def test_patience_without_evaluations_is_refused(
    cli: CommandLine, recipe: Path, photos: Path, tmp_path: Path
) -> None:
    flags = ("--recipe", recipe, "--data", photos, "--output", tmp_path, "--set", "data.val=none")
    cli.refuses(
        EXIT_USAGE, "train", *flags, "--set", "train.patience=1", says="train.patience needs a val part"
    )
    assert list(tmp_path.iterdir()) == []
