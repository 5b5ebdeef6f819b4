"""A training set-up of the kit: its request, and the batches, rates and draws of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig
from resnext_core.interfaces import Batch, Distillation, Ingredient, Mix, TrainRequest
from resnext_core.model.weights import Weights
from resnext_core.ranks.collectives import Collectives, SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.testing.networks import SINGLE, SPECS, batch, weights
from resnext_core.training.ingredients import asked_by_request
from resnext_core.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class TrainCase:
    """A training set-up; one step a learning rate.

    `valid` are the valid rows of the first steps, see :func:`batch`, and `mix` how those are mixed: empty, or a Mix for
    each of `accumulate` micro-batches. Without any the training does not mix. With `drops` every branch of a block is
    left out or not, row by row; `distillation` comes with a teacher's predictions. `class_weights`
    and `logit_offsets` are of each class. `ema_decays` and `sizes`, the side
    of the images, are those of each step; empty where they do not change.
    """

    network: str
    batch_size: int
    lrs: tuple[float, ...]
    optimizer: OptimizerConfig
    loss: LossConfig
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    accumulate: int = 1
    ema_decay: float | None = None
    valid: tuple[str, ...] = ()
    mix: tuple[tuple[Mix, ...], ...] = ()
    drops: bool = False
    distillation: Distillation | None = None
    frozen: int = 0
    class_weights: tuple[float, ...] = ()
    logit_offsets: tuple[float, ...] = ()
    ema_decays: tuple[float, ...] = ()
    sizes: tuple[int, ...] = ()
    seed: int = 20

    @property
    def asked(self) -> frozenset[Ingredient]:
        """What an engine must be able to do to run it."""
        changing: dict[Ingredient, bool] = {"ema-schedule": bool(self.ema_decays), "sizes": bool(self.sizes)}
        return asked_by_request(self.request()) | {name for name, wanted in changing.items() if wanted}

    def batches(self) -> list[Batch]:
        """Return a batch for every step, all different; `seed` is that of the first one."""
        steps = len(self.lrs)
        valid, mixes = self.valid + ("",) * steps, self.mix + ((),) * steps
        sizes = self.sizes or (SPECS[self.network].image_size,) * steps
        made = []
        for step in range(steps):
            seed = self.seed + step
            one = batch(self.network, self.batch_size, seed, valid[step], sizes[step])
            made.append(
                replace(one, mix=mixes[step], branches=self._branches(seed), teacher=self._teacher(seed))
            )
        return made

    def _branches(self, seed: int) -> NDArray[np.float32] | None:
        """Return what each row's branches are multiplied by: 0, or 1 over the share of a block that stays."""
        if not self.drops:
            return None
        stay = np.linspace(0.75, 0.5, len(SPECS[self.network].blocks))
        kept = np.random.default_rng(seed + 2000).random((self.batch_size, len(stay))) < stay
        branches: NDArray[np.float32] = np.where(kept, 1 / stay, 0).astype(np.float32)
        branches.flags.writeable = False
        return branches

    def _teacher(self, seed: int) -> NDArray[np.float32] | None:
        """Return the probabilities that a teacher gives the rows, those that are not valid too."""
        if self.distillation is None:
            return None
        shape = (self.batch_size, SPECS[self.network].num_classes)
        odds = np.exp(2 * np.random.default_rng(seed + 3000).normal(size=shape))
        teacher: NDArray[np.float32] = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
        teacher.flags.writeable = False
        return teacher

    def lr_array(self) -> NDArray[np.float32]:
        """Return the learning rates as a trainer takes them."""
        return np.array(self.lrs, np.float32)

    def take(
        self, trainer: Trainer, steps: slice = slice(None), batches: Sequence[Batch] | None = None
    ) -> NDArray[np.float32]:
        """Have `trainer` take these steps in one call and return the losses.

        `batches` are those that a rank has of all steps, None the case's own.
        """
        given = self.batches() if batches is None else batches
        decays = np.array(self.ema_decays)[steps] if self.ema_decays else None
        losses: NDArray[np.float32] = trainer.run_steps(given[steps], self.lr_array()[steps], decays)
        return losses

    def request(
        self,
        *,
        network: Weights | None = None,
        precision: PrecisionConfig | None = None,
        rank: RankInfo = SINGLE,
        collectives: Collectives | None = None,
    ) -> TrainRequest:
        """Return the request; with several ranks each takes its share of the batch and of `accumulate`."""
        return TrainRequest(
            weights=network or weights(self.network),
            optimizer=self.optimizer,
            loss=self.loss,
            precision=precision or self.precision,
            batch_size=self.batch_size // rank.world,
            accumulate=max(self.accumulate // rank.world, 1),
            ema_decay=self.ema_decay,
            mixes=bool(self.mix),
            drops=self.drops,
            distillation=self.distillation,
            frozen=self.frozen,
            class_weights=np.array(self.class_weights) if self.class_weights else None,
            logit_offsets=np.array(self.logit_offsets, np.float32) if self.logit_offsets else None,
            rank=rank,
            collectives=collectives or SingleProcess(),
        )
