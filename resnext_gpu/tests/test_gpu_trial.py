"""Trying whether a batch fits the GPU's memory: as far as a CPU can show it; test_gpu_hardware.py has the rest."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gpu_cases import tiny_weights, train_request  # noqa: E402
from gpu_ingredients import request_of  # noqa: E402
from resnext_gpu.engine import GpuEngine  # noqa: E402
from resnext_gpu.network import Network  # noqa: E402
from resnext_gpu.options import GpuOptions  # noqa: E402
from resnext_gpu.plugin import resnext_backends  # noqa: E402

from resnext_core.interfaces import TrainRequest  # noqa: E402
from resnext_core.ranks.info import RankInfo  # noqa: E402
from resnext_gpu import trial  # noqa: E402

CPU = GpuOptions(device="cpu")


def asked(request: TrainRequest, options: GpuOptions = CPU) -> bool | None:
    (record,) = resnext_backends()
    assert record.batch_fits is not None
    return record.batch_fits(dataclasses.replace(request, options=options))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU pass for a card whose memory is watched."""

    class Card:
        type = "cuda"

    @contextmanager
    def unlimited(device: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr(trial, "open_device", lambda device: Card())
    monkeypatch.setattr(trial, "_limited", unlimited)


def test_a_cpu_cannot_be_tried() -> None:
    assert asked(train_request()) is None
    assert asked(train_request(), GpuOptions(engine="mindspore")) is None


@pytest.mark.parametrize("case", ["everything", "adamw", "frozen stage"])
@pytest.mark.usefixtures("card")
def test_a_batch_that_fits_leaves_nothing_behind(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    init = GpuEngine.__init__

    def noted(engine: GpuEngine, *given: Any, **more: Any) -> None:
        init(engine, *given, **more)
        made.extend(weakref.ref(t) for t in engine._table.named().values())

    monkeypatch.setattr(GpuEngine, "__init__", noted)
    assert asked(request_of(case)) is True
    gc.collect()
    assert made
    assert [ref() for ref in made if ref() is not None] == []


@pytest.mark.parametrize("where", ["step", "prediction"])
@pytest.mark.usefixtures("card")
def test_a_batch_that_does_not_fit(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of more than 4 images does not, or the evaluation; any other error is one."""
    forward = Network.forward

    def limited(error: Exception) -> Any:
        def call(network: Network, images: Any, *mix: Any, **more: Any) -> Any:
            if network.training == (where == "step") and len(images) > 4:
                raise error
            return forward(network, images, *mix, **more)

        return call

    monkeypatch.setattr(Network, "forward", limited(torch.cuda.OutOfMemoryError("CUDA out of memory")))
    assert asked(train_request(batch_size=6)) is False
    assert asked(train_request(batch_size=4)) is True
    assert asked(train_request(batch_size=12, accumulate=3)) is (where == "step")
    monkeypatch.setattr(Network, "forward", limited(RuntimeError("an illegal memory access")))
    with pytest.raises(RuntimeError, match="illegal"):
        asked(train_request(batch_size=6))


@pytest.mark.usefixtures("card")
def test_a_rank_tries_alone_with_the_buffers_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks try at their own pace: a sum over them would wait for one that is elsewhere."""
    seen: list[GpuEngine] = []
    rehearse = GpuEngine.rehearse

    def noted(engine: GpuEngine) -> bool:
        assert engine._own_step is not None
        assert engine._own_step.gradients.flats
        assert engine._request.rank == RankInfo(local_rank=1)
        seen.append(engine)
        return rehearse(engine)

    monkeypatch.setattr(GpuEngine, "rehearse", noted)
    rank = RankInfo(rank=3, world=4, local_rank=1)
    request = train_request(tiny_weights(6), rank=rank, ema_decay=0.5)
    assert asked(request, GpuOptions(device="cpu", sync_bn=True)) is True
    assert len(seen) == 1


def test_the_limit_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share)
    )
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with pytest.raises(ValueError, match="inside"), trial._limited(torch.device("cuda", 0)):
        raise ValueError("inside")
    assert shares == [0.95, 1.0]
