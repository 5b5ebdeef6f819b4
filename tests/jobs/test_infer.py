"""Predictions as a job: typed results, given away as they are made, and memory that does not grow with the images."""

from __future__ import annotations

import dataclasses
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CLASSES, VAL

from resnext_core.errors import DataError, UsageError
from resnext_core.jobs import infer as module
from resnext_core.jobs.infer import InferJob, Prediction, infer
from resnext_core.jobs.settings import Settings
from resnext_core.runs.records import Note, Progress, Record

ONE_BY_ONE = Settings(overrides=("data.workers=0", "eval.batch_size=1"))


class Tracked(np.ndarray):
    """An array that knows how many like it, with all that was cut from them, are in memory."""

    made: list[weakref.ref[Tracked]]

    def __array_finalize__(self, source: Any) -> None:
        Tracked.made.append(weakref.ref(self))

    @classmethod
    def alive(cls) -> int:
        cls.made = [ref for ref in cls.made if ref() is not None]
        return len(cls.made)


class Counting:
    """A predictor whose logits are tracked; `most` were in memory when it was called."""

    def __init__(self, predictor: Any) -> None:
        self._predictor, self.most, self.calls = predictor, 0, 0

    def logits(self, images: np.ndarray) -> np.ndarray:
        self.most, self.calls = max(self.most, Tracked.alive()), self.calls + 1
        return self._predictor.logits(images).view(Tracked)

    def close(self) -> None:
        self._predictor.close()


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch, core_only: None) -> list[Counting]:
    """The predictors that are opened by jobs."""
    opened: list[Counting] = []
    serve = module.serve

    def opening(*args: Any, **options: Any) -> Any:
        model = serve(*args, **options)
        opened.append(Counting(model.predictor))
        return dataclasses.replace(model, predictor=opened[-1])

    Tracked.made = []
    monkeypatch.setattr(module, "serve", opening)
    return opened


@pytest.mark.parametrize("with_logits", [False, True])
def test_no_logits_stay_in_memory(
    counting: list[Counting], weights_file: Path, photos: Path, tmp_path: Path, with_logits: bool
) -> None:
    path = tmp_path / "logits.npy" if with_logits else None
    job = InferJob(weights=weights_file, images=[photos / "val"], logits=path, settings=ONE_BY_ONE)
    given = 0

    def take(prediction: Prediction) -> None:
        nonlocal given
        given += 1
        assert given == counting[0].calls, "each prediction is given away before the next batch is computed"

    result = infer(job, take)
    assert result.to_dict() == {"images": sum(VAL), "failed": 0}
    assert given == counting[0].calls == sum(VAL) == 23
    assert counting[0].most <= 8, "the arrays of one batch, and not of all before it"
    assert path is None or np.load(path).shape == (23, len(CLASSES))


def test_predictions_are_typed_and_say_what_cannot_be_read(
    core_only: None, weights_file: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    good = photos / "val" / "ant" / "00.jpg"
    given: list[Prediction] = []
    told: list[Record] = []
    images = iter([good, tmp_path / "bad.jpg"])
    job = InferJob(weights=weights_file, images=images, top=2, logits=tmp_path / "l.npy", settings=ONE_BY_ONE)
    result = infer(job, given.append, told.append)
    assert (result.images, result.failed) == (2, 1)
    first, second = given
    assert (first.path, first.error, len(first.top)) == (str(good), None, 2)
    assert first.top[0].probability >= first.top[1].probability
    assert first.top[0].name == CLASSES[first.top[0].id]
    assert second.to_dict() == {"path": str(tmp_path / "bad.jpg"), "error": second.error}
    logits = np.load(tmp_path / "l.npy")
    assert np.isfinite(logits[0]).all()
    assert np.isnan(logits[1]).all()
    assert [(r.done, r.total) for r in told if isinstance(r, Progress)] == [(1, 2), (2, 2)]
    assert not [r for r in told if isinstance(r, Note)]


def test_a_network_that_gives_nan_predicts_nothing(
    core_only: None, weights_file: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = module.serve

    class Second:
        """A predictor whose second image overflows."""

        def __init__(self, predictor: Any) -> None:
            self._predictor, self.close = predictor, predictor.close

        def logits(self, images: np.ndarray) -> np.ndarray:
            logits = self._predictor.logits(images).copy()
            logits[1, 0] = np.nan
            return logits

    def opening(*args: Any, **options: Any) -> Any:
        model = serve(*args, **options)
        return dataclasses.replace(model, predictor=Second(model.predictor))

    monkeypatch.setattr(module, "serve", opening)
    images = sorted((photos / "val").rglob("*.jpg"))[:3]
    given: list[Prediction] = []
    result = infer(
        InferJob(weights=weights_file, images=images, settings=Settings(overrides=("data.workers=0",))),
        given.append,
    )
    assert (result.images, result.failed) == (3, 1)
    assert [found.error is None for found in given] == [True, False, True]
    assert given[1].to_dict() == {
        "path": str(images[1]),
        "error": "the network's output is not a number (NaN)",
    }
    assert not given[1].top


def test_what_cannot_be_asked(core_only: None, weights_file: Path, tmp_path: Path) -> None:
    for job, error, says in (
        (InferJob(weights=weights_file), UsageError, "give images"),
        (InferJob(weights=weights_file, images=[]), DataError, "no images found"),
        (InferJob(weights=weights_file, images=[tmp_path], top=0), UsageError, "--top"),
        (InferJob(weights=weights_file, images=[Path("https://a.org/b.jpg")]), UsageError, "is a URL"),
        (
            InferJob(weights=weights_file, images=[tmp_path], csv=Path("-")),
            UsageError,
            "--csv takes the name of a file",
        ),
        (
            InferJob(
                weights=weights_file, images=[tmp_path], csv=tmp_path / "a", save=tmp_path / "b" / ".." / "a"
            ),
            UsageError,
            "--csv and --save are both",
        ),
        (
            InferJob(weights=weights_file, images=[tmp_path], csv=tmp_path / "a", logits=tmp_path / "a"),
            UsageError,
            "--logits and --csv are both",
        ),
    ):
        with pytest.raises(error, match=says):
            infer(job)
