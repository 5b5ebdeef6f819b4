"""``gpu.engine: mindspore``: the way to the MindSpore engine, as far as it goes without a GPU of its days."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from resnext_gpu.options import GpuOptions

from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig
from resnext_core.errors import BackendUnavailable, UsageError
from resnext_core.interfaces import READY, Backend, LaunchRequest, PredictRequest, TrainRequest
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.serving.golden import golden_weights
from resnext_gpu import mindspore_engine, plugin

OPTIONS = GpuOptions(engine="mindspore")


def calls() -> dict[str, Callable[[Backend], Any]]:
    """Return each factory of the record, called for this engine."""
    train = TrainRequest(
        weights=golden_weights("same"), optimizer=OptimizerConfig(), loss=LossConfig(),
        precision=PrecisionConfig(), batch_size=2, rank=RankInfo(), collectives=SingleProcess(), options=OPTIONS,
    )  # fmt: skip
    predict = PredictRequest(weights=golden_weights("same"), rank=RankInfo(), options=OPTIONS)
    launch = LaunchRequest(module="m", argv=[], devices=2, log_dir=Path(), options=OPTIONS)
    return {
        "engine": lambda b: b.engine(train),
        "predictor": lambda b: b.predictor(predict),
        "connect": lambda b: b.connect(RankInfo(rank=1, world=2), OPTIONS),
        "launch": lambda b: b.launch(launch),
    }


@pytest.fixture
def backend() -> Backend:
    (record,) = plugin.resnext_backends()
    return record


@pytest.mark.parametrize("name", calls())
def test_everything_goes_to_the_engine_with_its_own_options(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pytest.importorskip("resnext_mindspore.options")
    got: list[Any] = []

    def note(request: Any, options: Any = None) -> str:
        got.append(getattr(request, "options", None) if options is None else options)
        return "made"

    record = Backend(
        id="mindspore",
        summary="",
        probe=lambda: READY,
        engine=note,
        predictor=note,
        connect=note,
        launch=note,
    )
    monkeypatch.setattr(mindspore_engine, "backend", lambda: record)
    assert calls()[name](backend) == "made"
    assert [o.device for o in got] == ["gpu"]


@pytest.mark.parametrize("name", calls())
def test_without_the_engine_it_says_what_to_install(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(mindspore_engine.util, "find_spec", lambda _: None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'resnext-core\[mindspore\]'"):
        calls()[name](backend)


def test_without_a_gpu_mindspore_refuses_in_one_line() -> None:
    """In a process of its own: MindSpore is opened once a process, and other tests may have opened it on a CPU."""
    pytest.importorskip("mindspore.nn")
    code = (
        "import test_gpu_mindspore_engine as t\n"
        "from resnext_core.errors import BackendUnavailable\n"
        "from resnext_gpu.plugin import resnext_backends\n"
        "try:\n    t.calls()['predictor'](next(iter(resnext_backends())))\n"
        "except BackendUnavailable as error:\n    print(str(error).count(chr(10)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "0"


def test_other_options_would_mean_nothing() -> None:
    with pytest.raises(UsageError, match="cannot be combined with other gpu options"):
        GpuOptions(engine="mindspore", compile=True)
