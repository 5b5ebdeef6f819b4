"""An 8-bit file without data, for benchmarks alone: every layer in 8 bits, with the ranges that noise has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from resnext_core.errors import DataError
from resnext_core.files import write_atomic
from resnext_core.interfaces import ExportRequest
from resnext_core.model.proof import Golden
from resnext_core.model.weights import Weights
from resnext_core.processor import processor
from resnext_core.serving.golden import synthetic_images
from resnext_onnx.artefact import sealed_model
from resnext_onnx.export import build_model
from resnext_onnx.graph import OPSET
from resnext_onnx.quantize.calibrate import histograms
from resnext_onnx.quantize.qdq import Layers, Plan, quantised
from resnext_onnx.quantize.ranges import minmax
from resnext_onnx.quantize.run import logits_of
from resnext_onnx.quantize.targets import AUTO, target_of
from resnext_onnx.regroup import regroup

_IMAGES = 2


def export_untrained(weights: Weights, path: Path, request: ExportRequest) -> None:
    """Write `weights` in 8 bits at `path`, for this processor, calibrated on synthetic images.

    It computes as fast as what ``quantize`` writes where that leaves no layer in float32, and its accuracy is unknown:
    it has no proof. UsageError where no target is known for this processor, DataError where values are not finite.
    """
    target = target_of(AUTO, processor())
    plain = replace(request, batch_size=None, input="uint8", fold_bn=True, options=None, precision="float32")
    model = regroup(onnx.ModelProto.FromString(build_model(weights, plain)), target.channels)
    images = synthetic_images(_IMAGES, weights.spec.image_size)
    found = histograms(model, images, None, lambda done: None)
    plan = Plan(
        layers=frozenset(Layers(model.graph).names), scheme=target.scheme,
        ranges={name: minmax(histogram) for name, histogram in found.items()},
    )  # fmt: skip
    model = quantised(model, plan)
    logits = logits_of(model, images, None)
    if not np.isfinite(logits).all():
        raise DataError("the network in 8 bits gives NaN or infinity on synthetic images")
    golden = Golden(compute="int8", logits=tuple(tuple(map(float, row)) for row in logits))
    entry = {
        "format": "onnx", "input": "uint8", "batch_size": None, "fold_bn": True, "opset": OPSET, "compute": "int8",
    }  # fmt: skip
    write_atomic(path, sealed_model(model, {**weights.manifest(), "golden": golden.to_dict()}, entry))
