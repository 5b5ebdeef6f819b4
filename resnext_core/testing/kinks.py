"""How near training steps come to a kink: there float32 arithmetics that are both right take different gradients.

A ReLU hands a gradient on or not, by the sign of its input. Where an input is as near to zero as a rounding, another
number of threads, another instruction set or another engine decides otherwise, and the gradients of whole channels
differ. Tests that compare steps closely choose seeds and data that keep away from it, and assert that they do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.interfaces import Batch
from resnext_core.reference import network
from resnext_core.training.trainer import Trainer

#: Distance that steps in float32 must keep: some roundings of a sum of a few hundred terms.
DISTANCE = 4e-6


@dataclass(kw_only=True)
class Kinks:
    """The smallest |input| of a ReLU over the root mean square of its tensor, and how many inputs there were."""

    distance: float = float("inf")
    inputs: int = 0

    def look(self, x: NDArray[Any]) -> None:
        """Take the inputs of one ReLU, in float64."""
        assert x.dtype == np.float64, "run the steps with PrecisionConfig(compute='float64')"
        scale = float(np.sqrt(np.square(x).mean()))
        self.distance = min(self.distance, float(np.abs(x).min()) / scale)
        self.inputs += x.size


@contextmanager
def watch_kinks() -> Iterator[Kinks]:
    """Look at every ReLU of the reference network, in training and evaluation, for the length of the block."""
    found, relu = Kinks(), network._relu

    def watched(x: NDArray[Any]) -> NDArray[Any]:
        found.look(x)
        return relu(x)

    network._relu = watched
    try:
        yield found
    finally:
        network._relu = relu


def exact_steps(
    reference: Trainer, batches: Sequence[Batch], lrs: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Have the reference trainer take steps in float64 and return the losses.

    Raises AssertionError where a step comes nearer to a kink than DISTANCE: steps in float32 need not follow then.
    """
    with watch_kinks() as found:
        losses = reference.run_steps(batches, lrs)
    assert found.inputs, "the trainer is not the reference"
    assert found.distance >= DISTANCE, (
        f"a ReLU has an input of {found.distance:.1e} times its usual size: take another seed, fewer pixels or fewer "
        f"steps, so that none of {found.inputs} is nearer to zero than {DISTANCE:.0e}"
    )
    return losses
