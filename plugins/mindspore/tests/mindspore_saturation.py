"""A CPU that saturates as a 910A does: overflows leave finite gradients and raise a status register of their card.

The register behaves as MindSpore's sources say (amp.py ``_all_finite``, ops/operations/math_ops.py
``NPUGetFloatStatusV2`` and ``NPUClearFloatStatusV2``): any overflow sets it, reading does so for this card only and
clears it, and until then it stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore_cases import batches, train_request, trainer_on
from resnext_mindspore import overflow, soc, step
from resnext_mindspore.device import Device, device_of
from resnext_mindspore.options import MindsporeOptions

from resnext_core.config import PrecisionConfig
from resnext_core.ranks.collectives import Collectives
from resnext_core.ranks.info import RankInfo
from resnext_core.testing.tiny import rank_part
from resnext_core.training.trainer import Trainer

LR = np.array([0.1], np.float32)
#: How ranks are run: micro-batches, and what is left out for the test to notice.
CASES = {"whole": (1, ""), "accumulated": (2, ""), "no sum": (1, "sum"), "no clearing": (1, "clear")}
#: Three ranks take their time; the accumulated step has all parts.
CASES_OF_THREE = ("accumulated",)


class Register:
    """The status register of the card of this process."""

    def __init__(self) -> None:
        self.status = Parameter(Tensor(0.0, mstype.float32), name="status register", requires_grad=False)

    def overflow(self) -> None:
        """What any operation may do, in another graph as well."""
        self.status.set_data(Tensor(1.0, mstype.float32))


class Overflowing(nn.Cell):
    """The gradients of a network that overflows on a white image, which leaves no trace in them."""

    register: Register

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(auto_prefix=False)
        self.inner = _GRADIENTS(*given, **named)
        self.status = self.register.status
        self.white = Tensor(255.0, mstype.float32)

    def construct(
        self, images: Tensor, labels: Tensor, weights: Tensor, scale: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        darkest = ops.cast(images, mstype.float32).min((1, 2, 3))
        white = ops.cast(ops.equal(darkest.max(), self.white), mstype.float32)
        raised = ops.assign(self.status, ops.maximum(self.status, white))
        return self.inner(ops.depend(images, raised), labels, weights, scale)


class Status(nn.Cell):
    """What ``amp.all_finite`` reads on such a card."""

    register: Register

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.status = self.register.status
        self.zero = Tensor(0.0, mstype.float32)

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        status = ops.depend(self.status, gradients)
        finite = ops.equal(status, self.zero)
        return ops.depend(finite, ops.assign(self.status, ops.depend(self.zero, finite)))


class Clear(nn.Cell):
    """What the operator that clears the register does."""

    register: Register

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.status = self.register.status
        self.zero = Tensor(0.0, mstype.float32)

    def construct(self) -> Tensor:
        return ops.assign(self.status, self.zero)


_GRADIENTS = step.Gradients


@contextmanager
def saturating(left_out: str) -> Iterator[Register]:
    """Let engines made in the block compute on such a card."""
    register = Register()
    for cell in (Overflowing, Status, Clear):
        cell.register = register
    with ExitStack() as stack:
        change = lambda owner, name, value: stack.enter_context(mock.patch.object(owner, name, value))  # noqa: E731
        change(soc, "saturates", lambda target: left_out != "clear")
        change(step, "Gradients", Overflowing)
        change(overflow, "OwnGradients", Status)
        change(overflow, "ClearStatus", Clear)
        if left_out == "sum":
            whole = overflow.AllFinite
            change(overflow, "AllFinite", lambda world: whole(1))
        yield register


def run(rank: RankInfo, collectives: Collectives, folder: Path) -> None:
    """Take five steps of each case, and write what became of them to ``<case>-<rank>.npz``.

    In the second the first rank overflows, in the third the last, in its second micro-batch. Before the fourth an
    evaluation overflows on every rank.
    """
    for case in CASES if rank.world == 2 else CASES_OF_THREE:
        accumulate, left_out = CASES[case]
        with saturating(left_out) as register:
            request = train_request(
                batch_size=4, accumulate=accumulate, rank=rank, collectives=collectives,
                precision=PrecisionConfig(compute="float32", loss_scale="dynamic", scale=64.0, growth_interval=100),
            )  # fmt: skip
            trainer = trainer_on(_device(rank), request)
            skipped, kept = [], []
            for number, batch in enumerate(batches(5, images=4 * rank.world)):
                part = rank_part(batch, rank)
                if (number, rank.rank) == (1, 0):
                    part.images[0] = 255
                if (number, rank.rank) == (2, rank.world - 1):
                    part.images[-1] = 255
                if number == 3:
                    register.overflow()
                before = _learned(trainer)
                overflows = trainer.counters()["overflow_steps"]
                trainer.run_steps([part], LR)
                skipped.append(trainer.counters()["overflow_steps"] - overflows)
                kept.append(all(np.array_equal(a, before[n]) for n, a in _learned(trainer).items()))
            np.savez(
                folder / f"{case}-{rank.rank}.npz",
                found=json.dumps(
                    {"skipped": skipped, "kept": kept, "scale": trainer.counters()["loss_scale"]}
                ),
                **{name: array for name, array in trainer.state().tensors.items() if "running" not in name},
            )
            trainer.close()


def _device(rank: RankInfo) -> Device:
    return device_of(MindsporeOptions(), rank)


def _learned(trainer: Trainer) -> dict[str, np.ndarray]:
    return {n: a for n, a in trainer.state().tensors.items() if "running" not in n}
