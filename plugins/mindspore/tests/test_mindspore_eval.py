"""Exact evaluation over several MindSpore processes, and a standard output that holds the result alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import model_spec
from resnext_core.model.weights import Weights, save_weights

pytest.importorskip("mindspore.nn")

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 images in three classes, one of them not an image, and weights of a tiny network."""
    root = tmp_path_factory.mktemp("eval")
    rng = np.random.default_rng(3)
    for i in range(23):
        path = root / "data" / "val" / CLASSES[i % 3] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    path.write_text("not an image")
    spec = model_spec("resnext_tiny", num_classes=3, image_size=8)
    preprocess = PreprocessSpec(size=8, resize=8)
    tensors = random_weights(spec, 1)
    weights = Weights(spec=spec, preprocess=preprocess, classes=CLASSES, tensors=tensors)
    save_weights(weights, root / "tiny.safetensors")
    return root


def _eval(folder: Path, devices: int, batch_size: int) -> dict:
    words = ["--backend", "mindspore", "eval", "--json", "--weights", str(folder / "tiny.safetensors")]
    words += ["--data", str(folder / "data"), "--output", str(folder / f"runs-{devices}")]
    words += ["--devices", str(devices), "--set", f"eval.batch_size={batch_size}", "--set", "data.workers=0"]
    done = subprocess.run(
        [sys.executable, "-m", "resnext_core.cli", *words], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1, done.stdout
    return json.loads(done.stdout)


def test_the_same_integers_for_any_batch_and_number_of_processes(folder: Path) -> None:
    integers = ("expected", "scored", "failed", "correct1", "correct5", "confusion", "dataset_digest")
    results = [_eval(folder, devices, batch) for devices, batch in ((1, 64), (3, 7))]
    assert results[0]["expected"] == 23
    assert results[0]["failed"] == 1
    for result in results[1:]:
        assert {k: result[k] for k in integers} == {k: results[0][k] for k in integers}
