"""What a file is quantised for: the types of numbers, and how wide groups become, by kind of processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resnext_core.errors import UsageError, quoted
from resnext_core.processor import Processor
from resnext_onnx.quantize.qdq import Scheme

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of processor: `scheme` of the numbers, `channels` of a group after regrouping, `instructions` it means."""

    name: str
    scheme: Scheme
    channels: int
    instructions: tuple[str, ...]


#: Unsigned activations on x86: ONNX Runtime has integer kernels for those alone there
#: (``QDQIsInt8Allowed`` in ``onnxruntime/core/optimizer/qdq_transformer``), and for signed ones on ARM. Without VNNI
#: two products are added in 16 bits: 255 * 64 * 2 fits, 255 * 127 * 2 does not, so weights have 7 bits there and are
#: right in every program that reads the file, with or without ``session.x64quantprecision``.
TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(
            name="avx2", scheme=Scheme(weights=64), channels=32, instructions=("avx2", "avx512", "x86-64")
        ),
        Target(
            name="vnni", scheme=Scheme(), channels=32, instructions=("avx-vnni", "avx512-vnni", "amx-int8")
        ),
        Target(
            name="arm", scheme=Scheme(signed=True), channels=32,
            instructions=("arm-i8mm", "arm-dotprod", "arm64"),
        ),
    )
}  # fmt: skip


def target_of(word: str, here: Processor) -> Target:
    """Return the target that `word` names; ``auto`` is the processor `here`. UsageError for another word."""
    if word == AUTO:
        for target in TARGETS.values():
            if here.instructions in target.instructions:
                return target
        raise UsageError(
            f"no target is known for the instruction set {here.instructions}; name one: --for {', '.join(TARGETS)}"
        )
    if word not in TARGETS:
        raise UsageError(f"--for must be one of {', '.join((*TARGETS, AUTO))}, not {quoted(word)}")
    return TARGETS[word]
