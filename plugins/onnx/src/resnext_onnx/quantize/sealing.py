"""The file of a plan: the graph in 8 bits with its manifest, golden logits and proof."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from resnext_core.errors import DataError
from resnext_core.interfaces import ExportRequest
from resnext_core.model.weights import Weights
from resnext_core.serving.golden import golden_of, own_images
from resnext_onnx.artefact import sealed_model
from resnext_onnx.export import build_model
from resnext_onnx.graph import OPSET
from resnext_onnx.quantize.qdq import Layers, Plan, quantised
from resnext_onnx.quantize.run import logits_of


def float_model(weights: Weights) -> onnx.ModelProto:
    """Return the float32 network of `weights` for uint8 images and any batch, without metadata."""
    model: onnx.ModelProto = onnx.ModelProto.FromString(build_model(weights, ExportRequest()))
    del model.metadata_props[:]
    return model


def sealed_plan(
    weights: Weights,
    model: onnx.ModelProto,
    plan: Plan,
    *,
    batch_size: int | None,
    threads: int | None,
    said: Mapping[str, Any],
    proof: Mapping[str, Any] | None = None,
    place: str | None = None,
) -> bytes:
    """Return the artefact of `plan` on the float network `model`, checked by ONNX's own checker.

    `said` is put into the manifest about how it came about. `proof` has the fields of a proof but its logits; it is for
    the instruction set `place`, None where there is none. DataError where logits are not finite.
    """
    small = quantised(model, plan)
    found = golden_of(logits_of(small, own_images(weights.spec.image_size), threads), "int8")
    if found is None:
        raise DataError("the network in 8 bits gives NaN or infinity on synthetic images; it was not kept")
    golden = found.to_dict()
    proofs = {}
    if place is not None and proof is not None:
        proofs = {"proofs": {place: {"logits": golden["logits"], **proof}}}
    names = Layers(model.graph).names
    entry = {
        "format": "onnx", "input": "uint8", "batch_size": batch_size, "fold_bn": True, "opset": OPSET,
        "compute": "int8", **proofs,
        "quantization": {**said, "float": [name for name in names if name not in plan.layers]},
    }  # fmt: skip
    small = _of_batch(small, batch_size)
    onnx.checker.check_model(small, full_check=True)
    return sealed_model(small, weights.manifest() | {"golden": golden}, entry)


def _of_batch(model: onnx.ModelProto, batch: int | None) -> onnx.ModelProto:
    """Return `model` for `batch` images a call; None leaves any number."""
    if batch is None:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for value in (*result.graph.input, *result.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return result
