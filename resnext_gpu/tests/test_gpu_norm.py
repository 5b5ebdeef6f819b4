"""Batch normalisation by our kernels, interpreted on the CPU; training with it; refusals; `auto`; machine code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gpu_cases import differing, relative  # noqa: E402
from gpu_convolutions import HALF, INTERPRETED, LRS, Net  # noqa: E402
from gpu_interpreter import interpreted  # noqa: E402
from gpu_norms import AFTER, SHAPES, check_kernels, check_norm  # noqa: E402
from resnext_gpu.grouped_conv import norm, op  # noqa: E402
from resnext_gpu.options import GpuOptions  # noqa: E402

from resnext_core.errors import UsageError  # noqa: E402

#: Two blocks, both with a downsampling shortcut.
SMALL = Net((1, 1), 6)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def launch() -> Iterator[Any]:
    with interpreted():
        yield


@pytest.mark.parametrize(("add", "relu"), AFTER)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_as_exact_as_pytorch(shape: tuple[int, ...], add: bool, relu: bool, launch: Any) -> None:
    check_norm(shape, add, relu, HALF, CPU)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_kernel_alone(shape: tuple[int, ...], launch: Any) -> None:
    check_kernels(shape, HALF, CPU, INTERPRETED)


def test_statistics_survive_a_large_mean(launch: Any) -> None:
    """Sums of squares would give a variance of 0, or less: the squares have an error of 0.5."""
    from resnext_gpu.grouped_conv import norm_launch

    noise = torch.randn(2, 16, 9, 9, generator=torch.Generator().manual_seed(0))
    x = (noise + 3000).contiguous(memory_format=torch.channels_last)
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    affine = torch.ones(16), torch.zeros(16)
    found = norm_launch.norm_of(x, *affine)
    assert float((found[0] - mean).abs().max()) <= 3000 * 2.0**-21
    assert float(((found[1] - var) / var).abs().max()) <= 1e-4
    parts = [norm_launch.norm_of(part, *affine)[:2] for part in (x[:1], x[1:])]
    given = torch.stack([torch.stack([mean, var * 81]) for mean, var in parts])
    joined = norm_launch.combine(given, torch.tensor([81.0, 81.0]), *affine)
    assert float(((joined[1] - var) / var).abs().max()) <= 1e-4


def test_the_operations_are_what_pytorch_expects(launch: Any) -> None:
    """Their schemas, what they say about shapes and memory order, autograd, and tracing."""
    x, other, dz = (
        torch.randn(2, 16, 3, 4).to(HALF).contiguous(memory_format=torch.channels_last) for _ in range(3)
    )
    affine = torch.rand(16) + 1, torch.randn(16)
    for moves in (True, False):
        torch.library.opcheck(norm.norm_of, (x, *affine, torch.zeros(16), torch.ones(16), moves))
    found = norm.norm_of(x, *affine, torch.zeros(16), torch.ones(16), False)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    leaves = [t.clone().requires_grad_() for t in (x, *affine, other)]
    given = (leaves[0], found, leaves[1], leaves[2])
    torch.library.opcheck(norm._alone, (*given, True), test_utils=tests)
    torch.library.opcheck(norm._sum, (*given, leaves[3]), test_utils=tests)
    torch.library.opcheck(norm._alone_back, (dz, x, found, True), test_utils=tests)
    torch.library.opcheck(norm._sum_back, (dz, x, found, other), test_utils=tests)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("add", [False, True])
def test_what_is_not_finite_reaches_the_result_and_the_gradients(add: bool, bad: float, launch: Any) -> None:
    """Else a step that overflowed would not be skipped: ReLU must not turn it into 0."""
    x, other = torch.randn(2, 2, 16, 3, 4).to(HALF)
    x[0, 3, 1, 1] = bad
    affine = torch.ones(16), torch.zeros(16)
    found = norm.norm_of(x, *affine, torch.zeros(16), torch.ones(16), False)
    x.requires_grad_()
    z = norm._sum(x, found, *affine, other) if add else norm._alone(x, found, *affine, True)
    assert z[:, 3].isnan().any()
    z.backward(torch.ones_like(z))
    assert x.grad[:, 3].isnan().all()
    assert x.grad[:, :3].isfinite().all()


def test_training_is_the_same(launch: Any) -> None:
    """Losses, weights, running statistics and momentum of two steps, and logits, as by PyTorch's kernels."""
    ours, plain, exact = (
        SMALL.trainer(compute, device="cpu", channels_last=True, grouped_conv="cudnn", **options)
        for compute, options in (("float16", {"batch_norm": "triton"}), ("float16", {}), ("float32", {}))
    )
    assert ours.engine._how.norm is norm.normalise
    assert plain.engine._how.norm is None
    for step in range(2):
        given, lrs = SMALL.steps[step : step + 1], LRS[step : step + 1]
        losses = [trainer.run_steps(given, lrs) for trainer in (ours, plain, exact)]
        assert relative(losses[0], losses[1]) <= 1e-2
        found, other, wanted = (trainer.state().tensors for trainer in (ours, plain, exact))
        for name, array in wanted.items():
            away = [np.linalg.norm(one[name] - array) / np.linalg.norm(array) for one in (found, other)]
            assert away[0] <= 2 * away[1] + 0.02, f"step {step}, {name}: {away}"
            if ".running_" in name:
                assert relative(found[name], other[name]) <= 5e-3, name
    images = SMALL.steps[0].images
    assert relative(*(t.predictor().logits(images) for t in (ours, plain))) <= 5e-2, "PyTorch's, when serving"


