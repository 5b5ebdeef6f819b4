"""Loading a model and proving it: its logits for known images are the ones that its file states."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnext_core.errors import DataError
from resnext_core.jobs.settings import Settings, resolve
from resnext_core.model.weights import Golden
from resnext_core.plugins import load_plugins
from resnext_core.serving.golden import check_backend, check_golden, make_golden
from resnext_core.serving.load import WEIGHTS_SUFFIX, LoadedModel, find_model, serve


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Which file a path stands for: a run's best weights change, and so can a file under the same name."""

    path: Path
    identity: tuple[int, int, int]

    @classmethod
    def of(cls, path: Path) -> Fingerprint:
        """Return that of the model at `path`; raises DataError where there is none."""
        found = find_model(path)
        try:
            status = found.stat()
        except OSError as error:
            raise DataError(f"cannot read {found}: {error.strerror}") from error
        return cls(path=found, identity=(status.st_ino, status.st_size, status.st_mtime_ns))


@dataclass(frozen=True, kw_only=True, eq=False)
class Proven:
    """A model that was proven when it was loaded.

    `golden` are the logits that later checks compare with, and `by` says where they are from: ``file``, or ``backend``
    where the file has none. Then the backend was proven on core's own network, and the model is compared with itself.
    `difference` is the largest of the first check, relative to the largest logit.
    """

    model: LoadedModel
    golden: Golden
    by: str
    difference: float
    fingerprint: Fingerprint

    def check(self) -> float:
        """Return the largest relative difference from the golden logits now; DataError where it is too large."""
        return _difference(self.model, self.golden)

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (N, classes) of uint8 (N, H, W, 3); DataError where one is not finite."""
        logits = np.asarray(self.model.predictor.logits(images), np.float32)
        if not np.isfinite(logits).all():
            raise DataError(f"{self.model.source} gave logits that are not finite")
        return logits


def load(path: Path, settings: Settings, *, backend: str | None, batch_size: int) -> Proven:
    """Load the model at `path` and prove it.

    Raises UsageError, DataError or BackendUnavailable; DataError where it gives wrong results on this machine.
    """
    plugins = load_plugins()
    resolved = resolve(settings, plugins)
    fingerprint = Fingerprint.of(path)
    model = serve(
        path,
        resolved.config,
        resolved.sources,
        plugins,
        backend_id=backend,
        batch_size=batch_size,
        self_check=False,
    )
    try:
        return _prove(model, resolved.config.backends.get(model.backend.id), fingerprint)
    except BaseException:
        model.predictor.close()
        raise


def _difference(model: LoadedModel, golden: Golden) -> float:
    found = check_golden(model.predictor, golden, model.spec, model.source, tolerance=model.golden_tolerance)
    assert found is not None
    return found


def _prove(model: LoadedModel, options: object, fingerprint: Fingerprint) -> Proven:
    if model.golden is not None:
        return Proven(
            model=model, golden=model.golden, by="file", difference=_difference(model, model.golden),
            fingerprint=fingerprint,
        )  # fmt: skip
    difference = 0.0
    if WEIGHTS_SUFFIX in model.backend.formats:
        difference = check_backend(model.backend, options)
        if not difference <= 2e-2:
            raise DataError(
                f"the backend {model.backend.id} gives wrong results on this machine: its golden logits are off by "
                f"{difference:.2g} of the largest; do not use it here"
            )
    golden = make_golden(model.predictor, model.spec, "float32")
    if golden is None:
        raise DataError(f"{model.source} gives logits that are not finite; it cannot be served")
    return Proven(model=model, golden=golden, by="backend", difference=difference, fingerprint=fingerprint)
