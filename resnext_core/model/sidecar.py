"""The manifest beside a file that cannot hold one: ``weights.ckpt`` and ``weights.ckpt.json``.

Weights of other programs have one so that they can be read back, artefacts without room inside so that they can be
served. The sidecar of an artefact also has a section ``artefact`` with what its exporter noted and the digest of the
file, by which a pair that does not belong together is found out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnext_core.errors import DataError
from resnext_core.files import atomic_path, file_digest, write_atomic
from resnext_core.files.plain import parse_strict_json
from resnext_core.model.weights import Manifest, Weights, manifest_text, parse_manifest


def sidecar_path(path: Path) -> Path:
    """Return where the manifest of `path` lies: its whole name and ``.json``."""
    return path.with_name(path.name + ".json")


def write_sidecar(path: Path, weights: Weights, artefact: Mapping[str, Any] | None = None) -> None:
    """Write the manifest of `weights` beside `path`, atomically; DataError when the disk refuses.

    `artefact` is what a reader of an artefact has to know, as JSON types; its format (the suffix of `path`) and its
    digest are added.
    """
    manifest = weights.manifest()
    if artefact is not None:
        noted = {"format": path.suffix[1:], **artefact, "file_digest": file_digest(path)}
        manifest["artefact"] = noted
    write_atomic(sidecar_path(path), json.dumps(manifest, indent=1) + "\n")


def keep_artefact(made: Path, target: Path, weights: Weights, artefact: Mapping[str, Any]) -> None:
    """Copy the file `made` to `target` and write its sidecar; DataError when the disk refuses.

    An old sidecar never describes the new artefact, not even for a moment.
    """
    sidecar_path(target).unlink(missing_ok=True)
    with atomic_path(target) as temporary:
        shutil.copyfile(made, temporary)
    write_sidecar(target, weights, artefact)


def read_sidecar(path: Path) -> Manifest | None:
    """Return the manifest beside `path`, None when there is none; DataError when it is damaged or no manifest."""
    beside = sidecar_path(path)
    if not beside.is_file():
        return None
    return parse_manifest(manifest_text(beside), where=str(beside))


def artefact_section(path: Path) -> Mapping[str, Any]:
    """Return what the exporter of the artefact at `path` noted in its sidecar, unverified; empty without one."""
    beside = sidecar_path(path)
    if not beside.is_file():
        return {}
    try:
        section = parse_strict_json(manifest_text(beside)).get("artefact")
    except (DataError, ValueError):  # whoever opens it will say so
        return {}
    return section if isinstance(section, dict) else {}


def read_artefact(path: Path, needs: tuple[str, ...] = ()) -> tuple[Manifest, dict[str, Any]]:
    """Return the manifest and the section ``artefact`` of the artefact at `path`, its digest verified.

    `needs` are fields that the section must have. ``input`` is ``uint8`` or ``float``, ``batch_size`` a positive
    integer or None. Raises DataError where one of the two files is missing or damaged, or they do not belong together.
    """
    beside = sidecar_path(path)
    for file in (path, beside):
        if not file.is_file():
            raise DataError(f"no file {file}; export the artefact again, and keep {beside.name} beside it")
    text = manifest_text(beside)
    manifest = parse_manifest(text, where=str(beside))
    artefact = parse_strict_json(text).get("artefact")
    if not _complete(artefact, needs):
        raise DataError(f"{beside} has a broken section 'artefact'; export the artefact again")
    if artefact["file_digest"] != file_digest(path):
        raise DataError(f"{path} is damaged or not the file that {beside.name} describes; export it again")
    return manifest, artefact


def from_manifest(weights: Weights, manifest: Manifest, path: Path) -> Weights:
    """Return `weights` of the file `path` with everything that the manifest beside it adds to the tensors.

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


def _complete(artefact: Any, needs: tuple[str, ...]) -> bool:
    if not isinstance(artefact, dict) or any(name not in artefact for name in (*needs, "file_digest")):
        return False
    batch = artefact.get("batch_size")
    return artefact.get("input", "uint8") in ("uint8", "float") and (
        batch is None or (type(batch) is int and batch > 0)
    )
