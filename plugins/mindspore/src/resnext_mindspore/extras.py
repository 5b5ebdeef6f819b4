"""The tensors that a step has beside images, labels and weights: which there are, and in what order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resnext_core.interfaces import StepInput, TrainRequest
from resnext_mindspore.mixing import packed


@dataclass(frozen=True, kw_only=True)
class Extras:
    """Two tensors of :mod:`resnext_mindspore.mixing` where images are mixed, then `branches`, then `teacher`.

    They are the last inputs of a graph. What a training does not have is left out, the same at every step.
    """

    mixes: bool = False
    drops: bool = False
    teaches: bool = False

    @classmethod
    def of(cls, request: TrainRequest) -> Extras:
        """Return what the steps of a training have."""
        return cls(mixes=request.mixes, drops=request.drops, teaches=request.distillation is not None)

    @property
    def branches_at(self) -> int:
        """The place of `branches`, which is also the number of tensors about mixing."""
        return 2 * self.mixes

    @property
    def teacher_at(self) -> int:
        """The place of `teacher`."""
        return self.branches_at + self.drops

    def arrays(self, step: StepInput) -> list[np.ndarray]:
        """Return those of a micro-batch."""
        found = [] if step.mix is None else [*packed(step.mix)]
        return found + [array for array in (step.branches, step.teacher) if array is not None]
