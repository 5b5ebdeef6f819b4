"""Check and time our kernels of the grouped convolution, one convolution and pass at a time; measure the card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import gcd
from typing import Any

import torch
import triton
from grouped_conv_goals import PASSES, Card, Convolution, floor_ms, least_bytes, operations
from resnext_gpu.device import note
from resnext_gpu.grouped_conv import launch, op, plans
from resnext_gpu.grouped_conv.compiling import compile_ahead
from resnext_gpu.grouped_conv.packs import Packs
from torch import Tensor

from resnext_core.errors import one_line

#: Values of a copy and rows of a square product, by which a card is measured.
COPIED, ROWS = 1 << 29, 8192
#: Largest relative error of rounding to nearest.
_ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
#: Relative error of one addition inside tensor cores, which sum in float32 but cut off instead of rounding, after
#: aligning some products: 2**-23, taken four times.
_ADDING = 2.0**-21
#: Error of a weight gradient over its largest value. No span has more than 100 products of 16 pixels at the few images
#: of a check, each cut off by 2**-22 of a sum that is no larger than the largest: 2.4e-5. One product too many or too
#: few is 1e-3 of the largest, and more.
_SPANS = 2.0**-15
_AROUND = 2048  # values of NaN on either side of an image


def measure_card(device: torch.device, dtype: torch.dtype, *, small: bool) -> Card:
    """Return what a large copy and a large product reach, median."""
    count, rows = (1 << 18, 64) if small else (COPIED, ROWS)
    source = torch.ones(count, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copying = plans._milliseconds(lambda: target.copy_(source))
    a, b = (torch.randn(rows, rows, device=device).to(dtype) for _ in range(2))
    computing = plans._milliseconds(lambda: a @ b)
    cuda = device.type == "cuda"
    return Card(
        name=torch.cuda.get_device_name(device) if cuda else "CPU",
        capability=torch.cuda.get_device_capability(device) if cuda else None,
        bytes_per_s=1e3 * 2 * 4 * count / copying, operations_per_s=1e3 * 2 * rows**3 / computing,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Operands:
    """What the three passes of one convolution take; images are channels-last, weights as training keeps them."""

    x: Tensor
    weight: Tensor
    dy: Tensor
    one: Convolution
    packs: Packs = field(default_factory=Packs)

    @classmethod
    def make(cls, one: Convolution, images: int, dtype: torch.dtype, device: torch.device) -> Operands:
        """Return noise, the images among NaN, so that a value from beside them would show."""
        rows, columns = one.out
        weight = torch.randn(one.channels, one.group_width, 3, 3, device=device)
        return cls(
            x=_among_nan(images, one.height, one.width, one.channels, dtype, device),
            weight=weight.contiguous(memory_format=torch.channels_last),
            dy=_among_nan(images, rows, columns, one.channels, dtype, device), one=one,
        )  # fmt: skip

    @property
    def shape(self) -> plans.Shape:
        """The key under which training remembers timings."""
        return plans.Shape(
            images=len(self.x), channels=self.one.channels, group_width=self.one.group_width,
            height=self.one.height, width=self.one.width, stride=self.one.stride, dtype=self.x.dtype,
        )  # fmt: skip

    def ours(self, what: str, plan: launch.Plan) -> Tensor:
        """Return the result of a pass as training computes it, with matrices of the weights made once."""
        one = self.one
        if what == "forward":
            return launch.forward(self.x, self.weight, one.stride, plan, self.packs)
        if what == "input gradient":
            return launch.input_gradient(
                self.dy, self.weight, one.height, one.width, one.stride, plan, self.packs
            )
        return launch.weight_gradient(self.dy, self.x, one.group_width, one.stride, plan)

    def library(self, what: str) -> Tensor:
        """Return the result of a pass by PyTorch, that is by cuDNN, in the memory order of the operands."""
        weight = self.weight.to(self.x.dtype)
        if what == "forward":
            return op._convolve(self.x, weight, self.one.stride)
        return op._backward(self.dy, self.x, weight, self.one.stride, PASSES.index(what) - 1)

    def nchw(self) -> Operands:
        """Return a copy in PyTorch's plain memory order."""
        return Operands(
            x=self.x.contiguous(), weight=self.weight.contiguous(), dy=self.dy.contiguous(), one=self.one
        )


