"""What a quantisation gives: the file, the verdict on it, and all that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resnext_core.jobs.result import Result
from resnext_onnx.quantize.choose import Tried
from resnext_onnx.quantize.gate import Verdict
from resnext_onnx.quantize.speed import Speed


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer: whether it is in 8 bits, its share of all multiplications, and the logits' error it causes alone."""

    name: str
    int8: bool
    macs: float
    error: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizeResult(Result):
    """The file at `path`, and how it came about; it stands for its path wherever one is taken.

    `proven` is the instruction set on which it was compared with its source, None where `target` means another kind of
    number than this machine computes with.
    """

    path: Path
    bytes: int
    source: str
    source_bytes: int
    digest: str
    target: str
    proven: str | None
    machine: str
    ranges: str
    verdict: Verdict
    first_verdict: Verdict
    tried: Sequence[Tried]
    layers: Sequence[Layer]
    speeds: Sequence[Speed]
    calibration: int
    seconds: float
    report: Path | None = None

    @property
    def kept_float(self) -> list[str]:
        """The layers that stayed in float32."""
        return [layer.name for layer in self.layers if not layer.int8]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "path": str(self.path), "bytes": self.bytes, "source": self.source, "source_bytes": self.source_bytes,
            "weights_digest": self.digest, "for": self.target, "proven": self.proven, "machine": self.machine,
            "ranges": self.ranges, "verdict": self.verdict.to_dict(), "first_verdict": self.first_verdict.to_dict(),
            "float": self.kept_float, "tried": [one.to_dict() for one in self.tried],
            "layers": [layer.to_dict() for layer in self.layers], "speed": [one.to_dict() for one in self.speeds],
            "calibration": self.calibration, "seconds": round(self.seconds, 3),
            "report": None if self.report is None else str(self.report),
        }  # fmt: skip

    def __fspath__(self) -> str:
        return str(self.path)
