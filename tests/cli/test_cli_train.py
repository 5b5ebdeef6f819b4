"""Training as a user runs it: stopped by signals and killed, resumed, on several processes; nothing twice or lost."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from command_line import CommandLine, environment, in_process, write_plugin
from processes import eventually, finish
from run_records import stored

from resnext_core.errors import EXIT_DATA, EXIT_INTERRUPTED, EXIT_UNAVAILABLE, EXIT_USAGE
from resnext_core.model.weights import load_weights
from resnext_core.runs.checkpoint import load_checkpoint, load_latest
from resnext_core.runs.folder import RunFolder

EPOCHS, STEPS = 20, 120
#: Images are mixed by draws of their own for every step: a run that was stopped, or has more ranks, draws the same.
MIXED = [
    "--set",
    "mix.mixup=0.2",
    "--set",
    "mix.cutmix=1",
    "--set",
    "mix.prob=0.8",
    "--set",
    "mix.off_epoch=18",
]


@pytest.fixture
def start(photos: Path, recipe: Path, tmp_path: Path) -> list[str]:
    """The words of a training long enough to be stopped: 20 epochs of 6 steps, decoded by a worker."""
    return [
        "--backend", "reference", "train", "--recipe", str(recipe), "--data", str(photos), "--output",
        str(tmp_path), "--epochs", str(EPOCHS), "--set", "data.workers=1", "--set", "train.ema_decay=0.9", *MIXED,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(photos: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run of `start` that nobody stops."""
    parent = tmp_path_factory.mktemp("uninterrupted")
    words = ["train", "--recipe", recipe, "--data", photos, "--output", parent, "--name", "run"]
    words += ["--epochs", EPOCHS, "--set", "train.ema_decay=0.9", "--backend", "reference", *MIXED]
    subprocess.run(
        [sys.executable, "-m", "resnext_core.cli", *map(str, words)],
        env=environment(), check=True, timeout=120, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return RunFolder(parent / "run")


def begin(words: list[str], cwd: Path, until: str, **env: str) -> subprocess.Popen[str]:
    """Start ``resnext-run`` and return its process once it has printed a line with `until`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "resnext_core.cli", *words],
        cwd=cwd, env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if until in line:
            return process
    raise AssertionError(f"ended before '{until}': {process.communicate()[1]}")


def same_outcome(run: RunFolder, other: RunFolder) -> None:
    """Weights, momentum, EMA and progress are equal to the bit, and every step and epoch has one equal record."""
    ours, theirs = (load_latest(r.checkpoints, pytest.fail) for r in (run, other))
    assert ours.weights.digest == theirs.weights.digest
    assert ours.progress == theirs.progress
    assert ours.state.scalars == theirs.state.scalars
    assert ours.state.tensors.keys() == theirs.state.tensors.keys()
    for name, tensor in ours.state.tensors.items():
        assert np.array_equal(tensor, theirs.state.tensors[name]), name
    for kind, keys in (
        ("train", ("step", "epoch", "loss", "lr")),
        ("eval", ("step", "top1", "top5", "best")),
    ):
        rows = [[{k: r[k] for k in keys} for r in stored(f) if r["kind"] == kind] for f in (run, other)]
        assert rows[0] == rows[1]
    steps = [r["step"] for r in stored(run) if r["kind"] == "train"]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    start: list[str], tmp_path: Path, uninterrupted: RunFolder, cli: CommandLine, number: signal.Signals
) -> None:
    process = begin([*start, "--name", "run"], tmp_path, "step     10 ")
    process.send_signal(number)
    code, err = finish(process)
    assert code == EXIT_INTERRUPTED, err
    run = RunFolder.open(tmp_path / "run")
    progress = load_latest(run.checkpoints, pytest.fail).progress
    assert 10 <= progress.step < STEPS
    says = f"stopped after step {progress.step}; continue with --resume {run.path}"
    assert err == f"resnext-run: {says}\n"
    recorded = [r["step"] for r in stored(run) if r["kind"] == "train"]
    assert recorded == list(range(1, progress.step + 1))

    out = cli.ok("train", "--resume", run.path, "--set", "data.workers=0").out
    assert f"weights: {run.checkpoints}" in out
    same_outcome(run, uninterrupted)
    assert [r["step"] for r in stored(run) if r["kind"] == "resume"] == [progress.step]


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    start: list[str], tmp_path: Path, uninterrupted: RunFolder, cli: CommandLine
) -> None:
    process = begin([*start, "--name", "run"], tmp_path, "step     20 ")
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    run = RunFolder.open(tmp_path / "run")
    with run.records.open("a") as stream:
        stream.write('{"kind": "train", "st')  # the line that was being written
    (run.checkpoints / ".step-00000777.partial").mkdir()
    cli.ok("train", "--resume", run.path, "--set", "data.workers=0")
    same_outcome(run, uninterrupted)
    assert not list(run.checkpoints.glob(".*"))


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    start: list[str], tmp_path: Path, uninterrupted: RunFolder, cli: CommandLine
) -> None:
    process = begin([*start, "--name", "run"], tmp_path, "step      2 ")
    process.kill()
    finish(process)
    run = RunFolder.open(tmp_path / "run")
    shutil.rmtree(run.checkpoints, ignore_errors=True)  # it may have been faster than the kill
    cli.ok("train", "--resume", run.path, "--set", "data.workers=0")
    same_outcome(run, uninterrupted)
    assert [r["kind"] for r in stored(run)].count("start") == 1


def test_damage_to_the_newest_checkpoint_costs_that_one_alone(
    tmp_path: Path, uninterrupted: RunFolder, cli: CommandLine
) -> None:
    run = RunFolder(shutil.copytree(uninterrupted.path, tmp_path / "run"))
    newest = run.checkpoints / f"step-{STEPS:08d}" / "training.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\x55")
    out = cli.ok("train", "--resume", run.path).out
    assert f"{newest} is damaged: checksum mismatch with state.json; trying the previous one" in out
    same_outcome(run, uninterrupted)


SLOW = """
import signal, time
from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import READY, Backend
from resnext_core.reference.engine import ReferenceEngine

class Slow(ReferenceEngine):
    def queue(self, steps, scale):
        print("IN STEP", flush=True)
        while not signal.getsignal(signal.SIGINT).__self__.requested:
            time.sleep(0.01)
        print("ASKED", flush=True)
        time.sleep(600)
        return super().queue(steps, scale)

@hookimpl
def resnext_backends():
    yield Backend(id="slow", summary="sleeps ten minutes a step", probe=lambda: READY, engine=Slow)
"""


def test_the_second_interrupt_stops_at_once(photos: Path, recipe: Path, tmp_path: Path) -> None:
    write_plugin(tmp_path / "site", "slow", SLOW)
    words = ["--backend", "slow", "train", "--recipe", str(recipe), "--data", str(photos), "--name", "run"]
    process = begin(words, tmp_path, "IN STEP", PYTHONPATH=str(tmp_path / "site"))
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert "ASKED\n" in iter(process.stdout.readline, ""), "the first interrupt waits for the step"
    process.send_signal(signal.SIGINT)
    assert finish(process) == (EXIT_INTERRUPTED, "resnext-run: stopped\n"), "the step takes ten minutes"


# -- resuming ------------------------------------------------------------------------------------


def test_a_finished_run_can_be_trained_longer(finished_run: Path, cli: CommandLine, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(finished_run, tmp_path / "run"))
    result = cli.ok("train", "--resume", run.path, "--epochs", 3, "--json").json()
    assert result == {"run": str(run.path), "weights": result["weights"]}
    checkpoint = load_checkpoint(run.checkpoints / "step-00000018")
    assert checkpoint.progress.step == checkpoint.state.scalars["step"] == 18


def test_the_newest_run_is_resumed_where_none_is_named(
    finished_run: Path, cli: CommandLine, tmp_path: Path
) -> None:
    for name, age in (("new", 0), ("old", 1000)):
        shutil.copytree(finished_run, tmp_path / name)
        stamp = time.time() - age
        os.utime(tmp_path / name / "config.yaml", (stamp, stamp))
    assert cli.ok("train", "--resume", "--output", tmp_path, "--json").json()["run"] == str(tmp_path / "new")


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (["--seed", "2"], EXIT_DATA, "seed was 1 and is 2"),
        (["--batch-size", "16"], EXIT_DATA, "batch_size was 8 and is 16"),
        (
            ["--set", "model.variant=resnext29_32x4d"],
            EXIT_DATA,
            "variant was resnext_tiny and is resnext29_32x4d",
        ),
        (["--set", "train.ema_decay=0.9"], EXIT_DATA, "whether train.ema_decay is set was False and is True"),
        (["--data", "/nowhere"], EXIT_USAGE, "there is no data folder /nowhere"),
    ],
)
def test_resuming_as_something_else_is_refused(
    finished_run: Path, cli: CommandLine, tmp_path: Path, change: list[str], code: int, says: str
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    outcome = cli("train", "--resume", run, "--epochs", 3, *change)
    assert outcome.code == code
    assert outcome.err.count("\n") == 1
    assert says in outcome.err
    assert (run / "checkpoints" / "latest").read_text() == "step-00000012"


def test_a_training_that_is_refused_leaves_no_run(
    start: list[str], cli: CommandLine, tmp_path: Path, finished_run: Path
) -> None:
    """So that its name is free; a run that was there already stays as it is."""
    words = [*start, "--name", "mine", "--set", "precision.compute=bfloat16"]
    cli.refuses(EXIT_USAGE, *words, says="the reference backend cannot compute in bfloat16")
    assert not (tmp_path / "mine").exists()
    run = shutil.copytree(finished_run, tmp_path / "run")
    before = sorted(p.relative_to(run) for p in run.rglob("*"))
    change = ["--epochs", 3, "--set", "precision.compute=bfloat16"]
    assert cli("train", "--resume", run, *change).code == EXIT_USAGE
    assert sorted(p.relative_to(run) for p in run.rglob("*")) == before


def test_a_section_of_a_backend_that_is_not_here_does_not_stop_a_resume(
    finished_run: Path, cli: CommandLine, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    with (run / "config.yaml").open("a") as stream:
        stream.write("elsewhere: {cards: 8}\n")
    cli.ok("train", "--resume", run)


# -- several processes ---------------------------------------------------------------------------


def rows(run: RunFolder, kind: str, *keys: str) -> list[list[Any]]:
    return [[r[k] for k in keys] for r in stored(run) if r["kind"] == kind]


#: In float64 no rounding decides on which side of a ReLU a value is, however many steps are compared.
EXACT = ["--set", "precision.compute=float64", *MIXED]


@pytest.fixture(scope="module")
def two_ranks(photos: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A training on two processes; its standard output must be one JSON document."""
    parent = tmp_path_factory.mktemp("two")
    words = [
        "--backend",
        "reference",
        "train",
        "--devices",
        "2",
        "--recipe",
        recipe,
        "--data",
        photos,
        *EXACT,
    ]
    done = subprocess.run(
        [sys.executable, "-m", "resnext_core.cli", *map(str, words), "--output", parent, "--name", "run", "--json"],
        env=environment(), check=True, timeout=120, capture_output=True, text=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["run"] == str(parent / "run")
    return RunFolder(parent / "run")


def test_two_ranks_are_one_that_accumulates(
    two_ranks: RunFolder, photos: Path, recipe: Path, cli: CommandLine, tmp_path: Path
) -> None:
    words = ["train", "--recipe", recipe, "--data", photos, "--output", tmp_path, "--name", "one"]
    cli.ok(*words, *EXACT, "--set", "train.accumulate=2")
    one = RunFolder(tmp_path / "one")
    assert rows(two_ranks, "train", "step", "epoch", "lr") == rows(one, "train", "step", "epoch", "lr")
    np.testing.assert_allclose(rows(two_ranks, "train", "loss"), rows(one, "train", "loss"), rtol=2e-5)
    ours, theirs = (load_latest(r.checkpoints, pytest.fail) for r in (two_ranks, one))
    for tensor in ours.weights.spec.tensors:
        if tensor.trainable:
            a, b = ours.weights.tensors[tensor.name], theirs.weights.tensors[tensor.name]
            np.testing.assert_allclose(
                a, b, rtol=1e-3, atol=1e-5 * float(np.abs(b).max()), err_msg=tensor.name
            )


def test_ranks_evaluate_the_network_that_they_save(
    two_ranks: RunFolder, photos: Path, cli: CommandLine
) -> None:
    """Each rank has running statistics of its own; the evaluation must be that of the checkpoint."""
    for step, top1, top5 in rows(two_ranks, "eval", "step", "top1", "top5"):
        weights = two_ranks.checkpoints / f"step-{step:08d}"
        words = ["eval", "--weights", weights, "--data", photos, "--split", "val", "--json"]
        result = cli.ok(*words, "--set", "data.workers=0").json()
        assert (result["top1"], result["top5"]) == (top1, top5)


def test_a_launch_is_stopped_and_resumed_on_fewer_ranks(
    start: list[str], tmp_path: Path, cli: CommandLine
) -> None:
    process = begin([*start, "--name", "run", "--devices", "2"], tmp_path, "step      8 ")
    process.terminate()
    code, err = finish(process)
    assert code == EXIT_INTERRUPTED, err
    run = RunFolder.open(tmp_path / "run")
    stopped = load_latest(run.checkpoints, pytest.fail).progress.step
    assert 8 <= stopped < STEPS
    epochs = stopped // 6 + 2
    cli.ok("train", "--resume", run.path, "--epochs", epochs, "--set", "data.workers=0")
    assert [s for (s,) in rows(run, "train", "step")] == list(range(1, 6 * epochs + 1))


def test_overrides_reach_every_rank_of_a_resumed_launch(
    finished_run: Path, spawn: CommandLine, tmp_path: Path
) -> None:
    run = RunFolder(shutil.copytree(finished_run, tmp_path / "run"))
    spawn.ok("train", "--resume", run.path, "--devices", 2, "--epochs", 3, "--set", "train.log_every=2")
    assert rows(run, "train", "step", "images")[12:] == [[14, 16], [16, 16], [18, 16]]


# -- what a run leaves ---------------------------------------------------------------------------


def test_the_run_folder_is_complete(finished_run: Path, photos: Path) -> None:
    run = RunFolder.open(finished_run)
    names = {p.name for p in finished_run.iterdir()}
    assert names == {
        "config.yaml", "data.json", "run.json", "records.jsonl", "log.txt", "checkpoints", "lock", "evaluation.json",
    }  # fmt: skip
    about = run.read_result("run")
    assert about["backend"] == "reference"
    assert about["environment"]["numpy"] == np.__version__
    kinds = [r["kind"] for r in stored(run)]
    assert kinds[0] == "start"
    assert kinds[-1] == "end"
    assert kinds.count("train") == 12
    assert kinds.count("checkpoint") == kinds.count("eval") == 2
    assert str(photos) in run.config.read_text()
    weights = load_weights(run.checkpoints / "step-00000012" / "weights.safetensors")
    assert weights.origin["run"] == "run"
    assert weights.origin["step"] == 12
    log = (finished_run / "log.txt").read_text()
    assert "epoch   2  val top-1" in log
    momentum = safetensors.numpy.load_file(run.checkpoints / "step-00000012" / "training.safetensors")
    assert {n.split("/")[0] for n in momentum} == {"momentum"}, "what is served is not stored twice"


def test_training_without_val_evaluates_nothing_and_says_where_the_weights_are(
    photos: Path, recipe: Path, cli: CommandLine, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos / "train", data / "train")
    words = [
        "train",
        "--recipe",
        recipe,
        "--data",
        data,
        "--output",
        tmp_path,
        "--name",
        "run",
        "--epochs",
        1,
    ]
    weights = Path(cli.ok(*words, "--json").json()["weights"])
    assert weights == tmp_path / "run" / "checkpoints" / "step-00000006" / "weights.safetensors"
    assert rows(RunFolder(tmp_path / "run"), "eval", "step") == []


def test_a_diverging_run_stops_and_keeps_what_it_has(
    photos: Path, recipe: Path, cli: CommandLine, tmp_path: Path
) -> None:
    words = ["train", "--recipe", recipe, "--data", photos, "--output", tmp_path, "--name", "run"]
    says = ("loss is not a number at step", "lower optimizer.lr")
    cli.refuses(EXIT_DATA, *words, "--set", "optimizer.lr=1e30", says=says)


# -- faults in mid-run ---------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [1, 2])
def test_data_that_vanishes_stops_the_run_which_goes_on_when_it_is_back(
    start: list[str], photos: Path, tmp_path: Path, uninterrupted: RunFolder, devices: int
) -> None:
    """Never a black image: what was trained is saved, and the end is that of a run to which nothing happened."""
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    words = [str(data) if word == str(photos) else word for word in start]
    process = begin([*words, "--name", "run", "--devices", str(devices)], tmp_path, "step      8 ")
    data.rename(tmp_path / "elsewhere")
    code, err = finish(process)
    assert code == EXIT_DATA, err
    run = RunFolder.open(tmp_path / "run")
    step = load_latest(run.checkpoints, pytest.fail).progress.step
    assert 8 <= step < STEPS
    assert f"the data folder {data} can no longer be read: No such file or directory" in err
    assert f"saved after step {step}, continue with --resume {run.path}" in err
    assert rows(run, "bad_image", "path") == []
    assert all(scored == 23 for (scored,) in rows(run, "eval", "scored"))
    if devices == 1:
        assert len(err.splitlines()) == 1
        (tmp_path / "elsewhere").rename(data)
        process = begin(["train", "--resume", str(run.path)], tmp_path, "training ")
        assert finish(process) == (0, "")
        same_outcome(run, uninterrupted)


def test_an_evaluation_that_cannot_end_costs_no_training(
    start: list[str], photos: Path, cli: CommandLine, tmp_path: Path
) -> None:
    """And resuming does not train again; with the fault mended it goes on."""
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    bad = data / "val" / "ant" / "zz.png"
    bad.write_bytes(b"junk")
    words = [str(data) if word == str(photos) else word for word in start]
    says = (
        f"cannot read image {bad}: not an image",
        "data.bad_images=count",
        "saved after step 6, continue with",
    )
    more = ["--name", "run", "--epochs", 2, "--set", "data.bad_images=fail"]
    cli.refuses(EXIT_DATA, *words, *more, says=says)
    run = RunFolder(tmp_path / "run")
    for _ in range(2):
        cli.refuses(EXIT_DATA, "train", "--resume", run.path, says=says)
        assert rows(run, "train", "step")[-1] == [6], "it trained again"
    bad.unlink()
    cli.ok("train", "--resume", run.path)
    assert rows(run, "eval", "step", "scored") == [[6, 23], [12, 23]]
    assert rows(run, "checkpoint", "step") == [[6], [12]]


def test_bad_images_are_told_where_and_why(
    start: list[str], photos: Path, cli: CommandLine, tmp_path: Path
) -> None:
    """In a line and a record at once, and in the end; on two ranks as on one."""
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    bad = [data / "train" / name / sorted(os.listdir(data / "train" / name))[0] for name in ("ant", "elk")]
    for path in bad:
        path.write_bytes(b"junk")
    words = [str(data) if word == str(photos) else word for word in start]
    for devices in (1, 2):
        name = f"run{devices}"
        out = cli.ok(*words, "--name", name, "--epochs", 2, "--devices", devices).out
        run = RunFolder(tmp_path / name)
        if devices == 2:
            out = (run.logs / "rank-0.log").read_text()
        assert (run.path / "log.txt").read_text().count("not an image of a known format") == 4
        for path in bad:
            assert out.count(f"cannot read training image {path}: not an image of a known format") == 1
        assert sorted(rows(run, "bad_image", "path")) == [[str(path)] for path in bad]
        assert out.count(f"2 of 48 training images could not be read: {bad[0]}: not an image") == 1
    strict = [*words, "--name", "strict", "--epochs", 2, "--set", "data.max_bad=0.01"]
    says = (
        "of 48 training images could not be read",
        "data.max_bad allows 0",
        f"resnext-run data scan {data}",
    )
    cli.refuses(EXIT_DATA, *strict, says=says)


# -- the terminal --------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("way", ["pipe", "full", "closed"])
def test_a_terminal_that_takes_nothing_ends_no_training(
    photos: Path, recipe: Path, tmp_path: Path, way: str, devices: int
) -> None:
    """EPIPE, ENOSPC, and no standard output at all, of one process and through the launcher."""
    words = ["--backend", "reference", "train", "--recipe", recipe, "--data", photos, "--output", tmp_path]
    words += ["--name", "run", "--set", "data.workers=1", "--devices", devices]
    command = [sys.executable, "-m", "resnext_core.cli", *map(str, words)]
    ours, theirs = os.pipe()
    os.close(ours)
    with open("/dev/full", "w") as full, os.fdopen(theirs, "w") as pipe:
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" >&-', "sh", *command] if way == "closed" else command,
            env=environment(), stdout={"pipe": pipe, "full": full, "closed": None}[way], stderr=subprocess.PIPE,
            text=True, timeout=120, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    run = RunFolder(tmp_path / "run")
    assert stored(run)[-1]["kind"] == "end"
    log = (run.path / "log.txt").read_text()
    assert "epoch   2  val top-1" in log
    if devices == 1 and way != "closed":
        assert log.count("cannot write to the terminal") == 1
    if devices == 2:
        assert "epoch   2  val top-1" in (run.logs / "rank-0.log").read_text()
    # what a worker decoded is what was trained on: its memory did not take the number of a closed stream
    losses = [r["loss"] for r in stored(run) if r["kind"] == "train"]
    assert len(set(losses)) > 6


@pytest.mark.parametrize("devices", [1, 2])
def test_a_terminal_that_hangs_up_ends_no_training(start: list[str], tmp_path: Path, devices: int) -> None:
    """A real one, with SIGHUP and EIO, while the progress bar is drawn on it."""
    master, slave = os.openpty()
    words = [*start, "--name", "run", "--epochs", "2000", "--devices", str(devices)]
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINAL, *words], env=environment(TERM="xterm"), stdin=slave, stdout=slave,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    seen = b""
    while b"12000" not in seen and b"step      6" not in seen:  # the bar's total; the launcher has no bar
        seen += os.read(master, 4096)
    run = RunFolder(tmp_path / "run")
    os.close(master)
    steps = len(stored(run))
    assert eventually(lambda: len(stored(run)) > steps + 10)
    assert process.poll() is None
    process.terminate()
    assert finish(process) == (EXIT_INTERRUPTED, finish_line(run, devices))


TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from resnext_core.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def finish_line(run: RunFolder, devices: int) -> str:
    step = load_latest(run.checkpoints, pytest.fail).progress.step
    return f"resnext-run: stopped after step {step}; continue with --resume {run.path}\n"


#: A backend whose device is found missing only when it is opened.
NO_DEVICE = """
from resnext_core.errors import BackendUnavailable
from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import READY, Backend

def engine(request):
    raise BackendUnavailable("there is no card in this machine: put one in")

@hookimpl
def resnext_backends():
    yield Backend(id="absent", summary="no device", probe=lambda: READY, engine=engine, predictor=print)
"""


def test_a_missing_device_is_found_before_the_run_is_announced(
    photos: Path,
    recipe: Path,
    site: Path,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    finished_run: Path,
) -> None:
    write_plugin(site, "absent", NO_DEVICE)
    importlib.invalidate_caches()
    cli = in_process(capfd)
    words = ["--recipe", recipe, "--data", photos, "--output", tmp_path / "runs", "--name", "run"]
    for command in ("train", "run"):
        outcome = cli.refuses(
            EXIT_UNAVAILABLE, "--backend", "absent", command, *words, says="there is no card in this machine"
        )
        assert outcome.out == ""
        assert list((tmp_path / "runs").iterdir()) == []

    run = RunFolder(shutil.copytree(finished_run, tmp_path / "run"))
    before = run.records.read_bytes()
    resume = ["--backend", "absent", "train", "--resume", run.path, "--epochs", 3]
    cli.refuses(EXIT_UNAVAILABLE, *resume, says="there is no card in this machine")
    assert run.records.read_bytes() == before, "what was recorded stays, if nothing follows"


def test_a_training_that_ends_before_its_first_step_leaves_no_run_folder(
    photos: Path, recipe: Path, cli: CommandLine, tmp_path: Path
) -> None:
    data = shutil.copytree(photos, tmp_path / "data")
    for image in (data / "train").rglob("*.*"):
        image.write_bytes(b"no image")
    words = ["train", "--recipe", recipe, "--data", data, "--output", tmp_path / "runs", "--name", "run"]
    cli.refuses(EXIT_DATA, *words, "--set", "data.bad_images=fail", says="cannot read image")
    assert list((tmp_path / "runs").iterdir()) == []
