"""A batch size of ``auto``: what is tried, what is taken, what is said, and what a run with it keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine
from numpy.typing import NDArray

from resnext_core import plugins
from resnext_core.config import Layer, load_config, read_layer
from resnext_core.errors import EXIT_USAGE, BackendUnavailable, UsageError
from resnext_core.interfaces import TrainRequest
from resnext_core.jobs import fitting
from resnext_core.jobs.fitting import Found, with_fitting_batch
from resnext_core.jobs.plan import Plan, plan_job, require
from resnext_core.jobs.preflight import training_memory
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.runs.folder import RunFolder
from resnext_core.training.batch_sizes import micro_batches


def planned(
    photos: Path, recipe: Path, tmp_path: Path, fits: Callable[[TrainRequest], bool | None] | None, *,
    world: int = 1, accumulate: int = 1,
) -> Plan:  # fmt: skip
    values = {
        "data": {"dir": str(photos)}, "output": {"dir": str(tmp_path)}, "train": {"accumulate": accumulate},
    }  # fmt: skip
    config, sources = load_config([read_layer(recipe), Layer(source="", values=values)])
    backend = replace(plugins.get_backend("reference"), batch_fits=fits)
    return plan_job(config, plugins.load_plugins(), backend, world=world, finds_batch=True, sources=sources)


def found(plan: Plan) -> Found:
    return fitting._find(plan, RankInfo(), SingleProcess())


def test_sizes_are_multiples_of_eight() -> None:
    assert micro_batches(300) == [8, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    assert micro_batches(11) == [8]
    assert micro_batches(24) == [8, 16, 24]
    assert [micro_batches(most) for most in (7, 5, 4, 3, 2, 1, 0)] == [[4], [4], [4], [2], [2], [2], [2]]


@pytest.mark.parametrize(
    ("limit", "images", "too_many", "tries"),
    [
        (8192, 256, None, [8, 16, 32, 64, 128, 256]), (200, 192, 256, [8, 16, 32, 64, 128, 256, 192]),
        (100, 96, 128, [8, 16, 32, 64, 128, 96]), (95, 64, 96, [8, 16, 32, 64, 128, 96]), (8, 8, 16, [8, 16]),
        (5, 4, 8, [8, 4]), (2, 2, 8, [8, 4, 2]),
    ],
)  # fmt: skip
def test_the_largest_that_fits_is_found_in_few_tries(
    limit: int, images: int, too_many: int | None, tries: list[int],
    photos: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of two micro-batches each; the images tried have the size of training, whatever evaluation's is."""
    seen: list[int] = []

    def fits(request: TrainRequest) -> bool:
        assert request.batch_size == request.accumulate * (request.batch_size // 2) == request.batch_size
        assert request.weights.spec.image_size == 8
        seen.append(request.batch_size // 2)
        return seen[-1] <= limit

    monkeypatch.setattr(fitting, "most_images", lambda config, world, images: 300)
    plan = planned(photos, recipe, tmp_path, fits, accumulate=2)
    assert found(plan) == Found(images=images, too_many=too_many, why="tried on the device")
    assert seen[1:] == tries[1:]
    assert set(seen[:1]) == set(tries[:1])


def test_where_nothing_fits(photos: Path, recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"not even 2 images at a time fit the memory \(tried on the device\)"
    ):
        found(planned(photos, recipe, tmp_path, lambda request: False))


@pytest.mark.parametrize("hook", [None, lambda request: None], ids=["no way to try", "no device to try"])
@pytest.mark.parametrize("world", [1, 2])
def test_an_estimate_fills_a_share_of_the_free_memory(
    hook: Any, world: int, photos: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(photos, recipe, tmp_path, hook, world=world)
    monkeypatch.setattr(fitting, "most_images", lambda config, world, images: 300)
    need = [training_memory(plan.spec, plan.settled, images).total for images in (96, 128)]
    assert need[0] < need[1]
    monkeypatch.setattr(fitting, "free_memory", lambda: int(world * (need[0] + need[1]) / 2 / fitting._SHARE))
    result = found(plan)
    assert (result.images, result.too_many) == (96, 128)
    assert result.why.startswith("estimated, with ")
    assert result.why.endswith(" of memory free on this machine" + (" for 2 ranks" if world == 2 else ""))
    monkeypatch.setattr(fitting, "free_memory", lambda: None)
    with pytest.raises(UsageError, match="give the batch size as a number"):
        found(plan)


class Ranks:
    """Adds what the other rank says."""

    def __init__(self, other: int) -> None:
        self._other = np.array([0, other], np.int64)

    def all_reduce_sum(self, values: NDArray[Any]) -> NDArray[Any]:
        return values + self._other


@pytest.mark.parametrize(("own", "other"), [(4, 2), (2, 4)])
def test_ranks_agree_on_the_smallest(
    own: int, other: int, photos: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "most_images", lambda config, world, images: 5)
    plan = planned(photos, recipe, tmp_path, lambda request: request.batch_size <= own, world=2)
    rank = RankInfo(rank=0, world=2)
    settled, line = with_fitting_batch(plan, rank, Ranks(other))  # type: ignore[arg-type]
    assert settled.config.train.batch_size == 4
    assert not settled.finds_batch
    why = "more do not fit rank 1" if own > other else "4 do not fit"
    assert line == f"batch size 4: 2 images at a time on each rank; {why} (tried on the device)"


def test_a_rank_that_fails_is_seen_by_all(photos: Path, recipe: Path, tmp_path: Path) -> None:
    plan = planned(photos, recipe, tmp_path, lambda request: True, world=2)
    rank = RankInfo(rank=0, world=2)
    with pytest.raises(BackendUnavailable, match="rank 1 found no batch size that fits"):
        with_fitting_batch(plan, rank, Ranks(0))  # type: ignore[arg-type]
    none = planned(photos, recipe, tmp_path, lambda request: False, world=2)
    with pytest.raises(UsageError, match="not even 2 images"):
        with_fitting_batch(none, rank, Ranks(4))  # type: ignore[arg-type]


def test_free_memory_is_that_of_the_container(tmp_path: Path) -> None:
    assert (fitting.free_memory() or 0) > 1 << 20
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert fitting._left(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert fitting._left(tmp_path) is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   3 kB\n")
    assert fitting._available(tmp_path / "meminfo") == 3072
    assert fitting._available(tmp_path / "none") is None


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_keeps_the_size_that_was_found(
    devices: int, photos: Path, recipe: Path, tmp_path: Path, cli: CommandLine
) -> None:
    """As if it had been given, with its learning rate: 48 images in at least ten steps."""
    words = ["--backend", "reference", "train", "--data", photos, "--recipe", recipe, "--output", tmp_path]
    words += ["--epochs", 1, "--batch-size", "auto", "--devices", devices, "--name", "run"]
    cli.ok(*words)
    run = RunFolder.open(tmp_path / "run")
    assert run.setting("train", "batch_size") == 4
    log = (run.path / "log.txt").read_text()
    images = "4 images at a time" if devices == 1 else "2 images at a time on each rank"
    assert f"batch size 4: {images}; more were not tried: an epoch keeps 10 steps" in log
    assert "batch 4, 1 epoch;" in log
    says = f"{run.path} has its batch size already"
    more = ["--backend", "reference", "train", "--resume", run.path, "--epochs", 2]
    cli.refuses(EXIT_USAGE, *more, "--batch-size", "auto", says=says)
    cli.ok(*more)


def test_only_a_training_finds_its_size(photos: Path, recipe: Path, tmp_path: Path, cli: CommandLine) -> None:
    config = cli.ok("train", "--recipe", recipe, "--batch-size", "auto", "--print-config").out
    (line,) = [line for line in config.splitlines() if line.startswith("  batch_size:") and "auto" in line]
    assert line.endswith("# batch size auto: found when the training starts")
    for words in (
        ["bench", "train"],
        ["find-lr"],
        ["eval", "--weights", "none.safetensors", "--data", str(photos)],
    ):
        cli.refuses(
            EXIT_USAGE, *words, "--batch-size", "auto", says="a batch size of auto is for train and run"
        )
    cli.refuses(EXIT_USAGE, "train", "--batch-size", "many", says="must be an integer or auto, not 'many'")


def test_the_plan_has_the_smallest_size_until_then(photos: Path, recipe: Path, tmp_path: Path) -> None:
    plan = planned(photos, recipe, tmp_path, None, world=2, accumulate=3)
    assert plan.config.train.batch_size == 2 * 2 * 3
    require(plan)
