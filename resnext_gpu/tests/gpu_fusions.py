"""The fused middle of a block against float64 and what it fuses: interpreted on the CPU, and on a GPU."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from gpu_convolutions import CPU, Tolerance, make_case
from resnext_gpu.grouped_conv import norm

from resnext_core.model.spec import BN_EPS

#: Images, channels, group width, rows, columns and stride: odd sizes, one row, one image, tiles that are not filled.
SHAPES = [
    (1, 16, 4, 5, 7, 1),
    (2, 32, 8, 6, 5, 2),
    (1, 32, 16, 3, 9, 2),
    (2, 64, 32, 4, 3, 1),
    (3, 48, 8, 1, 9, 1),
    (5, 16, 4, 7, 7, 2),
]
#: Errors of float32 sums of up to some thousand values, over the largest.
SUMS = 2.0**-16


@dataclasses.dataclass
class Middle:
    """A convolution's operands as `Case`, x being raw, with both normalisations, in float32, and the last gradient."""

    x: Any
    weight: Any
    dz: Any
    stride: int
    norms: tuple[tuple[Any, Any], tuple[Any, Any]]

    def wanted(self, dtype: Any) -> list[Any]:
        """Return by PyTorch in `dtype`: result, both moments, gradients of x, weights, and weight and bias of norms."""
        x = self.x.to(dtype).requires_grad_()
        weight, *affine = (
            t.detach().double().requires_grad_()
            if dtype == torch.float64
            else t.detach().clone().requires_grad_()
            for t in (self.weight, *self.norms[0], *self.norms[1])
        )
        groups = x.shape[1] // weight.shape[1]
        a = torch.relu(_normalised(x, *affine[:2]))
        y = torch.nn.functional.conv2d(a, weight.to(dtype), None, self.stride, 1, 1, groups)
        z = torch.relu(_normalised(y, *affine[2:]))
        z.backward(self.dz.to(dtype))
        gradients = [t.grad for t in (x, weight, *affine)]
        return [z.detach(), _moments(x), _moments(y), *gradients]


def make_middle(
    images: int, channels: int, group_width: int, height: int, width: int, stride: int, dtype: Any, *,
    device: Any = CPU, seed: int = 0,
) -> Middle:  # fmt: skip
    """Return noise around a mean that differs by channel; one channel of x does not vary."""
    case = make_case(images, channels, group_width, height, width, stride, dtype, seed=seed, device=device)
    generator = torch.Generator().manual_seed(seed + 1)
    noise = lambda: torch.randn(channels, generator=generator).to(device)  # noqa: E731
    case.x += noise()[:, None, None].to(dtype)
    case.x[:, 1] = 0.75
    norms = tuple((1 + noise() / 4, noise() / 2) for _ in range(2))
    return Middle(x=case.x, weight=case.weight, dz=case.dy, stride=stride, norms=norms)


def norm_by(x: Any, weight: Any, bias: Any) -> Any:
    """Return the norm of x by the operation of PyTorch; the running statistics are nobody's."""
    running = torch.zeros_like(weight), torch.ones_like(bias)
    return norm.norm_of(x.detach(), weight, bias, *running, False)


def _normalised(x: Any, weight: Any, bias: Any) -> Any:
    return torch.nn.functional.batch_norm(x, None, None, weight, bias, True, 0.0, BN_EPS)


def _moments(x: Any) -> Any:
    var, mean = torch.var_mean(x.detach().double(), (0, 2, 3), correction=0)
    return torch.stack([mean, var])


