"""The tutorial works as printed: its plugin is installed, found, checked, trained with and renamed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import environment
from documents import EXAMPLE, READERS_ID, TUTORIAL, blocks, tutorial_files


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tutorial's plugin, typed in from the page and installed into a folder of its own."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name, text in tutorial_files().items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    install(source, target)
    return target


def install(source: Path, target: Path) -> None:
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", *offline, "--target", str(target), str(source)],
        env=environment(PIP_DISABLE_PIP_VERSION_CHECK="1"), capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def resnext_run(site: Path, cwd: Path, *words: object) -> str:
    """Run the command line in a fresh process that also sees the plugins in `site`; return its output."""
    done = subprocess.run(
        [sys.executable, "-m", "resnext_core.cli", *map(str, words)],
        cwd=cwd, env=environment(PYTHONPATH=str(site)), capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_tutorial_backend_is_found(site: Path, tmp_path: Path) -> None:
    found = {b["id"]: b for b in json.loads(resnext_run(site, tmp_path, "backends", "--json"))["backends"]}
    assert found["example"]["distribution"] == "resnext-example"
    assert found["example"]["available"]
    assert found["example"]["formats"] == [".safetensors", ".npz"]


def test_tutorial_backend_passes_doctor(site: Path, tmp_path: Path) -> None:
    out = resnext_run(site, tmp_path, "--backend", "example", "doctor", "--json")
    (checked,) = json.loads(out)["backends"]
    assert (checked["id"], checked["state"]) == ("example", "ready")
    assert 0 < checked["difference"] <= 1e-5


def test_tutorial_backend_infers_evaluates_and_exports(
    site: Path, tmp_path: Path, photos: Path, weights_file: Path
) -> None:
    """Its weights and its artefact give the logits and the counts of the reference backend."""
    small = ["--set", "data.workers=0", "--set", "eval.batch_size=4"]

    def logits(backend: str, model: Path) -> np.ndarray:
        path = tmp_path / f"{backend}-{model.suffix[1:]}.npy"
        words = ["--backend", backend, "infer", "--weights", model, "--logits", path]
        resnext_run(site, tmp_path, *words, *small, photos / "val" / "ant")
        return np.load(path)

    artefact = tmp_path / "model.npz"
    resnext_run(site, tmp_path, "export", "--weights", weights_file, "--format", "npz", "--to", artefact)
    expected = logits("reference", weights_file)
    assert expected.shape == (4, 6)
    for model in (weights_file, artefact):
        assert np.abs(logits("example", model) - expected).max() <= 1e-5 * np.abs(expected).max()

    results = []
    for backend, model in (("reference", weights_file), ("example", weights_file), ("example", artefact)):
        words = ["--backend", backend, "eval", "--weights", model, "--data", photos, "--json", *small]
        results.append(json.loads(resnext_run(site, tmp_path, *words)))
    assert [r["backend"] for r in results] == ["reference", "example", "example"]
    for key in ("expected", "scored", "correct1", "correct5", "confusion", "digest"):
        assert len({json.dumps(r[key]) for r in results}) == 1, key


def test_tutorial_backend_trains(site: Path, tmp_path: Path, photos: Path, recipe: Path) -> None:
    """An epoch on the example's engine gives the losses of the reference's."""
    losses = []
    for backend in ("reference", "example"):
        words = ["--backend", backend, "train", "--recipe", recipe, "--data", photos, "--name", backend]
        resnext_run(site, tmp_path, *words, "--epochs", 1, "--output", tmp_path / "runs")
        lines = (tmp_path / "runs" / backend / "records.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        losses.append([r["loss"] for r in records if r["kind"] == "train"])
    assert len(losses[0]) > 0
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


def test_tutorial_tests_pass(site: Path, tmp_path: Path) -> None:
    """The contract kit and the plugin's own tests, as the tutorial prints them, against what it installs."""
    for name, text in tutorial_files().items():
        if name.startswith("tests/"):
            (tmp_path / Path(name).name).write_text(text)
    quietly = ["-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *quietly, str(tmp_path)],
        cwd=tmp_path, env=environment(PYTHONPATH=str(site), RESNEXT_REQUIRE="example"), capture_output=True,
        text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    summary = done.stdout.splitlines()[-1]
    assert int(re.search(r"(\d+) passed", summary)[1]) >= 50, summary


def test_tutorial_renames_into_a_backend_of_ones_own(tmp_path: Path) -> None:
    """The commands of "Make it yours" give a plugin that works under its new name."""
    section = TUTORIAL.read_text().split("\n## Make it yours\n")[1]
    script = next(blocks(section)).text
    copied = tmp_path / "plugins" / "example"
    shutil.copytree(EXAMPLE, copied, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, check=True, timeout=300)
    site = tmp_path / "site"
    install(tmp_path / "my-backend", site)
    out = resnext_run(site, tmp_path, "--backend", READERS_ID, "doctor", "--json")
    assert [b["state"] for b in json.loads(out)["backends"]] == ["ready"]
