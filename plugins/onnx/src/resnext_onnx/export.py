"""Write weights as one self-contained ONNX file with the manifest in its metadata."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

import resnext_onnx
from resnext_core.errors import DataError, UsageError
from resnext_core.files import atomic_path
from resnext_core.interfaces import ExportRequest, PredictRequest
from resnext_core.model.preprocess import normalize
from resnext_core.model.proof import Golden
from resnext_core.model.spec import ModelSpec
from resnext_core.model.weights import Weights
from resnext_core.ranks.info import RankInfo
from resnext_core.serving.golden import golden_of, own_images
from resnext_onnx.artefact import sealed_model
from resnext_onnx.front import before_the_graph
from resnext_onnx.graph import INPUTS, IR_VERSION, OPSET, TENSOR, build_graph
from resnext_onnx.narrow import narrow
from resnext_onnx.options import OnnxOptions
from resnext_onnx.regroup import channels_for, merge_factor, regroup

#: Protobuf cannot write 2 GiB or more; a file's nodes and metadata take well under a tenth of this margin.
_MAX_BYTES = 2**31 - 2**26


def export_onnx(weights: Weights, path: Path, request: ExportRequest) -> None:
    """Write `weights` at `path` atomically, checked by ONNX's own checker; same input, same bytes.

    The graph input is ``images`` uint8 (N, S, S, 3) with normalisation inside, or ``tensor`` float32
    (N, 3, S, S), at the ModelSpec's image size S, or ``images`` uint8 (1, H, W, 3) of any size with all of the
    preprocessing inside; what must be done before stands in the entry's ``caller``. The output is ``logits`` float32
    (N, classes). The metadata entry ``resnext`` is the weights' manifest with an ``artefact`` object (format, input,
    batch_size, fold_bn, opset, regroup where groups were merged, digest of the constants, and one of all that is not
    metadata); it ends with its own digest. A file that preprocesses is not kept unless ONNX Runtime gives with it the
    logits of core's own pixels.

    With a `precision` of 16 bits the network computes in it from the normalised tensor to the logits, and the
    ``artefact`` object has ``compute``, see :mod:`resnext_core.model.proof`.

    Raises UsageError on a request that means nothing or a network too large for one file, DataError when
    the file cannot be written or the weights cannot be served.
    """
    data = build_model(weights, request)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
        onnx.checker.check_model(str(temporary), full_check=True)
        if request.input == "image":
            _try_preprocessing(temporary)


def build_model(weights: Weights, request: ExportRequest) -> bytes:
    """Return the complete file that :func:`export_onnx` writes; same errors, nothing written."""
    channels = channels_for((request.options or OnnxOptions()).regroup)
    _check(weights, request, channels)
    graph = build_graph(
        weights,
        batch_size=request.batch_size,
        input=request.input,
        fold_bn=request.fold_bn,
    )
    model = _model(graph)
    entry = {
        "format": "onnx",
        "input": request.input,
        "batch_size": 1 if request.input == "image" else request.batch_size,
        "fold_bn": request.fold_bn,
        "opset": OPSET,
    }
    if request.input == "image":
        entry["caller"] = before_the_graph(weights.preprocess)
    if channels is not None:
        model = regroup(model, channels)
        entry["regroup"] = channels
    manifest = weights.manifest()
    if request.precision != "float32":
        manifest["golden"] = _golden(weights, request.precision).to_dict()
        model = narrow(model, request.precision)
        entry |= {"opset": model.opset_import[0].version, "compute": request.precision}
    return sealed_model(model, manifest, entry)


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="resnext-onnx",
        producer_version=resnext_onnx.__version__,
    )


def _golden(weights: Weights, precision: str) -> Golden:
    """Return the golden logits of a file in 16 bits: those of the network in float32, to be compared loosely.

    They are the weights' own, or else computed here.
    """
    if weights.golden is not None:
        return replace(weights.golden, compute=precision)
    from resnext_onnx.ort_sessions import OrtRuntime  # only here: other exports need no runtime

    graph = build_graph(weights, batch_size=None, input="float", fold_bn=True)
    session = OrtRuntime(OnnxOptions(threads=1), 0).session(
        _model(graph).SerializeToString(), precision="float32"
    )
    images = normalize(own_images(weights.spec.image_size), weights.preprocess)
    found = golden_of(session.run(TENSOR, images), precision)
    if found is None:
        raise DataError(
            "the network gives NaN or infinity on synthetic images: there is nothing to check a file by"
        )
    return found


def _try_preprocessing(path: Path) -> None:
    """Serve one image by the file, which compares its preprocessing with core's; DataError where they disagree."""
    from resnext_onnx.predictor import OnnxPredictor  # only here: other exports need no runtime

    predictor = OnnxPredictor(PredictRequest(path=path, rank=RankInfo()))
    try:
        predictor.logits_from_image(np.zeros((1, 1, 3), np.uint8))
    finally:
        predictor.close()


def _check(weights: Weights, request: ExportRequest, channels: int | None) -> None:
    if request.input not in INPUTS:
        raise UsageError(f"export input must be uint8, float or image, not {request.input!r}")
    if request.precision not in ("float32", "float16", "bfloat16"):
        raise UsageError(f"export precision must be float32, float16 or bfloat16, not {request.precision!r}")
    if request.precision != "float32" and not request.fold_bn:
        raise UsageError(
            "export.precision of 16 bits needs export.fold_bn=true: statistics may not fit 16 bits"
        )
    if request.precision != "float32" and request.input == "image":
        raise UsageError("export.input=image is written in float32 only: set export.precision=float32")
    batch_size = request.batch_size
    if request.input == "image" and batch_size not in (None, 1):
        raise UsageError(
            f"export input image takes one image at a time: batch_size must be 1 or null, not {batch_size!r}"
        )
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise UsageError(f"export batch_size must be an integer above 0, or null, not {batch_size!r}")
    size = 4 * sum(t.size for t in weights.spec.tensors)
    with_zeros = size + 4 * _zeros(weights.spec, channels)
    if with_zeros > _MAX_BYTES:
        smaller = "export a smaller variant" if size > _MAX_BYTES else "set onnx.regroup to fewer channels"
        raise UsageError(
            f"{weights.spec.variant} has {with_zeros / 2**30:.1f} GiB of weights, an ONNX file holds less than 2; "
            f"{smaller}"
        )


def _zeros(spec: ModelSpec, channels: int | None) -> int:
    """Return how many zeros :func:`regroup` adds to the weights of `spec`."""
    if channels is None:
        return 0
    merged = ((block.width, block.width // spec.groups) for block in spec.blocks)
    return sum(9 * wide * each * (merge_factor(spec.groups, each, channels) - 1) for wide, each in merged)
