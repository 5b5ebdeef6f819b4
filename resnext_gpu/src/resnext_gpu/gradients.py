"""The gradients of a step: with several ranks views of flat buffers, which are summed while the backward pass goes on.

That is what DistributedDataParallel does with a static graph, bucket views and its buffers left alone. It is written
out because DDP lays its buckets out anew after its first step: with three ranks or more that changes the order of
additions, so a resumed run would not be, bit for bit, the run that never stopped. Here the layout is that of the
network. It also sums once a step however many micro-batches there are, and one pass finds what is not finite.

One rank has nothing to sum. It takes the tensors in which autograd computed the gradients, which saves a pass that
clears the buffers, one that adds to them, and their memory during the forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from resnext_core.errors import BackendUnavailable, one_line
from resnext_gpu.memory import is_out_of_memory

#: Elements that the views are aligned to: 256 bytes, for vector loads.
_ALIGNED = 64


class Gradients:
    """The gradients of `parameters`, over `world` ranks in buckets of about `bucket_bytes`.

    With `views` they are parts of `flats`, always the same memory. Without, which is for one rank, autograd's own
    tensors; there are none between :meth:`release` and the next backward pass. `flag` is one element besides: what a
    rank adds to it, all ranks get.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], *, bucket_bytes: int, world: int, views: bool
    ) -> None:
        assert views or world == 1
        self._parameters = parameters
        self.flats: list[Tensor] = []
        self._counts: list[int] = []
        self._missing: list[int] = []
        self._works: list[torch.distributed.Work] = []
        self._hooks: list[RemovableHandle] = []
        if not views:
            self.flag = torch.zeros((), dtype=torch.float32, device=parameters[0].device)
            return
        buckets: list[list[nn.Parameter]] = [[]]
        filled = 0
        for parameter in reversed(parameters):  # the order in which the backward pass finds them
            if buckets[-1] and filled + parameter.nbytes > bucket_bytes:
                buckets.append([])
                filled = 0
            buckets[-1].append(parameter)
            filled += parameter.nbytes
        for index, bucket in enumerate(buckets):
            self._lay_out(index, bucket, world)
        self.flag = self.flats[0][-1]

    def _lay_out(self, index: int, bucket: list[nn.Parameter], world: int) -> None:
        offsets, end = [], 0
        for parameter in bucket:
            offsets.append(end)
            end += -(-parameter.numel() // _ALIGNED) * _ALIGNED
        flat = torch.zeros(end + _ALIGNED, dtype=torch.float32, device=bucket[0].device)
        self.flats.append(flat)
        self._counts.append(len(bucket))
        for parameter, offset in zip(bucket, offsets, strict=True):
            # With the parameter's own strides: autograd adds into it, and the fused update wants them the same.
            parameter.grad = flat.as_strided(parameter.size(), parameter.stride(), offset)
            if world > 1:
                hook = parameter.register_post_accumulate_grad_hook(partial(self._arrived, index))
                self._hooks.append(hook)

    def clear(self) -> None:
        """Prepare for the first backward pass of a step: views become zero, other gradients go."""
        if self.flats:
            torch._foreach_zero_(self.flats)
        else:
            self.flag.zero_()
            self.release()

    def release(self) -> None:
        """Let go of the gradients that a step has used; of views this is nothing."""
        if not self.flats:
            for parameter in self._parameters:
                parameter.grad = None

    def whole(self) -> list[Tensor]:
        """Return tensors that together hold every gradient, and the flag."""
        return self.flats or [*gradients_of(self._parameters), self.flag]

    def each(self) -> list[Tensor]:
        """Return the gradient of each parameter, with the parameter's strides."""
        return gradients_of(self._parameters)

    def close(self) -> None:
        """Let go of everything; there can be no step after that."""
        for hook in self._hooks:
            hook.remove()
        for parameter in self._parameters:
            parameter.grad = None
        self._parameters, self.flats, self._hooks, self._works = [], [], [], []
        del self.flag

    def expect(self, last: bool) -> None:
        """Prepare for a backward pass; the `last` one of a step sums over the ranks."""
        self._missing = list(self._counts) if last else []
        self._works = []

    def _arrived(self, index: int, _: Tensor) -> None:
        if not self._missing:
            return
        self._missing[index] -= 1
        # In the order of the buckets, whatever autograd did first, so that all ranks sum the same things.
        while len(self._works) < len(self.flats) and self._missing[len(self._works)] == 0:
            flat = self.flats[len(self._works)]
            try:
                self._works.append(torch.distributed.all_reduce(flat, async_op=True))
            except RuntimeError as error:
                raise lost(error) from error

    def wait(self) -> None:
        """Return once the sums over ranks are there (on a GPU: are ordered before what follows)."""
        for work in self._works:
            try:
                work.wait()
            except RuntimeError as error:
                raise lost(error) from error
        self._works = []


def gradients_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of these parameters, which all have one, with the strides of their parameters.

    Autograd sees to the order in memory, but not to the strides of dimensions of one element, at which the fused update
    of PyTorch before 2.5 looks too.
    """
    found = []
    for parameter in parameters:
        grad = parameter.grad
        assert grad is not None
        same = grad.stride() == parameter.stride()
        found.append(grad if same else grad.as_strided(parameter.size(), parameter.stride()))
    return found


#: What an error says that comes from NCCL or the group around it, where it is no DistBackendError: NCCL's own text
#: (NCCLUtils.hpp), a communicator that was aborted (NCCLUtils.cpp), and its watchdog (ProcessGroupNCCL.cpp).
_OF_RANKS = ("NCCL error", "NCCL communicator was aborted", "Watchdog caught collective operation timeout")


@contextmanager
def reaching_others() -> Iterator[None]:
    """Turn an error inside the block that says that another rank was lost into BackendUnavailable.

    For what waits for the GPU: under NCCL a collective is queued like a kernel, and fails, if it says so at all, after
    that. docs/gpu.md says what else ends a rank that waits for a lost one.
    """
    try:
        yield
    except RuntimeError as error:
        known = isinstance(error, torch.distributed.DistError) or any(w in str(error) for w in _OF_RANKS)
        if not known or is_out_of_memory(error):
            raise
        raise lost(error) from error


def lost(error: RuntimeError) -> Exception:
    """Return the error of a rank that could not talk to the others: the launcher looks for the one that failed.

    That is BackendUnavailable, or `error` itself where it is of memory, which NCCL wants too.
    """
    if is_out_of_memory(error):
        return error
    return BackendUnavailable(f"lost another rank ({one_line(error, 200)}); see the logs of the others")
