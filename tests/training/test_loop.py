"""The training loop against a trainer that only writes down what it is given: order, schedule, stops, records."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from run_records import stored

from resnext_core.config import Config, load_config, parse_set
from resnext_core.data.batch_pool import BatchPool
from resnext_core.data.index import open_index
from resnext_core.data.loader import Loader
from resnext_core.data.mix import draw_mixes
from resnext_core.data.sampler import Task, epoch_permutation
from resnext_core.errors import DataError, Interrupted
from resnext_core.interfaces import Batch, DeviceUsage, Mix, Predictor, TrainState
from resnext_core.jobs.training import train_request
from resnext_core.metrics import METRICS, Metric
from resnext_core.model.weights import Weights
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.ranks.signals import StopRequest
from resnext_core.report import ReportData, render_report
from resnext_core.runs.checkpoint import Checkpoint, load_checkpoint, load_latest
from resnext_core.runs.checkpoint_folder import checkpoint_names
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.log import describe
from resnext_core.runs.records import Eval
from resnext_core.testing.cases import oracle
from resnext_core.training.imbalance import class_loss
from resnext_core.training.loop import fit
from resnext_core.training.schedule import lrs, scaled_lr
from resnext_core.training.trainer import create_trainer
from resnext_core.training.training import Training


class Recorder:
    """A trainer whose loss at a step is its number; `before` runs before each step."""

    def __init__(self, weights: Weights, before: Callable[[int], None] = lambda step: None) -> None:
        self.weights, self.before = weights, before
        self.step = 0
        self.seen: list[NDArray[Any]] = []
        self.mixes: list[tuple[Mix, ...]] = []
        self.lrs: list[float] = []
        self.branches: list[NDArray[np.float32] | None] = []
        self.ema_decays: list[float] = []
        self.calls: list[int] = []

    def run_steps(
        self, batches: Sequence[Batch], lrs: NDArray[Any], ema_decays: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        losses = []
        self.calls.append(len(batches))
        self.branches += [batch.branches for batch in batches]
        self.ema_decays += [] if ema_decays is None else ema_decays.tolist()
        for batch, lr in zip(batches, lrs, strict=True):
            self.before(self.step + 1)
            self.step += 1
            self.seen.append(batch.index)
            self.mixes.append(batch.mix)
            self.lrs.append(float(lr))
            losses.append(self.step)
        return np.array(losses, np.float32)

    def predictor(self, *, ema: bool = False) -> Predictor:
        return Constant(len(self.weights.classes), self.step)

    def state(self) -> TrainState:
        tensors = {f"weights/{n}": a + np.float32(self.step) for n, a in self.weights.tensors.items()}
        return TrainState(tensors=tensors, scalars={"step": self.step})

    def load_state(self, state: TrainState) -> None:
        self.step = int(state.scalars["step"])

    def counters(self) -> Mapping[str, float | int]:
        return {"step": self.step, "overflow_steps": 0, "loss_scale": 1.0, "good_steps": 0}

    def usage(self) -> DeviceUsage:
        return DeviceUsage()

    def close(self) -> None:
        pass


class Constant(Predictor):
    """Predicts one class, which depends on the step, for every image."""

    def __init__(self, classes: int, step: int) -> None:
        self.row = np.zeros(classes, np.float32)
        self.row[step // 6 % classes] = 1

    def logits(self, images: NDArray[Any]) -> NDArray[Any]:
        return np.tile(self.row, (len(images), 1))

    def logits_from_tensor(self, tensor: NDArray[Any]) -> NDArray[Any]:
        raise NotImplementedError

    def close(self) -> None:
        pass


@pytest.fixture
def job(photos: Path, tiny_weights: Weights, tmp_path: Path) -> Callable[..., Training]:
    """Make a job on `photos`: 48 images, 6 steps of 8 an epoch."""

    def make(*sets: str, steps_per_call: int = 1, val: bool = True) -> Training:
        config = configured(*sets)
        train = open_index(photos / "train")
        index = open_index(photos / "val", train.classes) if val else None
        run = RunFolder(tmp_path)

        def loader(of: Any) -> Loader:
            return Loader(of, tiny_weights.preprocess, None, workers=0)

        return Training(
            config=config, weights=tiny_weights, train=train, train_loader=loader(train), val=index,
            val_loader=loader(index) if index else None, rank=RankInfo(), collectives=SingleProcess(), run=run,
            steps_per_call=steps_per_call, listen=lambda r: run.append(r) if r.stored else None,
        )  # fmt: skip

    return make


def configured(*sets: str) -> Config:
    defaults = ["train.epochs=3", "train.batch_size=8", "optimizer.lr_batch=null", "eval.batch_size=5"]
    return load_config(parse_set([*defaults, *sets]))[0]


def records(job: Training, kind: str, *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(r[k] for k in keys) for r in stored(job.run) if r["kind"] == kind]


@pytest.mark.parametrize("steps_per_call", [1, 2, 4, 100])
def test_images_and_learning_rates_come_in_the_stated_order(
    job: Callable[..., Training], tiny_weights: Weights, steps_per_call: int
) -> None:
    made = job("train.seed=7", "schedule.kind=cosine-step", steps_per_call=steps_per_call)
    trainer = Recorder(tiny_weights)
    progress = fit(trainer, made)
    assert (progress.step, progress.epoch_closed) == (18, True)
    for epoch in range(3):
        seen = np.concatenate(trainer.seen[6 * epoch : 6 * epoch + 6])
        assert np.array_equal(seen, epoch_permutation(48, 7, epoch))
    config = made.config
    expected = lrs(
        0, 18, config=config.schedule, base_lr=scaled_lr(config.optimizer, 8), steps_per_epoch=6, epochs=3
    )
    np.testing.assert_allclose(trainer.lrs, expected, rtol=1e-7)
    assert max(trainer.calls) <= steps_per_call
    assert sum(trainer.calls) == 18


def test_readers_are_never_idle_at_the_end_of_an_epoch(
    job: Callable[..., Training], tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next epoch and the evaluation are being read before the last step of an epoch is computed."""
    made = job("train.epochs=3", "train.seed=7", "train.eval_every=2")
    assert made.val is not None
    asked: list[tuple[str, int]] = []
    parts: dict[object, str] = {}
    original = BatchPool.submit

    def submit(pool: Any, task: Task, rows: Any) -> int:
        asked.append((parts.setdefault(pool, "train" if not parts else "val"), task.epoch))
        return original(pool, task, rows)

    monkeypatch.setattr(BatchPool, "submit", submit)
    before: list[dict[tuple[str, int], int]] = []
    trainer = Recorder(tiny_weights, lambda step: before.append(dict(Counter(asked))))
    with (
        Loader(made.train, tiny_weights.preprocess, None, workers=1, prefetch=3) as train,
        Loader(made.val, tiny_weights.preprocess, None, workers=1, prefetch=3) as val,
    ):
        fit(trainer, dataclasses.replace(made, train_loader=train, val_loader=val))
    for epoch in range(3):
        seen = np.concatenate(trainer.seen[6 * epoch : 6 * epoch + 6])
        assert np.array_equal(seen, epoch_permutation(48, 7, epoch))
    assert before[5][("train", 1)] >= 3, (
        "step 6 is the last of the first epoch, after which nothing is evaluated"
    )
    assert not any(part == "val" for part, _ in before[5])
    assert before[11][("train", 2)] >= 3
    assert before[11][("val", 0)] >= 3
    assert Counter(asked) == {("train", 0): 6, ("train", 1): 6, ("train", 2): 6, ("val", 0): 2 * 5}


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_how_images_are_mixed_depends_on_seed_and_step_alone(
    job: Callable[..., Training], tiny_weights: Weights, steps_per_call: int
) -> None:
    """Whatever the chunks, the number of ranks, and where the run was stopped; not after `off_epoch`."""
    sets = ["mix.mixup=0.2", "mix.cutmix=1", "mix.off_epoch=2", "train.seed=7", "train.accumulate=2"]
    made = job(*sets, steps_per_call=steps_per_call)
    size = (tiny_weights.spec.image_size,) * 2
    expected = [
        draw_mixes(made.config.mix, size, seed=7, step=step, epoch=1, micro_batches=range(2)) for step in range(12)
    ]  # fmt: skip
    assert len({mix for step in expected for mix in step}) == 24

    def stop(step: int) -> None:
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = Recorder(tiny_weights, stop)
    with pytest.raises(Interrupted):
        fit(trainer, made)
    taken = len(trainer.mixes)
    assert 9 <= taken < 13
    again = Recorder(tiny_weights)
    fit(again, made, load_latest(made.run.checkpoints, print))
    assert trainer.mixes + again.mixes == [*expected, *[()] * 6]


