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
        # What is 0 exactly is so in every arithmetic: the sum of a branch that is left out and a ReLU that was 0.
        nearest = float(np.abs(x[x != 0]).min(initial=np.inf))
        self.distance = min(self.distance, nearest / scale)
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


@contextmanager
def away_from_kinks() -> Iterator[None]:
    """Look at the steps that the reference trainer takes in float64 within the block.

    Raises AssertionError where a step comes nearer to a kink than DISTANCE: steps in float32 need not follow then.
    """
    with watch_kinks() as found:
        yield
    assert found.inputs, "the trainer is not the reference"
    assert found.distance >= DISTANCE, (
        f"a ReLU has an input of {found.distance:.1e} times its usual size: take another seed, fewer pixels or fewer "
        f"steps, so that none of {found.inputs} is nearer to zero than {DISTANCE:.0e}"
    )


def exact_steps(
    reference: Trainer, batches: Sequence[Batch], lrs: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Have the reference trainer take steps in float64, :func:`away_from_kinks`, and return the losses."""
    with away_from_kinks():
        losses = reference.run_steps(batches, lrs)
    return losses
