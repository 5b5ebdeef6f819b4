"""Measure what reading the training images costs, stage by stage, and how many a second can be fed."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from resnext_core.config import Config
from resnext_core.data.batch_pool import most_batches
from resnext_core.data.content import BadImage, Content
from resnext_core.data.index import Index
from resnext_core.data.loader import Loader
from resnext_core.data.opening import loader_workers
from resnext_core.data.pillow import PillowDecoder
from resnext_core.data.plan import Plan, train_plan
from resnext_core.data.sampler import Task, epoch_permutation, sample_rng
from resnext_core.errors import DataError, UsageError, counted
from resnext_core.extensions import Decoder, ImageDecoder, NotSupported
from resnext_core.jobs.bench_record import DataBench
from resnext_core.jobs.bench_steps import now, peak_memory_mib
from resnext_core.jobs.environment import command_line, versions
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.processor import processor
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.records import Train

#: Batches of a loader that are read before its time is taken.
_WARMUP = 2
#: Images whose stages are timed one by one, and how often each: the fastest counts.
_SAMPLES, _REPEATS = 48, 3
#: Edge of the image that decoding is timed with: it is resized by picking pixels, which takes next to no time.
_PICKED = 32
#: Readers that compute for less than this share of the time are said to wait for something else.
_BUSY = 0.7


def bench_loader(
    index: Index, spec: PreprocessSpec, config: Config, decoder: Decoder, *, steps: int, needed: float | None
) -> DataBench:
    """Return rates and times; `needed` are the images a second that a training takes, for the verdict.

    ``stages_ms`` are milliseconds an image: of one core up to ``augment``, of the main process for ``hand_over`` (to
    ask for batches and to take them; pixels are not copied) and ``wait`` (for readers). Where images grow in the course
    of a training, they are read at their final size.
    """
    n, workers = config.train.batch_size, loader_workers(config)
    epochs = -(-(steps + _WARMUP) * n // len(index))
    order = np.concatenate([epoch_permutation(len(index), 1, epoch) for epoch in range(epochs)])
    tasks = [Task.of(0, order[i * n : (i + 1) * n]) for i in range(steps + _WARMUP)]
    stages = _stages(index, spec, config, decoder, order[: min(_SAMPLES, len(index))].tolist())
    with Loader(
        index, spec, config.augment, seed=1, workers=workers, prefetch=config.data.prefetch,
        bad_images=config.data.bad_images, decoder=decoder,
    ) as loader:  # fmt: skip
        batches = loader.batches(tasks)
        for _ in range(_WARMUP):
            next(batches)
        cpu, waited, started = loader.cpu_s, loader.wait_s, time.perf_counter()
        images = sum(len(batch) for batch in batches)
        seconds = time.perf_counter() - started
        cpu, waited = loader.cpu_s - cpu, loader.wait_s - waited
    if workers == 0:  # everything is the main process's
        cpu = seconds
    else:
        stages |= {"hand_over": 1e3 * (seconds - waited) / images, "wait": 1e3 * waited / images}
    rate = images / seconds
    return DataBench(
        label=f"data {decoder.name}", images_per_s=rate, batch_size=n, image_size=spec.size,
        peak_memory_mib=peak_memory_mib(), processor=processor(),
        versions=versions(["resnext-core", "numpy", "pillow"]), date=now(), command=command_line(),
        images_per_core_s=images / cpu, decoder=decoder.name, workers=workers, readers=loader.readers,
        failed=len(loader.failures), stages_ms=stages,
        batches_mib=most_batches(n, workers, config.data.prefetch) * n * spec.size**2 * 3 / 2**20,
        training_images_per_s=needed, verdict=verdict(rate, images / cpu, needed, workers),
    )  # fmt: skip


def images_of_run(path: Path) -> float:
    """Return the images a second that the training of a run computes when it does not wait for any.

    Raises UsageError where the run has no record of a training.
    """
    records = [r for r in RunFolder.open(path).read_records() if isinstance(r, Train)]
    steady = records[1:] or records  # the first record has the compilation in it
    seconds = sum(record.compute_s for record in steady)
    if not seconds:
        raise UsageError(f"{path} has no record of training steps; use --images-per-second N")
    return sum(record.images for record in steady) / seconds


def verdict(rate: float, per_core: float, needed: float | None, workers: int) -> str:
    """Return what `rate` images/s of so many workers, `per_core` a core, mean for a training that takes `needed`."""
    can = f"can feed {rate:.0f} images/s"
    used = rate / per_core
    if used < _BUSY * workers:
        can += f", with {used:.1f} cores' time for {workers} readers: the machine does other work, or the disk is slow"
    if needed is None:
        return f"{can}; compare with a training: --run RUN, or --images-per-second N"
    takes = f"{can}; your training takes {needed:.0f}"
    if rate >= needed:
        return f"{takes}: it will not wait for images"
    return (
        f"{takes}: it will wait for images {100 * (1 - rate / needed):.0f} % of the time; "
        f"{math.ceil(needed / per_core)} readers would do, on as many cores"
    )


def _stages(
    index: Index, spec: PreprocessSpec, config: Config, decoder: Decoder, samples: Sequence[int]
) -> dict[str, float]:
    """Return the mean milliseconds an image of each stage, in this thread."""
    reader, opened = index.source.reader(), decoder.open()
    found: list[dict[str, float]] = []
    for sample in samples:
        locator = index.source.locator(sample)
        with suppress(BadImage):
            read = _fastest(partial(reader.read, locator))
            found.append({"read": read} | _of_content(reader.read(locator), sample, spec, config, opened))
    if not found:
        raise DataError(f"none of {counted(len(samples), 'image')} can be read; see resnext-run data scan")
    return {name: float(np.mean([times[name] for times in found])) for name in found[0]}


def _of_content(
    content: Content, sample: int, spec: PreprocessSpec, config: Config, decoder: ImageDecoder
) -> dict[str, float]:
    """Return the milliseconds that drawing, decoding, resizing and augmenting an image take.

    Decoding is what the plan takes without operations and with pixels picked instead of resized, resizing what the
    plan without operations takes more than that, and augmenting the rest.
    """
    plans: list[Plan] = []

    def draw(width: int, height: int) -> Plan:
        plans.append(train_plan(width, height, spec, config.augment, sample_rng(1, 0, sample)))
        return plans[-1]

    _execute(decoder, content, draw, spec.size)
    whole = plans[-1]
    bare = dataclasses.replace(whole, flip=False, operations=())
    picked = dataclasses.replace(bare, size=_PICKED, filter="plain")

    def executed(plan: Plan) -> float:
        return _fastest(lambda: _execute(decoder, content, lambda width, height: plan, plan.size))

    decode, resized, all_of_it = executed(picked), executed(bare), executed(whole)
    return {
        "draw": _fastest(partial(draw, *map(round, (whole.box.width, whole.box.height)))), "decode": decode,
        "resize": max(resized - decode, 0.0), "augment": max(all_of_it - resized, 0.0),
    }  # fmt: skip


def _execute(decoder: ImageDecoder, content: Content, draw: Callable[[int, int], Plan], size: int) -> None:
    """Decode as the readers do: what the decoder does not support is Pillow's."""
    out, remarks = np.empty((size, size, 3), np.uint8), list[str]()
    try:
        decoder.training(content, "an image", draw, out, remarks)
    except NotSupported:
        PillowDecoder().training(content, "an image", draw, out, remarks)


def _fastest(work: Callable[[], object]) -> float:
    """Return the milliseconds of the fastest of several calls."""
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1e3 * min(times)
