"""Calibration: the histogram of every value that may be written in 8 bits, in one pass over the sample."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from resnext_core.errors import DataError
from resnext_onnx.quantize.qdq import Layers
from resnext_onnx.quantize.ranges import METHODS, Histogram, Range
from resnext_onnx.quantize.run import Array, Step, values_of


def histograms(
    model: onnx.ModelProto, images: Array, threads: int | None, step: Step
) -> dict[str, Histogram]:
    """Return the histogram of each of :meth:`Layers.values` over uint8 `images` (N, S, S, 3), in the float network.

    DataError where a value is not finite.
    """
    names = Layers(model.graph).values()
    found = {name: Histogram() for name in names}
    for name, values in values_of(model, names, images, threads, step):
        try:
            found[name].add(values)
        except ValueError as error:
            raise DataError(f"the network gives NaN or infinity at {name}: it cannot be quantised") from error
    return found


def all_ranges(found: Mapping[str, Histogram]) -> dict[str, dict[str, Range]]:
    """Return the ranges of all values by each of the rules, by their names."""
    return {
        name: {value: rule(histogram) for value, histogram in found.items()} for name, rule in METHODS.items()
    }
