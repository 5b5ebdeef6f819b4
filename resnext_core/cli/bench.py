"""``resnext-run bench``: throughput of training, evaluation or loading on this machine."""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resnext_core.cli.common import add_config_flags, add_json_flag, print_config, settings_of
from resnext_core.cli.output import Output
from resnext_core.config import Config
from resnext_core.data.index import open_index, remarks
from resnext_core.data.loader import Loader
from resnext_core.data.opening import loader_workers
from resnext_core.data.sampler import Task, epoch_permutation
from resnext_core.errors import UsageError
from resnext_core.interfaces import Backend, Batch
from resnext_core.jobs.settings import resolve
from resnext_core.jobs.training import train_request
from resnext_core.model.weights import Weights
from resnext_core.plugins import PluginSet, load_plugins
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.serving.load import serve, serve_weights
from resnext_core.serving.metrics import percentiles
from resnext_core.training.initial import initial_weights
from resnext_core.training.trainer import create_trainer

EPILOG = """\
examples:
  resnext-run bench train --set model.variant=resnext50_32x4d --batch-size 8
  resnext-run --backend onnx bench eval --weights model.onnx --batch-size 8
  resnext-run bench data --data DIR --set model.variant=resnext50_32x4d
Training and evaluation run on random images in memory; data reads and augments the real ones.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("train", "eval", "data"))
    parser.add_argument(
        "--weights", metavar="FILE", help="model to time (default: a fresh one of model.variant)"
    )
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="steps to time (default 20)")
    parser.add_argument(
        "--warmup", type=int, default=3, metavar="N", help="steps before timing starts (default 3)"
    )
    parser.add_argument(
        "--classes", type=int, default=1000, metavar="K", help="classes of a fresh model (default 1000)"
    )
    parser.add_argument(
        "--peak-tflops",
        type=float,
        metavar="T",
        help="what the device can do at most, in the run's precision: adds mfu, the share of it that the model used",
    )
    add_config_flags(parser)
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    if args.steps < 1 or args.warmup < 0:
        raise UsageError("--steps must be 1 or more, --warmup 0 or more")
    if args.peak_tflops is not None and not args.peak_tflops > 0:
        raise UsageError(f"--peak-tflops must be above 0, not {args.peak_tflops}")
    plugins = load_plugins()
    resolved = resolve(settings_of(args), plugins)
    if args.print_config:
        return print_config(resolved)
    config, sources = resolved.config, resolved.sources
    output = Output(json_result=args.json)
    if args.what == "data":
        result = bench_data(config, args.steps, output.say)
    elif args.what == "train":
        backend = plugins.choose(args.backend, "train", lambda b: b.engine is not None)
        result = bench_train(config, backend, _fresh(config, args.classes), args.steps, args.warmup)
    else:
        result = bench_eval(args, config, sources, plugins)
    if args.peak_tflops is not None and "gflop_per_s" in result:
        result["mfu"] = result["gflop_per_s"] / (1000 * args.peak_tflops)
    result["peak_memory_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    text = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in result.items())
    output.result(result, text)
    return 0


def bench_train(
    config: Config, backend: Backend, weights: Weights, steps: int, warmup: int
) -> dict[str, Any]:
    """Time whole optimizer steps on random images; returns rates and percentiles (ms a step)."""
    size, n = weights.spec.image_size, config.train.batch_size
    trainer = create_trainer(backend, train_request(config, weights, backend, RankInfo(), SingleProcess()))
    batch = _random_batch(n, size, weights.spec.num_classes)
    chunk, times = backend.steps_per_call, []
    lr = np.full(chunk, 1e-3, np.float32)
    for call in range(-(-(warmup + steps) // chunk)):
        started = time.perf_counter()
        trainer.run_steps([batch] * chunk, lr)
        if (call + 1) * chunk > warmup:
            times.append((time.perf_counter() - started) / chunk)
    peak = trainer.usage().peak_bytes
    trainer.close()
    found = _rates("train", backend.id, weights, n, times, passes=3)
    return found if peak is None else found | {"peak_device_mib": round(peak / 2**20)}


def bench_eval(
    args: argparse.Namespace, config: Config, sources: Mapping[str, str], plugins: PluginSet
) -> dict[str, Any]:
    """Time the forward pass on random images; returns rates and percentiles (ms a batch)."""
    n = config.train.batch_size
    if args.weights:
        served = serve(Path(args.weights), config, sources, plugins, backend_id=args.backend, batch_size=n)
    else:
        weights = _fresh(config, args.classes)
        served = serve_weights(weights, config, plugins, backend_id=args.backend, batch_size=n)
    images = _random_batch(n, served.spec.image_size, 1).images
    times = []
    for call in range(args.warmup + args.steps):
        started = time.perf_counter()
        served.predictor.logits(images)
        if call >= args.warmup:
            times.append(time.perf_counter() - started)
    served.predictor.close()
    return _rates("eval", served.backend.id, served, n, times, passes=1)


def bench_data(config: Config, steps: int, tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Time reading and augmenting real training images; returns images/s. `tell` gets lines about the data."""
    if config.data.dir is None:
        raise UsageError("bench data needs --data DIR")
    root = Path(config.data.dir)
    index = open_index(root / "train" if (root / "train").is_dir() else root)
    for line in remarks([index]):
        tell(line)
    weights = initial_weights(config, index.classes) if index.classes else _fresh(config, 1)
    n, workers = config.train.batch_size, loader_workers(config)
    order = np.concatenate(
        [epoch_permutation(len(index), 1, e) for e in range(-(-steps * n // len(index)) + 1)]
    )
    tasks = [Task.of(0, order[i * n : (i + 1) * n]) for i in range(steps + 2)]
    with Loader(
        index,
        weights.preprocess,
        config.augment,
        seed=1,
        workers=workers,
        prefetch=config.data.prefetch,
        bad_images=config.data.bad_images,
    ) as loader:
        batches = loader.batches(tasks)
        for _ in range(2):
            next(batches)
        started = time.perf_counter()
        images = sum(len(batch) for batch in batches)
        seconds = time.perf_counter() - started
    return {
        "bench": "data",
        "images_per_s": images / seconds,
        "workers": workers,
        "batch_size": n,
        "image_size": weights.spec.image_size,
        "failed": len(loader.failures),
    }


def _fresh(config: Config, classes: int) -> Weights:
    return initial_weights(config, [str(i) for i in range(config.model.num_classes or classes)])


def _random_batch(n: int, size: int, classes: int) -> Batch:
    rng = np.random.default_rng(0)
    return Batch(
        images=rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8),
        labels=rng.integers(0, classes, n).astype(np.int32),
        index=np.arange(n),
        valid=np.ones(n, bool),
    )


def _rates(what: str, backend: str, model: Any, n: int, times: list[float], passes: int) -> dict[str, Any]:
    spec, median = model.spec, float(np.median(times))
    stats = percentiles(times)
    return {
        "bench": what,
        "backend": backend,
        "variant": spec.variant,
        "image_size": spec.image_size,
        "batch_size": n,
        "images_per_s": n / median,
        **{f"ms_{k}": v for k, v in stats.items()},
        "gflop_per_s": 2 * passes * spec.macs * n / median / 1e9,
        "steps": len(times),
    }
