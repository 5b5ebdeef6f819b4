"""Evaluation: the same integers for any batch size and number of processes, and no image left out of the count."""

from __future__ import annotations

import itertools
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CLASSES, VAL, CommandLine
from images import bad_images
from numpy.typing import NDArray

from resnext_core.data.index import open_index
from resnext_core.data.loader import Loader
from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import PredictRequest
from resnext_core.model.preprocess import normalize
from resnext_core.model.weights import Weights
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.reference.network import evaluate as forward
from resnext_core.reference.predictor import create_predictor
from resnext_core.serving.evaluate import Evaluation, evaluate

INTEGERS = ("expected", "scored", "failed", "correct1", "correct5", "confusion", "dataset_digest")


class Threads:
    """Collectives among threads of this process."""

    def __init__(self, world: int) -> None:
        self.barrier, self.parts = threading.Barrier(world, timeout=60), [None] * world

    def of(self, rank: int) -> Any:
        outer = self

        class Rank(SingleProcess):
            def all_reduce_sum(self, values: NDArray[Any]) -> NDArray[Any]:
                outer.parts[rank] = values  # type: ignore[call-overload]
                outer.barrier.wait()
                total = np.sum(outer.parts, axis=0)
                outer.barrier.wait()
                return total

        return Rank()


def run(weights: Weights, data: Path, batch: int, world: int) -> list[Evaluation]:
    """Evaluate on `world` threads; returns what each rank was told."""
    index = open_index(data, weights.classes)
    threads, results = Threads(world), dict[int, Evaluation]()

    def one(rank: int) -> None:
        with Loader(index, weights.preprocess, None, workers=0) as loader:
            results[rank] = evaluate(
                create_predictor(PredictRequest(weights=weights, rank=RankInfo())), loader, index,
                batch_size=batch, rank=RankInfo(rank=rank, world=world), collectives=threads.of(rank),
            )  # fmt: skip

    workers = [threading.Thread(target=one, args=(r,)) for r in range(world)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [results[r] for r in range(world)]


def integers(result: Evaluation) -> dict[str, Any]:
    return {k: v for k, v in result.to_dict().items() if k in INTEGERS}


@pytest.fixture(scope="module")
def by_hand(tiny_weights: Weights, photos: Path) -> NDArray[Any]:
    """Logits of every image of val, one at a time."""
    index = open_index(photos / "val", tiny_weights.classes)
    from resnext_core.data.render import load_eval

    pixels = [load_eval(index.path(i), tiny_weights.preprocess) for i in range(len(index))]
    tensors = {n: a.copy() for n, a in tiny_weights.tensors.items()}
    rows = [
        forward(tiny_weights.spec, tensors, normalize(p[None], tiny_weights.preprocess).transpose(1, 0, 2, 3))
        for p in pixels
    ]
    return np.concatenate(rows)


def test_the_numbers_are_those_counted_by_hand(
    tiny_weights: Weights, photos: Path, by_hand: NDArray[Any]
) -> None:
    (result,) = run(tiny_weights, photos / "val", batch=7, world=1)
    labels = np.repeat(np.arange(len(VAL)), VAL)
    rank = (by_hand > by_hand[np.arange(23), labels][:, None]).sum(axis=1)
    assert (result.correct1, result.correct5) == (int((rank == 0).sum()), int((rank < 5).sum()))
    assert 0 < result.correct1 < result.correct5 < 23, "else the test could not tell counting errors"
    expected = np.zeros((6, 6), np.int64)
    np.add.at(expected, (labels, by_hand.argmax(axis=1)), 1)
    assert np.array_equal(result.confusion, expected)
    assert result.classes == CLASSES
    assert (result.top1, result.top5) == (result.correct1 / 23, result.correct5 / 23)
    low, high = result.top1_interval
    assert 0 < low < result.top1 < high < 1


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_integers_do_not_depend_on_batch_or_world(tiny_weights: Weights, photos: Path, world: int) -> None:
    (expected,) = run(tiny_weights, photos / "val", batch=64, world=1)
    for batch in (1, 7, 64):
        for result in run(tiny_weights, photos / "val", batch, world):
            assert integers(result) == integers(expected), (batch, world)


def test_integers_do_not_depend_on_processes(
    cli: CommandLine, spawn: CommandLine, weights_file: Path, photos: Path
) -> None:
    """Through core's launcher, sockets and all."""
    words = ["--backend", "reference", "eval", "--weights", weights_file, "--data", photos, "--json"]
    words += ["--set", "data.workers=0"]
    expected = cli.ok(*words, "--set", "eval.batch_size=64").json()
    for devices, batch in ((2, 7), (3, 1), (3, 64)):
        result = spawn.ok(*words, "--devices", devices, "--set", f"eval.batch_size={batch}").json()
        for key in (*INTEGERS, "digest", "top1", "top5", "top1_interval", "classes", "failures"):
            assert result[key] == expected[key], (key, devices, batch)


@pytest.mark.parametrize(("batch", "world"), list(itertools.product([1, 64], [1, 3])))
def test_unreadable_images_are_counted_once_and_all_named(
    tiny_weights: Weights, photos: Path, tmp_path: Path, batch: int, world: int
) -> None:
    data = shutil.copytree(photos / "val", tmp_path / "val")
    bad = bad_images(tmp_path / "bad")
    names = ("truncated.jpg", "empty.jpg", "text.jpg", "zeros.png")
    for name in names:
        shutil.copy(bad[name], data / "cat" / name)
    (whole,) = run(tiny_weights, photos / "val", 64, 1)
    for rank, result in enumerate(run(tiny_weights, data, batch, world)):
        assert (result.expected, result.scored, result.failed) == (27, 23, 4)
        assert np.array_equal(result.confusion, whole.confusion)
        assert result.top1 == whole.correct1 / 27
        assert sorted(result.failures) == sorted(str(data / "cat" / name) for name in names), rank
        if world == 1:
            assert result.failures[str(data / "cat" / "empty.jpg")] == "the file is empty"
    assert "23 of 27 images, 4 could not be read" in result.line()


def test_counts_that_do_not_add_up_are_an_error(tiny_weights: Weights, photos: Path) -> None:
    class Twice(SingleProcess):
        def all_reduce_sum(self, values: NDArray[Any]) -> NDArray[Any]:
            return 2 * values

    index = open_index(photos / "val", CLASSES)
    predictor = create_predictor(PredictRequest(weights=tiny_weights, rank=RankInfo()))
    with (
        Loader(index, tiny_weights.preprocess, None, workers=0) as loader,
        pytest.raises(DataError, match="scored 46 and failed 0 of 23 images; the counts must add up"),
    ):
        evaluate(predictor, loader, index, batch_size=8, rank=RankInfo(), collectives=Twice())


def test_images_without_labels_are_refused(tiny_weights: Weights, photos: Path) -> None:
    index = open_index(photos / "val" / "ant")
    predictor = create_predictor(PredictRequest(weights=tiny_weights, rank=RankInfo()))
    with (
        Loader(index, tiny_weights.preprocess, None, workers=0) as loader,
        pytest.raises(UsageError, match="has no labels to evaluate against"),
    ):
        evaluate(predictor, loader, index, batch_size=8, rank=RankInfo(), collectives=SingleProcess())
