"""Grouped convolutions by our kernels against float64, and training with them: interpreted on the CPU, and on a GPU."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from gpu_cases import batches, relative, tiny_weights, train_request, trainer_with
from resnext_gpu.options import GpuOptions

from resnext_core.config import PrecisionConfig
from resnext_core.model.spec import ModelSpec
from resnext_core.training.trainer import Trainer

HALF, BF16 = torch.float16, torch.bfloat16
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """Largest error of images in either type, and of gradients of weights, over the largest value."""

    half: float
    bfloat16: float
    sums: float

    def of(self, dtype: Any) -> float:
        return self.half if dtype == HALF else self.bfloat16


#: The interpreter cuts bfloat16 off where hardware rounds it to nearest: a whole unit of 2**-8 for the weights, and one
#: for the result. Gradients of weights are sums in float32 of exact products.
INTERPRETED = Tolerance(half=1e-3, bfloat16=2e-2, sums=1e-6)
#: A result is rounded once, by at most 2**-11 or 2**-8 of itself, after sums of at most 288 products. Tensor cores cut
#: sums off at some 2**-22 in each step, and a weight gradient takes up to a hundred of them.
HARDWARE = Tolerance(half=7e-4, bfloat16=4.5e-3, sums=2**-15)


@dataclasses.dataclass
class Case:
    """One convolution, the operands of its three passes, and their results in float64."""

    x: Any
    weight: Any
    dy: Any
    stride: int
    wanted: tuple[Any, Any, Any]


def make_case(
    images: int, channels: int, group_width: int, height: int, width: int, stride: int, dtype: Any, *,
    seed: int = 0, device: Any = CPU,
) -> Case:  # fmt: skip
    """Return a case of noise; the image lies among NaN, so that a value from beside it would show."""
    generator = torch.Generator().manual_seed(seed)
    noise = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    x = _among_nan(noise(images, height, width, channels).to(dtype)).permute(0, 3, 1, 2)
    weight = noise(channels, group_width, 3, 3).float()
    x64, w64 = x.double().requires_grad_(), weight.to(dtype).double().requires_grad_()
    y = torch.nn.functional.conv2d(x64, w64, None, stride, 1, 1, channels // group_width)
    dy = _among_nan(noise(*y.permute(0, 2, 3, 1).shape).to(dtype)).permute(0, 3, 1, 2)
    y.backward(dy.double())
    wanted = tuple(t.to(device) for t in (y.detach(), x64.grad, w64.grad))
    if device != CPU:
        x, dy = (_among_nan(t.permute(0, 2, 3, 1).to(device)).permute(0, 3, 1, 2) for t in (x, dy))
    return Case(x=x, weight=weight.to(device), dy=dy, stride=stride, wanted=wanted)


def _among_nan(values: Any) -> Any:
    around = torch.full((values.numel() + 4096,), float("nan"), dtype=values.dtype, device=values.device)
    inner = around[2048:-2048].view(values.shape)
    return inner.copy_(values)


def shape_of(plans: Any, case: Case) -> Any:
    return plans.Shape(
        images=case.x.shape[0], channels=case.x.shape[1], group_width=case.weight.shape[1],
        height=case.x.shape[2], width=case.x.shape[3], stride=case.stride, dtype=case.x.dtype,
    )  # fmt: skip


def errors(launch: Any, case: Case, plan: Any, gradient_plan: Any | None = None) -> list[float]:
    """Return the error of output, input gradient and weight gradient, over the largest value of each."""
    found = (
        launch.forward(case.x, case.weight, case.stride, plan),
        launch.input_gradient(case.dy, case.weight, *case.x.shape[2:], case.stride, plan),
        launch.weight_gradient(case.dy, case.x, case.weight.shape[1], case.stride, gradient_plan or plan),
    )
    for one, wanted in zip(found, case.wanted, strict=True):
        assert one.shape == wanted.shape
    assert [one.dtype for one in found] == [case.x.dtype, case.x.dtype, torch.float32]
    return [
        float((one.double() - wanted).abs().max() / wanted.abs().max())
        for one, wanted in zip(found, case.wanted, strict=True)
    ]


def check(
    launch: Any, case: Case, plan: Any, gradient_plan: Any | None = None, to: Tolerance = INTERPRETED
) -> None:
    y, dx, dw = errors(launch, case, plan, gradient_plan)
    assert y <= to.of(case.x.dtype), f"output, {plan}"
    assert dx <= to.of(case.x.dtype), f"gradient of the input, {plan}"
    assert dw <= to.sums, f"gradient of the weights, {gradient_plan or plan}"


def check_every_plan(launch: Any, plans: Any, case: Case, to: Tolerance = INTERPRETED) -> None:
    """Check all plans, and those taken where nothing is timed."""
    own = shape_of(plans, case)
    cuts = [plans.default_plan("forward", own), *plans.candidates("forward", own)]
    sums = [plans.default_plan("weight gradient", own), *plans.candidates("weight gradient", own)]
    cuts, sums = list(dict.fromkeys(cuts)), list(dict.fromkeys(sums))
    assert len(cuts) >= 3
    assert len(sums) >= 2
    for number in range(max(len(cuts), len(sums))):
        check(launch, case, cuts[number % len(cuts)], sums[number % len(sums)], to)


def shapes_of(*specs: ModelSpec) -> list[tuple[int, int, int, int]]:
    """Return channels, group width, rows of the input and stride of every grouped convolution."""
    found = set()
    for spec in specs:
        size = spec.image_size // 4 if spec.stem == "imagenet" else spec.image_size
        for block in spec.blocks:
            found.add((block.width, block.width // spec.groups, size, block.stride))
            size //= block.stride
    return sorted(found)


# -- training -------------------------------------------------------------------------------------

LRS = np.array([0.05, 0.02], np.float32)


@dataclasses.dataclass(frozen=True)
class Net:
    """A network with groups of 4 channels in its first stage, then 8, 16 and 32, for images of `size`."""

    depths: tuple[int, ...]
    size: int

    @property
    def steps(self) -> list[Any]:
        return batches(2, size=self.size)

    def trainer(self, compute: str, **options: Any) -> Trainer:
        """Return a trainer by our kernels, unless told otherwise."""
        weights = tiny_weights(self.size, groups=4, base_width=32, depths=self.depths)
        precision = PrecisionConfig()
        if compute != "float32":
            precision = PrecisionConfig(compute=compute, loss_scale="fixed", scale=16.0)
            options = {"grouped_conv": "triton"} | options
        return trainer_with(GpuOptions(**options), train_request(weights, precision=precision))


NARROW, ALL_WIDTHS = Net((1, 1), 8), Net((1, 1, 1, 1), 16)


def check_training(net: Net, compute: str, **options: Any) -> None:
    """Two steps, and logits between them, by our kernels and by PyTorch's convolutions."""
    ours, plain = (net.trainer(compute, grouped_conv=way, **options) for way in ("triton", "cudnn"))
    exact = net.trainer("float32", **options)
    assert ours.engine._how.grouped is not None
    assert plain.engine._how.grouped is None
    for step in range(2):
        given, lrs = net.steps[step : step + 1], LRS[step : step + 1]
        losses = [trainer.run_steps(given, lrs) for trainer in (ours, plain, exact)]
        assert relative(losses[0], losses[1]) <= 2e-2
        if step == 0:  # a second step makes much of little, by either way and against float32 too
            _check_state(*(trainer.state().tensors for trainer in (ours, plain, exact)))
            logits = [trainer.predictor().logits(given[0].images) for trainer in (ours, plain)]
            assert relative(*logits) <= 5e-2


def _check_state(ours: Any, plain: Any, exact: Any) -> None:
    """Weights agree; gradients, which momentum is after a step, are as far from float32's as PyTorch's in 16 bits are.

    That is 2 to 50 % of a tensor, and the ratio was up to 1.6, of the convolutions themselves up to 1.15.
    """
    for name, wanted in exact.items():
        if name.startswith("weights/"):
            assert relative(ours[name], plain[name]) <= 5e-2, name
        else:
            away = [
                float(np.linalg.norm(one[name] - wanted) / np.linalg.norm(wanted)) for one in (ours, plain)
            ]
            assert away[0] <= (1.5 if ".conv2." in name else 2.0) * away[1] + 0.02, name
