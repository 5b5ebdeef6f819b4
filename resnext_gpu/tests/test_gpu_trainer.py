"""The trainer beyond the contract kit: other ways through the same step, memory, the feed, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gpu_cases import (  # noqa: E402
    FAR_FROM_KINKS,
    batches,
    differing,
    inputs_of,
    relative,
    tiny_weights,
    train_request,
    trainer_with,
    with_bad_rows,
)
from resnext_gpu.engine import _check_card  # noqa: E402
from resnext_gpu.gradients import Gradients, gradients_of  # noqa: E402
from resnext_gpu.inputs import StepTensors  # noqa: E402
from resnext_gpu.memory import is_out_of_memory  # noqa: E402
from resnext_gpu.network import Arithmetic, Network, make_tensors, max_pool  # noqa: E402
from resnext_gpu.options import GpuOptions  # noqa: E402
from resnext_gpu.predictor import SIZES, GpuPredictor, split  # noqa: E402
from resnext_gpu.step import Step  # noqa: E402
from resnext_gpu.table import Table  # noqa: E402

from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig  # noqa: E402
from resnext_core.errors import DataError, UsageError  # noqa: E402
from resnext_core.model.spec import model_spec  # noqa: E402
from resnext_core.reference import ops  # noqa: E402
from resnext_core.testing.cases import oracle_trainer  # noqa: E402
from resnext_core.testing.kinks import DISTANCE, exact_steps, watch_kinks  # noqa: E402
from resnext_core.training.trainer import Trainer  # noqa: E402
from resnext_gpu import feed, graphs  # noqa: E402

LRS = np.array([0.05, 0.02, 0.01], np.float32)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Give later tests back the threads that a setting took."""
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def trainer(options: dict[str, Any] | None = None, **changes: Any) -> Trainer:
    return trainer_with(GpuOptions(**{"device": "cpu", **(options or {})}), train_request(**changes))


# -- against the reference -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulate": 3, "optimizer": OptimizerConfig(clip_norm=0.5, weight_decay=0.01), "ema_decay": 0.9},
        {"accumulate": 2, "precision": PrecisionConfig(loss_scale="fixed", scale=1000.0),
         "optimizer": OptimizerConfig(clip_norm=0.5, momentum=0.0)},
        {"optimizer": OptimizerConfig(weight_decay=0.0), "loss": LossConfig(smoothing_form="uniform", smoothing=0.3)},
        {"optimizer": OptimizerConfig(clip_norm=0.01), "skip_nonfinite": True, "ema_decay": 0.5},
        {"optimizer": OptimizerConfig(momentum=0.0, weight_decay=0.1), "loss": LossConfig(smoothing=0.0)},
    ],
    ids=["accumulate-clip-ema", "scale-clip-no-momentum", "uniform", "skip-clip", "no-momentum"],
)  # fmt: skip
def test_steps_equal_the_reference(changes: dict[str, Any]) -> None:
    request = train_request(tiny_weights(6), **changes)
    exact = dataclasses.replace(request, precision=dataclasses.replace(request.precision, compute="float64"))
    ours, reference = trainer_with(GpuOptions(device="cpu"), request), oracle_trainer(exact)
    steps = batches(3, size=6, seed=36)
    assert relative(ours.run_steps(steps, LRS), exact_steps(reference, steps, LRS)) <= 1e-5
    found, wanted = ours.state(), reference.state()
    assert found.scalars == wanted.scalars
    for name, array in wanted.tensors.items():
        assert relative(found.tensors[name], array) <= (1e-4 if name.startswith("momentum/") else 1e-5), name


@pytest.mark.parametrize(("stem", "size", "seed"), [("cifar", 8, 5), ("imagenet", 24, 4)])
def test_channels_last_is_the_same_step(stem: str, size: int, seed: int) -> None:
    """The layout of GPUs. One step and no more: on the CPU its sums are rounded more, and a ReLU soon turns over."""
    request = train_request(tiny_weights(size, stem=stem), ema_decay=0.9, accumulate=2)
    exact = dataclasses.replace(request, precision=PrecisionConfig(compute="float64"))
    ours, reference = (
        trainer_with(GpuOptions(device="cpu", channels_last=True), request),
        oracle_trainer(exact),
    )
    steps = batches(1, size=size, seed=seed)
    assert (
        relative(ours.predictor().logits(steps[0].images), reference.predictor().logits(steps[0].images))
        <= 1e-5
    )
    assert relative(ours.run_steps(steps, LRS[:1]), exact_steps(reference, steps, LRS[:1])) <= 1e-5
    found, wanted = ours.state(), reference.state()
    for name, array in wanted.tensors.items():
        assert relative(found.tensors[name], array) <= (1e-4 if name.startswith("momentum/") else 1e-5), name
    resumed = trainer_with(GpuOptions(device="cpu", channels_last=True), request)
    resumed.load_state(found)
    assert differing(resumed.state(), found) == []


