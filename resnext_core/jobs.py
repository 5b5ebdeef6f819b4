"""From a configuration to a running training job: data, initial weights, loaders, trainer, run folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnext_core import __version__
from resnext_core.checkpoint import Checkpoint
from resnext_core.checkpoint_folder import Progress
from resnext_core.config import Config
from resnext_core.data.index import Index, find_splits, open_index
from resnext_core.data.loader import Loader, default_workers
from resnext_core.data.quarantine import Quarantine
from resnext_core.data.sampler import steps_per_epoch
from resnext_core.distributed import Collectives, RankInfo, connect_tcp
from resnext_core.errors import DataError, ResnextError, UsageError, shown
from resnext_core.finetune import pretrained_weights, with_momentum
from resnext_core.interfaces import Backend, TrainRequest
from resnext_core.loop import Emit, Job, fit
from resnext_core.plugins import load_plugins
from resnext_core.preprocess import PreprocessSpec, preprocess_spec
from resnext_core.runs import RunFolder
from resnext_core.serve import build_spec
from resnext_core.weights import Weights, init_weights


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The indices of a data folder; all share the classes of `train`, and all have labels.

    `notes` has a line about each part that is missing or was left out.
    """

    train: Index
    val: Index | None
    test: Index | None
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, Index]:
        """Those that are there, by name."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: index for name, index in parts.items() if index is not None}


def open_splits(config: Config) -> Splits:
    """Open train, val and test of ``config.data``; UsageError or DataError when they cannot be used."""
    splits, faults = examine_splits(config)
    if splits is None or faults:
        raise faults[0]
    return splits


def examine_splits(config: Config) -> tuple[Splits | None, list[ResnextError]]:
    """Open train, val and test of ``config.data`` and return them with everything that speaks against them.

    A training needs two classes in train and labels in val; a test part without labels is left out. The splits
    are None where there is no train part to use. Raises UsageError where there is no data folder to look at.
    """
    if config.data.dir is None:
        raise UsageError("no data given: use --data DIR, a folder with train/ and val/")
    paths = find_splits(Path(config.data.dir), config.data, need=("train",))
    faults: list[ResnextError] = []
    notes: list[str] = []
    train, classes = None, None
    try:
        train = open_index(paths["train"])
        _check_classes(train, paths["train"])
        classes = train.classes
    except ResnextError as error:
        train = None
        faults.append(error)
    found: dict[str, Index] = {}
    for name in ("val", "test"):
        if name not in paths:
            continue
        try:
            index = open_index(paths[name], classes=classes)
        except ResnextError as error:
            faults.append(error)
            continue
        if index.labelled:
            found[name] = index
        elif name == "test":
            notes.append(
                f"{shown(paths[name], None)} has {len(index)} images without labels: it is left out"
                + (", val is evaluated in its place" if "val" in paths else "")
            )
        else:
            faults.append(
                DataError(
                    f"{_without_labels(index, paths[name])} and name it with --set data.val=val.txt, or train "
                    "without an evaluation: --set data.val=none"
                )
            )
    if train is None:
        return None, faults
    if "val" not in paths:
        notes.append(
            "no val part: nothing is evaluated while it trains, and nothing says which checkpoint is best"
        )
    return Splits(train=train, val=found.get("val"), test=found.get("test"), notes=tuple(notes)), faults


def _check_classes(index: Index, path: Path) -> None:
    """Raise DataError unless every image has a label and there are two classes to tell apart."""
    if not index.labelled:
        raise DataError(f"{_without_labels(index, path)} and name it with --set data.train=train.txt")
    present = np.unique(index.labels)
    if len(present) < 2:
        raise DataError(
            f"{path} has images of one class only, '{index.classes[present[0]]}': a classifier needs two; "
            "add images of another class, each in a folder of its class"
        )


def _without_labels(index: Index, path: Path) -> str:
    return (
        f"{path} has {len(index)} images without labels, e.g. {index.paths[0]}; put them into class folders, or "
        "write a list of 'path label' lines beside it"
    )


def loader_workers(config: Config, world: int = 1) -> int:
    """Return the number of loader processes of a rank: as configured, or what suits the machine."""
    return default_workers(world) if config.data.workers is None else config.data.workers


def quarantine(config: Config, run: RunFolder | None = None) -> Quarantine | None:
    """Return the list of unreadable files: of ``data.quarantine``, and of `run` where the policy keeps one."""
    data = config.data
    if data.dir is None or (data.quarantine is None and data.bad_images != "quarantine"):
        return None
    own = run.path / "quarantine.txt" if run is not None and data.bad_images == "quarantine" else None
    known = Path(data.quarantine) if data.quarantine is not None else None
    return Quarantine(Path(data.dir), known=known, own=own)


def eval_loader(
    index: Index,
    preprocess: PreprocessSpec,
    config: Config,
    world: int = 1,
    run: RunFolder | None = None,
    *,
    watch_folders: bool = True,
) -> Loader:
    """Return a loader of evaluation pixels; `watch_folders` False where nobody has seen the files before."""
    return Loader(
        index, preprocess, None, seed=config.train.seed, workers=loader_workers(config, world),
        prefetch=config.data.prefetch, bad_images=config.data.bad_images, quarantine=quarantine(config, run),
        watch_folders=watch_folders,
    )  # fmt: skip


def initial_weights(
    config: Config, classes: Sequence[str], tell: Callable[[str], None] = lambda line: None
) -> Weights:
    """Return the weights that a training of `classes` starts from: ``model.pretrained``, or freshly initialised ones.

    `tell` gets a line about pretrained ones. Raises UsageError when the configured class count is not the data's.
    """
    check_class_count(config, classes)
    if config.model.pretrained is not None:
        weights, line = pretrained_weights(config, classes, load_plugins().weight_files)
        tell(line)
        return weights
    spec = build_spec(config, len(classes))
    return Weights(
        spec=spec,
        preprocess=preprocess_spec(config.preprocess, spec.image_size),
        classes=tuple(classes),
        tensors=init_weights(spec, config.train.seed),
        origin={"made_by": f"resnext-core {__version__}", "seed": config.train.seed},
    )


def check_class_count(config: Config, classes: Sequence[str]) -> None:
    """Raise UsageError when ``model.num_classes`` is not the number of `classes`."""
    configured = config.model.num_classes
    if configured is not None and configured != len(classes):
        raise UsageError(
            f"model.num_classes is {configured}, but the training data has {len(classes)} classes; correct it, "
            "or leave it out"
        )


def per_rank(config: Config, world: int, train_images: int) -> int:
    """Return a rank's samples a step; UsageError when the global batch cannot be split or filled."""
    train = config.train
    if train.batch_size % (world * train.accumulate):
        raise UsageError(
            f"train.batch_size {train.batch_size} is not divisible by {world} ranks × {train.accumulate} "
            "accumulated micro-batches"
        )
    steps_per_epoch(train_images, train.batch_size)
    return train.batch_size // world


