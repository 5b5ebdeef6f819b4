"""The average of several weights of one network, and batch statistics that fit it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import Config, LossConfig, OptimizerConfig, PrecisionConfig
from resnext_core.data.index import remarks
from resnext_core.data.loader import Loader
from resnext_core.data.opening import loader_workers, quarantine
from resnext_core.data.sampler import Task, epoch_permutation
from resnext_core.data.splits import open_split
from resnext_core.errors import DataError, UsageError
from resnext_core.files import check_target
from resnext_core.interfaces import Backend, Batch, TrainRequest
from resnext_core.jobs.mean import Mean, greedy
from resnext_core.jobs.plan import training_backend
from resnext_core.jobs.recorder import ignore
from resnext_core.jobs.result import Result
from resnext_core.jobs.scoring import score
from resnext_core.jobs.settings import Settings, resolve_serving
from resnext_core.metrics import METRICS
from resnext_core.model.spec import BN_MOMENTUM
from resnext_core.model.weights import Weights, load_weights, save_weights
from resnext_core.plugins import PluginSet, load_plugins
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.runs.records import Listener, Note, Progress
from resnext_core.serving.load import WEIGHTS_SUFFIX, read_weights, serve_weights
from resnext_core.training.sizes import training_preprocess
from resnext_core.training.trainer import create_trainer


@dataclass(frozen=True, kw_only=True)
class AverageJob:
    """Average the weights of `sources`, runs, checkpoint folders or weights files, into the new file `target`.

    `shares` weigh them, one each; None weighs them alike. With `bn_images` the statistics of batch normalisation are
    computed anew from so many training images of the data of `settings` (or of the first source that is a run), with
    the training's augmentation, on `backend`; None averages them too. With `greedy` only those are averaged that make
    the mean no worse on the val part of the data, by ``train.best``. `force` overwrites `target`.
    """

    sources: tuple[Path, ...]
    target: Path
    shares: tuple[float, ...] | None = None
    bn_images: int | None = None
    greedy: bool = False
    settings: Settings = field(default_factory=Settings)
    backend: str | None = None
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class AverageResult(Result):
    """The file that was written, its digest, and of what it is the average: `sources` with their `shares` of 1.

    It stands for the file wherever a path is taken. `bn_images` is how many images its batch statistics are from, None
    where these are averages.
    """

    path: Path
    digest: str
    sources: tuple[str, ...]
    shares: tuple[float, ...]
    bn_images: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "path": str(self.path), "digest": self.digest, "sources": list(self.sources),
            "shares": list(self.shares), "bn_images": self.bn_images,
        }  # fmt: skip

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __str__(self) -> str:
        parts = ", ".join(
            f"{share:.4g} of {name}" for share, name in zip(self.shares, self.sources, strict=True)
        )
        return f"{self.path}: {parts}; digest {self.digest}"


def average(job: AverageJob, listen: Listener = ignore) -> AverageResult:
    """Average and write; `listen` gets lines about it.

    Raises UsageError or DataError where the sources are not the same network, or something cannot be read or written;
    BackendUnavailable where nothing here can compute batch statistics.
    """
    shares = _shares(job)
    plugins = load_plugins()
    resolved = resolve_serving(job.settings, plugins, *job.sources)
    config = resolved.config
    backend = training_backend(plugins, job.backend) if job.bn_images is not None else None
    if (backend is not None or job.greedy) and config.data.dir is None:
        raise UsageError("no data given: use --data DIR, or average runs to take their own")
    if (backend is not None or job.greedy) and resolved.note is not None:
        listen(Note(text=resolved.note))
    read = partial(read_weights, config=config, sources=resolved.sources, plugins=plugins)
    sources = job.sources
    if job.greedy:
        sources = _chosen(job, config, plugins, read, listen)
        shares = (1 / len(sources),) * len(sources)
    mean = Mean()
    for path, share in zip(sources, shares, strict=True):
        mean.add(read(path), path, share, listen)
    weights = mean.weights()
    if backend is not None and job.bn_images is not None:
        weights, count = with_batch_statistics(weights, config, plugins, backend, job.bn_images, listen)
        words = (
            f"statistics of batch normalisation computed anew from {count} training images on {backend.id}"
        )
        weights = weights.replace(origin={**weights.origin, "bn": {"images": count, "backend": backend.id}})
    elif len(sources) == 1:
        count, words = None, "no mean is better than the best of the weights, which is written as it is"
    else:
        count, words = None, "statistics of batch normalisation are averages too"
        words += "; the network may need its own: see --recompute-bn"
        weights = weights.replace(origin={**weights.origin, "bn": "averaged"})
    listen(Note(text=words))
    save_weights(weights, job.target)
    written = load_weights(job.target).digest
    return AverageResult(
        path=job.target, digest=written, sources=tuple(map(str, sources)), shares=shares, bn_images=count
    )


def _shares(job: AverageJob) -> tuple[float, ...]:
    """Return the share of each source, together 1, after what can be checked before anything is read."""
    if len(job.sources) < 2:
        raise UsageError("an average needs two or more weights")
    if job.target.suffix != WEIGHTS_SUFFIX:
        raise UsageError(f"the average is a {WEIGHTS_SUFFIX} file, not '{job.target.name}'")
    if os.path.lexists(job.target) and not job.force:
        raise UsageError(f"{job.target} already exists; choose another name or use --force")
    if job.bn_images is not None and job.bn_images < 2:
        raise UsageError(f"batch statistics need 2 or more images, not {job.bn_images}")
    if job.greedy and job.shares is not None:
        raise UsageError("a greedy average weighs all alike: give shares or greedy, not both")
    check_target(job.target)
    given = job.shares or (1.0,) * len(job.sources)
    if len(given) != len(job.sources):
        raise UsageError(f"{len(given)} shares were given for {len(job.sources)} weights")
    if not all(math.isfinite(share) and share >= 0 for share in given) or not sum(given) > 0:
        raise UsageError(f"shares are numbers from 0 on, not all 0; not {', '.join(f'{s:g}' for s in given)}")
    return tuple(share / math.fsum(given) for share in given)


def _chosen(
    job: AverageJob, config: Config, plugins: PluginSet, read: Callable[[Path], Weights], listen: Listener
) -> tuple[Path, ...]:
    """Return the sources whose mean is best on val; see :func:`~resnext_core.jobs.mean.greedy`."""
    check = Mean()
    for path in job.sources:  # all the same network, before any is evaluated
        check.add(read(path), path, 0.0, ignore)
    first = check.weights()
    index = open_split(config.data, "val", first.classes, named=first.has_names)
    metric = METRICS[config.train.best]

    def measured(weights: Weights) -> float:
        served = serve_weights(
            weights, config, plugins, backend_id=job.backend, batch_size=config.eval.batch_size
        )
        with closing(served.predictor):
            return score(served, index, config, listen).metrics[config.train.best]

    return tuple(greedy(job.sources, read, measured, metric.line, listen))


def with_batch_statistics(
    weights: Weights, config: Config, plugins: PluginSet, backend: Backend, images: int, listen: Listener
) -> tuple[Weights, int]:
    """Return `weights` with running statistics that are the mean of those of batches, and the number of images.

    The batches are the first ones of an epoch, augmented, of ``train.batch_size`` images: `images` in all, or as many
    whole batches as there are. Every batch counts alike, and the variance is the mean of the unbiased ones (Izmailov
    et al., arXiv:1803.05407, section 3.2). Each is one training step with learning rate 0 from running statistics of 0,
    so that what it leaves is :data:`BN_MOMENTUM` times those of the batch.
    """
    index = open_split(config.data, "train", weights.classes, named=weights.has_names)
    for line in remarks([index]):
        listen(Note(text=line))
    size = min(config.train.batch_size, images, len(index))
    steps = min(images, len(index)) // size
    order = epoch_permutation(len(index), config.train.seed, 0)
    tasks = [Task.of(0, order[i * size : (i + 1) * size]) for i in range(steps)]
    request = TrainRequest(
        weights=weights, optimizer=OptimizerConfig(lr=0.0, weight_decay=0.0), loss=LossConfig(),
        precision=PrecisionConfig(compute=config.precision.compute, bn_float32=config.precision.bn_float32),
        batch_size=size, seed=config.train.seed, rank=RankInfo(),
        collectives=SingleProcess(), options=config.backends.get(backend.id),
    )  # fmt: skip
    names = [t.name for t in weights.spec.tensors if not t.trainable]
    sums = {name: np.zeros(weights.tensors[name].shape) for name in names}
    done = 0
    with ExitStack() as stack:
        loader = stack.enter_context(
            Loader(
                index, training_preprocess(config, weights.preprocess), config.augment, seed=config.train.seed,
                workers=loader_workers(config), prefetch=config.data.prefetch, bad_images=config.data.bad_images,
                quarantine=quarantine(config), decoder=plugins.decoder(config.data.decoder),
            )
        )  # fmt: skip
        trainer = create_trainer(backend, request)
        stack.callback(trainer.close)
        state = trainer.state()
        zeros = {f"weights/{name}": np.zeros_like(weights.tensors[name]) for name in names}
        start = replace(state, tensors={**state.tensors, **zeros})
        for batch in loader.batches(tasks):
            whole = _readable(batch, size)
            if whole is None:
                continue
            trainer.load_state(start)
            trainer.run_steps([whole], np.zeros(1, np.float32))
            after = trainer.state().tensors
            for name, total in sums.items():
                total += after[f"weights/{name}"].astype(np.float64) / BN_MOMENTUM
            done += 1
            listen(Progress(what="average", done=done, total=steps))
    if not done:
        raise DataError(f"no batch of {index.root} could be read: there are no batch statistics")
    tensors: dict[str, NDArray[Any]] = dict(weights.tensors)
    tensors |= {name: (total / done).astype(np.float32) for name, total in sums.items()}
    return weights.replace(tensors=tensors), done * size


def _readable(batch: Batch, size: int) -> Batch | None:
    """Return a batch whose images that could not be read are others of it; None where there are none."""
    good = np.flatnonzero(batch.valid)
    if not len(good):
        return None
    rows = np.where(batch.valid, np.arange(size), good[np.arange(size) % len(good)])
    return replace(
        batch, images=batch.images[rows], labels=batch.labels[rows], index=batch.index[rows],
        valid=np.ones(size, np.bool_),
    )  # fmt: skip
