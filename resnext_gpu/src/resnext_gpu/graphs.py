"""A faster way through the same step: torch.compile and CUDA graphs, each with a way back that says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from resnext_core.errors import one_line
from resnext_gpu.device import note
from resnext_gpu.network import Network

#: Steps before a capture, in which libraries choose their algorithms and allocate.
_WARM_STEPS = 3

#: Images, labels, row weights, learning rate and loss scale to loss and whether the step was skipped.
StepFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Compiled:
    """`network` through torch.compile; what cannot be compiled is computed as it is, after a line that says so.

    With several ranks each block is compiled by itself, so that gradients can leave while the backward pass goes on: a
    whole compiled network hands them all out at its end.
    """

    def __init__(self, network: Network, *, by_block: bool) -> None:
        self._network = network
        self._call: Callable[[Tensor], Tensor] = network
        if by_block:
            # Blocks differ by stage and place: more kinds than Dynamo expects of one function.
            torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
            for block in network.blocks:
                block.compile()
        else:
            self._call = torch.compile(network)

    def __call__(self, images: Tensor) -> Tensor:
        try:
            return self._call(images)
        except Exception as error:
            if not _from_compiler(error):
                raise
            note(
                f"torch.compile failed ({one_line(error, 200)}); continuing without, as with gpu.compile=false"
            )
            for block in self._network.blocks:
                block._compiled_call_impl = None
            self._call = self._network
            return self._network(images)


def _from_compiler(error: BaseException | None) -> bool:
    return error is not None and type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


class Replayed:
    """`step` as one recorded graph that is replayed: no launch of single kernels, no Python between them.

    The step is recorded at the first call, after a few steps to warm up; `state` are the tensors that these move, and
    they are put back. Where it cannot be recorded, the step is taken as it is, after a line that says so.
    """

    def __init__(self, step: StepFunction, state: Sequence[Tensor], recorder: Recorder | None = None) -> None:
        self._step, self._state = step, state
        self._recorder = recorder or CudaRecorder()
        self._replay: Callable[[], Any] | None = None
        self._inputs: list[Tensor] = []
        self._outputs: tuple[Tensor, Tensor] | None = None
        self._given_up = False

    def __call__(
        self, images: Tensor, labels: Tensor, weights: Tensor, lr: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        given = (images, labels, weights, lr, scale)
        if self._replay is None and not self._given_up:
            self._record(given)
        if self._replay is None or self._outputs is None:
            return self._step(*given)
        for own, new in zip(self._inputs, given, strict=True):
            own.copy_(new, non_blocking=True)
        self._replay()
        loss, found = self._outputs
        return loss.clone(), found.clone()

    def _record(self, given: Sequence[Tensor]) -> None:
        kept = [t.clone() for t in self._state]
        self._inputs = [t.clone() for t in given]
        try:
            self._replay, self._outputs = self._recorder.record(lambda: self._step(*self._inputs))
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            why = one_line(error, 200)
            note(
                f"cannot record this step as a CUDA graph ({why}); continuing without, as with gpu.cuda_graphs=false"
            )
            self._given_up, self._inputs = True, []
        for tensor, value in zip(self._state, kept, strict=True):
            tensor.copy_(value)


class Recorder:
    """Records a function of tensors; a base for the one there is, and for tests without a GPU."""

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        """Return what runs `function` again on the same memory, and its outputs, which are then written anew."""
        raise NotImplementedError


class CudaRecorder(Recorder):
    """Records into a CUDA graph."""

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_STEPS):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = function()
        return graph.replay, outputs
