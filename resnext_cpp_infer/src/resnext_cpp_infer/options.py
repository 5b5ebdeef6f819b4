"""The configuration sections ``cpp-infer`` and ``lite``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from resnext_core.bounds import Between, check_bounds
from resnext_core.errors import UsageError, quoted

#: What a MindSpore Lite configuration takes under [ascend_context]; it ignores anything else.
Precision = Literal["enforce_fp16", "enforce_fp32", "enforce_origin", "preferred_fp32", "preferred_optimal"]
#: Of MindSpore Lite's documentation on `dynamic_dims`, as the range of each.
_MOST_BATCH_SIZES = 100


@dataclass(frozen=True, kw_only=True)
class CppInferOptions:
    """How the program serves an artefact; its own ``--help`` says what the values mean.

    `program` is its path, None for the one that ``resnext-run cpp build`` made. `engine` None is told by the artefact's
    ending. `runtime` is the library of the engine's runtime; None takes, for ONNX Runtime, that of the installed
    package. `threads` are those of the engine.
    """

    program: str | None = None
    engine: str | None = None
    device: str = "cpu"
    runtime: str | None = None
    precision: str | None = None
    threads: Annotated[int | None, Between(1, 1024)] = None

    def __post_init__(self) -> None:
        check_bounds("cpp-infer", self)


@dataclass(frozen=True, kw_only=True)
class LiteOptions:
    """How ``export --format lite`` makes a MINDIR of MindSpore Lite: the configuration section ``lite``.

    `optimize` ``none`` leaves optimising to the runtime, so that one file runs on CPUs and on an Ascend; ``general``
    makes one for CPUs, ``ascend`` one for an Ascend alone, which needs CANN. The rest is for ``ascend``: the `chip`
    (``310P``; None for the device of this machine), the `precision` (None for the converter's default, enforce_fp16),
    and the `batch_sizes` that the file takes where ``export.batch_size`` is not set.

    Raises UsageError on values that cannot be.
    """

    optimize: Literal["none", "general", "ascend"] = "none"
    chip: str | None = None
    precision: Precision | None = None
    batch_sizes: Annotated[tuple[int, ...], Between(1, 2048)] = ()

    def __post_init__(self) -> None:
        check_bounds("lite", self)
        if self.optimize != "ascend":
            given = next((name for name in ("chip", "precision", "batch_sizes") if getattr(self, name)), None)
            if given is not None:
                raise UsageError(f"lite.{given} is for lite.optimize=ascend, not {self.optimize}")
        if self.chip is not None and not re.fullmatch(r"\w+", self.chip):
            raise UsageError(f"lite.chip must be like 310P or 910b, not {quoted(self.chip)}")
        if len(set(self.batch_sizes)) != len(self.batch_sizes) or len(self.batch_sizes) > _MOST_BATCH_SIZES:
            raise UsageError(f"lite.batch_sizes must be at most {_MOST_BATCH_SIZES} different sizes")
