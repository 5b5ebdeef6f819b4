"""Distillation and fine-tuning on the command line: refusals before any work, exact resume, ranks, what a run shows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine, environment
from run_records import stored

from resnext_core.errors import EXIT_DATA, EXIT_USAGE
from resnext_core.model.init import random_weights
from resnext_core.model.weights import Weights, load_weights, save_weights
from resnext_core.runs.checkpoint import load_checkpoint, load_latest
from resnext_core.runs.folder import RunFolder


@pytest.fixture
def words(photos: Path, recipe: Path, tmp_path: Path) -> list[object]:
    """A training of 2 epochs of 6 steps on the reference backend, into `tmp_path`."""
    return [
        "--backend", "reference", "train", "--recipe", recipe, "--data", photos, "--output", tmp_path,
        "--set", "data.workers=0",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def other_file(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Weights) -> Path:
    """Other weights of the same network and classes."""
    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    save_weights(tiny_weights.replace(tensors=random_weights(tiny_weights.spec, 11)), path)
    return path


def sets(*assignments: str) -> list[str]:
    return [f"--set={assignment}" for assignment in assignments]


def tensors(run: Path) -> dict[str, Any]:
    """Return the whole state of the newest checkpoint of a run."""
    return dict(load_latest(RunFolder(run).checkpoints, pytest.fail).state.tensors)


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert np.array_equal(array, theirs[name]), name


# -- a teacher -----------------------------------------------------------------------------------

TAUGHT = sets(
    "train.teacher_weight=0.7", "train.teacher_temperature=2", "mix.mixup=0.2", "mix.cutmix=1", "train.ema_decay=0.9"
)  # fmt: skip


@pytest.fixture
def taught(words: list[object], weights_file: Path) -> list[object]:
    return [*words, *TAUGHT, "--set", f"train.teacher={weights_file}"]


def test_a_resumed_run_learns_from_the_same_teacher_to_the_bit(
    taught: list[object],
    cli: CommandLine,
    tmp_path: Path,
    weights_file: Path,
    other_file: Path,
    finished_run: Path,
) -> None:
    cli.ok(*taught, "--name", "whole")
    text = (tmp_path / "whole" / "log.txt").read_text()
    assert f"learning from {weights_file}, a resnext_tiny on backend reference" in text
    seconds = [r["teacher_s"] for r in stored(RunFolder(tmp_path / "whole")) if r["kind"] == "train"]
    assert len(seconds) == 12
    assert min(seconds) > 0
    assert len(re.findall(r"waiting \d+ %  teacher \d+ %", text)) == 12
    cli.ok(*taught, "--name", "cut", "--epochs", 1)
    shutil.copytree(tmp_path / "cut", tmp_path / "kept")
    resume = ["train", "--epochs", 2, "--set", "data.workers=0", "--resume"]
    plain = ["train.teacher=null", "train.teacher_weight=0.5", "train.teacher_temperature=1"]
    for changes in ([f"train.teacher={other_file}"], [f"train.teacher={finished_run}"], plain):
        cli.refuses(EXIT_DATA, *resume, tmp_path / "cut", *sets(*changes), says="train.teacher was digest")
    cli.ok(*resume, tmp_path / "kept")
    assert_same(tmp_path / "kept", tmp_path / "whole")
    cli.ok(*taught, "--name", "other", "--set", f"train.teacher={other_file}")
    assert not np.array_equal(
        tensors(tmp_path / "other")["weights/fc.bias"], tensors(tmp_path / "whole")["weights/fc.bias"]
    ), "what the teacher says matters"


def test_a_run_without_teacher_is_not_resumed_with_one(
    cli: CommandLine, finished_run: Path, weights_file: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    resume = ["train", "--resume", run, "--epochs", 3, "--set", f"train.teacher={weights_file}"]
    cli.refuses(EXIT_DATA, *resume, says="train.teacher was None and is digest")


def test_two_ranks_learn_what_one_that_accumulates_learns(
    taught: list[object], cli: CommandLine, tmp_path: Path
) -> None:
    exact = sets("precision.compute=float64")
    done = subprocess.run(
        [sys.executable, "-m", "resnext_core.cli", *map(str, [*taught, *exact, "--name", "two", "--devices", 2])],
        env=environment(), check=False, timeout=120, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cli.ok(*taught, *exact, "--name", "one", "--set", "train.accumulate=2")
    ours, theirs = tensors(tmp_path / "two"), tensors(tmp_path / "one")
    for name, array in theirs.items():
        if name.startswith("weights/") and "running" not in name:
            scale = float(np.abs(array).max())
            np.testing.assert_allclose(ours[name], array, rtol=1e-3, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize(
    ("assignments", "says"),
    [
        (["train.teacher=nowhere"], "no model at nowhere"),
        (["train.teacher_weight=0.9"], "train.teacher_weight is 0.9, and there is no teacher"),
        (["train.teacher_temperature=2"], "train.teacher_temperature is 2, and there is no teacher"),
        (["train.teacher=s3://bucket/run"], "s3://bucket/run"),
    ],
)
def test_what_cannot_be_a_teacher(
    words: list[object], cli: CommandLine, tmp_path: Path, assignments: list[str], says: str
) -> None:
    outcome = cli(*words, *sets(*assignments))
    assert outcome.code in (EXIT_DATA, EXIT_USAGE)
    (line,) = outcome.err.splitlines()
    assert says in line
    assert not list(tmp_path.glob("*resnext*")), "no run folder"


@pytest.mark.parametrize("devices", [1, 2])
def test_a_teacher_of_other_classes_is_refused_before_a_run_is_made(
    words: list[object], cli: CommandLine, tmp_path: Path, tiny_weights: Weights, devices: int
) -> None:
    path = tmp_path / "wrong.safetensors"
    names = (*tiny_weights.classes[:-1], "gnu")
    save_weights(tiny_weights.replace(classes=names), path)
    flags = [*sets(f"train.teacher={path}"), "--devices", devices, "--name", "run"]
    cli.refuses(EXIT_USAGE, *words, *flags, says=("number 5 is 'gnu' there and 'fox' here",))
    assert not (tmp_path / "run").exists()


# -- fine-tuning ---------------------------------------------------------------------------------


def test_frozen_parts_stay_as_they_are_and_the_run_says_so(
    words: list[object], cli: CommandLine, tmp_path: Path, weights_file: Path
) -> None:
    flags = [
        "--pretrained",
        weights_file,
        *sets("train.freeze=2", "optimizer.stage_lr=0.5", "train.ema_decay=0.9"),
    ]
    cli.ok(*words, *flags, "--name", "run")
    before, after = load_weights(weights_file).tensors, tensors(tmp_path / "run")
    frozen = {n for n in before if n.startswith(("conv1.", "bn1.", "layer1."))}
    for name, array in before.items():
        assert np.array_equal(after[f"weights/{name}"], array) == (name in frozen), name
        if name in frozen:  # the mean of equal numbers may be rounded
            np.testing.assert_allclose(after[f"ema/{name}"], array, rtol=1e-5)
        assert (f"momentum/{name}" in after) == (name not in frozen and "running" not in name), name
    learned = sum(a.size for n, a in before.items() if n not in frozen and "running" not in n)
    text = (tmp_path / "run" / "log.txt").read_text()
    assert f"{learned:,} of " in text
    assert "the stem and stage 1 are frozen, batch statistics included" in text
    assert "multiplied by: stage 2 0.25, stage 3 0.5, classifier 1" in text
    notes = cli.ok("--backend", "reference", "doctor", "--json", "--run", tmp_path / "run").json()["notes"]
    assert next(n["text"] for n in notes if n["topic"] == "network").startswith(f"{learned:,} of ")


def test_a_run_with_frozen_parts_resumes_to_the_bit_and_with_no_others(
    words: list[object], cli: CommandLine, tmp_path: Path, weights_file: Path
) -> None:
    flags = [
        "--pretrained",
        weights_file,
        *sets("train.freeze=2", "optimizer.stage_lr=0.5", "optimizer.kind=adamw"),
    ]
    cli.ok(*words, *flags, "--name", "whole")
    cli.ok(*words, *flags, "--name", "cut", "--epochs", 1)
    resume = ["train", "--epochs", 2, "--set", "data.workers=0", "--resume", tmp_path / "cut"]
    cli.refuses(EXIT_DATA, *resume, "--set", "train.freeze=1", says="train.freeze was 2 and is 1")
    cli.ok(*resume)
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_the_state_of_an_optimizer_goes_on_where_it_fits(
    words: list[object], cli: CommandLine, tmp_path: Path, finished_run: Path
) -> None:
    """Of the tensors that learn, and of the same optimizer alone."""
    first = [*words, *sets("optimizer.kind=adamw", "optimizer.lr=0.001")]
    cli.ok(*first, "--name", "first")
    start = ["--pretrained", tmp_path / "first" / "checkpoints" / "step-00000012"]
    state = sets("model.pretrained_momentum=true", "train.freeze=1", "optimizer.lr=0")
    cli.ok(*first, *start, *state, "--name", "second")
    before = load_checkpoint(tmp_path / "first" / "checkpoints" / "step-00000012").state.tensors
    after = tensors(tmp_path / "second")
    assert float(after["optimizer/updates"][0]) == 24
    assert "variance/conv1.weight" in before
    assert "variance/conv1.weight" not in after
    cli.refuses(
        EXIT_DATA, *words, *start, *state, "--name", "third", says="the state of another optimizer than sgd"
    )
    other = ["--pretrained", finished_run / "checkpoints" / "step-00000012"]
    cli.refuses(EXIT_DATA, *first, *other, *state, "--name", "third", says="another optimizer than adamw")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["train.freeze=1"], "train.freeze 1 would keep random weights as they are"),
        (["train.freeze=5", "model.pretrained=FILE"], "train.freeze 5 is more than the 4 parts"),
    ],
)
def test_freezing_that_makes_no_sense(
    words: list[object], cli: CommandLine, tmp_path: Path, weights_file: Path, flags: list[str], says: str
) -> None:
    given = sets(*(flag.replace("FILE", str(weights_file)) for flag in flags))
    cli.refuses(EXIT_USAGE, *words, *given, "--name", "run", says=says)
    assert not (tmp_path / "run").exists()


def test_lower_rates_for_random_stages_are_a_warning(cli: CommandLine, photos: Path, recipe: Path) -> None:
    asked = ["--backend", "reference", "doctor", "--json", "--run", recipe, "--data", photos]
    notes = cli.ok(*asked, "--set", "optimizer.stage_lr=0.7").json()["notes"]
    assert [n["level"] for n in notes if n["topic"] == "network"] == ["ok", "warning"]


def test_a_benchmark_of_steps_takes_all_that_a_training_may_ask(cli: CommandLine) -> None:
    words = [
        "--backend",
        "reference",
        "bench",
        "train",
        "--json",
        "--steps",
        1,
        "--warmup",
        0,
        "--batch-size",
        4,
    ]
    asked = sets(
        "train.teacher=anything", "model.stochastic_depth=0.1", "mix.cutmix=1", "train.ema_decay=0.9"
    )
    assert cli.ok(
        *words, "--set", "model.variant=resnext_tiny", "--set", "model.image_size=8", *asked
    ).json()["steps"]


def test_a_training_is_checked_with_its_teacher(
    cli: CommandLine, photos: Path, recipe: Path, weights_file: Path, finished_run: Path
) -> None:
    asked = ["--backend", "reference", "doctor", "--json", "--run", recipe, "--data", photos]
    for teacher in (weights_file, finished_run):
        notes = cli.ok(*asked, *TAUGHT, "--set", f"train.teacher={teacher}").json()["notes"]
        assert [(n["level"], n["text"]) for n in notes if n["topic"] == "teacher"] == [
            ("ok", f"{teacher}: 70 % of the loss, at temperature 2")
        ]
    cli.refuses(EXIT_DATA, *asked[:3], "--run", recipe, "--data", photos, *TAUGHT, says="there is no teacher")
