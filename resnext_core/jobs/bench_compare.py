"""``bench compare``: results of two runs side by side, their ratios, and everything else that differs between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnext_core.errors import UsageError, shown
from resnext_core.jobs.bench_ratio import of_runs
from resnext_core.jobs.bench_record import BenchResult, StepsResult, read_results
from resnext_core.jobs.result import Result

#: What makes a ratio of rates meaningless where it differs.
_SAME = ("variant", "image_size", "classes")
#: What else a pair is asked for, in this order.
_TOLD = (
    "backend", "format", "precision", "options", "device", "threads", "batch_size", "digest", "decoder", "workers",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A pair: rates of both files, `ratio` of the second over the first, and its 95 % interval where there is one."""

    label: str
    before: float
    after: float
    ratio: float
    interval: tuple[float, float] | None
    differs: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return dict(vars(self)) | {
            "differs": list(self.differs),
            "interval": None if self.interval is None else list(self.interval),
        }


@dataclass(frozen=True, kw_only=True)
class CompareResult(Result):
    """The pairs, what differs for all of them, and the labels that only one file has."""

    pairs: tuple[Compared, ...]
    differs: tuple[str, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "pairs": [pair.to_dict() for pair in self.pairs], "differs": list(self.differs),
            "only_before": list(self.only_before), "only_after": list(self.only_after),
        }  # fmt: skip


def compare(before: Path, after: Path, *, force: bool = False) -> CompareResult:
    """Pair the results in two files by label; a single result in each is a pair whatever the labels.

    `force` compares other networks and image sizes too, and says so. Raises DataError for a file that holds no result,
    UsageError where nothing can be paired, or a pair means nothing.
    """
    first, second = read_results(before), read_results(after)
    if len(first) == len(second) == 1:
        pairs = [(first[0], second[0])]
    else:
        ours, theirs = _by_label(first, before), _by_label(second, after)
        pairs = [(ours[label], theirs[label]) for label in ours if label in theirs]
    if not pairs:
        raise UsageError(
            f"{shown(before)} and {shown(after)} have no row in common: {_some(first)} and {_some(second)}"
        )
    for one, other in pairs:
        _check(one, other, before, after, force=force)
    used = {id(result) for pair in pairs for result in pair}
    everywhere = [
        line for line in _environment(*pairs[0]) if all(line in _environment(*pair) for pair in pairs[1:])
    ]
    return CompareResult(
        pairs=tuple(_compared(*pair, everywhere) for pair in pairs),
        differs=tuple(everywhere),
        only_before=tuple(r.label for r in first if id(r) not in used),
        only_after=tuple(r.label for r in second if id(r) not in used),
    )


def _by_label(results: tuple[BenchResult, ...], path: Path) -> dict[str, BenchResult]:
    found = {result.label: result for result in results}
    if len(found) < len(results):
        twice = next(r.label for r in results if sum(o.label == r.label for o in results) > 1)
        raise UsageError(
            f"{shown(path)} has several results labelled '{shown(twice)}', so none can be paired"
        )
    return found


def _check(one: BenchResult, other: BenchResult, before: Path, after: Path, *, force: bool) -> None:
    """Refuse a pair whose ratio means nothing."""
    if one.bench != other.bench:
        raise UsageError(
            f"{shown(before)} is of bench {one.bench} and {shown(after)} of bench {other.bench}: their rates have "
            "nothing in common"
        )
    unlike = [name for name in _SAME if getattr(one, name, None) != getattr(other, name, None)]
    if unlike and not force:
        words = ", ".join(f"{name} {_at(one, name)} and {_at(other, name)}" for name in unlike)
        raise UsageError(f"{shown(one.label)}: {words}: not the same work; --force compares it all the same")


def _compared(one: BenchResult, other: BenchResult, everywhere: list[str]) -> Compared:
    ratio, interval = of_runs(other, one)
    label = one.label if one.label == other.label else f"{one.label} -> {other.label}"
    own = [line for line in _environment(one, other) if line not in everywhere]
    own += _peaks(one, other)
    own += [
        f"{name}: {_at(one, name)} -> {_at(other, name)}"
        for name in (*_SAME, *_TOLD)
        if getattr(one, name, None) != getattr(other, name, None)
    ]
    return Compared(
        label=label, before=one.images_per_s, after=other.images_per_s, ratio=ratio, interval=interval,
        differs=tuple(own),
    )  # fmt: skip


def _environment(one: BenchResult, other: BenchResult) -> Iterator[str]:
    """Yield a line for each difference of machine and software."""
    for name in ("name", "cores", "instructions"):
        ours, theirs = getattr(one.processor, name), getattr(other.processor, name)
        if ours != theirs:
            yield f"processor {name}: {shown(ours)} -> {shown(theirs)}"
    for name in dict.fromkeys([*one.versions, *other.versions]):
        ours, theirs = one.versions.get(name, "none"), other.versions.get(name, "none")
        if ours != theirs:
            yield f"{shown(name)}: {shown(ours)} -> {shown(theirs)}"


def _at(result: BenchResult, name: str) -> str:
    value = getattr(result, name, None)
    if isinstance(value, dict):
        return ",".join(f"{shown(k)}={shown(v)}" for k, v in value.items()) or "defaults"
    return "none" if value is None else shown(value)


def _some(results: tuple[BenchResult, ...]) -> str:
    labels = [shown(result.label) for result in results]
    return ", ".join(labels[:3]) + (", ..." if len(labels) > 3 else "")


def _peaks(one: BenchResult, other: BenchResult) -> Iterator[str]:
    """Yield a line where peaks measured the same way are more than a tenth apart: the machine was not the same."""
    if (
        isinstance(one, StepsResult)
        and isinstance(other, StepsResult)
        and one.peak_source == other.peak_source
    ):
        ours, theirs = one.peak_gflop_per_s, other.peak_gflop_per_s
        if ours is not None and theirs is not None and max(ours, theirs) > 1.1 * min(ours, theirs):
            yield f"measured peak: {ours:.4g} -> {theirs:.4g} GFLOP/s"
