"""Running the service in this process until it is told to end: SIGTERM or SIGINT, then no requests are left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import uvicorn

from resnext_core.errors import BackendUnavailable, UsageError, reason
from resnext_serve.app import Service
from resnext_serve.connection import BoundedConnection
from resnext_serve.settings import ServeSettings

log = logging.getLogger("resnext.serve")
#: Descriptors that are not connections: files, models, sockets of the event loop.
_OTHER_DESCRIPTORS = 100
_BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; UsageError where the address cannot be had."""
    if not 0 <= port <= 65535:  # getaddrinfo would take the rest of a division
        raise UsageError(f"a port is a number from 0 to 65535, not {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"cannot listen at {host} port {port}: {why}; choose another with --host, --port"
        ) from error
    found.setblocking(False)
    return found


class Ending:
    """How a service is told to end: `begin` once, open requests are answered; `force`, they are dropped."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.server: uvicorn.Server | None = None

    def begin(self) -> None:
        """End when the open requests are answered."""
        self.begun.set()

    def force(self) -> None:
        """End now."""
        self.begun.set()
        if self.server is not None:
            self.server.force_exit = True


def run(settings: ServeSettings, sock: socket.socket, ready: Callable[[Service], None]) -> None:
    """Serve at `sock` until SIGTERM or SIGINT; see :func:`serve`. To be called in the main thread."""
    _set_up_log()

    async def until_signal() -> None:
        ending = Ending()
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            if ending.begun.is_set():  # Ctrl-C once more
                ending.force()
            ending.begin()

        loop.add_signal_handler(signal.SIGTERM, ending.begin)
        loop.add_signal_handler(signal.SIGINT, interrupt)
        await serve(settings, sock, ready, ending)

    asyncio.run(until_signal())


async def serve(
    settings: ServeSettings, sock: socket.socket, ready: Callable[[Service], None], ending: Ending
) -> None:
    """Serve at `sock` until `ending`; `ready` is called when every model is proven.

    The service listens at once and is live, but not ready, while models are loaded. Raises ResnextError where one
    cannot be loaded, or is wrong.
    """
    service, limits = Service(settings), settings.limits
    config = uvicorn.Config(
        service.app(), http=BoundedConnection, ws="none", lifespan="off", log_config=None, access_log=False,
        proxy_headers=False, server_header=False, timeout_keep_alive=limits.idle,  # type: ignore[arg-type]
        limit_concurrency=_connections(limits.connections), timeout_graceful_shutdown=int(limits.timeout) + 1,
        backlog=_BACKLOG,
    )  # fmt: skip
    server = ending.server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        if await _unless(ending.begun, service.start()):
            ready(service)
            await ending.begun.wait()
            log.info("ending: not ready from now on; open requests are answered")
        service.draining = True
        if service.models:
            await asyncio.sleep(limits.drain)
    finally:
        server.should_exit = True
        await serving
        await service.close()


async def _unless(ending: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do `work`, unless the end is asked for first; returns whether it was done. Raises what it raises."""
    doing, waiting = asyncio.create_task(work), asyncio.create_task(ending.wait())
    await asyncio.wait([doing, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not doing.done():
        doing.cancel()
        return False
    doing.result()
    return True


class _Server(uvicorn.Server):
    """A server that leaves signals to us: uvicorn would end by the signal, not with exit code 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _connections(wanted: int) -> int:
    """Return how many connections may be open: within the limit of descriptors, which is raised where it can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if soft < needed:
            allowed = soft - _OTHER_DESCRIPTORS
            if allowed < 1:
                raise BackendUnavailable(f"this system allows only {soft} open files; raise ulimit -n")
            log.warning("at most %d connections: this system allows only %d open files", allowed, soft)
            return allowed
    return wanted


def _set_up_log() -> None:
    """Write our own lines on standard error; uvicorn's, of which clients can cause any number, nowhere."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("resnext-serve: %(message)s"))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
