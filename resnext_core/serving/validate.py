"""Validate an artefact: its logits, classes and speed against those of the weights it was made from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.errors import DataError, counted
from resnext_core.interfaces import Batch, Predictor
from resnext_core.serving.metrics import paired_interval, wilson_interval

Array = NDArray[Any]

#: Largest |difference| of an artefact's logits, relative to the largest |logit| of its source.
TOLERANCE = 1e-4
#: In few bits logits differ by more than says anything. There the first guesses count: the least share of images with
#: the same one, and the largest drop of top-1 in percentage points.
FEW_BITS_AGREEMENT, FEW_BITS_DROP = 0.99, 0.3


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Percentiles of the time of one call, in milliseconds, over `batches` timed calls."""

    batches: int
    batch_p50: float
    batch_p90: float
    batch_p99: float
    image_p50: float
    image_p90: float
    image_p99: float


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """What was compared and how far apart the two are.

    `images` counts rows marked valid. Differences are of logits, over rows finite on both sides (NaN when
    there is none); `max_rel_diff` is max |diff| / max |source logit| over the whole set. `nonfinite` counts
    rows with NaN or infinity on either side: each is a disagreement too. `disagreements` counts rows whose
    largest logit is of another class, `top1_agreement` is the share without. `top1_artefact` and
    `top1_source` are shares of the `labelled` rows, None without labels. `drop` is by how many percentage points
    top-1 falls from the source to the artefact. Intervals are of 95 %: Wilson's of the agreement, and of the drop
    the one of paired shares. `passed` means: every row finite, max_rel_diff ≤ tolerance, top1_agreement ≥
    min_agreement and drop ≤ max_drop, where those are not None; `failures` says what does not hold.
    """

    images: int
    nonfinite: int
    max_abs_diff: float
    mean_abs_diff: float
    max_rel_diff: float
    disagreements: int
    top1_agreement: float
    agreement_interval: tuple[float, float]
    labelled: int
    top1_artefact: float | None
    top1_source: float | None
    drop: float | None
    drop_interval: tuple[float, float] | None
    latency_artefact: Latency
    latency_source: Latency
    tolerance: float | None
    min_agreement: float
    max_drop: float | None
    failures: tuple[str, ...]
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; numbers that JSON has no form for (NaN, infinity) become None."""
        plain: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Latency):
                value = dict(vars(value))
            elif isinstance(value, float) and not math.isfinite(value):
                value = None
            elif isinstance(value, tuple):
                value = list(value)
            plain[name] = value
        return plain

    def line(self) -> str:
        """Return one line for people."""
        tolerance = "" if self.tolerance is None else f" (tolerance {self.tolerance:g})"
        agreed = f"top-1 agrees on {self.images - self.disagreements}"
        if self.min_agreement < 1:
            low, high = self.agreement_interval
            agreed += f" = {self.top1_agreement:.2%} (95 % interval {low:.2%} to {high:.2%})"
        words = [
            f"{'passed' if self.passed else 'FAILED'}: {counted(self.images, 'image')}",
            f"max |diff| {self.max_abs_diff:.3g} = {self.max_rel_diff:.3g} of max |logit|{tolerance}",
            f"{agreed} (needs {self.min_agreement:.2%})",
        ]
        if self.nonfinite:
            words.append(f"{counted(self.nonfinite, 'image')} with NaN or infinite logits")
        if self.top1_artefact is not None and self.top1_source is not None:
            words.append(f"top1 {self.top1_artefact:.2%} (source {self.top1_source:.2%})")
        if self.max_drop is not None and self.drop is not None and self.drop_interval is not None:
            low, high = self.drop_interval
            words.append(
                f"drop {self.drop:.2f} points (95 % interval {low:.2f} to {high:.2f}; allowed {self.max_drop:g})"
            )
        words.append(
            f"{self.latency_artefact.image_p50:.3g} ms an image (source {self.latency_source.image_p50:.3g})"
        )
        return ", ".join(words)


def validate(
    artefact: Predictor,
    source: Predictor,
    batches: Iterable[Batch],
    *,
    tolerance: float | None = TOLERANCE,
    min_agreement: float = 1.0,
    max_drop: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> ValidationResult:
    """Run both predictors on `batches` and compare them row by row.

    Rows with `valid` False are computed but not counted. The default asks every top-1 to agree exactly: a
    near-tie that flips is reported as the disagreement it is, and lowering `min_agreement` is the caller's
    decision. `max_drop` is in percentage points of top-1, and holds where there are labels. The first batch is
    warm-up for the latencies when there are several. `progress` is called after each batch with the number of images
    compared so far.

    Raises DataError when there is no valid image or when the two do not have the same classes.
    """
    totals, artefact_clock, source_clock = _Totals(), _Clock(), _Clock()
    for batch in batches:
        if not batch.valid.any():
            continue
        got = artefact_clock.time(artefact, batch)
        want = source_clock.time(source, batch)
        if got.shape != want.shape:
            raise DataError(f"the artefact returns {got.shape} logits, its source {want.shape}")
        totals.add(got[batch.valid], want[batch.valid], batch.labels[batch.valid])
        if progress is not None:
            progress(totals.images)
    if not totals.images:
        raise DataError("no image to validate on; use a data set with at least one readable image")
    return totals.result(artefact_clock.latency(), source_clock.latency(), tolerance, min_agreement, max_drop)


@dataclass(kw_only=True)
class _Clock:
    """The times of one predictor's calls: (milliseconds, rows)."""

    calls: list[tuple[float, int]] = field(default_factory=list)

    def time(self, predictor: Predictor, batch: Batch) -> Array:
        start = time.perf_counter()
        logits = predictor.logits(batch.images)
        self.calls.append(((time.perf_counter() - start) * 1e3, len(batch)))
        if logits.ndim != 2 or len(logits) != len(batch):
            raise DataError(f"a predictor returned {logits.shape} logits for {counted(len(batch), 'image')}")
        return logits

    def latency(self) -> Latency:
        calls = np.array(self.calls[1:] or self.calls)
        batch = np.percentile(calls[:, 0], (50, 90, 99)).tolist()
        image = np.percentile(calls[:, 0] / calls[:, 1], (50, 90, 99)).tolist()
        return Latency(
            batches=len(calls),
            batch_p50=batch[0],
            batch_p90=batch[1],
            batch_p99=batch[2],
            image_p50=image[0],
            image_p90=image[1],
            image_p99=image[2],
        )


