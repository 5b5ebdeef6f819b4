"""Starting a training from existing weights: the network must be the same, the head may be replaced."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from resnext_core.config import Config
from resnext_core.convert.reading import ModelDescription, read_foreign
from resnext_core.data.classes import GIVE_NAMES, is_number
from resnext_core.errors import DataError, UsageError, counted, quoted
from resnext_core.interfaces import WeightFile
from resnext_core.model.init import init_weights
from resnext_core.model.preprocess import evaluated_at, preprocess_spec
from resnext_core.model.spec import VARIANTS, ModelSpec
from resnext_core.model.weights import Weights
from resnext_core.runs.checkpoint import load_checkpoint
from resnext_core.serving.load import find_model
from resnext_core.training.rules import UPDATES, rules_of, state_groups
from resnext_core.training.sizes import training_size, with_training_size


def pretrained_weights(
    config: Config,
    classes: Sequence[str],
    weight_files: Mapping[str, WeightFile],
    stated: Collection[str] | None = None,
) -> tuple[Weights, str, Config]:
    """Return the weights of ``model.pretrained`` for `classes`, a line that says what was done to them, and `config`.

    Preprocessing is that of the file, but for the keys of the configuration that are `stated` (dotted; None: all); the
    configuration is returned with it, and with the image size. The head is kept where the file's classes are those of
    the data (or mere numbers, as many), and initialised anew where ``model.num_classes`` states the data's number, or
    the file has none. Everything else must be there. Raises UsageError where the configuration contradicts the file,
    DataError where the file does not fit.
    """
    model = config.model
    assert model.pretrained is not None
    path = find_model(Path(model.pretrained))
    known = model.variant if path.suffix != ".safetensors" and model.variant in VARIANTS else None
    weights, headless = read_foreign(
        path, ModelDescription(variant=known, new_head=len(classes)), weight_files
    )
    spec = weights.spec
    if spec.variant != model.variant:
        raise UsageError(
            f"{path} is a {spec.variant}, model.variant is {model.variant}; use --set model.variant={spec.variant}"
        )
    if model.pool_padding not in (None, spec.pool_padding):
        raise UsageError(
            f"{path} has pool padding {spec.pool_padding}, model.pool_padding is {model.pool_padding}: the networks "
            "differ; remove model.pool_padding"
        )
    config = _with_preprocessing_of(weights, config, stated)
    size = training_size(config)
    preprocess = preprocess_spec(config.preprocess, size)
    if (preprocess.mean, preprocess.std) != (weights.preprocess.mean, weights.preprocess.std):
        raise UsageError(
            f"{path} was trained with a different preprocess.mean or .std; use the file's values"
        )
    same = tuple(classes) == weights.classes
    numbered = not weights.has_names and len(weights.classes) == len(classes)
    entry = weights.origin.get("entry")
    line = (
        f"starting from {path}{f', its entry {quoted(entry)}' if entry else ''}, digest {weights.digest[:19]}"
    )
    if headless:
        line += (
            f"; it has no classifier: a new one of {counted(len(classes), 'class', 'classes')} is initialised"
        )
        weights = _with_new_head(weights, classes, config.train.seed)
    elif same or (numbered and model.num_classes is None):
        line += "; its head is kept"
        if not same and all(is_number(name) for name in classes):
            raise UsageError(
                f"{path} has class numbers from 0, no names, and the data has other numbers, or sorts them as text "
                f"({', '.join(classes[:3])}, ...): {GIVE_NAMES}, or replace the head with --num-classes {len(classes)}"
            )
        if not same:
            line += f"; its classes have no names: using the {len(classes)} folder names in sorted order"
        weights = weights.replace(classes=tuple(classes), named=None)
    elif model.num_classes is None:
        raise UsageError(
            f"{path} has "
            f"{counted(len(weights.classes), 'class', 'classes')}, the data has {len(classes)} different ones; "
            f"--num-classes {len(classes)} replaces its head"
        )
    else:
        line += f"; its head of {spec.num_classes} classes is replaced by a new one of {len(classes)}"
        weights = _with_new_head(weights, classes, config.train.seed)
    published = weights.origin.get("published")
    if published is not None:
        line += f"; preprocessing of {published}, images of {size} pixels"
    before, now = vars(weights.preprocess), vars(preprocess)
    changed = [f"{key} {now[key]} instead of {before[key]}" for key in now if now[key] != before[key]]
    if model.pretrained_momentum:
        line += "; with its momentum; schedule and data order start from the beginning"
    if changed:
        line += f"; preprocessing by the configuration: {', '.join(changed)}"
    weights = weights.replace(
        spec=weights.spec.replace(image_size=size), preprocess=preprocess, metrics={},
        origin={**weights.origin, "pretrained": path.name, "pretrained_digest": weights.digest},
    )  # fmt: skip
    return weights, line, config


def _with_preprocessing_of(weights: Weights, config: Config, stated: Collection[str] | None) -> Config:
    """Return `config` with the preprocessing and the image size of `weights` where it states none of its own."""
    own, model = weights.preprocess, config.model
    resize = config.preprocess.resize if stated is None or "preprocess.resize" in stated else None
    if model.image_size is None and config.eval.size is None and own.size <= (resize or own.size):
        model = replace(model, image_size=own.size)  # a smaller resize belongs to the variant's own size
    config = with_training_size(replace(config, model=model))
    if stated is None:
        return config
    scaled = evaluated_at(own, training_size(config))
    keys = {field.name for field in fields(config.preprocess)}
    taken = {key: getattr(scaled, key) for key in keys if f"preprocess.{key}" not in stated}
    return replace(config, preprocess=replace(config.preprocess, **taken))


def pretrained_momentum(config: Config, spec: ModelSpec) -> dict[str, NDArray[Any]]:
    """Return the optimizer state of ``model.pretrained`` for a network `spec`, but for a replaced head, by key.

    Only tensors that learn have one. Raises DataError where it is no checkpoint folder, or has no state that fits.
    """
    assert config.model.pretrained is not None
    path = Path(config.model.pretrained)
    folder = path if (path / "state.json").is_file() else find_model(path).parent
    found = load_checkpoint(folder).state.tensors
    optimizer = config.optimizer
    if (UPDATES in found) != (optimizer.kind != "sgd"):
        raise DataError(
            f"{folder} has the state of another optimizer than {optimizer.kind}; set model.pretrained_momentum=false"
        )
    state = {UPDATES: found[UPDATES]} if UPDATES in found else {}
    learning = rules_of(spec, optimizer, config.train.freeze)
    for group, what in state_groups(optimizer).items():
        for tensor in spec.tensors:
            key = f"{group}/{tensor.name}"
            array = found.get(key)
            if tensor.name not in learning or (
                array is not None and array.shape != tensor.shape and "fc_" in tensor.role
            ):
                continue
            if array is None or array.shape != tensor.shape:
                raise DataError(
                    f"{folder} has no matching {what} for {tensor.name}; set model.pretrained_momentum=false"
                )
            state[key] = array
    return state


def _with_new_head(weights: Weights, classes: Sequence[str], seed: int) -> Weights:
    spec = weights.spec.replace(num_classes=len(classes))
    fresh = init_weights(spec, seed)
    head = {t.name: fresh[t.name] for t in spec.tensors if t.role in ("fc_weight", "fc_bias")}
    return weights.replace(spec=spec, classes=tuple(classes), tensors={**weights.tensors, **head})
