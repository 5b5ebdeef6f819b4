"""Matrices that the kernels take in place of weights, kept and made anew for all layers of a network at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(kw_only=True, eq=False)
class _Entry:
    """The matrices of a weight, and the version of the weight that they were made of."""

    weight: Tensor
    packed: Tensor
    back: bool
    version: int

    def current(self) -> bool:
        return self.version == self.weight._version


class Packs:
    """The matrices of weights, for each type, width of blocks, and direction that was asked for.

    :meth:`get` makes matrices when it is first asked for them; after that :meth:`renew` makes those of all weights by
    one kernel for each type and width. Call it before weights that may have changed are used: a fused update and the
    replay of a CUDA graph change a weight and not its version, which is what `get` looks at. Where it is called while
    a CUDA graph is recorded, the graph has the kernel in it.
    """

    def __init__(self) -> None:
        self._entries: dict[tuple[Any, ...], _Entry] = {}
        self._tables: list[_Table] = []
        self._in_tables = 0

    def get(self, weight: Tensor, dtype: torch.dtype, block: int, *, back: bool) -> Tensor:
        """Return the matrices (tap, channel block, in, out) of `weight` (C, C / groups, 3, 3)."""
        from resnext_gpu.grouped_conv import launch

        key = (weight.data_ptr(), weight.shape, weight.stride(), dtype, block, back)
        entry = self._entries.get(key)
        if entry is None:
            kept = weight.detach()  # so that its memory is nobody else's; it has the version of the weight
            packed = launch.pack(kept, dtype, block, back=back)
            entry = _Entry(weight=kept, packed=packed, back=back, version=kept._version)
            self._entries[key] = entry
        elif not entry.current():
            self._pack(entry)
        return entry.packed

    def renew(self) -> None:
        """Make all matrices anew."""
        from resnext_gpu.grouped_conv import launch

        entries = list(self._entries.values())
        if self._in_tables < len(entries) and not _recording(entries[-1].weight):
            self._tables = _tables(entries)
            self._in_tables = len(entries)
        for table in self._tables:
            launch.pack_all(table.rows, table.places, table.weight_type, table.packed_type, table.block)
        for entry in entries[self._in_tables :]:
            self._pack(entry)
        for entry in entries:
            entry.version = entry.weight._version

    def _pack(self, entry: _Entry) -> None:
        from resnext_gpu.grouped_conv import launch

        launch.pack_into(entry.packed, entry.weight, back=entry.back)
        entry.version = entry.weight._version


@dataclass(frozen=True, kw_only=True, eq=False)
class _Table:
    """Where the weights of one type and width of blocks lie, int64 (n, 9), and (row, block) of each program, int32."""

    rows: Tensor
    places: Tensor
    weight_type: torch.dtype
    packed_type: torch.dtype
    block: int


def _tables(entries: list[_Entry]) -> list[_Table]:
    groups: dict[tuple[torch.dtype, torch.dtype, int], list[_Entry]] = {}
    for entry in entries:
        kind = (entry.weight.dtype, entry.packed.dtype, entry.packed.shape[2])
        groups.setdefault(kind, []).append(entry)
    made = []
    for (weight_type, packed_type, block), members in groups.items():
        rows = [
            [
                one.weight.data_ptr(),
                one.packed.data_ptr(),
                *one.weight.shape[:2],
                *one.weight.stride(),
                int(one.back),
            ]
            for one in members
        ]
        places = [[row, at] for row, one in enumerate(members) for at in range(one.packed.shape[1])]
        device = members[0].weight.device
        table = _Table(
            rows=torch.tensor(rows, dtype=torch.int64, device=device),
            places=torch.tensor(places, dtype=torch.int32, device=device),
            weight_type=weight_type, packed_type=packed_type, block=block,
        )  # fmt: skip
        made.append(table)
    return made


def _recording(tensor: Tensor) -> bool:
    """True while a CUDA graph is recorded, into which no table can be copied from the CPU."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
