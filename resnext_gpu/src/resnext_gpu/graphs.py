"""A faster way through the same step: torch.compile, with a way back that says so, and CUDA graphs, without one."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from resnext_core.errors import ResnextError, UsageError, one_line
from resnext_gpu.device import note
from resnext_gpu.inputs import StepTensors
from resnext_gpu.memory import is_out_of_memory
from resnext_gpu.network import Network

#: Steps before a capture, in which libraries choose their algorithms and allocate.
_WARM_STEPS = 3

#: The tensors of a step to its loss, and whether it was skipped.
StepFunction = Callable[[StepTensors], tuple[Tensor, Tensor]]


class Compiled:
    """`network` through torch.compile; what cannot be compiled is computed as it is, after a line that says so.

    torch.compile lowers the forward pass when it is first called, and the backward pass when gradients are first asked
    for, when running statistics have moved. So :meth:`prove` has both compiled before the first step. With several
    ranks each block is compiled by itself, so that gradients can leave while the backward pass goes on: a whole
    compiled network hands them all out at its end. Images of another size have it compiled again, for that size.
    """

    def __init__(self, network: Network, *, by_block: bool) -> None:
        self._network = network
        self._call: Callable[..., Tensor] = network
        self._proven: set[torch.Size] = set()
        self._gave_up = False
        # Blocks differ by stage and place, and images by size: more kinds than Dynamo expects of one function.
        torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 256)
        if by_block:
            for block in network.blocks:
                block.compile(dynamic=False)
        else:
            self._call = torch.compile(network, dynamic=False)

    def __call__(self, images: Tensor, *mix: Tensor, **branches: Tensor) -> Tensor:
        if self._call is not self._network:
            self._network.prepare()
        return self._call(images, *mix, **branches)

    def proven(self, images: Tensor) -> bool:
        """True where a step on images of this shape was tried, or nothing is compiled any more."""
        return self._gave_up or images.shape in self._proven

    def prove(self, images: Tensor, attempt: Callable[[], None]) -> None:
        """Have compiled what a step on `images` needs by `attempt`, a forward and a backward pass for nothing.

        After an error of `attempt` nothing is compiled any more. Which module it comes from (Dynamo, Inductor, Triton,
        a C++ compiler) is not asked: what is wrong with the network itself is raised by the step that follows. Out of
        memory is raised, for there compiled and not compiled differ little.
        """
        if self._proven:
            note(f"images of {_size(images)} now: the network is compiled for them, which takes a while")
        self._proven.add(images.shape)
        try:
            attempt()
        except Exception as error:
            if isinstance(error, ResnextError) or is_out_of_memory(error):
                raise
            note(
                f"torch.compile failed ({one_line(error, 200)}); continuing without, as with gpu.compile=false"
            )
            for block in self._network.blocks:
                block._compiled_call_impl = None
            self._call, self._gave_up = self._network, True


class CaptureFailed(RuntimeError):
    """A step that cannot be recorded: something in it is not allowed while a stream is captured."""


class Replayed:
    """`step` as one recorded graph that is replayed: no launch of single kernels, no Python between them.

    The step is recorded at the first call, after a few steps to warm up; `state` are the tensors that these move, and
    they are put back. Images of another size have it recorded again, in place of the graph before. `peak_bytes` is the
    most memory that was in use meanwhile: a replay takes none, and uses all of it. Raises UsageError where the step
    cannot be recorded.
    """

    def __init__(self, step: StepFunction, state: Sequence[Tensor], recorder: Recorder | None = None) -> None:
        self._step, self._state = step, state
        self._recorder = recorder or CudaRecorder()
        self._replay: Callable[[], Any] | None = None
        self._inputs: StepTensors | None = None
        self._outputs: tuple[Tensor, Tensor] | None = None
        self.peak_bytes = 0

    def __call__(self, given: StepTensors) -> tuple[Tensor, Tensor]:
        if self._inputs is not None and self._inputs.images.shape != given.images.shape:
            note(f"images of {_size(given.images)} now: the step is recorded again as a CUDA graph")
            if given.images.device.type == "cuda":
                torch.cuda.synchronize(given.images.device)  # the memory of a graph goes once it has run
            self._forget()
        if self._replay is None or self._outputs is None or self._inputs is None:
            self._inputs = given.clone()
            self._replay, self._outputs = self._record(self._inputs)
            if given.images.device.type == "cuda":
                peak = torch.cuda.max_memory_allocated(given.images.device)
                self.peak_bytes = max(self.peak_bytes, peak)
        for own, new in zip(self._inputs.all(), given.all(), strict=True):
            own.copy_(new, non_blocking=True)
        self._replay()
        loss, found = self._outputs
        return loss.clone(), found.clone()

    def close(self) -> None:
        """Let go of the graph, its memory and the step."""
        self._forget()
        self._state, self._step = [], closed

    def _forget(self) -> None:
        self._replay, self._outputs, self._inputs = None, None, None

    def _record(self, inputs: StepTensors) -> tuple[Callable[[], Any], tuple[Tensor, Tensor]]:
        kept = [t.clone() for t in self._state]
        try:
            return self._recorder.record(lambda: self._step(inputs))
        except CaptureFailed as error:
            self._forget()
            raise UsageError(
                f"this step cannot be recorded as a CUDA graph ({one_line(error, 200)}); set gpu.cuda_graphs=false"
            ) from error
        finally:
            for tensor, value in zip(self._state, kept, strict=True):
                tensor.copy_(value)


def closed(_: StepTensors) -> tuple[Tensor, Tensor]:
    """Take the place of a step after the end."""
    raise UsageError("this trainer is closed")


def _size(images: Tensor) -> str:
    """Return the size of uint8 images (N, H, W, 3) in words."""
    return f"{images.shape[1]} x {images.shape[2]} pixels"


class Recorder:
    """Records a function of tensors; a base for the one there is, and for tests without a GPU."""

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        """Return what runs `function` again on the same memory, and its outputs, which are then written anew.

        Raises CaptureFailed where it cannot be recorded, and what `function` raises before that is tried.
        """
        raise NotImplementedError


class CudaRecorder(Recorder):
    """Records into a CUDA graph.

    The steps that warm up and the capture share one stream: autograd runs the accumulation into a parameter's gradient
    on the stream on which it first saw the parameter, and a captured stream may wait for no other. All recordings of a
    process share it, as cuBLAS keeps a workspace for every stream.
    """

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        before, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        stream = _stream(torch.cuda.current_device())
        stream.wait_stream(before)
        try:
            with torch.cuda.stream(stream):
                for _ in range(_WARM_STEPS):
                    function()
                with _no_garbage():
                    outputs = _capture(graph, function)
        finally:
            before.wait_stream(stream)
        return graph.replay, outputs


@functools.cache
def _stream(device: int) -> Any:
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Collect garbage first, and not inside the block.

    Graphs of autograd that reference counting leaves (with checkpointing) keep memory, and accumulators of another
    stream; what a collection frees during a capture may need calls that are forbidden then.
    """
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _capture(graph: Any, function: Callable[[], Any]) -> Any:
    """Capture `function` on the current stream; return its outputs.

    However that fails, the stream, the allocator and the generator of random numbers are out of capture mode
    afterwards. ``torch.cuda.graph`` does not see to that: it leaves the capture stream current, and
    ``CUDAGraph.capture_end`` raises for an invalid capture before it tells the others (ATen/cuda/CUDAGraph.cpp).
    """
    device, pool = torch.cuda.current_device(), torch.cuda.graph_pool_handle()
    graph.capture_begin(pool=pool)
    failure: Exception | None = None
    outputs = None
    try:
        outputs = function()
    except Exception as error:
        failure = error
    try:
        graph.capture_end()
    except RuntimeError as error:
        _end_allocation(device, pool)
        _capture_nothing()
        failure = failure or error
    if failure is None:
        return outputs
    try:
        if isinstance(failure, ResnextError) or is_out_of_memory(failure):
            raise failure
        raise CaptureFailed(one_line(failure)) from failure
    finally:
        failure = None  # the error knows this frame; a circle would keep what the step had allocated


def _end_allocation(device: int, pool: Any) -> None:
    """Take the allocator out of capture mode, and give the memory of a capture that failed back to it."""
    end = getattr(torch._C, "_cuda_endAllocateToPool", None)
    if end is None:  # before PyTorch 2.8
        end = torch._C._cuda_endAllocateCurrentStreamToPool  # type: ignore[attr-defined]
    for call in (end, torch._C._cuda_releasePool):
        with contextlib.suppress(RuntimeError):  # where capture_end had come so far
            call(device, pool)


def _capture_nothing() -> None:
    """Make a capture that succeeds: its end, and nothing else, takes the default generator out of capture mode."""
    with contextlib.suppress(RuntimeError):
        number, graph = torch.zeros((), device="cuda"), torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        graph.capture_begin()
        number.add_(1)
        graph.capture_end()
