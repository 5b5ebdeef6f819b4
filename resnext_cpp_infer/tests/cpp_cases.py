"""What the tests of the program share: how it ends, and manifests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import model_spec
from resnext_core.model.weights import FORMAT_VERSION


@dataclass(frozen=True, kw_only=True)
class Done:
    """How the program ended."""

    code: int
    out: str
    err: str


def manifest(spec: PreprocessSpec, classes: tuple[str, ...] = ("ant", "bee", "cat")) -> dict[str, Any]:
    """Return a manifest as artefacts have it."""
    model = model_spec("resnext_tiny", num_classes=len(classes), image_size=spec.size).to_dict()
    return {
        "format": FORMAT_VERSION, "model": model, "preprocess": spec.to_dict(), "classes": list(classes),
        "digest": f"sha256:{0:064}", "origin": {}, "metrics": {},
    }  # fmt: skip


def null_model(
    folder: Path, spec: PreprocessSpec, classes: tuple[str, ...] = ("ant", "bee", "cat")
) -> list[object]:
    """Write a manifest for the engine `null` and return the flags that use it."""
    (folder / "model.bin.json").write_text(json.dumps(manifest(spec, classes)))
    return ["--model", folder / "model.bin", "--engine", "null", "--quiet"]
