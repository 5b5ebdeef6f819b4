"""Measure the throughput of training, evaluation or loading on this machine."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from resnext_core.config import Config, stated
from resnext_core.data.index import open_index, remarks
from resnext_core.data.mix import draw_mixes
from resnext_core.data.splits import part_paths
from resnext_core.errors import UsageError
from resnext_core.files import place
from resnext_core.interfaces import Backend, Batch
from resnext_core.jobs.bench_data import bench_loader, images_of_run
from resnext_core.jobs.plan import training_backend
from resnext_core.jobs.recorder import ignore
from resnext_core.jobs.settings import Resolved, Settings, resolve
from resnext_core.jobs.training import train_request
from resnext_core.model.spec import ModelSpec
from resnext_core.model.weights import Weights
from resnext_core.plugins import PluginSet, load_plugins
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.runs.records import Listener, Note
from resnext_core.serving.load import serve, serve_weights
from resnext_core.serving.metrics import percentiles
from resnext_core.training.initial import initial_weights
from resnext_core.training.sizes import training_preprocess, training_size
from resnext_core.training.trainer import create_trainer


@dataclass(frozen=True, kw_only=True)
class BenchJob:
    """What to time: steps of a training, batches of an evaluation, or the loader (`what` ``data``).

    Training and evaluation take random images in memory; ``data`` reads those of ``settings.data``. `weights` is the
    model to evaluate, None a new one of ``model.variant`` with `classes` outputs. `warmup` steps come before the
    `steps` that are timed. With `peak_tflops`, the device's peak TFLOP/s in the precision used, the result has the
    model FLOPs utilisation, ``mfu``. ``data`` is compared with the images a second that a training takes:
    `needed_images_per_s`, or those of the run in the folder `run`.
    """

    what: Literal["train", "eval", "data"]
    weights: Path | None = None
    steps: int = 20
    warmup: int = 3
    classes: int = 1000
    peak_tflops: float | None = None
    needed_images_per_s: float | None = None
    run: Path | None = None
    settings: Settings = field(default_factory=Settings)
    backend: str | None = None


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """What was measured, by name: ``images_per_s``, ``ms_p50``, ``gflop_per_s``, ``peak_memory_mib`` and others."""

    values: Mapping[str, Any]

    @property
    def images_per_s(self) -> float:
        """The rate: by the median step in training and evaluation, over all images of the loader."""
        return float(self.values["images_per_s"])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return dict(self.values)


def bench(job: BenchJob, listen: Listener = ignore) -> BenchResult:
    """Measure; `listen` gets notes on the data. Raises UsageError, DataError or BackendUnavailable."""
    if job.steps < 1 or job.warmup < 0:
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
        values = _bench_data(job, resolved, plugins, listen)
    elif job.what == "train":
        backend = training_backend(plugins, job.backend)
        values = _bench_train(job, resolved.config, backend)
    else:
        values = _bench_eval(job, resolved, plugins, listen)
    if job.peak_tflops is not None and "gflop_per_s" in values:
        values["mfu"] = values["gflop_per_s"] / (1000 * job.peak_tflops)
    values["peak_memory_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return BenchResult(values=values)


def _bench_train(job: BenchJob, config: Config, backend: Backend) -> dict[str, Any]:
    """Time whole optimizer steps, in chunks of as many as the backend takes in one call; no teacher is asked."""
    weights, n, chunk = _new_model(config, job.classes), config.train.batch_size, backend.steps_per_call
    spec = weights.spec.replace(image_size=training_size(config))
    batch = _random_batch(n, spec.image_size, spec.num_classes)
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
    times = []
    with closing(create_trainer(backend, request)) as trainer:
        for call in range(-(-(job.warmup + job.steps) // chunk)):
            seconds = _seconds(lambda: trainer.run_steps([batch] * chunk, lr))
            if (call + 1) * chunk > job.warmup:
                times.append(seconds / chunk)
        peak = trainer.usage().peak_bytes
    values = _rates("train", backend.id, spec, n, times, passes=3)
    return values if peak is None else values | {"peak_device_mib": round(peak / 2**20)}


def _bench_eval(job: BenchJob, resolved: Resolved, plugins: PluginSet, listen: Listener) -> dict[str, Any]:
    """Time the forward pass."""
    config, n = resolved.config, resolved.config.train.batch_size
    if job.weights is not None:
        model = serve(job.weights, config, resolved.sources, plugins, backend_id=job.backend, batch_size=n)
    else:
        weights = _new_model(config, job.classes)
        model = serve_weights(weights, config, plugins, backend_id=job.backend, batch_size=n)
    for line in model.notes:
        listen(Note(text=line))
    images = _random_batch(n, model.spec.image_size, 1).images
    with closing(model.predictor) as predictor:
        times = [_seconds(lambda: predictor.logits(images)) for _ in range(job.warmup + job.steps)]
    return _rates("eval", model.backend.id, model.spec, n, times[job.warmup :], passes=1)


def _bench_data(job: BenchJob, resolved: Resolved, plugins: PluginSet, listen: Listener) -> dict[str, Any]:
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
        weights = _new_model(config, 1)
    return bench_loader(
        index,
        training_preprocess(config, weights.preprocess),
        config,
        plugins.decoder(config.data.decoder),
        steps=job.steps,
        needed=needed,
    )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _new_model(config: Config, classes: int) -> Weights:
    return initial_weights(config, [str(i) for i in range(config.model.num_classes or classes)])[0]


def _random_batch(n: int, size: int, classes: int) -> Batch:
    rng = np.random.default_rng(0)
    return Batch(
        images=rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8),
        labels=rng.integers(0, classes, n).astype(np.int32),
        index=np.arange(n),
        valid=np.ones(n, bool),
    )


def _rates(
    what: str, backend: str, spec: ModelSpec, n: int, times: list[float], *, passes: int
) -> dict[str, Any]:
    """Return rates and percentiles (ms) of steps of `n` images, each `passes` times the cost of a forward pass."""
    median = float(np.median(times))
    return {
        "bench": what, "backend": backend, "variant": spec.variant, "image_size": spec.image_size,
        "batch_size": n, "images_per_s": n / median, **{f"ms_{k}": v for k, v in percentiles(times).items()},
        "gflop_per_s": 2 * passes * spec.macs * n / median / 1e9, "steps": len(times),
    }  # fmt: skip
