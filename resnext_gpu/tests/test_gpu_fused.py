"""Batch normalisation fused into the grouped convolution, interpreted on the CPU; training with it; what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gpu_cases import differing, relative  # noqa: E402
from gpu_convolutions import HALF, INTERPRETED, LRS, Net  # noqa: E402
from gpu_fusions import SHAPES, check_kernels, check_middle, make_middle, norm_by  # noqa: E402
from gpu_interpreter import interpreted  # noqa: E402
from resnext_gpu.grouped_conv import fused as op  # noqa: E402
from resnext_gpu.options import GpuOptions  # noqa: E402

from resnext_core.errors import UsageError  # noqa: E402
from resnext_core.model.spec import VARIANTS  # noqa: E402

#: Two blocks, the second with the stride: groups of 4 and of 8 channels.
SMALL = Net((1, 1), 6)


@pytest.fixture(scope="module")
def launch() -> Iterator[Any]:
    with interpreted() as plain:
        from resnext_gpu.grouped_conv import fused_launch

        yield SimpleNamespace(plain=plain, fused=fused_launch)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_kernel_alone(shape: tuple[int, ...], launch: Any) -> None:
    middle = make_middle(*shape, HALF)
    wide = 32 if shape[2] == 32 else 16
    plan = launch.plain.Plan(squares=16 if shape[0] % 2 else 32, channels=wide, warps=2)
    spans = launch.plain.Plan(squares=16, channels=wide, warps=1, programs=8)
    check_kernels(launch.plain, launch.fused, middle, plan, spans, INTERPRETED)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1]])
def test_the_middle_of_a_block(shape: tuple[int, ...], launch: Any) -> None:
    check_middle(op, make_middle(*shape, HALF))


def test_the_operations_are_what_pytorch_expects(launch: Any) -> None:
    """Their schemas, what they say about shapes and memory order, autograd, and tracing."""
    for stride in (1, 2):
        middle = make_middle(1, 16, 4, 3, 4, stride, HALF)
        first = norm_by(middle.x, *middle.norms[0])
        x, weight, *affine = (
            t.clone().requires_grad_() for t in (middle.x, middle.weight, *middle.norms[0], *middle.norms[1])
        )
        args = (x, first, weight, *affine, stride, False)
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(op._forward, args, test_utils=tests)
        with torch.no_grad():
            _, y, second = op._forward(*args)
        given = (middle.dz, middle.x, first, middle.weight, y, second)
        torch.library.opcheck(op._backward, (*given, stride, False), test_utils=tests)


def test_statistics_survive_a_large_mean(launch: Any) -> None:
    """Sums of squares would give a variance of 0, or less: the squares have an error of 0.5."""
    noise = torch.randn(2, 16, 9, 9, generator=torch.Generator().manual_seed(0))
    x = (noise + 3000).contiguous(memory_format=torch.channels_last)
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    affine = torch.ones(16), torch.zeros(16)
    found = launch.fused.norm_of(x, *affine)
    assert float((found[0] - mean).abs().max()) <= 3000 * 2.0**-21
    assert float(((found[1] - var) / var).abs().max()) <= 1e-4
    parts = [launch.fused.norm_of(part, *affine)[:2] for part in (x[:1], x[1:])]
    given = torch.stack([torch.stack([mean, var * 81]) for mean, var in parts])
    joined = launch.fused.combine(given, torch.tensor([81.0, 81.0]), *affine)
    assert float(((joined[1] - var) / var).abs().max()) <= 1e-4


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_the_loss_and_the_gradients(bad: float, launch: Any) -> None:
    """Else a step that overflowed would not be skipped: ReLU must not turn it into 0."""
    middle = make_middle(1, 16, 4, 3, 4, 1, HALF)
    middle.x[0, 3, 1, 1] = bad
    x, weight = middle.x.requires_grad_(), middle.weight.requires_grad_()
    affine = (*middle.norms[0], *middle.norms[1])
    z, _, _ = op._forward(x, norm_by(x, *middle.norms[0]), weight, *affine, 1, False)
    assert z[:, :4].isnan().any(), "the channels of its group"
    z.backward(middle.dz)
    assert weight.grad[:4].isnan().any()
    assert x.grad[:, :4].isnan().any()


# -- training -------------------------------------------------------------------------------------


def test_training_is_the_same(launch: Any) -> None:
    """Losses, weights, running statistics and momentum of two steps, and logits, as by the unfused kernels."""
    fused, plain, exact = (
        SMALL.trainer(compute, device="cpu", channels_last=True, **options)
        for compute, options in (
            ("float16", {"fused_bn": True}), ("float16", {"grouped_conv": "cudnn"}), ("float32", {}),
        )
    )  # fmt: skip
    assert fused.engine._how.middle is not None
    assert plain.engine._how.middle is None
    for step in range(2):
        given, lrs = SMALL.steps[step : step + 1], LRS[step : step + 1]
        losses = [trainer.run_steps(given, lrs) for trainer in (fused, plain, exact)]
        assert relative(losses[0], losses[1]) <= 1e-2
        ours, other, wanted = (trainer.state().tensors for trainer in (fused, plain, exact))
        for name, array in wanted.items():
            away = [np.linalg.norm(one[name] - array) / np.linalg.norm(array) for one in (ours, other)]
            assert away[0] <= 2 * away[1] + 0.02, f"step {step}, {name}: {away}"
            if ".running_" in name:
                assert relative(ours[name], other[name]) <= 5e-3, name
    images = SMALL.steps[0].images
    assert relative(*(t.predictor().logits(images) for t in (fused, plain))) <= 5e-2, "unfused, when serving"


def test_checkpointing_changes_no_bit(launch: Any) -> None:
    """The running statistics have moved in the forward pass, and do not move when it is computed again."""
    plain, other = (
        SMALL.trainer("float16", device="cpu", channels_last=True, fused_bn=True, checkpointing=again)
        for again in (False, True)
    )
    step, lr = SMALL.steps[:1], LRS[:1]
    np.testing.assert_array_equal(plain.run_steps(step, lr), other.run_steps(step, lr))
    assert differing(plain.state(), other.state()) == []


@pytest.mark.slow
def test_compiled_training_takes_the_kernels(launch: Any, capfd: pytest.CaptureFixture[str]) -> None:
    plain, compiled = (
        SMALL.trainer("float16", device="cpu", fused_bn=True, compile=compiled) for compiled in (False, True)
    )
    step, lr = SMALL.steps[:1], LRS[:1]
    assert relative(compiled.run_steps(step, lr), plain.run_steps(step, lr)) <= 1e-2
    assert "torch.compile failed" not in capfd.readouterr().err


def test_one_value_per_channel_is_refused(launch: Any) -> None:
    """By the second normalisation, which has a quarter of the pixels of the first."""
    from resnext_gpu.network import Arithmetic, Block

    how = Arithmetic(compute=HALF, middle=choose(True))
    spec = SimpleNamespace(in_channels=16, out_channels=16, width=16, stride=2, downsample=True)
    block = Block(spec, 4, how)  # type: ignore[arg-type]
    for size, message in ((1, "only one value"), (2, "only one value"), (3, None)):
        x = torch.ones((1, 16, size, size), dtype=HALF)
        if message is None:
            block(x)
        else:
            with pytest.raises(UsageError, match=message):
                block(x)


def choose(wanted: bool, spec: Any = None, compute: Any = HALF, device: str = "cpu", **how: Any) -> Any:
    spec = spec or VARIANTS["resnext50_32x4d"]
    how = {"bn_float32": True, "deterministic": False} | how
    return op.fused_middle(wanted, spec, compute, torch.device(device), **how)


def test_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose(False, compute=torch.float32) is None
    assert choose(True).keywords == {"timed": False}
    for words, found in {
        "precision.compute=bfloat16 or float16": {"compute": torch.float32},
        "precision.bn_float32=true": {"bn_float32": False},
    }.items():
        with pytest.raises(UsageError, match=rf"gpu\.fused_bn cannot be used: .*{words}"):
            choose(True, **found)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(UsageError, match="the kernels need an NVIDIA GPU"):
        choose(True)
    with pytest.raises(UsageError, match=r"gpu\.fused_bn and gpu\.sync_bn cannot be combined"):
        GpuOptions(fused_bn=True, sync_bn=True)
    with pytest.raises(UsageError, match=r"set gpu\.grouped_conv=auto or triton"):
        GpuOptions(fused_bn=True, grouped_conv="cudnn")


# -- machine code ---------------------------------------------------------------------------------

_COMPILE = """
import os, re, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from resnext_core.model.spec import BN_EPS, BN_MOMENTUM
from resnext_gpu.grouped_conv import fused_kernels, norm_kernels, plans

