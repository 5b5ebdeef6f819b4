"""Files that earlier versions wrote are read by the code of now: run folders, weights, checkpoints, artefacts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine, environment

from resnext_core.model.weights import load_weights, read_manifest_text
from resnext_core.runs.checkpoint import load_checkpoint
from resnext_core.runs.folder import RunFolder

VERSIONS = sorted(path.parent.name for path in Path(__file__).parent.glob("*/logits.npz"))
#: The artefacts of a run folder: the backend that wrote each, and the modules that this backend needs here.
ARTEFACTS = {
    "resnext_tiny.onnx": ("onnx", ("resnext_onnx", "onnxruntime")),
    "resnext_tiny.mindir": ("mindspore", ("resnext_mindspore", "mindspore")),
    "resnext_tiny.npz": ("example", ("resnext_example",)),
}
#: Against the largest logit: other processors and other kernels round differently.
TOLERANCE = 1e-5


@pytest.fixture(params=VERSIONS)
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what one version wrote, in which this process works."""
    folder = tmp_path / "old"
    shutil.copytree(Path(__file__).parent / request.param, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(old: Path) -> Path:
    """The run folder of two epochs; its settings name the folder of images where it lies now."""
    (path,) = (old / "runs").iterdir()
    config = path / "config.yaml"
    config.write_text(config.read_text().replace("/data/compat/", f"{old}/"))
    return path


def golden(old: Path, name: str) -> np.ndarray:
    return np.load(old / "logits.npz")[name]


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    return found.shape == wanted.shape and np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]


def tensors(path: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in load_weights(path).tensors.items()}


def test_there_is_a_version() -> None:
    assert VERSIONS


def test_a_run_is_listed_shown_and_verified(run: Path, cli: CommandLine) -> None:
    (listed,) = cli.ok("runs", "list", run.parent, "--json").json()["runs"]
    assert (listed["run"], listed["step"]) == ("photos-tiny", 6)
    shown = cli.ok("runs", "show", run, "--json").json()
    assert [c["step"] for c in shown["checkpoints"]] == [3, 6]
    cli.ok("runs", "verify", run)


def test_a_run_gives_its_logits_and_its_evaluation(old: Path, run: Path, cli: CommandLine) -> None:
    cli.ok("--backend", "reference", "infer", "--weights", run, "--logits", "now.npy", "photos/val")
    assert close(np.load("now.npy"), golden(old, "run"))
    before = json.loads((run / "evaluation.json").read_text())
    words = ["--backend", "reference", "eval", "--weights", run, "--data", "photos", "--json"]
    now = cli.ok(*words, "--set", "data.workers=0").json()
    for key in ("expected", "scored", "failed", "correct1", "correct5", "confusion"):
        assert now[key] == before[key], key
    assert now["dataset_digest"] == before["dataset_digest"]


def test_a_run_continues_for_one_more_epoch(run: Path, cli: CommandLine) -> None:
    before = records(run)
    cli.ok("train", "--resume", run, "--epochs", 3)
    now = records(run)
    steps = [record for record in now if record["kind"] in ("train", "eval")]
    assert steps[:8] == [record for record in before if record["kind"] in ("train", "eval")]
    assert [(record["kind"], record["step"]) for record in steps[8:]] == [
        ("train", 7), ("train", 8), ("train", 9), ("eval", 9)
    ]  # fmt: skip
    assert {"kind": "resume", "step": 6} in [{"kind": r["kind"], "step": r["step"]} for r in now]
    assert RunFolder.open(run).checkpoints.joinpath("latest").read_text().strip() == "step-00000009"
    cli.ok("runs", "verify", run)


def test_the_report_of_a_run_is_written_again(run: Path, cli: CommandLine) -> None:
    assert not (run / "report.html").exists()
    cli.ok("report", run)
    text = (run / "report.html").read_text()
    assert "resnext_tiny" in text
    for name in ARTEFACTS:
        assert name in text


def test_a_manifest_of_settings_of_then_is_written_as_then(old: Path) -> None:
    """Fields of preprocessing that are newer are absent, and stay absent while they are at their defaults."""
    text = read_manifest_text(old / "start.safetensors")
    assert text is not None
    written, weights = json.loads(text)["preprocess"], load_weights(old / "start.safetensors")
    assert "orientation" not in written
    assert weights.preprocess.orientation == "ignore"
    assert json.dumps(weights.preprocess.to_dict()) == json.dumps(written)
    turned = replace(weights.preprocess, orientation="apply").to_dict()
    assert turned == {**written, "orientation": "apply"}


def test_a_weights_file_gives_its_logits(old: Path, cli: CommandLine) -> None:
    words = ["--backend", "reference", "infer", "--weights", "start.safetensors", "--logits", "now.npy"]
    cli.ok(*words, "photos/val")
    assert close(np.load("now.npy"), golden(old, "start"))


@pytest.mark.parametrize(("name", "source"), [("start.ckpt", "start"), ("model.ckpt", "run")])
def test_a_converted_checkpoint_is_read_back(
    name: str, source: str, old: Path, run: Path, cli: CommandLine
) -> None:
    """To the bit, and its manifest in the file beside it is found: classes and preprocessing are the source's."""
    cli.ok("convert", name, "back.safetensors")
    original = {
        "start": old / "start.safetensors",
        "run": run / "checkpoints/step-00000003/weights.safetensors",
    }
    assert tensors(old / "back.safetensors") == tensors(original[source])
    cli.ok(
        "--backend", "reference", "infer", "--weights", "back.safetensors", "--logits", "b.npy", "photos/val"
    )
    assert close(np.load("b.npy"), golden(old, source))


def test_a_checkpoint_folder_with_momentum_is_read(old: Path, run: Path, cli: CommandLine) -> None:
    """It has the momentum of the checkpoint it was converted from, and a training starts from it."""
    converted = load_checkpoint(old / "momentum" / "step-00000003")
    source = load_checkpoint(run / "checkpoints" / "step-00000003")
    momentum = {n: a.tobytes() for n, a in source.state.tensors.items() if n.startswith("momentum/")}
    assert momentum
    assert {n: a.tobytes() for n, a in converted.state.tensors.items() if n in momentum} == momentum
    words = [
        "train",
        "--recipe",
        "tiny.yaml",
        "--pretrained",
        "momentum/step-00000003",
        "--epochs",
        1,
        "--name",
        "next",
    ]
    cli.ok("--backend", "reference", *words, "--set", "model.pretrained_momentum=true")


# -- what plugins read: in a process of its own, which opens what it needs -----------------------


def resnext_run(folder: Path, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "resnext_core.cli", *map(str, words)],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ARTEFACTS)
def test_an_artefact_gives_the_logits_of_its_run(name: str, old: Path, run: Path) -> None:
    backend, modules = ARTEFACTS[name]
    for module in modules:
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    resnext_run(
        old, "--backend", backend, "infer", "--weights", run / name, "--logits", "now.npy", "photos/val"
    )
    assert close(np.load(old / "now.npy"), golden(old, "run"))


def test_a_file_of_pytorch_is_read_back(old: Path) -> None:
    if find_spec("torch") is None or find_spec("resnext_gpu") is None:
        pytest.skip("torch or resnext_gpu is not installed")
    resnext_run(old, "convert", "start.pth", "back.safetensors")
    assert tensors(old / "back.safetensors") == tensors(old / "start.safetensors")
