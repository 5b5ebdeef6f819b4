"""What every trainer keeps beside its tensors: the loss scale, the counters, and the check of a state it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from resnext_core.config import PrecisionConfig
from resnext_core.errors import DataError
from resnext_core.interfaces import TrainState

#: The dynamic loss scale stops doubling here, the largest power of two of float32.
MAX_LOSS_SCALE = 2.0**127
#: Scalars of every TrainState.
SCALARS = ("step", "overflow_steps", "loss_scale", "good_steps")


class StepCounter:
    """Counts optimizer steps and moves the loss scale; whether a step's gradients are finite, its trainer finds out.

    `scale` is what the loss of the next step is multiplied by, and its gradients divided by. With `checks` a step
    whose gradients are not finite must be skipped; with `dynamic` the scale of a step depends on the step before.
    """

    def __init__(self, precision: PrecisionConfig, *, skip_nonfinite: bool = False) -> None:
        self._growth_interval = precision.growth_interval
        self.checks = skip_nonfinite or precision.loss_scale != "none"
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
        """Go on from the scalars of a state that :func:`check_state` has passed."""
        self.step = int(scalars["step"])
        self.overflow_steps = int(scalars["overflow_steps"])
        self.good_steps = int(scalars["good_steps"])
        self.scale = float(scalars["loss_scale"])


def check_state(state: TrainState, shapes: Mapping[str, tuple[int, ...]], variant: str) -> None:
    """Raise DataError unless `state` has exactly the float32 tensors of `shapes`, by key, and all scalars."""
    tensors: Mapping[str, Any] = state.tensors
    problems = [f"missing {n}" for n in shapes if n not in tensors]
    problems += [f"unexpected {n}" for n in tensors if n not in shapes]
    for name, shape in shapes.items():
        array = tensors.get(name)
        if array is not None and (tuple(array.shape) != tuple(shape) or array.dtype != np.float32):
            problems.append(f"{name} is {array.dtype} {array.shape}, not float32 {tuple(shape)}")
    problems += [f"missing {n}" for n in SCALARS if n not in state.scalars]
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise DataError(f"this state does not fit {variant}: {'; '.join(problems[:4])}{more}")
