"""Stochastic depth: which residual branches are left out for an image, drawn from the seed, the step and the row.

The draw is of all rows of a step over all ranks, of which each rank takes its own: so N ranks leave out what one rank
does that accumulates the same micro-batches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resnext_core.data.sampler import branch_rng


def drop_rates(rate: float, blocks: int) -> NDArray[np.float64]:
    """Return the probability of each block to be left out, linear from 0 at the first to `rate` at the last.

    As timm has it; the paper's first block of L has 1 / L of the rate (Huang et al., arXiv:1603.09382, equation 4). A
    network of one block leaves out nothing.
    """
    return np.linspace(0.0, rate, blocks)


def draw_branches(
    rate: float, blocks: int, *, seed: int, step: int, global_batch: int, rows: slice
) -> NDArray[np.float32]:
    """Return what the branches of these `rows` of a step are multiplied by: float32 (rows, blocks).

    0 where a branch is left out, else 1 / its probability to stay. `step` counts from 0 over the whole training, rows
    over the `global_batch` of all ranks.
    """
    rates = drop_rates(rate, blocks)
    drawn = branch_rng(seed, step).random((global_batch, blocks))[rows]
    branches: NDArray[np.float32] = np.where(drawn >= rates, 1 / (1 - rates), 0.0).astype(np.float32)
    return branches
