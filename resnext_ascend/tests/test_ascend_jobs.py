"""Whole jobs in test mode: the command line with several ranks, however they are started, stopped and resumed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from ascend_cases import batches, train_request, trainer_with
from PIL import Image
from resnext_ascend.options import AscendOptions

from resnext_core.config import PrecisionConfig
from resnext_core.errors import UsageError
from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import model_spec
from resnext_core.model.weights import Weights, save_weights
from resnext_core.testing.processes import job_environment

pytest.importorskip("mindspore.nn")
CLASSES = ("a", "b", "c")
SMALL = ["--set", "ascend.device=cpu", "--set", "data.workers=0"]
TRAIN = [
    "train", *SMALL, "--set", "model.variant=resnext_tiny", "--set", "model.image_size=8", "--set",
    "preprocess.resize=8", "--batch-size", "6", "--set", "schedule.warmup_epochs=0", "--set",
    "train.checkpoint_steps=2", "--set", "ascend.affinity=false",  # rounding depends on the cores that are seen
]  # fmt: skip
INTEGERS = ("expected", "scored", "failed", "correct1", "correct5", "confusion", "dataset_digest")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images to train on, 23 to evaluate of which one is broken, and weights of a tiny network."""
    root = tmp_path_factory.mktemp("jobs")
    rng = np.random.default_rng(3)
    for part, count in (("train", 24), ("val", 23)):
        for i in range(count):
            path = root / "data" / part / CLASSES[i % 3] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    path.write_text("not an image")
    spec = model_spec("resnext_tiny", num_classes=3, image_size=8)
    weights = Weights(
        spec=spec,
        preprocess=PreprocessSpec(size=8, resize=8),
        classes=CLASSES,
        tensors=random_weights(spec, 1),
    )
    save_weights(weights, root / "tiny.safetensors")
    (root / "run.py").write_text("import sys\nfrom resnext_core.cli import main\nsys.exit(main())\n")
    return root


def environment(**changes: str) -> dict[str, str]:
    """Return that of a job: one thread a rank, on which rounding depends, and the python that msrun starts."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return job_environment("MS_", "DEVICE_ID", **{"OMP_NUM_THREADS": "1", "PATH": path} | changes)


def start(*words: object, **changes: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "resnext_core.cli", *map(str, words)], env=environment(**changes), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    try:
        out, err = process.communicate(timeout=200)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == code, out + err
    return out + (err if code else "")


def train(place: Path, name: str, *words: object) -> list[object]:
    return [
        "--backend",
        "ascend",
        *TRAIN,
        "--data",
        place / "data",
        "--output",
        place / "runs",
        "--name",
        name,
        *words,
    ]


def weights_of(run: Path) -> dict[str, np.ndarray]:
    """Return the latest weights and momentum of a run."""
    folder = run / "checkpoints" / (run / "checkpoints/latest").read_text().strip()
    return {
        f"{name}/{k}": v
        for name in ("weights", "training")
        for k, v in safetensors.numpy.load_file(folder / f"{name}.safetensors").items()
    }


def assert_same(one: Path, other: Path) -> None:
    first, second = weights_of(one), weights_of(other)
    assert set(first) == set(second)
    differ = [k for k in first if not np.array_equal(first[k], second[k])]
    assert not differ, differ[:3]


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """A run of two ranks over four epochs that nothing disturbed."""
    finish(start(*train(place, "whole", "--epochs", 4, "--devices", 2)))
    return place / "runs/whole"


def test_the_same_integers_for_any_number_of_ranks(place: Path) -> None:
    words = ["--backend", "ascend", "eval", "--json", *SMALL, "--weights", place / "tiny.safetensors"]
    words += ["--data", place / "data"]
    found = []
    for devices, batch in ((1, 64), (2, 7), (3, 1)):
        more = [
            "--devices",
            devices,
            "--set",
            f"eval.batch_size={batch}",
            "--output",
            place / f"eval-{devices}",
        ]
        found.append(json.loads(finish(start(*words, *more))))
    assert (found[0]["expected"], found[0]["failed"]) == (23, 1)
    for result in found[1:]:
        assert {k: result[k] for k in INTEGERS} == {k: found[0][k] for k in INTEGERS}


def test_a_rank_that_is_killed_and_another_try(place: Path, whole: Path) -> None:
    """End with the bits of the run that nothing disturbed."""
    process = start(*train(place, "killed", "--epochs", 4, "--devices", 2, "--set", "ascend.restarts=2"))
    run = place / "runs/killed"
    deadline = time.monotonic() + 300
    try:
        while time.monotonic() < deadline and not list(run.glob("checkpoints/step-*")):
            time.sleep(0.05)
        ranks = _ranks(process.pid)
        os.kill(ranks["1"], signal.SIGKILL)
    finally:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    assert "rank 1 of 2 was killed by SIGKILL" in err
    assert "restart 1 of 2 from the last checkpoint" in err
    assert (run / "ranks/restart-1/rank-0.log").is_file()
    assert_same(run, whole)


def _ranks(launcher: int) -> dict[str, int]:
    """Return the process ids of a launcher's ranks by rank, as /proc tells their environment."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            variables = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        values = dict(v.split(b"=", 1) for v in variables if b"=" in v)
        if parent == launcher and values.get(b"MS_ROLE") == b"MS_WORKER":
            found[values[b"RANK_ID"].decode()] = int(path.name)
    return found


