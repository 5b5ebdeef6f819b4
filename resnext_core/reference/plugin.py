"""The plugin: the backend ``reference``. Every start of the program imports it, so it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import (
    READY,
    Backend,
    Compute,
    Engine,
    Ingredient,
    Predictor,
    PredictRequest,
    Readiness,
    TrainRequest,
)
from resnext_core.processor import blas_threads
from resnext_core.reference.options import ReferenceOptions


@hookimpl
def resnext_backends() -> Iterator[Backend]:
    """Yield the backend."""
    yield Backend(
        id="reference",
        summary="NumPy, float32 or float64: slow and obvious, the oracle of the others",
        priority=0,
        probe=_probe,
        engine=_engine,
        ingredients=frozenset(get_args(Ingredient)),
        predictor=_predictor,
        formats=(".safetensors",),
        options=ReferenceOptions,
        compute=_compute,
    )


def _probe() -> Readiness:
    """NumPy is a dependency of core, so nothing can be missing."""
    return READY


def _compute(options: ReferenceOptions | None) -> Compute:
    return Compute(threads=blas_threads(), precision=(options or ReferenceOptions()).compute)


def _engine(request: TrainRequest) -> Engine:
    from resnext_core.reference.engine import ReferenceEngine

    return ReferenceEngine(request)


def _predictor(request: PredictRequest) -> Predictor:
    from resnext_core.reference.predictor import create_predictor

    return create_predictor(request)
