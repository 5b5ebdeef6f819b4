"""Counts optimizer steps, and keeps the loss scale."""

from __future__ import annotations

from collections.abc import Mapping

from resnext_core.config import PrecisionConfig

#: The dynamic loss scale stops doubling here, the largest power of two of float32.
MAX_LOSS_SCALE = 2.0**127
#: Scalars of every TrainState.
SCALARS = ("step", "overflow_steps", "loss_scale", "good_steps")


class StepCounter:
    """Counts optimizer steps and moves the loss scale; the engine finds out whether a step's gradients are finite.

    `scale` is what the loss of the next step is multiplied by, and its gradients divided by. With `dynamic` the
    scale of a step depends on the step before.
    """

    def __init__(self, precision: PrecisionConfig) -> None:
        self._growth_interval = precision.growth_interval
        self.dynamic = precision.loss_scale == "dynamic"
        self.scale = 1.0 if precision.loss_scale == "none" else float(precision.scale)
        self.step = self.overflow_steps = self.good_steps = 0

    def count(self, finite: bool = True) -> None:
        """Count a step, taken or (not `finite`) skipped.

        A dynamic scale halves on overflow, down to 1, and doubles after `growth_interval` good steps, as in
        Micikevicius et al., arXiv:1710.03740, section 3.2.
        """
        self.step += 1
        self.overflow_steps += not finite
        if not self.dynamic:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.scale = max(self.scale / 2, 1.0)
        elif self.good_steps >= self._growth_interval:
            self.good_steps = 0
            if self.scale < MAX_LOSS_SCALE:
                self.scale *= 2

    def scalars(self) -> dict[str, float | int]:
        """Return the scalars of a TrainState."""
        return {
            "step": self.step,
            "overflow_steps": self.overflow_steps,
            "loss_scale": self.scale,
            "good_steps": self.good_steps,
        }

    def load(self, scalars: Mapping[str, float | int]) -> None:
        """Go on from the scalars of a checked state."""
        self.step = int(scalars["step"])
        self.overflow_steps = int(scalars["overflow_steps"])
        self.good_steps = int(scalars["good_steps"])
        self.scale = float(scalars["loss_scale"])
