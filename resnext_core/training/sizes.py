"""Which images a training sees: those of its own size, where finished networks are evaluated at another one."""

from __future__ import annotations

from dataclasses import replace

from resnext_core.config import Config
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
