"""What a benchmark found: the records of ``resnext-run bench``, and how they are read again."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from resnext_core.errors import DataError, quoted, shown
from resnext_core.files.plain import parse_strict_json, read_text
from resnext_core.jobs.result import Result
from resnext_core.processor import Processor

#: Name and version of the schema; a change after which older readers would misread a file gets another number.
SCHEMA = "resnext-bench/1"
#: Bytes of a file of results that is read: some thousand records.
_MOST = 64 << 20
#: Rates (images/s) and times (ms) lie between these; others are a damaged file, and their ratios may not be numbers.
_RANGE = (1e-9, 1e12)
_ABOVE = "faster than the peak: that was measured while the machine did other work, or is set too low"


@dataclass(frozen=True, kw_only=True)
class BenchResult(Result):
    """What every benchmark says: what was timed, the rate, and where.

    `label` names the row in tables and comparisons. `images_per_s` is by the median step, in ``data`` over all images.
    `peak_memory_mib` is the largest resident memory of the process. `date` is UTC in ISO 8601, `versions` are those of
    Python, the system and the packages, `command` the command line.
    """

    bench: ClassVar[str] = ""

    label: str
    images_per_s: float
    batch_size: int
    image_size: int
    peak_memory_mib: int
    processor: Processor
    versions: Mapping[str, str]
    date: str
    command: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        found = {"schema": SCHEMA, "bench": self.bench} | dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


@dataclass(frozen=True, kw_only=True)
class StepsResult(BenchResult):
    """Steps of a training, or batches of an evaluation, of random images in memory.

    `format` is the ending of the file that was served (``.safetensors`` for weights, also for weights in memory), and
    `file` its path. `device` and `threads` are what the backend says that its options compute with, `precision` the
    number format of the products; each is None where it is not known. `options` are those of the backend that differ
    from its defaults. `digest` is that of the weights, None where they were random.

    Times are milliseconds a step: percentiles linear between the `steps` times, their mean and extremes, and
    `ms_interval`, a 95 % interval of the median (:func:`median_interval`; None below 6 steps). `rounds_ms` are the
    medians of the turns of ``bench all``. `warmup` steps were not counted.

    `macs` are the multiply-accumulates of a forward pass of one image, and a training step counts as three.
    `gflop_per_s` is 2 · `macs` · images/s, and `mfu` its share of `peak_gflop_per_s`, the most that a matrix product
    reached; `peak_source` says how that is known. None where nobody measured it in this precision. `peak_device_mib` is
    the largest memory in use on the device, in training, where the engine measures it.
    """

    backend: str
    format: str
    file: str | None = None
    device: str | None = None
    threads: int | None = None
    precision: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    variant: str
    classes: int
    digest: str | None = None
    warmup: int
    steps: int
    ms_p50: float
    ms_p90: float
    ms_p99: float
    ms_mean: float
    ms_min: float
    ms_max: float
    ms_interval: tuple[float, float] | None = None
    rounds_ms: tuple[float, ...] | None = None
    macs: int
    gflop_per_s: float
    peak_gflop_per_s: float | None = None
    peak_source: str | None = None
    mfu: float | None = None
    peak_device_mib: int | None = None
    notes: tuple[str, ...] = ()

    def against(self, peak_gflop_per_s: float | None, source: str | None) -> StepsResult:
        """Return the same with a peak, and the share of it that was reached."""
        if peak_gflop_per_s is None:
            return dataclasses.replace(self, peak_gflop_per_s=None, peak_source=None, mfu=None)
        notes, share = self.notes, self.gflop_per_s / peak_gflop_per_s
        if share > 1:
            notes += (_ABOVE,)
        return dataclasses.replace(
            self, notes=notes, peak_gflop_per_s=peak_gflop_per_s, peak_source=source, mfu=share
        )

    def __str__(self) -> str:
        spread = "" if self.ms_interval is None else " (95 % {:.4g} to {:.4g})".format(*self.ms_interval)
        lines = [
            f"{self.bench} {self.label}: {in_short(self.images_per_s)} images/s; {self.variant}, {self.image_size} px, "
            f"batch {self.batch_size}, {self.precision or 'unknown precision'}",
            f"step {self.ms_p50:.4g} ms{spread}, p90 {self.ms_p90:.4g}, p99 {self.ms_p99:.4g}, "
            f"{self.ms_min:.4g} to {self.ms_max:.4g}; {self.steps} steps after {self.warmup}",
            f"{self.gflop_per_s:.4g} GFLOP/s, {_peak_words(self)}",
            f"memory {self.peak_memory_mib} MiB"
            + (f", device {self.peak_device_mib} MiB" if self.peak_device_mib is not None else ""),
            f"{self.processor}" + (f"; {self.threads} threads" if self.threads is not None else ""),
        ]
        return "\n".join(lines)  # the notes of a model were told when it was loaded


@dataclass(frozen=True, kw_only=True)
class TrainBench(StepsResult):
    """Whole optimizer steps of a training."""

    bench: ClassVar[str] = "train"


@dataclass(frozen=True, kw_only=True)
class EvalBench(StepsResult):
    """Forward passes, from uint8 images to logits."""

    bench: ClassVar[str] = "eval"


@dataclass(frozen=True, kw_only=True)
class DataBench(BenchResult):
    """Reading, decoding and augmenting images; see :func:`resnext_core.jobs.bench_data.bench_loader`."""

    bench: ClassVar[str] = "data"

    images_per_core_s: float
    decoder: str
    workers: int
    readers: str
    failed: int
    stages_ms: Mapping[str, float]
    batches_mib: float
    training_images_per_s: float | None = None
    verdict: str

    def __str__(self) -> str:
        numbers = f"images_per_s {self.images_per_s:.4g}, images_per_core_s {self.images_per_core_s:.4g}"
        counts = f"batch_size {self.batch_size}, image_size {self.image_size}, failed {self.failed}"
        return (
            f"bench data, {numbers}, decoder {self.decoder}, workers {self.workers}, readers {self.readers}, {counts}, "
            f"batches_mib {self.batches_mib:.4g}, peak_memory_mib {self.peak_memory_mib}\n{self.verdict}"
        )


KINDS: Mapping[str, type[BenchResult]] = {cls.bench: cls for cls in (TrainBench, EvalBench, DataBench)}


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A row that could not be timed, and why, in one line."""

    label: str
    reason: str


