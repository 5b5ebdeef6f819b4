"""Batch normalisation by our kernels against float64 and PyTorch: interpreted on the CPU, and on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from gpu_convolutions import Tolerance
from resnext_gpu.grouped_conv import norm
from resnext_gpu.network import Arithmetic, BatchNorm

from resnext_core.model.spec import BN_EPS

#: Images, channels, rows and columns: one image, one row, tiles that are not filled, a program with many tiles.
SHAPES = [(1, 16, 5, 7), (3, 48, 1, 9), (2, 32, 6, 5), (2, 64, 16, 16)]
#: With something added or not, and relu or not.
AFTER = [(False, True), (False, False), (True, True)]
#: Errors of float32 sums of up to some thousand values, over the largest.
SUMS = 2.0**-16
NAMES = ("result", "running mean", "running variance", "x", "weight", "bias", "other")


def check_kernels(shape: tuple[int, ...], dtype: Any, device: Any, to: Tolerance) -> None:
    """Every kernel alone, with ReLU, against float64 on the same operands; what ReLU passes is what ours passed."""
    from resnext_gpu.grouped_conv import norm_launch as launch

    generator = torch.Generator().manual_seed(1)
    noise = lambda *size: torch.randn(size, generator=generator).to(device)  # noqa: E731
    x = noise(*shape) + noise(shape[1])[:, None, None]
    x, dz = (t.to(dtype).contiguous(memory_format=torch.channels_last) for t in (x, noise(*shape)))
    weight, bias = 1 + noise(shape[1]) / 4, noise(shape[1]) / 2
    found = launch.norm_of(x, weight, bias)
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert apart(found[:2], torch.stack([mean, var])) <= SUMS
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    z = torch.nn.functional.batch_norm(leaves[0], None, None, *leaves[1:], True, 0.0, BN_EPS)
    active = launch.activate(x, found)
    assert apart(active, z.detach().relu()) <= to.of(dtype)
    z.backward(dz.double() * (active > 0))
    dx, dweight, dbias = (t.grad for t in leaves)
    sums = launch.gradient_sums(dz, x, found)
    assert apart(sums, torch.stack([dbias, dweight])) <= SUMS
    assert apart(launch.input_of_norm(dz, x, found, sums), dx) <= to.of(dtype)


def apart(found: Any, wanted: Any) -> float:
    """Return the largest error over the largest value."""
    assert found.shape == wanted.shape
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def check_norm(shape: tuple[int, ...], add: bool, relu: bool, dtype: Any, device: Any) -> None:
    """Result, running statistics and gradients are no further from float64 than PyTorch's in 16 bits.

    In the norm over a tensor: a value next to 0 may be on the other side of a ReLU, and its gradient is then lost.
    """
    generator = torch.Generator().manual_seed(0)
    x, other, dz = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    x += torch.randn(shape[1], generator=generator)[:, None, None].to(dtype)
    x[:, 1] = 0.75
    weight, bias, mean, var = (torch.randn(shape[1], generator=generator) for _ in range(4))
    given = [t.to(device) for t in (x, weight + 2, bias, mean, var.exp(), other, dz)]
    ours, plain, exact = (
        _results(given, add, relu, wide, way)
        for wide, way in ((dtype, norm.normalise), (dtype, None), (torch.float64, None))
    )
    for name, found, by_pytorch, wanted in zip(NAMES, ours, plain, exact, strict=False):
        assert found.dtype == by_pytorch.dtype, name
        away = [float((one.double() - wanted).norm() / wanted.norm()) for one in (found, by_pytorch)]
        assert away[0] <= 1.5 * away[1] + 2e-5, f"{name}: {away}"


def _results(given: list[Any], add: bool, relu: bool, dtype: Any, way: Any) -> list[Any]:
    """Return what NAMES says, computed by `way` as a network does, or by PyTorch where that is None."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, weight, bias, mean, var, other, dz = (
        t.detach().clone(memory_format=torch.channels_last).to(dtype)
        if t.dim() == 4
        else t.detach().clone().to(wide)
        for t in given
    )
    leaves = [t.requires_grad_() for t in (x, weight, bias, *([other] if add else []))]
    layer = BatchNorm(len(weight), Arithmetic(compute=dtype, norm=way))
    del layer.weight, layer.bias
    layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
    layer.running_mean, layer.running_var = mean, var
    z = layer(
        x * 1, other * 1 if add else None, relu=relu
    )  # not the leaves, which may not be written in place
    z.backward(dz)
    return [z.detach(), mean, var, *(t.grad for t in leaves)]
