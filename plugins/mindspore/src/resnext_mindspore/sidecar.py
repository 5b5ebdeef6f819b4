"""The JSON beside an artefact that cannot carry its manifest inside (MINDIR, AIR, OM)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from resnext_core.errors import DataError
from resnext_core.files import file_digest, write_atomic
from resnext_core.interfaces import ExportRequest
from resnext_core.model.weights import Manifest, Weights, parse_manifest


def sidecar_path(path: Path) -> Path:
    """Return where the sidecar of the artefact at `path` lies: its whole name and ``.json``."""
    return path.with_name(path.name + ".json")


def write_sidecar(path: Path, weights: Weights, request: ExportRequest) -> None:
    """Write the manifest of `weights` beside the artefact at `path`, with what it takes and its digest."""
    artefact = {
        "format": path.suffix[1:],
        "input": request.input,
        "batch_size": request.batch_size,
        "file_digest": file_digest(path),
    }
    write_atomic(sidecar_path(path), json.dumps(weights.manifest() | {"artefact": artefact}, indent=1) + "\n")


def read_sidecar(path: Path) -> tuple[Manifest, dict[str, Any]]:
    """Return the manifest and the section ``artefact`` of the artefact at `path`, its digest verified.

    Raises DataError where one of the two files is missing or damaged, or they do not belong together.
    """
    sidecar = sidecar_path(path)
    for file in (path, sidecar):
        if not file.is_file():
            raise DataError(f"no file {file}; export the artefact again, and keep {sidecar.name} beside it")
    try:
        text = sidecar.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {sidecar}: {error}") from error
    manifest = parse_manifest(text, where=str(sidecar))
    artefact = json.loads(text).get("artefact")
    batch = artefact.get("batch_size") if isinstance(artefact, dict) else None
    valid = isinstance(artefact, dict) and artefact.get("input") in ("uint8", "float")
    if not valid or not (batch is None or (type(batch) is int and batch > 0)):
        raise DataError(f"{sidecar} has a broken section 'artefact'; export the artefact again")
    if artefact.get("file_digest") != file_digest(path):
        raise DataError(f"{path} is damaged or not the file that {sidecar.name} describes; export it again")
    return manifest, artefact
