"""What commands print: never what a terminal would act on, and a standard output that fails is one line."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from command_line import CLASSES, VAL, CommandLine, environment

from resnext_core import terminal
from resnext_core.cli.main import main
from resnext_core.console import output
from resnext_core.console.program import run_program
from resnext_core.errors import EXIT_DATA, EXIT_OK, EXIT_UNAVAILABLE, UsageError
from resnext_core.runs.records import Note, Progress, Train
from resnext_core.terminal import printable, starting

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


class Terminal(io.StringIO):
    """A stream that takes itself for a terminal; `written` is set once something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        count = super().write(text)
        self.written.set()
        return count

    @property
    def lines(self) -> list[str]:
        """What was drawn, line by line, without what moves the cursor."""
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue()).replace("\r", "\n")
        return [line for line in plain.split("\n") if line.strip()]


def test_a_long_start_is_announced_once_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(terminal, "_announced", set())
    screen, pipe = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with terminal.guarded_streams():
        for _ in range(2):
            with starting("a framework"):
                assert screen.written.wait(60), "while the block still runs"
    assert screen.getvalue() == "starting a framework ...\n"
    with starting("another"):  # not a program of the command line: its standard error is not guarded
        pass
    monkeypatch.setattr(sys, "stderr", pipe)
    with terminal.guarded_streams(), starting("another"):
        pass
    assert (screen.getvalue(), pipe.getvalue()) == ("starting a framework ...\n", "")


def test_a_command_that_says_something_itself_is_not_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(terminal, "_announced", set())
    monkeypatch.setattr(sys, "stdout", Terminal())
    for speaks in (False, True):
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        with terminal.guarded_streams():
            if speaks:
                print("a line")
            with starting(f"a command that speaks: {speaks}", first=True):
                for thread in threading.enumerate():
                    if isinstance(thread, threading.Timer):
                        thread.join(60)
        assert screen.getvalue() == ("" if speaks else "starting a command that speaks: False ...\n")


def test_a_short_start_and_one_that_fails_say_nothing_late(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    timers = threading.active_count()
    with terminal.guarded_streams():
        with starting("quick"):
            pass
        with pytest.raises(UsageError), starting("failing"):
            raise UsageError("no")
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(60)
    assert threading.active_count() <= timers
    assert screen.getvalue() == ""


@pytest.mark.parametrize("width", [40, 60, 80, 132])
def test_the_bar_fits_its_terminal_and_losses_stand_above_it(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(output, "_REFRESH_S", 0.0)
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    step = {"epoch": 120, "loss": 1.23456, "lr": 0.0123456}
    with output.ProgressBar(output.Output()) as bar:
        for done in (10, 20, 123_456):
            bar(Progress(what="train", done=done, total=1_250_000, images=1024, **step))
        bar(
            Train(
                **step, step=123_456, images=1024, seconds=1.0, wait_s=0.0, compute_s=1.0, images_per_s=1024.0,
                overflow_steps=0, loss_scale=1.0,
            )
        )  # fmt: skip
        bar(Progress(what="train", done=123_457, total=1_250_000, images=1024, **step))
    drawn = [line for line in screen.lines if "/1250000" in line]
    assert drawn
    for line in drawn:
        assert len(line) <= width
        assert line.count("━") + line.count("╸") + line.count("╺") >= 8, "there is a bar"
        assert "…" not in line
    assert ("loss 1.2346" in drawn[-1]) == (width >= 60)
    assert ("images/s" in drawn[-1]) == (width >= 80)
    assert ("lr 0.01235" in drawn[-1]) == (width >= 132)
    printed = " ".join(line.strip() for line in screen.lines if "/1250000" not in line)
    assert "epoch 120 step 123456 loss 1.2346" in re.sub(r" +", " ", printed)


def test_a_line_above_the_bar_is_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """No part of a path is taken for the name of an emoji, and no line end is put into it."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    line = f"saved /data/:dog:/[bold]{'x' * 60}/photo.jpg"
    with output.ProgressBar(output.Output()) as bar:
        bar(Progress(what="train", done=1, total=9))
        bar(Note(text=line))
    assert line in screen.lines
