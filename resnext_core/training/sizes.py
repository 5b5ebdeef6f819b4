"""The size of the images that a training sees: its own where evaluation has another one, or one that grows."""

from __future__ import annotations

from dataclasses import replace

from resnext_core.config import AugmentConfig, Config
from resnext_core.errors import UsageError
from resnext_core.model.preprocess import PreprocessSpec, evaluated_at
from resnext_core.model.spec import model_spec


def training_size(config: Config) -> int:
    """Return the side in pixels of the images that are trained on: the configured one, or the variant's."""
    return config.model.image_size or model_spec(config.model.variant, num_classes=1).image_size


def with_training_size(config: Config) -> Config:
    """Return `config` with the size of training images in it where evaluation has another one: a run keeps it."""
    if config.eval.size is None or config.model.image_size is not None:
        return config
    return replace(config, model=replace(config.model, image_size=training_size(config)))


def training_preprocess(config: Config, preprocess: PreprocessSpec) -> PreprocessSpec:
    """Return how training images are made where finished ones are evaluated by `preprocess`, at ``eval.size``."""
    return preprocess if config.eval.size is None else evaluated_at(preprocess, training_size(config))


def size_at(augment: AugmentConfig, final: int, epoch: int) -> int | None:
    """Return the side in pixels of the images of `epoch` (from 0), None where it does not change over the training.

    It is `start_size` up to the first of `size_epochs` and `final` from the second on. Between them it is interpolated
    and rounded to the nearest multiple of `size_step` (a half to the even one), as by ``get_resolution`` in
    ffcv-imagenet's train_imagenet.py, but never beyond the two.
    """
    start = augment.start_size
    if start is None or augment.size_epochs is None:
        return None
    first, second = augment.size_epochs
    if epoch <= first:
        return start
    if epoch >= second:
        return final
    exact = start + (final - start) * (epoch - first) / (second - first)
    return min(max(round(exact / augment.size_step) * augment.size_step, start), final)


def check_sizes(augment: AugmentConfig, final: int) -> None:
    """Raise UsageError where images cannot grow to `final` pixels as the configuration says."""
    start, epochs = augment.start_size, augment.size_epochs
    if start is None:
        return
    if start > final:
        raise UsageError(
            f"augment.start_size {start} is larger than the {final} pixels that training ends with; lower it, or raise "
            "model.image_size"
        )
    if epochs is None:
        raise UsageError(
            "augment.start_size needs augment.size_epochs: after how many epochs images begin to grow, and after how "
            "many they have their final size, e.g. --set augment.size_epochs=[5,10]"
        )
    if epochs[0] > epochs[1]:
        raise UsageError(
            f"augment.size_epochs must not descend: images begin to grow after {epochs[0]:g} epochs and end after "
            f"{epochs[1]:g}"
        )
