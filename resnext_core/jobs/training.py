"""From a configuration to a running training job: data, initial weights, loaders, trainer, run folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from resnext_core.config import Config
from resnext_core.data.loader import Loader
from resnext_core.data.opening import eval_loader, loader_workers, quarantine
from resnext_core.interfaces import Backend, TrainRequest
from resnext_core.jobs.plan import Plan
from resnext_core.model.preprocess import preprocess_spec
from resnext_core.model.weights import Weights
from resnext_core.ranks.collectives import Collectives
from resnext_core.ranks.connect import connect_tcp
from resnext_core.ranks.info import RankInfo
from resnext_core.runs.checkpoint import Checkpoint
from resnext_core.runs.checkpoint_folder import RunProgress
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.records import Listener, Note
from resnext_core.terminal import starting
from resnext_core.training.imbalance import UNWEIGHTED, ClassLoss, class_loss
from resnext_core.training.initial import per_rank
from resnext_core.training.loop import fit
from resnext_core.training.sizes import training_preprocess
from resnext_core.training.teacher import distillation, open_teacher
from resnext_core.training.trainer import Trainer, create_trainer
from resnext_core.training.training import Training


def connect(backend: Backend, config: Config, rank: RankInfo) -> Collectives:
    """Join the other ranks, by the backend's own collectives or by core's."""
    if backend.connect is not None:
        with starting(backend.id):
            return backend.connect(rank, config.backends.get(backend.id))
    return connect_tcp(rank, os.environ)


@contextmanager
def training_job(
    plan: Plan,
    run: RunFolder,
    rank: RankInfo,
    collectives: Collectives,
    listen: Listener,
    resume: Checkpoint | None = None,
) -> Iterator[Training]:
    """Yield the training; its loaders end with the block. One that resumes needs no pretrained file."""
    config, splits, backend = plan.settled, plan.data, plan.trainer
    if resume is not None and resume.weights.spec.variant == config.model.variant:
        own = resume.weights.spec
        size = config.model.image_size or resume.run.get("image_size") or own.image_size
        weights = resume.weights.replace(
            spec=own.replace(image_size=size), preprocess=preprocess_spec(config.preprocess, size)
        ).evaluated_at(config.eval.size, config.eval.crop_pct)
    else:
        weights = plan.initial.weights
        for line in plan.initial.notes:
            listen(Note(text=line))
    weights = weights.replace(named=splits.train.named)
    per_rank(config, rank.world, len(splits.train))
    with ExitStack() as stack:
        teacher = stack.enter_context(
            open_teacher(
                config,
                splits.train.classes,
                plan.plugins,
                prefer=backend.id,
                rank=rank,
                collectives=collectives,
            )
        )
        if teacher is not None:
            for line in (teacher.note, *teacher.model.notes):
                listen(Note(text=line))
        train_loader = stack.enter_context(
            Loader(
                splits.train, training_preprocess(config, weights.preprocess), config.augment, seed=config.train.seed,
                workers=loader_workers(config, rank.world),
                prefetch=max(config.data.prefetch, 2 * backend.steps_per_call), bad_images=config.data.bad_images,
                quarantine=quarantine(config, run.path), decoder=plan.decoder,
            )
        )  # fmt: skip
        val_loader = None
        if splits.val is not None:
            val_loader = stack.enter_context(
                eval_loader(
                    splits.val, weights.preprocess, config, rank.world, run.path, decoder=plan.decoder
                )
            )
        yield Training(
            config=config, weights=weights, train=splits.train, train_loader=train_loader, val=splits.val,
            val_loader=val_loader, rank=rank, collectives=collectives, run=run,
            steps_per_call=backend.steps_per_call, listen=listen, teacher=teacher,
        )  # fmt: skip


def train_request(
    config: Config,
    weights: Weights,
    backend: Backend,
    rank: RankInfo,
    collectives: Collectives,
    classes: ClassLoss = UNWEIGHTED,
) -> TrainRequest:
    """Return what a trainer is made from; `classes` is what the loss does about classes of unlike size."""
    return TrainRequest(
        weights=weights, optimizer=config.optimizer, loss=config.loss, precision=config.precision,
        batch_size=config.train.batch_size // rank.world, accumulate=config.train.accumulate,
        ema_decay=config.train.ema_decay, skip_nonfinite=config.train.nonfinite == "skip", mixes=config.mix.on,
        drops=config.model.stochastic_depth > 0, distillation=distillation(config.train),
        frozen=config.train.freeze,
        logit_offsets=classes.logit_offsets, class_weights=classes.class_weights,
        seed=config.train.seed, rank=rank, collectives=collectives,
        options=config.backends.get(backend.id),
    )  # fmt: skip


def run_training(
    training: Training,
    backend: Backend,
    resume: Checkpoint | None,
    momentum: Mapping[str, NDArray[Any]] | None = None,
    ready: Callable[[], None] = lambda: None,
) -> RunProgress:
    """Build the trainer, run the loop, release the device; `ready` is called once the device is open."""
    with closing(new_trainer(training, backend, momentum)) as trainer:
        ready()
        return fit(trainer, training, resume)


def new_trainer(
    training: Training, backend: Backend, momentum: Mapping[str, NDArray[Any]] | None = None
) -> Trainer:
    """Return the trainer of a training, at its first step; with the optimizer state `momentum` where there is one."""
    request = train_request(
        training.config, training.weights, backend, training.rank, training.collectives,
        class_loss(training.config, training.train),
    )  # fmt: skip
    trainer = create_trainer(backend, request)
    try:
        if momentum is not None:
            state = trainer.state()
            trainer.load_state(replace(state, tensors={**state.tensors, **momentum}))
    except BaseException:
        trainer.close()
        raise
    return trainer
