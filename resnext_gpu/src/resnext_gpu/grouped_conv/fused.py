"""Batch normalisation, ReLU, grouped convolution, batch normalisation, ReLU: the middle of a block as one operation.

The result of the first normalisation is neither written nor kept: the convolution's kernels compute it from the raw
image wherever they read it. The statistics of the second one come with the convolution. See docs/log/kernels.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from resnext_core.errors import UsageError
from resnext_core.model.spec import ModelSpec
from resnext_gpu.grouped_conv import op
from resnext_gpu.grouped_conv.norm import norm_of

if TYPE_CHECKING:
    from resnext_gpu.network import BatchNorm, Conv

#: (y, bn1, conv2, bn2) to relu(bn2(conv2(relu(bn1(y))))), in training; moves the running statistics.
Middle = Callable[["Tensor", "BatchNorm", "Conv", "BatchNorm"], Tensor]


def fused_middle(
    wanted: bool, spec: ModelSpec, compute: torch.dtype, device: torch.device, *, bn_float32: bool, deterministic: bool
) -> Middle | None:  # fmt: skip
    """Return how the middle of a block is computed in training, or None where that is not `wanted`.

    Raises UsageError where our kernels cannot compute it.
    """
    if not wanted:
        return None
    reason = op.why_not(spec, compute, device)
    if reason is None and not bn_float32:
        reason = "the kernels need precision.bn_float32=true"
    if reason is not None:
        raise UsageError(f"gpu.fused_bn cannot be used: {reason}")
    return functools.partial(_middle, timed=not deterministic and device.type == "cuda")


def _middle(y: Tensor, bn1: BatchNorm, conv2: Conv, bn2: BatchNorm, *, timed: bool) -> Tensor:
    stride = conv2.stride[0]
    before = y.numel() // y.shape[1]
    after = y.shape[0] * ((y.shape[2] - 1) // stride + 1) * ((y.shape[3] - 1) // stride + 1)
    bn1.need_several(before)
    bn2.need_several(after)
    first = norm_of(
        y.detach(), bn1.weight.detach(), bn1.bias.detach(), bn1.running_mean, bn1.running_var, bn1.moves
    )
    found, _, second = _forward(
        y, first, conv2.weight, bn1.weight, bn1.bias, bn2.weight, bn2.bias, stride, timed
    )
    bn2.move(second[:2], after)
    return found


@torch.library.custom_op("resnext_gpu::fused_middle", mutates_args=())
def _forward(
    x: Tensor, first: Tensor, weight: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
    stride: int, timed: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the result, the raw output of the convolution and its norm; `first` is the norm of x.

    That was computed of `weight1` and `bias1`, which stand here for autograd to give them gradients.
    """
    from resnext_gpu.grouped_conv import fused_launch as launch

    x = _channels_last(x)
    plan = op.plan_for(
        "fused forward", x, weight, stride, False, timed,
        lambda plan: launch.forward(x, first, weight, stride, plan)[0],
        lambda: op._convolve(_activated(x, first), weight.to(x.dtype), stride),
    )  # fmt: skip
    y, parts, counts = launch.forward(x, first, weight, stride, plan)
    second = launch.combine(parts, counts, weight2, bias2)
    return launch.activate(y, second), y, second


@torch.library.custom_op("resnext_gpu::fused_middle_gradients", mutates_args=())
def _backward(
    dz: Tensor, x: Tensor, first: Tensor, weight: Tensor, y: Tensor, second: Tensor, stride: int, timed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x and of the convolution's weight, and (2, C) those of bias and weight of either norm."""
    from resnext_gpu.grouped_conv import fused_launch as launch

    dz, x, y = _channels_last(dz), _channels_last(x), _channels_last(y)
    sums2 = launch.gradient_sums(dz, y, second)
    dy = launch.input_of_norm(dz, y, second, sums2)
    width, types = weight.shape[1], (x.dtype, weight.dtype)
    plan = op.plan_for(
        "fused weight gradient", x, weight, stride, False, timed,
        lambda plan: launch.weight_gradient(dy, x, first, width, stride, plan),
        lambda: op._backward(dy, _activated(x, first), weight.to(types[0]), stride, 1),
    )  # fmt: skip
    dw = launch.weight_gradient(dy, x, first, width, stride, plan).to(types[1])
    plan = op.plan_for(
        "fused input gradient", x, weight, stride, False, timed,
        lambda plan: launch.input_gradient(dy, weight, x, first, stride, plan)[0],
        lambda: op._backward(dy, x, weight.to(types[0]), stride, 0) * (_activated(x, first) > 0),
    )  # fmt: skip
    da, sums1 = launch.input_gradient(dy, weight, x, first, stride, plan)
    return launch.input_of_norm(da, x, first, sums1), dw, sums1, sums2


@_forward.register_fake
def _(
    x: Tensor, first: Tensor, weight: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
    stride: int, timed: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    size = [(n - 1) // stride + 1 for n in x.shape[2:]]
    y = _channels_last(x.new_empty((x.shape[0], x.shape[1], *size)))
    return y, torch.empty_like(y), torch.empty_like(first)


@_backward.register_fake
def _(
    dz: Tensor, x: Tensor, first: Tensor, weight: Tensor, y: Tensor, second: Tensor, stride: int, timed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    sums = torch.empty_like(first[:2]), torch.empty_like(second[:2])
    return _channels_last(x.new_empty(x.shape)), weight.new_empty(weight.shape), *sums


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, first, weight, _, _, _, _, *ctx.how = inputs
    _, y, second = output
    ctx.mark_non_differentiable(y, second)
    ctx.save_for_backward(x, first, weight, y, second)


def _gradients(ctx: Any, dz: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    dx, dw, (dbias1, dweight1), (dbias2, dweight2) = _backward(dz, *ctx.saved_tensors, *ctx.how)
    return dx, None, dw, dweight1, dbias1, dweight2, dbias2, None, None


_forward.register_autograd(_gradients, setup_context=_setup)


def _activated(x: Tensor, norm: Tensor) -> Tensor:
    """Return relu of the normalised x by PyTorch, in the type of x: what our results are checked with."""
    scale, shift = norm[2:4, :, None, None]
    return (x.float() * scale + shift).relu().to(x.dtype)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
