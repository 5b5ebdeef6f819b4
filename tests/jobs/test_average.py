"""The average of weights: in float64, of one network only, with batch statistics that are those of its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine

import resnext_core as rx
from resnext_core.config import AugmentConfig, Config
from resnext_core.data.index import open_index
from resnext_core.data.loader import Loader
from resnext_core.data.sampler import Task, epoch_permutation
from resnext_core.errors import EXIT_DATA, EXIT_USAGE
from resnext_core.jobs.average import AverageJob, average
from resnext_core.jobs.mean import greedy
from resnext_core.jobs.settings import Settings
from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import normalize
from resnext_core.model.spec import BN_EPS
from resnext_core.model.weights import Weights, load_weights, save_weights


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Weights) -> list[Path]:
    folder = tmp_path_factory.mktemp("weights")
    made = []
    for seed in (3, 4, 5):
        weights = tiny_weights.replace(tensors=random_weights(tiny_weights.spec, seed), golden=None)
        made.append(folder / f"{seed}.safetensors")
        save_weights(weights, made[-1])
    return made


@pytest.mark.parametrize(("flags", "shares"), [([], [1, 1, 1]), (["--shares", "1,2,0.5"], [1, 2, 0.5])])
def test_it_is_the_mean_in_float64(
    cli: CommandLine, files: list[Path], tmp_path: Path, flags: list[str], shares: list[float]
) -> None:
    out = tmp_path / "mean.safetensors"
    result = cli.ok("average", *files, "-o", out, *flags, "--json").json()
    made, parts = load_weights(out), [load_weights(path) for path in files]
    for name, array in made.tensors.items():
        stack = np.stack([part.tensors[name].astype(np.float64) for part in parts])
        expected = np.tensordot(np.array(shares) / sum(shares), stack, axes=1)
        assert np.allclose(array, expected, rtol=1e-7, atol=1e-12), name
    assert result["digest"] == made.digest
    assert result["shares"] == pytest.approx([share / sum(shares) for share in shares])
    assert made.origin["bn"] == "averaged"
    assert [part["digest"] for part in made.origin["average"]] == [part.digest for part in parts]
    assert [part["source"] for part in made.origin["average"]] == [str(path) for path in files]
    assert (made.metrics, made.golden) == ({}, None), (
        "what the first one reached is not what the mean reaches"
    )
    assert made.classes == parts[0].classes


def test_runs_and_checkpoints_are_sources_and_the_result_is_served(
    cli: CommandLine, finished_run: Path, photos: Path, tmp_path: Path
) -> None:
    steps = sorted((finished_run / "checkpoints").glob("step-*"))
    out = tmp_path / "mean.safetensors"
    text = cli.ok("average", finished_run, *steps, "-o", out).out
    assert "statistics of batch normalisation are averages too" in text
    assert "has the same tensors as another of the weights" in text
    result = cli.ok("eval", "--weights", out, "--data", photos, "--set", "data.workers=0", "--json").json()
    assert result["scored"] == 23
    again = rx.average([finished_run, *steps], tmp_path / "again.safetensors", progress=lambda record: None)
    assert again.digest == load_weights(out).digest
    assert load_weights(Path(again)).digest == again.digest


def test_the_same_weights_average_to_themselves(cli: CommandLine, files: list[Path], tmp_path: Path) -> None:
    cli.ok("average", files[0], files[0], "-o", tmp_path / "m.safetensors", "--shares", "1,1")
    assert load_weights(tmp_path / "m.safetensors").digest == load_weights(files[0]).digest


def batch_statistics(weights: Weights, photos: Path, count: int, size: int) -> dict[str, Any]:
    """Mean and unbiased variance at the first batch normalisation, from the convolution written out."""
    index = open_index(photos / "train", weights.classes)
    order = epoch_permutation(len(index), 1, 0)
    tasks = [Task.of(0, order[i : i + size]) for i in range(0, count, size)]
    kernel = weights.tensors["conv1.weight"].astype(np.float64)
    means, variances = [], []
    with Loader(index, weights.preprocess, AugmentConfig(), seed=1, workers=0) as loader:
        for batch in loader.batches(tasks):
            x = normalize(batch.images, weights.preprocess).astype(np.float64)
            pad = kernel.shape[-1] // 2
            x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
            windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[-2:], axis=(2, 3))
            y = np.einsum("nchwij,ocij->nohw", windows, kernel)
            means.append(y.mean(axis=(0, 2, 3)))
            variances.append(y.var(axis=(0, 2, 3), ddof=1))
    return {"bn1.running_mean": np.mean(means, axis=0), "bn1.running_var": np.mean(variances, axis=0)}


def test_batch_statistics_are_those_of_the_training_images(
    cli: CommandLine, files: list[Path], photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mean.safetensors"
    words = ["average", *files[:2], "-o", out, "--data", photos, "--batch-size", 8, "--set", "data.workers=0"]
    text = cli.ok("--backend", "reference", *words, "--recompute-bn", 20).out
    assert "computed anew from 16 training images on reference" in text
    made, (a, b) = load_weights(out), (load_weights(path) for path in files[:2])
    assert made.origin["bn"] == {"images": 16, "backend": "reference"}
    for tensor in made.spec.tensors:
        if tensor.trainable:
            expected = (a.tensors[tensor.name].astype(np.float64) + b.tensors[tensor.name]) / 2
            assert np.array_equal(made.tensors[tensor.name], expected.astype(np.float32)), tensor.name
    for name, expected in batch_statistics(made, photos, 16, 8).items():
        scale = np.abs(expected).max() + BN_EPS
        assert np.abs(made.tensors[name] - expected).max() < 1e-4 * scale, name
        assert np.abs(a.tensors[name] - expected).max() > 1e-2 * scale, "else nothing was shown"


def test_unreadable_images_do_not_count_as_black(
    cli: CommandLine, files: list[Path], photos: Path, tmp_path: Path
) -> None:
    """Statistics of a batch with an image that cannot be read are those of its others."""
    import shutil

    data = shutil.copytree(photos, tmp_path / "data")
    for path in (data / "train" / "ant").iterdir():
        path.write_bytes(b"")
    words = ["--backend", "reference", "average", *files[:2], "--data", data, "--set", "data.workers=0"]
    words += ["--batch-size", 48, "--recompute-bn"]
    cli.ok(*words, "-o", tmp_path / "a.safetensors")
    made = load_weights(tmp_path / "a.safetensors")
    assert made.origin["bn"]["images"] == 48
    shutil.rmtree(data / "train")
    shutil.copytree(photos / "train", data / "train")
    cli.ok(*words, "-o", tmp_path / "b.safetensors")
    whole = load_weights(tmp_path / "b.safetensors")
    name = "bn1.running_var"
    ratio = made.tensors[name] / whole.tensors[name]
    assert (ratio > 0.9).all(), "black images would shrink the variance by a sixth"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["{0}"], EXIT_USAGE, "an average needs two or more weights"),
        (["{0}", "{1}", "--shares", "1"], EXIT_USAGE, "1 shares were given for 2 weights"),
        (
            ["{0}", "{1}", "--shares", "1,-1"],
            EXIT_USAGE,
            "shares are numbers from 0 on, not all 0; not 1, -1",
        ),
        (["{0}", "{1}", "--shares", "0,0"], EXIT_USAGE, "not all 0"),
        (["{0}", "{1}", "--shares", "nan,1"], EXIT_USAGE, "shares are numbers from 0 on"),
        (["{0}", "{1}", "--shares", "x"], EXIT_USAGE, "--shares"),
        (["{0}", "{1}", "--recompute-bn"], EXIT_USAGE, "no data given: use --data DIR"),
        (["{0}", "{1}", "--recompute-bn", "1"], EXIT_USAGE, "batch statistics need 2 or more images, not 1"),
        (["{0}", "{1}", "--greedy"], EXIT_USAGE, "no data given: use --data DIR"),
        (["{0}", "{1}", "--greedy", "--shares", "1,2"], EXIT_USAGE, "give shares or greedy, not both"),
        (["{0}", "nowhere"], EXIT_DATA, "no model at nowhere"),
        (["{0}", "{classes}"], EXIT_DATA, "are not the same network: class 0 is 'gnu' and 'ant'"),
        (["{0}", "{size}"], EXIT_DATA, "are not the same network: image_size is 12 and 8"),
        (["{0}", "{mean}"], EXIT_DATA, "are not the same network: mean is"),
    ],
)
def test_what_cannot_be_averaged_is_one_line(
    cli: CommandLine,
    files: list[Path],
    tiny_weights: Weights,
    tmp_path: Path,
    words: list[str],
    code: int,
    says: str,
) -> None:
    others = {
        "classes": tiny_weights.replace(classes=("gnu", *tiny_weights.classes[1:])),
        "size": tiny_weights.evaluated_at(12),
        "mean": tiny_weights.replace(
            preprocess=type(tiny_weights.preprocess).from_dict(
                {**tiny_weights.preprocess.to_dict(), "mean": [1.0, 2.0, 3.0]}
            )
        ),
    }
    paths = {name: tmp_path / f"{name}.safetensors" for name in others}
    for name, weights in others.items():
        if f"{{{name}}}" in words:
            save_weights(weights, paths[name])
    given = [word.format(*files, **paths) for word in words]
    cli.refuses(code, "average", *given, "-o", tmp_path / "m.safetensors", says=says)
    assert not (tmp_path / "m.safetensors").exists()


def test_greedy_takes_what_makes_the_mean_no_worse(tiny_weights: Weights) -> None:
    """Weights with one number each, of which 10 is the best: 9, then 12 (mean 10.5), not 20, then 8."""
    numbers = {"a": 12.0, "b": 20.0, "c": 9.0, "d": 8.0}

    def read(path: Path) -> Weights:
        bias = np.full_like(tiny_weights.tensors["fc.bias"], numbers[str(path)])
        return tiny_weights.replace(tensors={**tiny_weights.tensors, "fc.bias": bias})

    def measured(weights: Weights) -> float:
        return -abs(float(weights.tensors["fc.bias"][0]) - 10)

    notes: list[Any] = []
    chosen = greedy(list(map(Path, numbers)), read, measured, "{:g}".format, notes.append)
    assert list(map(str, chosen)) == ["c", "a", "d"]
    assert [note.text for note in notes] == [
        "a: -2", "b: -10", "c: -1", "d: -2",
        "a taken: -0.5 with it, -1 without",
        "d taken: -0.333333 with it, -0.5 without",
        "b left out: -2.25 with it, -0.333333 without",
    ]  # fmt: skip


def test_a_greedy_average_is_no_worse_than_its_best(
    cli: CommandLine, files: list[Path], photos: Path, tmp_path: Path
) -> None:
    out, data = tmp_path / "m.safetensors", ["--data", photos, "--set", "data.workers=0"]
    result = cli.ok(
        "--backend", "reference", "average", *files, "-o", out, "--greedy", *data, "--json"
    ).json()
    alone = {str(path): cli.ok("eval", "--weights", path, *data, "--json").json()["top1"] for path in files}
    made = cli.ok("eval", "--weights", out, *data, "--json").json()
    assert made["top1"] >= max(alone.values())
    assert result["sources"][0] == max(alone, key=lambda path: alone[path])
    assert result["shares"] == pytest.approx([1 / len(result["sources"])] * len(result["sources"]))
    assert [part["source"] for part in load_weights(out).origin["average"]] == result["sources"]


def test_a_greedy_choice_of_one_is_not_called_a_mean(
    files: list[Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[Any] = []
    monkeypatch.setattr("resnext_core.jobs.average._chosen", lambda job, *_: job.sources[1:2])
    job = AverageJob(
        sources=tuple(files),
        target=tmp_path / "one.safetensors",
        greedy=True,
        settings=Settings(data=str(photos)),
    )
    result = average(job, notes.append)
    assert result.digest == load_weights(files[1]).digest
    assert notes[-1].text == "no mean is better than the best of the weights, which is written as it is"
    assert not any("--recompute-bn" in note.text for note in notes)


def test_the_target_is_not_overwritten(cli: CommandLine, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    out.write_text("kept")
    cli.refuses(
        EXIT_USAGE, "average", *files, "-o", out, says="already exists; choose another name or use --force"
    )
    cli.refuses(
        EXIT_USAGE, "average", *files, "-o", tmp_path / "m.pth", says="is a .safetensors file, not 'm.pth'"
    )
    assert out.read_text() == "kept"
    cli.ok("average", *files, "-o", out, "--force")
    assert load_weights(out).classes
    result = average(AverageJob(sources=tuple(files), target=tmp_path / "n.safetensors"))
    assert result.digest == load_weights(out).digest
    assert Config().train.seed == 1, "the order of the batches above"
