"""Gradients as views of a few flat buffers, which are summed over the ranks while the backward pass goes on.

This is what DistributedDataParallel does with a static graph, bucket views and its buffers left alone. It is written
out because DDP lays its buckets out anew after its first step: with three ranks or more that changes the order of
additions, so a resumed run would not be, bit for bit, the run that never stopped. Here the layout is that of the
network. It also sums once a step however many micro-batches there are, and one pass finds what is not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from resnext_core.errors import BackendUnavailable, one_line

#: Elements that the views are aligned to: 256 bytes, for vector loads.
_ALIGNED = 64


class Gradients:
    """The gradients of `parameters`, over `world` ranks in buckets of about `bucket_bytes`.

    `flats` are the buffers, `flag` is one more element of the first of them: what a rank adds to it, all ranks get.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, bucket_bytes: int, world: int) -> None:
        self.flats: list[Tensor] = []
        self._counts: list[int] = []
        self._missing: list[int] = []
        self._works: list[torch.distributed.Work] = []
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
                parameter.register_post_accumulate_grad_hook(partial(self._arrived, index))

    def clear(self) -> None:
        """Set all gradients to zero."""
        torch._foreach_zero_(self.flats)

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


def lost(error: RuntimeError) -> BackendUnavailable:
    """Return the error of a rank that could not talk to the others: the launcher looks for the one that failed."""
    return BackendUnavailable(f"lost another rank ({one_line(error, 200)}); see the logs of the others")
