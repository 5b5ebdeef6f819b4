"""The parts of the self-test in their order: what each proves, and how long it may take."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from resnext_ascend.selftest.place import Place
from resnext_core.errors import UsageError, suggest


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part: `function` of `module` is called with a Place and `given`; `limit_s` is for its whole process.

    It returns what it measured as JSON types. NotHere or BackendUnavailable mean that the machine lacks something, any
    other error that the part failed. `proves` is what follows where it returns on an Ascend, `on_cpu` in test mode.
    """

    name: str
    proves: str
    on_cpu: str
    module: str
    function: str
    limit_s: float
    given: Mapping[str, Any] = field(default_factory=dict)

    def run(self, place: Place) -> dict[str, Any]:
        """Run in this process."""
        function: Callable[..., dict[str, Any]] = getattr(importlib.import_module(self.module), self.function)
        return function(place, **self.given)


def _part(
    name: str, where: str, minutes: float, proves: str, on_cpu: str | None = None, **given: Any
) -> Part:
    module, _, function = where.partition(".")
    return Part(
        name=name, proves=proves, on_cpu=on_cpu or f"on MindSpore's CPU device: {proves}", given=given,
        module=f"resnext_ascend.selftest.{module}", function=function, limit_s=60 * minutes,
    )  # fmt: skip


_CONVOLUTION = "a 3x3 convolution of 64 groups and its gradients are right in float32 and float16 at level"
#: Compiling for a device takes minutes the first time.
PARTS = (
    _part(
        "packages", "machine.packages", 5, "packages, driver and CANN are installed and fit together",
        "the packages of MindSpore are installed; driver and CANN were not looked for",
    ),
    _part("device", "machine.device", 10, "MindSpore opens the device and computes on it"),
    _part("convolution-O0", "operators.convolution", 15, f"{_CONVOLUTION} O0", level="O0"),
    _part("convolution-O1", "operators.convolution", 15, f"{_CONVOLUTION} O1", level="O1"),
    _part("convolution-O2", "operators.convolution", 15, f"{_CONVOLUTION} O2", level="O2"),
    _part("pool", "operators.pool", 15, "max-pool and its gradient are right in float32 and float16"),
    _part(
        "norm", "operators.norm", 15,
        "batch normalisation, its gradients and running statistics are right; says which variance is kept",
    ),
    _part(
        "two-steps", "steps.two_steps", 30,
        "two optimizer steps in float32 equal those of the backend mindspore on the CPU",
        "two optimizer steps of the backends ascend and mindspore are equal, both on MindSpore's CPU device",
    ),
    _part(
        "mixed-steps", "steps.two_steps", 30,
        "two steps on images mixed by mixup and cutmix equal those of the backend mindspore on the CPU",
        "two steps on mixed images of the backends ascend and mindspore are equal, both on MindSpore's CPU device",
        kind="mixed",
    ),
    _part(
        "lamb-steps", "steps.two_steps", 30,
        "two steps of LAMB on binary cross-entropy with dropped blocks equal those of the backend mindspore on CPU",
        "two steps of LAMB of the backends ascend and mindspore are equal, both on MindSpore's CPU device",
        kind="lamb",
    ),
    _part(
        "overflow", "steps.overflow", 30,
        "a float16 step that overflows changes no weight and is counted; no other is skipped",
    ),
    _part(
        "training", "jobs.training", 60,
        "two epochs with evaluations and an EMA, stopped by SIGTERM and resumed, end the same",
    ),
    _part(
        "two-devices", "ranks.two_devices", 30,
        "two devices train together; an overflow on one is seen by both, their weights stay equal",
    ),
    _part(
        "rank-table", "ranks.by_rank_table", 30, "the same, started from a rank table",
        "the same from a rank table of invented addresses, without HCCL",
    ),
    _part(
        "recipe", "jobs.recipe", 90, "ResNeXt152-64x4d with 128 images fits on a card; its memory and speed",
    ),
    _part(
        "om-aipp", "serving.om_export", 30, "ATC makes an .om that normalises images by AIPP", normalise="aipp",
    ),
    _part(
        "om-graph", "serving.om_export", 30, "ATC makes an .om that normalises images in the network",
        normalise="graph",
    ),
    _part(
        "infer-acl", "serving.infer_acl", 60,
        "resnext-infer on AscendCL gives ONNX Runtime's logits with both, and with a partial last batch",
    ),
    _part(
        "infer-lite", "serving.infer_lite", 60,
        "resnext-infer on MindSpore Lite gives ONNX Runtime's logits, with a partial last batch",
        "resnext-infer on MindSpore Lite's CPU device gives ONNX Runtime's logits, with a partial last batch",
    ),
)  # fmt: skip


def chosen(names: str | None) -> tuple[Part, ...]:
    """Return the parts named in a list with commas, in their order, None for all; UsageError on other names."""
    if names is None:
        return PARTS
    known = [part.name for part in PARTS]
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise UsageError(f"the self-test has no part '{name}'{suggest(name, known)} (--list shows all)")
    return tuple(part for part in PARTS if part.name in wanted)
