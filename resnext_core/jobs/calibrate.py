"""The temperature of a model: fitted on its validation images, and what it does to the errors of calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.errors import DataError, counted
from resnext_core.interfaces import Batch
from resnext_core.ranks.collectives import Collectives
from resnext_core.serving.calibration import COOLEST, HOTTEST, Calibration, Temperature, fit_temperature


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibrated:
    """A temperature that was fitted on `images` images of the data `fitted_on`; nothing that is stored changes.

    `same` is True where these are the images of the evaluation: the errors after it are then those of the fit, and a
    little too good. `before` and `after` are of the evaluated images, with their logits as they are and divided by it.
    """

    temperature: Temperature
    fitted_on: str
    images: int
    same: bool
    before: Calibration
    after: Calibration

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "temperature": self.temperature.value, "bounded": self.temperature.bounded, "fitted_on": self.fitted_on,
            "images": self.images, "same_images": self.same, "before": self.before.to_dict(),
            "after": self.after.to_dict(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Calibrated:
        """Return what :meth:`to_dict` gave."""
        return cls(
            temperature=Temperature(value=found["temperature"], bounded=found["bounded"]),
            fitted_on=found["fitted_on"], images=found["images"], same=found["same_images"],
            before=Calibration.from_dict(found["before"]), after=Calibration.from_dict(found["after"]),
        )  # fmt: skip

    def __str__(self) -> str:
        where = f"the {counted(self.images, 'image that is', 'images that are')} evaluated" if self.same else (
            f"{counted(self.images, 'image')} of {self.fitted_on}"
        )  # fmt: skip
        if self.temperature.bounded:
            return f"no temperature from {COOLEST} to {HOTTEST:.0f} is the best on {where}"
        return (
            f"temperature {self.temperature.value:.4f}, fitted on {where}; "
            f"with logits divided by it: {self.after.line()}; no file was changed"
        )


class KeptLogits:
    """Keeps the logits of a pass, float32 (images of this rank, classes), for a fit, but rows that are not finite."""

    def __init__(self) -> None:
        self._logits: list[NDArray[Any]] = []
        self._labels: list[NDArray[Any]] = []

    def take(self, batch: Batch, logits: NDArray[Any], why: Callable[[int], str]) -> None:
        """Keep the rows of a batch that have a prediction."""
        known = batch.valid & np.isfinite(logits).all(axis=1)
        self._logits.append(logits[known])
        self._labels.append(batch.labels[known])

    def fit(self, collectives: Collectives, name: str) -> tuple[Temperature, int]:
        """Return the temperature, and on how many images it was fitted; DataError where none of `name` could be read.

        All ranks must call and return the same.
        """
        logits, labels = np.concatenate(self._logits), np.concatenate(self._labels)
        images = int(collectives.all_reduce_sum(np.array([len(labels)]))[0])
        if not images:
            raise DataError(f"no temperature can be fitted: no image of {name} has a prediction")
        return fit_temperature(logits, labels, collectives.all_reduce_sum), images

    def calibration(self, temperature: float) -> Calibration:
        """Return the errors of this rank's images at a temperature."""
        calibration = Calibration()
        for logits, labels in zip(self._logits, self._labels, strict=True):
            calibration.add(logits, labels, temperature)
        return calibration