def connect(backend: Backend, config: Config, rank: RankInfo) -> Collectives:
    """Join the other ranks, by the backend's own collectives or by core's."""
    if backend.connect is not None:
        return backend.connect(rank, config.backends.get(backend.id))
    return connect_tcp(rank, os.environ)


@contextmanager
def training_job(
    config: Config,
    backend: Backend,
    splits: Splits,
    run: RunFolder,
    rank: RankInfo,
    collectives: Collectives,
    emit: Emit,
    resume: Checkpoint | None = None,
) -> Iterator[Job]:
    """Yield the job with its loaders running; they end with the block. One that resumes needs no pretrained file."""
    if resume is not None and resume.weights.spec.variant == config.model.variant:
        weights = resume.weights
    else:
        tell = lambda line: emit({"kind": "note", "step": 0, "text": line})  # noqa: E731
        weights = initial_weights(config, splits.train.classes, tell)
    weights = weights.replace(named=splits.train.named)
    per_rank(config, rank.world, len(splits.train))
    with ExitStack() as stack:
        train_loader = stack.enter_context(
            Loader(
                splits.train, weights.preprocess, config.augment, seed=config.train.seed,
                workers=loader_workers(config, rank.world),
                prefetch=max(config.data.prefetch, 2 * backend.steps_per_call), bad_images=config.data.bad_images,
                quarantine=quarantine(config, run),
            )
        )  # fmt: skip
        val_loader = None
        if splits.val is not None:
            val_loader = stack.enter_context(
                eval_loader(splits.val, weights.preprocess, config, rank.world, run)
            )
        yield Job(
            config=config, weights=weights, train=splits.train, train_loader=train_loader, val=splits.val,
            val_loader=val_loader, rank=rank, collectives=collectives, run=run,
            steps_per_call=backend.steps_per_call, emit=emit,
        )  # fmt: skip


def train_request(
    config: Config, weights: Weights, backend: Backend, rank: RankInfo, collectives: Collectives
) -> TrainRequest:
    """Return what the backend's trainer is made from."""
    return TrainRequest(
        weights=weights, optimizer=config.optimizer, loss=config.loss, precision=config.precision,
        batch_size=config.train.batch_size // rank.world, accumulate=config.train.accumulate,
        ema_decay=config.train.ema_decay, skip_nonfinite=config.train.nonfinite == "skip",
        seed=config.train.seed, rank=rank, collectives=collectives,
        options=config.backends.get(backend.id),
    )  # fmt: skip


def run_training(
    job: Job, backend: Backend, resume: Checkpoint | None, ready: Callable[[], None] = lambda: None
) -> Progress:
    """Build the trainer, run the loop, release the device; `ready` is called once the device is open."""
    assert backend.trainer is not None
    trainer = backend.trainer(train_request(job.config, job.weights, backend, job.rank, job.collectives))
    try:
        if resume is None and job.config.model.pretrained_momentum:
            trainer.load_state(with_momentum(job.config, job.weights, trainer.state()))
        ready()
        return fit(trainer, job, resume)
    finally:
        trainer.close()
