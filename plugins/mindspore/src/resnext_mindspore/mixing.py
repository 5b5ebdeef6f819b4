"""Mixup and cutmix in a graph: how a batch is mixed as two tensors, and what they make of pixels and of targets.

The tensors are inputs of the same shapes whatever was drawn, so that a graph is compiled once.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from resnext_core.interfaces import MixedRows

#: Columns of `rows`: the partner, its label, and the box (top, left, bottom, right); of `shares`: target and pixels.
PARTNER, LABEL, TOP, LEFT, BOTTOM, RIGHT = range(6)
TARGET, PIXELS = 0, 1


def packed(mix: MixedRows) -> tuple[np.ndarray, np.ndarray]:
    """Return how a micro-batch is mixed as `rows` int32 (N, 6) and `shares` float32 (N, 2)."""
    rows = np.column_stack([mix.partner, mix.labels, mix.box]).astype(np.int32)
    return rows, np.column_stack([mix.share, mix.blend]).astype(np.float32)


class MixPixels(nn.Cell):
    """Float32 pixels (N, H, W, 3) after mixing, on the same scale."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.gather = ops.Gather()

    def construct(self, pixels: Tensor, rows: Tensor, shares: Tensor) -> Tensor:
        height, width = pixels.shape[1], pixels.shape[2]
        down = Tensor(np.arange(height).reshape(1, height, 1, 1), ms.int32)
        across = Tensor(np.arange(width).reshape(1, 1, width, 1), ms.int32)
        box = rows.reshape((-1, 6, 1, 1, 1))
        rows_inside = ops.logical_and(down >= box[:, TOP], down < box[:, BOTTOM])
        columns_inside = ops.logical_and(across >= box[:, LEFT], across < box[:, RIGHT])
        inside = ops.cast(ops.logical_and(rows_inside, columns_inside), ms.float32)
        given = inside * (1 - shares[:, PIXELS].reshape((-1, 1, 1, 1)))
        others = self.gather(pixels, rows[:, PARTNER], 0)
        return pixels * (1 - given) + others * given
