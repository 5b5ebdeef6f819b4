"""How the kit compares arrays and states, and how close they must be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resnext_core.interfaces import TrainState

#: max |difference| over max |value|, in float32: logits, weights after a step, losses.
TOLERANCE = 1e-5
#: The same for optimizer state, which is made of gradients: sums of many terms of both signs.
GRADIENT_TOLERANCE = 1e-4
#: The same in float16 and bfloat16.
LOW_TOLERANCE = 2e-2


def relative_error(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return max |actual - expected| / max |expected|; infinity for what is not finite."""
    assert actual.shape == expected.shape, f"shape {actual.shape}, not {expected.shape}"
    difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    if not np.isfinite(difference).all():
        return float("inf")
    return float(difference.max() / max(float(np.abs(expected).max()), 1e-30))


def assert_close(
    actual: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float, what: str
) -> None:
    """Assert that the relative error is at most `tolerance`."""
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{what}: relative error {error:.2e} is above {tolerance:.0e}"


def assert_tensors_close(
    state: TrainState, expected: TrainState, names: list[str], tolerance: float, when: str
) -> None:
    """Assert closeness of the named tensors of two states and list the worst ones."""
    errors = {n: relative_error(state.tensors[n], expected.tensors[n]) for n in names}
    bad = sorted((name for name in names if not errors[name] <= tolerance), key=lambda n: -errors[n])
    shown = ", ".join(f"{name} {errors[name]:.2e}" for name in bad[:5])
    assert not bad, f"{when}: {len(bad)} of {len(names)} tensors differ by more than {tolerance:.0e}: {shown}"


def assert_states_identical(state: TrainState, expected: TrainState, what: str) -> None:
    """Assert that two states are the same to the bit."""
    assert set(state.tensors) == set(expected.tensors)
    differ = [n for n, a in expected.tensors.items() if state.tensors[n].tobytes() != a.tobytes()]
    assert not differ, f"{what}: {len(differ)} of {len(expected.tensors)} tensors differ, e.g. {differ[:3]}"
    assert dict(state.scalars) == dict(expected.scalars), what
