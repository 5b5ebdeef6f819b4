"""``resnext-run validate``: an artefact against its source on real images; exit 3 outside tolerance."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from resnext_core.cli.common import (
    add_config_flags,
    add_json_flag,
    add_split_flag,
    print_config,
    settings_of,
)
from resnext_core.cli.output import Output, ProgressBar
from resnext_core.config import Config
from resnext_core.data.index import Index, remarks
from resnext_core.data.opening import eval_loader
from resnext_core.data.sampler import eval_tasks
from resnext_core.data.splits import open_split
from resnext_core.errors import DataError
from resnext_core.jobs.settings import resolve_serving
from resnext_core.plugins import load_plugins
from resnext_core.runs.records import Progress
from resnext_core.serving.load import LoadedModel, serve
from resnext_core.serving.validate import TOLERANCE, ValidationResult, validate

EPILOG = """\
examples:
  resnext-run validate --artefact model.onnx --weights runs/RUN      on the data of the run
  resnext-run validate --artefact model.mindir --weights model.safetensors --data DIR --split test --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--artefact", metavar="FILE", required=True, help="exported file to check")
    parser.add_argument(
        "--weights", metavar="FILE", required=True, help="its source: run folder or weights file"
    )
    add_split_flag(parser)
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        metavar="X",
        help="largest logit difference relative to the largest logit (default %(default)g)",
    )
    parser.add_argument("--source-backend", metavar="ID", help="backend that computes the source's logits")
    add_config_flags(parser)
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    plugins = load_plugins()
    resolved = resolve_serving(settings_of(args), plugins, Path(args.weights), Path(args.artefact))
    if args.print_config:
        return print_config(resolved)
    config, sources, taken = resolved.config, resolved.sources, resolved.note
    output = Output(json_result=args.json)
    if taken is not None:
        output.say(taken)
    batch = config.eval.batch_size
    artefact = serve(
        Path(args.artefact), config, sources, plugins, backend_id=args.backend, batch_size=batch,
        self_check=False,
    )  # fmt: skip
    source = serve(
        Path(args.weights), config, sources, plugins, backend_id=args.source_backend, prefer=args.backend,
        batch_size=batch,
    )  # fmt: skip
    index = open_split(config.data, args.split, source.classes, named=source.has_names)
    for line in remarks([index]):
        output.say(line)
    result = compare_on(artefact, source, index, config, args.tolerance, ProgressBar(output))
    value = describe(artefact, source, result)
    output.result(value, f"{Path(args.artefact).name}: {result.line()}")
    if not result.passed:
        raise DataError(f"{args.artefact} does not agree with {args.weights} within {args.tolerance:g}")
    return 0


def compare_on(
    artefact: LoadedModel,
    source: LoadedModel,
    index: Index,
    config: Config,
    tolerance: float,
    bar: ProgressBar,
) -> ValidationResult:
    """Compare two served models on every image of `index`; DataError when they are not the same network."""
    if artefact.spec != source.spec or artefact.preprocess != source.preprocess:
        raise DataError(
            f"{artefact.source} is {artefact.spec.variant} with other preprocessing or shape than {source.source} "
            f"({source.spec.variant}): it was exported from something else"
        )
    with eval_loader(index, source.preprocess, config) as loader:
        result = validate(
            artefact.predictor,
            source.predictor,
            loader.batches(eval_tasks(len(index), config.eval.batch_size)),
            tolerance=tolerance,
            progress=lambda n: bar(Progress(what="validate", done=n, total=len(index))),
        )
    bar.close()
    return result


def describe(artefact: LoadedModel, source: LoadedModel, result: ValidationResult) -> dict[str, Any]:
    """Return the JSON record of a validation."""
    return {
        "artefact": artefact.source,
        "artefact_backend": artefact.backend.id,
        "source": source.source,
        "source_backend": source.backend.id,
        "digest": source.digest,
        "same_weights": artefact.digest == source.digest,
        **result.to_dict(),
    }
