"""What ``doctor`` says of a backend: every format that can be tried, and a true word for each outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from resnext_core.errors import BackendUnavailable, DataError
from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import READY, Backend, ExportRequest, Predictor, PredictRequest, Readiness
from resnext_core.jobs.backend_check import check
from resnext_core.model.weights import Weights, load_weights, save_weights
from resnext_core.plugins import PluginSet, collect
from resnext_core.reference.plugin import resnext_backends as reference_backends

(REFERENCE,) = reference_backends()


def serve(request: PredictRequest) -> Predictor:
    """Serve a weights file under any ending, by the reference network."""
    assert request.path is not None
    assert REFERENCE.predictor is not None
    made = PredictRequest(weights=load_weights(request.path), rank=request.rank)
    return REFERENCE.predictor(made)


class Off:
    """A predictor that is wrong by a hundredth."""

    def __init__(self, request: PredictRequest) -> None:
        self._right = serve(request)

    def logits(self, images: Any) -> Any:
        return self._right.logits(images) * np.float32(1.01)

    def close(self) -> None:
        self._right.close()


def engine(**by_suffix: Callable[[PredictRequest], Predictor]) -> Callable[[PredictRequest], Predictor]:
    def open_it(request: PredictRequest) -> Predictor:
        assert request.path is not None
        return by_suffix[request.path.suffix[1:]](request)

    return open_it


def missing(request: PredictRequest) -> Predictor:
    raise BackendUnavailable("there is no engine for it")


def breaks(request: PredictRequest) -> Predictor:
    raise DataError("it cannot be loaded")


def crashes(request: PredictRequest) -> Predictor:
    raise ValueError("two\nlines")


def write(weights: Weights, path: Path, request: ExportRequest) -> None:
    save_weights(weights, path)


def refuse(weights: Weights, path: Path, request: ExportRequest) -> None:
    raise BackendUnavailable("no licence")


def plugins(*backends: Backend) -> PluginSet:
    """Return a set with these backends and one that writes .aa and .bb, and cannot write .cc."""
    maker = Backend(
        id="maker", summary="", probe=lambda: READY, exporters={"aa": write, "bb": write, "cc": refuse}
    )

    @hookimpl
    def resnext_backends() -> tuple[Backend, ...]:
        return (maker, *backends)

    plugin = ModuleType("plugin")
    plugin.resnext_backends = resnext_backends  # type: ignore[attr-defined]
    found = collect([("dist", "test", plugin)])
    assert not found.problems
    return found


MOON = Readiness(state="missing", reason="it needs the moon")


def server(formats: tuple[str, ...], **by_suffix: Callable[[PredictRequest], Predictor]) -> Backend:
    return Backend(
        id="one", summary="", probe=lambda: READY, predictor=engine(**by_suffix), formats=formats,
        format_probe=lambda suffix: MOON if suffix == ".dd" else READY,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("backend", "state", "formats"),
    [
        (server((".bb", ".aa"), bb=missing, aa=serve), "ready", {".bb": "not here", ".aa": "ready"}),
        (server((".aa", ".bb"), bb=missing, aa=serve), "ready", {".bb": "not here", ".aa": "ready"}),
        (server((".aa", ".bb"), aa=serve, bb=Off), "WRONG", {".aa": "ready", ".bb": "WRONG"}),
        (server((".aa", ".bb"), aa=serve, bb=breaks), "FAILED", {".aa": "ready", ".bb": "FAILED"}),
        (server((".aa",), aa=crashes), "FAILED", {".aa": "FAILED"}),
        (server((".aa", ".bb"), aa=missing, bb=missing), "not here", {".aa": "not here", ".bb": "not here"}),
        (server((".cc", ".aa"), aa=serve, cc=serve), "ready", {".cc": "not checked", ".aa": "ready"}),
        (server((".dd", ".aa"), aa=serve, dd=Off), "ready", {".dd": "not here", ".aa": "ready"}),
        (server((".xx", ".yy")), "not checked", {".xx": "not checked", ".yy": "not checked"}),
    ],
    ids=["first", "last", "wrong", "breaks", "crashes", "nothing here", "not made", "probe", "no maker"],
)  # fmt: skip
def test_every_format_is_tried_and_each_outcome_has_its_word(
    backend: Backend, state: str, formats: dict[str, str]
) -> None:
    result = check(backend, plugins(backend)).to_dict()
    assert {f["format"]: f["state"] for f in result["formats"]} == formats
    assert result["state"] == state
    assert "\n" not in result["detail"]


def test_in_test_mode_nothing_is_computed() -> None:
    cpu = Readiness(state="test mode", reason="no device; --set one.device=cpu")
    backend = replace(server((".aa",), aa=crashes), probe=lambda: cpu)
    result = check(backend, plugins(backend)).to_dict()
    assert (result["state"], result["detail"], result["formats"]) == ("test mode", cpu.reason, [])


def test_the_details_say_why() -> None:
    def detail(backend: Backend) -> str:
        return check(backend, plugins(backend)).detail

    assert detail(server((".xx",))) == "no exporter for its formats (.xx) is installed"
    assert detail(server((".bb", ".aa"), bb=missing, aa=serve)).startswith(
        ".bb: not here: there is no engine for it; .aa: golden logits within "
    )
    assert "maker cannot write one here: no licence" in detail(server((".cc", ".aa"), aa=serve, cc=serve))
    assert ".dd: not here: it needs the moon" in detail(server((".dd", ".aa"), aa=serve))
    assert detail(server((".aa",), aa=crashes)) == "ValueError: two lines"
