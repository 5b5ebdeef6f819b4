"""Timing of steps: warm-up by observation, and the record that the times come to."""

from __future__ import annotations

import dataclasses
import datetime
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnext_core.errors import counted, one_line
from resnext_core.interfaces import Backend, Batch, Compute
from resnext_core.jobs.bench_peak import processor_peak
from resnext_core.jobs.bench_record import EvalBench, StepsResult, TrainBench, median_interval
from resnext_core.jobs.environment import command_line, versions
from resnext_core.model.spec import ModelSpec
from resnext_core.plugins import load_plugins
from resnext_core.processor import processor
from resnext_core.serving.metrics import percentiles

#: Warming up ends when so many more steps brought none that was faster by this share than the fastest before.
_STEADY, _FASTER = 3, 0.03
#: It ends after so many steps or seconds at the latest.
_MOST_STEPS, _MOST_SECONDS = 30, 15.0


def warm_up(step: Callable[[], float], fixed: int | None = None) -> int:
    """Call `step`, which returns its seconds, until its time no longer falls; return how often.

    It no longer falls when three steps in a row were none of them 3 % faster than the fastest before; after 30 steps or
    15 seconds that is not waited for. `fixed` is the number of steps to take instead.
    """
    times: list[float] = []
    while len(times) < (_MOST_STEPS if fixed is None else fixed):
        times.append(step())
        if fixed is None and (sum(times) > _MOST_SECONDS or _settled(times)):
            break
    return len(times)


def _settled(times: Sequence[float]) -> bool:
    before, after = times[:-_STEADY], times[-_STEADY:]
    return bool(before) and min(after) >= (1 - _FASTER) * min(before)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What was timed, but the times: the model, and what computes it; see :class:`StepsResult` for the fields."""

    label: str
    backend: Backend
    format: str
    file: str | None = None
    options: Any = None
    precision: str | None = None
    spec: ModelSpec
    digest: str | None = None
    batch_size: int
    notes: tuple[str, ...] = ()

    @property
    def compute(self) -> Compute:
        """What the backend computes with; nothing known where it does not say."""
        return compute_of(self.backend, self.options)[0]

    def result(
        self,
        kind: type[TrainBench] | type[EvalBench],
        times: Sequence[float],
        *,
        warmup: int,
        rounds: Sequence[Sequence[float]] | None = None,
        peak_device_bytes: int | None = None,
        command: str | None = None,
    ) -> StepsResult:
        """Return the record of steps that took `times` seconds; `rounds` are the same by turns. It has no peak yet."""
        spec, n, compute = self.spec, self.batch_size, self.compute
        ms = percentiles(times)
        rate, passes = n / (ms["p50"] / 1e3), 3 if kind is TrainBench else 1
        interval = median_interval(times)
        origin = load_plugins().origins.get(("backend", self.backend.id))
        packages = ["resnext-core", *([origin] if origin else []), "numpy", *self.backend.packages]
        return kind(
            label=self.label, images_per_s=rate, batch_size=n, image_size=spec.image_size,
            peak_memory_mib=peak_memory_mib(), processor=processor(), versions=versions(packages), date=now(),
            command=command or command_line(), backend=self.backend.id, format=self.format, file=self.file,
            device=compute.device or None, threads=compute.threads, precision=self.precision,
            options=stated_options(self.options), variant=spec.variant, classes=spec.num_classes,
            digest=self.digest, warmup=warmup, steps=len(times), ms_p50=ms["p50"], ms_p90=ms["p90"], ms_p99=ms["p99"],
            ms_mean=ms["mean"], ms_min=1e3 * min(times), ms_max=1e3 * max(times),
            ms_interval=None if interval is None else (1e3 * interval[0], 1e3 * interval[1]),
            rounds_ms=None if rounds is None else tuple(1e3 * float(np.median(turn)) for turn in rounds),
            macs=spec.macs, gflop_per_s=2 * passes * spec.macs * rate / 1e9,
            notes=(*self.notes, *compute_of(self.backend, self.options)[1]),
            peak_device_mib=None if peak_device_bytes is None else round(peak_device_bytes / 2**20),
        )  # fmt: skip

    def with_peak(self, result: StepsResult, given_tflops: float | None = None) -> StepsResult:
        """Return `result` with the peak that the user gave, else one that is measured now, else without."""
        if given_tflops is not None:
            return result.against(1000 * given_tflops, "--peak-tflops")
        try:
            found, source = measured_peak(self.compute, self.precision)
        except Exception as error:  # of a plugin: what was timed is not lost for it
            failed = f"the peak could not be measured: {type(error).__name__}: {one_line(error, 300)}"
            result, found, source = dataclasses.replace(result, notes=(*result.notes, failed)), None, None
        return result.against(found, source)


def compute_of(backend: Backend, options: Any) -> tuple[Compute, tuple[str, ...]]:
    """Return what `backend` says that it computes with, and a note where it fails to say."""
    unknown = Compute(device="")
    if backend.compute is None:
        return unknown, ()
    try:
        return backend.compute(options), ()
    except Exception as error:  # of a plugin: what was timed is not lost for it
        why = f"{type(error).__name__}: {one_line(error, 300)}"
        return unknown, (f"backend '{backend.id}' does not say what it computes with: {why}",)


def measured_peak(compute: Compute, precision: str | None) -> tuple[float | None, str | None]:
    """Return the peak in GFLOP/s and how it was measured, or None twice where nobody can."""
    if precision is None:
        return None, None
    if compute.peak is not None:
        flops = compute.peak(precision)
        source = f"measured: matrix product of the backend in {precision} on {compute.device}"
    elif compute.device == "cpu" and compute.threads is not None:
        flops = processor_peak(precision, compute.threads)
        source = (
            f"measured: matrix product of NumPy in {precision}, up to {counted(compute.threads, 'thread')}"
        )
    else:
        return None, None
    return (None, None) if flops is None else (flops / 1e9, source)


def stated_options(options: Any) -> dict[str, Any]:
    """Return the options of a backend that differ from its defaults, as JSON types."""
    if options is None:
        return {}
    usual = type(options)()
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value != getattr(usual, name)
    }


def row_label(backend: Backend, format: str, options: Mapping[str, Any]) -> str:
    """Return the name of a row: backend, format, and the options that differ from the defaults."""
    return " ".join([backend.id, format, *(f"{name}={value}" for name, value in options.items())])


def peak_memory_mib() -> int:
    """Return the largest resident memory of this process, or of a child that has ended where that had more."""
    unit = 2**20 if sys.platform == "darwin" else 1024
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return round(max(resource.getrusage(kind).ru_maxrss for kind in kinds) / unit)


def now() -> str:
    """Return the time in UTC, ISO 8601 to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def random_batch(n: int, size: int, classes: int) -> Batch:
    """Return a batch of random images."""
    rng = np.random.default_rng(0)
    return Batch(
        images=rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8),
        labels=rng.integers(0, classes, n).astype(np.int32),
        index=np.arange(n),
        valid=np.ones(n, bool),
    )
