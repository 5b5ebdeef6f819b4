"""Options of the `onnx` backend: the config section ``onnx``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from resnext_core.bounds import Between, check_bounds
from resnext_core.errors import UsageError

Provider = Literal["cpu", "cuda", "cann"]


@dataclass(frozen=True, kw_only=True)
class OnnxOptions:
    """How ONNX Runtime serves an artefact.

    `threads` is the number of CPU threads of one operator; None takes every core. `provider` is the
    execution provider: ``cpu``, ``cuda`` (needs the onnxruntime-gpu wheel) or ``cann`` (Ascend, needs the
    onnxruntime-cann wheel). Raises UsageError on values that mean nothing; a provider that is not there is
    found when a predictor is made.
    """

    threads: Annotated[int | None, Between(1, 1024)] = None
    provider: Provider = "cpu"

    def __post_init__(self) -> None:
        check_bounds("onnx", self)
        if self.provider not in ("cpu", "cuda", "cann"):
            raise UsageError(f"onnx.provider must be one of cpu, cuda, cann, not {self.provider!r}")
