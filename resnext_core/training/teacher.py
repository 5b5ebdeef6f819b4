"""A teacher: a finished model whose predictions on the training images are learnt (Hinton et al., arXiv:1503.02531)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import Config, ModelConfig, PreprocessConfig, TrainConfig
from resnext_core.data.classes import GIVE_NAMES, is_number
from resnext_core.data.mix import mixed_rows
from resnext_core.errors import DataError, ResnextError, UsageError, counted, one_line
from resnext_core.files import file_digest
from resnext_core.interfaces import Batch, Distillation, Mix, MixedRows
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.sidecar import read_sidecar
from resnext_core.plugins import PluginSet
from resnext_core.ranks.collectives import Collectives
from resnext_core.ranks.exchange import from_each
from resnext_core.ranks.info import RankInfo
from resnext_core.serving.load import (
    WEIGHTS_SUFFIX,
    LoadedModel,
    find_model,
    is_weights,
    read_weights,
    serve,
    server_of,
)
from resnext_core.serving.metrics import softmax
from resnext_core.training.sizes import training_size


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """A loaded model, and how its predictions are taken.

    `identity` tells teachers apart: the digest of the weights, and for an artefact also that of the file. Each of the
    `accumulate` micro-batches of a batch is computed by itself, so several ranks get the bits of one rank that
    accumulates as many micro-batches.
    """

    model: LoadedModel
    identity: str
    temperature: float
    accumulate: int

    @property
    def note(self) -> str:
        """What it is, in a line for people."""
        model = self.model
        order = (
            "" if model.has_names else "; its classes have no names: using those of the data in their order"
        )
        return (
            f"learning from {model.source}, a {model.spec.variant} on backend {model.backend.id}, "
            f"{self.identity}, at temperature {self.temperature:g}{order}"
        )

    def taught(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return `batches` with what the teacher says about their rows, mixed as the batches say."""
        return [replace(batch, teacher=self.probabilities(batch)) for batch in batches]

    def probabilities(self, batch: Batch) -> NDArray[np.float32]:
        """Return softmax(logits / temperature) float32 (N, classes), computed in float64; uniform on invalid rows.

        Where rows are mixed the teacher sees the mixed pixels, normalised with its own mean and std. Raises DataError
        where its logits of a valid row are not finite.
        """
        size = len(batch) // self.accumulate
        mixes = batch.mix or (Mix(),) * self.accumulate
        parts = [
            self._logits(batch.images[part], batch.valid[part], mix)
            for mix, part in zip(mixes, (slice(i, i + size) for i in range(0, len(batch), size)), strict=True)
        ]
        logits = np.concatenate(parts)
        if not np.isfinite(logits[batch.valid]).all():
            raise DataError(
                f"the teacher {self.model.source} gives logits that are not finite; check it with resnext-run eval, "
                "or set train.teacher=null"
            )
        return softened(np.where(batch.valid[:, None], logits, 0), self.temperature)

    def _logits(self, images: NDArray[np.uint8], valid: NDArray[np.bool_], mix: Mix) -> NDArray[Any]:
        """Return the logits of one micro-batch."""
        if mix.kind == "none":
            return self.model.predictor.logits(images)
        rows = mixed_rows([mix], np.zeros(len(images), np.int32), valid, images.shape[1:3])
        return self.model.predictor.logits_from_tensor(mixed_tensor(images, rows, self.model.preprocess))


def softened(logits: NDArray[Any], temperature: float) -> NDArray[np.float32]:
    """Return softmax(logits / temperature) of each row: float32 (N, classes), computed in float64."""
    return softmax(logits.astype(np.float64) / temperature).astype(np.float32)


def mixed_tensor(
    images: NDArray[np.uint8], mix: MixedRows, preprocess: PreprocessSpec
) -> NDArray[np.float32]:
    """Return the images (N, H, W, 3) of one micro-batch mixed and normalised: float32 (N, 3, H, W).

    The same values as :func:`~resnext_core.data.mix.mixed_pixels` and
    :func:`~resnext_core.model.preprocess.normalize`, image by image in the processor's cache: four times as fast.
    """
    mean = np.asarray(preprocess.mean, np.float32)[:, None, None]
    std = np.asarray(preprocess.std, np.float32)[:, None, None]
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    tensor = np.empty(planes.shape, np.float32)
    for i, own in enumerate(tensor):
        own[...] = planes[i]
        top, left, bottom, right = mix.box[i]
        if bottom > top and right > left:
            inside, kept = own[:, top:bottom, left:right], np.float32(mix.blend[i])
            inside *= kept
            inside += (1 - kept) * planes[mix.partner[i], :, top:bottom, left:right]
        own -= mean
        own /= std
    return tensor


def distillation(train: TrainConfig) -> Distillation | None:
    """Return how much the teacher counts; None without one."""
    if train.teacher is None:
        return None
    return Distillation(weight=train.teacher_weight, temperature=train.teacher_temperature)


