"""The plugin: the backend ``mindspore``. Every start of the program imports it, so it imports no framework."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import (
    READY,
    Backend,
    Compute,
    Engine,
    ExportRequest,
    Ingredient,
    LaunchRequest,
    Predictor,
    PredictRequest,
    Readiness,
    SourceKind,
    TrainRequest,
)
from resnext_core.processor import processor
from resnext_mindspore.options import MindsporeOptions

if TYPE_CHECKING:
    from resnext_core.config import DataConfig
    from resnext_core.data.sources.base import Listing
    from resnext_core.model.weights import Weights
    from resnext_core.ranks.collectives import Collectives
    from resnext_core.ranks.info import RankInfo

#: What :class:`resnext_mindspore.engine.MindsporeEngine` can do.
INGREDIENTS: frozenset[Ingredient] = frozenset(
    {
        "mix", "nesterov", "lamb", "adamw", "agc", "groups", "bce", "stochastic-depth", "teacher", "freeze",
        "logit-offsets", "sizes", "ema-schedule",
    }
)  # fmt: skip

_INSTALL = "pip install 'resnext-core[mindspore]'"


@hookimpl
def resnext_backends() -> Iterator[Backend]:
    """Yield the backend."""
    yield Backend(
        id="mindspore",
        summary="MindSpore on CPU: what a laptop trains with",
        priority=20,
        probe=probe,
        engine=_engine,
        predictor=_predictor,
        formats=(".safetensors", ".mindir"),
        exporters={"mindir": _export_mindir},
        file_probe=file_readiness,
        packages=("mindspore",),
        options=MindsporeOptions,
        compute=_compute,
        ingredients=INGREDIENTS,
        connect=_connect,
        launch=_launch,
    )


@hookimpl
def resnext_sources() -> Iterator[SourceKind]:
    """Yield MindRecord files."""
    yield SourceKind(
        name="mindrecord",
        summary="MindRecord files, as MindSpore's FileWriter makes them",
        claims=_is_mindrecord,
        open=_open_mindrecord,
        parts=("{}.mindrecord*",),
    )


def _is_mindrecord(path: str) -> bool:
    return ".mindrecord" in path and _mindrecord().is_mindrecord(path)


def _open_mindrecord(path: str, data: DataConfig) -> Listing:
    return _mindrecord().open_mindrecord(path, data)


def _mindrecord() -> ModuleType:
    from resnext_mindspore import mindrecord

    return mindrecord


def probe() -> Readiness:
    """Return whether MindSpore can run here; reads metadata only."""
    missing = missing_software(_INSTALL)
    return READY if missing is None else Readiness(state="missing", reason=missing)


def missing_software(install: str) -> str | None:
    """Return why MindSpore cannot run here on any device, in one sentence, or None; reads metadata only.

    `install` is the command that installs it.
    """
    if util.find_spec("mindspore") is None:
        return f"MindSpore is not installed: {install}"
    try:
        numpy = metadata.version("numpy")
    except metadata.PackageNotFoundError:
        return f"NumPy is not installed: {install}"
    if int(numpy.split(".", maxsplit=1)[0]) >= 2:
        return f"MindSpore needs numpy below 2 and {numpy} is installed: pip install 'numpy<2'"
    return None


def file_readiness(path: Path, options: object = None) -> Readiness:
    """Return whether MindSpore can read an artefact: not where its sidecar says that it is of another format."""
    from resnext_core.model.sidecar import artefact_section

    found = artefact_section(path).get("format", "mindir")
    if path.suffix != ".mindir" or found == "mindir":
        return READY
    return Readiness(state="missing", reason=f"MindSpore cannot read the format '{found}' of {path.name}")


def _compute(options: MindsporeOptions | None) -> Compute:
    found = _options(options)
    on_cpu = found.device == "cpu"
    return Compute(device=found.device, threads=(found.threads or processor().cores) if on_cpu else None)


def _engine(request: TrainRequest) -> Engine:
    from resnext_mindspore.device import device_of
    from resnext_mindspore.engine import MindsporeEngine

    return MindsporeEngine(request, device_of(_options(request.options), request.rank))


def _predictor(request: PredictRequest) -> Predictor:
    from resnext_mindspore.device import device_of
    from resnext_mindspore.predictor import create_predictor

    return create_predictor(request, device_of(_options(request.options), request.rank))


def _export_mindir(weights: Weights, path: Path, request: ExportRequest) -> None:
    from resnext_mindspore.exporters import export_mindir

    export_mindir(weights, path, request)


def _connect(rank: RankInfo, options: MindsporeOptions | None) -> Collectives:
    from resnext_mindspore.collectives import connect
    from resnext_mindspore.device import device_of

    return connect(rank, device_of(_options(options), rank))


def _launch(request: LaunchRequest) -> int:
    from resnext_mindspore.launch import launch

    return launch(request, cluster_timeout=_options(request.options).cluster_timeout)


def _options(options: MindsporeOptions | None) -> MindsporeOptions:
    return MindsporeOptions() if options is None else options
