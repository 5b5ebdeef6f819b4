"""The tensors of a training run on the device: weights, optimizer state and EMA, by neutral name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from resnext_core.interfaces import TrainRequest
from resnext_core.model.spec import ModelSpec
from resnext_core.training.rules import UPDATES, state_groups, tensor_rules
from resnext_gpu.network import make_tensors


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """The tensors of a training run by neutral name; `statistics` is the one buffer of all running statistics.

    `momentum` and `variance` are of the tensors that learn. `variance` is empty and `updates`, float32 (1,), is None
    where the optimizer has none. Weights that are frozen are parameters that ask for no gradient.
    """

    weights: Mapping[str, Tensor]
    momentum: Mapping[str, Tensor]
    variance: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    statistics: Tensor
    updates: Tensor | None = None

    @classmethod
    def create(cls, request: TrainRequest, device: torch.device, *, channels_last: bool) -> Table:
        """Return tensors with the request's weights, optimizer state of zeros, and the EMA, if any, at the weights."""
        spec, arrays = request.weights.spec, request.weights.tensors
        weights = make_tensors(spec, arrays, device, channels_last=channels_last)
        statistics = _join(spec, weights)
        learned = tensor_rules(request)
        for tensor in spec.tensors:
            if tensor.trainable and tensor.name not in learned:
                weights[tensor.name].requires_grad_(False)
        ema = {n: t.detach().clone() for n, t in weights.items()} if request.ema_decay is not None else {}
        state = {
            group: {name: torch.zeros_like(weights[name].detach()) for name in learned}
            for group in state_groups(request.optimizer)
        }
        updates = None if request.optimizer.kind == "sgd" else torch.zeros(1, device=device)
        return cls(
            weights=weights, momentum=state["momentum"], variance=state.get("variance", {}), ema=ema,
            statistics=statistics, updates=updates,
        )  # fmt: skip

    @classmethod
    def empty(cls) -> Table:
        """Return a table of nothing, to take the place of one that is given up."""
        return cls(weights={}, momentum={}, variance={}, ema={}, statistics=torch.empty(0))

    def named(self) -> dict[str, Tensor]:
        """Return every tensor of the state under its key."""
        groups = {
            "weights": self.weights, "momentum": self.momentum, "variance": self.variance, "ema": self.ema,
        }  # fmt: skip
        found = {f"{group}/{name}": t.detach() for group, own in groups.items() for name, t in own.items()}
        return found if self.updates is None else {**found, UPDATES: self.updates}

    def average(self, decay: float) -> None:
        """Move the EMA, over weights and statistics: ema = decay · ema + (1 − decay) · w.

        1 leaves it as it is and 0 copies, whatever the weights are: also where some are not finite.
        """
        if decay == 1 or not self.ema:
            return
        own, weights = list(self.ema.values()), [self.weights[name].detach() for name in self.ema]
        with torch.no_grad():
            if decay == 0:
                torch._foreach_copy_(own, weights)
            else:
                torch._foreach_lerp_(own, weights, 1 - decay)


def _join(spec: ModelSpec, weights: dict[str, Tensor]) -> Tensor:
    """Move the running statistics into one buffer, so that a step can be taken back by one copy."""
    names = [t.name for t in spec.tensors if not t.trainable]
    flat = torch.cat([weights[name] for name in names])
    # .data, so that the parts do not share a version: to autograd a layer must not seem to change what another saved.
    parts = [part.data for part in flat.split([weights[name].numel() for name in names])]
    weights.update(zip(names, parts, strict=True))
    return flat
