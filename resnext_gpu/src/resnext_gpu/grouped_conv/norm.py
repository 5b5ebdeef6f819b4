"""Batch normalisation in training with what follows it, an addition and ReLU, as one operation of PyTorch.

PyTorch takes a kernel for each of these, and its statistics of channels-last images in 16 bits are slow. See
docs/log/kernels.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from resnext_core.errors import UsageError
from resnext_gpu.grouped_conv import op

if TYPE_CHECKING:
    from resnext_gpu.network import BatchNorm

#: The kernels take multiples of so many channels; layers with others, of small networks, are PyTorch's.
CHANNELS = 16
#: (x, bn, other, relu) to the normalised x, plus `other` if that is given, and of that relu; moves running statistics.
Norm = Callable[["Tensor", "BatchNorm", "Tensor | None", bool], Tensor]


def batch_norm(
    mode: Literal["auto", "triton", "torch"], compute: torch.dtype, device: torch.device, *, bn_float32: bool,
    plain: bool,
) -> Norm | None:  # fmt: skip
    """Return how batch normalisation is computed in training; None leaves it to PyTorch.

    ``auto`` takes our kernels where they can be, and were measured (op.MEASURED), unless it is to be `plain`.

    Raises UsageError where ``triton`` cannot be.
    """
    if mode == "torch" or (mode == "auto" and plain):
        return None
    reason = op.no_kernels(compute, device)
    if reason is None and not bn_float32:
        reason = "the kernels need precision.bn_float32=true"
    if mode == "triton":
        if reason is not None:
            raise UsageError(f"gpu.batch_norm=triton cannot be used: {reason}")
        return normalise
    return normalise if reason is None and op.measured(device) else None


def normalise(x: Tensor, bn: BatchNorm, other: Tensor | None, relu: bool) -> Tensor:
    """Return `x` normalised by the statistics of the batch, see `Norm`; where `bn` moves, its statistics do."""
    bn.need_several(x.numel() // x.shape[1])
    weight, bias, compiling = bn.weight, bn.bias, torch.compiler.is_compiling()
    given = (x.detach(), weight.detach(), bias.detach(), bn.running_mean, bn.running_var, bn.moves)
    with torch.no_grad():
        norm = (norm_of if compiling else _norm_of)(*given)
    alone, total = (_alone, _sum) if compiling else (_Alone.apply, _Sum.apply)
    found: Tensor = (
        alone(x, norm, weight, bias, relu) if other is None else total(x, norm, weight, bias, other)
    )
    return found


def _norm_of(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, moves: bool
) -> Tensor:
    """Return the norm (5, C) of x (N, C, H, W): see `norm_kernels`. If `moves`, the running statistics do."""
    from resnext_gpu.grouped_conv import norm_launch

    return norm_launch.norm_of(
        _channels_last(x), weight, bias, (running_mean, running_var) if moves else None
    )


# `norm` was computed of `weight` and `bias`, which stand below for autograd to give them gradients.


def _plain_alone(x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """Return x by `norm`, and of that relu if `relu`."""
    from resnext_gpu.grouped_conv import norm_launch

    return norm_launch.activate(_channels_last(x), norm, relu=relu)


def _plain_alone_back(dz: Tensor, x: Tensor, norm: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """Return the gradient of x, and (2, C) those of bias and weight."""
    from resnext_gpu.grouped_conv import norm_launch

    dz, x = _channels_last(dz), _channels_last(x)
    sums = norm_launch.gradient_sums(dz, x, norm, relu=relu)
    return norm_launch.input_of_norm(dz, x, norm, sums, relu=relu), sums


def _plain_sum(x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> Tensor:
    """Return relu of the sum of x by `norm` and `other`."""
    from resnext_gpu.grouped_conv import norm_launch

    return norm_launch.activate(_channels_last(x), norm, _channels_last(other))


def _plain_sum_back(dz: Tensor, x: Tensor, norm: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x and of what was added, and (2, C) those of bias and weight; `z` is the result."""
    from resnext_gpu.grouped_conv import norm_launch

    dz, x, z = _channels_last(dz), _channels_last(x), _channels_last(z)
    sums, d = norm_launch.gradient_sums_of_sum(dz, x, z, norm)
    return norm_launch.input_of_norm(d, x, norm, sums, relu=False), d, sums


#: The same as operations that torch.compile knows.
norm_of = torch.library.custom_op("resnext_gpu::norm", _norm_of, mutates_args=("running_mean", "running_var"))
_alone = torch.library.custom_op("resnext_gpu::normalise", _plain_alone, mutates_args=())
_alone_back = torch.library.custom_op("resnext_gpu::normalise_gradients", _plain_alone_back, mutates_args=())
_sum = torch.library.custom_op("resnext_gpu::normalise_add", _plain_sum, mutates_args=())
_sum_back = torch.library.custom_op("resnext_gpu::normalise_add_gradients", _plain_sum_back, mutates_args=())


@norm_of.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, moves: bool
) -> Tensor:
    return x.new_empty((5, x.shape[1]), dtype=torch.float32)


@_alone.register_fake
def _(x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    return _like(x)


@_alone_back.register_fake
def _(dz: Tensor, x: Tensor, norm: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    return _like(x), torch.empty_like(norm[:2])


@_sum.register_fake
def _(x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> Tensor:
    return _like(x)


@_sum_back.register_fake
def _(dz: Tensor, x: Tensor, norm: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _like(x), _like(x), torch.empty_like(norm[:2])


def _keep_alone(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, norm, _, _, ctx.relu = inputs
    ctx.save_for_backward(x, norm)


def _alone_gradients(ctx: Any, dz: Tensor, back: Any = _alone_back) -> tuple[Tensor | None, ...]:
    dx, (dbias, dweight) = back(dz, *ctx.saved_tensors, ctx.relu)
    return dx, None, dweight, dbias, None


def _keep_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2], output)


def _sum_gradients(ctx: Any, dz: Tensor, back: Any = _sum_back) -> tuple[Tensor | None, ...]:
    dx, d, (dbias, dweight) = back(dz, *ctx.saved_tensors)
    return dx, None, dweight, dbias, d


_alone.register_autograd(_alone_gradients, setup_context=_keep_alone)
_sum.register_autograd(_sum_gradients, setup_context=_keep_sum)


class _Alone(torch.autograd.Function):
    """`_alone` for who does not compile, without the dispatch of an operation."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _plain_alone(*inputs)
        _keep_alone(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        return _alone_gradients(ctx, dz, _plain_alone_back)


class _Sum(torch.autograd.Function):
    """`_sum`, likewise."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _plain_sum(*inputs)
        _keep_sum(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        return _sum_gradients(ctx, dz, _plain_sum_back)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
