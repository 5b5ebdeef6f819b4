"""Whole jobs in the test mode: the old scripts, several devices, signals, and checkpoints that change backends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch.nn", reason="PyTorch is not installed")

from resnext_core.plugins import load_plugins

SCRIPTS = Path(__file__).parents[1] / "scripts"
CPU = ["--set", "gpu.device=cpu"]
RECIPE = """\
model: {variant: resnext_tiny, image_size: 16}
preprocess: {resize: 16}
optimizer: {lr: 0.02, lr_batch: null}
schedule: {kind: constant, warmup_epochs: 0}
data: {workers: 0}
train: {epochs: 2, batch_size: 8, log_every: 1}
eval: {batch_size: 5}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of tinted noise, 24 images to train on and 14 to validate."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 7)):
        for label, name in enumerate(("ant", "bee")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 160, (18, 18, 3))
                pixels[..., label] += 90
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def call(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def resnext(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return call(sys.executable, "-m", "resnext_core.cli", *words, cwd=cwd, **environment)


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    return [record for record in found if record["kind"] == kind]


def mean_loss(run: Path, epoch: int) -> float:
    """Return the mean loss of an epoch, whose records may stand for one step or for several."""
    found = [record for record in records(run, "train") if record["epoch"] == epoch]
    return float(np.average([r["loss"] for r in found], weights=[r["images"] for r in found]))


def steps(run: Path) -> int:
    return int(records(run, "end")[-1]["step"])


def test_the_old_scripts(data: Path, recipe: Path, tmp_path: Path) -> None:
    """One device, two devices, and the evaluation of what they trained, with the old arguments and ours behind."""
    environment = {"RECIPE": str(recipe), "BATCH": "4"}
    one = call(
        "sh",
        SCRIPTS / "run_standalone_train_gpu.sh",
        data,
        *CPU,
        "--name",
        "one",
        cwd=tmp_path,
        **environment,
    )
    assert one.returncode == 0, one.stderr
    assert steps(tmp_path / "runs/one") == 12
    two = call(
        "sh",
        SCRIPTS / "run_distribute_train_gpu.sh",
        data,
        *CPU,
        "--name",
        "two",
        cwd=tmp_path,
        DEVICES="2",
        **environment,
    )
    assert two.returncode == 0, two.stderr
    assert steps(tmp_path / "runs/two") == 6, "2 ranks with 4 images each"
    assert (tmp_path / "runs/two/ranks/rank-1.log").exists()
    done = call("sh", SCRIPTS / "run_eval_gpu.sh", data, "runs/two", *CPU, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["expected"], result["scored"]) == (14, 14)
    (last,) = records(tmp_path / "runs/two", "eval")[-1:]
    assert result["top1"] == last["top1"]


@pytest.mark.parametrize(
    ("script", "words", "code", "line"),
    [
        ("run_standalone_train_gpu.sh", [], 2, "usage:"),
        ("run_distribute_train_gpu.sh", [], 2, "usage:"),
        ("run_distribute_train_gpu.sh", ["DATA"], 4, "DEVICES=8"),
        ("run_eval_gpu.sh", ["DATA"], 2, "usage:"),
        ("run_eval_gpu.sh", ["DATA", "no-such-file", *CPU], 3, "no-such-file"),
        ("run_standalone_train_gpu.sh", ["no-such-folder", *CPU], 2, "no-such-folder"),
    ],
)
def test_wrong_use_of_the_scripts(
    script: str, words: list[str], code: int, line: str, tmp_path: Path
) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    done = call("sh", SCRIPTS / script, *words, cwd=tmp_path, **environment)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
    assert line in done.stderr


def test_devices_are_counted(data: Path, recipe: Path, tmp_path: Path) -> None:
    """By nvidia-smi, here a program that prints what it prints; the ranks then miss their GPUs and say so."""
    (tmp_path / "nvidia-smi").write_text(
        "#!/bin/sh\necho 'GPU 0: NVIDIA A (UUID: x)'\necho 'GPU 1: NVIDIA A (UUID: y)'\n"
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    words = ["sh", SCRIPTS / "run_distribute_train_gpu.sh", data, "--name", "n", *CPU]
    done = call(*words, cwd=tmp_path, PATH=path, RECIPE=str(recipe), BATCH="4", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "runs/n/ranks").iterdir()) == ["rank-0.log", "rank-1.log"]
    done = call(*words, cwd=tmp_path, RECIPE=str(recipe), BATCH="4", CUDA_VISIBLE_DEVICES="3", PATH=path)
    assert done.returncode != 0, "the run folder is there already"


def trainable() -> list[str]:
    """Return the other backends here that train without being asked for by name (or as a test mode)."""
    found = [b for b in load_plugins().backends.values() if b.engine and b.id != "gpu"]
    return [b.id for b in found if b.probe().state == "ready"]


@pytest.mark.parametrize(
    "backends", [pair for other in trainable() for pair in (("gpu", other), (other, "gpu"))]
)
def test_a_checkpoint_is_continued_by_another_backend(
    backends: tuple[str, str], data: Path, recipe: Path, tmp_path: Path
) -> None:
    """One epoch on each is what two on the reference backend are."""
    words = ["train", "--recipe", recipe, "--data", data]
    whole = resnext("--backend", "reference", *words, "--name", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    first, second = backends
    done = resnext("--backend", first, *words, *CPU, "--epochs", "1", "--name", "mixed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = resnext("--backend", second, "train", "--resume", "runs/mixed", "--epochs", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for epoch in (1, 2):
        means = [mean_loss(tmp_path / "runs" / name, epoch) for name in ("whole", "mixed")]
        assert means[1] == pytest.approx(means[0], rel=1e-3), epoch


def test_a_signal_saves_and_the_run_goes_on(data: Path, recipe: Path, tmp_path: Path) -> None:
    """Two ranks, SIGTERM to the launcher: exit code 75; resumed, the run ends as one that was not stopped."""
    words = [
        "--backend",
        "gpu",
        "train",
        "--recipe",
        str(recipe),
        "--data",
        str(data),
        *CPU,
        "--devices",
        "2",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "resnext_core.cli", *words, "--epochs", "400", "--name", "run"],
        cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    path = tmp_path / "runs/run"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (
        (path / "records.jsonl").exists() and records(path, "checkpoint")
    ):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 75, error
    step = records(path, "checkpoint")[-1]["step"]
    epochs = step // 3 + 1
    done = resnext("train", "--resume", "runs/run", "--devices", "2", "--epochs", epochs, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole = resnext(*words, "--epochs", epochs, "--name", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    ends = [
        max((tmp_path / "runs" / name / "checkpoints").glob("step-*")) / "training.safetensors"
        for name in ("run", "whole")
    ]
    assert ends[0].parent.name == ends[1].parent.name
    assert ends[0].read_bytes() == ends[1].read_bytes(), "momentum and counters, to the bit"
