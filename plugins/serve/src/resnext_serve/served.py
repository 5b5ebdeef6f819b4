"""A model that is served: loaded, proven, proven again at intervals, and replaced when its run has a better one.

Each load is a generation with a batcher of its own. A request keeps the generation that it began with; one that was
replaced is closed when its last request is answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnext_core.errors import ResnextError, one_line
from resnext_core.jobs.settings import Settings
from resnext_serve.batcher import Answer, Batcher
from resnext_serve.errors import Refused
from resnext_serve.loading import Fingerprint, Proven, load
from resnext_serve.metrics import Metrics
from resnext_serve.settings import Limits

log = logging.getLogger("resnext.serve")


class Generation:
    """One load of a model; `users` are the requests that it has to answer yet."""

    def __init__(self, name: str, proven: Proven, limits: Limits, metrics: Metrics) -> None:
        self.proven = proven
        self.batcher = Batcher(
            proven.logits,
            most=limits.batch,
            window=limits.window / 1000,
            queue=limits.queue,
            measure=lambda images: metrics.batch(name, images),
            queued=lambda change: metrics.queued(name, change),
        )
        self.users = 0
        self._retired = False

    async def retire(self) -> None:
        """Close it now, or when its last request is answered."""
        self._retired = True
        await self._close_if_unused()

    @asynccontextmanager
    async def used(self) -> AsyncIterator[Generation]:
        """Keep it open for the length of the block."""
        self.users += 1
        try:
            yield self
        finally:
            self.users -= 1
            await asyncio.shield(self._close_if_unused())

    async def _close_if_unused(self) -> None:
        if self._retired and not self.users:
            self._retired = False  # once
            await self.batcher.close(self.proven.model.predictor.close)


class ServedModel:
    """The model `name` at `path`. It is ready while `reason` is None; otherwise that says in a line why it is not."""

    def __init__(
        self,
        name: str,
        path: Path,
        settings: Settings,
        *,
        backend: str | None,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self.name, self.path = name, path
        self._settings, self._backend, self._limits, self._metrics = settings, backend, limits, metrics
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="resnext-load")
        self._suspect = asyncio.Event()
        self._failed: Fingerprint | None = None
        self.generation: Generation | None = None
        self.reason: str | None = "it is being loaded"
        self.difference = float("nan")

    @property
    def is_ready(self) -> bool:
        """True where requests are answered."""
        return self.reason is None

    @asynccontextmanager
    async def used(self) -> AsyncIterator[Generation]:
        """Yield the newest generation; Refused (503) while there is none that is right."""
        if self.reason is not None or self.generation is None:
            raise Refused(503, f"the model {self.name} is not ready: {self.reason}", retry_after=5)
        async with self.generation.used() as generation:
            yield generation

    async def logits(self, generation: Generation, images: NDArray[np.uint8]) -> Answer:
        """Return the logits of uint8 (N, H, W, 3). Raises Refused: 503 where the queue is full, 500 on a failure."""
        try:
            answer = await generation.batcher.submit(images)
        except Refused:
            raise
        except Exception as error:
            log.error("%s: %s", self.name, one_line(error, 300))
            self._suspect.set()
            raise Refused(500, f"the model {self.name} failed: {one_line(error, 300)}") from error
        if self.generation is generation and self.reason is not None:  # found wrong meanwhile
            raise Refused(503, f"the model {self.name} is not ready: {self.reason}", retry_after=5)
        return answer

    async def start(self) -> None:
        """Load and prove the model for the first time; raises ResnextError."""
        self._take(await self._load())

    async def watch(self) -> None:
        """Prove the model again at intervals, and replace it where its file changed or it became wrong; for ever."""
        loop = asyncio.get_running_loop()
        next_check, next_reload = loop.time() + self._limits.check, loop.time() + self._limits.reload
        while True:
            try:
                pause = max(0.0, min(next_check, next_reload) - loop.time())
                await asyncio.wait_for(self._suspect.wait(), pause)
                next_check = loop.time()
            except asyncio.TimeoutError:
                pass
            self._suspect.clear()
            if loop.time() >= next_check:
                await self._check()
                next_check = loop.time() + self._limits.check
            if loop.time() >= next_reload or self.reason is not None:
                await self._reload()
                next_reload = loop.time() + self._limits.reload

    async def close(self) -> None:
        """Release the device."""
        self.reason = "the service is ending"
        if self.generation is not None:
            await self.generation.retire()
        self._loader.shutdown()

    async def _load(self) -> Proven:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._loader,
            lambda: load(self.path, self._settings, backend=self._backend, batch_size=self._limits.batch),
        )

    def _take(self, proven: Proven) -> Generation | None:
        """Serve from now on what was loaded; returns what was served before."""
        before = self.generation
        self.generation = Generation(self.name, proven, self._limits, self._metrics)
        self.reason, self.difference = None, proven.difference
        for line in proven.model.notes:
            log.warning("%s: %s", self.name, line)
        self._metrics.proven(self.name, True, proven.difference)
        return before

    async def _check(self) -> None:
        """Prove the model again; one that is wrong is not ready."""
        generation = self.generation
        if generation is None or self.reason is not None:
            return
        try:
            self.difference = await generation.batcher.apart(generation.proven.check)
        except Exception as error:
            self.reason = one_line(error, 300)
            log.error("%s is not ready any more: %s", self.name, self.reason)
        self._metrics.proven(self.name, self.is_ready, self.difference)

    async def _reload(self) -> None:
        """Load the model anew where its file changed, or where it became wrong; keeps the old one when that fails."""
        assert self.generation is not None
        loop = asyncio.get_running_loop()
        try:
            now = await loop.run_in_executor(self._loader, Fingerprint.of, self.path)
            if self.reason is None and now in (self.generation.proven.fingerprint, self._failed):
                return
            self._failed = now
            before = self._take(await self._load())
        except ResnextError as error:
            log.error("%s was not replaced: %s", self.name, one_line(error, 300))
            return
        except Exception as error:  # a backend can raise anything; the old generation stays
            log.error("%s was not replaced: %s: %s", self.name, type(error).__name__, one_line(error, 300))
            return
        self._failed = None
        log.info("%s now serves %s", self.name, self.generation.proven.fingerprint.path)
        if before is not None:
            await before.retire()
