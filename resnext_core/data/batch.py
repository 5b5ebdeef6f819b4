"""Batch: decoded images as core hands them to backends, and Task: which images a batch is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """A batch of decoded images.

    `images` uint8 (N, H, W, 3) RGB; `labels` int32 (N,), -1 where unknown; `index` int64 (N,), the
    position in the data index, -1 on padding rows; `valid` bool (N,), False on rows that must not be
    counted: padding, and images that could not be decoded (their `index` is kept). Pixels of rows that are
    not valid are 0.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    index: NDArray[np.int64]
    valid: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What one batch is made of: `indices` int64 (N,) into the index; `valid` bool (N,), False on padding.

    `epoch` counts from 0 and only matters to augmentation.
    """

    epoch: int
    indices: NDArray[np.int64]
    valid: NDArray[np.bool_]

    @classmethod
    def of(cls, epoch: int, indices: NDArray[Any]) -> Task:
        """A task without padding; `indices` (N,) of any integer type."""
        import numpy as np

        return cls(epoch=epoch, indices=indices.astype(np.int64), valid=np.ones(len(indices), np.bool_))

    def __len__(self) -> int:
        return len(self.indices)
