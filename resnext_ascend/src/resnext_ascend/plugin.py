"""The plugin: what resnext-ascend offers. Every start of the program imports it, so it imports no framework."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from resnext_mindspore.plugin import INGREDIENTS

from resnext_ascend import diagnose
from resnext_ascend.options import AscendOptions
from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import (
    READY,
    Backend,
    Command,
    Compute,
    Engine,
    ExportRequest,
    LaunchRequest,
    Predictor,
    PredictRequest,
    Readiness,
    Recipe,
    TrainRequest,
)
from resnext_core.processor import processor

if TYPE_CHECKING:
    from resnext_core.model.weights import Weights
    from resnext_core.ranks.collectives import Collectives
    from resnext_core.ranks.info import RankInfo


@hookimpl
def resnext_backends() -> Iterator[Backend]:
    """Yield the backend."""
    yield Backend(
        id="ascend",
        summary="Ascend 910 over HCCL, on MindSpore",
        priority=60,
        probe=probe,
        engine=_engine,
        predictor=_predictor,
        formats=(".safetensors", ".mindir"),
        exporters={"mindir": _export_mindir},
        file_probe=_file_probe,
        packages=("mindspore",),
        options=AscendOptions,
        compute=_compute,
        steps_per_call=10,
        ingredients=INGREDIENTS,
        connect=_connect,
        launch=_launch,
    )


@hookimpl
def resnext_commands() -> Iterator[Command]:
    """Yield ``resnext-run ascend``."""
    yield Command(
        name="ascend", summary="tools of Ascend: launch, rank tables, export", module="resnext_ascend.cli"
    )


@hookimpl
def resnext_recipes() -> Iterator[Recipe]:
    folder = Path(__file__).with_name("recipes")
    for kind in ("150e", "literal"):
        yield Recipe(
            name=f"modelzoo-ascend-{kind}",
            path=folder / f"modelzoo-ascend-{kind}.yaml",
            former_names=(f"seed-ascend-{kind}",),  # until 0.1; remove with 0.3
        )


def probe() -> Readiness:
    """Return whether MindSpore can run here, and whether on an Ascend."""
    if (missing := diagnose.software()) is not None:
        return Readiness(state="missing", reason=missing)
    if (missing := diagnose.hardware()) is not None:
        reason = f"{missing}; --set ascend.device=cpu computes on the CPU"
        return Readiness(state="test mode", reason=reason)
    return READY


def _file_probe(path: Path, options: AscendOptions | None) -> Readiness:
    from resnext_mindspore.plugin import file_readiness

    return file_readiness(path)


def _compute(options: AscendOptions | None) -> Compute:
    found = _options(options)
    on_cpu = found.device == "cpu"
    return Compute(device=found.device, threads=(found.threads or processor().cores) if on_cpu else None)


def _engine(request: TrainRequest) -> Engine:
    from resnext_ascend.engine import AscendEngine

    return AscendEngine(request, _options(request.options))


def _predictor(request: PredictRequest) -> Predictor:
    from resnext_ascend.engine import predictor_of

    return predictor_of(request, _options(request.options))


def _export_mindir(weights: Weights, path: Path, request: ExportRequest) -> None:
    from resnext_mindspore.exporters import export_mindir

    export_mindir(weights, path, request)


def _connect(rank: RankInfo, options: AscendOptions | None) -> Collectives:
    from resnext_ascend.device import connect

    return connect(rank, _options(options))


def _launch(request: LaunchRequest) -> int:
    from resnext_ascend.launch import launch

    return launch(request, _options(request.options))


def _options(options: AscendOptions | None) -> AscendOptions:
    return AscendOptions() if options is None else options
