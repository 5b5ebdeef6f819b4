"""How many times as fast: ratios of rates, and how far they can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from resnext_core.jobs.bench_record import BenchResult, StepsResult


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Images/s of one result over those of another, and a range; `low` and `high` are None where none is known."""

    median: float
    low: float
    high: float


def of_rounds(row: StepsResult, base: StepsResult) -> Ratio:
    """Return images/s of `row` over `base`, which had turns in the same rounds: the median, least and greatest of them.

    What slows the machine for a while slows both of a round.
    """
    rounds = zip(base.rounds_ms or (base.ms_p50,), row.rounds_ms or (row.ms_p50,), strict=True)
    found = [theirs / ours * row.batch_size / base.batch_size for theirs, ours in rounds]
    return Ratio(median=float(np.median(found)), low=min(found), high=max(found))


def of_runs(after: BenchResult, before: BenchResult) -> tuple[float, tuple[float, float] | None]:
    """Return images/s of `after` over `before`, of two runs, and a 95 % interval from those of their median steps.

    The interval is that of the difference of two logarithms whose own intervals are known (the method of variance
    estimates recovery: Zou and Donner, Statistics in Medicine 27 (2008) 1693-1702). It knows how much steps vary within
    a run and nothing of how much runs differ; None where one of the two has no interval.
    """
    ratio = after.images_per_s / before.images_per_s
    if not isinstance(after, StepsResult) or not isinstance(before, StepsResult):
        return ratio, None
    if after.ms_interval is None or before.ms_interval is None:
        return ratio, None
    # a rate is batch / ms: it is high where the time is low
    (up, down), (base_up, base_down) = _logs(after), _logs(before)
    return ratio, (ratio * math.exp(-math.hypot(down, base_up)), ratio * math.exp(math.hypot(up, base_down)))


def _logs(result: StepsResult) -> tuple[float, float]:
    """Return how far the logarithm of a rate may lie above and below that of the median step."""
    assert result.ms_interval is not None
    low, high = result.ms_interval
    return math.log(result.ms_p50 / low), math.log(high / result.ms_p50)