def test_checkpointing_changes_no_bit(launch: Any) -> None:
    """The running statistics have moved in the forward pass, and do not move when it is computed again."""
    plain, other = (
        SMALL.trainer(
            "float16", device="cpu", channels_last=True, grouped_conv="cudnn", batch_norm="triton", checkpointing=again
        )
        for again in (False, True)
    )  # fmt: skip
    step, lr = SMALL.steps[:1], LRS[:1]
    np.testing.assert_array_equal(plain.run_steps(step, lr), other.run_steps(step, lr))
    assert differing(plain.state(), other.state()) == []


@pytest.mark.slow
def test_compiled_training_takes_the_kernels(launch: Any, capfd: pytest.CaptureFixture[str]) -> None:
    plain, compiled = (
        SMALL.trainer("float16", device="cpu", batch_norm="triton", compile=compiled, grouped_conv="cudnn")
        for compiled in (False, True)
    )
    step, lr = SMALL.steps[:1], LRS[:1]
    assert relative(compiled.run_steps(step, lr), plain.run_steps(step, lr)) <= 1e-2
    assert "torch.compile failed" not in capfd.readouterr().err


def test_one_value_per_channel_is_refused(launch: Any) -> None:
    from resnext_gpu.network import Arithmetic, BatchNorm

    layer = BatchNorm(16, Arithmetic(compute=HALF, norm=norm.normalise))
    with pytest.raises(UsageError, match="only one value"):
        layer(torch.ones((1, 16, 1, 1), dtype=HALF), relu=True)


def choose(mode: Any, compute: Any = HALF, device: Any = CPU, **how: Any) -> Any:
    how = {"bn_float32": True, "plain": False} | how
    return norm.batch_norm(mode, compute, device, **how)


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("torch") is None
    assert choose("auto") is None, "the interpreter was not measured"
    assert choose("triton") is norm.normalise
    for words, found in {
        "precision.compute=bfloat16 or float16": {"compute": torch.float32},
        "precision.bn_float32=true": {"bn_float32": False},
    }.items():
        with pytest.raises(UsageError, match=rf"gpu\.batch_norm=triton cannot be used: .*{words}"):
            choose("triton", **found)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(UsageError, match="the kernels need an NVIDIA GPU"):
        choose("triton")
    with pytest.raises(UsageError, match=r"gpu\.batch_norm=triton and gpu\.sync_bn cannot be combined"):
        GpuOptions(batch_norm="triton", sync_bn=True)