@contextmanager
def open_teacher(
    config: Config,
    classes: Sequence[str],
    plugins: PluginSet,
    *,
    prefer: str,
    rank: RankInfo,
    collectives: Collectives,
) -> Iterator[Teacher | None]:
    """Yield the teacher of a training on `classes`, None where there is none; its device is released with the block.

    `prefer` names the backend that trains, which serves it where it can read it. An image of each size of the training
    is tried, mixed where the training mixes. Raises UsageError where it cannot take them or has other classes, and
    DataError where the ranks have different teachers.
    """
    if config.train.teacher is None:
        yield None
        return
    path, train = find_model(Path(config.train.teacher)), config.train
    model = serve(
        path, _as_served(config), {}, plugins, prefer=prefer, rank=rank, tensor_input=config.mix.on,
        batch_size=max(train.batch_size // rank.world // train.accumulate, 1),
    )  # fmt: skip
    try:
        check_classes(model.source, model.classes, model.has_names, classes)
        teacher = Teacher(
            model=model, identity=_identity(path, model.digest, plugins), temperature=train.teacher_temperature,
            accumulate=train.accumulate,
        )  # fmt: skip
        _try(teacher, config)
        _check_same(teacher, rank, collectives)
        yield teacher
    finally:
        model.predictor.close()


def check_teacher(config: Config, classes: Sequence[str], plugins: PluginSet, prefer: str) -> None:
    """Raise the error where the file of ``train.teacher`` cannot be the teacher; no device is opened.

    What an artefact takes is only known once it is opened: see :func:`open_teacher`.
    """
    train, unused = config.train, TrainConfig()
    if train.teacher is None:
        for key in ("teacher_weight", "teacher_temperature"):
            if getattr(train, key) != getattr(unused, key):
                raise UsageError(
                    f"train.{key} is {getattr(train, key):g}, and there is no teacher: set train.teacher to a run, a "
                    "weights file or an artefact"
                )
        return
    path = find_model(Path(train.teacher))
    if is_weights(path, plugins):
        weights = read_weights(path, _as_served(config), {}, plugins)
        server_of(plugins, WEIGHTS_SUFFIX, prefer=prefer)
        check_classes(str(path), weights.classes, weights.has_names, classes)
        return
    server_of(plugins, path.suffix or path.name, prefer=prefer, file=path, options=config.backends)
    manifest = read_sidecar(path)
    if manifest is not None:
        check_classes(str(path), manifest.classes, manifest.has_names, classes)


def check_classes(source: str, own: Sequence[str], named: bool, classes: Sequence[str]) -> None:
    """Raise UsageError unless the teacher from `source` has the data's `classes`, in their order.

    Classes without names (`named` False) are taken in the order of the data's, which must be as many names.
    """
    if tuple(own) == tuple(classes):
        return
    if len(own) != len(classes):
        raise UsageError(
            f"the teacher {source} has "
            f"{counted(len(own), 'class', 'classes')}, the data has {len(classes)}: they must be the same"
        )
    if named:
        i = next(i for i, (one, other) in enumerate(zip(own, classes, strict=True)) if one != other)
        raise UsageError(
            f"the teacher {source} has other classes than the data, or another order: number {i} is '{own[i]}' there "
            f"and '{classes[i]}' here"
        )
    if all(is_number(name) for name in classes):
        raise UsageError(
            f"the teacher {source} has class numbers from 0, no names, and the data has other numbers, or sorts them "
            f"as text: {GIVE_NAMES}"
        )


def _as_served(config: Config) -> Config:
    """Return the configuration to open a teacher with: what is said about the network in training is not about it."""
    own = replace(config.eval, size=None, crop_pct=None)
    return replace(config, model=ModelConfig(), preprocess=PreprocessConfig(), eval=own)


def _identity(path: Path, digest: str, plugins: PluginSet) -> str:
    """Return what tells teachers apart; artefacts of one network may differ in arithmetic, as in INT8."""
    if is_weights(path, plugins):
        return f"digest {digest[:19]}"
    return f"digest {digest[:19]}, file {file_digest(path)[:19]}"


def _try(teacher: Teacher, config: Config) -> None:
    """Raise UsageError where the teacher cannot take an image of each size, mixed where the training mixes."""
    sizes = {training_size(config), config.augment.start_size or training_size(config)}
    mix = Mix(kind="mixup", lam=0.5, partner="rolled") if config.mix.on else Mix()
    for size in sorted(sizes):
        images, valid = np.zeros((2, size, size, 3), np.uint8), np.ones(2, np.bool_)
        for drawn in dict.fromkeys((Mix(), mix)):
            try:
                teacher._logits(images, valid, drawn)
            except ResnextError as error:
                without = "mix.mixup=0 and mix.cutmix=0" if drawn.kind != "none" else "train.teacher=null"
                raise UsageError(
                    f"the teacher {teacher.model.source} cannot take {'mixed ' * (drawn.kind != 'none')}images of "
                    f"{size} pixels: {one_line(error)}; take its weights as the teacher, or set {without}"
                ) from error


def _check_same(teacher: Teacher, rank: RankInfo, collectives: Collectives) -> None:
    """Raise DataError on every rank where ranks have different teachers."""
    if rank.world == 1:
        return
    own = int(hashlib.sha256(teacher.identity.encode()).hexdigest()[:14], 16)
    found = from_each(rank, collectives, own)
    others = np.flatnonzero(found != found[0])
    if len(others):
        raise DataError(
            f"rank {others[0]} has another teacher than rank 0: put train.teacher on storage that all servers share"
        )
