"""Every command from the outside: help, configuration with provenance, machine-readable results, one line each."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import CLASSES, CommandLine
from PIL import Image

from resnext_core import __version__
from resnext_core.cli import commands as builtin
from resnext_core.config import load_config
from resnext_core.data.render import load_eval
from resnext_core.errors import EXIT_DATA, EXIT_UNAVAILABLE, EXIT_USAGE
from resnext_core.interfaces import Command, PredictRequest
from resnext_core.model.preprocess import normalize
from resnext_core.model.weights import Weights
from resnext_core.plugins import load_plugins
from resnext_core.reference.predictor import create_predictor
from resnext_core.serving.metrics import softmax

COMMANDS: list[Command] = list(builtin.resnext_commands())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_every_command_has_help(cli: CommandLine, command: Command) -> None:
    out = cli.ok(command.name, "--help").out
    assert out.startswith(f"usage: resnext-run {command.name}")
    assert command.summary[1:] in " ".join(out.split())
    assert "no-result" not in out
    for action in re.findall(r"^  (--[a-z-]+)(?: [A-Z.=]+)*$\n(?! {8,})", out, flags=re.M):
        raise AssertionError(f"{action} has no help text")


@pytest.mark.parametrize(
    "words", [["backends"], ["recipes"], ["runs", "list"], ["report", "RUN"]], ids=" ".join
)
def test_a_command_that_computes_nothing_takes_no_backend(cli: CommandLine, words: list[str]) -> None:
    for given in (["--backend", "reference"], ["--backend=nothing"]):
        outcome = cli(*given, *words)
        assert outcome.code == EXIT_USAGE
        assert outcome.err == f"resnext-run: the command '{words[0]}' takes no --backend\n"
    assert "--backend" not in cli.ok(words[0], "--help").out


def test_top_level_help_lists_every_command(cli: CommandLine) -> None:
    out = cli.ok("--help").out
    for command in COMMANDS:
        assert f"  {command.name} " in out
        assert command.summary in out


def test_version(cli: CommandLine) -> None:
    assert cli.ok("--version").out == f"resnext-core {__version__}\n"


# -- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["train"], ["run"], ["eval", "--weights", "w"], ["infer", "--weights", "w"], ["bench", "eval"],
        ["export", "--weights", "w", "--to", "x"], ["validate", "--weights", "w", "--artefact", "x"],
    ],
    ids=lambda c: c[0],
)  # fmt: skip
def test_print_config_shows_every_value_and_its_source(
    cli: CommandLine, tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "mine.yaml").write_text("train: {keep: 9}\n")
    flags = [
        "--recipe",
        "digits",
        "--config",
        tmp_path / "mine.yaml",
        "--epochs",
        4,
        "--set",
        "loss.smoothing=0",
    ]
    out = cli.ok(*command, *flags, "--print-config").out
    sources = {}
    section = ""
    for line in out.splitlines():
        if not line.startswith(" "):
            section = line.rstrip(":")
        else:
            key, source = re.match(r"  (\w+): .*?# (.*)$", line).groups()  # type: ignore[union-attr]
            sources[f"{section}.{key}"] = source
    assert sources["model.variant"] == "recipe digits"
    assert sources["train.keep"] == str(tmp_path / "mine.yaml")
    assert sources["train.epochs"] == "--epochs 4"
    assert sources["loss.smoothing"] == "--set loss.smoothing=0"
    assert sources["optimizer.momentum"] == "default"
    config, known = load_config([])
    assert set(sources) >= set(known)
    values = yaml.safe_load(out)
    assert values["train"] | {"keep": 9, "epochs": 4} == values["train"]
    assert set(values) >= set(config.to_dict())


def test_the_printed_configuration_is_one(cli: CommandLine, tmp_path: Path) -> None:
    first = cli.ok("train", "--recipe", "digits", "--seed", 5, "--print-config").out
    (tmp_path / "c.yaml").write_text(first)
    second = cli.ok("train", "--recipe", str(tmp_path / "c.yaml"), "--print-config").out
    assert yaml.safe_load(first) == yaml.safe_load(second)


# -- infer ---------------------------------------------------------------------------------------


@pytest.fixture
def expected(tiny_weights: Weights, photos: Path) -> np.ndarray:
    """Logits of val/ant, image by image."""
    predictor = create_predictor(PredictRequest(weights=tiny_weights, rank=None))  # type: ignore[arg-type]
    paths = sorted((photos / "val" / "ant").iterdir())
    return np.concatenate([predictor.logits(load_eval(p, tiny_weights.preprocess)[None]) for p in paths])


def test_infer_prints_probabilities_and_writes_logits(
    cli: CommandLine, weights_file: Path, photos: Path, tmp_path: Path, expected: np.ndarray
) -> None:
    words = ["infer", "--weights", weights_file, photos / "val" / "ant", "--set", "data.workers=0"]
    outcome = cli.ok(*words, "--top", 2, "--logits", tmp_path / "l.npy")
    written = np.load(tmp_path / "l.npy")
    assert written.dtype == np.float32
    np.testing.assert_allclose(written, expected, atol=1e-5 * np.abs(expected).max())
    for line, logits in zip(outcome.out.splitlines(), expected, strict=True):
        top = json.loads(line)["top"]
        order = np.argsort(-logits)[:2]
        assert [t["id"] for t in top] == order.tolist()
        assert [t["name"] for t in top] == [CLASSES[i] for i in order]
        np.testing.assert_allclose([t["probability"] for t in top], softmax(logits)[order], atol=2e-6)


def test_infer_takes_a_ready_tensor(
    cli: CommandLine,
    weights_file: Path,
    photos: Path,
    tiny_weights: Weights,
    tmp_path: Path,
    expected: np.ndarray,
) -> None:
    paths = sorted((photos / "val" / "ant").iterdir())
    pixels = np.stack([load_eval(p, tiny_weights.preprocess) for p in paths])
    np.save(tmp_path / "t.npy", normalize(pixels, tiny_weights.preprocess))
    words = [
        "infer",
        "--weights",
        weights_file,
        "--tensor",
        tmp_path / "t.npy",
        "--logits",
        tmp_path / "l.npy",
    ]
    cli.ok(*words, "--set", "eval.batch_size=3")
    np.testing.assert_allclose(np.load(tmp_path / "l.npy"), expected, atol=1e-5 * np.abs(expected).max())


def test_infer_reads_paths_from_standard_input(
    cli: CommandLine, weights_file: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    paths = [str(photos / "val" / name) for name in ("bee/01.png", "ant/00.jpg")]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(("\n".join(paths) + "\n\n").encode())))
    out = cli.ok("infer", "--weights", weights_file, "-", "--set", "data.workers=0").out
    assert [json.loads(line)["path"] for line in out.splitlines()] == paths


# -- data, recipes, doctor, bench ----------------------------------------------------------------


def test_data_info(cli: CommandLine, photos: Path) -> None:
    parts = cli.ok("data", "info", photos, "--json").json()["parts"]
    assert {name: part["images"] for name, part in parts.items()} == {"train": 48, "val": 23}
    assert parts["val"]["classes"] == {"ant": 4, "bee": 4, "cat": 4, "dog": 4, "elk": 4, "fox": 3}
    lines = [line.split() for line in cli.ok("data", "info", photos).out.splitlines()]
    assert lines[0] == ["class", "train", "val"]
    assert lines[-1] == ["all", "48", "23"]
    assert cli.ok("data", "info", photos / "val", "--json").json()["parts"]["images"]["images"] == 23
    assert "ant" not in cli.ok("data", "info", photos / "val" / "ant").out


def test_recipes(cli: CommandLine) -> None:
    recipes = cli.ok("recipes", "--json").json()["recipes"]
    assert "digits" in recipes
    assert recipes["digits"] in cli.ok("recipes").out
    assert yaml.safe_load(cli.ok("recipes", "digits").out)["model"]["variant"] == "resnext20_4x16d_quarter"


def test_doctor(cli: CommandLine) -> None:
    result = cli.ok("doctor", "--json").json()
    (reference,) = result["backends"]
    assert (reference["id"], reference["state"]) == ("reference", "ready")
    assert reference["difference"] < 1e-5
    assert result["environment"]["numpy"] == np.__version__
    assert result["decoders"] == [
        {"name": "pillow", "state": "ready", "detail": "Pillow, in processes", "taken": True}
    ]
    assert re.search(
        r"^pillow +ready +Pillow, in processes +taken by auto$", cli.ok("doctor").out, re.MULTILINE
    )


def test_a_decoder_that_is_not_known_is_refused_before_the_work(
    cli: CommandLine, photos: Path, recipe: Path, weights_file: Path, tmp_path: Path
) -> None:
    wrong = ["--data", photos, "--set", "data.decoder=pilow", "--output", tmp_path / "runs"]
    says = "unknown data.decoder 'pilow'; did you mean 'pillow'?"
    for words in (
        ["train", "--recipe", recipe],
        ["bench", "data", "--recipe", recipe],
        ["eval", "--weights", weights_file],
    ):
        cli.refuses(EXIT_USAGE, *words, *wrong, says=says)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("what", ["train", "eval", "data"])
def test_bench(cli: CommandLine, photos: Path, recipe: Path, what: str) -> None:
    words = ["bench", what, "--recipe", recipe, "--data", photos, "--steps", 3, "--warmup", 1, "--classes", 6]
    result = cli.ok(*words, "--json", "--peak-tflops", 0.5).json()
    assert result["images_per_s"] > 0
    assert result["batch_size"] == 8
    assert result["peak_memory_mib"] > 10
    if what != "data":
        assert result["mfu"] == result["gflop_per_s"] / 500
    cli.refuses(EXIT_USAGE, *words, "--peak-tflops", 0, says="--peak-tflops must be above 0")


def test_eval_finds_the_model_in_a_run_a_checkpoint_and_a_file(
    cli: CommandLine, finished_run: Path, photos: Path, tmp_path: Path
) -> None:
    newest = finished_run / "checkpoints" / "step-00000012"
    file = shutil.copy(newest / "weights.safetensors", tmp_path / "w.safetensors")
    common = ["--data", photos, "--set", "data.workers=0", "--json"]
    best = (finished_run / "checkpoints" / "best").read_text()
    result = cli.ok("eval", "--weights", finished_run, *common).json()
    assert result["weights"] == str(finished_run / "checkpoints" / best / "weights.safetensors")
    digests = {cli.ok("eval", "--weights", w, *common).json()["digest"] for w in (newest, file)}
    assert len(digests) == 1


def test_eval_on_a_list_of_images(cli: CommandLine, weights_file: Path, photos: Path) -> None:
    common = ["eval", "--weights", weights_file, "--set", "data.workers=0", "--json", "--data"]
    folder = cli.ok(*common, photos / "val").json()
    lines = [
        f"val/{name}/{p.name}\t{name}" for name in CLASSES for p in sorted((photos / "val" / name).iterdir())
    ]
    listed = photos.parent / "list.txt"
    listed.write_text("\n".join(f"{photos.name}/{line}" for line in lines))
    assert cli.ok(*common, listed).json()["confusion"] == folder["confusion"]


def test_a_reader_that_goes_away_is_one_line(weights_file: Path, photos: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    from command_line import environment

    many = tmp_path / "many"
    many.mkdir()
    for i in range(300):
        Image.new("RGB", (8, 8)).save(many / f"{i}.png")
    words = ["--backend", "reference", "infer", "--weights", str(weights_file), str(many), "--top", "6"]
    process = subprocess.Popen(
        [sys.executable, "-m", "resnext_core.cli", *words, "--set", "data.workers=0"],
        env=environment(PYTHONUNBUFFERED="1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=300) == EXIT_DATA
    assert err == b"resnext-run: cannot write standard output: Broken pipe\n"


def test_errors_leave_standard_output_alone(cli: CommandLine, tmp_path: Path) -> None:
    outcome = cli("eval", "--weights", tmp_path / "none", "--data", tmp_path, "--json")
    assert (outcome.code, outcome.out) == (EXIT_DATA, "")


def test_nothing_to_export_with_is_said(cli: CommandLine, weights_file: Path, tmp_path: Path) -> None:
    says = "no backend here writes an artefact"
    cli.refuses(EXIT_UNAVAILABLE, "export", "--weights", weights_file, "--to", tmp_path / "out", says=says)
    assert not (tmp_path / "out").exists()


def test_a_checkout_that_is_not_installed_is_said(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = dataclasses.replace(load_plugins(), commands={})
    monkeypatch.setattr(importlib.import_module("resnext_core.cli.main"), "load_plugins", lambda: nothing)
    cli.refuses(EXIT_UNAVAILABLE, "--help", says="resnext-core is not installed, only found")
