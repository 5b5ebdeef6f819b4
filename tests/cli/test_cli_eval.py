"""``resnext-run eval`` beyond accuracy: mirror images, several sizes, predictions, calibration."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine
from images import bad_images

import resnext_core as rx
from resnext_core.data.render import load_eval
from resnext_core.errors import EXIT_DATA, EXIT_USAGE
from resnext_core.interfaces import PredictRequest
from resnext_core.model.weights import Weights
from resnext_core.ranks.info import RankInfo
from resnext_core.reference.predictor import create_predictor
from resnext_core.serving.calibration import Calibration, fit_temperature
from resnext_core.serving.metrics import softmax

SMALL = ("--set", "data.workers=0", "--set", "eval.batch_size=5")


def logits_of(weights: Weights, folder: Path, *, mirrored: bool = False) -> tuple[Any, Any]:
    """Logits and labels of every image of a folder, one at a time."""
    predictor = create_predictor(PredictRequest(weights=weights, rank=RankInfo()))
    rows, labels = [], []
    for label, name in enumerate(weights.classes):
        for path in sorted((folder / name).iterdir()):
            pixels = load_eval(path, weights.preprocess)[None]
            rows.append(predictor.logits(pixels[:, :, ::-1].copy() if mirrored else pixels)[0])
            labels.append(label)
    return np.stack(rows), np.array(labels)


@pytest.mark.parametrize("devices", [1, 2])
def test_flip_is_the_mean_of_an_image_and_its_mirror_image(
    cli: CommandLine,
    spawn: CommandLine,
    tiny_weights: Weights,
    weights_file: Path,
    photos: Path,
    devices: int,
) -> None:
    run = cli if devices == 1 else spawn
    words = ["--backend", "reference", "eval", "--weights", weights_file, "--data", photos, *SMALL]
    words += ["--devices", devices, "--json"]
    result = run.ok(*words, "--tta", "flip").json()
    plain, labels = logits_of(tiny_weights, photos / "val")
    mean = (softmax(plain) + softmax(logits_of(tiny_weights, photos / "val", mirrored=True)[0])) / 2
    assert result["tta"] == "flip"
    assert result["correct1"] == int((mean.argmax(axis=1) == labels).sum())
    assert result["calibration"]["nll"] == pytest.approx(-np.log(mean[range(23), labels]).mean(), rel=1e-5)
    confusion = np.zeros((6, 6), int)
    np.add.at(confusion, (labels, mean.argmax(axis=1)), 1)
    assert result["confusion"] == confusion.tolist()
    without = run.ok(*words).json()
    assert without["tta"] == "none"
    assert without["calibration"]["nll"] == pytest.approx(
        -np.log(softmax(plain)[range(23), labels]).mean(), rel=1e-5
    )
    assert without["calibration"]["nll"] != pytest.approx(result["calibration"]["nll"], rel=1e-4)


def test_flip_is_said_and_can_be_configured(cli: CommandLine, weights_file: Path, photos: Path) -> None:
    words = ["eval", "--weights", weights_file, "--data", photos, *SMALL]
    flag = cli.ok(*words, "--tta", "flip").out
    assert "23 of 23 images, each with its mirror image [reference]" in flag
    assert cli.ok(*words, "--set", "eval.tta=flip").out == flag
    assert "mirror" not in cli.ok(*words, "--set", "eval.tta=flip", "--tta", "none").out
    result = rx.evaluate(
        weights_file, photos, tta="flip", overrides={"data.workers": 0}, progress=lambda record: None
    )
    assert str(result).splitlines()[0] == flag.splitlines()[0]


def test_a_training_evaluates_as_configured(
    cli: CommandLine, recipe: Path, photos: Path, tmp_path: Path
) -> None:
    """What `train` says of its best epoch is what `eval` says of it, with the run's own setting."""
    words = ["train", "--recipe", recipe, "--data", photos, "--output", tmp_path, "--name", "r"]
    cli.ok(*words, "--set", "eval.tta=flip", "--epochs", 1)
    records = [json.loads(line) for line in (tmp_path / "r" / "records.jsonl").read_text().splitlines()]
    (evaluated,) = [record for record in records if record["kind"] == "eval"]
    own = cli.ok("eval", "--weights", tmp_path / "r", "--json").json()
    assert own["tta"] == "flip"
    assert {key: own[key] for key in ("top1", "top5", "balanced_accuracy")} == {
        key: evaluated[key] for key in ("top1", "top5", "balanced_accuracy")
    }


