"""``resnext-run quantize``: a trained network in 8 bits, kept only if its accuracy holds; exit 3 where it does not."""

from __future__ import annotations

import argparse
from pathlib import Path

from resnext_core.console.flags import add_config_flags, add_json_flag
from resnext_core.console.output import Output, ProgressBar
from resnext_core.errors import UsageError, quoted
from resnext_core.jobs.settings import Settings, resolve_serving
from resnext_core.plugins import load_plugins
from resnext_onnx.plugin import require
from resnext_onnx.quantize.targets import AUTO, TARGETS

EPILOG = """\
examples:
  resnext-run quantize --weights runs/RUN                          for this processor, on the data of the run
  resnext-run quantize --weights model.safetensors --data DIR --to model.int8.onnx --report int8.html
  resnext-run quantize --weights runs/RUN --for avx2 --max-drop 0.5 --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", metavar="FILE", required=True, help="run folder or weights file")
    parser.add_argument(
        "--to", metavar="FILE", help="file to write (default: beside the weights, .int8.onnx)"
    )
    parser.add_argument(
        "--for", dest="processor", metavar="WORD", default=AUTO,
        help=f"processor that it is for: {', '.join(TARGETS)}, or auto: this one (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--max-drop", type=float, default=0.3, metavar="POINTS",
        help="largest drop in top-1, in points, of a file that is kept (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--min-agreement", type=float, default=0.99, metavar="SHARE",
        help="smallest share of first guesses that agree with the source's (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--calibration", type=int, default=300, metavar="N",
        help="images of train to find ranges with, and as many others to choose by (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--split", choices=("val", "test"),
        help="part of --data on which top-1 is compared (default: val if there, else test)",
    )  # fmt: skip
    parser.add_argument("--report", metavar="FILE.html", help="page with everything that was measured")
    add_config_flags(parser)
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    if args.backend not in (None, "onnx"):
        raise UsageError(f"quantize is a command of the backend onnx, not of {quoted(args.backend)}")
    require()
    from resnext_onnx.quantize.job import QuantizeJob, quantize
    from resnext_onnx.quantize.summary import summary

    settings = Settings.from_flags(vars(args))
    if args.print_config:
        print(resolve_serving(settings, load_plugins(), Path(args.weights)).to_text())
        return 0
    job = QuantizeJob(
        weights=Path(args.weights), target=Path(args.to) if args.to is not None else None, settings=settings,
        split=args.split, processor=args.processor, max_drop=args.max_drop, min_agreement=args.min_agreement,
        calibration=args.calibration, report=Path(args.report) if args.report is not None else None,
    )  # fmt: skip
    output = Output(json_result=args.json)
    with ProgressBar(output) as bar:
        result = quantize(job, bar)
    output.result(result.to_dict(), summary(result))
    return 0
