"""What the tests of the program share: how it ends, manifests, and the interface of its engines."""

from __future__ import annotations

import ctypes
import json
import subprocess
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


def compile_library(source: Path, target: Path, *include: Path, more: tuple[Path, ...] = ()) -> None:
    """Make a library of `source` and `more`, whose headers are in `include`."""
    flags = [f"-I{folder}" for folder in include]
    subprocess.run(
        [
            "c++",
            "-std=c++17",
            "-O1",
            "-shared",
            "-fPIC",
            *flags,
            str(source),
            *map(str, more),
            "-o",
            str(target),
        ],
        check=True,
    )


class Request(ctypes.Structure):
    """resnext_request of resnext_engine.h."""

    _fields_ = (
        ("path", ctypes.c_char_p), ("device", ctypes.c_char_p), ("device_id", ctypes.c_int32),
        ("threads", ctypes.c_int32), ("runtime", ctypes.c_char_p), ("precision", ctypes.c_char_p),
        ("batch", ctypes.c_int32), ("image_size", ctypes.c_int32), ("classes", ctypes.c_int32),
    )  # fmt: skip


class Engine(ctypes.Structure):
    """resnext_engine of the same file; of its functions the three that are called here."""

    _fields_ = (
        ("abi", ctypes.c_uint32), ("name", ctypes.c_char_p), ("devices", ctypes.c_char_p),
        ("open", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(Request), ctypes.c_char_p, ctypes.c_size_t)),
        ("others", ctypes.c_void_p * 4),
        ("run", ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_size_t,
            ctypes.c_char_p, ctypes.c_size_t,
        )),
        ("close", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
    )  # fmt: skip