@pytest.mark.parametrize(("stem", "size", "seed"), FAR_FROM_KINKS)
def test_the_steps_of_the_hardware_tests_are_far_from_kinks(stem: str, size: int, seed: int) -> None:
    """By nine times what a test must have: a GPU rounds otherwise than a CPU, and tests there are run rarely."""
    precision = PrecisionConfig(compute="float64")
    reference = oracle_trainer(
        train_request(tiny_weights(size, stem=stem), ema_decay=0.9, precision=precision)
    )
    with watch_kinks() as found:
        reference.run_steps(batches(1, size=size, seed=seed), LRS[:1])
    assert found.inputs
    assert found.distance >= 9 * DISTANCE


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (4, 7), (8, 8), (9, 6)])
def test_pools_equal_the_reference(padding: str, size: tuple[int, int]) -> None:
    spec = model_spec("resnext50_32x4d", pool_padding=padding)  # type: ignore[arg-type]
    x = np.random.default_rng(0).standard_normal((4, 2, *size)).astype(np.float32)
    expected, _ = ops.max_pool(x, spec.pool_pads(size[0]), spec.pool_pads(size[1]))
    np.testing.assert_array_equal(max_pool(torch.from_numpy(x), spec).numpy(), expected)


@pytest.mark.parametrize("bn_float32", [True, False])
@pytest.mark.parametrize("compute", ["float16", "bfloat16"])
def test_low_precision_stays_near_and_keeps_float32_masters(compute: Any, bn_float32: bool) -> None:
    precision = PrecisionConfig(compute=compute, bn_float32=bn_float32, loss_scale="fixed")
    low, full = trainer(precision=precision), oracle_trainer(train_request())
    steps = batches(1)
    assert relative(low.run_steps(steps, LRS[:1]), full.run_steps(steps, LRS[:1])) <= 2e-2
    logits = low.predictor().logits(steps[0].images)
    assert logits.dtype == np.float32
    assert relative(logits, full.predictor().logits(steps[0].images)) <= 5e-2
    tensors = low.state().tensors
    dtype = getattr(torch, compute)

    def rounded(name: str) -> bool:
        tensor = torch.from_numpy(tensors[name])
        return bool((tensor.to(dtype).float() == tensor).all())

    assert not rounded("weights/layer1.0.conv2.weight"), "the masters are float32"
    assert rounded("weights/layer1.0.bn2.running_var") is (not bn_float32)


