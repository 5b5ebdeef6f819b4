"""The manifest beside a file that cannot hold it: ``model.ckpt`` and ``model.ckpt.json``."""

from __future__ import annotations

import json
from pathlib import Path

from resnext_core.errors import DataError
from resnext_core.files import write_atomic
from resnext_core.model.weights import Manifest, Weights, read_manifest


def sidecar_path(path: Path) -> Path:
    """Return where the manifest of `path` lies."""
    return path.with_name(path.name + ".json")


def read_sidecar(path: Path) -> Manifest | None:
    """Return the manifest beside `path`, None when there is none; DataError when it is damaged or no manifest."""
    beside = sidecar_path(path)
    if not beside.is_file():
        return None
    return read_manifest(beside)


def write_sidecar(path: Path, weights: Weights) -> None:
    """Write the manifest of `weights` beside `path`, atomically."""
    write_atomic(sidecar_path(path), json.dumps(weights.manifest(), indent=1) + "\n")


def from_manifest(weights: Weights, manifest: Manifest, path: Path) -> Weights:
    """Return `weights` of the file `path` with all that the manifest beside it says.

    DataError when the manifest belongs to other tensors.
    """
    if weights.digest != manifest.digest:
        raise DataError(
            f"{path} does not hold the tensors of {sidecar_path(path).name} beside it; move that file away if it "
            "belongs to other weights"
        )
    return weights.replace(
        preprocess=manifest.preprocess, classes=manifest.classes, origin=manifest.origin, metrics=manifest.metrics,
        golden=manifest.golden, named=manifest.named,
    )  # fmt: skip
