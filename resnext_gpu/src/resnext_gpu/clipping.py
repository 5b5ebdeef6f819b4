"""Clipping of gradients: by their global norm, or each output's by the norm of its own weights (AGC)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from resnext_core.interfaces import AGC_EPS, AGC_LEAST, CLIP_EPS
from resnext_gpu.gradients import gradients_of


def by_norm(gradients: list[Tensor], clip_norm: float, divisor: Tensor | None) -> Tensor:
    """Return what to divide `gradients` by: `divisor`, and what brings their global norm down to `clip_norm`."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if divisor is not None:
        norm = norm / divisor
    factor = (clip_norm / (norm + CLIP_EPS)).clamp(max=1.0)
    return (torch.ones_like(norm) if divisor is None else divisor) / factor


class AdaptiveClip:
    """Bounds the gradient of each output (axis 0) of `weights` by the share `agc` of the norm of its weights.

    Tensors of one axis are one output. Brock et al., arXiv:2102.06171. An output's gradient of a norm above
    most = agc · max(‖w‖, AGC_EPS) is multiplied by most / max(norm, AGC_LEAST). Tensors of several axes take three
    launches each, those of one axis a few for all.
    """

    def __init__(self, weights: Sequence[Tensor], agc: float, device: torch.device) -> None:
        self._agc = agc
        self._wide = [w for w in weights if w.ndim > 1]
        self._flat = [w for w in weights if w.ndim == 1]
        self._counts = [len(w) for w in self._wide]
        self._sizes = [len(w) for w in self._flat]
        owners = [np.full(size, i, np.int64) for i, size in enumerate(self._sizes)]
        self._owner = torch.tensor(np.concatenate([np.zeros(0, np.int64), *owners]), device=device)

    def __call__(self, divisor: Tensor | None) -> None:
        """Clip the gradients of the weights, in place; they stay to be divided by `divisor`."""
        wide, flat = gradients_of(self._wide), gradients_of(self._flat)
        norms = self._norms(wide, flat)
        if divisor is not None:
            norms = norms / divisor
        most = self._agc * self._norms(self._wide, self._flat).clamp(min=AGC_EPS)
        factors = torch.where(norms > most, most / norms.clamp(min=AGC_LEAST), 1.0)
        of_rows, of_flat = factors.split([sum(self._counts), len(self._flat)])
        if wide:
            parts = of_rows.split(self._counts)
            torch._foreach_mul_(
                wide, [p.view(-1, *[1] * (g.ndim - 1)) for p, g in zip(parts, wide, strict=True)]
            )
        if flat:
            clipped = torch.cat(flat) * of_flat.index_select(0, self._owner)
            torch._foreach_copy_(flat, list(clipped.split(self._sizes)))

    def close(self) -> None:
        """Let go of the tensors."""
        self._wide, self._flat = [], []
        del self._owner

    def _norms(self, wide: list[Tensor], flat: list[Tensor]) -> Tensor:
        """Return the norm of each output of `wide`, one tensor after the other, and then of each tensor of `flat`."""
        found = torch.empty(sum(self._counts) + len(flat), device=self._owner.device)
        parts = found.split([*self._counts, len(flat)])
        for tensor, part in zip(wide, parts, strict=False):
            torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), out=part)
        if flat:
            torch.stack(torch._foreach_norm(flat), out=parts[-1])
        return found
