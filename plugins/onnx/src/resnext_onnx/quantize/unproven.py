"""A network in 8 bits without data, to measure its speed: every layer is quantised and no accuracy is looked at."""

from __future__ import annotations

from pathlib import Path

from resnext_core.files import write_atomic
from resnext_core.interfaces import ExportRequest
from resnext_core.jobs.recorder import ignore
from resnext_core.model.weights import Weights
from resnext_core.processor import processor
from resnext_core.serving.golden import synthetic_images
from resnext_onnx.quantize.calibrate import histograms
from resnext_onnx.quantize.qdq import Layers, Plan
from resnext_onnx.quantize.ranges import minmax
from resnext_onnx.quantize.sealing import float_model, sealed_plan
from resnext_onnx.quantize.targets import AUTO, target_of
from resnext_onnx.regroup import regroup

#: Synthetic images that the ranges are taken from.
_IMAGES = 4


def write_unproven(weights: Weights, path: Path, request: ExportRequest) -> None:
    """Write `weights` in 8 bits for this processor; its results are those of ranges of noise, and it has no proof."""
    target = target_of(AUTO, processor())
    threads = getattr(request.options, "threads", None)
    model = regroup(float_model(weights), target.channels)
    found = histograms(model, synthetic_images(_IMAGES, weights.spec.image_size), threads, ignore)
    ranges = {name: minmax(histogram) for name, histogram in found.items()}
    inner = Layers(model.graph).names[:-1]
    plan = Plan(layers=frozenset(inner), ranges=ranges, scheme=target.scheme)
    said = {"for": target.name, "ranges": "minmax of synthetic images", "calibration": _IMAGES}
    write_atomic(
        path,
        sealed_plan(weights, model, plan, batch_size=request.batch_size, threads=threads, said=said),
    )
