"""Evaluation at another size than training: the training is the same, and everything after it is at that size."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from command_line import CommandLine
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from resnext_core.config import Config, EvalConfig, ModelConfig
from resnext_core.errors import EXIT_DATA, EXIT_USAGE
from resnext_core.model.preprocess import PreprocessSpec, evaluated_at
from resnext_core.model.weights import Golden, Weights, load_weights, save_weights
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.records import Eval
from resnext_core.training.sizes import training_preprocess, training_size, with_training_size

AT_12 = ["--set", "eval.size=12", "--set", "eval.crop_pct=0.8"]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 500), st.integers(0, 99), st.integers(1, 500), st.floats(0.1, 1) | st.none())
def test_the_size_is_timms_and_taking_it_twice_changes_nothing(
    size: int, more: int, new: int, crop: float | None
) -> None:
    assume((size + more) * new < 8192 * size)
    spec = evaluated_at(PreprocessSpec(size=size, resize=size + more), new, crop)
    assert spec.size == new
    if crop is not None:
        assert spec.resize == math.floor(new / crop)
    else:
        assert abs(spec.resize - (size + more) * new / size) <= 0.5
    assert evaluated_at(spec, new, crop) == spec
    assert evaluated_at(spec, None, crop) == spec
    assert evaluated_at(spec, None) == spec


def test_the_ratio_of_a_published_network_is_kept() -> None:
    assert evaluated_at(PreprocessSpec(size=224, resize=232), 288).resize == 298  # 298.3
    assert evaluated_at(PreprocessSpec(), 288).resize == 329
    assert evaluated_at(PreprocessSpec(), None, 0.95).resize == 235


def test_golden_logits_are_kept_for_the_same_size_alone(tiny_weights: Weights) -> None:
    golden = Golden(compute="float32", logits=((0.0,) * 6,))
    weights = tiny_weights.replace(golden=golden)
    assert weights.evaluated_at(None) is weights
    assert weights.evaluated_at(None, 0.5).golden == golden
    assert weights.evaluated_at(12).golden is None


def test_training_images_are_of_the_training_size() -> None:
    config = Config(model=ModelConfig(variant="resnext_tiny", image_size=8), eval=EvalConfig(size=12))
    seen = training_preprocess(
        config, PreprocessSpec(size=12, resize=15, filter="bicubic", orientation="apply")
    )
    assert (seen.size, seen.filter, seen.orientation) == (8, "bicubic", "apply")
    variant = Config(model=ModelConfig(variant="resnext50_32x4d"), eval=EvalConfig(size=288))
    assert training_size(variant) == 224
    assert with_training_size(variant).model.image_size == 224
    assert with_training_size(config) is config


# -- a run -------------------------------------------------------------------------------------------------


def last(folder: Path, step: int = 12) -> Weights:
    return load_weights(folder / "checkpoints" / f"step-{step:08}" / "weights.safetensors")


@pytest.fixture
def train(cli: CommandLine, photos: Path, recipe: Path, tmp_path: Path) -> list[object]:
    return ["train", "--recipe", recipe, "--data", photos, "--output", tmp_path]


def test_a_run_is_trained_alike_and_evaluated_at_its_size(
    cli: CommandLine, train: list[object], photos: Path, tmp_path: Path
) -> None:
    cli.ok(*train, "--name", "plain")
    cli.ok(*train, "--name", "large", *AT_12)
    plain, large = (last(tmp_path / name) for name in ("plain", "large"))
    assert plain.digest == large.digest  # to the bit
    assert (large.spec.image_size, large.preprocess.size, large.preprocess.resize) == (12, 12, 15)
    words = ["--json", "--set", "data.workers=0", "--data", photos]
    of_run = cli.ok("eval", "--weights", tmp_path / "large", *words).json()
    of_plain = cli.ok(
        "eval", "--weights", tmp_path / "plain" / "checkpoints" / "step-00000012", *words, *AT_12
    ).json()
    record = [r for r in RunFolder(tmp_path / "large").read_records() if isinstance(r, Eval)]
    best = max(record, key=lambda r: r.metrics["top1"])
    assert of_run["top1"] == best.metrics["top1"]
    if best.step == 12:
        assert of_run["confusion"] == of_plain["confusion"]
    small = cli.ok("eval", "--weights", tmp_path / "large", *words, "--set", "eval.size=8").json()
    assert small["confusion"] != of_run["confusion"]


def test_a_resumed_run_goes_on_at_both_sizes(cli: CommandLine, train: list[object], tmp_path: Path) -> None:
    cli.ok(*train, "--name", "whole", *AT_12)
    cli.ok(*train, "--name", "parts", *AT_12, "--epochs", 1)
    cli.ok("train", "--resume", tmp_path / "parts", "--epochs", 2)
    whole, parts = (last(tmp_path / name) for name in ("whole", "parts"))
    assert whole.digest == parts.digest
    assert whole.preprocess == parts.preprocess
    cli.ok("train", "--resume", tmp_path / "parts", "--epochs", 3, "--set", "eval.size=null", "--set",
           "eval.crop_pct=null")  # fmt: skip
    assert last(tmp_path / "parts", 18).spec.image_size == 8


def test_the_size_of_training_images_is_kept(cli: CommandLine, train: list[object], tmp_path: Path) -> None:
    """Also where only the variant states it, and an evaluation in between had another one."""
    train += ["--set", "model.image_size=null", "--set", "schedule.kind=constant"]
    cli.ok(*train, "--name", "whole", "--epochs", 3)
    cli.ok(*train, "--name", "parts", "--epochs", 1)
    resume = ["train", "--resume", tmp_path / "parts"]
    cli.ok(*resume, "--epochs", 2, "--set", "eval.size=12")
    cli.refuses(
        EXIT_DATA, *resume, "--epochs", 3, "--set", "model.image_size=16", says="image_size was 32 and is 16"
    )
    cli.ok(*resume, "--epochs", 3)
    whole, parts = (last(tmp_path / name, 18) for name in ("whole", "parts"))
    assert whole.digest == parts.digest
    assert parts.spec.image_size == 32


@pytest.mark.parametrize("value", ["0", "8193", "1.5", "big"])
def test_sizes_and_crops_out_of_bounds_are_refused(cli: CommandLine, train: list[object], value: str) -> None:
    cli.refuses(EXIT_USAGE, *train, "--set", f"eval.size={value}", says="eval.size")
    if value != "1.5":
        cli.refuses(EXIT_USAGE, *train, "--set", f"eval.crop_pct={value}", says="eval.crop_pct")


def test_logits_at_another_size_are_those_of_a_network_of_that_size(
    tiny_weights: Weights, tmp_path: Path, cli: CommandLine, photos: Path
) -> None:
    """A file that says 8 pixels, evaluated at 13, is the same as the file that says 13."""
    save_weights(tiny_weights, tmp_path / "8.safetensors")
    save_weights(tiny_weights.evaluated_at(13), tmp_path / "13.safetensors")
    words = ["--json", "--set", "data.workers=0", "--data", photos]
    eight = cli.ok("eval", "--weights", tmp_path / "8.safetensors", *words, "--set", "eval.size=13").json()
    thirteen = cli.ok("eval", "--weights", tmp_path / "13.safetensors", *words).json()
    assert eight["confusion"] == thirteen["confusion"]
    assert np.asarray(eight["confusion"]).sum() == 23