def test_auto_takes_it_on_measured_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    card = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(op.util, "find_spec", lambda _: True)
    monkeypatch.setattr(op, "MEASURED", frozenset())
    assert choose("auto", device=card) is None
    monkeypatch.setattr(op, "MEASURED", frozenset({(9, 0)}))
    assert choose("auto", device=card) is norm.normalise
    assert choose("auto", device=card, plain=True) is None
    assert choose("auto", device=card, compute=torch.float32) is None
    assert choose("triton", device=card, plain=True) is norm.normalise


# -- machine code ---------------------------------------------------------------------------------

_COMPILE = """
import os, re, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from resnext_core.model.spec import BN_EPS, BN_MOMENTUM
from resnext_gpu.grouped_conv import norm_kernels

IMAGES = {"dy", "x", "y", "dx", "other", "d_of_sum"}
SIZES = {"rows", "span", "many", "channels", "size"}

def build(kernel, warps, capability, **constants):
    if "EPS" in kernel.arg_names:
        constants |= {"EPS": BN_EPS, "MOMENTUM": BN_MOMENTUM}
    types = {name: "*bf16" if name in IMAGES else "i32" if name in SIZES else "*fp32" for name in kernel.arg_names}
    types |= dict.fromkeys(constants, "constexpr")
    sixteen = {(n,): [["tt.divisibility", 16]] for n, name in enumerate(kernel.arg_names)
               if types[name].startswith("*") or name == "channels"}
    source = ASTSource(kernel, types, constants, sixteen)
    options = {"num_warps": warps, "num_stages": 1}
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    name = f"{built.hash}.ptx"
    with open(name, "w") as stream:
        stream.write(built.asm["ptx"])
    arch = f"sm_{capability}" + ("a" if capability >= 90 else "")
    told = subprocess.run([get_ptxas(capability).path, "-v", "--gpu-name", arch, name, "-o", os.devnull],
                          capture_output=True, text=True, check=True).stderr
    spilled = int(re.search(r"(\\d+) bytes spill stores", told)[1])
    return kernel.__name__, capability, spilled, built.metadata.shared, warps, constants

jobs = []
for capability in map(int, sys.argv[1:]):
    for kernel, rows, flags in (
        ("row_statistics", 16, {"AHEAD": 4}), ("activate", 32, {"ADD": True, "RELU": True}),
        ("gradient_sums", 16, {"ADD": True, "RELU": True, "AHEAD": 4}),
        ("gradient_sums", 16, {"ADD": False, "RELU": True, "AHEAD": 4}), ("input_of_norm", 32, {"RELU": True}),
    ):
        jobs.append((getattr(norm_kernels, kernel), 4, capability, {"BM": rows, "BC": 128, **flags}))
    jobs.append((norm_kernels.add_parts, 4, capability, {"BM": 64, "BC": 32}))
    jobs.append((norm_kernels.combine, 4, capability, {"BM": 64, "BC": 16}))
with ThreadPoolExecutor(os.cpu_count()) as pool:
    for row in pool.map(lambda job: build(*job[:3], **job[3]), jobs):
        print(*row)
"""


@pytest.mark.parametrize("card", ["90", pytest.param("80", marks=pytest.mark.slow)])
def test_the_kernels_compile_for_a_gpu(card: str, tmp_path: Path) -> None:
    """To machine code of the H100 and of the A100, with what they keep in registers."""
    pytest.importorskip("triton", reason="Triton is not installed")
    code = tmp_path / "build.py"
    code.write_text(_COMPILE)
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    built = subprocess.run(
        [sys.executable, str(code), card],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        env=env,
    )
    assert built.returncode == 0, built.stderr[-2000:]
    rows = [line.split() for line in built.stdout.splitlines()]
    assert len({row[0] for row in rows}) == 6
    for row in rows:
        assert int(row[2]) <= 80, row
        assert int(row[3]) <= 48 << 10, row