IMAGES = {"dy", "x", "y", "dx", "packed", "other", "d_of_sum"}
SIZES = {"rows", "span", "many", "squares", "channels", "height", "width", "size", "out_height", "out_width"}

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

everything = sys.argv[1] == "all"
strides = (1, 2) if everything else (1,)
jobs = []
for capability in (80, 90) if everything else (90,):
    for kernel, rows, flags in (
        ("row_statistics", 16, {"AHEAD": 4}), ("activate", 32, {"ADD": True, "RELU": True}),
        ("gradient_sums", 16, {"ADD": True, "RELU": True, "AHEAD": 4}),
        ("gradient_sums", 16, {"ADD": False, "RELU": True, "AHEAD": 4}), ("input_of_norm", 32, {"RELU": True}),
    ):
        jobs.append((getattr(norm_kernels, kernel), 4, capability, {"BM": rows, "BC": 128, **flags}))
    jobs.append((norm_kernels.add_parts, 4, capability, {"BM": 64, "BC": 32}))
    jobs.append((norm_kernels.combine, 4, capability, {"BM": 64, "BC": 16}))
    seen = set()
    for width in (4, 32) if everything else (4,):
        shape = plans.Shape(images=128, channels=1024, group_width=width, height=28, width=28, stride=1,
                            dtype=torch.bfloat16)
        cuts, sums = ([*plans.candidates(what, shape)] if everything else [plans.default_plan(what, shape)]
                      for what in ("fused forward", "fused weight gradient"))
        for plan in cuts:
            cut = {"BM": plan.squares, "BC": plan.channels}
            if (plan.squares, plan.channels, plan.warps) not in seen:
                seen.add((plan.squares, plan.channels, plan.warps))
                jobs += [(fused_kernels.forward, plan.warps, capability, {"STRIDE": s, **cut}) for s in strides]
                jobs += [(k, plan.warps, capability, cut)
                         for k in (fused_kernels.input_gradient, fused_kernels.input_gradient_of_stride_2)]
        for squares, channels, warps in {(plan.squares, plan.channels, plan.warps) for plan in sums}:
            cut = {"GW": width, "BM": squares, "BC": channels}
            jobs += [(fused_kernels.weight_gradient, warps, capability, {"STRIDE": s, **cut}) for s in strides]
