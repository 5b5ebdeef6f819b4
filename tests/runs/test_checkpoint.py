"""Checkpoints: round trip, pointers, what is kept, a disk that fills up at any write, and damage of every kind."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from resnext_core.errors import DataError
from resnext_core.files import atomic as files
from resnext_core.interfaces import TrainState
from resnext_core.model.weights import Weights
from resnext_core.runs import checkpoint, checkpoint_folder
from resnext_core.runs.checkpoint import complete_checkpoint, load_checkpoint, load_latest, save_checkpoint
from resnext_core.runs.checkpoint_folder import RunProgress, checkpoint_names, read_summary
from resnext_core.runs.pointers import best_weights

Save = Callable[..., Path]
SAVING = {"bytes": 1, "seconds": 1.0, "blocked_s": 0.0, "records": None}


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record with its digest, so that only its content can be what is wrong with it."""
    return {**record, "sha256": checkpoint_folder.seal(record)}


@pytest.fixture
def save(tmp_path: Path, tiny_weights: Weights) -> Save:
    """Save a checkpoint of `step` in ``tmp_path/c``."""

    best_step: int | None = None

    def call(step: int, *, best: bool = False, keep: int = 3, closed: bool = True) -> Path:
        nonlocal best_step
        tensors = {f"weights/{n}": a for n, a in tiny_weights.tensors.items()}
        tensors["momentum/fc.bias"] = np.full(6, step, np.float32)
        state = TrainState(tensors=tensors, scalars={"step": step, "loss_scale": 0.1, "good_steps": 2**40})
        progress = RunProgress(
            step=step, epoch_closed=closed, best=0.1 + 0.2, best_step=step if best else best_step
        )
        facts = {"seed": 1, "train_digest": "sha256:0"}
        folder = tmp_path / "c"
        saved = save_checkpoint(
            folder, tiny_weights, state, progress, run=facts, keep=keep, records=99, blocked_s=0.5
        )
        best_step = progress.best_step
        return folder / saved.name

    return call


def pointers(folder: Path) -> tuple[str, str]:
    return (folder / "latest").read_text(), (folder / "best").read_text()


def test_round_trip_is_exact(save: Save, tiny_weights: Weights) -> None:
    path = save(7, best=True)
    read = load_checkpoint(path)
    assert path.name == "step-00000007"
    assert read.weights.digest == tiny_weights.digest
    assert read.weights.manifest() == tiny_weights.manifest()
    assert read.progress == RunProgress(step=7, epoch_closed=True, best=0.1 + 0.2, best_step=7)
    assert read.state.scalars == {"step": 7, "loss_scale": 0.1, "good_steps": 2**40}
    assert read.run == {"seed": 1, "train_digest": "sha256:0"}
    assert (read.saving.records, read.saving.blocked_s) == (99, 0.5)
    tensors = [path / "weights.safetensors", path / "training.safetensors"]
    assert read.saving.bytes == sum(p.stat().st_size for p in tensors)
    assert read.summary == read_summary(path)
    assert read.summary.metrics == {"top1": 0.5}
    assert set(read.state.tensors) == {f"weights/{n}" for n in tiny_weights.tensors} | {"momentum/fc.bias"}
    for name, array in tiny_weights.tensors.items():
        assert np.array_equal(read.state.tensors[f"weights/{name}"], array)


@pytest.mark.parametrize(
    ("served", "stored"), [("weights", {"ema"}), ("ema", {"weights"}), (None, {"weights", "ema"})]
)
def test_what_is_served_is_not_stored_twice(
    tiny_weights: Weights, tmp_path: Path, served: str | None, stored: set[str]
) -> None:
    groups = {
        g: {n: a + i for n, a in tiny_weights.tensors.items()} for i, g in enumerate(("weights", "ema"))
    }
    tensors = {f"{g}/{n}": a for g, arrays in groups.items() for n, a in arrays.items()}
    weights = tiny_weights.replace(tensors=groups[served]) if served else tiny_weights
    progress = RunProgress(step=1, epoch_closed=True)
    state = TrainState(tensors=tensors, scalars={"step": 1})
    name = save_checkpoint(tmp_path / "c", weights, state, progress, run={}, keep=1).name
    read = load_checkpoint(tmp_path / "c" / name)
    assert read.state.tensors.keys() == tensors.keys()
    assert all(np.array_equal(read.state.tensors[n], a) for n, a in tensors.items())
    with safetensors.safe_open(tmp_path / "c" / name / "training.safetensors", "numpy") as file:
        assert {n.split("/")[0] for n in file.keys()} == stored  # noqa: SIM118 - no mapping
    next(iter(read.state.tensors.values()))[...] = 7  # a trainer may go on in these very arrays
    assert read.weights.digest == weights.digest


