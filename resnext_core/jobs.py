"""From a configuration to a running training job: data, initial weights, loaders, trainer, run folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from resnext_core import __version__
from resnext_core.checkpoint import Checkpoint
from resnext_core.checkpoint_folder import Progress
from resnext_core.config import Config
from resnext_core.data.index import Index, find_splits, open_index
from resnext_core.data.loader import Loader, default_workers
from resnext_core.data.quarantine import Quarantine
from resnext_core.data.sampler import steps_per_epoch
from resnext_core.distributed import Collectives, RankInfo, connect_tcp
from resnext_core.errors import UsageError
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
    """The indices of a data folder; all share the classes of `train`."""

    train: Index
    val: Index | None
    test: Index | None

    @property
    def parts(self) -> dict[str, Index]:
        """Those that are there, by name."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: index for name, index in parts.items() if index is not None}


def open_splits(config: Config) -> Splits:
    """Open train, val and test of ``config.data``; UsageError or DataError when they cannot be used."""
    if config.data.dir is None:
        raise UsageError("no data given: use --data DIR, a folder with train/ and val/")
    paths = find_splits(Path(config.data.dir), config.data, need=("train",))
    train = open_index(paths["train"])
    others = {
        name: open_index(paths[name], classes=train.classes) for name in ("val", "test") if name in paths
    }
    return Splits(train=train, val=others.get("val"), test=others.get("test"))


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
    index: Index, preprocess: PreprocessSpec, config: Config, world: int = 1, run: RunFolder | None = None
) -> Loader:
    """Return a loader of evaluation pixels."""
    return Loader(
        index, preprocess, None, seed=config.train.seed, workers=loader_workers(config, world),
        prefetch=config.data.prefetch, bad_images=config.data.bad_images, quarantine=quarantine(config, run),
    )  # fmt: skip


def initial_weights(
    config: Config, classes: Sequence[str], tell: Callable[[str], None] = lambda line: None
) -> Weights:
    """Return the weights that a training of `classes` starts from: ``model.pretrained``, or freshly initialised ones.

    `tell` gets a line about pretrained ones. Raises UsageError when the configured class count is not the data's.
    """
    configured = config.model.num_classes
    if configured is not None and configured != len(classes):
        raise UsageError(
            f"model.num_classes is {configured}, but the training data has {len(classes)} classes"
        )
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


def run_training(job: Job, backend: Backend, resume: Checkpoint | None) -> Progress:
    """Build the trainer, run the loop, release the device."""
    assert backend.trainer is not None
    trainer = backend.trainer(train_request(job.config, job.weights, backend, job.rank, job.collectives))
    try:
        if resume is None and job.config.model.pretrained_momentum:
            trainer.load_state(with_momentum(job.config, job.weights, trainer.state()))
        return fit(trainer, job, resume)
    finally:
        trainer.close()
