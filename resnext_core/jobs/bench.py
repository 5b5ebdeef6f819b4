"""Measure the throughput of training, evaluation or loading on this machine."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from resnext_core.config import Config, stated
from resnext_core.data.index import open_index, remarks
from resnext_core.data.mix import draw_mixes
from resnext_core.data.splits import part_paths
from resnext_core.errors import UsageError
from resnext_core.files import place
from resnext_core.interfaces import Backend
from resnext_core.jobs.bench_data import bench_loader, images_of_run
from resnext_core.jobs.bench_record import BenchResult, DataBench, EvalBench, StepsResult, TrainBench
from resnext_core.jobs.bench_steps import (
    Timed,
    compute_of,
    random_batch,
    row_label,
    seconds_of,
    stated_options,
    warm_up,
)
from resnext_core.jobs.plan import training_backend
from resnext_core.jobs.recorder import ignore
from resnext_core.jobs.settings import Resolved, Settings, resolve
from resnext_core.jobs.training import train_request
from resnext_core.model.weights import Weights
from resnext_core.plugins import PluginSet, load_plugins
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.runs.records import Listener, Note
from resnext_core.serving.load import WEIGHTS_SUFFIX, LoadedModel, serve, serve_weights
from resnext_core.training.initial import initial_weights
from resnext_core.training.sizes import training_preprocess, training_size
from resnext_core.training.trainer import create_trainer


@dataclass(frozen=True, kw_only=True)
class BenchJob:
    """What to time: steps of a training, batches of an evaluation, or the loader (`what` ``data``).

    Training and evaluation take random images in memory; ``data`` reads those of ``settings.data``. `weights` is the
    model to evaluate, None a new one of ``model.variant`` with `classes` outputs. `warmup` steps come before the
    `steps` that are timed; None: as many as it takes until they are no longer getting faster
    (:func:`~resnext_core.jobs.bench_steps.warm_up`). `peak_tflops` is the device's peak TFLOP/s in the precision used;
    None: it is measured where that is possible. ``data`` is compared with the images a second that a training takes:
    `needed_images_per_s`, or those of the run in the folder `run`.
    """

    what: Literal["train", "eval", "data"]
    weights: Path | None = None
    steps: int = 20
    warmup: int | None = None
    classes: int = 1000
    peak_tflops: float | None = None
    needed_images_per_s: float | None = None
    run: Path | None = None
    settings: Settings = field(default_factory=Settings)
    backend: str | None = None


def bench(job: BenchJob, listen: Listener = ignore) -> BenchResult:
    """Measure; `listen` gets notes on the data. The result is a TrainBench, EvalBench or DataBench.

    Raises UsageError, DataError or BackendUnavailable.
    """
    if job.steps < 1 or (job.warmup is not None and job.warmup < 0):
        raise UsageError("--steps must be 1 or more, --warmup 0 or more")
    if job.peak_tflops is not None and not job.peak_tflops > 0:
        raise UsageError(f"--peak-tflops must be above 0, not {job.peak_tflops}")
    if job.what != "data" and (job.needed_images_per_s is not None or job.run is not None):
        raise UsageError(
            f"--images-per-second and --run belong to bench data; leave them out of bench {job.what}"
        )
    plugins = load_plugins()
    resolved = resolve(job.settings, plugins)
    if job.what == "data":
        return _bench_data(job, resolved, plugins, listen)
    if job.what == "train":
        return _bench_train(job, resolved.config, training_backend(plugins, job.backend))
    return _bench_eval(job, resolved, plugins, listen)


def _bench_train(job: BenchJob, config: Config, backend: Backend) -> StepsResult:
    """Time whole optimizer steps, in chunks of as many as the backend takes in one call; no teacher is asked."""
    weights, n, chunk = new_model(config, job.classes), config.train.batch_size, backend.steps_per_call
    spec = weights.spec.replace(image_size=training_size(config))
    batch = random_batch(n, spec.image_size, spec.num_classes)
    mix = draw_mixes(
        config.mix,
        batch.images.shape[1:3],
        seed=1,
        step=0,
        epoch=1,
        micro_batches=range(config.train.accumulate),
    )
    request = train_request(config, weights, backend, RankInfo(), SingleProcess())
    drops, taught = request.drops, request.distillation is not None
    batch = replace(
        batch, mix=mix, branches=np.ones((n, len(spec.blocks)), np.float32) if drops else None,
        teacher=np.full((n, spec.num_classes), 1 / spec.num_classes, np.float32) if taught else None,
    )  # fmt: skip
    lr = np.full(chunk, 1e-3, np.float32)
    with closing(create_trainer(backend, request)) as trainer:

        def call() -> float:
            return seconds_of(lambda: trainer.run_steps([batch] * chunk, lr)) / chunk

        calls = None if job.warmup is None else -(-job.warmup // chunk)
        warmed = warm_up(call, calls) * chunk
        times = [call() for _ in range(-(-job.steps // chunk))]
        peak = trainer.usage().peak_bytes
    options = config.backends.get(backend.id)
    timed = Timed(
        label=row_label(backend, "training", stated_options(options)), backend=backend, format=WEIGHTS_SUFFIX,
        options=options, precision=config.precision.compute, spec=spec, batch_size=n,
    )  # fmt: skip
    result = timed.result(TrainBench, times, warmup=warmed, peak_device_bytes=peak)
    return timed.with_peak(result, job.peak_tflops)


def _bench_eval(job: BenchJob, resolved: Resolved, plugins: PluginSet, listen: Listener) -> StepsResult:
    """Time the forward pass."""
    config, n = resolved.config, resolved.config.train.batch_size
    if job.weights is not None:
        model = serve(job.weights, config, resolved.sources, plugins, backend_id=job.backend, batch_size=n)
    else:
        weights = new_model(config, job.classes)
        model = serve_weights(weights, config, plugins, backend_id=job.backend, batch_size=n)
    for line in model.notes:
        listen(Note(text=line))
    images = random_batch(n, model.spec.image_size, 1).images
    with closing(model.predictor) as predictor:

        def call() -> float:
            return seconds_of(lambda: predictor.logits(images))

        warmed = warm_up(call, job.warmup)
        times = [call() for _ in range(job.steps)]
    timed = timed_model(model, config, n, file=job.weights)
    return timed.with_peak(timed.result(EvalBench, times, warmup=warmed), job.peak_tflops)


def timed_model(
    model: LoadedModel, config: Config, batch_size: int, *, file: Path | None, label: str | None = None
) -> Timed:
    """Return what is timed where `model` is served; `file` is None for weights that were made for it."""
    backend, options = model.backend, config.backends.get(model.backend.id)
    suffix = WEIGHTS_SUFFIX if file is None else Path(model.source.partition(" (")[0]).suffix
    # Weights of other programs are served as ours.
    format = suffix if suffix in backend.formats else WEIGHTS_SUFFIX
    usual = compute_of(backend, options)[0].precision
    return Timed(
        label=label or row_label(backend, format, stated_options(options)), backend=backend, format=format,
        file=None if file is None else model.source, options=options,
        precision=model.precision or usual or "float32", spec=model.spec,
        digest=None if file is None else model.digest, batch_size=batch_size, notes=model.notes,
    )  # fmt: skip


def _bench_data(job: BenchJob, resolved: Resolved, plugins: PluginSet, listen: Listener) -> DataBench:
    """Time reading, decoding and augmenting the training images of ``data.dir``."""
    config = resolved.config
    if config.data.dir is None:
        raise UsageError("bench data needs --data DIR")
    needed = job.needed_images_per_s if job.run is None else images_of_run(job.run)
    if needed is not None and not needed > 0:
        raise UsageError(f"--images-per-second must be above 0, not {needed:g}")
    plugins.decoder(config.data.decoder)
    root = place(config.data.dir)
    part = part_paths(root, config.data).get("train", root)
    index = open_index(part, data=config.data)
    for line in remarks([index]):
        listen(Note(text=line))
    if index.classes:
        weights, config = initial_weights(config, index.classes, stated=stated(resolved.sources))
    else:
        weights = new_model(config, 1)
    return bench_loader(
        index,
        training_preprocess(config, weights.preprocess),
        config,
        plugins.decoder(config.data.decoder),
        steps=job.steps,
        needed=needed,
    )


def new_model(config: Config, classes: int) -> Weights:
    """Return new weights of ``model.variant``."""
    return initial_weights(config, [str(i) for i in range(config.model.num_classes or classes)])[0]