# -- other ways through the same step ------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"checkpointing": True}, {"bucket_mib": 1}, {"cuda_graphs": True}, {"threads": 1}],
    ids=["checkpointing", "buckets", "no-graphs", "threads"],
)
def test_settings_that_change_no_bit(options: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    changes = {"accumulate": 2, "ema_decay": 0.9}
    plain, other = trainer({"threads": 1}, **changes), trainer(options, **changes)
    steps = batches(3)
    np.testing.assert_array_equal(plain.run_steps(steps, LRS), other.run_steps(steps, LRS))
    assert differing(plain.state(), other.state()) == []
    assert ("no CUDA graphs without a GPU" in capfd.readouterr().err) is bool(options.get("cuda_graphs"))


@pytest.mark.parametrize("by_block", [False, True])
def test_compiled_is_the_same_network(by_block: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """With a C++ compiler; the whole network, and block by block as with several ranks."""
    request = train_request(tiny_weights(6))
    plain, compiled = (
        trainer_with(GpuOptions(device="cpu", compile=compile), request) for compile in (False, not by_block)
    )
    if by_block:
        step = compiled.engine._own_step
        assert step is not None
        step.forward = graphs.Compiled(step.forward, by_block=True)
    steps = batches(3, size=6, seed=14)
    exact = dataclasses.replace(request, precision=PrecisionConfig(compute="float64"))
    exact_steps(oracle_trainer(exact), steps, LRS)
    assert relative(compiled.run_steps(steps, LRS), plain.run_steps(steps, LRS)) <= 1e-5
    for name, array in plain.state().tensors.items():
        tolerance = 1e-4 if name.startswith("momentum/") else 1e-5
        assert relative(compiled.state().tensors[name], array) <= tolerance, name
    said = capfd.readouterr().err
    if "torch.compile failed" in said:
        pytest.skip(said)


class BreaksBehind(torch.autograd.Function):
    """Nothing in the forward pass, an error in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        raise RuntimeError("Triton Error [CUDA]: invalid argument\nwith many lines")


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("where", ["forward", "midway", "backward"])
def test_what_cannot_be_compiled_is_computed_as_it_is(
    where: str, accumulate: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever pass refuses, and after whatever it has moved: the same bits as without, and one line."""

    def refuse(network: Any, **how: Any) -> Callable[[Any], Any]:
        def call(images: Any) -> Any:
            if where == "forward":
                raise torch._dynamo.exc.Unsupported("not on this machine\nwith many lines")
            logits = network(images)
            if where == "midway":
                raise RuntimeError("a part behind a graph break was not compiled")
            return BreaksBehind.apply(logits)

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    changes = {"accumulate": accumulate, "skip_nonfinite": True, "ema_decay": 0.9}
    plain, compiled = trainer(**changes), trainer({"compile": True}, **changes)
    steps = batches(2)
    np.testing.assert_array_equal(compiled.run_steps(steps, LRS[:2]), plain.run_steps(steps, LRS[:2]))
    assert differing(plain.state(), compiled.state()) == []
    lines = capfd.readouterr().err.splitlines()
    assert len([line for line in lines if "torch.compile failed" in line]) == 1


@pytest.mark.slow
def test_a_backward_pass_that_pytorch_cannot_lower(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the real torch.compile, which lowers it when the first gradients are asked for; only its compiler refuses."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func

    lowered = []

    def forward(module: Any, inputs: Any) -> Any:
        lowered.append("forward")
        return make_boxed_func(module.forward)

    def backward(module: Any, inputs: Any) -> Any:
        lowered.append("backward")
        raise RuntimeError("no such kernel")

    compile_ = torch.compile
    backend = aot_autograd(fw_compiler=forward, bw_compiler=backward)
    monkeypatch.setattr(torch, "compile", lambda network, **how: compile_(network, backend=backend, **how))
    weights, steps = tiny_weights(8, depths=(1,)), batches(2, size=8)
    plain, compiled = trainer(weights=weights), trainer({"compile": True}, weights=weights)
    np.testing.assert_array_equal(compiled.run_steps(steps, LRS[:2]), plain.run_steps(steps, LRS[:2]))
    assert differing(plain.state(), compiled.state()) == []
    assert set(lowered) == {"forward", "backward"}
    lines = [line for line in capfd.readouterr().err.splitlines() if "torch.compile failed" in line]
    assert len(lines) == 1
    assert "no such kernel" in lines[0]


def test_trying_what_is_compiled_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def count(network: Any, **how: Any) -> Callable[[Any], Any]:
        return lambda images: (calls.append(len(images)), network(images))[1]

    monkeypatch.setattr(torch, "compile", count)
    plain, compiled = trainer(accumulate=2), trainer({"compile": True}, accumulate=2)
    steps = batches(2)
    np.testing.assert_array_equal(compiled.run_steps(steps, LRS[:2]), plain.run_steps(steps, LRS[:2]))
    assert differing(plain.state(), compiled.state()) == []
    assert calls == [3] * 5, "one trial, then two steps of two micro-batches"


def test_out_of_memory_while_compiling_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(network: Any, **how: Any) -> Callable[[Any], Any]:
        def call(images: Any) -> Any:
            if len(images) > 3:
                raise RuntimeError("backend raised") from torch.cuda.OutOfMemoryError()
            return network(images)

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(UsageError, match=r"3 do: set train\.accumulate=2"):
        trainer({"compile": True}).run_steps(batches(1), LRS[:1])


class Again(graphs.Recorder):
    """Records as a graph does: the same memory, written anew by each call; warm steps before."""

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        for _ in range(3):
            function()
        outputs = [t.clone() for t in function()]

        def replay() -> None:
            for own, new in zip(outputs, function(), strict=True):
                own.copy_(new)

        return replay, outputs


@pytest.mark.parametrize("skip", [False, True])
def test_a_recorded_step_is_the_step(skip: bool) -> None:
    """The steps that warm up leave no trace, and each replay takes its own batch, rate and scale."""
    changes = {
        "ema_decay": 0.9, "skip_nonfinite": skip,
        "precision": PrecisionConfig(loss_scale="dynamic", scale=2.0**120, growth_interval=2),
    }  # fmt: skip
    plain, recorded = trainer(**changes), trainer(**changes)
    step = recorded.engine._own_step
    assert step is not None
    recorded.engine._step = graphs.Replayed(step, list(recorded.engine._table.named().values()), Again())
    steps = with_bad_rows(batches(3))
    np.testing.assert_array_equal(recorded.run_steps(steps, LRS), plain.run_steps(steps, LRS))
    assert differing(plain.state(), recorded.state()) == []


def test_a_step_that_cannot_be_recorded_is_an_error() -> None:
    """One line, and the state is what it was, so that it can be saved."""

    class Refuses(graphs.Recorder):
        def record(self, function: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
            function()
            raise graphs.CaptureFailed("operation not permitted when stream is capturing")

    ours = trainer(ema_decay=0.9)
    engine, before = ours.engine, ours.state()
    engine._step = graphs.Replayed(step_of(ours), list(engine._table.named().values()), Refuses())
    with pytest.raises(UsageError) as caught:
        ours.run_steps(batches(2), LRS[:2])
    assert str(caught.value) == (
        "this step cannot be recorded as a CUDA graph (operation not permitted when stream is capturing); "
        "set gpu.cuda_graphs=false"
    )
    assert [n for n in differing(before, ours.state()) if n != "scalars"] == []


class FakeGraph:
    """As CUDAGraph.cpp: a capture that was invalidated raises at its end, before the allocator is told."""

    def __init__(self, log: list[str], *, valid: bool = True) -> None:
        self._log, self._valid = log, valid

    def capture_begin(self, pool: Any) -> None:
        self._log.append(f"begin {pool}")

    def capture_end(self) -> None:
        self._log.append("end")
        if not self._valid:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


@pytest.mark.parametrize("valid", [True, False])
@pytest.mark.parametrize("error", [None, RuntimeError("not permitted"), torch.cuda.OutOfMemoryError("full")])
def test_stream_and_allocator_leave_capture_mode(
    error: Exception | None, valid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda *a, name=name: log.append(f"{name}{a}"), raising=False)

    monkeypatch.setattr(graphs, "_capture_nothing", lambda: log.append("a capture that succeeds"))

    def function() -> str:
        if error is not None:
            raise error
        return "outputs"

    graph = FakeGraph(log, valid=valid)
    if valid and error is None:
        assert graphs._capture(graph, function) == "outputs"
    else:
        kind = torch.cuda.OutOfMemoryError if "full" in str(error) else graphs.CaptureFailed
        with pytest.raises(kind, match=str(error) if error else "previous error during capture"):
            graphs._capture(graph, function)
    ended = ["_cuda_endAllocateToPool(0, (0, 7))", "_cuda_releasePool(0, (0, 7))", "a capture that succeeds"]
    assert log == ["begin (0, 7)", "end", *([] if valid else ended)]


def test_a_capture_that_runs_out_of_memory_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the parts of the batch that are tried afterwards would not fit."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    held: list[weakref.ref[Any]] = []

    def step() -> None:
        activations = torch.zeros(3)
        held.append(weakref.ref(activations))
        raise torch.cuda.OutOfMemoryError("full")

    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(torch.cuda.OutOfMemoryError):
            graphs._capture(FakeGraph([]), step)
        assert held[0]() is None
    finally:
        gc.enable()


def test_warm_steps_and_capture_share_a_stream_without_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    current, log = [FakeStream()], []
    default = current[0]

    class Entered(FakeStream):
        def __enter__(self) -> FakeStream:
            current.append(self)
            return self

        def __exit__(self, *_: Any) -> None:
            current.pop()

        def wait_stream(self, other: Any) -> None:
            log.append("warm-up waits")

    default.wait_stream = lambda other: log.append("back")  # type: ignore[attr-defined]
    monkeypatch.setattr(graphs, "_stream", lambda device: Entered())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))

    def capture(graph: Any, function: Callable[[], Any]) -> Any:
        assert not gc.isenabled()
        return function()

    monkeypatch.setattr(graphs, "_capture", capture)

    def step(fail: bool = False) -> None:
        log.append(f"step on {type(current[-1]).__name__}")
        if fail:
            raise RuntimeError("a bug")

    class Replays:
        replay = None

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Replays)
    graphs.CudaRecorder().record(step)
    steps = ["step on Entered"] * 3
    assert log == ["warm-up waits", *steps, "synchronize", "step on Entered", "back"]
    assert gc.isenabled()
    assert current == [default]
    log.clear()
    with pytest.raises(RuntimeError, match="a bug"):
        graphs.CudaRecorder().record(lambda: step(fail=True))
    assert log == ["warm-up waits", "step on Entered", "back"]
    assert current == [default]


# -- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"checkpointing": True}, {"views": True}, {"graph": True}, {"compile": True}], ids=str
)
def test_nothing_is_kept_after_the_end(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor dies with the trainer's close, without a collection, though the trainer itself is still there."""
    special = {name: options.get(name) for name in ("views", "graph")}
    monkeypatch.setattr(torch, "compile", lambda network, **how: network)
    given = {name: value for name, value in options.items() if name not in special}
    ours = trainer(given, ema_decay=0.9, skip_nonfinite=True)
    engine = ours.engine
    if special["views"]:
        with_views(ours)
    if special["graph"]:
        engine._step = graphs.Replayed(step_of(ours), list(engine._table.named().values()), Again())
    ours.run_steps(batches(2), LRS[:2])
    logits = ours.predictor(), ours.predictor(ema=True)
    for predictor in logits:
        predictor.logits(batches(1)[0].images)
    table, step = engine._table, step_of(ours)
    held = [table.statistics, *table.weights.values(), *table.momentum.values(), *table.ema.values()]
    held += [*step.gradients.flats, step.gradients.flag, step._one]
    refs = [weakref.ref(tensor) for tensor in held]
    del table, step, held, predictor
    gc.collect()
    gc.disable()
    try:
        ours.close()
        alive = [ref() for ref in refs if ref() is not None]
    finally:
        gc.enable()
    assert [tuple(t.shape) for t in alive if t is not None] == []
    with pytest.raises(UsageError, match="closed"):
        logits[0].logits(batches(1)[0].images)


# -- memory and feed -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fits", "advice"), [(3, "3 do: set train.accumulate=2"), (1, "1 do: set train.accumulate=6")]
)
def test_out_of_memory_names_what_fits(monkeypatch: pytest.MonkeyPatch, fits: int, advice: str) -> None:
    ours = trainer()
    step = ours.engine._own_step
    assert step is not None
    forward = step.forward

    def limited(images: Any) -> Any:
        if len(images) > fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(images)

    monkeypatch.setattr(step, "forward", limited)
    with pytest.raises(UsageError) as caught:
        ours.run_steps(batches(1), LRS[:1])
    assert str(caught.value) == f"a micro-batch of 6 images does not fit into the GPU's memory; {advice}"


