"""``resnext-run report``: gather what a run folder holds and write its report.html."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from resnext_core.cli.common import add_json_flag
from resnext_core.cli.output import Output
from resnext_core.errors import DataError, ResnextError
from resnext_core.files.plain import parse_yaml, read_text
from resnext_core.runs.folder import RunFolder

#: Longest side of the sample images in the report, pixels.
THUMBNAIL = 128


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", metavar="RUN", help="run folder (default: the newest in runs/)")
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    run = RunFolder.open(Path(args.run)) if args.run else RunFolder.newest(Path("runs"))
    path = make_report(run)
    Output(json_result=args.json).result({"report": str(path)}, str(path))
    return 0


def make_report(run: RunFolder) -> Path:
    """Write ``report.html`` from the records and results in the run folder; returns its path."""
    from resnext_core.report import ReportData, write_report

    try:
        text = read_text(run.config)
    except DataError as error:
        raise DataError(f"cannot read {run.config}: {error}") from error
    config = parse_yaml(text, f"{run.config}:")
    about = run.read_result("run") or {}
    evaluation = run.read_result("evaluation") or {}
    records = run.read_records()
    samples = evaluation.pop("samples", [])
    summary: dict[str, Any] = {"backend": about.get("backend"), "wall_s": _wall(records)}
    artefacts = run.read_result("artefacts") or []
    summary |= _sizes(run)
    data = ReportData(
        title=f"{config['model']['variant']} on {Path(config['data']['dir'] or 'data').name}",
        subtitle=f"run {run.path.name}",
        summary={k: v for k, v in summary.items() if v is not None},
        records=records,
        evaluation=evaluation,
        samples=[s for s in map(_sample, samples) if s is not None],
        config_yaml=text,
        environment=about.get("environment", {}),
        artefacts=[{**a, "path": os.path.basename(a["path"]), "size": a["bytes"]} for a in artefacts],
        validations=[_validation(v) for v in run.read_result("validations") or []],
    )
    write_report(run.report, data)
    return run.report


def _sizes(run: RunFolder) -> dict[str, Any]:
    """Return parameters and MACs from the weights' manifest."""
    from resnext_core.model.weights import parse_manifest, read_manifest_text
    from resnext_core.runs.pointers import best_weights

    try:
        path = best_weights(run.checkpoints)
        spec = parse_manifest(read_manifest_text(path) or "", where=str(path)).spec
    except ResnextError:
        return {}
    return {"parameters": spec.parameters, "macs": spec.macs}


def _wall(records: list[dict[str, Any]]) -> float | None:
    ends = [r["seconds"] for r in records if r["kind"] == "end"]
    return sum(ends) if ends else None


def _sample(sample: dict[str, Any]) -> Any:
    from resnext_core.data.decode import read_image
    from resnext_core.report import Sample

    try:
        image = read_image(Path(sample["path"]), minimum=THUMBNAIL)
    except ResnextError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return Sample(
        thumbnail=image, true=sample["true"], predicted=sample["predicted"],
        probability=sample["probability"], path=os.path.basename(sample["path"]),
    )  # fmt: skip


def _validation(record: dict[str, Any]) -> dict[str, Any]:
    return {"name": os.path.basename(record["artefact"]), "backend": record["artefact_backend"], **record}
