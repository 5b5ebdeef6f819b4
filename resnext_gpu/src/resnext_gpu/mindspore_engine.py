"""``gpu.engine: mindspore``: the MindSpore engine on a GPU of the days of CUDA 11. Plumbing; no GPU has run it."""

from __future__ import annotations

from dataclasses import replace
from importlib import util
from typing import TYPE_CHECKING

from resnext_core.errors import BackendUnavailable
from resnext_core.interfaces import Backend, Engine, LaunchRequest, Predictor, PredictRequest, TrainRequest
from resnext_core.training.ingredients import asked_by_request, check_ingredients

if TYPE_CHECKING:
    from resnext_core.ranks.collectives import Collectives
    from resnext_core.ranks.info import RankInfo


def create_engine(request: TrainRequest) -> Engine:
    """Return MindSpore's engine on this rank's GPU; UsageError where it cannot do what PyTorch's can."""
    check_ingredients(backend(), asked_by_request(request))
    make = backend().engine
    assert make is not None
    return make(replace(request, options=_options()))


def create_predictor(request: PredictRequest) -> Predictor:
    """Return MindSpore's predictor on this rank's GPU."""
    make = backend().predictor
    assert make is not None
    return make(replace(request, options=_options()))


def connect(rank: RankInfo) -> Collectives:
    """Join the other ranks over MindSpore's NCCL."""
    join = backend().connect
    assert join is not None
    return join(rank, _options())


def launch(request: LaunchRequest) -> int:
    """Start the ranks as a cluster of MindSpore."""
    start = backend().launch
    assert start is not None
    return start(replace(request, options=_options()))


def backend() -> Backend:
    """Return the record of the MindSpore engine; BackendUnavailable where it is not installed or cannot run."""
    if util.find_spec("resnext_mindspore") is None:
        raise BackendUnavailable(
            "gpu.engine=mindspore needs the MindSpore engine: pip install 'resnext-core[mindspore]'"
        )
    from resnext_mindspore.plugin import resnext_backends

    (record,) = resnext_backends()
    here = record.probe()
    if not here.usable:
        raise BackendUnavailable(f"gpu.engine=mindspore: {here.reason}")
    return record


def _options() -> object:
    from resnext_mindspore.options import MindsporeOptions

    return MindsporeOptions(device="gpu")