def test_each_rank_mixes_its_own_micro_batches(job: Callable[..., Training], tiny_weights: Weights) -> None:
    made = job("mix.mixup=1")
    batches = list(made.train_loader.batches([Task.of(0, np.arange(4))]))

    def drawn(rank: int, world: int, accumulate: int) -> tuple[Mix, ...]:
        train = dataclasses.replace(made.config.train, accumulate=accumulate)
        config = dataclasses.replace(made.config, train=train)
        training = dataclasses.replace(made, config=config, rank=RankInfo(rank=rank, world=world))
        (epoch, *_) = training.epochs_after(0)
        (batch,) = epoch.drawn(range(5, 6), batches)
        return batch.mix

    alone = drawn(0, 1, 6)
    assert len(set(alone)) == 6
    assert drawn(0, 3, 2) + drawn(1, 3, 2) + drawn(2, 3, 2) == alone
    assert drawn(0, 2, 3) + drawn(1, 2, 3) == alone


class Averaging(Recorder):
    """Its state has an EMA."""

    def state(self) -> TrainState:
        state = super().state()
        ema = {n.replace("weights/", "ema/"): a for n, a in state.tensors.items()}
        return dataclasses.replace(state, tensors={**state.tensors, **ema})


def test_branches_and_decays_go_on_as_if_the_run_never_stopped(
    job: Callable[..., Training], tiny_weights: Weights
) -> None:
    settings = ("model.stochastic_depth=0.4", "train.ema_decay=0.99", "train.ema_every=4")
    settings += ("train.ema_warmup=copy", "schedule.warmup_epochs=1")

    def stop(step: int) -> None:
        if step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    made = job(*settings)
    first, second = Averaging(tiny_weights, stop), Averaging(tiny_weights)
    with pytest.raises(Interrupted):
        fit(first, made)
    fit(second, made, load_latest(made.run.checkpoints, print))
    whole = Averaging(tiny_weights)
    fit(whole, job(*settings, val=False))
    assert first.ema_decays + second.ema_decays == whole.ema_decays
    assert set(whole.ema_decays) == {0.0, 0.99, 1.0}
    assert [np.asarray(b).tolist() for b in first.branches + second.branches] == [
        np.asarray(b).tolist() for b in whole.branches
    ]
    assert None not in [b if b is None else b.shape for b in whole.branches]


