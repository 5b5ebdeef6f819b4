"""Figures of the service in Prometheus' form."""

from __future__ import annotations

import math
import os

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counts requests and their time. With several workers, figures of all of them are added up."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "resnext_requests", "Answered requests", ["route", "method", "code"], registry=self._registry
        )
        self._seconds = Histogram(
            "resnext_request_seconds",
            "From the header of a request to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._stages = Histogram(
            "resnext_stage_seconds", "Parts of a request: preprocess, queue, compute", ["model", "stage"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._batches = Histogram(
            "resnext_batch_images",
            "Images computed at once",
            ["model"],
            buckets=_IMAGES,
            registry=self._registry,
        )
        self._images = Counter(
            "resnext_images", "Images by what became of them", ["model", "outcome"], registry=self._registry
        )
        self._waiting = Gauge(
            "resnext_queue_images",
            "Images that wait to be computed",
            ["model"],
            multiprocess_mode="livesum",
            registry=self._registry,
        )
        self._open = Gauge(
            "resnext_requests_open",
            "Requests that are being answered",
            multiprocess_mode="livesum",
            registry=self._registry,
        )
        self._ready = Gauge(
            "resnext_model_ready", "1 while the golden logits of a model agree, else 0", ["model"],
            multiprocess_mode="livemin", registry=self._registry,
        )  # fmt: skip
        self._difference = Gauge(
            "resnext_model_golden_difference", "Largest relative difference from the golden logits at the last check",
            ["model"], multiprocess_mode="livemax", registry=self._registry,
        )  # fmt: skip

    def begin(self) -> None:
        """Count a request that came."""
        self._open.inc()

    def end(self, route: str, method: str, code: int, seconds: float) -> None:
        """Count a request that was answered with `code`."""
        self._open.dec()
        self._requests.labels(route, method, str(code)).inc()
        self._seconds.labels(route).observe(seconds)

    def stages(self, model: str, **seconds: float) -> None:
        """Note the seconds of parts of a request."""
        for stage, amount in seconds.items():
            self._stages.labels(model, stage).observe(amount)

    def batch(self, model: str, images: int) -> None:
        """Note the size of a batch."""
        self._batches.labels(model).observe(images)

    def images(self, model: str, *, answered: int = 0, unreadable: int = 0) -> None:
        """Count images."""
        self._images.labels(model, "answered").inc(answered)
        self._images.labels(model, "unreadable").inc(unreadable)

    def queued(self, model: str, change: int) -> None:
        """Note that so many images more wait, or fewer."""
        self._waiting.labels(model).inc(change)

    def proven(self, model: str, ready: bool, difference: float) -> None:
        """Note what a check of the golden logits found."""
        self._ready.labels(model).set(int(ready))
        if not math.isnan(difference):
            self._difference.labels(model).set(difference)

    def text(self) -> bytes:
        """Return all of them."""
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            return generate_latest(registry)
        return generate_latest(self._registry)