def test_pointers_and_what_is_kept(save: Save, tmp_path: Path) -> None:
    for step in range(1, 8):
        save(step, best=step in (1, 2), keep=2)
    folder = tmp_path / "c"
    assert checkpoint_names(folder) == ["step-00000002", "step-00000006", "step-00000007"]
    assert pointers(folder) == ("step-00000007", "step-00000002")
    assert best_weights(folder) == folder / "step-00000002" / "weights.safetensors"


def test_the_same_step_again_replaces_it(save: Save, tmp_path: Path) -> None:
    save(5, closed=False)
    save(5, closed=True)
    assert load_latest(tmp_path / "c", pytest.fail).progress.epoch_closed
    assert checkpoint_names(tmp_path / "c") == ["step-00000005"]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("killed", [False, True])
def test_completing_keeps_the_state_and_adds_the_evaluation(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool, killed: bool
) -> None:
    """Also after an end between the two renames, and where files cannot be linked."""
    folder = tmp_path / "c"
    path = save(5, closed=False)
    before = load_checkpoint(path)
    if killed:
        path.rename(folder / "step-00000005.replaced")
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: os.stat("/nowhere/at/all"))
    complete(folder, 5)
    after = load_checkpoint(path)
    assert after.progress == RunProgress(step=5, epoch_closed=True, best=0.9, best_step=5)
    assert after.weights.metrics == after.summary.metrics == {"top1": 0.9}
    assert (after.saving.records, after.saving.blocked_s) == (123, 0.75), "the sum of both"
    assert after.saving.seconds >= before.saving.seconds
    assert (after.state.scalars, after.run) == (before.state.scalars, before.run)
    assert after.weights.manifest() == {**before.weights.manifest(), "metrics": {"top1": 0.9}}
    for name, tensor in before.state.tensors.items():
        assert after.state.tensors[name].tobytes() == tensor.tobytes()
    assert checkpoint_names(folder) == ["step-00000005"]
    assert pointers(folder) == ("step-00000005", "step-00000005")


def test_leftovers_of_a_killed_process_are_removed(save: Save, tmp_path: Path) -> None:
    save(5)
    (tmp_path / "c" / ".step-00000006.partial").mkdir()
    (tmp_path / "c" / ".step-00000007.partial").mkdir()
    shutil.copytree(tmp_path / "c" / "step-00000005", tmp_path / "c" / "step-00000005.replaced")
    save(6)
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["latest", "step-00000005", "step-00000006"]


class Killed(BaseException):
    """Stands for the end of the process: no handler of ours runs for it in earnest, only `finally` blocks here."""


CALLS = [
    (shutil, "rmtree"),  # first: it is told to ignore errors, so a full disk does not end it
    (os, "replace"),
    (os, "fsync"),
    (safetensors.numpy, "save_file"),
    (Path, "write_bytes"),
    (Path, "mkdir"),
    (files.tempfile, "mkstemp"),
]


def nth(monkeypatch: pytest.MonkeyPatch, n: int, error: Callable[[], BaseException]) -> Callable[[], bool]:
    """Let the `n`-th call of any function in CALLS raise; returns whether it came to that."""
    count = 0

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == n:
                raise error()
            return function(*args, **kwargs)

        return call

    for owner, name in CALLS if error is Killed else CALLS[1:]:
        monkeypatch.setattr(owner, name, wrapped(getattr(owner, name)))
    return lambda: count >= n


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def complete(folder: Path, step: int, keep: int = 3) -> None:
    """Complete the checkpoint of `step` as after its evaluation."""
    progress = RunProgress(step=step, epoch_closed=True, best=0.9, best_step=step)
    complete_checkpoint(folder, progress, {"top1": 0.9}, keep=keep, records=123, blocked_s=0.25)


WAYS = pytest.mark.parametrize("way", ["new step", "same step", "completed"])


@WAYS
def test_a_disk_full_at_any_write_loses_nothing(save: Save, tmp_path: Path, way: str) -> None:
    folder = tmp_path / "c"
    for n in range(1, 100):
        shutil.rmtree(folder, ignore_errors=True)
        save(3, best=True)
        save(5)
        with pytest.MonkeyPatch.context() as patch:
            reached = nth(patch, n, full)
            try:
                complete(folder, 5) if way == "completed" else save(5 if way == "same step" else 6, best=True)
                message = None
            except DataError as error:
                message = str(error)
            if not reached():
                break
        assert message is not None
        assert "No space left on device" in message
        assert "\n" not in message
        assert load_latest(folder, pytest.fail).progress.step in (5, 6)
        assert best_weights(folder).is_file()
        assert not list(folder.glob(".step-*.partial"))
        save(8)  # and the next one goes well again
        assert load_latest(folder, pytest.fail).progress.step == 8
    assert n > 15


