"""The pointers `latest` and `best`, damaged in every way: said once, and what can be proven is used in their place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import CommandLine

from resnext_core.errors import EXIT_DATA
from resnext_core.interfaces import TrainState
from resnext_core.model.weights import Weights
from resnext_core.runs import pointers
from resnext_core.runs.checkpoint import load_checkpoint, load_latest, save_checkpoint
from resnext_core.runs.checkpoint_folder import RunProgress, checkpoint_names
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.pointers import best_weights, latest_checkpoint, pointer_damages, superfluous

BEST, LATEST = "step-00000004", "step-00000007"
Damage = Callable[[Path], object]


def save(folder: Path, weights: Weights, step: int, *, best: int = 4, keep: int = 3) -> None:
    """Save a checkpoint that says that the one of step `best` is the best."""
    tensors = {f"weights/{n}": a for n, a in weights.tensors.items()} | {"momentum/x": np.zeros(step)}
    progress = RunProgress(step=step, epoch_closed=True, best=0.5, best_step=best)
    save_checkpoint(folder, weights, TrainState(tensors=tensors, scalars={}), progress, run={}, keep=keep)


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut here, and a thousand small checkpoints are written."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Weights) -> Path:
    """Checkpoints of the steps 4 (the best), 5, 6 and 7 (the latest): a flipped bit may name another one."""
    folder = tmp_path_factory.mktemp("made") / "checkpoints"
    for step in (4, 5, 6, 7):
        save(folder, tiny_weights, step)
    assert [(folder / p).read_text() for p in ("best", "latest")] == [BEST, LATEST]
    assert checkpoint_names(folder) == [f"step-0000000{step}" for step in (4, 5, 6, 7)]
    return folder


def fresh(made: Path, parent: Path) -> Path:
    return shutil.copytree(made, parent / "checkpoints", copy_function=os.link, dirs_exist_ok=False)


def flips(name: str) -> list[bytes]:
    """Return the text of a pointer with each of its bits flipped."""
    whole = name.encode()
    return [
        bytes(b ^ (1 << bit if i == at else 0) for i, b in enumerate(whole))
        for at in range(len(whole))
        for bit in range(8)
    ]


def write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # it may be a hard link
    path.write_bytes(data)


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


TEXTS = [
    b"", b"\n", b"\xff\xfe", b"\0" * 13, b"step-4", b"step-00000099", b"../checkpoints/step-00000004", b"/etc/passwd",
    b"step-00000004/../step-00000005", b"latest", b"step-00000004 step-00000005",
    b"x" * 1_000_000, b"step-" + b"9" * 5000,
]  # fmt: skip
NO_FILES = [to_folder, to_pipe, to_dangling_link]


@pytest.mark.parametrize("pointer", ["latest", "best"])
def test_every_flipped_bit_is_passed_over(
    made: Path, tmp_path: Path, tiny_weights: Weights, pointer: str
) -> None:
    """Evaluating, resuming, saving and verifying: the pointer is named, and nothing is lost by it."""
    name = {"latest": LATEST, "best": BEST}[pointer]
    for number, data in enumerate([*flips(name), *TEXTS]):
        folder = fresh(made, tmp_path / str(number))
        write(folder / pointer, data)
        check(folder, pointer, tiny_weights, harmless=pointer == "latest" and data == b"step-00000006")


@pytest.mark.parametrize("pointer", ["latest", "best"])
@pytest.mark.parametrize("damage", NO_FILES)
def test_what_is_no_file_is_passed_over(
    made: Path, tmp_path: Path, tiny_weights: Weights, pointer: str, damage: Damage
) -> None:
    folder = fresh(made, tmp_path)
    damage(folder / pointer)
    check(folder, pointer, tiny_weights)
    assert not (folder / pointer).is_file(), "what somebody put there was replaced"


def check(folder: Path, pointer: str, weights: Weights, *, harmless: bool = False) -> None:
    """Check all readers of a damaged pointer; a `harmless` one is what a process leaves that is killed."""
    damaged = [f"{folder / pointer} "] * (not harmless)
    told: list[str] = []

    def is_told() -> None:
        assert len(told) == len(damaged), told
        for line, start in zip(told, damaged, strict=True):
            assert line.startswith(start)
            assert line.isascii()
            assert line.isprintable()
            assert len(line) < len(str(folder)) + 300
        told.clear()

    assert best_weights(folder, told.append) == folder / BEST / "weights.safetensors"
    if pointer == "best":
        is_told()
    assert told == []
    told += pointer_damages(folder)
    is_told()
    assert latest_checkpoint(folder) in ("step-00000005", "step-00000006", LATEST)
    gone = superfluous(folder, 1)
    assert not {folder / BEST, folder / LATEST} & set(gone)

    assert load_latest(folder, told.append).path == folder / LATEST
    is_told()
    save(folder, weights, 8, keep=1)
    assert {BEST, "step-00000008"} <= set(checkpoint_names(folder))
    assert best_weights(folder, told.append) == folder / BEST / "weights.safetensors"
    if (folder / pointer).is_file():
        assert (told, pointer_damages(folder)) == ([], [])
        assert [(folder / p).read_text() for p in ("best", "latest")] == [BEST, "step-00000008"]


@pytest.mark.parametrize("pointer", ["latest", "best"])
def test_a_pointer_that_is_gone_is_damage(made: Path, tmp_path: Path, pointer: str) -> None:
    folder = fresh(made, tmp_path)
    (folder / pointer).unlink()
    (line,) = pointer_damages(folder)
    assert line.startswith(f"{folder / pointer} is missing, but ")
    assert best_weights(folder, lambda _: None) == folder / BEST / "weights.safetensors"


@pytest.mark.parametrize("data", [b"\xf3tep-00000004", BEST.encode()])
def test_another_one_that_stands_in_for_the_best_is_named(made: Path, tmp_path: Path, data: bytes) -> None:
    folder = fresh(made, tmp_path)
    shutil.rmtree(folder / BEST)
    write(folder / "best", data)
    told: list[str] = []
    assert best_weights(folder, told.append) == folder / LATEST / "weights.safetensors"
    assert told[0].startswith(f"{folder / 'best'} ")
    assert told[1:] == [f"the best checkpoint {folder / BEST} is missing; using the latest one, {LATEST}"]


def test_without_an_evaluation_the_latest_is_served_and_nothing_told(
    tmp_path: Path, tiny_weights: Weights
) -> None:
    folder = tmp_path / "c"
    state = TrainState(tensors={}, scalars={})
    for step in (1, 2):
        save_checkpoint(
            folder, tiny_weights, state, RunProgress(step=step, epoch_closed=True), run={}, keep=3
        )
    assert best_weights(folder, pytest.fail) == folder / "step-00000002" / "weights.safetensors"
    assert pointer_damages(folder) == []
    write(folder / "best", b"step-00000001")
    assert len(pointer_damages(folder)) == 1


def test_pointers_that_a_killed_process_has_not_moved_are_no_damage(
    made: Path, tmp_path: Path, tiny_weights: Weights
) -> None:
    """The newest checkpoint knows better than both of them."""
    folder = fresh(made, tmp_path)
    save(folder, tiny_weights, 8, best=8, keep=9)  # and killed before it removed any
    for pointer, name in (("latest", LATEST), ("best", BEST)):
        write(folder / pointer, name.encode())
    assert pointer_damages(folder) == []
    assert best_weights(folder, pytest.fail) == folder / "step-00000008" / "weights.safetensors"
    assert load_latest(folder, pytest.fail).progress.best_step == 8
    save(folder, tiny_weights, 9, best=8, keep=1)
    assert (folder / "best").read_text() == "step-00000008"
    assert checkpoint_names(folder) == ["step-00000008", "step-00000009"]


def test_the_best_is_not_lost_when_it_was_about_to_be_replaced(
    made: Path, tmp_path: Path, tiny_weights: Weights
) -> None:
    """A process that is killed between two renames leaves the checkpoint under the name of a replaced one."""
    folder = fresh(made, tmp_path)
    os.rename(folder / BEST, folder / f"{BEST}.replaced")
    assert pointer_damages(folder) == []
    assert best_weights(folder, pytest.fail).parent == folder / f"{BEST}.replaced"
    assert folder / f"{BEST}.replaced" not in superfluous(folder, 1)
    save(folder, tiny_weights, 8, keep=1)
    assert checkpoint_names(folder) == [BEST, "step-00000008"]
    load_checkpoint(folder / BEST)


def test_pruning_keeps_the_last_one_that_is_whole(made: Path, tmp_path: Path) -> None:
    folder = fresh(made, tmp_path)
    write(folder / LATEST / "training.safetensors", b"damaged")
    assert folder / "step-00000006" not in superfluous(folder, 1)
    assert folder / "step-00000005" in superfluous(folder, 1)


def test_steps_of_nine_digits_are_newer_than_those_of_eight(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 5):
        (tmp_path / f"step-{step:08d}").mkdir()
    assert checkpoint_names(tmp_path) == ["step-00000005", "step-99999999", "step-100000000"]


# -- from the command line -----------------------------------------------------------------------


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> RunFolder:
    pointers._warn_once.cache_clear()
    return RunFolder(shutil.copytree(finished_run, tmp_path / "run"))


DAMAGES = [
    lambda path: write(path, b"\xf3" + path.read_bytes()[1:]),
    lambda path: write(path, b"step-00000099"),
    to_folder,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_evaluation_says_it_once_and_serves_the_best(
    run: RunFolder, cli: CommandLine, photos: Path, damage: Damage
) -> None:
    best = (run.checkpoints / "best").read_text()
    whole = cli.ok("eval", "--weights", run.path, "--data", photos, "--json").json()
    assert Path(whole["weights"]).parent.name == best
    damage(run.checkpoints / "best")
    found = cli.ok("eval", "--weights", run.path, "--data", photos, "--json")
    assert found.json()["digest"] == whole["digest"]
    lines = [line for line in found.err.splitlines() if "checkpoints/best" in line]
    assert len(lines) == 1
    assert f"the best checkpoint is {best}" in lines[0]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("pointer", ["latest", "best"])
def test_commands_about_runs_name_it(run: RunFolder, cli: CommandLine, pointer: str, damage: Damage) -> None:
    before = checkpoint_names(run.checkpoints)
    damage(run.checkpoints / pointer)
    found = cli("runs", "verify", run.path)
    assert found.code == EXIT_DATA
    assert found.out.startswith(f"{run.checkpoints / pointer} ")
    assert found.err == f"resnext-run: {run.path} is damaged: 1 problem\n"
    shown = cli.ok("runs", "show", run.path, "--json").json()["checkpoints"]
    assert [mark for c in shown for mark in c["marks"]].count(pointer) == 1
    cli.ok("report", run.path)
    cli.ok("runs", "list", run.path.parent)
    cli.ok("runs", "prune", run.path)
    marked = {c["name"] for c in shown if c["marks"]}
    assert marked <= set(checkpoint_names(run.checkpoints)) <= set(before)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("pointer", ["latest", "best"])
def test_training_goes_on_and_says_it_once(
    run: RunFolder, cli: CommandLine, pointer: str, damage: Damage
) -> None:
    damage(run.checkpoints / pointer)
    found = cli.ok("train", "--resume", run.path, "--epochs", 3)
    named = [line for line in (found.out + found.err).splitlines() if str(run.checkpoints / pointer) in line]
    repaired = (run.checkpoints / pointer).is_file()
    if repaired:
        cli.ok("runs", "verify", run.path)
    resumed = [line for line in named if "continuing without it" in line]
    assert len(resumed) == 1
    assert len(named) == 1 or not repaired
