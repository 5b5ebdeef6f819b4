"""What commands print: never what a terminal would act on, and a standard output that fails is one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from command_line import CLASSES, VAL, CommandLine, environment

from resnext_core.cli.main import main
from resnext_core.console.program import run_program
from resnext_core.errors import EXIT_DATA, EXIT_OK, EXIT_UNAVAILABLE
from resnext_core.terminal import printable

#: A command line for each command and action, given a run, weights, a data folder and a folder to write into.
COMMANDS: dict[str, Callable[[Path, Path, Path, Path], list[str]]] = {
    "help": lambda run, weights, data, new: ["--help"],
    "version": lambda run, weights, data, new: ["--version"],
    "help of a command": lambda run, weights, data, new: ["eval", "--help"],
    "configuration": lambda run, weights, data, new: ["train", "--print-config"],
    "backends": lambda run, weights, data, new: ["backends"],
    "recipes": lambda run, weights, data, new: ["recipes"],
    "data info": lambda run, weights, data, new: ["data", "info", f"{data}"],
    "data info, JSON": lambda run, weights, data, new: ["data", "info", f"{data}", "--json"],
    "data scan": lambda run, weights, data, new: ["data", "scan", f"{data}", "--no-cache", "--workers", "1"],
    "eval": lambda run, weights, data, new: ["eval", "--weights", f"{weights}", "--data", f"{data}"],
    "infer": lambda run, weights, data, new: ["infer", "--weights", f"{weights}", f"{data / 'val' / 'ant'}"],
    "convert": lambda run, weights, data, new: ["convert", f"{weights}", f"{new / 'copy.safetensors'}"],
    "runs list": lambda run, weights, data, new: ["runs", "list", f"{run.parent}"],
    "runs show": lambda run, weights, data, new: ["runs", "show", f"{run}"],
    "runs verify": lambda run, weights, data, new: ["runs", "verify", f"{run}"],
    "runs prune": lambda run, weights, data, new: ["runs", "prune", f"{run}", "--dry-run"],
    "report": lambda run, weights, data, new: ["report", f"{copytree(run, new / 'run')}"],
    "bench": lambda run, weights, data, new: ["bench", "data", "--data", f"{data}", "--steps", "1"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_under_the_output_is_one_line(
    command: str, core_only: None, finished_run: Path, weights_file: Path, photos: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = COMMANDS[command](finished_run, weights_file, photos, tmp_path)
    if words[0] in ("eval", "infer", "bench"):
        words += [
            "--set",
            "data.workers=0",
            "--set",
            "model.variant=resnext_tiny",
            "--set",
            "model.image_size=8",
        ]
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(words) == EXIT_DATA
    assert capfd.readouterr().err.splitlines() == [
        "resnext-run: cannot write standard output: No space left on device"
    ]


@pytest.mark.parametrize("command", ["data info", "help", "runs list"])
def test_a_closed_output_is_one_line(
    command: str, finished_run: Path, weights_file: Path, photos: Path
) -> None:
    words = COMMANDS[command](finished_run, weights_file, photos, photos)
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", sys.executable, "-m", "resnext_core.cli", *words],
        env=environment(), stderr=subprocess.PIPE, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        EXIT_DATA,
        "resnext-run: cannot write standard output: it is closed\n",
    )


def test_a_closed_standard_error_costs_nothing(photos: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" 2>&-', "sh", sys.executable, "-m", "resnext_core.cli", "data", "info", photos],
        env=environment(), stdout=subprocess.PIPE, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == EXIT_OK
    assert done.stdout.startswith("class")


def test_logits_are_written_though_the_output_is_full(
    core_only: None, weights_file: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "infer",
        "--weights",
        str(weights_file),
        str(photos / "val"),
        "--logits",
        str(tmp_path / "l.npy"),
    ]
    words += ["--backend", "reference", "--set", "data.workers=0", "--set", "eval.batch_size=1"]
    with open("/dev/full", "w", buffering=1) as full:  # fails at the first line
        monkeypatch.setattr(sys, "stdout", full)
        assert main(words) == EXIT_DATA
    logits = np.load(tmp_path / "l.npy")
    assert logits.shape == (sum(VAL), len(CLASSES))
    assert np.isfinite(logits).all()


def test_terminal_escapes_are_shown(cli: CommandLine, tmp_path: Path) -> None:
    """Of file names, class names and messages; a line end in a name does not make a second line."""
    name = "a\x1b[2Jb\x07\r\x9b\u202e\nc"
    for part in ("train", "val"):
        for label in (name, "other"):
            (tmp_path / part / label).mkdir(parents=True)
            (tmp_path / part / label / f"{name}.png").write_bytes(b"no image")
    shown = r"a\x1b[2Jb\x07\r\x9b\u202e\nc"
    info = cli.ok("data", "info", tmp_path)
    assert shown in info.out
    scan = cli("data", "scan", tmp_path, "--no-cache", "--all", "--workers", "1")
    assert f"train/{shown}/{shown}.png" in scan.out
    missing = cli("data", "info", tmp_path / name)
    assert shown in missing.err
    assert len(missing.err.splitlines()) == 1
    for text in (info.out, scan.out, scan.err, missing.err):
        assert printable(text) == text
        assert name not in text


def test_printable_keeps_what_is_text() -> None:
    text = "tab\there, line\nend, é, 中文, \u202f, –, 🙂"
    assert printable(text) == text
    assert printable("\x1b[0m\x7f\x85\u2066\udce9\ud800") == r"\x1b[0m\x7f\x85\u2066\xe9\ud800"


def test_memory_that_runs_out_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_program("resnext-run", lambda: np.empty(1 << 60, np.uint8).size) == EXIT_UNAVAILABLE
    err = capfd.readouterr().err
    assert err.startswith("resnext-run: out of memory: Unable to allocate 1.00 EiB")
    assert len(err.splitlines()) == 1


def test_errors_of_the_machine_are_one_line_and_bugs_are_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert run_program("resnext-run", lambda: len((tmp_path / "loop").read_bytes())) == EXIT_DATA
    assert capfd.readouterr().err == f"resnext-run: {tmp_path / 'loop'}: Too many levels of symbolic links\n"
    with pytest.raises(FileNotFoundError):
        run_program("resnext-run", lambda: len((tmp_path / "none").read_bytes()))