@pytest.mark.parametrize(
    "optimizer", [["optimizer.kind=lamb"], ["optimizer.kind=adamw"], ["optimizer.nesterov=true"]], ids=str
)
def test_a_training_with_every_draw_resumes_to_the_bit(
    job: Callable[..., Training], tiny_weights: Weights, optimizer: list[str], tmp_path: Path
) -> None:
    """On an engine that computes: stopped within the second epoch and resumed, every tensor is that of a whole run."""
    settings = [
        *optimizer, "optimizer.lr=0.01", "loss.kind=bce", "mix.mixup=0.2", "mix.cutmix=1", "model.stochastic_depth=0.3",
        "train.ema_decay=0.9", "train.ema_warmup=power", "train.ema_every=2", "train.accumulate=2",
        *GROWING, "loss.class_weights=effective",
    ]  # fmt: skip

    def train(made: Training, stop_at: int | None, resume: Checkpoint | None = None) -> Mapping[str, Any]:
        classes = class_loss(made.config, made.train)
        assert classes.class_weights is not None
        request = train_request(made.config, made.weights, oracle(), made.rank, made.collectives, classes)
        trainer = create_trainer(oracle(), request)
        take, taken = trainer.run_steps, 0

        def counted(*arguments: Any) -> NDArray[Any]:
            nonlocal taken
            taken += 1
            if taken == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return take(*arguments)

        trainer.run_steps = counted  # type: ignore[method-assign]
        try:
            fit(trainer, made, resume)
            return trainer.state().tensors
        finally:
            trainer.close()

    made = augmented(unlike(job(*settings, val=False)))
    with pytest.raises(Interrupted):
        train(made, 8)
    stopped = load_latest(made.run.checkpoints, pytest.fail)
    assert stopped.progress.step == 8
    resumed = train(made, None, stopped)
    made.run.path = tmp_path / "whole"
    made.run.path.mkdir()
    whole = train(made, None)
    assert set(resumed) == set(whole)
    differ = [name for name in whole if resumed[name].tobytes() != whole[name].tobytes()]
    assert not differ, f"{len(differ)} of {len(whole)} tensors differ, e.g. {differ[:3]}"


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        ("optimizer.kind=lamb", "optimizer.kind=adamw", r"optimizer\.kind was lamb and is adamw"),
        ("optimizer.kind=sgd", "optimizer.kind=lamb", r"optimizer\.kind was sgd and is lamb"),
        ("train.ema_decay=0.9", "train.ema_decay=null", r"train\.ema_decay is set was True and is False"),
        ("train.best=top1", "train.best=macro_f1", r"train\.best was top1 and is macro_f1"),
    ],
)
def test_a_resumed_run_keeps_its_optimizer_its_average_and_its_best_metric(
    job: Callable[..., Training], tiny_weights: Weights, first: str, second: str, what: str
) -> None:
    fit(Averaging(tiny_weights), job("train.epochs=1", first))
    made = job("train.epochs=2", second)
    with pytest.raises(DataError, match=what):
        fit(Averaging(tiny_weights), made, load_latest(made.run.checkpoints, print))
    same = job("train.epochs=2", first, "optimizer.lr=0.01", "loss.smoothing=0", "train.patience=9")
    assert fit(Averaging(tiny_weights), same, load_latest(same.run.checkpoints, print)).step == 12


