"""The learning-rate finder: the job's own first steps at rising rates, what it suggests, and what it leaves behind."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from command_line import CommandLine

from resnext_core.errors import EXIT_DATA, EXIT_USAGE, DataError
from resnext_core.training.lr_sweep import Sweep, longest_fall, suggest_lr, sweep_lrs


def made(losses: list[float], low: float = 1e-5, high: float = 1.0) -> Sweep:
    values = np.array(losses)
    lrs = np.geomspace(low, high, len(losses))
    return Sweep(lrs=lrs, losses=values, smoothed=values, diverged=True)


def test_the_longest_fall_is_found_among_rises() -> None:
    assert longest_fall(np.array([5.0, 9, 8, 8, 7, 10, 6, 7, 1])) == (1, 8)  # 9 8 7 6 1
    assert longest_fall(np.array([1.0, 1, 1])) == (0, 0)
    assert longest_fall(np.array([3.0, 2, 1])) == (0, 2)
    assert longest_fall(np.array([3.0, 3, 3, 2, 1, 1])) == (2, 4)


def test_the_valley_is_the_middle_of_the_fall() -> None:
    """Flat from 1e-5 to 1e-4, down to 1e-2 along a curve that is steepest in its middle, then up."""
    decades = np.linspace(-5, 0, 101)
    fall = 2 - np.tanh(2 * (np.clip(decades, -4, -2) + 3))
    losses = np.where(decades <= -2, fall, fall + 3 * (decades + 2))
    found = suggest_lr(made(losses.tolist()))
    assert math.log10(found.valley) == pytest.approx(-3, abs=0.1)
    assert math.log10(found.steepest) == pytest.approx(-3, abs=0.1)
    assert math.log10(found.tenth) == pytest.approx(-3, abs=0.1)


def test_a_sweep_that_says_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="the loss never falls"):
        suggest_lr(made([1.0 + k / 50 for k in range(100)]))
    with pytest.raises(DataError, match="too early to suggest a rate; start with a lower --low"):
        suggest_lr(made([1.0 / (k + 1) for k in range(15)]))


def test_rates_rise_by_the_same_factor() -> None:
    lrs = sweep_lrs(1e-6, 10, 50)
    assert lrs.dtype == np.float32
    assert (lrs[0], lrs[-1]) == (np.float32(1e-6), np.float32(10))
    assert np.diff(np.log(lrs)) == pytest.approx(np.full(49, math.log(1e7) / 49), rel=1e-4)


def test_the_steps_are_those_of_the_training_and_nothing_is_left(
    cli: CommandLine, recipe: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--recipe", recipe, "--data", photos, "--set", "mix.mixup=0.2", "--set", "optimizer.lr_batch=16")
    found = cli.ok("find-lr", *flags, "--steps", 60, "--high", 100, "--plot", "lr.html", "--json").json()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "lr.html"]
    assert found["lrs"][0] == pytest.approx(1e-6)
    assert found["diverged"]
    assert len(found["lrs"]) == len(found["losses"]) == len(found["smoothed"]) < 60
    assert found["lrs"][0] < found["valley"] < found["lrs"][-1]
    assert found["lr"] == pytest.approx(2 * found["valley"], rel=0.06), "lr is per 16 images, a step has 8"

    page = (tmp_path / "lr.html").read_text()
    assert "<polyline" in page
    assert f"optimizer.lr={found['lr']:g}" in page
    assert "http" not in page.replace("http-equiv", "")

    # The first step has the images, the mix and the weights of the training's first.
    cli.ok("train", *flags, "--name", "run")
    records = [json.loads(line) for line in (tmp_path / "runs/run/records.jsonl").read_text().splitlines()]
    first = next(r for r in records if r["kind"] == "train")
    assert first["loss"] == pytest.approx(found["losses"][0], rel=1e-6)
    assert found["smoothed"][0] == pytest.approx(found["losses"][0])


def test_a_run_is_not_needed_and_lines_say_what_to_try(
    cli: CommandLine, recipe: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = cli.ok("find-lr", "--recipe", recipe, "--data", photos, "--steps", 60, "--high", 100).out
    assert "where the loss diverged" in out
    assert "\ntry --set optimizer.lr=" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--low", 1, "--high", 0.1), EXIT_USAGE, "rates must rise"),
        (("--low", 0), EXIT_USAGE, "rates must rise"),
        (("--high", "inf"), EXIT_USAGE, "rates must rise"),
        (("--steps", 10), EXIT_USAGE, "a sweep needs 40 steps or more, not 10"),
        (("--plot", "."), EXIT_DATA, "irectory"),
        (("--set", "model.num_classes=3"), EXIT_USAGE, "model.num_classes"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    cli: CommandLine, recipe: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    flags: tuple[object, ...], code: int, says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    cli.refuses(code, "find-lr", "--recipe", recipe, "--data", photos, *flags, says=says)
