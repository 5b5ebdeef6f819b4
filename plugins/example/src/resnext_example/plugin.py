"""The plugin: the backend ``example``. Every start of the program imports it, so it imports no framework."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

from resnext_core.bounds import AtLeast, check_bounds
from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import (
    READY,
    Backend,
    Compute,
    Engine,
    ExportRequest,
    Predictor,
    PredictRequest,
    Readiness,
    TrainRequest,
    Variant,
)
from resnext_core.processor import blas_threads

if TYPE_CHECKING:
    from pathlib import Path

    from resnext_core.model.weights import Weights


@dataclass(frozen=True, kw_only=True)
class ExampleOptions:
    """The configuration section ``example``.

    `fold_bn` folds batch normalisation into the convolutions; False scales and shifts after each of them.
    `chunk` is how many images are computed at once: it bounds the memory, and moves logits by rounding alone.

    Bounds stand beside a field; `load_config` checks them, and names where a wrong value came from.
    """

    fold_bn: bool = True
    chunk: Annotated[int, AtLeast(1)] = 8

    def __post_init__(self) -> None:
        check_bounds("example", self)  # for options that no configuration made


@hookimpl
def resnext_backends() -> Iterator[Backend]:
    """Yield the backend."""
    yield Backend(
        id="example",
        summary="NumPy with folded batch normalisation: the template of a backend",
        priority=-10,  # after the reference backend, which has 0
        probe=probe,
        engine=_engine,
        ingredients=frozenset({"mix"}),
        predictor=_predictor,
        formats=(".safetensors", ".npz"),
        exporters={"npz": _export_npz},
        options=ExampleOptions,
        compute=_compute,
        variants=_variants,
    )


def probe() -> Readiness:
    """Return whether the backend can run here; it looks for the framework and does not import it."""
    if find_spec("numpy") is None:
        return Readiness(state="missing", reason="NumPy is not installed: pip install numpy")
    return READY


def _compute(options: ExampleOptions | None) -> Compute:
    return Compute(threads=blas_threads())


def _variants() -> Iterator[Variant]:
    yield Variant(label="unfolded", overrides=("example.fold_bn=false",))


def _engine(request: TrainRequest) -> Engine:
    from resnext_example.engine import ExampleEngine

    return ExampleEngine(request, request.options or ExampleOptions())


def _predictor(request: PredictRequest) -> Predictor:
    from resnext_example.predictor import create_predictor

    return create_predictor(request)


def _export_npz(weights: Weights, path: Path, request: ExportRequest) -> None:
    from resnext_example.artefact import export_npz

    export_npz(weights, path, request)
