"""What a training starts from: the network that is asked for, and its first weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from resnext_core import __version__
from resnext_core.config import Config
from resnext_core.data.sampler import check_repeats, steps_per_epoch
from resnext_core.errors import UsageError, counted
from resnext_core.model.init import init_weights
from resnext_core.model.preprocess import preprocess_spec
from resnext_core.model.spec import ModelSpec, model_spec
from resnext_core.model.weights import Weights
from resnext_core.plugins import load_plugins
from resnext_core.training.finetune import pretrained_weights


def build_spec(config: Config, num_classes: int) -> ModelSpec:
    """Return the ModelSpec that the configuration asks for."""
    model = config.model
    changes = {k: getattr(model, k) for k in ("image_size", "pool_padding") if getattr(model, k) is not None}
    return model_spec(model.variant, num_classes=num_classes, **changes)


def initial_weights(
    config: Config,
    classes: Sequence[str],
    tell: Callable[[str], None] = lambda line: None,
    stated: Collection[str] | None = None,
) -> tuple[Weights, Config]:
    """Return the weights that a training of `classes` starts from, and `config` with what they add to it.

    They are those of ``model.pretrained``, about which `tell` gets a line, or freshly initialised ones; `stated` is as
    for :func:`~resnext_core.training.finetune.pretrained_weights`. They say how finished ones will be evaluated: at
    ``eval.size``. Raises UsageError when the configured class count is not the data's.
    """
    check_class_count(config, classes)
    if config.model.pretrained is not None:
        weights, line, config = pretrained_weights(config, classes, load_plugins().weight_files, stated)
        tell(line)
    else:
        spec = build_spec(config, len(classes))
        weights = Weights(
            spec=spec,
            preprocess=preprocess_spec(config.preprocess, spec.image_size),
            classes=tuple(classes),
            tensors=init_weights(spec, config.train.seed),
            origin={"made_by": f"resnext-core {__version__}", "seed": config.train.seed},
        )
    return weights.evaluated_at(config.eval.size, config.eval.crop_pct), config


def check_class_count(config: Config, classes: Sequence[str]) -> None:
    """Raise UsageError when ``model.num_classes`` is not the number of `classes`."""
    configured = config.model.num_classes
    if configured is not None and configured != len(classes):
        raise UsageError(
            f"model.num_classes is {configured}, but the training data has "
            f"{counted(len(classes), 'class', 'classes')}; correct or "
            "remove it"
        )


def per_rank(config: Config, world: int, train_images: int) -> int:
    """Return a rank's samples a step; UsageError when the global batch cannot be split or filled."""
    train = config.train
    if train.batch_size % (world * train.accumulate):
        raise UsageError(
            f"train.batch_size {train.batch_size} is not divisible by {world} ranks × {train.accumulate} "
            "accumulated micro-batches"
        )
    steps_per_epoch(train_images, train.batch_size)
    check_repeats(config.augment.repeats, train.batch_size)
    return train.batch_size // world
