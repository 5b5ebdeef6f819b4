"""The artefact: the constants of the forward pass as ``.npz``, and the manifest beside it as JSON."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np

from resnext_core.errors import DataError
from resnext_core.files import atomic_path, file_digest, write_atomic
from resnext_core.interfaces import ExportRequest
from resnext_core.model.weights import Manifest, Weights, parse_manifest
from resnext_example.network import Array, constants


def export_npz(weights: Weights, path: Path, request: ExportRequest) -> None:
    """Write `weights` at `path`, and their manifest at ``<path>.json`` with the digest of `path`.

    The file serves any batch size and both kinds of input, so only ``request.fold_bn`` matters to it. Raises
    DataError when it cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **constants(weights, fold_bn=request.fold_bn))
    artefact = {"format": "npz", "fold_bn": request.fold_bn, "file_digest": file_digest(path)}
    write_atomic(_sidecar(path), json.dumps(weights.manifest() | {"artefact": artefact}, indent=1) + "\n")


def read_npz(path: Path) -> tuple[Manifest, dict[str, Array]]:
    """Return manifest and constants; DataError when a file is missing, damaged, or not the other's."""
    sidecar = _sidecar(path)
    for file in (path, sidecar):
        if not file.is_file():
            raise DataError(f"no file {file}; an artefact is {path.name} and {sidecar.name} side by side")
    try:
        text = sidecar.read_text(encoding="utf-8")
        manifest = parse_manifest(text, where=str(sidecar))
        if json.loads(text)["artefact"]["file_digest"] != file_digest(path):
            raise DataError(f"{path} is not the file that {sidecar.name} describes; export it again")
        with np.load(path, allow_pickle=False) as arrays:
            return manifest, dict(arrays)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}; export it again") from error


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
