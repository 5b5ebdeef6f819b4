"""The page of a quantisation: what it cost, what it gained, and how sensitive each layer is."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from resnext_core.files import write_atomic
from resnext_core.report import text
from resnext_core.terminal import printable
from resnext_onnx.quantize.result import QuantizeResult
from resnext_onnx.quantize.summary import float_line, proof_line, rows


def write_report(path: Path, result: QuantizeResult) -> None:
    """Write one HTML page that loads nothing from anywhere, atomically; DataError when it cannot be written."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    own = importlib.resources.files("resnext_onnx.quantize")
    style = importlib.resources.files("resnext_core.report") / "style.css"
    squares = sum(layer.error**2 for layer in result.layers) or 1.0
    page = environment.from_string((own / "report.html.j2").read_text(encoding="utf-8")).render(
        title=result.path.name,
        style=Markup(style.read_text(encoding="utf-8")),
        rows=rows(result),
        facts={
            "source": result.source,
            "machine": result.machine,
            "ranges": result.ranges,
            "calibration images": str(result.calibration),
            "time": text.duration(result.seconds),
        },
        lead=f"{proof_line(result)}. {float_line(result)}.",
        first=str(result.first_verdict) if result.first_verdict != result.verdict else "",
        tried=[
            (one.what, text.percent(one.error, 3), text.percent(one.agreement), one.taken) for one in result.tried
        ],
        layers=[
            (layer.name, layer.int8, text.percent(layer.macs, 1), text.percent(layer.error, 3),
             layer.error**2 / squares, text.percent(layer.error**2 / squares, 1))
            for layer in result.layers
        ],
    )  # fmt: skip
    write_atomic(path, printable(page.strip()) + "\n")
