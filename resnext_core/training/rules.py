"""How the optimizer treats each tensor: what decays, what learns how fast, and what is frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resnext_core.config import OptimizerConfig
from resnext_core.errors import UsageError
from resnext_core.interfaces import TrainRequest
from resnext_core.model.spec import ModelSpec, TensorSpec


@dataclass(frozen=True, kw_only=True)
class TensorRule:
    """How the optimizer treats one tensor.

    Its learning rate is that of the step times `lr_scale`. With `trust` LAMB scales its step by the trust ratio; with
    `agc` its gradient is clipped by its own weights, where the optimizer does that at all.
    """

    weight_decay: float
    lr_scale: float
    trust: bool
    agc: bool


def tensor_rules(request: TrainRequest) -> dict[str, TensorRule]:
    """Return the rule of every tensor that learns, by name, in the order of the ModelSpec."""
    return rules_of(request.weights.spec, request.optimizer, request.frozen)


def rules_of(spec: ModelSpec, optimizer: OptimizerConfig, frozen: int) -> dict[str, TensorRule]:
    """Return the rule of every tensor of `spec` that learns while the first `frozen` parts do not."""
    return {
        tensor.name: _rule(spec, tensor, optimizer)
        for tensor in spec.tensors
        if tensor.trainable and part_of(tensor.name) >= frozen
    }


def part_of(name: str) -> int:
    """Return the part of the network that a tensor belongs to: 0 the stem, 1 the first stage, ...

    The classifier comes after the last stage; it is numbered beyond any stage.
    """
    first = name.split(".", 1)[0]
    if first.startswith("layer"):
        return int(first.removeprefix("layer"))
    return _CLASSIFIER if first == "fc" else 0


#: More than any number of stages.
_CLASSIFIER = 1_000


def frozen_tensors(request: TrainRequest) -> frozenset[str]:
    """Return the names of all tensors of the frozen parts, running statistics too."""
    return frozenset(t.name for t in request.weights.spec.tensors if part_of(t.name) < request.frozen)


def check_frozen(spec: ModelSpec, frozen: int) -> None:
    """Raise UsageError where more is frozen than there is before the classifier."""
    most = 1 + len(spec.depths)
    if frozen > most:
        raise UsageError(
            f"train.freeze {frozen} is more than the {most} parts of {spec.variant} before its classifier (the stem "
            f"and {len(spec.depths)} stages); set it to {most} or less"
        )


def learning_words(spec: ModelSpec, optimizer: OptimizerConfig, frozen: int) -> str:
    """Return in words how many parameters learn, what is frozen, and which rates the parts have."""
    rules = rules_of(spec, optimizer, frozen)
    text = f"{spec.parameters:,} parameters learn"
    if frozen:
        stages = f"stage{'s 1 to' * (frozen > 2)} {frozen - 1}"
        kept = f"the stem and {stages} are frozen" if frozen > 1 else "the stem is frozen"
        learned = sum(tensor.size for tensor in spec.tensors if tensor.name in rules)
        text = f"{learned:,} of {text}; {kept}, batch statistics included"
    if optimizer.stage_lr == 1:
        return text
    scales = {part_of(name): rule.lr_scale for name, rule in rules.items()}
    rates = ", ".join(f"{_part_name(part)} {scale:.3g}" for part, scale in sorted(scales.items()))
    return f"{text}; the learning rate is multiplied by: {rates}"


def state_groups(optimizer: OptimizerConfig) -> Mapping[str, str]:
    """Return the groups of optimizer state of each learning tensor, with what they hold."""
    if optimizer.kind == "sgd":
        return {"momentum": "momentum"}
    return {"momentum": "first moment", "variance": "second moment"}


def epsilon(optimizer: OptimizerConfig) -> float:
    """Return the ε of LAMB (1e-6 unless set) or AdamW (1e-8): the usual defaults."""
    if optimizer.eps is not None:
        return optimizer.eps
    return 1e-6 if optimizer.kind == "lamb" else 1e-8


#: The state that LAMB and AdamW have besides: the number of steps taken, float32 (1,).
UPDATES = "optimizer/updates"


def _part_name(part: int) -> str:
    return {0: "stem", _CLASSIFIER: "classifier"}.get(part, f"stage {part}")


def _rule(spec: ModelSpec, tensor: TensorSpec, optimizer: OptimizerConfig) -> TensorRule:
    decays = tensor.decay
    if tensor.role in ("bn_weight", "bn_bias"):
        decays = optimizer.decay_norm
    elif tensor.role == "fc_bias":
        decays = optimizer.decay_bias
    decay = optimizer.weight_decay if decays else 0.0
    part = part_of(tensor.name)
    return TensorRule(
        weight_decay=decay,
        lr_scale=1.0 if part == _CLASSIFIER else optimizer.stage_lr ** (len(spec.depths) + 1 - part),
        trust=optimizer.trust_all or decay > 0,
        agc=part != _CLASSIFIER,
    )
