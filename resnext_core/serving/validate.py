"""Validate an artefact: its logits, classes and speed against those of the weights it was made from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.errors import DataError
from resnext_core.interfaces import Batch, Predictor

Array = NDArray[Any]

#: Largest |difference| of an artefact's logits, relative to the largest |logit| of its source.
TOLERANCE = 1e-4


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
    `top1_source` are shares of the `labelled` rows, None without labels. `passed` means: every row finite,
    max_rel_diff ≤ tolerance and top1_agreement ≥ min_agreement.
    """

    images: int
    nonfinite: int
    max_abs_diff: float
    mean_abs_diff: float
    max_rel_diff: float
    disagreements: int
    top1_agreement: float
    labelled: int
    top1_artefact: float | None
    top1_source: float | None
    latency_artefact: Latency
    latency_source: Latency
    tolerance: float
    min_agreement: float
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; numbers that JSON has no form for (NaN, infinity) become None."""
        plain: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Latency):
                value = dict(vars(value))
            elif isinstance(value, float) and not math.isfinite(value):
                value = None
            plain[name] = value
        return plain

    def line(self) -> str:
        """Return one line for people."""
        words = [
            f"{'passed' if self.passed else 'FAILED'}: {self.images} images",
            f"max |diff| {self.max_abs_diff:.3g} = {self.max_rel_diff:.3g} of max |logit| "
            f"(tolerance {self.tolerance:g})",
            f"top-1 agrees on {self.images - self.disagreements} (needs {self.min_agreement:.2%})",
        ]
        if self.nonfinite:
            words.append(f"{self.nonfinite} images with NaN or infinite logits")
        if self.top1_artefact is not None and self.top1_source is not None:
            words.append(f"top1 {self.top1_artefact:.2%} (source {self.top1_source:.2%})")
        words.append(
            f"{self.latency_artefact.image_p50:.3g} ms an image (source {self.latency_source.image_p50:.3g})"
        )
        return ", ".join(words)


def validate(
    artefact: Predictor,
    source: Predictor,
    batches: Iterable[Batch],
    *,
    tolerance: float = TOLERANCE,
    min_agreement: float = 1.0,
    progress: Callable[[int], None] | None = None,
) -> ValidationResult:
    """Run both predictors on `batches` and compare them row by row.

    Rows with `valid` False are computed but not counted. The default asks every top-1 to agree exactly: a
    near-tie that flips is reported as the disagreement it is, and lowering `min_agreement` is the caller's
    decision. The first batch is warm-up for the latencies when there are several. `progress` is called after
    each batch with the number of images compared so far.

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
    return totals.result(artefact_clock.latency(), source_clock.latency(), tolerance, min_agreement)


@dataclass(kw_only=True)
class _Clock:
    """The times of one predictor's calls: (milliseconds, rows)."""

    calls: list[tuple[float, int]] = field(default_factory=list)

    def time(self, predictor: Predictor, batch: Batch) -> Array:
        start = time.perf_counter()
        logits = predictor.logits(batch.images)
        self.calls.append(((time.perf_counter() - start) * 1e3, len(batch)))
        if logits.ndim != 2 or len(logits) != len(batch):
            raise DataError(f"a predictor returned {logits.shape} logits for {len(batch)} images")
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
        self.correct_artefact += int((known & np.isfinite(got).all(axis=1) & (got_top1 == labels)).sum())
        self.correct_source += int((known & np.isfinite(want).all(axis=1) & (want_top1 == labels)).sum())

    def result(
        self, artefact: Latency, source: Latency, tolerance: float, min_agreement: float
    ) -> ValidationResult:
        rel_diff = self._rel_diff()
        agreement = self.agreed / self.images
        nonfinite = self.images - self.finite
        return ValidationResult(
            images=self.images,
            nonfinite=nonfinite,
            max_abs_diff=self.max_diff if self.values else math.nan,
            mean_abs_diff=self.sum_diff / self.values if self.values else math.nan,
            max_rel_diff=rel_diff,
            disagreements=self.images - self.agreed,
            top1_agreement=agreement,
            labelled=self.labelled,
            top1_artefact=self.correct_artefact / self.labelled if self.labelled else None,
            top1_source=self.correct_source / self.labelled if self.labelled else None,
            latency_artefact=artefact,
            latency_source=source,
            tolerance=tolerance,
            min_agreement=min_agreement,
            passed=nonfinite == 0 and rel_diff <= tolerance and agreement >= min_agreement,
        )

    def _rel_diff(self) -> float:
        if not self.values:
            return math.nan
        if self.max_source:
            return self.max_diff / self.max_source
        return math.inf if self.max_diff else 0.0
