"""What ranks do together outside the training step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray


class Collectives(Protocol):
    """What ranks do together outside the training step."""

    def all_reduce_sum(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the element-wise sum of int64, float64 or float32 `values` over all ranks, on every rank."""
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
