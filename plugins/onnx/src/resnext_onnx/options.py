"""Options of the `onnx` backend: the config section ``onnx``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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

    threads: int | None = None
    provider: Provider = "cpu"

    def __post_init__(self) -> None:
        if self.threads is not None and (type(self.threads) is not int or not 1 <= self.threads <= 1024):
            raise UsageError(f"onnx.threads must be an integer from 1 to 1024, or null, not {self.threads!r}")
        if self.provider not in ("cpu", "cuda", "cann"):
            raise UsageError(f"onnx.provider must be one of cpu, cuda, cann, not {self.provider!r}")
