"""Batch normalisation by our kernels on a GPU, alone and fused into the convolution; skipped elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gpu_cases import differing, relative  # noqa: E402
from gpu_convolutions import ALL_WIDTHS, BF16, HALF, HARDWARE, LRS, Net, shapes_of  # noqa: E402
from gpu_fusions import SHAPES, check_every_plan, check_middle, make_middle  # noqa: E402
from gpu_norms import AFTER, check_norm  # noqa: E402
from gpu_norms import SHAPES as NORM_SHAPES  # noqa: E402
from resnext_gpu.grouped_conv import fused as op  # noqa: E402

from resnext_core.model.spec import model_spec  # noqa: E402

pytestmark = pytest.mark.gpu
#: Where the tests compute, and how exact that is; without a GPU the interpreter can stand in (then float16 only).
PLACE, EXACT = "cuda", HARDWARE
SHIPPED = [(2, *shape) for shape in shapes_of(model_spec("resnext152_64x4d"), model_spec("resnext50_32x4d"))]


@pytest.mark.parametrize("dtype", [BF16, HALF], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("shape", [*SHAPES, *((n, c, g, s, s, t) for n, c, g, s, t in SHIPPED)])
def test_every_kernel_by_every_plan(shape: tuple[int, ...], dtype: Any) -> None:
    from resnext_gpu.grouped_conv import fused_launch, launch, plans

    middle = make_middle(*shape, dtype, device=torch.device(PLACE))
    check_every_plan(launch, fused_launch, plans, middle, EXACT)


@pytest.mark.parametrize("dtype", [BF16, HALF], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1], (4, 128, 4, 14, 14, 1)])
def test_the_middle_of_a_block(shape: tuple[int, ...], dtype: Any) -> None:
    check_middle(op, make_middle(*shape, dtype, device=torch.device(PLACE)))


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
@pytest.mark.parametrize("net", [Net((1, 1), 8), ALL_WIDTHS], ids=["narrow", "all widths"])
def test_training_is_the_same(net: Net, compute: str) -> None:
    """A step fused, unfused and in float32; and again with the first's bits under checkpointing and as a CUDA graph."""
    common: dict[str, Any] = {"device": PLACE, "deterministic": True}
    fused, plain, exact = (
        net.trainer(compute, **common, fused_bn=True),
        net.trainer(compute, **common, grouped_conv="triton"),
        net.trainer("float32", **common),
    )
    given, lrs = net.steps[:1], LRS[:1]
    losses = [trainer.run_steps(given, lrs) for trainer in (fused, plain, exact)]
    assert relative(losses[0], losses[1]) <= 2e-2
    ours, other, wanted = (trainer.state().tensors for trainer in (fused, plain, exact))
    for name, array in wanted.items():
        away = [np.linalg.norm(one[name] - array) / np.linalg.norm(array) for one in (ours, other)]
        assert away[0] <= 2 * away[1] + 0.02, f"{name}: {away}"
    for option in ("checkpointing", "cuda_graphs"):
        again = net.trainer(compute, **common, fused_bn=True, **{option: True})
        again.run_steps(given, lrs)
        assert differing(again.state(), fused.state()) == [], option


@pytest.mark.parametrize("dtype", [BF16, HALF], ids=["bfloat16", "float16"])
@pytest.mark.parametrize(("add", "relu"), AFTER)
@pytest.mark.parametrize("shape", [*NORM_SHAPES, (16, 256, 56, 56), (5, 1024, 14, 14), (2, 2048, 7, 7)])
def test_batch_norm_is_as_exact_as_pytorch(shape: tuple[int, ...], add: bool, relu: bool, dtype: Any) -> None:
    check_norm(shape, add, relu, dtype, torch.device(PLACE))


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_training_with_batch_norm_is_the_same(compute: str) -> None:
    """A step by our kernels, by PyTorch's and in float32; and again with the first's bits in other ways."""
    common: dict[str, Any] = {"device": PLACE, "deterministic": True, "grouped_conv": "triton"}
    ours, plain, exact = (
        ALL_WIDTHS.trainer(compute, **common, batch_norm="triton"),
        ALL_WIDTHS.trainer(compute, **common, batch_norm="torch"),
        ALL_WIDTHS.trainer("float32", device=PLACE, deterministic=True),
    )
    given, lrs = ALL_WIDTHS.steps[:1], LRS[:1]
    losses = [trainer.run_steps(given, lrs) for trainer in (ours, plain, exact)]
    assert relative(losses[0], losses[1]) <= 2e-2
    found, other, wanted = (trainer.state().tensors for trainer in (ours, plain, exact))
    for name, array in wanted.items():
        away = [np.linalg.norm(one[name] - array) / np.linalg.norm(array) for one in (found, other)]
        assert away[0] <= 2 * away[1] + 0.02, f"{name}: {away}"
    for option in ("checkpointing", "cuda_graphs"):
        again = ALL_WIDTHS.trainer(compute, **common, batch_norm="triton", **{option: True})
        again.run_steps(given, lrs)
        assert differing(again.state(), ours.state()) == [], option
