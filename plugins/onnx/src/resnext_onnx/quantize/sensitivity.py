"""Sensitivity: how much of the logits' error each layer and each value causes, measured one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from resnext_core.runs.records import Listener, Progress
from resnext_onnx.quantize.qdq import Plan, quantised, values_in, with_value_rounded
from resnext_onnx.quantize.ranges import Range
from resnext_onnx.quantize.run import Array, logits_of

#: Ranges are chosen for the values with the largest errors, down to this share of the sum of their squares.
_SHARE = 0.95
#: Parts of a value's range that are tried too.
_OTHERS = (0.85, 1.15)


def logit_error(got: Array, want: Array) -> float:
    """Return the root mean square of the logits' differences over that of the logits `want` (N, classes).

    Both are taken without the mean of their row, which changes no probability. Infinity where some are not finite.
    """
    wanted = want.astype(np.float64)  # squares of large float32 logits would be infinite, and the error 0
    difference, scale = _centered(got - wanted), _centered(wanted)
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


def refined(
    model: onnx.ModelProto, plan: Plan, ranges: Mapping[str, Mapping[str, Range]], images: Array, want: Array,
    threads: int | None, listen: Listener,
) -> Plan:  # fmt: skip
    """Return `plan` with the best range of each value that matters, by the logits with this value alone in 8 bits.

    `ranges` are those of each rule by name; a part of the plan's own range is tried as well. A value's squared error
    says how far it is off, and not what of it reaches the logits.
    """

    def error(name: str, cut: Range) -> float:
        alone = with_value_rounded(model, name, cut, signed=plan.scheme.signed)
        return logit_error(logits_of(alone, images, threads), want)

    names = values_in(model, plan)
    errors = {}
    for done, name in enumerate(names, 1):
        errors[name] = error(name, plan.ranges[name])
        listen(Progress(what="errors of values", done=done, total=len(names)))
    order = sorted(names, key=lambda name: -errors[name])
    squares = np.cumsum([errors[name] ** 2 for name in order])
    worst = order[: int(np.searchsorted(squares, _SHARE * squares[-1])) + 1]
    best = dict(plan.ranges)
    for done, name in enumerate(worst, 1):
        others = {found[name] for found in ranges.values()} | {
            plan.ranges[name].scaled(part) for part in _OTHERS
        }
        tried = {
            cut: error(name, cut) for cut in sorted(others - {best[name]}, key=lambda c: (c.low, c.high))
        }
        tried[best[name]] = errors[name]
        best[name] = min(tried, key=lambda cut: tried[cut])
        listen(Progress(what="ranges of values", done=done, total=len(worst)))
    return replace(plan, ranges=best)
