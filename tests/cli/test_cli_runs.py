"""``resnext-run runs``: what it tells of runs, that it finds every damage, and what it removes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import CommandLine
from run_records import stored

from resnext_core.errors import EXIT_DATA, EXIT_USAGE
from resnext_core.runs.checkpoint_folder import checkpoint_names
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.records import Train


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> RunFolder:
    """A finished run of two epochs, to be damaged, in ``tmp_path/runs``."""
    return RunFolder(shutil.copytree(finished_run, tmp_path / "runs" / "mine"))


def test_list_tells_how_far_each_run_is(run: RunFolder, cli: CommandLine) -> None:
    other = RunFolder(shutil.copytree(run.path, run.path.parent / "other"))
    lines = other.records.read_text().splitlines(keepends=True)
    other.records.write_text("".join(lines[:-1]))
    out = cli.ok("runs", "list", run.path.parent).out
    assert out.splitlines()[0].split() == [
        "run",
        "backend",
        "variant",
        "state",
        "epoch",
        "step",
        "best",
        "size",
    ]
    rows = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert "done" in rows["mine"]
    assert "2 of 2" in rows["mine"]
    assert "stopped" in rows["other"]
    value = cli.ok("runs", "list", run.path.parent, "--json").json()
    assert [r["run"] for r in value["runs"]] == ["mine", "other"]
    best = json.loads((run.checkpoints / "step-00000012" / "state.json").read_text())["progress"]["best"]
    assert value["runs"][0]["best"] == best
    assert value["runs"][0]["bytes"] == sum(p.stat().st_size for p in run.path.rglob("*") if p.is_file())
    with run.training():
        assert "training" in cli.ok("runs", "list", run.path.parent).out


def test_show_names_checkpoints_and_pointers(run: RunFolder, cli: CommandLine) -> None:
    value = cli.ok("runs", "show", run.path, "--json").json()
    assert [c["name"] for c in value["checkpoints"]] == checkpoint_names(run.checkpoints)
    latest = (run.checkpoints / "latest").read_text()
    assert [c["name"] for c in value["checkpoints"] if "latest" in c["marks"]] == [latest]
    assert value["epochs"] == 2
    out = cli.ok("runs", "show", run.path).out
    assert f"{latest} " in out
    assert "resnext_tiny" in out


def test_a_whole_run_is_verified(run: RunFolder, cli: CommandLine) -> None:
    assert "; no damage" in cli.ok("runs", "verify", run.path).out


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (
            lambda r: damage(r.checkpoints / "step-00000012" / "weights.safetensors"),
            "weights.safetensors is damaged",
        ),
        (
            lambda r: damage(r.checkpoints / "step-00000006" / "training.safetensors"),
            "training.safetensors is damaged",
        ),
        (lambda r: damage(r.checkpoints / "step-00000006" / "state.json"), "step-00000006"),
        (lambda r: r.records.open("a").write("{torn"), "records.jsonl:"),
        (lambda r: r.config.write_text("train: {epoch: 3}"), "unknown config key 'train.epoch'"),
        (lambda r: r.records.unlink(), "records.jsonl has no records, but step-"),
        (lambda r: r.records.write_text("\n".join(r.records.read_text().splitlines()[3:])), "start record"),
        (
            lambda r: r.records.write_text("".join(r.records.read_text().splitlines(keepends=True)[:3])),
            "records.jsonl is shorter than when step-00000012 was saved",
        ),
        (
            lambda r: shutil.rmtree(r.checkpoints),
            "step-00000012 is missing, the last checkpoint in records.jsonl",
        ),
        (
            lambda r: (r.checkpoints / "best").write_text("step-00000099"),
            "best names step-00000099, which",
        ),
    ],
)
def test_every_damage_is_found(run: RunFolder, cli: CommandLine, what: object, says: str) -> None:
    what(run)  # type: ignore[operator]
    outcome = cli("runs", "verify", run.path)
    assert outcome.code == EXIT_DATA
    assert says in outcome.out
    assert outcome.err == f"resnext-run: {run.path} is damaged: 1 problem\n"


def test_records_of_another_version_are_counted_and_no_damage(run: RunFolder, cli: CommandLine) -> None:
    with run.records.open("a") as stream:
        stream.write('{"kind": "weather", "step": 12}\n')
    assert "records (1 of them unknown to this version); no damage" in cli.ok("runs", "verify", run.path).out
    assert cli.ok("runs", "verify", run.path, "--json").json()["unknown_records"] == 1


def test_prune_keeps_latest_best_and_the_newest(run: RunFolder, cli: CommandLine) -> None:
    names = checkpoint_names(run.checkpoints)
    for step in range(1, 5):  # older ones, and what killed processes left
        shutil.copytree(run.checkpoints / names[0], run.checkpoints / f"step-0000000{step}")
    (run.checkpoints / ".step-00000013.partial").mkdir()
    (run.checkpoints / ".latest.abcdefgh").write_text("x")
    (run.checkpoints / "best").write_text("step-00000002")
    before = sorted(p.name for p in run.checkpoints.iterdir())
    value = cli.ok("runs", "prune", run.path, "--dry-run", "--json").json()
    assert sorted(p.name for p in run.checkpoints.iterdir()) == before
    assert value["bytes"] > 0
    again = cli.ok("runs", "prune", run.path.parent, "--json").json()
    assert {**again, "dry_run": True} == value
    left = sorted(p.name for p in run.checkpoints.iterdir())
    assert left == ["best", "latest", "step-00000002", "step-00000012"]
    assert cli.ok("runs", "prune", run.path, "--json").json()["removed"] == []


def test_a_run_in_training_is_left_alone(run: RunFolder, cli: CommandLine) -> None:
    (run.checkpoints / ".step-00000013.partial").mkdir()
    with run.training():
        value = cli.ok("runs", "prune", run.path, "--json").json()
        says = "is being trained by another process; wait for it, or stop it"
        cli.refuses(EXIT_USAGE, "train", "--resume", run.path, "--epochs", 3, says=says)
    assert value == {"removed": [], "bytes": 0, "being_trained": [str(run.path)], "dry_run": False}
    assert (run.checkpoints / ".step-00000013.partial").is_dir()


def test_wrong_words(run: RunFolder, cli: CommandLine, tmp_path: Path) -> None:
    cli.refuses(EXIT_DATA, "runs", "list", tmp_path / "nowhere", says="no run folder in")
    cli.refuses(EXIT_DATA, "runs", "show", tmp_path, says="is not a run folder")
    cli.refuses(EXIT_DATA, "runs", "prune", tmp_path / "nowhere", says="no run folder in")
    cli.refuses(EXIT_USAGE, "runs", "prune", run.path, "--keep", 0, says="--keep must be 1 or more")
    cli.refuses(EXIT_USAGE, "runs", "shew", run.path, says="invalid choice")


def test_a_resumed_run_repeats_no_record(run: RunFolder, cli: CommandLine) -> None:
    """What stands behind the checkpoint is written again by the training, the checkpoint's own line by its record."""
    before = [r for r in stored(run) if r["kind"] == "checkpoint"]
    (*_, last) = (r for r in run.read_records() if isinstance(r, Train))
    run.append(dataclasses.replace(last, step=13, loss=1.0))
    cli.ok("train", "--resume", run.path, "--epochs", 3)
    after = [r for r in stored(run) if r["kind"] == "checkpoint"]
    for old, new in zip(before, after, strict=False):
        assert {**old, "time": 0} == {**new, "time": 0}
    steps = [r["step"] for r in stored(run) if r["kind"] == "train"]
    assert steps == list(range(1, 19))
    assert np.isfinite([r["loss"] for r in stored(run) if r["kind"] == "train"]).all()


def test_without_a_run_the_one_whose_records_changed_last_is_taken(
    run: RunFolder, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = RunFolder(shutil.copytree(run.path, run.path.parent / "other"))
    newer = run.records.stat().st_mtime + 100
    os.utime(other.config, (newer, newer))
    os.utime(run.records, (newer + 100, newer + 100))
    monkeypatch.chdir(run.path.parent.parent)
    assert cli.ok("report").out == "runs/mine/report.html\n"
    out = cli.ok("--backend", "reference", "train", "--resume", "--epochs", 3).out
    assert "run folder runs/mine" in out
    os.utime(other.records, (newer + 200, newer + 200))
    os.utime(run.records, (newer, newer))
    assert cli.ok("report").out == "runs/other/report.html\n"


@pytest.mark.parametrize(
    "text", ["", "model: 3\ntrain: [1]\n", "- a\n", "model: {variant: 7}\ndata: {dir: 9}\n", "{"]
)
def test_a_configuration_that_was_edited_wrongly_ends_no_listing(
    run: RunFolder, cli: CommandLine, text: str
) -> None:
    run.config.write_text(text)
    for words in (["runs", "list", run.path.parent], ["runs", "show", run.path], ["report", run.path]):
        cli.ok(*words)
