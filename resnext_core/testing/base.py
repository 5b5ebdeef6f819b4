"""What every part of the kit stands on: the backend under test, what it can do, what is kept for reuse."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import pytest

from resnext_core.errors import UsageError
from resnext_core.interfaces import Backend, ExportRequest, Predictor, PredictRequest, TrainRequest
from resnext_core.model.weights import Weights
from resnext_core.plugins import get_backend, load_plugins, probe, probe_file
from resnext_core.testing import cases
from resnext_core.training.trainer import Trainer, create_trainer

#: Backend ids, separated by commas, whose absence is a failure and not a skip.
REQUIRE = "RESNEXT_REQUIRE"


def required(backend_id: str) -> bool:
    """True where tests of a backend must not be skipped for what is missing here."""
    return backend_id in os.environ.get(REQUIRE, "").replace(" ", "").split(",")


class ContractBase:
    """The backend under test and helpers; holds no tests.

    `backend_id` names an installed backend. `backend` may be set to a record instead, and then `worker`
    to ``module:name`` of that record for the processes of the distributed tests. `options` are values of
    the backend's option dataclass that differ from its defaults. `ranks` is how many processes the
    distributed tests start: 3, or 2 where there are no more devices.
    """

    backend_id: ClassVar[str] = ""
    backend: ClassVar[Backend | None] = None
    worker: ClassVar[str | None] = None
    options: ClassVar[Mapping[str, Any]] = {}
    ranks: ClassVar[int] = 3
    _kept: ClassVar[dict[Any, Any]]

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Refuse subclasses that replace a standard test with anything but a declared expected failure."""
        super().__init_subclass__(**arguments)
        cls._kept = {}
        if "__test__" not in vars(cls):
            cls.__test__ = bool(cls.backend_id or cls.backend)  # type: ignore[attr-defined]
        for name, value in vars(cls).items():
            if name.startswith("test_") and any(hasattr(base, name) for base in cls.__bases__):
                marks = getattr(value, "pytestmark", [])
                if not any(mark.name == "xfail" and mark.kwargs.get("reason") for mark in marks):
                    raise TypeError(
                        f"{cls.__name__}.{name} overrides a standard test of the contract; only "
                        "@pytest.mark.xfail(reason=...) may"
                    )

    @classmethod
    def teardown_class(cls) -> None:
        """Release what was kept."""
        while cls._kept:
            _, value = cls._kept.popitem()
            close = getattr(value, "close", None) or getattr(value, "cleanup", None)
            if close is not None:
                close()

    # -- the backend -----------------------------------------------------------------------------

    @property
    def record(self) -> Backend:
        """The backend's record, whether it can run here or not."""
        return self.backend if self.backend is not None else get_backend(self.backend_id)

    @property
    def backend_options(self) -> Any:
        """The backend's validated options, None for a backend without."""
        return None if self.record.options is None else self.record.options(**self.options)

    def require(self, capability: str) -> Any:
        """Return a factory of the backend; skip where it has none, or cannot run here."""
        backend = self.record
        factory = getattr(backend, capability)
        if not factory:
            pytest.skip(f"{backend.id} offers no {capability}")
        here = backend.probe()
        if not here.usable:
            if required(backend.id):
                pytest.fail(f"{backend.id} is required here ({REQUIRE}) but not available: {here.reason}")
            pytest.skip(f"{backend.id} is not available: {here.reason}")
        return factory

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return `make()`, made once for this class and closed after its last test."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    # -- what it makes ---------------------------------------------------------------------------

    def trainer(self, request: TrainRequest) -> Trainer:
        """Return a new trainer for `request`, with the options under test; the caller closes it."""
        self.require("engine")
        return create_trainer(self.record, dataclasses.replace(request, options=self.backend_options))

    def kept_predictor(self, name: str, weights: Weights, *, tensor_input: bool = False) -> Predictor:
        """Return a predictor of `weights`, kept under `name`.

        A backend that serves no weights in memory is given an artefact: its own exporter's, or one that
        another installed backend can write.
        """
        make = lambda: self.serve(name, weights, tensor_input=tensor_input)  # noqa: E731
        predictor: Predictor = self.keep(("predictor", name, tensor_input), make)
        return predictor

    def serve(
        self, name: str, weights: Weights, *, tensor_input: bool = False, export_batch: int | None = None
    ) -> Predictor:
        """Return a new predictor of `weights`; see :meth:`kept_predictor`.

        `export_batch` is the batch size an artefact is made for; None is any.
        """
        factory = self.require("predictor")
        request = PredictRequest(
            weights=weights,
            batch_size=cases.PREDICT_BATCH,
            tensor_input=tensor_input,
            rank=cases.SINGLE,
            options=self.backend_options,
        )
        if ".safetensors" not in self.record.formats:
            path = self._artefact(name, weights, "float" if tensor_input else "uint8", export_batch)
            request = dataclasses.replace(request, weights=None, path=path)
        predictor: Predictor = factory(request)
        return predictor

    def both_doors(self, predictor: Predictor, network: str, source: Weights, what: str) -> None:
        """Assert that images, and the same normalised, give the logits of the reference, one and five at a time.

        A predictor may refuse tensors with a UsageError where it was not made for them.
        """
        pixels = cases.images(network, 5)
        tensor = cases.normalized(network, pixels)
        expected = cases.oracle_predictor(source).logits(pixels)
        for count in (5, 1):
            logits = predictor.logits(pixels[:count])
            cases.assert_close(logits, expected[:count], cases.TOLERANCE, f"{what}: logits of {count} images")
            try:
                logits = predictor.logits_from_tensor(tensor[:count])
            except UsageError:
                continue
            said = f"{what}: logits of {count} normalised images"
            cases.assert_close(logits, expected[:count], cases.TOLERANCE, said)

    def missing(self, reason: str) -> NoReturn:
        """Skip a test for what is missing here; fail it where the backend is required."""
        if required(self.record.id):
            pytest.fail(f"{self.record.id} is required here ({REQUIRE}) but cannot be tested: {reason}")
        pytest.skip(reason)

    def _artefact(self, name: str, weights: Weights, kind: str, batch: int | None) -> Path:
        folder = self.keep("folder", lambda: tempfile.TemporaryDirectory(prefix="resnext-contract-"))
        for suffix in self.record.formats:
            for backend in (self.record, *load_plugins().backends.values()):
                for format_name, exporter in backend.exporters.items():
                    if backend.ending(format_name) != suffix or not probe(backend).usable:
                        continue
                    path = Path(folder.name) / f"{name}-{kind}-{batch or 'any'}{suffix}"
                    own = self.backend_options if backend is self.record else _default_options(backend)
                    exporter(weights, path, ExportRequest(batch_size=batch, input=kind, options=own))
                    if probe_file(self.record, path, self.backend_options).usable:
                        return path
        self.missing(
            f"no installed exporter writes what {self.record.id} serves: {', '.join(self.record.formats)}"
        )


def _default_options(backend: Backend) -> Any:
    return None if backend.options is None else backend.options()


def server_of(path: Path, first: Backend, options: Any) -> Backend | None:
    """Return an available backend that serves the artefact at `path`, `first` with these `options` if it does."""
    for backend in (first, *load_plugins().backends.values()):
        if backend.predictor is None or path.suffix not in backend.formats or not probe(backend).usable:
            continue
        own = options if backend is first else _default_options(backend)
        if backend.file_probe is None or probe_file(backend, path, own).usable:
            return backend
    return None
