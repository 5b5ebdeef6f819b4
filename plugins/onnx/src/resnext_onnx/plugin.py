"""The plugin: the backend ``onnx`` and the command ``quantize``.

Every start of the program imports it, so it imports no framework.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from resnext_core.errors import BackendUnavailable
from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import READY, Backend, Command, Compute, Readiness, Variant
from resnext_core.processor import processor
from resnext_onnx.options import OnnxOptions

if TYPE_CHECKING:
    from pathlib import Path

    from resnext_core.interfaces import ExportRequest, Predictor, PredictRequest
    from resnext_core.model.proof import Proof
    from resnext_core.model.weights import Manifest, Weights


def probe() -> Readiness:
    """Return whether export and serving can run here."""
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if not missing:
        return READY
    verb = "is" if len(missing) == 1 else "are"
    reason = f"{' and '.join(missing)} {verb} not installed: pip install {' '.join(missing)}"
    return Readiness(state="missing", reason=reason)


def compute(options: OnnxOptions | None) -> Compute:
    """Return what a predictor computes with under these options."""
    found = options or OnnxOptions()
    if found.provider in ("cuda", "cann"):
        return Compute(device=found.provider)
    precision = "bfloat16" if found.openvino_precision == "bfloat16" else None
    return Compute(threads=found.threads or processor().cores, precision=precision)


def variants() -> Iterator[Variant]:
    """Yield files with merged groups and in few bits, and OpenVINO beside ONNX Runtime's CPU provider."""
    yield Variant(label="groups of 16", exports="onnx", overrides=("onnx.regroup=16",))
    yield Variant(label="int8", exports="onnx", write=unproven_int8)
    yield Variant(label="float16", exports="onnx", overrides=("export.precision=float16",))
    package = find_spec("openvino") is not None
    here = (
        READY
        if package
        else Readiness(state="missing", reason="openvino is not installed: pip install openvino")
    )
    yield Variant(label="openvino", overrides=("onnx.provider=openvino",), readiness=here)
    if package and not processor().bfloat16:
        here = Readiness(state="missing", reason=f"{processor().name} has no bfloat16 instructions")
    yield Variant(
        label="openvino bfloat16",
        overrides=("onnx.provider=openvino", "onnx.openvino_precision=bfloat16"),
        readiness=here,
    )


def predictor(request: PredictRequest) -> Predictor:
    """Open an ``.onnx`` artefact; see :class:`resnext_onnx.predictor.OnnxPredictor`."""
    require()
    from resnext_onnx.predictor import OnnxPredictor

    return OnnxPredictor(request)


def export(weights: Weights, path: Path, request: ExportRequest) -> None:
    """Write `weights` as an ONNX file; see :func:`resnext_onnx.export.export_onnx`."""
    require()
    from resnext_onnx.export import export_onnx

    export_onnx(weights, path, request)


def unproven_int8(weights: Weights, path: Path, request: ExportRequest) -> None:
    """Write `weights` in 8 bits to time them; see :func:`resnext_onnx.quantize.unproven.write_unproven`."""
    require()
    from resnext_onnx.quantize.unproven import write_unproven

    write_unproven(weights, path, request)


def add_proof(path: Path, place: str, proof: Proof, manifest: Manifest) -> None:
    """Write a proof into an ``.onnx`` artefact; see :func:`resnext_onnx.artefact.add_proof`."""
    require()
    from resnext_onnx.artefact import add_proof

    add_proof(path, place, proof, manifest)


def triton(weights: Weights, path: Path, request: ExportRequest) -> None:
    """Write `weights` as a model repository of Triton; see :func:`resnext_onnx.triton.export_triton`."""
    require()
    from resnext_onnx.triton import export_triton

    export_triton(weights, path, request)


def require() -> None:
    """Raise BackendUnavailable, with what is missing, where export and serving cannot run here."""
    if not (here := probe()).usable:
        raise BackendUnavailable(f"backend onnx cannot run here: {here.reason}")


@hookimpl
def resnext_backends() -> Iterator[Backend]:
    """Yield the backend `onnx`."""
    yield Backend(
        id="onnx",
        summary="ONNX export; inference with ONNX Runtime (CPU, CUDA, CANN) and OpenVINO (CPU)",
        probe=probe,
        priority=10,
        predictor=predictor,
        formats=(".onnx",),
        exporters={"onnx": export, "triton": triton},
        on_request=("triton",),
        takes_images=("onnx",),
        packages=("onnx", "onnxruntime", "openvino"),
        options=OnnxOptions,
        precisions={"onnx": ("float16", "bfloat16"), "triton": ("float16",)},
        add_proof=add_proof,
        compute=compute,
        variants=variants,
    )


@hookimpl
def resnext_commands() -> Iterator[Command]:
    """Yield the command `quantize`."""
    yield Command(
        name="quantize",
        summary="write a trained network in 8 bits for CPUs, if its accuracy holds",
        module="resnext_onnx.quantize.command",
    )
