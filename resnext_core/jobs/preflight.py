"""What a training will need, and what is wrong with it, before it is started."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from resnext_core.config import Config
from resnext_core.data.balance import REMEDIES
from resnext_core.data.batch_pool import most_batches
from resnext_core.data.index import Index, remarks
from resnext_core.data.opening import loader_workers
from resnext_core.data.sampler import steps_per_epoch
from resnext_core.data.splits import Splits
from resnext_core.errors import BackendUnavailable, ResnextError, counted
from resnext_core.jobs.plan import Plan, checkpoint_room, learned, size
from resnext_core.jobs.plan import checkpoint_bytes as checkpoint_bytes
from resnext_core.model.spec import ModelSpec
from resnext_core.training.batch_sizes import LINEAR_UP_TO as LINEAR_UP_TO
from resnext_core.training.course import length
from resnext_core.training.imbalance import imbalance, remedies
from resnext_core.training.initial import per_rank
from resnext_core.training.rules import learning_words, state_groups
from resnext_core.training.schedule import lr_at, scaled_lr

#: With batch statistics of fewer images the error grows (Wu and He, arXiv:1803.08494, figure 1).
BN_FROM = 8

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing about a training; an ``error`` would end it, or spoil its result."""

    topic: str
    level: Level
    text: str


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that one rank needs in training, besides those of its framework.

    `state`: weights, gradients, state of the optimizer, EMA, in float32. `activations`: what the backward pass
    needs of one micro-batch, the inputs of every convolution and of every batch normalisation, as if nothing was
    frozen. A teacher needs its own memory besides. Frameworks add workspaces, and keep a little more or less: take it
    as an estimate.
    """

    state: int
    activations: int

    @property
    def total(self) -> int:
        return self.state + self.activations


def training_memory(spec: ModelSpec, config: Config, micro_batch: int) -> MemoryEstimate:
    """Return what a rank needs that computes `micro_batch` images at a time."""
    trainable = 4 * learned(spec, config) * (1 + len(state_groups(config.optimizer)))
    every = 4 * sum(t.size for t in spec.tensors)
    ema = every if config.train.ema_decay is not None else 0
    width = 4 if config.precision.compute == "float32" else 2
    return MemoryEstimate(
        state=every + trainable + ema, activations=2 * width * micro_batch * spec.activations
    )


def preflight(plan: Plan, found: Iterable[tuple[str, ResnextError]]) -> Iterator[Finding]:
    """Yield notes on a job; `found` is what :func:`resnext_core.jobs.plan.faults` yields, and each is an error.

    What is only missing on this machine is a warning where the backend that would train is missing too.
    """
    if plan.splits is not None:
        yield from _data(plan.splits, plan.unusable)
    with suppress(ResnextError):  # it is among the faults
        yield Finding(topic="decoder", level="ok", text=f"{plan.decoder.name}: {plan.decoder.summary}")
    fits = plan.splits is not None
    for topic, error in found:
        elsewhere = plan.backend is None and isinstance(error, BackendUnavailable)
        yield Finding(topic=topic, level="warning" if elsewhere else "error", text=str(error))
        fits = fits and topic not in ("fit", "disk")
    if not fits:
        return
    config, splits, spec = plan.config, plan.data, plan.spec
    train = config.train
    rank_batch = per_rank(config, plan.world, len(splits.train))
    steps = steps_per_epoch(len(splits.train), train.batch_size)
    left = len(splits.train) - steps * train.batch_size
    yield Finding(
        topic="steps", level="ok",
        text=f"{length(train)}, {counted(steps, 'step')} an epoch, {counted(train.batch_size, 'image')} a step"
        if train.minutes is not None
        else f"{counted(train.epochs, 'epoch')} of {counted(steps, 'step')}, "
        f"{counted(train.batch_size, 'image')} a step"
        + (f", {rank_batch} of them on each of {plan.world} ranks" if plan.world > 1 else "")
        + (f"; "
        f"{counted(left, 'image')}, different in each epoch, {'is' if left == 1 else 'are'} dropped" if left else ""),
    )  # fmt: skip
    yield from _learning(spec, config)
    yield from _lr(config, steps)
    yield from _batch(rank_batch // train.accumulate)
    yield from _augment(config, spec.image_size)
    yield from _classes(config, splits.train)
    yield from _memory(spec, config, rank_batch // train.accumulate, plan.world)
    yield Finding(topic="disk", level="ok", text=checkpoint_room(plan)[0])
    if plan.whole and plan.backend is not None and plan.formats:
        made = ", ".join(f"{name} by {backend.id}" for name, backend in plan.formats.items())
        yield Finding(topic="export", level="ok", text=made)


def _data(splits: Splits, unusable: Sequence[ResnextError]) -> Iterator[Finding]:
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    found = ", ".join(f"{name} {len(index)}" for name, index in parts.items() if index is not None)
    yield Finding(topic="data", level="ok", text=f"{found} images, {len(splits.train.classes)} classes")
    for line in remarks(splits.parts.values()):
        yield Finding(topic="data", level="ok", text=line)
    for text in splits.notes:
        yield Finding(topic="data", level="warning", text=text)
    for name, index in parts.items():
        if index is not None and (empty := _empty(index)):
            yield Finding(
                topic="data", level="warning",
                text=f"{name} has no image of {counted(len(empty), 'class', 'classes')}, e.g. {', '.join(empty[:3])}",
            )  # fmt: skip


def _empty(index: Index) -> list[str]:
    present = set(index.labels.tolist())
    return [name for label, name in enumerate(index.classes) if label not in present]


def _learning(spec: ModelSpec, config: Config) -> Iterator[Finding]:
    train, optimizer = config.train, config.optimizer
    yield Finding(topic="network", level="ok", text=learning_words(spec, optimizer, train.freeze))
    if optimizer.stage_lr != 1 and config.model.pretrained is None:
        yield Finding(
            topic="network", level="warning",
            text=f"optimizer.stage_lr {optimizer.stage_lr:g} makes early stages learn less, and they are random at "
            "first: use --pretrained, or set it to 1",
        )  # fmt: skip
    if train.teacher is not None:
        yield Finding(
            topic="teacher", level="ok",
            text=f"{train.teacher}: {100 * train.teacher_weight:g} % of the loss, at temperature "
            f"{train.teacher_temperature:g}",
        )  # fmt: skip


def _lr(config: Config, steps: int) -> Iterator[Finding]:
    optimizer, schedule, train = config.optimizer, config.schedule, config.train
    lr = scaled_lr(optimizer, train.batch_size)
    last = lr_at(
        train.epochs * steps - 1, config=schedule, base_lr=lr, steps_per_epoch=steps, epochs=train.epochs
    )
    rule = (
        f"{optimizer.lr:g} per {counted(optimizer.lr_batch, 'image')}" if optimizer.lr_batch else "not scaled"
    )
    yield Finding(
        topic="lr", level="ok",
        text=f"{lr:g} at a batch of {train.batch_size} ({rule}); "
        f"{counted(schedule.warmup_epochs, 'epoch')} of warm-up, then "
        f"{schedule.kind} down to {last:.3g}",
    )  # fmt: skip
    warnings = [
        (
            optimizer.lr_batch is not None and train.batch_size > LINEAR_UP_TO,
            f"scaled to a batch above {LINEAR_UP_TO}, where linear scaling is known to cost accuracy "
            "(arXiv:1706.02677)",
        ),
        (
            bool(optimizer.lr_batch) and lr >= 2 * optimizer.lr and schedule.warmup_epochs == 0,
            f"{lr / optimizer.lr:.3g} times optimizer.lr from the first step on: set schedule.warmup_epochs",
        ),
        (
            schedule.warmup_epochs >= train.epochs,
            f"warm-up takes all {counted(train.epochs, 'epoch')}: {lr:g} is not reached before the end",
        ),
        (
            last > lr / 10 and schedule.kind != "constant" and schedule.warmup_epochs < train.epochs >= 5,
            f"still {last:.3g} at the end: check schedule.t_max or schedule.milestones",
        ),
    ]
    for true, text in warnings:
        if true:
            yield Finding(topic="lr", level="warning", text=text)


def _batch(micro_batch: int) -> Iterator[Finding]:
    if micro_batch < BN_FROM:
        yield Finding(
            topic="batch", level="warning",
            text=f"batch normalisation sees "
            f"{counted(micro_batch, 'image')} at a time; fewer than {BN_FROM} cost accuracy "
            "(arXiv:1803.08494): use fewer ranks or a larger train.batch_size",
        )  # fmt: skip


def _augment(config: Config, final: int) -> Iterator[Finding]:
    augment = config.augment
    if augment.auto != "none" and any(augment.color_jitter):
        jitter = ", ".join(f"{s:g}" for s in augment.color_jitter)
        yield Finding(
            topic="augment", level="warning",
            text=f"{augment.auto} and colour jitter of {jitter} are both on; "
            "published recipes have one of them: set augment.color_jitter=[0,0,0]",
        )  # fmt: skip
    if augment.start_size is not None and augment.size_epochs is not None:
        grown = augment.size_epochs[1]
        yield Finding(
            topic="augment", level="ok" if grown <= config.train.epochs - 1 else "warning",
            text=f"images of {augment.start_size} pixels at first, {final} after {counted(grown, 'epoch')}"
            + ("" if grown <= config.train.epochs - 1 else f", and there are {config.train.epochs}: the network is "
            "evaluated at a size that no whole epoch has shown; lower augment.size_epochs"),
        )  # fmt: skip


def _classes(config: Config, index: Index) -> Iterator[Finding]:
    """Say that classes are of unlike size, and what is done about it."""
    used = remedies(config)
    line = imbalance(index)
    if line is not None:
        done = f"; used: {', '.join(used)}" if used else f"; see {REMEDIES}"
        yield Finding(topic="classes", level="ok", text=line + done)
    if len(used) > 1:
        yield Finding(
            topic="classes", level="warning",
            text=f"{' and '.join(used)} correct for the same thing; one of them is usual",
        )  # fmt: skip


def _memory(spec: ModelSpec, config: Config, micro_batch: int, world: int) -> Iterator[Finding]:
    need = training_memory(spec, config, micro_batch)
    batch, workers = micro_batch * config.train.accumulate, loader_workers(config, world)
    images = most_batches(batch, workers, config.data.prefetch) * batch * spec.image_size**2 * 3
    host = (need.state if config.train.background_saving else 0) + images
    yield Finding(
        topic="memory", level="ok",
        text=f"about {size(need.total)} on each device, plus the framework's own: {size(need.state)} weights, "
        f"gradients and state of the optimizer, {size(need.activations)} activations of "
        f"{counted(micro_batch, 'image')} in "
        f"{config.precision.compute}; on the host {size(host)} per process, and "
        f"{counted(workers, 'loader worker')}",
    )  # fmt: skip
    here = machine_memory()
    if here is not None and world * need.total > here:
        yield Finding(
            topic="memory", level="warning",
            text=f"more than the {size(here)} of this machine: too much for a backend that computes on the CPU",
        )  # fmt: skip


def machine_memory() -> int | None:
    """Return the bytes of memory of this machine, None where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
