"""The grouped convolution as an operation of PyTorch, which torch.compile, CUDA graphs and autograd know."""

from __future__ import annotations

import functools
import itertools
import os
import weakref
from collections.abc import Callable
from importlib import util
from typing import Any, Literal

import torch
from torch import Tensor

from resnext_core.errors import UsageError
from resnext_core.model.spec import ModelSpec
from resnext_gpu.device import note
from resnext_gpu.grouped_conv.packs import Packs

#: Widths of a group that the kernels know.
GROUP_WIDTHS = (4, 8, 16, 32)
#: Compute capabilities of cards on which benchmarks/grouped_conv.py was run and our kernels were right; ``auto`` leaves
#: the others to cuDNN. (9, 0): one NVIDIA H200, 2026-11-27.
MEASURED: frozenset[tuple[int, int]] = frozenset({(9, 0)})
#: Triton's own switch: kernels run in Python, on the CPU.
INTERPRET = "TRITON_INTERPRET"

#: The matrices of networks, by the number that the operations are given for them; 0 is none.
_PACKS: weakref.WeakValueDictionary[int, Packs] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count(1)


class GroupedConv:
    """Maps (x, weight, stride) to the convolution of x with padding 1: how a network computes its grouped convolutions.

    `library`: by PyTorch, that is cuDNN, where that is faster; `timed`: by the fastest plan, not by a fixed one. Call
    :meth:`prepare` when weights may have changed.
    """

    def __init__(self, *, library: bool, timed: bool) -> None:
        self.library, self.timed = library, timed
        self._packs, self._number = Packs(), next(_NUMBERS)
        _PACKS[self._number] = self._packs

    def __call__(self, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        way = _forward if torch.compiler.is_compiling() else _Direct.apply
        found: Tensor = way(x, weight, stride, self.library, self.timed, self._number)
        return found

    def fresh(self) -> GroupedConv:
        """Return the same for another network."""
        return GroupedConv(library=self.library, timed=self.timed)

    def prepare(self) -> None:
        """Make the matrices of all weights that were used so far anew."""
        self._packs.renew()


def grouped_conv(
    mode: Literal["auto", "triton", "cudnn"], spec: ModelSpec, compute: torch.dtype, device: torch.device, *,
    deterministic: bool, graphed: bool,
) -> GroupedConv | None:  # fmt: skip
    """Return how the grouped convolutions of `spec` are computed; None leaves them to PyTorch, that is to cuDNN.

    ``auto`` takes, for each shape, what is faster on this card, where that may be asked: on a card that our kernels
    were measured on, in 16 bits, not `deterministic`, which a stopwatch is not, and where steps are `graphed`: else the
    processor, which launches our kernels slower than PyTorch's, is what limits a step. Says so in a line.

    Raises UsageError where ``triton`` cannot be.
    """
    if mode == "cudnn":
        return None
    reason = why_not(spec, compute, device)
    if mode == "triton":
        if reason is not None:
            raise UsageError(f"gpu.grouped_conv=triton cannot be used: {reason}")
        return GroupedConv(library=False, timed=not deterministic and device.type == "cuda")
    if reason is not None or deterministic or device.type == "cpu":
        return None
    if not measured(device):
        note(
            f"grouped convolutions use cuDNN; our kernels were not measured on {torch.cuda.get_device_name(device)}, "
            "to use them set gpu.grouped_conv=triton"
        )
    elif graphed:
        return GroupedConv(library=True, timed=True)
    return None


def why_not(spec: ModelSpec, compute: torch.dtype, device: torch.device) -> str | None:
    """Return why the kernels cannot compute `spec`, or None."""
    for block in spec.blocks:
        width = block.width // spec.groups
        if width not in GROUP_WIDTHS or block.width % max(16, width):
            return (
                f"the kernels need groups of {', '.join(map(str, GROUP_WIDTHS))} channels that fill 16 or 32, not "
                f"{spec.groups} groups of {width}"
            )
    return no_kernels(compute, device)


def no_kernels(compute: torch.dtype, device: torch.device) -> str | None:
    """Return why no kernel of ours can compute in this type on this device, or None."""
    if compute not in (torch.float16, torch.bfloat16):
        return "the kernels need precision.compute=bfloat16 or float16"
    if device.type == "cpu" and os.environ.get(INTERPRET) != "1":
        return f"the kernels need an NVIDIA GPU (or {INTERPRET}=1 for tests)"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "the kernels need a GPU with compute capability 8.0 or more"
    if util.find_spec("triton") is None:
        return "Triton is not installed; it is part of PyTorch's CUDA builds for Linux"
    return None


def measured(device: torch.device) -> bool:
    """True on a card of a kind on which our kernels were measured."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) in MEASURED


def _plain_forward(x: Tensor, weight: Tensor, stride: int, library: bool, timed: bool, packs: int) -> Tensor:
    from resnext_gpu.grouped_conv import launch

    x = _channels_last(x)
    return _way(
        "forward", x, weight, stride, library, timed, packs,
        lambda plan, kept: launch.forward(x, weight, stride, plan, kept),
        lambda: _channels_last(_convolve(x, weight.to(x.dtype), stride)),
    )  # fmt: skip


def _plain_input_gradient(
    dy: Tensor, x: Tensor, weight: Tensor, stride: int, library: bool, timed: bool, packs: int
) -> Tensor:
    from resnext_gpu.grouped_conv import launch

    dy = _channels_last(dy)
    return _way(
        "input gradient", x, weight, stride, library, timed, packs,
        lambda plan, kept: launch.input_gradient(dy, weight, x.shape[2], x.shape[3], stride, plan, kept),
        lambda: _channels_last(_backward(dy, x, weight.to(x.dtype), stride, 0)),
    )  # fmt: skip


def _plain_weight_gradient(
    dy: Tensor, x: Tensor, weight: Tensor, stride: int, library: bool, timed: bool
) -> Tensor:
    from resnext_gpu.grouped_conv import launch

    dy, x = _channels_last(dy), _channels_last(x)
    return _way(
        "weight gradient", x, weight, stride, library, timed, 0,
        lambda plan, _: launch.weight_gradient(dy, x, weight.shape[1], stride, plan).to(weight.dtype),
        lambda: _backward(dy, x, weight.to(x.dtype), stride, 1).to(weight.dtype).contiguous(),
    )  # fmt: skip


#: The same as operations that torch.compile knows.
_forward = torch.library.custom_op("resnext_gpu::grouped_conv", _plain_forward, mutates_args=())
_input_gradient = torch.library.custom_op(
    "resnext_gpu::grouped_conv_input_gradient", _plain_input_gradient, mutates_args=()
)
_weight_gradient = torch.library.custom_op(
    "resnext_gpu::grouped_conv_weight_gradient", _plain_weight_gradient, mutates_args=()
)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, stride: int, library: bool, timed: bool, packs: int) -> Tensor:
    size = [(n - 1) // stride + 1 for n in x.shape[2:]]
    return _channels_last(x.new_empty((x.shape[0], weight.shape[0], *size)))


@_input_gradient.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, stride: int, library: bool, timed: bool, packs: int) -> Tensor:
    return _channels_last(dy.new_empty(x.shape))


@_weight_gradient.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, stride: int, library: bool, timed: bool) -> Tensor:
    return weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, *ctx.how = inputs
    ctx.save_for_backward(x, weight)


def _gradients(
    ctx: Any, dy: Tensor, of_input: Any = _input_gradient, of_weight: Any = _weight_gradient
) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    dx = of_input(dy, x, weight, *ctx.how) if ctx.needs_input_grad[0] else None
    dw = of_weight(dy, x, weight, *ctx.how[:3]) if ctx.needs_input_grad[1] else None
    return dx, dw, None, None, None, None


_forward.register_autograd(_gradients, setup_context=_setup)


class _Direct(torch.autograd.Function):
    """`_forward` for who does not compile, without the dispatch of an operation."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _plain_forward(*inputs)
        _setup(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, dy, _plain_input_gradient, _plain_weight_gradient)


def _way(
    what: Any, x: Tensor, weight: Tensor, stride: int, library: bool, timed: bool, packs: int,
    ours: Callable[[Any, Packs | None], Tensor], theirs: Callable[[], Tensor],
) -> Tensor:  # fmt: skip
    """Compute by a plan of ours, or, if it may be and is faster, by PyTorch.

    The time of a plan is that without making the weight's matrices, as they are made for all layers at once.
    """
    for_timing = Packs()
    plan = plan_for(what, x, weight, stride, library, timed, lambda plan: ours(plan, for_timing), theirs)
    return theirs() if plan is None else ours(plan, _PACKS.get(packs))


def plan_for(
    what: Any, x: Tensor, weight: Tensor, stride: int, library: bool, timed: bool, ours: Callable[[Any], Tensor],
    theirs: Callable[[], Tensor],
) -> Any:  # fmt: skip
    """Return the plan to take for the pass `what`, or None for PyTorch, which only `library` allows."""
    from resnext_gpu.grouped_conv import launch, plans

    if not launch.fits(x):
        raise UsageError(f"the grouped convolution does not support the shape {tuple(x.shape)}")
    shape = plans.Shape(
        images=x.shape[0], channels=x.shape[1], group_width=weight.shape[1], height=x.shape[2], width=x.shape[3],
        stride=stride, dtype=x.dtype,
    )  # fmt: skip
    timing = None
    if timed:
        timings = _timings(x.device.index)
        timing = timings.known(what, shape)
        if timing is None and not torch.cuda.is_current_stream_capturing():
            timing = timings.measure(what, shape, ours, theirs)
    if timing is None:
        return None if library else plans.default_plan(what, shape)
    return timing.faster if library else plans.required(timing)


@functools.cache
def _timings(device: int) -> Any:
    from resnext_gpu.grouped_conv.plans import Timings

    return Timings(torch.cuda.get_device_name(device))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return torch.nn.functional.conv2d(x, weight, None, stride, 1, 1, x.shape[1] // weight.shape[1])


def _backward(dy: Tensor, x: Tensor, weight: Tensor, stride: int, which: int) -> Tensor:
    """Return the gradient of input (0) or weight (1) by PyTorch."""
    wanted = [which == 0, which == 1, False]
    groups = x.shape[1] // weight.shape[1]
    found = torch.ops.aten.convolution_backward(
        dy, x, weight, None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], groups, wanted
    )
    gradient: Tensor = found[which]
    return gradient
