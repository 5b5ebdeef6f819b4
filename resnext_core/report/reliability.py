"""The figures of calibration: how often predictions of each confidence are right, and how many there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from resnext_core.errors import DataError
from resnext_core.report import text
from resnext_core.report.charts import Bar, bar_chart
from resnext_core.report.curves import Figure


def calibration_figures(calibration: Mapping[str, Any]) -> list[Figure]:
    """Return the reliability diagram and the histogram of confidence from the ``calibration`` of an evaluation.

    None where no image has a prediction. DataError where the bins are not lists of the same length.
    """
    try:
        bins = calibration.get("bins", {})
        images, correct, confidence = (
            np.asarray(bins.get(name, ()), np.float64) for name in ("images", "correct", "confidence")
        )
        if not images.ndim == 1 or not images.shape == correct.shape == confidence.shape:
            raise ValueError("bins of unlike length")
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"the calibration of the evaluation is damaged: {error}") from error
    if not images.sum() > 0:
        return []
    count, shares = len(images), images / images.sum()
    gaps, amounts = [], []
    for k in np.flatnonzero(images > 0).tolist():
        ends = k / count, (k + 1) / count
        right, mean = correct[k] / images[k], confidence[k] / images[k]
        said = (
            f"confidence {text.percent(ends[0], 0)} to {text.percent(ends[1], 0)}\n{text.count(images[k])} images\n"
            f"right {text.percent(right, 1)}\nmean confidence {text.percent(mean, 1)}"
        )
        gaps.append(Bar(left=ends[0], right=ends[1], low=0, high=right, style="share", said=said))
        style = "gap" if mean > right else "spare"
        gaps.append(
            Bar(left=ends[0], right=ends[1], low=min(right, mean), high=max(right, mean), style=style)
        )
        amounts.append(Bar(left=ends[0], right=ends[1], low=0, high=shares[k], style="share", said=said))
    ece = text.percent(calibration.get("ece"))
    total = text.percent(correct.sum() / images.sum(), 1)
    mean = text.percent(confidence.sum() / images.sum(), 1)
    return [
        Figure(
            title="Reliability",
            chart=bar_chart(
                gaps, label=f"Share of right predictions by confidence; expected calibration error {ece}.",
                diagonal=True,
            ),
            legend=[
                ("share", "right"), ("gap", "confidence above it"), ("spare", "right beyond the confidence"),
                ("mark", "perfect"),
            ],
            note=f"ECE {ece}",
        ),
        Figure(
            title="Confidence",
            chart=bar_chart(
                amounts, label=f"Share of images by confidence; on average {mean}, and {total} are right.",
                y_max=float(shares.max()),
            ),
            legend=[("share", "share of the images")],
            note=f"mean {mean}, right {total}",
        ),
    ]  # fmt: skip