def median_interval(samples: typing.Sequence[float]) -> tuple[float, float] | None:
    """Return a distribution-free 95 % confidence interval of the median; None below 6 samples, where there is none.

    Its ends are the order statistics k and n + 1 - k for the largest k with P(Binomial(n, 1/2) < k) <= 0.025
    (David and Nagaraja, Order Statistics, 3rd edition, section 7.1). It takes the samples for independent.
    """
    n, below, k = len(samples), 0.0, 0
    while below + (share := math.exp(_log_binomial(n, k) - n * math.log(2))) <= 0.025:
        below, k = below + share, k + 1
    if k == 0:
        return None
    ordered = sorted(samples)
    return ordered[k - 1], ordered[n - k]


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def in_short(number: float) -> str:
    """Return a number with about four significant digits and without a power of ten."""
    return f"{number:.4g}" if abs(number) < 1e4 else f"{number:.0f}"


def _peak_words(result: StepsResult) -> str:
    if result.mfu is None or result.peak_gflop_per_s is None:
        return "peak not measured"
    known = f"{100 * result.mfu:.3g} % of a peak of {result.peak_gflop_per_s:.4g} ({result.peak_source})"
    return f"{known}; {_ABOVE}" if result.mfu > 1 else known


def read_results(path: Path) -> tuple[BenchResult, ...]:
    """Read what ``bench ... --json`` printed: one record, a list of them, one a line, or that of ``bench all``.

    DataError, in one line, where the file is anything else.
    """
    try:
        text = read_text(path, _MOST)
        try:
            found = parse_strict_json(text)
        except ValueError:
            found = [parse_strict_json(line) for line in text.splitlines() if line.strip()]
        if (
            isinstance(found, dict)
            and found.get("schema") == SCHEMA
            and isinstance(found.get("results"), list)
        ):
            found = found["results"]
        records = found if isinstance(found, list) else [found]
        if not records:
            raise ValueError("it has no record")
        return tuple(from_dict(record) for record in records)
    except (ValueError, DataError) as error:
        raise DataError(f"{shown(path)} is no result of resnext-run bench --json: {error}") from error


def from_dict(found: Any) -> BenchResult:
    """Return the record of what :meth:`BenchResult.to_dict` gives; ValueError, in one line, for anything else.

    Keys that are not known are left out: a later version may add some.
    """
    if not isinstance(found, dict) or "schema" not in found:
        raise ValueError("it has no key 'schema'")
    if found["schema"] != SCHEMA:
        raise ValueError(f"its schema is {quoted(found['schema'])}, this version reads {SCHEMA}")
    kind = found.get("bench")
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ValueError(f"bench is {quoted(kind)}, not one of {', '.join(KINDS)}")
    hints = typing.get_type_hints(cls)
    given = {}
    for field in dataclasses.fields(cls):
        if field.name not in found:
            raise ValueError(f"the key '{field.name}' is missing")
        given[field.name] = _typed(found[field.name], hints[field.name], field.name)
    result = cls(**given)
    _check_range("images_per_s", result.images_per_s)
    if isinstance(result, StepsResult):
        low, high = result.ms_interval or (result.ms_p50, result.ms_p50)
        for name, values in (
            ("ms_p50", (result.ms_p50,)), ("ms_interval", (low, high)), ("rounds_ms", result.rounds_ms or ()),
        ):  # fmt: skip
            _check_range(name, *values)
        if low > high:
            raise ValueError("'ms_interval' begins after its end")
    return result


def _check_range(name: str, *values: float) -> None:
    least, most = _RANGE
    for value in values:
        if not least <= value <= most:
            raise ValueError(f"'{name}' cannot be {value:g}")


def _typed(value: Any, hint: Any, where: str) -> Any:
    """Return a JSON value as a field's type; ValueError where it is of another one."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _typed(value, args[0], where)
    if origin is tuple and isinstance(value, list):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) == len(value):
            return tuple(_typed(one, kind, where) for one, kind in zip(value, kinds, strict=True))
    elif isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
        return {key: _typed(one, args[1], f"{where}.{key}") for key, one in value.items()}
    elif hint is Processor and isinstance(value, dict):
        hints = typing.get_type_hints(Processor)
        if hints.keys() <= value.keys():
            return Processor(**{name: _typed(value[name], kind, where) for name, kind in hints.items()})
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif hint is Any or (isinstance(hint, type) and type(value) is hint):
        return value
    raise ValueError(f"'{shown(where)}' cannot be {shown(json.dumps(value))}")