def test_each_rank_leaves_out_the_branches_of_its_own_rows(
    job: Callable[..., Training], tiny_weights: Weights
) -> None:
    made = job("model.stochastic_depth=0.5")
    batches = list(made.train_loader.batches([Task.of(0, np.arange(4))]))

    def drawn(rank: int, world: int) -> NDArray[np.float32]:
        training = dataclasses.replace(made, rank=RankInfo(rank=rank, world=world))
        (epoch, *_) = training.epochs_after(0)
        (batch,) = epoch.drawn(range(5, 6), batches)
        assert batch.branches is not None
        return batch.branches

    alone = drawn(0, 1)
    assert alone.shape == (made.config.train.batch_size, len(tiny_weights.spec.blocks))
    assert set(np.unique(alone)) > {0.0, 1.0}
    for world in (2, 4):
        assert np.array_equal(np.concatenate([drawn(rank, world) for rank in range(world)]), alone)


@pytest.mark.parametrize("log_every", [1, 4, 100])
def test_records_account_for_every_step_once(
    job: Callable[..., Training], tiny_weights: Weights, log_every: int
) -> None:
    made = job(f"train.log_every={log_every}")
    fit(Recorder(tiny_weights), made)
    rows = records(made, "train", "step", "images", "loss", "epoch")
    done = 0
    for step, images, loss, epoch in rows:
        assert images == 8 * (step - done)
        assert loss == np.mean(range(done + 1, step + 1))
        assert epoch == (step - 1) // 6 + 1
        done = step
    assert done == 18
    assert len(rows) == {1: 18, 4: 6, 100: 3}[log_every]


def test_evaluation_checkpoints_and_best_come_when_asked(
    job: Callable[..., Training], tiny_weights: Weights
) -> None:
    made = job(
        "train.epochs=7",
        "train.eval_start=2",
        "train.eval_every=2",
        "train.checkpoint_every=3",
        "train.keep=9",
    )
    progress = fit(Recorder(tiny_weights), made)
    # classes 2, 4, 0 (epoch 6) have 4 images of 23, class 1 (epoch 7) has 4: the first is best and stays so
    assert records(made, "eval", "epoch", "best") == [(2, True), (4, False), (6, False), (7, False)]
    assert all(t == 4 / 23 for (t,) in records(made, "eval", "top1"))
    # every third epoch, and each that is evaluated
    assert records(made, "checkpoint", "epoch") == [(2,), (3,), (4,), (6,), (7,)]
    assert (progress.best, progress.best_step) == (4 / 23, 12)
    assert (made.run.checkpoints / "best").read_text() == "step-00000012"
    saved = load_checkpoint(made.run.checkpoints / "step-00000012").weights
    assert saved.metrics == {
        "split": "val", "top1": 4 / 23, "top5": pytest.approx(20 / 23), "balanced_accuracy": pytest.approx(1 / 6),
        "macro_f1": pytest.approx(2 * 4 / (4 + 23) / 6),
    }  # fmt: skip
    assert np.array_equal(saved.tensors["fc.bias"], tiny_weights.tensors["fc.bias"] + np.float32(12))