#: As the sources word them: c10/cuda/CUDACachingAllocator.cpp, c10/cuda/CUDAException.cpp, ATen/cuda/Exceptions.cpp,
#: ATen/native/cudnn/Conv_v8.cpp, Triton's driver.c, and NCCL's text in a DistBackendError.
SURE = [
    torch.cuda.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..."
    ),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("NCCL error: unhandled cuda error ... Last error:\nCuda failure 2 'out of memory'"),
]
PERHAPS = [
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", [*SURE, *PERHAPS], ids=lambda e: str(e)[:40])
def test_every_form_of_out_of_memory_is_answered(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the forward pass of a step, and of a predictor; where a part fits, that is proof."""
    assert is_out_of_memory(error)
    ours = trainer()
    step = ours.engine._own_step
    assert step is not None
    forward = step.forward

    def limited(images: Any) -> Any:
        if len(images) > 2:
            raise error
        return forward(images)

    monkeypatch.setattr(step, "forward", limited)
    with pytest.raises(UsageError) as caught:
        ours.run_steps(batches(1), LRS[:1])
    assert str(caught.value) == (
        "a micro-batch of 6 images does not fit into the GPU's memory; 2 do: set train.accumulate=3"
    )
    predictor = ours.predictor()

    def never(images: Any) -> Any:
        raise error

    monkeypatch.setattr(predictor, "_network", never)
    with pytest.raises(UsageError, match="6 images at once do not fit") as caught:
        predictor.logits(batches(1)[0].images)
    assert ("or its libraries cannot compute this" in str(caught.value)) is (error in PERHAPS)


def test_what_only_may_be_memory_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = trainer()

    def never(images: Any) -> Any:
        raise PERHAPS[0]

    monkeypatch.setattr(ours.engine._own_step, "forward", never)
    with pytest.raises(UsageError) as caught:
        ours.run_steps(batches(1), LRS[:1])
    line = str(caught.value)
    assert "or its libraries cannot compute this" in line
    assert "GET was unable to find an engine" in line
    assert "gpu.channels_last=false" in line


def test_a_wrapped_error_is_still_out_of_memory() -> None:
    wrapped = RuntimeError("backend='inductor' raised")
    wrapped.__cause__ = SURE[0]
    assert is_out_of_memory(wrapped)
    for other in (
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("out of resource: shared memory, Required: 300000, Hardware limit: 232448"),
        ValueError("unable to find an engine to execute this computation"),
    ):
        assert not is_out_of_memory(other)


def test_tensors_that_do_not_fit_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise SURE[0]

    monkeypatch.setattr(Table, "create", full)
    with pytest.raises(
        UsageError, match=r"the tensors of .* do not fit into the GPU's memory; use a smaller network"
    ):
        trainer()


def test_out_of_memory_where_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = trainer()

    def never(images: Any) -> Any:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(ours.engine._own_step, "forward", never)
    with pytest.raises(UsageError, match=r"smaller train\.batch_size, or gpu\.checkpointing=true"):
        ours.run_steps(batches(1), LRS[:1])


def test_out_of_memory_lets_go_of_the_step_before_it_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the failed step had allocated must be free by then, or nothing would fit."""
    ours = trainer()
    step = ours.engine._own_step
    assert step is not None
    forward, held = step.forward, []

    def limited(images: Any) -> Any:
        activations = forward(images)
        if not held:
            held.append(weakref.ref(activations))
            raise torch.cuda.OutOfMemoryError
        assert held[0]() is None
        return activations

    monkeypatch.setattr(step, "forward", limited)
    with pytest.raises(UsageError, match="3 do"):
        ours.run_steps(batches(1), LRS[:1])


def test_bfloat16_needs_a_card_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    request = train_request(precision=PrecisionConfig(compute="bfloat16"))
    with pytest.raises(UsageError, match="Tesla V100 does not support bfloat16"):
        _check_card(request, torch.device("cuda", 0))
    _check_card(train_request(), torch.device("cuda", 0))
    _check_card(request, torch.device("cpu"))


def step_of(ours: Trainer) -> Step:
    step = ours.engine._own_step
    assert step is not None
    return step


def with_views(ours: Trainer) -> Trainer:
    """Return the trainer with gradients in flat buffers, as with several ranks; before its first step."""
    step = step_of(ours)
    parameters = step.gradients._parameters
    step.gradients.close()
    step.gradients = Gradients(parameters, bucket_bytes=1 << 12, world=1, views=True)
    assert len(step.gradients.flats) > 1
    return ours


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, {}),
        ({}, {"optimizer": OptimizerConfig(clip_norm=0.05, weight_decay=0.01), "ema_decay": 0.9}),
        ({"checkpointing": True}, {"accumulate": 3, "optimizer": OptimizerConfig(clip_norm=0.5)}),
        ({"channels_last": True}, {"skip_nonfinite": True, "ema_decay": 0.9, "accumulate": 2}),
        ({}, {"precision": PrecisionConfig(loss_scale="dynamic", scale=2.0**120, growth_interval=2)}),
        ({}, {"precision": PrecisionConfig(compute="bfloat16", loss_scale="fixed", scale=64.0)}),
    ],
    ids=["plain", "clip", "accumulate", "skip", "overflow", "bfloat16"],
)
def test_gradients_of_autograd_and_in_buffers_give_the_same_bits(
    options: dict[str, Any], changes: dict[str, Any], recorded: bool
) -> None:
    own, buffered = trainer(options, **changes), with_views(trainer(options, **changes))
    if recorded:
        for one in (own, buffered):
            engine = one.engine
            engine._step = graphs.Replayed(step_of(one), list(engine._table.named().values()), Again())
    steps = with_bad_rows(batches(4))
    lrs = np.array([0.05, 0.02, 0.01, 0.01], np.float32)
    np.testing.assert_array_equal(own.run_steps(steps, lrs), buffered.run_steps(steps, lrs))
    assert differing(own.state(), buffered.state()) == []
    assert all(p.grad is None for p in step_of(own).gradients._parameters), "memory for the next forward pass"


