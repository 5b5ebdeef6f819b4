"""Settings that are each right by themselves and cannot go together: one line each, before anything is computed."""

from __future__ import annotations

from resnext_core.config import Config, LossConfig, OptimizerConfig, TrainConfig
from resnext_core.errors import UsageError


def check_combinations(config: Config, classes: int) -> None:
    """Raise UsageError where settings of a training of `classes` classes contradict each other."""
    check_optimizer(config.optimizer)
    check_loss(config.loss, classes)
    _check_average(config.train)
    if config.train.minutes is not None and config.augment.start_size is not None:
        raise UsageError(
            "train.minutes cannot foresee the cost of steps whose images grow: set augment.start_size=null, or "
            "train.minutes=null with train.epochs"
        )


def _check_average(train: TrainConfig) -> None:
    """Raise UsageError where something is said about an EMA that is not kept, or nothing could come of it."""
    unused = TrainConfig()
    said = [
        key
        for key in ("ema_every", "ema_scaled", "ema_warmup")
        if getattr(train, key) != getattr(unused, key)
    ]
    if train.ema_decay is None and said:
        without = ", ".join(f"train.{key}={_yaml(getattr(unused, key))}" for key in said)
        raise UsageError(
            f"train.{said[0]} is about an average of the weights, and none is kept: set train.ema_decay, or {without}"
        )

    if train.ema_decay is None or not train.ema_scaled or train.minutes is not None:
        return
    if (1 - train.ema_decay) * train.batch_size * train.ema_every >= train.epochs:
        raise UsageError(
            f"train.ema_scaled makes train.ema_decay {train.ema_decay:g} 0 at train.batch_size {train.batch_size} and "
            f"train.epochs {train.epochs}, and the average a copy of the weights: raise train.ema_decay, or set "
            "train.ema_scaled=false"
        )


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_optimizer(optimizer: OptimizerConfig) -> None:
    """Raise UsageError where settings of the optimizer contradict each other, or would do nothing."""
    kind = optimizer.kind
    if optimizer.clip_norm is not None and optimizer.agc is not None:
        raise UsageError("optimizer.clip_norm and optimizer.agc both clip gradients: set one of them to null")
    if optimizer.nesterov and kind != "sgd":
        raise UsageError(f"optimizer.nesterov is of sgd, not of {kind}: set optimizer.nesterov=false")
    if optimizer.nesterov and optimizer.momentum == 0:
        raise UsageError(
            "optimizer.nesterov needs a momentum: raise optimizer.momentum, or set optimizer.nesterov=false"
        )
    if kind == "sgd" and optimizer.eps is not None:
        raise UsageError("optimizer.eps is of lamb and adamw, not of sgd: set optimizer.eps=null")
    for key in ("trust_all", "trust_clip"):
        if kind != "lamb" and getattr(optimizer, key):
            raise UsageError(f"optimizer.{key} is of lamb, not of {kind}: set optimizer.{key}=false")


def check_loss(loss: LossConfig, classes: int) -> None:
    """Raise UsageError where the loss cannot be computed as set, or its targets would say nothing."""
    if loss.class_weights != "effective" and loss.effective_beta != LossConfig().effective_beta:
        raise UsageError(
            f"loss.effective_beta is of loss.class_weights effective, not of {loss.class_weights}: remove it, or set "
            "loss.class_weights=effective"
        )
    if loss.kind != "bce":
        if loss.bce_sum:
            raise UsageError(
                f"loss.bce_sum is of bce, not of {loss.kind}: set loss.bce_sum=false, or loss.kind=bce"
            )
        if loss.bce_threshold is not None:
            raise UsageError(
                f"loss.bce_threshold is of bce, not of {loss.kind}: set loss.bce_threshold=null, or loss.kind=bce"
            )
        return
    if classes < 2:
        raise UsageError("loss.kind=bce needs two classes or more, and the data has one: set loss.kind=ce")
    if loss.bce_threshold is None:
        return
    uniform = loss.smoothing_form == "uniform"
    others = loss.smoothing / (classes if uniform else classes - 1)
    own = 1 - loss.smoothing + (others if uniform else 0.0)
    if not others <= loss.bce_threshold < own:
        raise UsageError(
            f"loss.bce_threshold {loss.bce_threshold:g} makes all targets alike: smoothed, they are {own:g} for the "
            f"class of an image and {others:g} for the others; take a value between"
        )
