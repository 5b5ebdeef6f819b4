"""The plugin: a backend that serves artefacts, and the command ``cpp``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from resnext_core.errors import BackendUnavailable
from resnext_core.extensions import Decoder
from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import READY, Backend, Command, Compute, Readiness
from resnext_core.processor import processor
from resnext_cpp_infer.options import CppInferOptions, LiteOptions
from resnext_cpp_infer.program import ENGINES, engine_readiness, find_program

if TYPE_CHECKING:
    from pathlib import Path

    from resnext_core.extensions import ImageDecoder
    from resnext_core.interfaces import ExportRequest, Predictor, PredictRequest
    from resnext_core.model.weights import Weights


@hookimpl
def resnext_backends() -> Iterator[Backend]:
    """Yield the backend `cpp-infer`. By its priority any other that serves the same file comes before it."""
    yield Backend(
        id="cpp-infer",
        summary="C++ inference: ONNX Runtime, AscendCL, MindSpore Lite",
        priority=-5,
        probe=_probe,
        predictor=_predictor,
        formats=tuple(ENGINES),
        packages=("onnxruntime",),
        format_probe=engine_readiness,
        file_probe=_file_probe,
        options=CppInferOptions,
        compute=_compute,
    )
    yield Backend(
        id="lite",
        summary="MindSpore Lite's MINDIR from ONNX, by its converter",
        priority=-5,
        probe=_lite_probe,
        exporters={"lite": _export_lite},
        endings={"lite": ".mindir"},
        dry_runs={"lite": _describe_lite},
        formats=(),
        options=LiteOptions,
    )


@hookimpl
def resnext_decoders() -> Iterator[Decoder]:
    """Yield `turbo`: before Pillow wherever it is built."""
    yield Decoder(
        name="turbo",
        summary="libjpeg-turbo and SIMD in C++, in threads",
        probe=_decoder_probe,
        open=_open_decoder,
        priority=10,
        threads=True,
    )


@hookimpl
def resnext_commands() -> Iterator[Command]:
    yield Command(
        name="cpp", summary="build and run the C++ inference program", module="resnext_cpp_infer.command"
    )


def _probe() -> Readiness:
    try:
        find_program()
    except BackendUnavailable as error:
        return Readiness(state="missing", reason=str(error))
    return READY


def _compute(options: CppInferOptions | None) -> Compute:
    found = options or CppInferOptions()
    on_cpu = found.device == "cpu"
    return Compute(device=found.device, threads=(found.threads or processor().cores) if on_cpu else None)


def _predictor(request: PredictRequest) -> Predictor:
    from resnext_cpp_infer.predictor import StreamPredictor

    return StreamPredictor(request)


def _file_probe(path: Path, options: CppInferOptions | None) -> Readiness:
    from resnext_cpp_infer.lite_export import file_readiness

    return file_readiness(path, options)


def _decoder_probe() -> Readiness:
    from resnext_cpp_infer.pixels import readiness

    return readiness()


def _open_decoder() -> ImageDecoder:
    from resnext_cpp_infer.decoder import open_turbo

    return open_turbo()


def _lite_probe() -> Readiness:
    from resnext_cpp_infer.lite_converter import lite_readiness

    return lite_readiness()


def _export_lite(weights: Weights, path: Path, request: ExportRequest) -> None:
    from resnext_cpp_infer.lite_export import export_lite

    export_lite(weights, path, request)


def _describe_lite(weights: Weights, path: Path, request: ExportRequest) -> str:
    from resnext_cpp_infer.lite_export import describe

    return describe(weights, path, request)