@pytest.mark.parametrize("views", [False, True])
def test_a_loss_that_is_not_finite_is_seen_by_either_kind_of_gradients(views: bool) -> None:
    ours = trainer(skip_nonfinite=True)
    if views:
        with_views(ours)
    before = ours.state()
    step = step_of(ours)
    step._loss = lambda logits, labels, weights: (logits * 0).sum() + float("inf")  # gradients are sound
    ours.run_steps(batches(1), LRS[:1])
    after = ours.state()
    assert after.scalars["overflow_steps"] == 1
    assert [n for n in differing(before, after) if n != "scalars"] == []


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_and_momentum_have_the_strides_of_their_weights(channels_last: bool, views: bool) -> None:
    """The fused update on a GPU insists, the one on the CPU does not look."""
    ours = trainer({"channels_last": channels_last})
    if views:
        with_views(ours)
    step, (batch,) = step_of(ours), batches(1)
    step.try_backward(torch.from_numpy(batch.images), torch.from_numpy(batch.labels.astype(np.int64)))
    weights = [ours.engine._table.weights[name] for name in ours.engine._table.momentum]
    for weight, grad, moment in zip(
        weights, gradients_of(weights), ours.engine._table.momentum.values(), strict=True
    ):
        assert weight.stride() == grad.stride() == moment.stride()
        assert weight.grad is not None
        assert torch.equal(grad, weight.grad)
        assert grad.storage_offset() % 64 == 0, "vector loads want it aligned"