@dataclass(kw_only=True)
class _Totals:
    """Running sums over the rows compared so far."""

    images: int = 0
    finite: int = 0
    agreed: int = 0
    values: int = 0
    sum_diff: float = 0.0
    max_diff: float = 0.0
    max_source: float = 0.0
    labelled: int = 0
    correct_artefact: int = 0
    correct_source: int = 0
    lost: int = 0
    gained: int = 0

    def add(self, got: Array, want: Array, labels: Array) -> None:
        """Count the rows of float32 `got` and `want` (N, classes) with int32 `labels` (N,), -1 unknown."""
        finite = np.isfinite(got).all(axis=1) & np.isfinite(want).all(axis=1)
        got_top1, want_top1 = got.argmax(axis=1), want.argmax(axis=1)
        self.images += len(got)
        self.finite += int(finite.sum())
        self.agreed += int((finite & (got_top1 == want_top1)).sum())
        if finite.any():
            diff = np.abs(got[finite].astype(np.float64) - want[finite])
            self.values += diff.size
            self.sum_diff += float(diff.sum())
            self.max_diff = max(self.max_diff, float(diff.max()))
            self.max_source = max(self.max_source, float(np.abs(want[finite]).max()))
        known = labels >= 0
        self.labelled += int(known.sum())
        # argmax points at a NaN: such a row is right for nobody.
        right = known & np.isfinite(got).all(axis=1) & (got_top1 == labels)
        right_before = known & np.isfinite(want).all(axis=1) & (want_top1 == labels)
        self.correct_artefact += int(right.sum())
        self.correct_source += int(right_before.sum())
        self.lost += int((right_before & ~right).sum())
        self.gained += int((right & ~right_before).sum())

    def result(
        self,
        artefact: Latency,
        source: Latency,
        tolerance: float | None,
        min_agreement: float,
        max_drop: float | None,
    ) -> ValidationResult:
        rel_diff = self._rel_diff()
        agreement = self.agreed / self.images
        nonfinite = self.images - self.finite
        drop, interval = None, None
        if self.labelled:
            drop = 100 * (self.lost - self.gained) / self.labelled
            low, high = paired_interval(self.lost, self.gained, self.labelled)
            interval = (100 * low, 100 * high)
        failures = []
        if nonfinite:
            failures.append(f"{counted(nonfinite, 'image')} with NaN or infinite logits")
        if tolerance is not None and not rel_diff <= tolerance:
            failures.append(f"logits differ by {rel_diff:.2g} of the largest (allowed {tolerance:g})")
        if not agreement >= min_agreement:
            failures.append(f"top-1 agrees on {agreement:.2%} of the images (needs {min_agreement:.2%})")
        if max_drop is not None and drop is not None and not drop <= max_drop + 1e-9:
            failures.append(f"top-1 drops by {drop:.2f} points (allowed {max_drop:g})")
        return ValidationResult(
            images=self.images,
            nonfinite=nonfinite,
            max_abs_diff=self.max_diff if self.values else math.nan,
            mean_abs_diff=self.sum_diff / self.values if self.values else math.nan,
            max_rel_diff=rel_diff,
            disagreements=self.images - self.agreed,
            top1_agreement=agreement,
            agreement_interval=wilson_interval(self.agreed, self.images),
            labelled=self.labelled,
            top1_artefact=self.correct_artefact / self.labelled if self.labelled else None,
            top1_source=self.correct_source / self.labelled if self.labelled else None,
            drop=drop,
            drop_interval=interval,
            latency_artefact=artefact,
            latency_source=source,
            tolerance=tolerance,
            min_agreement=min_agreement,
            max_drop=max_drop,
            failures=tuple(failures),
            passed=not failures,
        )

    def _rel_diff(self) -> float:
        if not self.values:
            return math.nan
        if self.max_source:
            return self.max_diff / self.max_source
        return math.inf if self.max_diff else 0.0
