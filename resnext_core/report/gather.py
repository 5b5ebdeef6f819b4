"""From a run folder to what its report shows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from resnext_core.data.decode import decode, opened_bytes
from resnext_core.data.sources.stored import content_of
from resnext_core.errors import DataError, ResnextError
from resnext_core.files.plain import read_text
from resnext_core.model.weights import parse_manifest, read_manifest_text
from resnext_core.report.build import write_report
from resnext_core.report.model import ReportData, Sample
from resnext_core.report.pictures import THUMBNAIL
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.pointers import best_weights
from resnext_core.runs.records import End, Record


def make_report(run: RunFolder) -> Path:
    """Write ``report.html`` of `run` and return its path; DataError when it cannot be made."""
    write_report(run.report, gather(run))
    return run.report


def gather(run: RunFolder) -> ReportData:
    """Return what the records and results in the folder of `run` say; DataError when its config cannot be read."""
    try:
        text = read_text(run.config)
    except DataError as error:
        raise DataError(f"cannot read {run.config}: {error}") from error
    variant, data = run.setting("model", "variant"), run.setting("data", "dir")
    about = run.read_result("run") or {}
    evaluation = run.read_result("evaluation") or {}
    records = run.read_records()
    samples = [_sample(s, run.path) for s in evaluation.pop("samples", [])]
    shown = [s for s in samples if s is not None]
    summary: dict[str, Any] = {"backend": about.get("backend"), "wall_s": _wall(records)}
    artefacts = run.read_result("artefacts") or []
    summary |= _sizes(run)
    return ReportData(
        title=f"{variant or 'unknown model'} on {Path(str(data or 'data')).name}",
        subtitle=f"run {run.path.name}",
        summary={k: v for k, v in summary.items() if v is not None},
        records=records,
        evaluation=evaluation,
        samples=shown,
        samples_missing=len(samples) - len(shown),
        config_yaml=text,
        environment=about.get("environment", {}),
        artefacts=[{**a, "path": os.path.basename(a["path"]), "size": a["bytes"]} for a in artefacts],
        validations=[_validation(v) for v in run.read_result("validations") or []],
    )


def _sizes(run: RunFolder) -> dict[str, Any]:
    """Return parameters and MACs from the weights' manifest."""
    try:
        path = best_weights(run.checkpoints)
        spec = parse_manifest(read_manifest_text(path) or "", where=str(path)).spec
    except ResnextError:
        return {}
    return {"parameters": spec.parameters, "macs": spec.macs}


def _wall(records: Sequence[Record]) -> float | None:
    ends = [r.seconds for r in records if isinstance(r, End)]
    return sum(ends) if ends else None


def _sample(sample: Mapping[str, Any], folder: Path) -> Sample | None:
    """Return a sample with its thumbnail; None where its file cannot be read any more."""
    try:
        path = sample["path"]
        with opened_bytes(content_of(path), path) as source:
            image = decode(source, path, (THUMBNAIL, THUMBNAIL))[0]
    except ResnextError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return Sample(
        thumbnail=image, true=sample["true"], predicted=sample["predicted"],
        probability=sample["probability"], path=os.path.basename(path), link=_link(path, folder),
    )  # fmt: skip


def _link(path: str, folder: Path) -> str:
    """Return the URL of a file, relative to `folder`; empty where `path` is not that of a file on this machine."""
    if not os.path.isfile(path):
        return ""
    relative = os.path.relpath(os.path.realpath(path), os.path.realpath(folder))
    return quote(os.fsencode(relative if relative.startswith(".") else f"./{relative}"))


def _validation(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": os.path.basename(record["artefact"]), "backend": record["artefact_backend"], **record}