def test_sizes_are_the_results_of_each_size(cli: CommandLine, weights_file: Path, photos: Path) -> None:
    words = ["eval", "--weights", weights_file, "--data", photos, *SMALL]
    found = cli.ok(*words, "--sizes", "12,8", "--json").json()["results"]
    assert [result["image_size"] for result in found] == [12, 8]
    for result in found:
        alone = cli.ok(*words, "--set", f"eval.size={result['image_size']}", "--json").json()
        for key in ("confusion", "calibration", "top1", "scored", "image_size"):
            assert result[key] == alone[key], key
    assert found[0]["calibration"] != found[1]["calibration"]
    lines = cli.ok(*words, "--sizes", "12,8").out.splitlines()
    assert lines[1].split()[:3] == ["size", "top-1", "top-5"]
    assert [line.split()[0] for line in lines[2:4]] == ["12", "8"]
    assert lines[4].startswith("12 pixels: calibration: ECE ")
    results = rx.evaluate_sizes(
        weights_file, (12, 8), photos, overrides={"data.workers": 0}, progress=lambda record: None
    )
    assert [r.evaluation.confusion.tolist() for r in results] == [r["confusion"] for r in found]
    with pytest.raises(rx.UsageError, match="no image size"):
        rx.evaluate_sizes(weights_file, (), photos)


def test_recall_of_each_class_is_shown_lowest_first(
    cli: CommandLine, spawn: CommandLine, weights_file: Path, photos: Path, tmp_path: Path
) -> None:
    """Of all its images: one that could not be read counts, on any number of devices."""
    data = shutil.copytree(photos, tmp_path / "data")
    shutil.copy(bad_images(tmp_path / "bad")["empty.jpg"], data / "val" / "cat" / "empty.jpg")
    shutil.rmtree(data / "val" / "bee")
    words = ["--backend", "reference", "eval", "--weights", weights_file, "--data", data, *SMALL]
    found = cli.ok(*words, "--json").json()
    names = found["classes"]
    files = [len(list((data / "val" / name).glob("*"))) if name != "bee" else 0 for name in names]
    assert found["support"] == files
    hits = [found["confusion"][k][k] for k in range(len(names))]
    expected = [
        None if not n else pytest.approx(hit / n, abs=1e-6) for hit, n in zip(hits, files, strict=True)
    ]
    assert found["recall"] == expected
    known = [recall for recall in found["recall"] if recall is not None]
    assert found["balanced_accuracy"] == pytest.approx(sum(known) / len(known), abs=1e-6)
    lines = cli.ok(*words).out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.split() == ["class", "recall", "images"]) + 1
    table = [line.split() for line in lines[first : first + len(known)]]
    order = sorted((k for k in range(len(names)) if files[k]), key=lambda k: (found["recall"][k], -files[k]))
    assert table == [[names[k], f"{100 * found['recall'][k]:.2f}", "%", str(files[k])] for k in order]
    several = spawn.ok(*words, "--json", "--devices", 2).json()
    assert (several["recall"], several["support"]) == (found["recall"], found["support"])


