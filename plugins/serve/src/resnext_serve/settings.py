"""What the service is to serve, where, and within which limits."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from resnext_core.bounds import Above, AtLeast, check_bounds
from resnext_core.data.decode import MAX_PIXELS
from resnext_core.jobs.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client may ask of the service.

    At most `batch` images are computed at once, after waiting at most `window` milliseconds for other requests that
    are on their way. At most `queue` images wait for that. A body has at most `body_mb` megabytes (10^6 bytes), an
    image `pixels`, a request `images`. A request is answered within `timeout` seconds; its header, and each pause
    between two requests of a connection, take at most `idle` seconds. At most `connections` are open. `decoders`
    threads decode images. Models are proven again every `check` seconds, and runs are asked for better weights every
    `reload` seconds. After SIGTERM the service is not ready, but answers for `drain` seconds more.

    Raises UsageError on a value out of its bounds.
    """

    batch: Annotated[int, AtLeast(1)] = 32
    window: Annotated[float, AtLeast(0)] = 3.0
    queue: Annotated[int, AtLeast(1)] = 256
    body_mb: Annotated[float, Above(0)] = 32.0
    pixels: Annotated[int, AtLeast(1)] = 50_000_000
    images: Annotated[int, AtLeast(1)] = 64
    timeout: Annotated[float, Above(0)] = 30.0
    idle: Annotated[float, Above(0)] = 10.0
    connections: Annotated[int, AtLeast(1)] = 1000
    check: Annotated[float, Above(0)] = 60.0
    reload: Annotated[float, Above(0)] = 10.0
    drain: Annotated[float, AtLeast(0)] = 0.0
    decoders: Annotated[int, AtLeast(1)] = field(default_factory=lambda: min(8, _processors()))

    def __post_init__(self) -> None:
        check_bounds("serve", self)

    @property
    def body_bytes(self) -> int:
        """The most bytes of a body."""
        return int(self.body_mb * 1e6)

    @property
    def decoded_pixels(self) -> int:
        """The most pixels of an image that is decoded."""
        return min(self.pixels, MAX_PIXELS)


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """A service: `models` by name, each a run folder, a weights file or an artefact; `config` is theirs all.

    The first model is the one that ``/predict`` takes by itself. `backend` None takes for each the best that can serve
    it. `token` is the bearer token that requests must bring, None for no such thing.
    """

    models: Mapping[str, Path]
    backend: str | None = None
    config: Settings = field(default_factory=Settings)
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    token: str | None = field(default=None, repr=False)
    limits: Limits = field(default_factory=Limits)

    @property
    def is_local(self) -> bool:
        """True where only this machine can reach the service."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
