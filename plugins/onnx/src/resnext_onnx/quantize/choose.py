"""Choices on held-out images: the rule of the ranges, the correction of the biases, the first and the last layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from resnext_core.runs.records import Listener, Progress
from resnext_onnx.quantize.qdq import Layers, Plan, Scheme, quantised
from resnext_onnx.quantize.ranges import Range
from resnext_onnx.quantize.run import Array, logits_of
from resnext_onnx.quantize.sensitivity import logit_error

#: The first and last layers are taken in 8 bits where the error of the logits grows by no more than this share.
FREE = 0.05
#: Rules are tried for single values if their networks are off by no more than so many times the least error.
NEAR = 3.0


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What was tried, and how far the logits of the held-out images were off; `agreement` is that of first guesses."""

    what: str
    error: float
    agreement: float
    taken: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return dict(vars(self))


class Chooser:
    """Compares plans by the logits of held-out `images` against `want`, those of the float network."""

    def __init__(
        self, model: onnx.ModelProto, images: Array, want: Array, threads: int | None, listen: Listener
    ) -> None:
        self.model, self.images, self.want = model, images, want
        self.threads, self.listen = threads, listen
        self.tried: list[Tried] = []

    def score(self, what: str, plan: Plan) -> Tried:
        """Return and note how good `plan` is."""
        got = logits_of(
            quantised(self.model, plan), self.images, self.threads,
            lambda done: self.listen(Progress(what=f"try {what}", done=done, total=len(self.images))),
        )  # fmt: skip
        same = np.isfinite(got).all(axis=1) & (got.argmax(axis=1) == self.want.argmax(axis=1))
        found = Tried(what=what, error=logit_error(got, self.want), agreement=float(same.mean()))
        self.tried.append(found)
        return found

    def take(self, found: Tried) -> None:
        """Note that what `found` stands for was taken."""
        self.tried = [replace(one, taken=True) if one is found else one for one in self.tried]


def choose(
    chooser: Chooser,
    ranges: Mapping[str, Mapping[str, Range]],
    scheme: Scheme,
    refine: Callable[[Plan, Mapping[str, Mapping[str, Range]]], Plan],
    correct: Callable[[Plan], Plan],
) -> Plan:
    """Return the plan with the least error of logits: every layer in 8 bits, the first and last where they cost little.

    `ranges` are those of each rule by name. `refine` returns a plan with other ranges, from those of the better rules,
    and `correct` one with other biases; each is taken where it is better.
    """
    first, *inner, last = Layers(chooser.model.graph).names
    plans = {
        name: Plan(layers=frozenset(inner), ranges=found, scheme=scheme) for name, found in ranges.items()
    }
    scores = {name: chooser.score(name, plan) for name, plan in plans.items()}
    best = min(scores, key=lambda name: scores[name].error)
    plan, score = plans[best], scores[best]
    chooser.take(score)
    near = {name: ranges[name] for name in ranges if scores[name].error <= NEAR * score.error}
    changes: dict[str, Callable[[Plan], Plan]] = {
        "ranges value by value": lambda plan: refine(plan, near),
        "bias correction": correct,
    }
    for what, change in changes.items():
        other = change(plan)
        again = chooser.score(what, other)
        if again.error < score.error:
            chooser.take(again)
            plan, score = other, again
    allowed = score.error * (1 + FREE)
    for name in (first, last):
        wider = replace(plan, layers=plan.layers | {name})
        found = chooser.score(f"{name} in int8", wider)
        if found.error <= allowed:
            chooser.take(found)
            plan = wider
    return plan
