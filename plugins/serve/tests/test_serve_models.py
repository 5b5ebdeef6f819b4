"""A model that is served only while it is right, and replaced when its file changes."""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import resnext_serve.loading as loading
import resnext_serve.served as served
from serve_cases import photo, running, save, until, weights

from resnext_core.errors import DataError
from resnext_core.interfaces import Predictor
from resnext_core.model.weights import save_weights


class Moody(Predictor):
    """A predictor that can be made wrong, slow or dead; it counts its calls and notes its end."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.factor, self.error, self.closed = inner, 1.0, "", False
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def logits(self, images: Any) -> Any:
        self.entered.set()
        assert self.gate.wait(60)
        if self.error:
            raise RuntimeError(self.error)
        return self.inner.logits(images) * np.float32(self.factor)

    def close(self) -> None:
        self.closed = True
        self.inner.close()


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> list[Moody]:
    """Let every model that is loaded have a predictor that can be spoilt; returns them as they come."""
    loaded: list[Moody] = []
    real = served.load

    def load(*args: Any, **given: Any) -> Any:
        proven = real(*args, **given)
        loaded.append(Moody(proven.model.predictor))
        return dataclasses.replace(proven, model=dataclasses.replace(proven.model, predictor=loaded[-1]))

    monkeypatch.setattr(served, "load", load)
    return loaded


def infer(service: Any) -> Any:
    return service.post("/predict", photo())


def test_a_model_with_wrong_golden_logits_is_never_served(tmp_path: Path) -> None:
    network = weights()
    assert network.golden is not None
    rows = tuple(tuple(x * 1.01 for x in row) for row in network.golden.logits)
    wrong = dataclasses.replace(network, golden=dataclasses.replace(network.golden, logits=rows))
    path = save(tmp_path / "wrong.safetensors", wrong)
    with pytest.raises(DataError, match="gives wrong results on this machine"), running({"resnext": path}):
        pass


def test_without_golden_logits_the_backend_is_proven_and_the_model_compared_with_itself(
    tmp_path: Path, moody: list[Moody]
) -> None:
    path = save(tmp_path / "model.safetensors", dataclasses.replace(weights(), golden=None))
    with running({"resnext": path}, check=0.05, reload=1000) as service:
        found = service.get("/v2/models/resnext").json()["parameters"]["golden"]
        assert found["from"] == "backend"
        np.testing.assert_allclose(found["logits"], weights().golden.logits, rtol=1e-5, atol=1e-5)  # type: ignore[union-attr]
        moody[0].factor = 1.5
        until(lambda: len(moody) == 2)  # found wrong, and loaded anew


@pytest.mark.parametrize(("tolerance", "is_right"), [(1e-3, False), (0.5, True)])
def test_what_is_known_of_a_model_in_few_bits_is_said_and_its_bound_holds(
    model: Path,
    moody: list[Moody],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tolerance: float,
    is_right: bool,
) -> None:
    real, line = loading.serve, "m: int8, not proven here"

    def serve(*args: Any, **given: Any) -> Any:
        found = real(*args, **given)
        return dataclasses.replace(found, precision="int8", notes=(line,), golden_tolerance=tolerance)

    monkeypatch.setattr(loading, "serve", serve)
    with running({"resnext": model}, check=0.05, reload=1000) as service:
        found = service.get("/v2/models/resnext").json()["parameters"]
        assert (found["precision"], found["notes"]) == ("int8", [line])
        assert f"resnext: {line}" in caplog.messages
        moody[0].factor = 1.1
        if is_right:
            for _ in range(2):
                moody[0].entered.clear()
                assert moody[0].entered.wait(60)  # checked again
            assert service.get("/v2/health/ready").status_code == 200
        else:
            until(lambda: len(moody) == 2)  # found wrong, and loaded anew


def test_live_but_not_ready_while_the_model_is_loaded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, real = threading.Event(), served.load

    def load(*args: Any, **given: Any) -> Any:
        assert go.wait(60)
        return real(*args, **given)

    monkeypatch.setattr(served, "load", load)
    with running({"resnext": model}, wait=False) as service:
        assert service.get("/v2/health/live").status_code == 200
        ready = service.get("/v2/health/ready")
        assert (ready.status_code, ready.json()["reasons"]) == (503, {"resnext": "it is being loaded"})
        refused = infer(service)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        go.set()
        until(lambda: service.get("/v2/health/ready").status_code == 200)
        assert infer(service).status_code == 200


def test_a_backend_that_turns_wrong_is_not_ready_until_a_new_load_is_right(
    model: Path, moody: list[Moody], monkeypatch: pytest.MonkeyPatch
) -> None:
    go, inner = threading.Event(), served.load

    def load(*args: Any, **given: Any) -> Any:
        proven = inner(*args, **given)
        assert len(moody) == 1 or go.wait(60)
        return proven

    monkeypatch.setattr(served, "load", load)
    with running({"resnext": model}, check=0.05, reload=1000) as service:
        assert infer(service).status_code == 200
        moody[0].factor = 1.01
        until(lambda: service.get("/v2/health/ready").status_code == 503)
        assert (
            "gives wrong results on this machine"
            in service.get("/v2/health/ready").json()["reasons"]["resnext"]
        )
        assert service.get("/v2/models/resnext/ready").status_code == 503
        assert service.get("/v2/health/live").status_code == 200
        assert infer(service).status_code == 503
        assert service.figure("resnext_model_ready") == 0
        go.set()
        until(lambda: service.get("/v2/health/ready").status_code == 200)
        assert infer(service).status_code == 200
        until(lambda: moody[0].closed)


def test_a_failing_backend_is_answered_with_500_and_checked_at_once(model: Path, moody: list[Moody]) -> None:
    with running({"resnext": model}, check=1000, reload=1000) as service:
        moody[0].error = "device lost\nfor ever"
        answer = infer(service)
        assert answer.status_code == 500
        assert answer.json()["error"] == "the model resnext failed: device lost for ever"
        until(lambda: infer(service).status_code == 200)  # the check failed too, and it was loaded anew
        assert len(moody) == 2


def test_logits_that_are_not_finite_are_no_answer(model: Path, moody: list[Moody]) -> None:
    with running({"resnext": model}, check=1000, reload=1000) as service:
        moody[0].factor = float("nan")
        answer = infer(service)
        assert answer.status_code == 500
        assert "not finite" in answer.json()["error"]


def run_folder(path: Path, *scales: float) -> Path:
    """Return a run folder with a checkpoint of each head; `best` is the first."""
    for number, scale in enumerate(scales):
        folder = path / "checkpoints" / f"step-{number:08d}"
        folder.mkdir(parents=True)
        save_weights(weights(scale=scale), folder / "weights.safetensors")
    (path / "config.yaml").write_text("{}")
    point(path, 0)
    return path


def point(run: Path, number: int) -> None:
    """Let `best` name another checkpoint, as training does."""
    written = run / "checkpoints" / ".best.new"
    written.write_text(f"step-{number:08d}")
    os.replace(written, run / "checkpoints/best")


def test_a_better_checkpoint_takes_over_without_a_lost_request(tmp_path: Path, moody: list[Moody]) -> None:
    run = run_folder(tmp_path / "run", 1.0, 2.0)
    with running({"resnext": run}, check=1000, reload=0.05) as service:
        before = service.get("/v2/models/resnext").json()["parameters"]["digest"]
        moody[0].entered.clear()
        moody[0].gate.clear()
        answers: list[Any] = []
        client = threading.Thread(target=lambda: answers.append(infer(service)))
        client.start()
        assert moody[0].entered.wait(60)  # a request that the old one has begun
        point(run, 1)
        until(lambda: service.get("/v2/models/resnext").json()["parameters"]["digest"] != before)
        assert not moody[0].closed
        newer = infer(service).json()
        moody[0].gate.set()
        client.join()
        assert answers[0].status_code == 200
        until(lambda: moody[0].closed)
        assert newer["top"][0]["probability"] > answers[0].json()["top"][0]["probability"]


def test_a_checkpoint_that_is_wrong_does_not_take_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_folder(tmp_path / "run", 1.0, 2.0)
    with running({"resnext": run}, check=1000, reload=0.05) as service:
        before = service.get("/v2/models/resnext").json()["parameters"]["digest"]
        broken = run / "checkpoints/step-00000001/weights.safetensors"
        broken.write_bytes(broken.read_bytes()[:-100])
        point(run, 1)
        until(lambda: "resnext was not replaced: " in caplog.text)
        assert service.get("/v2/health/ready").status_code == 200
        assert service.get("/v2/models/resnext").json()["parameters"]["digest"] == before
        assert infer(service).status_code == 200
        save_weights(weights(scale=2.0), broken)  # mended: then it does
        until(lambda: service.get("/v2/models/resnext").json()["parameters"]["digest"] != before)


def test_models_are_apart(tmp_path: Path, model: Path, moody: list[Moody]) -> None:
    other = save(tmp_path / "other.safetensors", weights(scale=2.0))
    with running({"one": model, "two": other}, check=1000, reload=1000) as service:
        one, two = (service.post(f"/predict?model={name}", photo()).json() for name in ("one", "two"))
        assert two["top"][0]["probability"] > one["top"][0]["probability"]
        moody[1].error = "device lost"
        assert service.post("/predict?model=two", photo()).status_code == 500
        assert service.post("/predict?model=one", photo()).status_code == 200
