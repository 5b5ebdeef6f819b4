"""A small real model, image files, and the service running in a thread of the test's own process."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from resnext_serve.app import Service
from resnext_serve.server import Ending, listen, serve
from resnext_serve.settings import Limits, ServeSettings

from resnext_core.interfaces import PredictRequest
from resnext_core.jobs.settings import Settings
from resnext_core.model.weights import Weights, save_weights
from resnext_core.ranks.info import RankInfo
from resnext_core.reference.predictor import create_predictor
from resnext_core.serving.golden import golden_weights, make_golden

#: Pixels of a side of the small network, and its classes.
SIZE, CLASSES = 36, 5


def weights(*, scale: float = 1.0) -> Weights:
    """Return core's golden network, with golden logits of its own; `scale` multiplies its head."""
    found = golden_weights()
    tensors = {name: np.asarray(array) for name, array in found.tensors.items()}
    tensors["fc.weight"] = tensors["fc.weight"] * np.float32(scale)
    found = replace(found, tensors=tensors)
    with_predictor = predictor(found)
    return replace(found, golden=make_golden(with_predictor, found.spec, "float32"))


def predictor(network: Weights) -> Any:
    """Return the reference predictor of weights."""
    return create_predictor(PredictRequest(weights=network, rank=RankInfo()))


def save(path: Path, network: Weights) -> Path:
    """Save weights and return their path."""
    save_weights(network, path)
    return path


def photo(seed: int = 0, size: tuple[int, int] = (60, 48), kind: str = "JPEG") -> bytes:
    """Return an image file of (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 4, size[0] // 4, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels.repeat(4, 0).repeat(4, 1)).save(stream, kind)
    return stream.getvalue()


def pixels(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return uint8 (count, SIZE, SIZE, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; fails after two minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@dataclass(kw_only=True, eq=False)
class Running:
    """A service that runs, and a client of it; `failure` is what ended it early."""

    settings: ServeSettings
    url: str
    service: Service | None = None
    failure: BaseException | None = None
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60, trust_env=False))
    loop: asyncio.AbstractEventLoop | None = None

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def get(self, path: str, **given: Any) -> httpx.Response:
        return self.client.get(self.url + path, **given)

    def post(self, path: str, content: Any = None, **given: Any) -> httpx.Response:
        return self.client.post(self.url + path, content=content, **given)

    def figure(self, name: str) -> float:
        """Return the sum of a figure of /metrics over its labels."""
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


@contextmanager
def running(
    models: Mapping[str, Path], *, wait: bool = True, token: str | None = None, backend: str = "reference",
    overrides: tuple[str, ...] = (), **limits: Any,
) -> Iterator[Running]:  # fmt: skip
    """Run the service in a thread; with `wait` the block begins when it is ready."""
    settings = ServeSettings(
        models=models, backend=backend, config=Settings(overrides=overrides), token=token, limits=Limits(**limits)
    )  # fmt: skip
    sock = listen("127.0.0.1", 0)
    found = Running(settings=settings, url=f"http://127.0.0.1:{sock.getsockname()[1]}")
    ready, begun = threading.Event(), threading.Event()
    ending: list[Ending] = []

    async def work() -> None:
        ending.append(Ending())
        found.loop = asyncio.get_running_loop()
        begun.set()

        def is_ready(service: Service) -> None:
            found.service = service
            ready.set()

        await serve(settings, sock, is_ready, ending[0])

    def main() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            found.failure = error
        finally:
            ready.set()

    thread = threading.Thread(target=main)
    thread.start()
    begun.wait()
    try:
        if wait:
            ready.wait()
            if found.failure is not None:
                raise found.failure
        yield found
    finally:
        found.client.close()
        assert found.loop is not None
        if thread.is_alive():
            found.loop.call_soon_threadsafe(ending[0].begin)
        thread.join()
        sock.close()
