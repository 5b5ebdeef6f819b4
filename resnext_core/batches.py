"""Batches of images on their way to an engine: as they are decoded, and as the checked input of an optimizer step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How the images of one micro-batch are mixed with each other; drawn by :mod:`resnext_core.data.mix`.

    `lam` is the share of a row's own image in its target. With `kind` ``mixup`` it is its share in every pixel too.
    With ``cutmix`` the pixels inside `box` (top, left, bottom, right, the last two excluded) are the partner's, and
    `lam` is 1 - area of the box / area of the image. ``none`` mixes nothing. Of N rows the `partner` of row i is row
    N - 1 - i (``reversed``, as in timm) or row i - 1, that of the first the last one (``rolled``, as in torchvision).
    """

    kind: Literal["none", "mixup", "cutmix"] = "none"
    lam: float = 1.0
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    partner: Literal["reversed", "rolled"] = "reversed"


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """A batch of decoded images.

    `images` uint8 (N, H, W, 3) RGB; `labels` int32 (N,), -1 where unknown; `index` int64 (N,), the
    position in the data index, -1 on padding rows; `valid` bool (N,), False on rows that must not be
    counted: padding, and images that could not be decoded (their `index` is kept). Pixels of rows that are
    not valid are 0. `mix` says how the images will be mixed in training: one for each of the micro-batches, which are
    equal neighbouring parts of the batch; empty where nothing is mixed. The images here are not mixed.
    `branches` and `teacher` are as in :class:`StepInput`.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    index: NDArray[np.int64]
    valid: NDArray[np.bool_]
    mix: tuple[Mix, ...] = ()
    branches: NDArray[np.float32] | None = None
    teacher: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class MixedRows:
    """How each row is mixed with another of its micro-batch: the same arrays, of the same shapes, whatever was drawn.

    `partner` int32 (N,), the row that it is mixed with, counted from the start of the micro-batch; `labels` int32 (N,),
    the partner's label; `share` float64 (N,), the share of the own label in the target; `box` int32 (N, 4) top, left,
    bottom and right, the last two excluded; `blend` float64 (N,), the share of the own image in the pixels inside the
    box. With kept = `blend` inside the box and 1 outside, the pixels are kept * own + (1 - kept) * partner's, in float,
    before or after normalisation, and the target is share * own + (1 - share) * partner's, each smoothed.

    Mixup has the whole image as its box and `blend` = `share`, cutmix has `blend` 0. A row that is not mixed is its own
    partner, with both shares 1 and an empty box: pixels and loss are the same bits as without.
    """

    partner: NDArray[np.int32]
    labels: NDArray[np.int32]
    share: NDArray[np.float64]
    box: NDArray[np.int32]
    blend: NDArray[np.float64]

    def part(self, rows: slice) -> MixedRows:
        """Return the rows of one micro-batch; they are views."""
        return MixedRows(
            partner=self.partner[rows], labels=self.labels[rows], share=self.share[rows], box=self.box[rows],
            blend=self.blend[rows],
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class StepInput:
    """The checked input of one optimizer step on this rank.

    `images` uint8 (N, H, W, 3); `labels` int32 (N,), 0 on rows that are not valid; `weights` float64 (N,), the weight
    of each row in the loss, 0 on rows that are not valid; `lr` the learning rate; `mix` how the rows are mixed on the
    device, None in a training that never mixes. H and W may differ from step to step.

    `branches` float32 (N, blocks) is what the residual branch of each block is multiplied by, row by row, before the
    shortcut is added: 0 where it is dropped, else 1 / the probability that it stays; None without stochastic depth.
    `teacher` float32 (N, classes) are the probabilities that a teacher gives the rows, mixed as they are, at the
    temperature of :class:`Distillation`; None without one. `ema_decay` is the d of this step's ema = d·ema + (1 - d)·w:
    1 leaves the EMA as it is to the bit, 0 copies the weights; None without an EMA.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    weights: NDArray[np.float64]
    lr: float
    mix: MixedRows | None = None
    branches: NDArray[np.float32] | None = None
    teacher: NDArray[np.float32] | None = None
    ema_decay: float | None = None

    def micro_batches(self, count: int) -> Iterator[StepInput]:
        """Yield `count` equal parts in order; they are views."""
        size = len(self.labels) // count
        for start in range(0, size * count, size):
            part = slice(start, start + size)
            yield StepInput(
                images=self.images[part], labels=self.labels[part], weights=self.weights[part], lr=self.lr,
                mix=None if self.mix is None else self.mix.part(part),
                branches=None if self.branches is None else self.branches[part],
                teacher=None if self.teacher is None else self.teacher[part],
                ema_decay=self.ema_decay,
            )  # fmt: skip