class FakeEvent:
    """Notes what it was recorded after; waiting for it runs the copies that were put off until then."""

    def __init__(self, *, enable_timing: bool = False) -> None:
        self.timed = enable_timing

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.timed
        assert end.timed
        return 4.0  # milliseconds

    def record(self, stream: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


class FakeStream:
    """A stream whose waits are written down."""

    def __init__(self, *_: Any) -> None:
        self.waits: list[Any] = []

    def wait_event(self, event: Any) -> None:
        self.waits.append(event)

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


def test_the_feed_fills_one_slot_while_the_other_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of fills, uses and waits, with the parts of CUDA replaced; the copies themselves need a GPU."""
    current, copies = fake_cuda(monkeypatch)
    given = batches(5)
    feeding = feed.Feed(torch.device("cuda", 0))
    for _ in range(2):  # two calls of run_steps
        seen, slots = [], []
        for tensors in feeding(inputs_of(given)):
            seen.append([tensor.clone().numpy() for tensor in tensors])
            slots.append(tensors[0].data_ptr())
        for (images, labels, weights), batch, rows in zip(seen, given, inputs_of(given), strict=True):
            np.testing.assert_array_equal(images, batch.images)
            np.testing.assert_array_equal(labels, batch.labels)
            np.testing.assert_array_equal(weights, rows.weights.astype(np.float32))
        assert len(set(slots)) == 2
        assert all(a != b for a, b in itertools.pairwise(slots))
    filled = [slot.filled for slot in feeding._slots]
    used = [slot.used for slot in feeding._slots]
    turns = [0, 1, 0, 1, 0] * 2
    assert current.waits == [filled[i] for i in turns], "a step waits for its own batch"
    assert copies.waits == [used[i] for i in turns], "a copy waits for the step that used its slot"
    assert feeding.take_copy_seconds() == pytest.approx(len(turns) * 0.004)
    assert feeding.take_copy_seconds() == 0.0


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_next_batch_is_asked_for_once_the_step_is_queued(dynamic: bool) -> None:
    """Before that the copy would hold up the step, after the step has been waited for it would be in nobody's shade."""
    precision = PrecisionConfig(loss_scale="dynamic", scale=2.0) if dynamic else PrecisionConfig()
    ours, log = trainer(precision=precision), []
    engine = ours.engine
    filled, taken, settled = engine._feed, engine._step, engine.settle

    def feeding(steps: Any) -> Iterator[Any]:
        for number, batch in enumerate(filled(steps)):
            log.append(f"fill {number}")
            yield batch

    def step(*given: Any) -> Any:
        log.append("step")
        return taken(*given)

    def settle(queued: Any) -> Any:
        log.append(f"wait for {len(queued)}")
        return settled(queued)

    engine._feed, engine._step, engine.settle = feeding, step, settle
    ours.run_steps(batches(3), LRS)
    if dynamic:
        wanted = [
            "fill 0",
            "step",
            "fill 1",
            "wait for 1",
            "step",
            "fill 2",
            "wait for 1",
            "step",
            "wait for 1",
        ]
    else:
        wanted = ["fill 0", "step", "fill 1", "step", "fill 2", "step", "wait for 3"]
    assert log == wanted


def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeStream, FakeStream]:
    """Replace the parts of CUDA that copies use; returns the stream of the computation and that of the copies."""
    current, copies = FakeStream(), FakeStream()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: copies)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    empty = torch.empty
    plain = lambda *a, pin_memory=False, device=None, **k: empty(*a, **k)  # noqa: E731
    monkeypatch.setattr(feed.torch, "empty", plain)
    return current, copies