def test_predictions_are_those_of_infer(
    cli: CommandLine, weights_file: Path, photos: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(photos, tmp_path / "data")
    shutil.copy(bad_images(tmp_path / "bad")["empty.jpg"], data / "val" / "cat" / "empty.jpg")
    words = ["eval", "--weights", weights_file, "--data", data, *SMALL]
    out = cli.ok(*words, "--predictions", tmp_path / "p.csv", "--topk", 3).out
    assert f"predictions: {tmp_path / 'p.csv'}" in out
    with (tmp_path / "p.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    inferred = cli("infer", "--weights", weights_file, *SMALL, data / "val", "--top", 3)
    lines = {line["path"]: line for line in map(json.loads, inferred.out.splitlines())}
    assert len(rows) == len(lines) == 24
    assert [row["path"] for row in rows] == sorted(lines)
    for row in rows:
        assert row["true"] == Path(row["path"]).parent.name
        line = lines[row["path"]]
        if "error" in line:
            assert row["error"] == line["error"] == "the file is empty"
            continue
        assert [row[f"class_{i}"] for i in (1, 2, 3)] == [guess["name"] for guess in line["top"]]
        got = [float(row[f"probability_{i}"]) for i in (1, 2, 3)]
        assert got == pytest.approx([guess["probability"] for guess in line["top"]], abs=1e-6)
    cli.refuses(EXIT_DATA, *words, "--predictions", tmp_path / "p.csv", says="p.csv already exists")
    assert not list(tmp_path.glob(".*")), "nothing is left of the attempt"


def test_predictions_of_several_processes_are_one_file(
    cli: CommandLine, spawn: CommandLine, weights_file: Path, photos: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(photos, tmp_path / "data")
    shutil.copy(bad_images(tmp_path / "bad")["empty.jpg"], data / "val" / "cat" / "empty.jpg")
    words = ["--backend", "reference", "eval", "--weights", weights_file, "--data", data, *SMALL]
    cli.ok(*words, "--predictions", tmp_path / "one.jsonl", "--calibrate")
    result = spawn.ok(
        *words, "--predictions", tmp_path / "three.jsonl", "--calibrate", "--devices", 3, "--json"
    ).json()
    one, three = (
        list(map(json.loads, (tmp_path / f"{name}.jsonl").read_text().splitlines()))
        for name in ("one", "three")
    )
    assert len(one) == 24
    for a, b in zip(one, three, strict=True):
        assert [a.get(key) for key in ("path", "true", "predicted", "error")] == [
            b.get(key) for key in ("path", "true", "predicted", "error")
        ]
        shares = [[guess["probability"] for guess in line.get("top", ())] for line in (a, b)]
        assert shares[0] == pytest.approx(shares[1], rel=1e-4)
    assert result["calibrated"]["images"] == 23
    says = f"{tmp_path / 'one.jsonl'} already exists"
    spawn.refuses(EXIT_DATA, *words, "--predictions", tmp_path / "one.jsonl", "--devices", 2, says=says)


def test_the_temperature_is_fitted_on_val(
    cli: CommandLine, tiny_weights: Weights, weights_file: Path, photos: Path
) -> None:
    words = ["eval", "--weights", weights_file, "--data", photos, *SMALL, "--calibrate"]
    val, val_labels = logits_of(tiny_weights, photos / "val")
    train, train_labels = logits_of(tiny_weights, photos / "train")
    found = cli.ok(*words, "--split", "train", "--json").json()["calibrated"]
    expected = fit_temperature(val, val_labels).value
    assert found["temperature"] == pytest.approx(expected, rel=1e-3)
    assert (found["images"], found["same_images"], found["bounded"]) == (23, False, False)
    assert found["fitted_on"] == str(photos / "val")
    before, after = Calibration().add(train, train_labels), Calibration().add(train, train_labels, expected)
    for key in ("ece", "nll", "brier"):
        assert found["before"][key] == pytest.approx(getattr(before, key), rel=1e-3)
        assert found["after"][key] == pytest.approx(getattr(after, key), rel=1e-3)

    same = cli.ok(*words, "--json").json()["calibrated"]
    assert same["temperature"] == pytest.approx(expected, rel=1e-3)
    assert same["same_images"]
    assert same["after"]["nll"] <= same["before"]["nll"]
    assert same["after"]["nll"] == pytest.approx(Calibration().add(val, val_labels, expected).nll, rel=1e-4)
    text = cli.ok(*words).out
    assert ", fitted on the 23 images that are evaluated; with logits divided by it: ECE " in text
    assert "no file was changed" in text
    result = rx.evaluate(
        weights_file, photos, calibrate=True, overrides={"data.workers": 0}, progress=lambda record: None
    )
    assert result.calibrated is not None
    assert result.calibrated.temperature.value == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tta", "rotate"], "invalid choice: 'rotate'"),
        (["--set", "eval.tta=rotate"], "eval.tta"),
        (["--sizes", "8,x"], "must be an integer from 1, not 'x'"),
        (["--sizes", "8,"], "must be an integer from 1, not ''"),
        (["--sizes", "8,8"], "the same image size is given twice"),
        (["--sizes", "8,9000"], "image sizes are integers from 1 to 8192, not [8, 9000]"),
        (["--sizes", "8,9", "--predictions", "p.csv"], "predictions are of one image size, not of 2"),
        (["--predictions", "p.xls"], "predictions are written to .csv, .jsonl, .parquet files, not 'p.xls'"),
        (["--topk", "0"], "must be an integer from 1, not '0'"),
    ],
)
def test_what_cannot_be_is_one_line(
    cli: CommandLine, weights_file: Path, photos: Path, words: list[str], says: str
) -> None:
    cli.refuses(EXIT_USAGE, "eval", "--weights", weights_file, "--data", photos, *SMALL, *words, says=says)


def test_unreadable_images_are_a_line_each_whatever_their_names(
    cli: CommandLine, weights_file: Path, photos: Path, tmp_path: Path
) -> None:
    """All images of val but one cannot be read, also none at all: errors of calibration are null then."""
    data, broken = shutil.copytree(photos, tmp_path / "data"), bad_images(tmp_path / "bad")["empty.jpg"]
    for number in range(12):
        shutil.copy(broken, data / "val" / "cat" / f"line\n{number:02d}.jpg")
    words = ["eval", "--weights", weights_file, "--data", data, "--split", "val", *SMALL]
    lines = cli.ok(*words).out.splitlines()
    named = [line for line in lines if line.startswith("could not read ")]
    assert len(named) == 10
    assert "val/cat/line\\n00.jpg: " in named[0]
    assert "... and 2 more images: see --json" in lines
    for path in (data / "val").rglob("*.*"):
        shutil.copy(broken, path)
    assert "calibration: no image has a prediction" in cli.ok(*words).out

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(cli.ok(*words, "--json").out, parse_constant=refuse)
    assert found["calibration"]["ece"] is None
    assert (found["top1"], found["scored"]) == (0, 0)
