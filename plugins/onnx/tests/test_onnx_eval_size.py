"""Artefacts of another image size than training, and with the newer fields of preprocessing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx_cases import IMAGENET, TOLERANCE, make_images, make_weights, open_onnx, oracle, relative, write
from PIL import Image

from resnext_core.cli.main import main
from resnext_core.errors import EXIT_OK, EXIT_USAGE
from resnext_core.model.spec import PoolPadding
from resnext_core.model.weights import load_weights, save_weights
from resnext_core.runs.pointers import best_weights

SETTINGS = [
    "--set", "model.variant=resnext_tiny", "--set", "model.image_size=8", "--set", "data.workers=0", "--epochs", "1",
    "--set", "train.batch_size=8", "--set", "optimizer.lr=0.01", "--set", "preprocess.filter=bicubic",
    "--set", "preprocess.orientation=apply", "--set", "preprocess.mode=shorter-side",
]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes of 12 images, half of them stored turned."""
    rng, turned = np.random.default_rng(4), Image.Exif()
    turned[0x112] = 6
    for part in ("train", "val"):
        for label, name in enumerate(("ant", "bee")):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(12 if part == "train" else 5):
                pixels = rng.integers(0, 200, (14, 20, 3)) + np.array((55 * label, 0, 0))
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(
                    tmp_path / "data" / part / name / f"{i}.jpg", exif=turned if i % 2 else Image.Exif()
                )
    return tmp_path / "data"


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("size", [24, 29, 37, 48])
def test_a_network_of_another_size_is_the_same_function(
    tmp_path: Path, padding: PoolPadding, size: int
) -> None:
    """The graph's padding is of its own size, even or odd; the weights are those of 36 pixels."""
    weights = make_weights(IMAGENET.replace(pool_padding=padding)).evaluated_at(size, 0.9)
    served = open_onnx(write(weights, tmp_path / "m.onnx"))
    images = make_images(weights.spec, 3)
    assert images.shape[1] == size
    assert relative(served.logits(images), oracle(weights).logits(images)) <= TOLERANCE
    assert served.manifest.preprocess == weights.preprocess


def test_a_whole_job_at_another_size(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    at_12 = ["--set", "eval.size=12", "--set", "eval.crop_pct=0.8"]
    words = [
        "--backend",
        "reference",
        "run",
        "--data",
        data,
        "--output",
        tmp_path,
        "--name",
        "run",
        *SETTINGS,
    ]
    assert run(*words, *at_12, "--set", "export.formats=[onnx]") == EXIT_OK, capfd.readouterr()
    (artefact,) = (tmp_path / "run").glob("*.onnx")
    manifest = open_onnx(artefact).manifest
    assert (manifest.spec.image_size, manifest.preprocess.size, manifest.preprocess.resize) == (12, 12, 15)
    assert (manifest.preprocess.filter, manifest.preprocess.orientation) == ("bicubic", "apply")
    assert manifest.golden is not None
    (validation,) = json.loads((tmp_path / "run" / "validations.json").read_text())
    assert validation["passed"]
    assert validation["top1_agreement"] == 1


def train(data: Path, output: Path) -> None:
    """Train into the folder ``run`` of `output`."""
    words = ["--backend", "reference", "train", "--data", data, "--output", output, "--name", "run"]
    assert run(*words, *SETTINGS) == EXIT_OK


def test_an_artefact_of_another_size_than_its_run(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(data, tmp_path)
    made, source = tmp_path / "large.onnx", tmp_path / "run"
    assert (
        run(
            "export", "--weights", source, "--to", made, "--set", "eval.size=13", "--set", "eval.crop_pct=0.7"
        )
        == 0
    )
    assert open_onnx(made).manifest.preprocess.resize == 18  # floor(13 / 0.7)
    capfd.readouterr()
    assert run("validate", "--artefact", made, "--weights", source, "--json") == EXIT_OK
    assert json.loads(capfd.readouterr().out)["passed"]
    quiet = ["--data", data, "--set", "data.workers=0", "--json"]
    assert run("eval", "--weights", made, *quiet) == EXIT_OK
    of_artefact = json.loads(capfd.readouterr().out)
    words = ["--set", "eval.size=13", "--set", "eval.crop_pct=0.7"]
    assert run("--backend", "reference", "eval", "--weights", source, *quiet, *words) == EXIT_OK
    assert json.loads(capfd.readouterr().out)["confusion"] == of_artefact["confusion"]
    assert run("eval", "--weights", made, *quiet, "--set", "eval.crop_pct=0.5") == EXIT_OK  # the same size
    capfd.readouterr()
    assert run("eval", "--weights", made, *quiet, "--set", "eval.size=8") == EXIT_USAGE
    (line,) = capfd.readouterr().err.splitlines()
    assert "large.onnx takes images of 13 pixels, eval.size is 8: an artefact has one size" in line


def test_a_validation_of_other_preprocessing_is_refused(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(data, tmp_path)
    made, other = tmp_path / "m.onnx", tmp_path / "other.safetensors"
    assert run("export", "--weights", tmp_path / "run", "--to", made) == 0
    weights = load_weights(best_weights(tmp_path / "run" / "checkpoints"))
    save_weights(weights.replace(preprocess=replace(weights.preprocess, filter="antialias")), other)
    capfd.readouterr()
    assert run("validate", "--artefact", made, "--weights", other, "--data", data) == 3
    assert "with other preprocessing or shape" in capfd.readouterr().err


def test_mirror_images_with_an_artefact_of_a_fixed_batch(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The predictor takes any number of images, and pads the last batch: twice as many are two calls."""
    train(data, tmp_path)
    made = tmp_path / "fixed.onnx"
    assert (
        run("export", "--weights", tmp_path / "run", "--to", made, "--set", "export.batch_size=4") == EXIT_OK
    )
    assert open_onnx(made).artefact["batch_size"] == 4
    quiet = [
        "--data",
        data,
        "--set",
        "data.workers=0",
        "--set",
        "eval.batch_size=3",
        "--tta",
        "flip",
        "--json",
    ]
    found = []
    for words in (["--weights", made], ["--backend", "reference", "--weights", tmp_path / "run"]):
        capfd.readouterr()
        assert run("eval", *words, *quiet) == EXIT_OK
        found.append(json.loads(capfd.readouterr().out))
    assert found[0]["backend"] == "onnx"
    assert found[0]["confusion"] == found[1]["confusion"]
    for key in ("nll", "brier"):
        assert found[0]["calibration"][key] == pytest.approx(found[1]["calibration"][key], rel=1e-4)


def test_an_artefact_of_one_size_refuses_several_before_any_is_evaluated(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(data, tmp_path)
    made = tmp_path / "m.onnx"
    assert run("export", "--weights", tmp_path / "run", "--to", made) == EXIT_OK
    words = ["eval", "--weights", made, "--data", data, "--set", "data.workers=0", "--json"]
    capfd.readouterr()
    assert run(*words, "--sizes", "8") == EXIT_OK
    assert [r["image_size"] for r in json.loads(capfd.readouterr().out)["results"]] == [8]
    assert run(*words, "--sizes", "8,12") == EXIT_USAGE
    output = capfd.readouterr()
    (line,) = output.err.splitlines()
    assert "m.onnx takes images of 8 pixels, eval.size is 12: an artefact has one size" in line
    assert not output.out
