"""Runs that are killed, stopped, and moved between processes end as if nothing had been."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from command_line import CommandLine, environment, write_plugin
from processes import alive, eventually, finish
from run_records import stored

from resnext_core.data.sampler import epoch_permutation, rank_slice
from resnext_core.errors import EXIT_DATA, EXIT_INTERRUPTED, EXIT_OK
from resnext_core.runs.checkpoint import load_latest
from resnext_core.runs.folder import RunFolder

#: Fields of a record that a clock makes.
CLOCKED = {"time", "seconds", "wait_s", "compute_s", "teacher_s", "images_per_s", "blocked_s"}
KILLS = 30
EPOCHS, PER_EPOCH = 150, 6
#: Steps between two checkpoints, epochs between two evaluations.
SAVED_EVERY, EVALUATED_EVERY = 4, 3


def words(photos: Path, recipe: Path, parent: Path, *more: object) -> list[str]:
    """A training of 900 small steps with an EMA, saved every fourth step."""
    sets = ["train.ema_decay=0.9", "data.workers=0"]
    sets += [f"train.checkpoint_steps={SAVED_EVERY}", f"train.eval_every={EVALUATED_EVERY}"]
    flags = [f"--set={value}" for value in sets]
    fixed = ["--backend", "reference", "train", "--recipe", recipe, "--data", photos, "--output", parent]
    return [str(w) for w in [*fixed, "--name", "run", "--epochs", EPOCHS, *flags, *more]]


def start(argv: list[str], **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "resnext_core.cli", *argv], env=environment(**env),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(photos: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run that nobody touches."""
    parent = tmp_path_factory.mktemp("uninterrupted")
    assert finish(start(words(photos, recipe, parent))) == (EXIT_OK, "")
    return RunFolder(parent / "run")


def lines(run: RunFolder) -> list[dict[str, Any]]:
    """Return the records in the order of their steps, without what a clock made and those of starting and resuming.

    They stand in the file as they were written, and a checkpoint is written in the background: its record comes before
    or after those of the next steps.
    """
    found = [r for r in stored(run) if r["kind"] not in ("start", "resume")]
    return [{k: v for k, v in r.items() if k not in CLOCKED} for r in sorted(found, key=lambda r: r["step"])]