def test_two_ranks_resumed_by_one(place: Path) -> None:
    """It takes up at the step, and sees the images that two would have seen."""
    process = start(*train(place, "stopped", "--epochs", 2000, "--devices", 2))
    run = place / "runs/stopped"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not list(run.glob("checkpoints/step-*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    finish(process, 75)
    stopped = json.loads((run / "records.jsonl").read_text().splitlines()[-1])["step"]
    assert stopped >= 2
    more = stopped // 4 + 2
    finish(start("--backend", "ascend", "train", "--resume", run, "--epochs", more))
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "resume"] == [stopped]
    assert records[-1]["kind"] == "end"
    assert records[-1]["step"] == 4 * more


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_servers_on_one_machine(place: Path, whole: Path) -> None:
    """Rank for rank the same as one server with two; one run folder."""
    master = f"127.0.0.1:{_port()}"
    jobs = []
    for server in (1, 0):
        words = ["ascend", "launch", "--devices", 1, "--servers", 2, "--server", server, "--master", master]
        words += ["--logs", place / f"logs-{server}", "--"]
        jobs.append(start(*words, *train(place, "servers", "--epochs", 4)[2:]))
    for job in jobs:
        finish(job)
    assert_same(place / "runs/servers", whole)
    assert (place / "logs-1/rank-1.log").is_file()


@pytest.mark.parametrize("world", [2, 3])
def test_msrun_is_recognised(world: int, place: Path, whole: Path) -> None:
    """Ranks of MindSpore's own launcher compute the same; three of them count the same."""
    words = [Path(sys.executable).with_name("msrun"), f"--worker_num={world}", f"--local_worker_num={world}"]
    words += [
        f"--master_port={_port()}",
        "--cluster_time_out=60",
        f"--log_dir={place}/msrun-{world}",
        "--join=True",
    ]
    words += [place / "run.py"]
    if world == 2:
        words += train(place, "msrun", "--epochs", 4)
    else:
        words += ["--backend", "ascend", "eval", "--json", *SMALL, "--weights", place / "tiny.safetensors"]
        words += ["--data", place / "data"]
    done = subprocess.run(
        list(map(str, words)), cwd=place, env=environment(), capture_output=True, text=True, timeout=200, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    if world == 2:
        assert_same(place / "runs/msrun", whole)
        return
    logs = "\n".join(p.read_text(errors="replace") for p in (place / "msrun-3").glob("worker_*.log"))
    (result,) = [json.loads(line) for line in logs.splitlines() if line.startswith('{"weights"')]
    assert (result["expected"], result["scored"], result["failed"]) == (23, 22, 1)


def test_a_dynamic_cluster_by_hand(place: Path, whole: Path) -> None:
    """With MindSpore's variables alone; the scheduler is the same command."""
    shared = {"MS_WORKER_NUM": "2", "MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": str(_port())}
    words = train(place, "by-hand", "--epochs", 4)
    scheduler = start(*words, **shared, MS_ROLE="MS_SCHED", MS_NODE_ID="0")
    workers = [start(*words, **shared, MS_ROLE="MS_WORKER", MS_NODE_ID=str(rank)) for rank in (0, 1)]
    for process in (*workers, scheduler):
        finish(process)
    assert_same(place / "runs/by-hand", whole)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (
            ["launch", "--devices", "2", "--", "infer", "x.jpg"],
            2,
            "several ranks run train or eval, not 'infer'",
        ),
        (["launch", "--devices", "2", "--", "train", "--dvices", "2"], 2, "unknown flag '--dvices'"),
        (
            ["launch", "--devices", "2", "--", "train", "--devices", "2"],
            2,
            "give --devices before the --",
        ),
        (["launch", "--devices", "0", "--", "train"], 2, "must be an integer from 1"),
        (["launch", "--devices", "1", "--master", "here", "--", "train"], 2, "--master must be HOST:PORT"),
        (["launch", "--devices", "1", "--", "train", "--set", "ascend.jit_level=O3"], 2, "ascend.jit_level"),
        (["launch", "--devices", "1", "--", "train", "--resume", "no-run"], 3, "is not a run folder"),
        (["lunch"], 2, "invalid choice: 'lunch'"),
    ],
)
def test_wrong_words_start_nothing(words: list[str], code: int, says: str) -> None:
    assert says in finish(start("ascend", *words), code)


@pytest.mark.skipif(Path("/dev/davinci0").exists(), reason="an Ascend is here")
def test_without_an_ascend_it_is_one_line(place: Path) -> None:
    words = ["eval", "--weights", place / "tiny.safetensors", "--data", place / "data"]
    text = finish(start("--backend", "ascend", *words), 4)
    assert len(text.splitlines()) == 1
    assert "(a test without one: --set ascend.device=cpu)" in text


# -- the trainer ----------------------------------------------------------------------------------


def test_waiting_for_each_step_changes_no_bit() -> None:
    lr = np.array([0.1, 0.05, 0.02], np.float32)
    losses, states = [], []
    for sink in (True, False):
        trainer = trainer_with(AscendOptions(device="cpu", sink=sink), train_request())
        losses.append(trainer.run_steps(batches(3), lr))
        states.append(trainer.state().tensors)
    np.testing.assert_array_equal(losses[0], losses[1])
    for name, array in states[0].items():
        np.testing.assert_array_equal(array, states[1][name], err_msg=name)
    assert trainer.run_steps([], lr[:0]).shape == (0,)
    with pytest.raises(UsageError, match="2 batches need as many learning rates, not 3"):
        trainer.run_steps(batches(2), lr)


def test_the_test_mode_has_no_bfloat16() -> None:
    with pytest.raises(UsageError, match="cannot train in bfloat16 on CPU"):
        trainer_with(
            AscendOptions(device="cpu"), train_request(precision=PrecisionConfig(compute="bfloat16"))
        )
