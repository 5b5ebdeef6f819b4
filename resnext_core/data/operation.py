"""An operation of a plan, as plain numbers, and the random numbers that they are drawn from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, overload

from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Operation:
    """An operation on the resized image, with its parameters.

    :mod:`resnext_core.data.operations` defines each by name, to the bit.
    """

    name: str
    values: tuple[float, ...] = ()


class Uniforms(Protocol):
    """A source of random numbers, uniform in [0, 1)."""

    @overload
    def random(self) -> float: ...
    @overload
    def random(self, size: int) -> NDArray[Any]: ...


class Streams(Uniforms, Protocol):
    """The random numbers of one view of a sample: `random` is for crop, flip and colour jitter."""

    def stream(self, purpose: Literal["auto", "erasing"]) -> Uniforms:
        """Return the stream of another ingredient, from its start."""


def chosen(u: float, n: int) -> int:
    """Return a whole number uniform in 0..n−1 from `u` uniform in [0, 1)."""
    return int(u * n)


def normal(u: float, v: float) -> float:
    """Return a standard normal number from two uniform in [0, 1) (Box and Muller, 1958)."""
    return math.sqrt(-2.0 * math.log(1.0 - u)) * math.cos(2.0 * math.pi * v)


def exponential(u: float) -> float:
    """Return an exponentially distributed number of mean 1 from `u` uniform in [0, 1)."""
    return -math.log(1.0 - u)


def as_byte(value: float) -> int:
    """Return `value` as a level of 0..255: rounded, a half to the even neighbour."""
    return min(max(round(value), 0), 255)
