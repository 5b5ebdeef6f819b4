"""How gradients move weights: SGD, LAMB and AdamW by PyTorch's fused kernels, a few launches for all tensors.

Nothing waits for the device: a step that is skipped is a flag there, and leaves every tensor as it is, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from resnext_core.interfaces import TrainRequest
from resnext_core.training.rules import epsilon, tensor_rules
from resnext_gpu.gradients import gradients_of
from resnext_gpu.table import Table


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Tensors that the optimizer treats alike, and their state."""

    weight_decay: float
    lr_scale: float
    trust: bool
    weights: list[Tensor]
    momentum: list[Tensor]
    variance: list[Tensor]


class Update:
    """Moves the tensors of `table` as ``request.optimizer`` and the rules of the tensors say."""

    def __init__(self, request: TrainRequest, table: Table) -> None:
        self._optimizer = request.optimizer
        self._groups = _groups(request, table)
        self._updates = table.updates
        self._move = {"sgd": self._sgd, "adamw": self._adamw, "lamb": self._lamb}[request.optimizer.kind]

    def __call__(self, lr: Tensor, divisor: Tensor | None, found: Tensor | None) -> None:
        """Move all tensors by their gradients over `divisor`, at the rate `lr`, float32 scalars.

        Where `found`, if it is given, is not 0, nothing changes.
        """
        if self._updates is not None:
            self._updates.add_(1 if found is None else 1 - found)
        for group in self._groups:
            rate = lr if group.lr_scale == 1 else lr * group.lr_scale
            self._move(group, rate, divisor, found)

    def close(self) -> None:
        """Let go of the tensors."""
        self._groups, self._updates = [], None

    def _sgd(self, group: Group, lr: Tensor, divisor: Tensor | None, found: Tensor | None) -> None:
        """v = momentum · v + (g + weight_decay · p); p −= lr · v, or of Nesterov lr · (g + wd · p + momentum · v)."""
        momentum = self._optimizer.momentum
        torch._fused_sgd_(
            group.weights, gradients_of(group.weights), group.momentum,
            weight_decay=group.weight_decay, momentum=momentum or 1.0, lr=lr, dampening=0.0,
            nesterov=self._optimizer.nesterov and momentum > 0, maximize=False,
            is_first_step=momentum == 0,  # then v = g, which is what no momentum is
            grad_scale=divisor, found_inf=found,
        )  # fmt: skip

    def _adamw(self, group: Group, lr: Tensor, divisor: Tensor | None, found: Tensor | None) -> None:
        """p −= lr · wd · p; p −= lr · (m / c1) / (√(v / c2) + ε), see :meth:`_moments`."""
        torch._fused_adamw_(
            group.weights, *self._moments(group), lr=lr, weight_decay=group.weight_decay, grad_scale=divisor,
            found_inf=found, **self._settings(),
        )  # fmt: skip

    def _lamb(self, group: Group, lr: Tensor, divisor: Tensor | None, found: Tensor | None) -> None:
        """p −= lr · r · u with u = (m / c1) / (√v / √c2 + ε) + wd · p and the trust ratio r.

        Adam's kernel on zeros leaves −u there, but for the decay, and moves both moments.
        """
        down = [torch.empty_like(weight) for weight in group.weights]
        torch._foreach_zero_(down)
        torch._fused_adam_(
            down, *self._moments(group), lr=1.0, weight_decay=0.0, grad_scale=divisor, found_inf=found,
            **self._settings(),
        )  # fmt: skip
        if group.weight_decay:
            torch._foreach_add_(down, group.weights, alpha=-group.weight_decay)
        factor = lr * self._trust(group, down) if group.trust else lr
        if found is not None:
            factor = torch.where(found > 0, -0.0, factor)  # x + -0 · y is x to the bit, for an x of -0 too
        if group.trust:
            torch._foreach_addcmul_(group.weights, down, list(factor.unbind()))
        else:
            torch._foreach_mul_(down, factor)
            torch._foreach_add_(group.weights, down)

    def _trust(self, group: Group, steps: list[Tensor]) -> Tensor:
        """Return ‖p‖ / ‖u‖ of each tensor, 1 where one of them is 0; float32 (tensors,)."""
        weights = torch.stack(torch._foreach_norm(group.weights))
        moves = torch.stack(torch._foreach_norm(steps))
        ratio = torch.where((weights > 0) & (moves > 0), weights / moves, 1.0)
        return ratio.clamp(max=1.0) if self._optimizer.trust_clip else ratio

    def _moments(self, group: Group) -> tuple[list[Tensor], ...]:
        """Return what Adam's kernels take: gradients, m, v, no largest v, and the number of updates for each tensor.

        They compute m = β1 · m + (1 − β1) · g, v = β2 · v + (1 − β2) · g², and c = 1 − β ** t in float64.
        """
        assert self._updates is not None
        count = [self._updates] * len(group.weights)
        return gradients_of(group.weights), group.momentum, group.variance, [], count

    def _settings(self) -> dict[str, float | bool]:
        (beta1, beta2), eps = self._optimizer.betas, epsilon(self._optimizer)
        return {"beta1": beta1, "beta2": beta2, "eps": eps, "amsgrad": False, "maximize": False}


def _groups(request: TrainRequest, table: Table) -> list[Group]:
    """Return the tensors that learn, in groups of the same rule."""
    names: dict[tuple[float, float, bool], list[str]] = {}
    for name, rule in tensor_rules(request).items():
        trust = rule.trust and request.optimizer.kind == "lamb"
        names.setdefault((rule.weight_decay, rule.lr_scale, trust), []).append(name)
    return [
        Group(
            weight_decay=decay, lr_scale=scale, trust=trust, weights=[table.weights[n] for n in own],
            momentum=[table.momentum[n] for n in own],
            variance=[table.variance[n] for n in own] if table.variance else [],
        )
        for (decay, scale, trust), own in names.items()
    ]  # fmt: skip