@pytest.mark.parametrize("copied", [False, True], ids=["plain", "through slots"])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11, 19])
def test_a_batch_in_parts_has_the_same_logits(
    count: int, copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filled up to sizes that cuDNN has timed; also through the slots of a GPU, which are then used again."""
    weights, sizes = tiny_weights(), (1, 4, 8)
    tensors = make_tensors(weights.spec, weights.tensors, torch.device("cpu"), channels_last=False)
    how = Arithmetic(channels_last=False)
    whole = GpuPredictor(weights, tensors, how)
    parts = GpuPredictor(weights, tensors, how, sizes=sizes)
    if copied:
        current, copies = fake_cuda(monkeypatch)
        parts._stream = copies
    network, seen = parts._network, []

    def count_rows(given: Any) -> Any:
        seen.append(len(given))
        assert network is not None
        return network(given)

    monkeypatch.setattr(parts, "_network", count_rows)
    count_rows.from_tensor = lambda given: (seen.append(len(given)), network.from_tensor(given))[1]  # type: ignore
    rng = np.random.default_rng(count)
    for given in (rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)[::-1] for n in (19, count)):
        seen.clear()
        assert relative(parts.logits(given), whole.logits(given)) <= 1e-6
        assert set(seen) <= set(sizes)
        assert sum(seen) - len(given) < 4
    tensor = rng.standard_normal((count, 3, 16, 16)).astype(np.float32)
    assert relative(parts.logits_from_tensor(tensor), whole.logits_from_tensor(tensor)) <= 1e-6
    if copied:
        slots = parts._slots
        assert current.waits[-1] in [slot.filled for slot in slots], "a part waits for its copy"
        assert copies.waits[-1] in [slot.used for slot in slots], (
            "a copy waits for the part that used its slot"
        )
        parts.close()
        assert parts._slots == []


def test_threads_share_a_predictor_of_a_gpu_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second batch must not be written where the first one still lies."""
    weights = tiny_weights()
    tensors = make_tensors(weights.spec, weights.tensors, torch.device("cpu"), channels_last=False)
    predictor = GpuPredictor(weights, tensors, Arithmetic(channels_last=False), sizes=(8,))
    _, predictor._stream = fake_cuda(monkeypatch)
    network, taken = predictor._network, []
    assert network is not None

    def compute(given: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:  # another thread, as it would ask
            taken.append(pool.submit(predictor._turn.acquire, blocking=False).result(60))
        return network(given)

    monkeypatch.setattr(predictor, "_network", compute)
    compute.from_tensor = network.from_tensor  # type: ignore[attr-defined]
    for _ in range(2):
        predictor.logits(batches(1)[0].images)
    assert taken == [False, False]


def test_parts_of_a_batch() -> None:
    assert split(5, None) == [(5, 5)]
    assert split(64, SIZES) == [(64, 64)]
    assert split(165, SIZES) == [(64, 64), (64, 64), (37, 48)]
    assert split(1, SIZES) == [(1, 1)]
    for count in range(1, 300):
        parts = split(count, SIZES)
        assert sum(rows for rows, _ in parts) == count
        assert all(rows <= size < 2 * rows and size in SIZES for rows, size in parts)


def test_the_peak_of_memory_is_of_one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Since the engine was made or was last asked, not that of whatever ran in this process before."""
    ours, peak = trainer(), [7]
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak[0])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peak.__setitem__(0, 1))
    monkeypatch.setattr(ours.engine, "_device", torch.device("cuda", 0))
    assert [ours.usage().peak_bytes for _ in range(2)] == [7, 1]
    recorded = graphs.Replayed(step_of(ours), [], Again())
    monkeypatch.setattr(ours.engine, "_step", recorded)
    recorded.peak_bytes = 5
    assert ours.usage().peak_bytes == 5, "a replay allocates nothing"


def test_the_time_of_copies_is_part_of_the_steps() -> None:
    ours = trainer({})
    started = time.perf_counter()
    ours.run_steps(batches(3), LRS[:3])
    assert 0 < ours.usage().copy_seconds < time.perf_counter() - started
    assert ours.usage().copy_seconds == 0.0


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"precision": PrecisionConfig(compute="float64")}, "float64"),
        ({"accumulate": 4}, "equal micro-batches"),
    ],
)
def test_impossible_requests_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        trainer(**changes)


def test_impossible_batches_are_refused() -> None:
    ours = trainer()
    with pytest.raises(UsageError, match="takes 6 images"):
        ours.run_steps(batches(1, images=3), LRS[:1])
    assert ours.run_steps([], LRS[:0]).shape == (0,)
    with pytest.raises(UsageError, match="2 batches need as many learning rates"):
        ours.run_steps(batches(2), LRS[:1])
    (batch,) = batches(1)
    batch.labels[0] = 5
    with pytest.raises(DataError, match="labels must be 0 to 4"):
        ours.run_steps([batch], LRS[:1])
    with pytest.raises(UsageError, match="EMA"):
        ours.predictor(ema=True)
    predictor = ours.predictor()
    ours.close()
    with pytest.raises(UsageError, match="closed"):
        ours.run_steps(batches(1), LRS[:1])
    with pytest.raises(UsageError, match="closed"):
        predictor.logits(batches(1)[0].images)


def test_one_value_a_channel_is_refused() -> None:
    ours = trainer(weights=tiny_weights(1), batch_size=1)
    with pytest.raises(UsageError, match="only one value per channel"):
        ours.run_steps(batches(1, images=1, size=1), LRS[:1])


def test_layers_do_not_share_a_version() -> None:
    """Their statistics share memory; a layer that moves its own must not spoil what another saved for the way back."""
    table = trainer().engine._table
    mean, other = table.weights["bn1.running_mean"], table.weights["layer1.0.bn1.running_mean"]
    before = other._version
    mean.add_(1)
    assert other._version == before
    assert table.statistics[0] == mean[0]


def test_the_modelzoos_division_is_what_it_was() -> None:
    """Gradients over 1024, and decay in full."""
    precision = PrecisionConfig(loss_scale="fixed", scale=1024.0)
    ours, right = trainer({"balanced_loss_scale": False}, precision=precision), trainer(precision=precision)
    start = ours.state().tensors
    for one in (ours, right):
        one.run_steps(batches(1), LRS[:1])
    wrong, balanced = ours.state().tensors, right.state().tensors
    decay = OptimizerConfig().weight_decay
    for name in ("conv1.weight", "fc.weight", "fc.bias", "bn1.weight"):
        part = decay * start[f"weights/{name}"] if name in ("conv1.weight", "fc.weight") else 0
        gradient = balanced[f"momentum/{name}"] - part
        assert relative(wrong[f"momentum/{name}"], gradient / 1024 + part) <= 1e-4, name


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize(
    ("compute", "changes"),
    [
        ("bfloat16", {}),
        (
            "float16",
            {"precision": PrecisionConfig(compute="float16", loss_scale="dynamic"), "ema_decay": 0.9},
        ),
        ("float32", {"skip_nonfinite": True, "accumulate": 2, "optimizer": OptimizerConfig(clip_norm=1.0)}),
    ],
)
def test_a_step_stays_on_its_device(
    compute: str, changes: dict[str, Any], views: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PyTorch's device without memory, where a tensor of the CPU in between, or a look at a value, is an error."""
    device, weights = torch.device("meta"), tiny_weights(32, stem="imagenet")

    def there(*given: Any, **more: Any) -> None:
        for value in (*given, *more.values()):
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                assert not isinstance(tensor, torch.Tensor) or tensor.device == device

    monkeypatch.setattr(torch, "_fused_sgd_", there)
    monkeypatch.setattr(torch, "_amp_foreach_non_finite_check_and_unscale_", there)
    request = train_request(weights, **changes)
    table = Table.create(request, device, channels_last=True)
    how = Arithmetic(compute=getattr(torch, compute), channels_last=True)
    network = Network(weights.spec, weights.preprocess, table.weights, how).train()
    step = Step(request, table, network, balanced=True, bucket_bytes=1 << 20, views=views)
    images = torch.empty((6, 32, 32, 3), dtype=torch.uint8, device=device)
    scalar = torch.full((), 1.0, device=device)
    labels, weights = torch.zeros(6, dtype=torch.int64, device=device), torch.ones(6, device=device)
    loss, found = step(StepTensors(images=images, labels=labels, weights=weights, lr=scalar, scale=scalar))
    assert loss.device == found.device == device
