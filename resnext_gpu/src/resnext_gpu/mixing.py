"""Mixup and cutmix on the device: how a batch is mixed as two tensors, and what they make of its pixels.

The tensors have the same shapes whatever was drawn, so one compiled step, and one CUDA graph, serves every draw.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnext_core.interfaces import MixedRows

#: Columns of `rows`: the partner, its label, and the box (top, left, bottom, right); of `shares`: target and pixels.
_PARTNER, _LABEL, _BOX = 0, 1, slice(2, 6)
_TARGET, _PIXELS = 0, 1


def packed(mix: MixedRows) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return how a batch is mixed as `rows` int64 (N, 6) and `shares` float32 (N, 2)."""
    rows = np.column_stack([mix.partner, mix.labels, mix.box]).astype(np.int64)
    return rows, np.column_stack([mix.share, mix.blend]).astype(np.float32)


def unmixed(labels: Tensor, micro_batch: int | None = None) -> tuple[Tensor, Tensor]:
    """Return `rows` and `shares` of images with these int64 labels (N,) that are not mixed.

    They are of one micro-batch, or of several of that size.
    """
    rows = torch.zeros((len(labels), 6), dtype=torch.int64, device=labels.device)
    own = torch.arange(len(labels), device=labels.device)
    rows[:, _PARTNER] = own if micro_batch is None else own % micro_batch
    rows[:, _LABEL] = labels
    return rows, torch.ones((len(labels), 2), device=labels.device)


def mixed_pixels(images: Tensor, rows: Tensor, shares: Tensor) -> Tensor:
    """Return uint8 images (N, H, W, 3) after mixing, as float32 on 0..255; normalising comes after it."""
    down = torch.arange(images.shape[1], device=images.device)[None, :, None]
    across = torch.arange(images.shape[2], device=images.device)[None, None, :]
    top, left, bottom, right = (side[:, None, None] for side in rows[:, _BOX].unbind(1))
    inside = (down >= top) & (down < bottom) & (across >= left) & (across < right)
    kept = torch.where(inside, shares[:, _PIXELS, None, None], 1.0)[..., None]
    others = images.index_select(0, rows[:, _PARTNER]).float()
    return (images.float() * kept).addcmul_(others, 1 - kept)


def second_targets(rows: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return the labels of the partners, int64 (N,), and the share of the own label in the target, float32 (N,)."""
    return rows[:, _LABEL], shares[:, _TARGET]
