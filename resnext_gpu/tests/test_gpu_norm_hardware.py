"""Batch normalisation by our kernels on a GPU; skipped elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gpu_cases import differing, relative  # noqa: E402
from gpu_convolutions import ALL_WIDTHS, BF16, HALF, HARDWARE, LRS  # noqa: E402
from gpu_norms import AFTER, SHAPES, check_kernels, check_norm  # noqa: E402

pytestmark = pytest.mark.gpu
#: Where the tests compute, and how exact that is; without a GPU the interpreter can stand in (then float16 only).
PLACE, EXACT = "cuda", HARDWARE
#: More than one tile of rows or channels.
MORE = [*SHAPES, (5, 1024, 14, 14), (2, 2048, 7, 7)]


@pytest.mark.parametrize("dtype", [BF16, HALF], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("shape", MORE)
def test_every_kernel_alone(shape: tuple[int, ...], dtype: Any) -> None:
    check_kernels(shape, dtype, torch.device(PLACE), EXACT)


@pytest.mark.parametrize("dtype", [BF16, HALF], ids=["bfloat16", "float16"])
@pytest.mark.parametrize(("add", "relu"), AFTER)
@pytest.mark.parametrize("shape", [*MORE, (16, 256, 56, 56)])
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
