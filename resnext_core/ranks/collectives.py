"""What ranks do together outside the training step, and the sum over ranks, the same for every kind of group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from resnext_core.errors import UsageError

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray


class Collectives(Protocol):
    """What ranks do together outside the training step."""

    def all_reduce_sum(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the element-wise sum of `values` over all ranks, on every rank the same bits.

        float32 and float64 keep their type; other floats become float64, integers and booleans int64.
        """
        ...

    def barrier(self) -> None:
        """Return once every rank has called."""
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


class SingleProcess:
    """The collectives of a world of one."""

    def all_reduce_sum(self, values: NDArray[Any]) -> NDArray[Any]:
        return values.copy()

    def barrier(self) -> None:
        pass

    def close(self) -> None:
        pass


class Group(Protocol):
    """Ranks that can exchange bytes: all that :class:`GatheringCollectives` needs."""

    def gather(self, own: NDArray[np.uint8]) -> Sequence[NDArray[np.uint8]]:
        """Return what each rank gave, in rank order. All give as many bytes: a multiple of 4, and not 0."""
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


class GatheringCollectives:
    """The collectives of a group that can gather bytes: every rank gets the values of all, and adds them up itself."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def all_reduce_sum(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the sum over ranks, see :func:`summand` and :func:`add_up`."""
        own = summand(values)
        if own.size == 0:
            return own.reshape(values.shape)
        parts = self._group.gather(own.view(np.uint8))
        return add_up([part.view(own.dtype) for part in parts]).reshape(values.shape)

    def barrier(self) -> None:
        """Return once every rank has called."""
        self.all_reduce_sum(np.zeros(1, np.int64))

    def close(self) -> None:
        """Leave the group."""
        self._group.close()


def summand(values: NDArray[Any]) -> NDArray[Any]:
    """Return a flat copy of `values` in the type in which ranks add them, little-endian.

    float32 and float64 stay what they are, other floats become float64, integers and booleans int64. Raises UsageError
    on what is no number.
    """
    kind = values.dtype.kind
    if kind not in "iubf":
        raise UsageError(f"only integers and floats can be summed over ranks, not {values.dtype}")
    dtype = "<i8" if kind != "f" else "<f4" if values.dtype == np.float32 else "<f8"
    return np.array(values, dtype=dtype, order="C").reshape(-1)


def add_up(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return the sum of arrays of one type, added in their order: so every rank gets the same bits."""
    total = parts[0].copy()
    with np.errstate(all="ignore"):  # infinities are the caller's to notice
        for part in parts[1:]:
            total += part
    return total
