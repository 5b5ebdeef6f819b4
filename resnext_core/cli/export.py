"""``resnext-run export``: write artefacts, and report them as done only once they agree with their source."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from resnext_core.cli.common import (
    add_config_flags,
    add_json_flag,
    add_weights_flag,
    print_config,
    settings_of,
)
from resnext_core.cli.output import Output
from resnext_core.config import Config
from resnext_core.errors import BackendUnavailable, DataError, ResnextError, reason
from resnext_core.files import file_digest, make_folder, replace_file
from resnext_core.files.scratch import Scratch
from resnext_core.interfaces import Backend, ExportRequest
from resnext_core.jobs.settings import resolve
from resnext_core.model.weights import Weights
from resnext_core.plugins import PluginSet, load_plugins
from resnext_core.serving.load import (
    WEIGHTS_SUFFIX,
    exporters,
    read_weights,
    serve,
    serve_weights,
    server_of,
)
from resnext_core.serving.validate import TOLERANCE

EPILOG = """\
examples:
  resnext-run export --weights runs/RUN --format onnx --to model.onnx
  resnext-run export --weights model.safetensors --format onnx mindir --to artefacts/ --set export.batch_size=8
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_weights_flag(parser)
    parser.add_argument(
        "--format",
        nargs="+",
        default=[],
        metavar="FORMAT",
        help="formats to write (default: that of the file's ending, for a folder all that can be written here)",
    )
    parser.add_argument("--to", metavar="PATH", required=True, help="file, or a folder for several formats")
    add_config_flags(parser)
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    plugins = load_plugins()
    resolved = resolve(settings_of(args), plugins)
    if args.print_config:
        return print_config(resolved)
    config, sources = resolved.config, resolved.sources
    output = Output(json_result=args.json)
    weights = read_weights(Path(args.weights), config, sources, plugins)
    target = Path(args.to)
    wanted = tuple(args.format) or config.export.formats
    if not wanted and target.suffix and not target.is_dir():
        wanted = (target.suffix[1:],)
    formats = exporters(plugins, wanted, only=args.backend)
    if not formats:
        raise BackendUnavailable(
            "no backend here writes an artefact; 'resnext-run backends' shows what is missing"
        )
    single = len(formats) == 1 and target.suffix == f".{next(iter(formats))}"
    results = []
    for name, backend in formats.items():
        path = target if single else target / f"{weights.spec.variant}.{name}"
        results.append(export(weights, name, backend, path, config, plugins))
        output.say(line(results[-1]))
    output.result({"artefacts": results})
    return 0


def export(
    weights: Weights,
    name: str,
    backend: Backend,
    path: Path,
    config: Config,
    plugins: PluginSet,
    prefer: str | None = None,
) -> dict[str, Any]:
    """Write one artefact beside `path`, compare its logits with the source's, then move it into place.

    `prefer` names the backend to compare on where it can, because this process already computes with it.
    """
    request = ExportRequest(
        batch_size=config.export.batch_size,
        input=config.export.input,
        fold_bn=config.export.fold_bn,
        options=config.backends.get(backend.id),
    )
    try:
        make_folder(path.parent)
        scratch = Scratch("export", path.parent)
    except OSError as error:
        raise DataError(f"cannot write {path}: {reason(error)}") from error
    with scratch as partial:
        made = partial / path.name
        backend.exporters[name](weights, made, request)
        difference = compare(weights, made, config, plugins, prefer)
        if difference is not None and not difference <= TOLERANCE:
            raise DataError(
                f"{path.name} disagrees with its source by {difference:.2e} of the largest logit "
                f"(allowed {TOLERANCE:.0e}); it was not kept"
            )
        for file in partial.iterdir():
            replace_file(file, path.parent / file.name)
    return {
        "format": name,
        "path": str(path),
        "bytes": path.stat().st_size,
        "digest": file_digest(path),
        "backend": backend.id,
        "weights_digest": weights.digest,
        "difference": difference,
    }


def compare(
    weights: Weights, artefact: Path, config: Config, plugins: PluginSet, prefer: str | None = None
) -> float | None:
    """Return max |logit difference| / max |logit| on random images; None where nothing here reads the format."""
    if artefact.suffix == WEIGHTS_SUFFIX:
        return None
    try:
        server_of(plugins, artefact.suffix, prefer=prefer)
    except ResnextError:
        return None
    size = weights.spec.image_size
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    source = serve_weights(weights, config, plugins, prefer=prefer, batch_size=2).predictor
    made = serve(artefact, config, {}, plugins, prefer=prefer, batch_size=2, self_check=False).predictor
    expected, got = source.logits(images), made.logits(images)
    source.close()
    made.close()
    return float(np.abs(got - expected).max() / max(float(np.abs(expected).max()), 1e-12))


def line(result: dict[str, Any]) -> str:
    """Return one line for people about an artefact."""
    checked = "not compared: no backend here reads it"
    if result["difference"] is not None:
        checked = f"logits agree within {result['difference']:.1e}"
    return f"{result['format']}: {result['path']} ({result['bytes'] / 1e6:.1f} MB, {checked}) {result['digest'][:19]}"
