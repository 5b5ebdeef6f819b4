"""The Parameters of a training run: weights, optimizer state, EMA."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor

from resnext_core.interfaces import TrainRequest
from resnext_core.model.spec import ModelSpec
from resnext_core.training.rules import UPDATES, TensorRule, state_groups, tensor_rules
from resnext_mindspore.network import make_parameters


@dataclass(frozen=True, kw_only=True, eq=False)
class Parameters:
    """The Parameters of a training run.

    `weights` and `averages` (the EMA; empty without) map neutral names. `rules` are those of the tensors that learn, by
    name. `learning` and each tuple of `state` (the groups of optimizer state) go with them, `ema` with `everything`.
    `updates` counts the steps taken, where the optimizer wants to know.
    """

    weights: Mapping[str, Parameter]
    averages: Mapping[str, Parameter]
    rules: Mapping[str, TensorRule]
    learning: ParameterTuple
    state: Mapping[str, ParameterTuple]
    updates: Parameter | None
    everything: ParameterTuple
    ema: ParameterTuple

    @classmethod
    def create(cls, request: TrainRequest) -> Parameters:
        """Return Parameters with the weights of `request`, no optimizer state yet, and the EMA equal to the weights."""
        spec, tensors, rules = request.weights.spec, request.weights.tensors, tensor_rules(request)
        weights = make_parameters(spec, tensors)
        averages = {} if request.ema_decay is None else make_parameters(spec, tensors, prefix="ema/")
        counted = request.optimizer.kind != "sgd"
        count = Parameter(Tensor(np.zeros(1, np.float32)), name=UPDATES, requires_grad=False)
        return cls(
            weights=weights,
            averages=averages,
            rules=rules,
            learning=ParameterTuple([weights[name] for name in rules]),
            state={group: zeros(spec, rules, f"{group}/") for group in state_groups(request.optimizer)},
            updates=count if counted else None,
            everything=ParameterTuple(list(weights.values())),
            ema=ParameterTuple(list(averages.values())),
        )

    def named(self) -> dict[str, Parameter]:
        """Return every Parameter of the state under its key in :class:`~resnext_core.interfaces.TrainState`."""
        found = {f"weights/{name}": p for name, p in self.weights.items()}
        for group, parameters in self.state.items():
            found |= {f"{group}/{name}": p for name, p in zip(self.rules, parameters, strict=True)}
        if self.updates is not None:
            found[UPDATES] = self.updates
        return found | {f"ema/{name}": p for name, p in self.averages.items()}


def zeros(spec: ModelSpec, names: Iterable[str], prefix: str) -> ParameterTuple:
    """Return a zero float32 Parameter for each of these tensors of `spec`."""
    shapes = {t.name: t.shape for t in spec.tensors}
    return ParameterTuple(
        [
            Parameter(Tensor(np.zeros(shapes[name], np.float32)), name=prefix + name, requires_grad=False)
            for name in names
        ]
    )
