"""The configuration section ``cpp-infer``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from resnext_core.bounds import Between, check_bounds


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