with ThreadPoolExecutor(os.cpu_count()) as pool:
    for row in pool.map(lambda job: build(*job[:3], **job[3]), jobs):
        print(*row)
"""


@pytest.mark.parametrize("which", ["default", pytest.param("all", marks=pytest.mark.slow)])
def test_the_kernels_compile_for_a_gpu(which: str, tmp_path: Path) -> None:
    """To machine code of the H100, and all plans also of the A100: with what they keep in registers."""
    pytest.importorskip("triton", reason="Triton is not installed")
    code = tmp_path / "build.py"
    code.write_text(_COMPILE)
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    built = subprocess.run(
        [sys.executable, str(code), which],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        env=env,
    )
    assert built.returncode == 0, built.stderr[-2000:]
    rows = [line.split() for line in built.stdout.splitlines()]
    assert len({row[0] for row in rows}) == 10
    for row in rows:
        assert int(row[2]) <= 80, row
        assert int(row[3]) <= 48 << 10, row


@pytest.mark.slow
def test_the_benchmark_runs() -> None:
    """On the CPU; what it measures there means nothing."""
    script = Path(__file__).parents[2] / "benchmarks" / "fusion.py"
    command = [sys.executable, str(script), "--smoke", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads(done.stdout)["rows"]
    assert row["wrong"] == []
    assert set(row["ms"]) == {"fused", "apart, our kernels", "apart, cuDNN"}