def test_a_metric_is_added_in_one_place(
    job: Callable[..., Training], tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new row of the table is in records, lines, checkpoints and reports, and may say which checkpoint is best."""
    metric = Metric(
        label="bees", title="Share of bees", meaning="", compute=lambda c: c.confusion[:, 1].sum() / 23
    )
    monkeypatch.setitem(METRICS, "bees", metric)  # type: ignore[index]
    made = job("train.epochs=2")
    train = dataclasses.replace(made.config.train, best="bees")
    made = dataclasses.replace(made, config=dataclasses.replace(made.config, train=train))
    progress = fit(Recorder(tiny_weights), made)  # predicts class 1 after epoch 1, class 2 after epoch 2
    assert records(made, "eval", "epoch", "bees", "best") == [(1, 1.0, True), (2, 0.0, False)]
    assert (progress.best, progress.best_step) == (1.0, 6)
    assert load_checkpoint(made.run.checkpoints / "step-00000006").weights.metrics["bees"] == 1.0
    evals = [r for r in made.run.read_records() if isinstance(r, Eval)]
    assert "bees 100.00 %" in str(describe(evals[0]))
    page = render_report(ReportData(title="t", records=evals, evaluation=evals[0].metrics))
    assert "Share of bees" in page
    assert "</i>bees</li>" in page, "it has a curve"


def test_without_val_it_only_saves(job: Callable[..., Training], tiny_weights: Weights) -> None:
    made = job(val=False)
    progress = fit(Recorder(tiny_weights), made)
    assert (progress.best, progress.step) == (None, 18)
    assert records(made, "eval", "step") == []
    assert checkpoint_names(made.run.checkpoints) == [f"step-{s:08d}" for s in (6, 12, 18)]


@pytest.mark.parametrize("steps_per_call", [1, 4])
@pytest.mark.parametrize("at", [1, 3, 6, 7, 12, 17])
@pytest.mark.parametrize("log_every", [1, 5])
def test_a_signal_at_any_step_saves_and_the_rest_follows(
    job: Callable[..., Training], tiny_weights: Weights, at: int, steps_per_call: int, log_every: int
) -> None:
    made = job(f"train.log_every={log_every}", steps_per_call=steps_per_call)
    first = Recorder(tiny_weights, lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == at else None)
    with pytest.raises(Interrupted, match="continue with --resume"):
        fit(first, made)
    checkpoint = load_latest(made.run.checkpoints, pytest.fail)
    stopped = checkpoint.progress.step
    assert at <= stopped <= at + steps_per_call - 1
    assert stopped == first.step

    second = Recorder(tiny_weights)
    made.run.rewind(stopped)
    fit(second, job(f"train.log_every={log_every}", steps_per_call=steps_per_call), checkpoint)
    whole = Recorder(tiny_weights)
    fit(whole, job(val=False))
    assert np.array_equal(np.concatenate(first.seen + second.seen), np.concatenate(whole.seen))
    assert first.lrs + second.lrs == whole.lrs


class Pictures(Recorder):
    """Writes down the pixels of each step."""

    def run_steps(self, batches: Sequence[Batch], lrs: NDArray[Any], *more: Any) -> NDArray[Any]:
        self.pictures = [*getattr(self, "pictures", []), *(batch.images for batch in batches)]
        return super().run_steps(batches, lrs, *more)


def augmented(made: Training, **rank: int) -> Training:
    """The same training with augmented images, perhaps as one rank of several."""
    config = made.config
    loader = Loader(
        made.train, made.weights.preprocess, config.augment, seed=config.train.seed, workers=0
    )  # fmt: skip
    return dataclasses.replace(made, train_loader=loader, rank=RankInfo(**rank))  # type: ignore[arg-type]


@pytest.mark.parametrize("repeats", [2, 3, 8])
def test_views_of_an_image_differ_and_are_the_same_after_a_stop(
    job: Callable[..., Training], tiny_weights: Weights, repeats: int
) -> None:
    sets = (f"augment.repeats={repeats}", "augment.erasing=1", "augment.erasing_mode=pixel")
    first = Pictures(tiny_weights, lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 8 else None)
    made = augmented(job(*sets))
    with pytest.raises(Interrupted):
        fit(first, made)
    checkpoint = load_latest(made.run.checkpoints, pytest.fail)
    with pytest.raises(DataError, match=f"repeats was {repeats} and is 1"):
        fit(Pictures(tiny_weights), augmented(job()), checkpoint)
    made.run.rewind(checkpoint.progress.step)
    second = Pictures(tiny_weights)
    fit(second, augmented(job(*sets)), checkpoint)
    assert 8 <= len(first.pictures) < 12  # in the middle of an epoch

    whole = Pictures(tiny_weights)
    fit(whole, augmented(job(*sets, val=False)))
    seen, pictures = np.concatenate(whole.seen), np.concatenate(whole.pictures)
    assert len(seen) == 3 * 48  # as without repeats
    for epoch in range(3):
        part = slice(48 * epoch, 48 * epoch + 48)
        counts = np.bincount(seen[part], minlength=48)
        assert sorted(counts[counts > 0]) == [repeats] * (48 // repeats)
        assert set(np.flatnonzero(counts)) == set(epoch_permutation(48, 1, epoch)[: 48 // repeats].tolist())
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    assert np.array_equal(np.concatenate(first.pictures + second.pictures), pictures)


@pytest.mark.parametrize("repeats", [1, 3, 4])
def test_ranks_see_the_pictures_of_one(job: Callable[..., Training], repeats: int) -> None:
    ranks_see_the_same(job("train.batch_size=6", f"augment.repeats={repeats}", "augment.erasing=0.5"))


def ranks_see_the_same(made: Training) -> None:
    """Two and three ranks together see the pictures of one, step by step, from the fourth on."""

    def pictures(**rank: int) -> list[NDArray[Any]]:
        one = augmented(made, **rank)
        tasks = [task for epoch in one.epochs_after(3) for task in epoch.tasks()]
        return [batch.images for batch in one.train_loader.batches(tasks)]

    alone = pictures()
    assert len(alone) == 3 * 8 - 3
    for world in (2, 3):
        ranks = [pictures(rank=rank, world=world) for rank in range(world)]
        for parts, expected in zip(zip(*ranks, strict=True), alone, strict=True):
            assert np.array_equal(np.concatenate(parts), expected)


def test_epochs_that_are_dropped_wait_for_no_thread(
    job: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The garbage collector drops them anywhere, also inside the start of a thread: waiting there would deadlock."""
    release = threading.Event()

    def drawn(images: int, seed: int, epoch: int) -> NDArray[np.int64]:
        if epoch > 0:
            release.wait()
        return epoch_permutation(images, seed, epoch)

    monkeypatch.setattr("resnext_core.training.training.epoch_permutation", drawn)
    epochs = job().epochs_after(0)
    next(epochs)
    closer = threading.Thread(target=epochs.close, daemon=True)  # type: ignore[attr-defined]
    closer.start()
    closer.join(60)
    waits = closer.is_alive()
    release.set()
    assert not waits


def unlike(made: Training) -> Training:
    """The same training with classes of 20, 14, 8, 4, 1 and 1 images."""
    labels = np.repeat(np.arange(6), (20, 14, 8, 4, 1, 1)).astype(np.int32)
    train = dataclasses.replace(made.train, labels=labels)
    return dataclasses.replace(made, train=train)


GROWING = (
    "data.balance=0.7", "augment.start_size=4", "augment.size_epochs=[0,2]", "augment.size_step=2",
    "augment.erasing=1", "augment.erasing_mode=pixel",
)  # fmt: skip


@pytest.mark.parametrize("repeats", [1, 3])
def test_balanced_and_growing_images_are_the_same_after_a_stop(
    job: Callable[..., Training], tiny_weights: Weights, repeats: int
) -> None:
    sets = (*GROWING, f"augment.repeats={repeats}")
    first = Pictures(tiny_weights, lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 8 else None)
    made = augmented(unlike(job(*sets)))
    with pytest.raises(Interrupted):
        fit(first, made)
    checkpoint = load_latest(made.run.checkpoints, pytest.fail)
    for other, what in [
        (sets[1:], r"data\.balance was 0\.7 and is 0\.0"),
        ((sets[0], *sets[2:]), r"what augment\.start_size, .* was \[4, \[0\.0, 2\.0\], 2\] and is None"),
    ]:
        with pytest.raises(DataError, match=what):
            fit(Pictures(tiny_weights), augmented(unlike(job(*other))), checkpoint)
    made.run.rewind(checkpoint.progress.step)
    second = Pictures(tiny_weights)
    fit(second, augmented(unlike(job(*sets))), checkpoint)
    assert 8 <= len(first.pictures) < 12  # in the middle of an epoch

    whole = Pictures(tiny_weights)
    fit(whole, augmented(unlike(job(*sets, val=False))))
    assert [p.shape[1] for p in whole.pictures] == [4] * 6 + [6] * 6 + [8] * 6
    for ours, expected in zip(first.pictures + second.pictures, whole.pictures, strict=True):
        assert np.array_equal(ours, expected)
    labels = unlike(made).train.labels[np.concatenate(whole.seen)]
    counts = np.bincount(labels, minlength=6) / repeats
    shares = np.array([20, 14, 8, 4, 1, 1]) ** 0.3
    shown = 3 * 48 / repeats * shares / shares.sum()
    assert (np.abs(counts - shown) <= 3).all()  # one more or less an epoch
    pictures = [picture.tobytes() for batch in whole.pictures for picture in batch]
    assert len(set(pictures)) == len(pictures)  # an image that comes again is augmented in another way


@pytest.mark.parametrize("repeats", [1, 3])
def test_ranks_see_balanced_and_growing_pictures_of_one(job: Callable[..., Training], repeats: int) -> None:
    ranks_see_the_same(unlike(job("train.batch_size=6", f"augment.repeats={repeats}", *GROWING)))


def test_a_checkpoint_from_before_there_was_balance_goes_on(
    job: Callable[..., Training], tiny_weights: Weights
) -> None:
    made = job()
    first = Recorder(tiny_weights, lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 4 else None)
    with pytest.raises(Interrupted):
        fit(first, made)
    checkpoint = load_latest(made.run.checkpoints, pytest.fail)
    older = {key: value for key, value in checkpoint.run.items() if key not in ("balance", "growth")}
    assert len(older) == len(checkpoint.run) - 2
    assert fit(Recorder(tiny_weights), made, dataclasses.replace(checkpoint, run=older)).step == 18


@pytest.mark.parametrize("at", [3, 6, 11])
def test_records_of_a_stopped_and_resumed_run_miss_no_step(
    job: Callable[..., Training], tiny_weights: Weights, at: int, tmp_path: Path
) -> None:
    """With several steps a record, those of the epoch in which it stopped are of other steps."""
    made = job("train.log_every=4")
    trainer = Recorder(tiny_weights, lambda step: os.kill(os.getpid(), signal.SIGINT) if step == at else None)
    with pytest.raises(Interrupted):
        fit(trainer, made)
    assert records(made, "train", "step")[-1] == (at,)
    fit(Recorder(tiny_weights), made, load_latest(made.run.checkpoints, pytest.fail))
    rows = records(made, "train", "step", "images")
    assert sum(images for _, images in rows) == 18 * 8
    assert [s for s, _ in rows] == sorted({s for s, _ in rows})
    assert records(made, "eval", "epoch") == [(1,), (2,), (3,)]
    stopped, whole = records(made, "train", "step", "images", "epoch", "loss"), job("train.log_every=4")
    whole.run.path = tmp_path / "whole"
    whole.run.path.mkdir()
    fit(Recorder(tiny_weights), whole)
    expected = records(whole, "train", "step", "images", "epoch", "loss")
    for epoch in (1, 2, 3):  # the loss of a step is its number
        ours = [sum(loss * images for _, images, e, loss in r if e == epoch) for r in (stopped, expected)]
        assert ours[0] == pytest.approx(ours[1], rel=1e-12)
    later = (at - 1) // 6 + 1  # the epoch of the stop; those after it have the records that they always have
    assert [r for r in stopped if r[2] > later] == [r for r in expected if r[2] > later]


class Diverges(Recorder):
    """The loss is not a number at the steps `at`."""

    at: range = range(9, 10)

    def run_steps(self, batches: Sequence[Batch], lrs: NDArray[Any], *more: Any) -> NDArray[Any]:
        losses = super().run_steps(batches, lrs, *more)
        return np.where(np.isin(losses, self.at), np.nan, losses).astype(np.float32)


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_a_loss_that_is_not_a_number_stops(
    job: Callable[..., Training], tiny_weights: Weights, steps_per_call: int
) -> None:
    made = job(steps_per_call=steps_per_call)
    with pytest.raises(DataError, match=r"loss is not a number at step 9, lr .*; lower optimizer.lr"):
        fit(Diverges(tiny_weights), made)
    assert load_latest(made.run.checkpoints, pytest.fail).progress.step == 6, "what came after is not saved"
    dumped = json.loads((made.run.path / "nonfinite" / "step-00000009.json").read_text())
    assert (dumped["step"], dumped["epoch"], dumped["loss"]) == (9, 2, "nan")
    expected = epoch_permutation(48, 1, 1)[16:24].tolist()
    assert [s["index"] for s in dumped["samples"]] == expected
    assert [s["path"] for s in dumped["samples"]] == [made.train.paths[i] for i in expected]
    assert [s["label"] for s in dumped["samples"]] == made.train.labels[expected].tolist()


@pytest.mark.parametrize("policy", ["train.nonfinite=skip", "precision.loss_scale=dynamic"])
def test_steps_that_are_not_numbers_are_counted_and_left_out_of_the_mean(
    job: Callable[..., Training], tiny_weights: Weights, policy: str
) -> None:
    made = job(policy, "train.log_every=3")
    assert fit(Diverges(tiny_weights), made).step == 18
    assert records(made, "nonfinite", "step", "epoch", "loss", "path") == [
        (9, 2, "nan", "step-00000009.json")
    ]
    rows = records(made, "train", "step", "loss", "nonfinite_steps")
    assert rows[2] == (9, 7.5, 1)
    assert [n for _, _, n in rows] == [0, 0, 1, 0, 0, 0]


def test_a_run_of_nothing_but_skipped_steps_ends(
    job: Callable[..., Training], tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resnext_core.training.nonfinite.MAX_CONSECUTIVE", 5)
    monkeypatch.setattr("resnext_core.training.nonfinite.MAX_DUMPS", 3)
    made = job("train.nonfinite=skip", "train.log_every=1")
    trainer = Diverges(tiny_weights)
    trainer.at = range(4, 99)  # over the end of an epoch
    with pytest.raises(DataError, match="the last 5 losses up to step 8 were not numbers"):
        fit(trainer, made)
    assert records(made, "train", "loss")[3] == (None,)
    paths = [p for (p,) in records(made, "nonfinite", "path")]
    assert paths == ["step-00000004.json", "step-00000005.json", "step-00000006.json", None]


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_checkpoints_come_within_an_epoch_when_asked(
    job: Callable[..., Training], tiny_weights: Weights, steps_per_call: int
) -> None:
    made = job(
        "train.checkpoint_steps=4", "train.log_every=100", "train.keep=99", steps_per_call=steps_per_call
    )
    trainer = Recorder(tiny_weights)
    fit(trainer, made)
    assert records(made, "checkpoint", "step", "epoch") == [
        (4, 0), (6, 1), (8, 1), (12, 2), (16, 2), (18, 3),
    ]  # fmt: skip
    assert [s for (s,) in records(made, "train", "step")] == [4, 6, 8, 12, 16, 18], (
        "each record ends at a checkpoint"
    )
    assert max(trainer.calls) <= steps_per_call
    for (path,) in records(made, "checkpoint", "path"):
        assert load_checkpoint(made.run.checkpoints / path).progress.step == int(path[5:])


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_checkpoint_that_cannot_be_written_ends_the_run(
    job: Callable[..., Training], tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch, background: str
) -> None:
    made = job(f"train.background_saving={background}")

    def full(step: int) -> None:
        if step == 7:
            while not (made.run.checkpoints / "best").exists():  # until the one of step 6 is written
                time.sleep(0.001)
            monkeypatch.setattr("resnext_core.runs.checkpoint.fsync", fails)

    def fails(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(
        DataError, match=r"cannot write checkpoint .*No space left on device; older checkpoints"
    ):
        fit(Recorder(tiny_weights, full), made)
    assert load_latest(made.run.checkpoints, pytest.fail).progress.step == 6


def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(
    job: Callable[..., Training], tiny_weights: Weights
) -> None:
    made, batches = job(), []

    class Slow(Constant):
        def logits(self, images: NDArray[Any]) -> NDArray[Any]:
            batches.append(len(images))
            os.kill(os.getpid(), signal.SIGTERM)
            return super().logits(images)

    class Evaluates(Recorder):
        def predictor(self, *, ema: bool = False) -> Predictor:
            return Slow(6, self.step) if not batches else Constant(6, self.step)

    with pytest.raises(Interrupted, match="stopped after step 6"):
        fit(Evaluates(tiny_weights), made)
    assert len(batches) == 1, "of five"
    checkpoint = load_latest(made.run.checkpoints, pytest.fail)
    assert (checkpoint.progress.step, checkpoint.progress.epoch_closed) == (6, False)
    assert records(made, "eval", "epoch") == []
    fit(Recorder(tiny_weights), made, checkpoint)
    assert records(made, "eval", "epoch") == [(1,), (2,), (3,)]


@pytest.mark.parametrize(("right", "warned"), [(0, True), (23, False)])
def test_a_first_accuracy_at_chance_is_said(
    job: Callable[..., Training], tiny_weights: Weights, right: int, warned: bool
) -> None:
    made = job()
    labels = made.val.labels if made.val is not None else None
    assert labels is not None

    class Knows(Recorder):
        def predictor(self, *, ema: bool = False) -> Predictor:
            return Oracle(iter(((labels + (right == 0)) % 6).tolist() * 9))

    fit(Knows(tiny_weights), made)
    notes = [t for (t,) in records(made, "note", "text")]
    assert len(notes) == warned
    if warned:
        assert "no better than chance (16.67 %)" in notes[0]


class Oracle(Constant):
    """Predicts what it is told, image by image; nothing of that for golden images."""

    def __init__(self, answers: Iterator[int]) -> None:
        self.answers = answers

    def logits(self, images: NDArray[Any]) -> NDArray[Any]:
        if len(images) == 2:
            return np.zeros((2, 6), np.float32)
        return np.eye(6, dtype=np.float32)[[next(self.answers) for _ in images]]


def test_resuming_with_other_images_is_refused(job: Callable[..., Training], tiny_weights: Weights) -> None:
    made = job()
    fit(Recorder(tiny_weights), made)
    checkpoint = load_latest(made.run.checkpoints, pytest.fail)
    with pytest.raises(DataError, match=r"cannot resume .*: seed was 1 and is 2; batch_size was 8 and is 4"):
        fit(Recorder(tiny_weights), job("train.seed=2", "train.batch_size=4"), checkpoint)


# -- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_stops(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_stop_request_in_a_thread_leaves_signals_alone() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def body() -> None:
        with StopRequest() as stop:
            inside.append((signal.getsignal(signal.SIGTERM), stop.requested))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert inside == [(before, False)]
