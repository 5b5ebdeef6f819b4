"""Batch normalisation with the statistics of all ranks, on any device.

torch.nn.SyncBatchNorm refuses the CPU, and so could not be tested here. Statistics are means and centred sums of
squares, combined as in Chan, Golub and LeVeque (1979): sums of squares alone would lose the digits of a small variance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from resnext_core.model.spec import BN_EPS, BN_MOMENTUM
from resnext_gpu.gradients import lost

_ROWS = (0, 2, 3)


def sync_batch_norm(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalise x (N, C, H, W) by the statistics of all ranks, whose N are the same; moves `mean` and `var`.

    Computes in float32 and returns the type of x.
    """
    y: Tensor = _SyncBatchNorm.apply(x, mean, var, weight, bias)
    return y


class _SyncBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        world, channels = distributed.get_world_size(), x.shape[1]
        wide = x.float()
        var, mean = torch.var_mean(wide, _ROWS, correction=0)
        parts = [torch.empty(2 * channels, dtype=torch.float32, device=x.device) for _ in range(world)]
        try:
            distributed.all_gather(parts, torch.cat([mean, var]))
        except RuntimeError as error:
            raise lost(error) from error
        means, variances = torch.stack(parts).view(world, 2, channels).double().unbind(1)
        mean64 = means.mean(0)
        var64 = (variances + (means - mean64).square()).mean(0)
        mean, inv_std = mean64.float(), (var64 + BN_EPS).rsqrt().float()
        count = world * (x.numel() // channels)
        running_mean.lerp_(mean.to(running_mean.dtype), BN_MOMENTUM)
        running_var.lerp_((var64 * (count / (count - 1))).to(running_var.dtype), BN_MOMENTUM)
        ctx.save_for_backward(x, mean, inv_std, weight)
        ctx.count = count
        factor = inv_std * weight.float()
        return ((wide - _wide(mean)) * _wide(factor) + _wide(bias.float())).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, mean, inv_std, weight = ctx.saved_tensors
        channels, wide = x.shape[1], dy.float()
        normalized = (x.float() - _wide(mean)) * _wide(inv_std)
        sums = torch.cat([wide.sum(_ROWS), (wide * normalized).sum(_ROWS)])
        dbias, dweight = sums.clone().split(channels)
        try:
            distributed.all_reduce(sums)
        except RuntimeError as error:
            raise lost(error) from error
        total, total_normalized = (sums / ctx.count).split(channels)
        dx = wide - _wide(total) - normalized * _wide(total_normalized)
        dx = dx * _wide(inv_std * weight.float())
        return dx.to(x.dtype), None, None, dweight.to(weight.dtype), dbias.to(weight.dtype)


def _wide(values: Tensor) -> Tensor:
    """Return (C,) as it multiplies (N, C, H, W)."""
    return values[None, :, None, None]