def same_end(run: RunFolder, other: RunFolder, *, stopped: bool = False) -> None:
    """Every bit of the state, the progress and every record are equal.

    A run that was `stopped` has saved for that: it has records of checkpoints beside those of `other`.
    """
    ours, theirs = (load_latest(r.checkpoints, pytest.fail) for r in (run, other))
    assert ours.progress == theirs.progress
    assert ours.state.scalars == theirs.state.scalars
    assert ours.weights.digest == theirs.weights.digest
    for name, tensor in theirs.state.tensors.items():
        assert ours.state.tensors[name].tobytes() == tensor.tobytes(), name
    found, expected = lines(run), lines(other)
    if stopped:
        saved = [[r for r in records if r["kind"] == "checkpoint"] for records in (found, expected)]
        assert all(record in saved[0] for record in saved[1])
        found, expected = ([r for r in f if r["kind"] != "checkpoint"] for f in (found, expected))
    assert found == expected
    steps = [r["step"] for r in found if r["kind"] == "train"]
    assert steps == list(range(1, EPOCHS * PER_EPOCH + 1))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_thirty_ends_at_random_moments_change_nothing(
    photos: Path, recipe: Path, tmp_path: Path, uninterrupted: RunFolder, number: signal.Signals
) -> None:
    """Some come before the training has begun, some while it saves, evaluates or computes."""
    rng = np.random.default_rng(int(number))
    run = RunFolder(tmp_path / "run")
    for moment in rng.permutation(MOMENTS * (KILLS // len(MOMENTS))):
        resuming = run.config.is_file()
        argv = ["train", "--resume", str(run.path)] if resuming else words(photos, recipe, tmp_path)
        process = start(argv)
        assert wait_for(process, moment, int(rng.integers(1, 9))), finish(process)
        process.send_signal(number)
        code, err = finish(process)
        assert code in ({-signal.SIGKILL} if number == signal.SIGKILL else {-number, EXIT_INTERRUPTED}), err
    assert finish(start(["train", "--resume", str(run.path)])) == (EXIT_OK, "")
    same_end(run, uninterrupted, stopped=number == signal.SIGTERM)
    assert [r["kind"] for r in stored(run)].count("start") == 1
    assert not list(run.checkpoints.glob(".*"))


#: When an end comes: before the training has begun, when it begins, after some steps, when it saves or evaluates.
MOMENTS = ["at once", "begun", "steps", "saving", "evaluating", "steps"]


def wait_for(process: subprocess.Popen[str], moment: str, count: int) -> bool:
    """Read what a training says up to a moment of its life, of "steps" after `count` of them; False when it ends first.

    What is waited for is what it has said, so that it does not matter how fast anything is: the process cannot end
    meanwhile, since it has hundreds of lines to say and fills the pipe.
    """
    assert process.stdout is not None
    seen = 0
    if moment == "at once":
        return True
    for line in process.stdout:
        if line.startswith("training ") and moment == "begun":
            return True
        said = re.match(r"epoch +\d+ +step +(\d+) ", line)
        if said is not None:
            seen, step = seen + 1, int(said[1])
            if moment == "steps" and seen == count:
                return True
            if moment == "saving" and step % SAVED_EVERY == 0:
                return True
            if moment == "evaluating" and step % (EVALUATED_EVERY * PER_EPOCH) == 0:
                return True
    return False


# -- several processes -------------------------------------------------------------------------------

SPY = """
import json, os
from pathlib import Path
from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import READY, Backend
from resnext_core.reference.engine import ReferenceEngine
from resnext_core.training.trainer import Trainer

run_steps = Trainer.run_steps

def spy(self, batches, lrs, *more):
    rank = self._request.rank
    with Path(os.environ["SPY"]).open("a") as stream:
        for i, batch in enumerate(batches):
            line = [self.counters()["step"] + i, rank.rank, rank.world, batch.index.tolist()]
            stream.write(json.dumps(line) + "\\n")
    return run_steps(self, batches, lrs, *more)

Trainer.run_steps = spy

@hookimpl
def resnext_backends():
    yield Backend(id="spy", summary="writes down what it sees", probe=lambda: READY, engine=ReferenceEngine)
"""


def test_two_processes_go_on_as_one_and_as_three(photos: Path, recipe: Path, tmp_path: Path) -> None:
    """The images keep their order, and with as many micro-batches a step the weights are those of one process."""
    write_plugin(tmp_path / "site", "spy", SPY)
    seen = tmp_path / "seen.jsonl"
    env = {"PYTHONPATH": str(tmp_path / "site"), "SPY": str(seen)}
    run, epochs, batch = RunFolder(tmp_path / "run"), 6, 12
    sets = ["--set=train.checkpoint_steps=1", "--set=train.keep=99", "--set=data.workers=0"]
    sets += [
        "--set=precision.compute=float64"
    ]  # in which no rounding decides on which side of a ReLU a value is
    first = [
        "--backend",
        "spy",
        "train",
        "--recipe",
        recipe,
        "--data",
        photos,
        "--output",
        tmp_path,
        "--name",
        "run",
    ]
    first += ["--epochs", epochs, "--batch-size", batch, *sets]
    for argv, world, until in [
        (first, 2, 6),
        (["train", "--resume", run.path], 1, 14),
        (["train", "--resume", run.path], 3, None),
    ]:
        process = start(
            [*map(str, argv), "--devices", str(world), "--set", f"train.accumulate={6 // world}"], **env
        )
        if until is not None:
            assert eventually(lambda until=until: len(list(run.checkpoints.glob("step-*"))) >= until)  # type: ignore[misc]
            process.terminate()
        code, err = finish(process)
        assert code == (EXIT_OK if until is None else EXIT_INTERRUPTED), err
    worlds = set()
    done: dict[int, dict[int, list[int]]] = {}
    for line in seen.read_text().splitlines():
        step, rank, world, indices = json.loads(line)
        worlds.add(world)
        order = epoch_permutation(48, 1, step // 4)
        assert indices == rank_slice(order, step % 4, batch, rank, world).tolist()
        done.setdefault(step, {})[rank] = indices
    assert worlds == {1, 2, 3}
    assert sorted(done) == list(range(4 * epochs))

    alone = tmp_path / "alone"
    argv = [*map(str, first), "--output", str(alone), "--set", "train.accumulate=6"]
    assert finish(start(argv, **env))[0] == EXIT_OK
    ours, theirs = (load_latest(f / "run" / "checkpoints", pytest.fail) for f in (tmp_path, alone))
    for tensor in ours.weights.spec.tensors:
        if tensor.trainable:  # running statistics are those of rank 0's micro-batches, see decision 0008
            a, b = ours.weights.tensors[tensor.name], theirs.weights.tensors[tensor.name]
            assert np.abs(a - b).max() <= 1e-3 * np.abs(b).max(), tensor.name


def test_ranks_end_with_a_launcher_that_is_killed(photos: Path, recipe: Path, tmp_path: Path) -> None:
    process = start(words(photos, recipe, tmp_path, "--devices", 2))
    run = RunFolder(tmp_path / "run")
    assert eventually(lambda: len(stored(run)) > 3)
    ranks = psutil.Process(process.pid).children(recursive=True)
    assert len(ranks) >= 2
    process.kill()
    process.wait()
    assert eventually(lambda: not any(alive(p.pid) for p in ranks), 120)
    assert not run.is_training()
    saved = load_latest(run.checkpoints, pytest.fail).progress.step
    assert saved > 2
    assert saved == [r["step"] for r in stored(run) if r["kind"] == "train"][-1], "they did not save"


def test_a_closed_terminal_ends_no_training(photos: Path, recipe: Path, tmp_path: Path) -> None:
    process = start(words(photos, recipe, tmp_path, "--epochs", 4))
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    assert finish(process) == (EXIT_OK, "")
    assert stored(RunFolder(tmp_path / "run"))[-1]["kind"] == "end"


# -- disks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_every", [1, 50])  # with 50 the record of the last steps has no place either
def test_a_run_folder_that_vanishes_is_one_line(
    photos: Path, recipe: Path, tmp_path: Path, log_every: int
) -> None:
    process = start(words(photos, recipe, tmp_path, f"--set=train.log_every={log_every}"))
    run = RunFolder(tmp_path / "run")
    assert eventually(lambda: any(run.checkpoints.glob("step-*")))
    os.rename(run.path, tmp_path / "elsewhere")
    code, err = finish(process)
    assert code == EXIT_DATA
    assert len(err.splitlines()) == 1
    assert "cannot write" in err
    load_latest(tmp_path / "elsewhere" / "checkpoints", pytest.fail)  # what was there is whole
    assert not run.checkpoints.exists(), "it made a folder of its own again"


DELETES = """
import os, shutil
from pathlib import Path
from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import READY, Backend
from resnext_core.reference.engine import ReferenceEngine

class Deletes(ReferenceEngine):
    step = 0

    def queue(self, steps, scale):
        run = Path(os.environ["RUN"])
        if self.step == 9:
            (run / "records.jsonl").unlink()
        if self.step == 14:
            shutil.rmtree(run / "checkpoints")
        self.step += len(steps)
        return super().queue(steps, scale)

@hookimpl
def resnext_backends():
    yield Backend(id="deletes", summary="loses things", probe=lambda: READY, engine=Deletes)
"""


def test_records_and_checkpoints_that_someone_deletes_are_missed(
    photos: Path, recipe: Path, tmp_path: Path, cli: CommandLine
) -> None:
    """The training goes on and says it once; what is left is not called whole."""
    write_plugin(tmp_path / "site", "deletes", DELETES)
    run = RunFolder(tmp_path / "run")
    argv = words(photos, recipe, tmp_path, "--epochs", 4, "--set=train.background_saving=false")
    argv[argv.index("reference")] = "deletes"
    process = start(argv, PYTHONPATH=str(tmp_path / "site"), RUN=str(run.path))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (EXIT_OK, "")
    for text in (f"{run.records} was deleted", f"the checkpoints in {run.checkpoints} were deleted"):
        assert sum(line.startswith(text) for line in out.splitlines()) == 1
        assert sum(r["kind"] == "note" and r["text"].startswith(text) for r in stored(run)) == 1
    found = cli("runs", "verify", run.path)
    assert found.code == EXIT_DATA
    assert "records.jsonl does not begin with a start record: earlier records are missing" in found.out


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from resnext_core.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_disk_that_takes_no_more_is_one_line_and_keeps_what_it_has(
    photos: Path, recipe: Path, tmp_path: Path, background: str
) -> None:
    """A limit on the size of files stands for the disk: larger checkpoints than the first ones do not fit."""
    argv = words(photos, recipe, tmp_path, f"--set=train.background_saving={background}")
    done = subprocess.run(
        [sys.executable, "-c", FULL, "40000", *argv], env=environment(), capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == EXIT_DATA, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "File too large" in done.stderr
    run = RunFolder(tmp_path / "run")
    assert not list(run.checkpoints.glob(".step-*")), "what was half written was left"
    assert stored(run)[0]["kind"] == "start"
