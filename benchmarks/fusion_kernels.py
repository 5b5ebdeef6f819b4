"""Check and time the fused middle of one block: the work of fusion.py."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from typing import Any

import torch
import triton
from grouped_conv_goals import Convolution
from grouped_conv_kernels import (
    _ADDING,
    _ROUNDING,
    _SPANS,
    Operands,
    _memory_full_of_nan,
    _passes,
    measure_card,
)
from resnext_gpu.device import note
from resnext_gpu.grouped_conv import fused, fused_launch, op, plans
from torch import Tensor
from torch.nn import functional as F

from resnext_core.errors import one_line
from resnext_core.model.spec import BN_EPS

__all__ = ["check", "measure_card", "times", "triton"]


class Middle:
    """The operands of a middle: those of its convolution, and both normalisations in float32."""

    def __init__(self, one: Convolution, images: int, dtype: torch.dtype, device: torch.device) -> None:
        given = Operands.make(one, images, dtype, device)
        self.x, self.weight, self.dz, self.stride = given.x, given.weight, given.dy, one.stride
        self.shape, channels = given.shape, one.channels
        self.norms = [torch.randn(channels, device=device) / 4 + n for n in (1.0, 0.0, 1.0, 0.0)]

    def leaves(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Return x, the convolution's weight, and weight and bias of both norms, that want gradients; in `dtype`."""
        given = [self.x, self.weight, *self.norms]
        return [(t if dtype is None else t.to(dtype)).detach().clone().requires_grad_() for t in given]

    def fused(self, timed: bool, x: Tensor, weight: Tensor, *norms: Tensor) -> Tensor:
        """Return the result by our fused kernels."""
        first = fused_launch.norm_of(x.detach(), *(t.detach() for t in norms[:2]))
        found: Tensor = fused._forward(x, first, weight, *norms, self.stride, timed)[0]
        return found

    def apart(self, ours: bool, timed: bool, x: Tensor, weight: Tensor, *norms: Tensor) -> Tensor:
        """Return the result kernel by kernel, the convolution by our plain kernels or by PyTorch."""
        a = F.relu(F.batch_norm(x, None, None, *norms[:2], True, 0.0, BN_EPS), inplace=True)
        if ours:
            y = op._forward(a, weight, self.stride, False, timed, 0)
        else:
            y = op._convolve(a, weight.to(a.dtype), self.stride)
        return F.relu(F.batch_norm(y, None, None, *norms[2:], True, 0.0, BN_EPS), inplace=True)


def check(
    one: Convolution, batch: int, dtype: torch.dtype, device: torch.device, most_times: float, allowed: float
) -> list[str]:
    """Return what is wrong, in a line each: of every plan, and of the whole operation."""
    middle = Middle(one, gcd(batch, 16), dtype, device)
    return [*_kernels(one, middle), *_whole(middle, most_times, allowed)]


def _kernels(one: Convolution, middle: Middle) -> Iterator[str]:
    """Yield what is wrong of the convolution kernels by any plan, against float64 of the activated image."""
    x, dtype = middle.x, middle.x.dtype
    norm = fused_launch.norm_of(x, *middle.norms[:2])
    a, dy = fused_launch.activate(x, norm), middle.dz
    wide = [a.double(), middle.weight.to(dtype).double(), dy.double()]
    exact = _passes(*wide, one.stride)
    with torch.no_grad():
        magnitudes = [t.abs() for t in wide]
    sizes = _passes(*magnitudes, one.stride)
    adding = 9 * one.group_width * _ADDING
    passes = {
        "fused forward": lambda plan: fused_launch.forward(x, norm, middle.weight, one.stride, plan)[0],
        "fused input gradient": lambda plan: fused_launch.input_gradient(
            dy, middle.weight, x, norm, one.stride, plan
        )[0],
        "fused weight gradient": lambda plan: fused_launch.weight_gradient(
            dy, x, norm, one.group_width, one.stride, plan
        ),
    }
    for (what, ours), wanted, size in zip(passes.items(), exact, sizes, strict=True):
        if what == "fused weight gradient":
            bound = torch.full_like(wanted, _SPANS * float(wanted.abs().max()))
        else:
            bound = _ROUNDING[dtype] * wanted.abs() + adding * size
        if what == "fused input gradient":
            wanted = torch.where(a > 0, wanted, 0.0)
        cuts: list[Any] = [*plans.candidates(what, middle.shape), plans.default_plan(what, middle.shape)]  # type: ignore[arg-type]
        for plan in dict.fromkeys(cuts):
            try:
                with _memory_full_of_nan():
                    found = ours(plan)
            except triton.OutOfResources as error:  # as of shared memory
                note(f"{one}, {what}: {plan} left out: {one_line(error, 200)}")
                continue
            bad = ~((found.double() - wanted).abs() <= bound)
            if bool(bad.any()):
                yield f"{what}, {plan}: {int(bad.sum())} of {bad.numel()} values"


def _whole(middle: Middle, most_times: float, allowed: float) -> Iterator[str]:
    """Yield which result or gradient is further from float64 than PyTorch's in 16 bits may be."""
    results = []
    for dtype, call in (
        (None, lambda *t: middle.fused(False, *t)),
        (None, lambda *t: middle.apart(False, False, *t)),
        (torch.float64, lambda *t: middle.apart(False, False, *t)),
    ):
        leaves = middle.leaves(dtype)
        z = call(*leaves)
        z.backward(middle.dz.to(z.dtype))
        results.append([z.detach(), *(t.grad for t in leaves)])
    names = (
        "result",
        "x",
        "weight",
        "weight of norm 1",
        "bias of norm 1",
        "weight of norm 2",
        "bias of norm 2",
    )
    for name, ours, plain, exact in zip(names, *results, strict=True):
        size = exact.norm()
        away = [float((one.double() - exact).norm() / size) for one in (ours, plain)]
        if not away[0] <= most_times * away[1] + allowed:
            yield f"{name}: {away[0]:.3g} from float64, PyTorch {away[1]:.3g}"


def times(one: Convolution, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, list[float]]:
    """Return milliseconds of the forward pass, and of forward and backward, by each way."""
    middle, timed = Middle(one, batch, dtype, device), device.type == "cuda"
    ways = {
        "fused": lambda *t: middle.fused(timed, *t),
        "apart, our kernels": lambda *t: middle.apart(True, timed, *t),
        "apart, cuDNN": lambda *t: middle.apart(False, timed, *t),
    }
    found: dict[str, list[float]] = {}
    for name, call in ways.items():
        leaves = middle.leaves()

        def both(call: Any = call, leaves: list[Tensor] = leaves) -> None:
            torch.autograd.grad(call(*leaves), leaves, middle.dz)

        both()  # plans are timed, and algorithms are chosen
        with torch.no_grad():
            forward = plans._milliseconds(lambda call=call, leaves=leaves: call(*leaves))
        found[name] = [forward, plans._milliseconds(both)]
    return found
