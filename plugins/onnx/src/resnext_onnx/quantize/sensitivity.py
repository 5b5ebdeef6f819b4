"""Sensitivity: how much of the logits' error each layer causes, measured one layer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx

from resnext_core.runs.records import Listener, Progress
from resnext_onnx.quantize.qdq import Plan, quantised
from resnext_onnx.quantize.run import Array, logits_of


def logit_error(got: Array, want: Array) -> float:
    """Return the root mean square of the logits' differences over that of the logits `want` (N, classes).

    Both are taken without the mean of their row, which changes no probability. Infinity where some are not finite.
    """
    difference, scale = (_centered(values) for values in (got.astype(np.float64) - want, want))
    found = float(np.sqrt((difference**2).mean() / max((scale**2).mean(), 1e-300)))
    return found if np.isfinite(found) else float("inf")


def _centered(values: Array) -> Array:
    centered: Array = values - values.mean(axis=1, keepdims=True)
    return centered


def layer_errors(
    model: onnx.ModelProto, plan: Plan, layers: Sequence[str], images: Array, want: Array, threads: int | None,
    listen: Listener,
) -> dict[str, float]:  # fmt: skip
    """Return the :func:`logit_error` of a network in which one layer alone is in 8 bits, for each of `layers`.

    `want` are the float network's logits of uint8 `images`. The errors of layers add up about as independent noise
    does: the square of the error of all is near the sum of the squares.
    """
    found = {}
    for done, name in enumerate(layers, 1):
        alone = quantised(model, replace(plan, layers=frozenset([name])))
        found[name] = logit_error(logits_of(alone, images, threads), want)
        listen(Progress(what="sensitivity", done=done, total=len(layers)))
    return found