@WAYS
def test_killed_at_any_moment_leaves_a_readable_latest(save: Save, tmp_path: Path, way: str) -> None:
    folder = tmp_path / "c"
    for n in range(1, 100):
        shutil.rmtree(folder, ignore_errors=True)
        save(5, best=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "unlink", lambda *_, **__: None)  # a dead process clears nothing up
            reached = nth(patch, n, Killed)
            with contextlib.suppress(Killed):
                if way == "completed":
                    complete(folder, 5, keep=1)
                else:
                    save(5 if way == "same step" else 6, best=True, keep=1)
            if not reached():
                break
        assert load_latest(folder, pytest.fail).progress.step in (5, 6)
        assert best_weights(folder).is_file()
        save(7)
        assert checkpoint_names(folder)[-1] == "step-00000007"
        assert not [name for name in checkpoint_names(folder) if "replaced" in name]
    assert n > 15


def test_a_damaged_newest_is_passed_over_and_named(save: Save, tmp_path: Path) -> None:
    save(5)
    (save(6) / "state.json").write_text("{")
    told: list[str] = []
    assert load_latest(tmp_path / "c", told.append).progress.step == 5
    assert len(told) == 1
    assert "step-00000006 is not a readable checkpoint" in told[0]
    (tmp_path / "c" / "step-00000005" / "weights.safetensors").unlink()
    with pytest.raises(DataError, match="no readable checkpoint in"):
        load_latest(tmp_path / "c", told.append)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"x"',
        "{}",
        '{"format": 1}',
        '{"format": 2}',
        '{"format": 2, "sha256": "0"}',
        "[" * 5000,
        "\0",
    ]
    + [
        json.dumps(sealed({"format": 2, "progress": p, "scalars": s, "run": r, "files": f, "saving": SAVING}))
        for p, s, r, f in [
            ({}, {}, {}, {}),
            ([], {}, {}, {}),
            ({"step": 1, "epoch_closed": True}, 3, {}, {}),
            ({"step": 1, "epoch_closed": True}, {}, 3, {}),
            ({"step": 1, "epoch_closed": True}, {}, {}, []),
            ({"step": 1, "epoch_closed": True}, {}, {}, {"nowhere": "sha256:0"}),
            ({"step": 1, "epoch_closed": True}, {}, {}, {"..": "sha256:0"}),
            ({"step": 1, "epoch_closed": True, "more": 1}, {}, {}, {}),
        ]
    ],
)
def test_any_broken_record_is_a_data_error(save: Save, text: str) -> None:
    path = save(5)
    (path / "state.json").write_text(text)
    with pytest.raises(DataError, match="step-00000005"):
        load_checkpoint(path)


def test_every_byte_of_the_record_is_guarded(save: Save) -> None:
    path = save(5)
    whole = (path / "state.json").read_bytes()
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 1
        (path / "state.json").write_bytes(data)
        if data.isspace() or json_equal(bytes(data), whole):
            continue
        for read in (load_checkpoint, read_summary):
            with pytest.raises(DataError, match="step-00000005"):
                read(path)


def json_equal(one: bytes, other: bytes) -> bool:
    """True where two texts are the same JSON, as when blanks between its words were flipped."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


@pytest.mark.parametrize("name", ["weights.safetensors", "training.safetensors"])
def test_every_byte_of_the_tensors_is_guarded(save: Save, name: str) -> None:
    path = save(5)
    whole = (path / name).read_bytes()
    rng = np.random.default_rng(0)
    for position in [0, len(whole) - 1, *rng.integers(len(whole), size=15).tolist()]:
        data = bytearray(whole)
        data[position] ^= 1
        (path / name).write_bytes(data)
        with pytest.raises(DataError, match=f"{name} is damaged"):
            load_checkpoint(path)
    (path / name).unlink()
    with pytest.raises(DataError, match="not a readable checkpoint"):
        load_checkpoint(path)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no checkpoint in"):
        best_weights(tmp_path)
    with pytest.raises(DataError, match="no readable checkpoint in"):
        load_latest(tmp_path / "nowhere", pytest.fail)


def test_format_of_another_release_is_said(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 9)
    path = save(5)
    monkeypatch.undo()
    with pytest.raises(DataError, match="has checkpoint format 9, this version reads 2"):
        load_checkpoint(path)
