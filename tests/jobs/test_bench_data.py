"""``bench data``: stages that add up, and a verdict that follows from the rates."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import CommandLine

from resnext_core.errors import EXIT_DATA, EXIT_USAGE
from resnext_core.jobs.bench_data import verdict
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.records import Train


@pytest.fixture
def words(photos: Path, recipe: Path) -> list[object]:
    return ["bench", "data", "--recipe", recipe, "--data", photos, "--steps", 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_every_stage_has_its_time(cli: CommandLine, words: list[object], workers: int) -> None:
    flags = ["--set", f"data.workers={workers}", "--set", "data.prefetch=3"]
    outcome = cli.ok(*words, *flags, "--json").json()
    stages = outcome["stages_ms"]
    assert list(stages)[:5] == ["read", "draw", "decode", "resize", "augment"]
    assert all(ms >= 0 for ms in stages.values())
    assert min(stages["read"], stages["draw"], stages["decode"]) > 0
    assert ("wait" in stages) == (workers > 0)
    if workers:  # the main process waits, hands over, and does nothing else
        assert stages["wait"] + stages["hand_over"] == pytest.approx(1000 / outcome["images_per_s"])
    assert (outcome["decoder"], outcome["workers"]) == ("pillow", workers)
    assert outcome["images_per_core_s"] > 0
    size = outcome["image_size"]
    waiting = 3 + 2 * workers  # batches of 8: each reader has two of them
    assert outcome["batches_mib"] == pytest.approx(waiting * 8 * size * size * 3 / 2**20)


def test_fewer_images_than_a_batch_are_read_again(cli: CommandLine, words: list[object]) -> None:
    flags = ["--batch-size", 100, "--set", "data.workers=0", "--steps", 1, "--json"]
    assert cli.ok(*words, *flags).json()["images_per_s"] > 0


def test_the_verdict_follows_from_what_a_training_takes(
    cli: CommandLine, words: list[object], tmp_path: Path
) -> None:
    text = cli.ok(*words, "--images-per-second", 0.5).out
    assert "your training takes 0: it will not wait for images" in text
    run = RunFolder.create(tmp_path, "run", "tiny")
    run.config.write_text("{}")
    cli.refuses(
        EXIT_USAGE, *words, "--run", run.path, says="has no record of training steps; use --images-per-second"
    )
    common = {"epoch": 1, "loss": 1.0, "lr": 0.1, "seconds": 99.0, "wait_s": 9.0, "images_per_s": 1.0,
              "nonfinite_steps": 0, "overflow_steps": 0, "loss_scale": 1.0}  # fmt: skip
    run.append(Train(step=1, images=8, compute_s=60.0, **common))
    for step in (2, 3):
        run.append(Train(step=step, images=5_000_000, compute_s=0.5, **common))
    found = cli.ok(*words, "--run", run.path, "--json").json()
    assert found["training_images_per_s"] == 10_000_000, "of the records after the first, without waiting"
    assert "your training takes 10000000: it will wait for images 100 % of the time" in found["verdict"]


def test_how_many_readers_would_do() -> None:
    assert verdict(500, 250, None, 2).startswith("can feed 500 images/s; compare with a training")
    assert verdict(500, 250, 500, 2) == (
        "can feed 500 images/s; your training takes 500: it will not wait for images"
    )
    assert verdict(500, 250, 2000, 2) == (
        "can feed 500 images/s; your training takes 2000: it will wait for images 75 % of the time; "
        "8 readers would do, on as many cores"
    )
    assert "; 9 readers would do" in verdict(500, 250, 2001, 2)
    assert verdict(500, 250, 100, 8) == (
        "can feed 500 images/s, with 2.0 cores' time for 8 readers: the machine does other work, or the disk is slow; "
        "your training takes 100: it will not wait for images"
    )


@pytest.mark.parametrize("rate", ["0", "-1", "nan"])
def test_a_rate_that_is_none(cli: CommandLine, words: list[object], rate: str) -> None:
    cli.refuses(EXIT_USAGE, *words, "--images-per-second", rate, says="--images-per-second must be above 0")


def test_images_that_cannot_be_read(cli: CommandLine, words: list[object], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "x.png").write_text("no image")
    words[words.index("--data") + 1] = tmp_path
    cli.refuses(
        EXIT_DATA, *words, "--batch-size", 2, says="none of 2 images can be read; see resnext-run data scan"
    )
