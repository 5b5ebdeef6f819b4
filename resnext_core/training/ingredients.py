"""What a training asks of its engine beyond SGD with momentum on cross-entropy, and the refusal where it cannot."""

from __future__ import annotations

from collections.abc import Mapping

from resnext_core.config import Config, OptimizerConfig
from resnext_core.errors import UsageError
from resnext_core.interfaces import Backend, Ingredient, TrainRequest

#: What each ingredient is, and the setting that does without it.
_WORDS: Mapping[Ingredient, tuple[str, str]] = {
    "mix": ("mix images", "mix.mixup=0 and mix.cutmix=0"),
    "nesterov": ("use Nesterov's momentum", "optimizer.nesterov=false"),
    "lamb": ("train with LAMB", "optimizer.kind=sgd"),
    "adamw": ("train with AdamW", "optimizer.kind=sgd"),
    "agc": ("clip gradients by AGC", "optimizer.agc=null"),
    "groups": (
        "treat groups of tensors differently",
        "optimizer.decay_norm=false, optimizer.decay_bias=false and optimizer.stage_lr=1",
    ),
    "bce": ("train on binary cross-entropy", "loss.kind=ce"),
    "stochastic-depth": ("drop blocks", "model.stochastic_depth=0"),
    "teacher": ("learn from a teacher", "train.teacher=null"),
    "freeze": ("freeze parts of the network", "train.freeze=0"),
    "logit-offsets": ("adjust logits", "loss.logit_adjustment=0"),
    "sizes": ("change the size of training images", "augment.start_size=null"),
    "ema-schedule": (
        "change the decay of the EMA",
        "train.ema_every=1, train.ema_scaled=false and train.ema_warmup=none",
    ),
}


def asked_by(config: Config) -> frozenset[Ingredient]:
    """Return what a configuration asks of the engine."""
    train = config.train
    asked: dict[Ingredient, bool] = {
        **_of_optimizer(config.optimizer),
        "mix": config.mix.on,
        "bce": config.loss.kind == "bce",
        "stochastic-depth": config.model.stochastic_depth > 0,
        "teacher": train.teacher is not None,
        "freeze": train.freeze > 0,
        "logit-offsets": config.loss.logit_adjustment > 0,
        "sizes": config.augment.start_size is not None,
        "ema-schedule": train.ema_decay is not None
        and (train.ema_every > 1 or train.ema_warmup != "none" or train.ema_scaled),
    }
    return frozenset(name for name, wanted in asked.items() if wanted)


def asked_by_request(request: TrainRequest) -> frozenset[Ingredient]:
    """Return what a request asks of the engine; that the EMA or the size changes, it does not say."""
    asked: dict[Ingredient, bool] = {
        **_of_optimizer(request.optimizer),
        "mix": request.mixes,
        "bce": request.loss.kind == "bce",
        "stochastic-depth": request.drops,
        "teacher": request.distillation is not None,
        "freeze": request.frozen > 0,
        "logit-offsets": request.logit_offsets is not None,
    }
    return frozenset(name for name, wanted in asked.items() if wanted)


def _of_optimizer(optimizer: OptimizerConfig) -> dict[Ingredient, bool]:
    return {
        "nesterov": optimizer.kind == "sgd" and optimizer.nesterov,
        "lamb": optimizer.kind == "lamb",
        "adamw": optimizer.kind == "adamw",
        "agc": optimizer.agc is not None,
        "groups": optimizer.decay_norm or optimizer.decay_bias or optimizer.stage_lr != 1,
    }


def check_ingredients(backend: Backend, asked: frozenset[Ingredient]) -> None:
    """Raise UsageError where `backend` cannot do something of `asked`."""
    for name, (what, without) in _WORDS.items():
        if name in asked - backend.ingredients:
            raise UsageError(
                f"the backend {backend.id} cannot {what}; set {without}, or choose another --backend"
            )