def _among_nan(
    images: int, height: int, width: int, channels: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    size = (images, height, width, channels)
    count = images * height * width * channels
    memory = torch.full((count + 2 * _AROUND,), float("nan"), dtype=dtype, device=device)
    inner = memory[_AROUND:-_AROUND].view(size)
    return inner.normal_().permute(0, 3, 1, 2)


# -- right ----------------------------------------------------------------------------------------


def check(one: Convolution, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, list[str]]:
    """Return what is wrong of each pass, by any plan, against float64.

    Few images, but as many factors of two as `batch` has, up to four, so that Triton takes the same kernels.
    """
    given = Operands.make(one, gcd(batch, 16), dtype, device)
    x, weight, dy = given.x.double(), given.weight.to(dtype).double(), given.dy.double()
    exact = _passes(x, weight, dy, one.stride)
    with torch.no_grad():
        magnitudes = x.abs(), weight.abs(), dy.abs()
    sizes = _passes(*magnitudes, one.stride)  # sums of the magnitudes of what is added
    wrong: dict[str, list[str]] = {}
    for what, wanted, size in zip(PASSES, exact, sizes, strict=True):
        if what == "weight gradient":
            bound = torch.full_like(wanted, _SPANS * float(wanted.abs().max()))
        else:
            bound = _ROUNDING[dtype] * wanted.abs() + 9 * one.group_width * _ADDING * size
        cuts = [*plans.candidates(what, given.shape), plans.default_plan(what, given.shape)]
        wrong[what] = [
            said for plan in dict.fromkeys(cuts) for said in _wrong(given, what, plan, wanted, bound)
        ]
    return wrong


def _wrong(given: Operands, what: str, plan: launch.Plan, wanted: Tensor, bound: Tensor) -> Iterator[str]:
    """Yield what is wrong with one result; a plan that this card cannot run is noted and left out, as in training."""
    found_on = given.x.device
    try:
        with _memory_full_of_nan():
            found = given.ours(what, plan)
        apart = (found.double() - wanted).abs()
    except triton.OutOfResources as error:  # as of shared memory
        note(f"{given.one}, {what}: {plans.describe(what, plan, found_on)} left out: {one_line(error, 200)}")
        return
    except triton.TritonError as error:
        yield f"{plans.describe(what, plan, found_on)}: {one_line(error, 200)}"
        return
    bad = ~(apart <= bound)  # NaN is bad
    if bool(bad.any()):
        at = [int(index[0]) for index in bad.nonzero(as_tuple=True)]
        yield (
            f"{plans.describe(what, plan, found_on)}: {int(bad.sum())} of {bad.numel()} values, first at {at}: "
            f"{float(found[tuple(at)]):.6g} for {float(wanted[tuple(at)]):.6g}"
        )


def _passes(x: Tensor, weight: Tensor, dy: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, input gradient and weight gradient in float64: nine products of matrices, no convolution."""
    x, weight = x.requires_grad_(), weight.requires_grad_()
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    groups = weight.shape[0] // weight.shape[1]
    matrices = weight.unflatten(0, (groups, -1))
    y = torch.zeros_like(dy, memory_format=torch.contiguous_format).unflatten(1, (groups, -1))
    for tap in range(9):
        rows, columns = (
            slice(t, t + stride * (n - 1) + 1, stride)
            for t, n in zip(divmod(tap, 3), dy.shape[2:], strict=True)
        )
        taken = padded[:, :, rows, columns].unflatten(1, (groups, -1))
        y = y + torch.einsum("ngihw,goi->ngohw", taken, matrices[..., tap // 3, tap % 3])
    y = y.flatten(1, 2)
    dx, dw = torch.autograd.grad(y, (x, weight), dy)
    return y.detach(), dx, dw


@contextmanager
def _memory_full_of_nan() -> Iterator[None]:
    """What torch.empty returns is filled with NaN, so that a value that is never written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# -- fast -----------------------------------------------------------------------------------------


def compile_all(todo: Sequence[Convolution], batch: int, dtype: torch.dtype) -> str:
    """Compile every kernel that the convolutions need, in parallel where Triton can; return what was done, in words."""
    done = compile_ahead(call for one in todo for call in _compilations(one, batch, dtype))
    if done is None:
        return f"Triton {triton.__version__} compiles one kernel after the other, when they are first called"
    return f"{done.kernels} kernels compiled by {done.threads} threads"


def _compilations(one: Convolution, batch: int, dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    shape = plans.Shape(
        images=batch, channels=one.channels, group_width=one.group_width, height=one.height, width=one.width,
        stride=one.stride, dtype=dtype,
    )  # fmt: skip
    return plans.compilations(shape)


def new_row(one: Convolution, what: str, batch: int, models: dict[str, int], card: Card) -> dict[str, Any]:
    """Return what is known of one convolution and pass before it is measured."""
    return {
        "shape": str(one), "pass": what, "models": models, "batch": batch, "bytes": least_bytes(one, batch),
        "operations": operations(one, batch), "floor_ms": floor_ms(one, batch, card), "ours_ms": None,
        "cudnn_ms": None, "nchw_ms": None, "plan": None, "checked": False, "wrong": [], "why_not": "no time left",
    }  # fmt: skip


def check_rows(
    rows: Sequence[dict[str, Any]], one: Convolution, batch: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Fill ``checked`` and ``wrong`` of the rows of a convolution."""
    try:
        wrong = check(one, batch, dtype, device)
    except torch.cuda.OutOfMemoryError:
        for row in rows:
            row["why_not"] = "not checked: no memory"
    except (
        RuntimeError
    ) as error:  # an address beyond the memory, which also ends the GPU's work for this process
        for row in rows:
            row["wrong"] = [one_line(error, 200)]
    else:
        for row in rows:
            row["wrong"], row["checked"] = wrong[row["pass"]], True


def time_rows(
    rows: Sequence[dict[str, Any]], one: Convolution, batch: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Fill the times of the rows of a convolution."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    timings = plans.Timings(name)  # the file in which training then finds them
    for row in rows:
        try:
            _time(row, Operands.make(one, batch, dtype, device), timings)
        except RuntimeError as error:  # of cuDNN, or no memory
            row["why_not"] = one_line(error, 200)


def _time(row: dict[str, Any], given: Operands, timings: plans.Timings) -> None:
    """Time ours as training chooses it, and cuDNN in both memory orders; L2 is emptied before every call."""
    what = row["pass"]
    timing = timings.measure(
        what, given.shape, lambda plan: given.ours(what, plan), lambda: given.library(what)
    )
    row["cudnn_ms"], row["why_not"] = timing.library_ms, None
    if timing.plan is None:
        row["wrong"] = ["no plan gives cuDNN's result at the full batch"]
    else:
        row["plan"], row["ours_ms"] = plans.describe(what, timing.plan, given.x.device), timing.ours_ms
    plain = given.nchw()
    row["nchw_ms"] = plans._milliseconds(lambda: plain.library(what))
