"""The artefact: the constants of the forward pass as ``.npz``, and the manifest beside it as JSON."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from resnext_core.errors import DataError, one_line
from resnext_core.files import atomic_path
from resnext_core.interfaces import ExportRequest
from resnext_core.model.sidecar import read_artefact, write_sidecar
from resnext_core.model.weights import Manifest, Weights
from resnext_example.network import Array, constants


def export_npz(weights: Weights, path: Path, request: ExportRequest) -> None:
    """Write `weights` at `path`, and their manifest at ``<path>.json`` with the digest of `path`.

    The file serves any batch size and both kinds of input, so only ``request.fold_bn`` matters to it. Raises
    DataError when it cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **constants(weights, fold_bn=request.fold_bn))
    write_sidecar(path, weights, {"fold_bn": request.fold_bn})


def read_npz(path: Path) -> tuple[Manifest, dict[str, Array]]:
    """Return manifest and constants; DataError when a file is missing, damaged, or not the other's."""
    manifest, _ = read_artefact(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return manifest, dict(arrays)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}; export it again") from error