def apart(found: Any, wanted: Any) -> float:
    """Return the largest error over the largest value."""
    assert found.shape == wanted.shape
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def check_kernels(
    plain: Any, fused: Any, middle: Middle, plan: Any, gradient_plan: Any, to: Tolerance
) -> None:
    """Every kernel alone, on the same operands, so that no ReLU turns over: against float64, and what it fuses."""
    x, stride, exact = middle.x, middle.stride, to.of(middle.x.dtype)
    before = fused.norm_of(x, *middle.norms[0])
    assert apart(before[:2], _moments(x)) <= SUMS
    a = fused.activate(x, before)
    affine = [t.double() for t in (*before[:2], *middle.norms[0])]
    assert apart(a, torch.relu(_by(x, affine))) <= exact

    y, parts, counts = fused.forward(x, before, middle.weight, stride, plan)
    same = plain.forward(a, middle.weight, stride, plan)
    assert apart(y, same) <= exact / 8, "the convolution of what the normalisation gives"
    assert torch.isfinite(y).all()
    after = fused.combine(parts, counts, *middle.norms[1])
    assert apart(after[:2], _moments(y)) <= SUMS

    sums = fused.gradient_sums(middle.dz, y, after)
    dy = fused.input_of_norm(middle.dz, y, after, sums)
    wanted = _gradients(middle.dz, y, *middle.norms[1])
    assert apart(dy, wanted[0]) <= exact
    assert apart(sums, torch.stack([wanted[2], wanted[1]])) <= SUMS

    da, sums = fused.input_gradient(dy, middle.weight, x, before, stride, plan)
    same = plain.input_gradient(dy, middle.weight, *x.shape[2:], stride, plan) * (a > 0)
    assert apart(da, same) <= exact / 8
    assert torch.equal(da != 0, same != 0)
    normalised = _by(x, [*affine[:2], torch.ones_like(affine[0]), torch.zeros_like(affine[0])])
    product = (da.double() * normalised).sum((0, 2, 3))
    assert apart(sums, torch.stack([da.double().sum((0, 2, 3)), product])) <= SUMS

    dw = fused.weight_gradient(dy, x, before, middle.weight.shape[1], stride, gradient_plan)
    same = plain.weight_gradient(dy, a, middle.weight.shape[1], stride, gradient_plan)
    assert apart(dw, same) <= SUMS


def check_every_plan(plain: Any, fused: Any, plans: Any, middle: Middle, to: Tolerance) -> None:
    """Check the kernels by all plans that are timed, and by those taken where nothing is."""
    shape = plans.Shape(
        images=middle.x.shape[0], channels=middle.x.shape[1], group_width=middle.weight.shape[1],
        height=middle.x.shape[2], width=middle.x.shape[3], stride=middle.stride, dtype=middle.x.dtype,
    )  # fmt: skip
    cuts, sums = (
        list(dict.fromkeys([plans.default_plan(what, shape), *plans.candidates(what, shape)]))
        for what in ("fused forward", "fused weight gradient")
    )
    for number in range(max(len(cuts), len(sums))):
        check_kernels(plain, fused, middle, cuts[number % len(cuts)], sums[number % len(sums)], to)


def _by(x: Any, affine: list[Any]) -> Any:
    """Return x in float64, normalised by mean, variance, weight and bias."""
    mean, var, weight, bias = (t[:, None, None] for t in affine)
    return (x.double() - mean) / torch.sqrt(var + BN_EPS) * weight + bias


def _gradients(dz: Any, *given: Any) -> list[Any]:
    """Return the gradients of what is `given`, y, weight and bias, by relu of the normalised y, float64."""
    leaves = [t.detach().double().requires_grad_() for t in given]
    torch.relu(_normalised(*leaves)).backward(dz.double())
    return [t.grad for t in leaves]


def check_middle(op: Any, middle: Middle, timed: bool = False) -> None:
    """The whole operation is no further from float64 than PyTorch's in 16 bits.

    In the norm over a tensor: a value next to 0 may be on the other side of a ReLU, and its gradient is then lost.
    """
    given = (middle.x, middle.weight, *middle.norms[0], *middle.norms[1])
    leaves = [t.detach().clone().requires_grad_() for t in given]
    x, weight, weight1, bias1, weight2, bias2 = leaves
    first = norm_by(middle.x, *middle.norms[0])
    z, _, second = op._forward(x, first, weight, weight1, bias1, weight2, bias2, middle.stride, timed)
    z.backward(middle.dz)
    assert z.dtype == x.dtype
    assert [t.grad.dtype for t in leaves] == [t.dtype for t in leaves]
    found = [z.detach(), first[:2], second[:2], *(t.grad for t in leaves)]
    wanted, plain = middle.wanted(torch.float64), middle.wanted(middle.x.dtype)
    names = ["result", "moments 1", "moments 2", "x", "weight", "weight 1", "bias 1", "weight 2", "bias 2"]
    for name, ours, other, exact in zip(names, found, plain, wanted, strict=True):
        away = [float((one.double() - exact).norm() / exact.norm()) for one in (ours, other)]
        assert away[0] <= 1.5 * away[1] + 2e-3, f"{name}: {away}"
