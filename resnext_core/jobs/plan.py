"""A job before it is started: its data, network and artefacts, and every problem that is certain to end it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from resnext_core.config import Config, stated
from resnext_core.data.index import Index
from resnext_core.data.mix import check_micro_batch
from resnext_core.data.opening import quarantine
from resnext_core.data.sampler import steps_per_epoch
from resnext_core.data.splits import Splits, examine_splits
from resnext_core.errors import BackendUnavailable, DataError, ResnextError, UsageError
from resnext_core.extensions import Decoder
from resnext_core.files import existing_folder
from resnext_core.interfaces import Backend
from resnext_core.model.preprocess import evaluated_at, preprocess_spec
from resnext_core.model.spec import ModelSpec
from resnext_core.model.weights import Weights
from resnext_core.plugins import PluginSet
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.runs.folder import RunFolder, check_free, check_writable
from resnext_core.serving.load import WEIGHTS_SUFFIX, exporters, server_of
from resnext_core.training.batch_sizes import micro_batches, most_images
from resnext_core.training.combinations import check_combinations
from resnext_core.training.finetune import pretrained_momentum
from resnext_core.training.imbalance import check_class_loss
from resnext_core.training.ingredients import asked_by, check_ingredients
from resnext_core.training.initial import build_spec, check_class_count, initial_weights, per_rank
from resnext_core.training.rules import check_frozen, learning_words, rules_of, state_groups
from resnext_core.training.sizes import check_sizes, training_size, with_training_size
from resnext_core.training.teacher import check_teacher, open_teacher


@dataclass(frozen=True, kw_only=True, eq=False)
class InitialWeights:
    """What a new training starts from, lines about where it comes from, and the configuration with what that adds."""

    weights: Weights
    notes: tuple[str, ...]
    config: Config


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A job that has not been started.

    `splits` are None where there is no train part to use; `unusable` says what is wrong with the data. `backend` is
    None where the one that would train is not on this machine. `resumed` is the run that goes on. A `whole` job also
    exports and validates. With `finds_batch` its batch size stands for the largest that fits, which is found when the
    devices are open (:mod:`resnext_core.jobs.fitting`). `stated` are the keys of the configuration, dotted, that
    somebody set; None: all.
    """

    config: Config
    plugins: PluginSet
    backend: Backend | None
    splits: Splits | None
    unusable: tuple[ResnextError, ...] = ()
    world: int = 1
    resumed: RunFolder | None = None
    whole: bool = False
    finds_batch: bool = False
    stated: frozenset[str] | None = None

    @property
    def data(self) -> Splits:
        """The splits; only where the data can be used."""
        assert self.splits is not None
        return self.splits

    @property
    def scored(self) -> tuple[str, Index]:
        """Name and index of the part that the finished network is evaluated on; UsageError when there is none."""
        for name, index in (("test", self.data.test), ("val", self.data.val)):
            if index is not None:
                return name, index
        raise UsageError(
            f"{self.config.data.dir} has no val or test part to evaluate on; add one, or use 'train'"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What is left out of the job, one line for each part."""
        prefer = self.backend.id if self.backend is not None else None
        asked = self.config.export.formats
        export = self.config.export
        known = exporters(self.plugins, asked, prefer=prefer, settings=export).keys() if self.whole else set()
        formats = known - self.formats.keys() if known else ()
        return self.data.notes + tuple(
            f"{name} is not exported: no backend here reads it, so it cannot be validated"
            for name in sorted(formats)
        )

    @cached_property
    def formats(self) -> dict[str, Backend]:
        """The exporter of each format of a whole job: of those asked for, or all that can be written and read here.

        Raises UsageError on an unknown format, BackendUnavailable on one that cannot be written or validated here.
        """
        prefer = self.backend.id if self.backend is not None else None
        asked = self.config.export.formats
        chosen = {}
        export = self.config.export
        for name, exporter in exporters(self.plugins, asked, prefer=prefer, settings=export).items():
            try:
                server_of(self.plugins, exporter.ending(name), prefer=prefer)
            except ResnextError as error:
                if asked:
                    raise BackendUnavailable(
                        f"export.formats: {name} could be written, but not validated: {error}"
                    ) from error
                continue
            chosen[name] = exporter
        return chosen

    @property
    def trainer(self) -> Backend:
        """The backend that trains; only where it is on this machine."""
        assert self.backend is not None
        return self.backend

    @cached_property
    def decoder(self) -> Decoder:
        """What decodes the images; raises the error where ``data.decoder`` names none that is ready here."""
        return self.plugins.decoder(self.config.data.decoder)

    @cached_property
    def initial(self) -> InitialWeights:
        """The weights that a new training starts from; raises the error where they do not fit."""
        lines: list[str] = []
        weights, config = initial_weights(self.config, self.data.train.classes, lines.append, self.stated)
        frozen, optimizer = config.train.freeze, config.optimizer
        if frozen or optimizer.stage_lr != 1:
            lines.append(learning_words(weights.spec, optimizer, frozen))
        return InitialWeights(weights=weights, notes=tuple(lines), config=config)

    @property
    def settled(self) -> Config:
        """The configuration of the run: that of the job, with what a pretrained file adds to it."""
        if self.resumed is not None:
            return self.config
        if self.config.model.pretrained is not None:
            return self.initial.config
        return with_training_size(self.config)

    @cached_property
    def momentum(self) -> Mapping[str, NDArray[Any]] | None:
        """The momentum that a new training starts from; None where ``model.pretrained_momentum`` asks for none."""
        if not self.config.model.pretrained_momentum:
            return None
        return pretrained_momentum(self.config, self.initial.weights.spec)

    @cached_property
    def spec(self) -> ModelSpec:
        """The network that will be trained; raises the error where ``model.pretrained`` or the data do not fit it."""
        config, classes = self.config, self.data.train.classes
        check_class_count(config, classes)
        if self.resumed is not None:
            return build_spec(config, len(classes))
        if config.model.pretrained is None:
            if config.model.pretrained_momentum:
                raise UsageError(
                    "model.pretrained_momentum needs model.pretrained: use --pretrained CHECKPOINT"
                )
            return build_spec(config, len(classes))
        _ = self.momentum  # what speaks against it
        return self.initial.weights.spec.replace(image_size=training_size(self.initial.config))


def training_backend(plugins: PluginSet, backend_id: str | None) -> Backend:
    """Return the named backend, or the best one here, that can train; see :meth:`PluginSet.choose`."""
    return plugins.choose(backend_id, "train", lambda b: b.engine is not None)


def plan_job(
    config: Config,
    plugins: PluginSet,
    backend: Backend | None,
    *,
    world: int = 1,
    resumed: RunFolder | None = None,
    whole: bool = False,
    finds_batch: bool = False,
    sources: Mapping[str, str] | None = None,
) -> Plan:
    """Look at the data of a job and return the plan; UsageError where there is no data folder.

    `sources` says where each value of `config` came from; None: all of them were set. With `finds_batch` the plan has
    the smallest batch that may be found.
    """
    splits, unusable = examine_splits(config)
    if finds_batch and splits is not None:
        smallest = micro_batches(most_images(config, world, len(splits.train)))[0]
        batch = smallest * world * config.train.accumulate
        config = replace(config, train=replace(config.train, batch_size=batch))
    return Plan(
        config=config, plugins=plugins, backend=backend, splits=splits, unusable=tuple(unusable), world=world,
        resumed=resumed, whole=whole, finds_batch=finds_batch, stated=None if sources is None else stated(sources),
    )  # fmt: skip


def require(plan: Plan) -> None:
    """Raise the first error that is certain to end the job; nothing has been written or computed yet."""
    for _, error in faults(plan):
        raise error


def faults(plan: Plan) -> Iterator[tuple[str, ResnextError]]:
    """Yield topic and error of every problem that is certain to end the job."""
    yield from (("data", error) for error in plan.unusable)
    checks: list[tuple[str, Callable[[Plan], object]]] = [
        ("data", lambda plan: quarantine(plan.config)), ("data", lambda plan: plan.decoder),
        ("output", _writable), ("output", _tensorboard),
    ]  # fmt: skip
    if plan.whole and plan.backend is not None:
        checks += [("export", _served), ("export", lambda plan: plan.formats)]
    if plan.splits is not None:
        misfit = _caught(_fits, plan)
        if misfit is not None:
            yield "fit", misfit
        else:
            checks.append(("disk", _room))
    for topic, check in checks:
        error = _caught(check, plan)
        if error is not None:
            yield topic, error


def _caught(check: Callable[[Plan], object], plan: Plan) -> ResnextError | None:
    try:
        check(plan)
    except ResnextError as error:
        return error
    return None


def _fits(plan: Plan) -> None:
    config = plan.config
    if plan.finds_batch and plan.resumed is not None and any(plan.resumed.checkpoints.glob("step-*")):
        raise UsageError(f"{plan.resumed.path} has its batch size already: leave out the batch size of auto")
    batch = per_rank(config, plan.world, len(plan.data.train))
    if plan.backend is not None:
        check_ingredients(plan.backend, asked_by(config))
    check_combinations(config, len(plan.data.train.classes))
    if config.train.patience is not None and plan.data.val is None:
        raise UsageError(
            "train.patience needs a val part to evaluate on; add one, or set train.patience=null"
        )
    if config.mix.on:
        check_micro_batch(batch // config.train.accumulate)
    if config.train.freeze and config.model.pretrained is None:
        raise UsageError(
            f"train.freeze {config.train.freeze} would keep random weights as they are: give weights to start from "
            "with --pretrained, or set train.freeze=0"
        )
    check_class_loss(config, plan.data.train)
    check_frozen(plan.spec, config.train.freeze)
    settled = plan.settled
    check_sizes(settled.augment, training_size(settled))
    preprocess = preprocess_spec(settled.preprocess, training_size(settled))
    evaluated_at(preprocess, settled.eval.size, settled.eval.crop_pct)  # what speaks against those
    _teacher_fits(plan)


def _teacher_fits(plan: Plan) -> None:
    if plan.backend is None:
        return
    config, classes, prefer = plan.settled, plan.data.train.classes, plan.backend.id
    check_teacher(config, classes, plan.plugins, prefer)
    if plan.world == 1:  # elsewhere the ranks open it: this process keeps off their devices
        with open_teacher(
            config, classes, plan.plugins, prefer=prefer, rank=RankInfo(), collectives=SingleProcess()
        ):
            pass


def _served(plan: Plan) -> None:
    """Raise BackendUnavailable where nothing here could evaluate the finished network."""
    assert plan.backend is not None
    server_of(plan.plugins, WEIGHTS_SUFFIX, prefer=plan.backend.id)


def _writable(plan: Plan) -> None:
    output = plan.config.output
    if plan.resumed is not None:
        check_writable(plan.resumed.path)
        return
    if output.name is not None:
        check_free(Path(output.dir), output.name)
    check_writable(Path(output.dir))


def _tensorboard(plan: Plan) -> None:
    if plan.config.output.tensorboard and find_spec("tensorboardX") is None:
        raise UsageError(
            "output.tensorboard needs tensorboardX: pip install 'resnext-core[tensorboard]', or set it to false"
        )


def checkpoint_room(plan: Plan) -> tuple[str, int]:
    """Return what checkpoints need, in words, and how many bytes are missing for them (0 when it is enough)."""
    config, train = plan.config, plan.config.train
    folder = existing_folder(plan.resumed.path if plan.resumed is not None else Path(config.output.dir))
    one = checkpoint_bytes(plan.spec, config)
    steps = steps_per_epoch(len(plan.data.train), train.batch_size)
    saves = -(-train.epochs // train.checkpoint_every)
    if plan.data.val is not None:  # an epoch that is evaluated is saved
        saves += -(-train.epochs // train.eval_every)
    if train.checkpoint_steps is not None:
        saves += train.epochs * steps // train.checkpoint_steps
    most = train.keep + 2 if train.minutes is not None else min(train.keep + 2, saves)
    # A run that goes on has most of its checkpoints already; each of them makes room for the next.
    needed = one if plan.resumed is not None else one * most
    free = shutil.disk_usage(folder).free
    which = f"checkpoints: {train.keep} newest, the best, and the one being written"
    text = (
        f"{size(one * most)} for {which if most == train.keep + 2 else f'{most} checkpoints'}, {size(one)} each; "
        f"{size(free)} free in {folder}"
    )
    return text, max(0, needed - free)


def _room(plan: Plan) -> None:
    text, missing = checkpoint_room(plan)
    if missing:
        raise DataError(f"{text}; make room for {size(missing)} more, lower train.keep, or use --output DIR")


def checkpoint_bytes(spec: ModelSpec, config: Config) -> int:
    """Return the bytes of a checkpoint's tensors: the weights, the state of the optimizer, the EMA."""
    every = 4 * sum(t.size for t in spec.tensors)
    groups = len(state_groups(config.optimizer))
    return (2 if config.train.ema_decay is not None else 1) * every + 4 * groups * learned(spec, config)


def learned(spec: ModelSpec, config: Config) -> int:
    """Return how many parameters of the network a training changes: all that are not frozen."""
    rules = rules_of(spec, config.optimizer, config.train.freeze)
    return sum(t.size for t in spec.tensors if t.name in rules)


def size(count: float) -> str:
    """Return bytes in words."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MiB"
