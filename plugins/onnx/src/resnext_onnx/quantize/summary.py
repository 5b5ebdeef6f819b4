"""The result of a quantisation in a few lines for a terminal."""

from __future__ import annotations

from resnext_core.console.output import table
from resnext_core.report import text
from resnext_onnx.quantize.result import QuantizeResult


def rows(result: QuantizeResult) -> list[list[str]]:
    """Return what changed: a name, its value in float32, in int8, and what lies between."""
    verdict = result.verdict
    low, high = verdict.drop_interval
    found = [
        [
            "top-1", text.percent(verdict.top1_source), text.percent(verdict.top1),
            f"drop {verdict.drop:.2f} points, 95 % interval {low:.2f} to {high:.2f}",
        ],
        [
            "same first guess", "", text.percent(verdict.agreement),
            f"of {verdict.images - verdict.failed} images{verdict.unread}",
        ],
        ["size", text.size(result.source_bytes), text.size(result.bytes), ""],
    ]  # fmt: skip
    for speed in result.speeds:
        found.append(
            [
                f"images/s, batch {speed.batch}", text.sig(1e3 * speed.batch / speed.float32_ms, 3),
                text.sig(1e3 * speed.batch / speed.int8_ms, 3), f"{speed.gain:.2f} x",
            ]
        )  # fmt: skip
    return found


def float_line(result: QuantizeResult) -> str:
    """Return which layers stayed in float32, and how many there are."""
    kept = result.kept_float
    names = ", ".join(kept[:8]) + (f" and {len(kept) - 8} more" if len(kept) > 8 else "")
    return f"float32: {len(kept)} of {len(result.layers)} layers" + (f" ({names})" if kept else "")


def proof_line(result: QuantizeResult) -> str:
    """Return on which instruction set the file is proven."""
    if result.proven is None:
        return f"for {result.target}: not proven, this machine is {result.machine}; validate it there"
    return f"for {result.target}: proven on {result.proven}"


def summary(result: QuantizeResult) -> str:
    """Return the result as text of a few lines."""
    lines = [
        table(
            [[cell.replace("\u202f", " ") for cell in row] for row in rows(result)],
            ["", "float32", "int8", ""],
        ),
        f"ranges: {result.ranges}, of {result.calibration} images; {float_line(result)}",
        f"{proof_line(result)}",
        f"{result.path}" + (f"; report: {result.report}" if result.report is not None else ""),
    ]
    return "\n".join(lines)
