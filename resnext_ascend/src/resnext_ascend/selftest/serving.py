"""Parts about artefacts: ``.om`` by ATC, and `resnext-infer` on AscendCL and MindSpore Lite against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from resnext_ascend import npu_smi, om
from resnext_ascend.selftest import samples
from resnext_ascend.selftest.place import NotHere, Place, Refuted, relative, within
from resnext_core.interfaces import ExportRequest
from resnext_core.model.weights import Weights, save_weights
from resnext_core.plugins import load_plugins

#: Images in the folder, and rows of an artefact: the last batch is partial.
_IMAGES, _BATCH = 11, 4
#: Of logits in float16 (docs/contract.md) and of MindSpore Lite's float32 on the CPU.
_FLOAT16, _FLOAT32 = 2e-2, 1e-4


def om_export(place: Place, normalise: Literal["aipp", "graph"]) -> dict[str, Any]:
    """ATC takes the ONNX file, and its own options, for one way to normalise."""
    path = _om(place, samples.small_weights(stem="imagenet"), normalise)
    return {"bytes": path.stat().st_size, "soc_version": _soc(place)}


def infer_acl(place: Place) -> dict[str, Any]:
    """Logits of both kinds of ``.om`` by AscendCL, with a partial last batch, against ONNX Runtime on the CPU."""
    place.need_device("AscendCL computes on an Ascend only")
    weights = samples.small_weights(stem="imagenet")
    _program(place)
    expected = _onnx_logits(place, weights)
    measured: dict[str, Any] = {}
    for normalise in ("aipp", "graph"):
        path = _om(place, weights, normalise)
        found = _logits(place, path, f"om-{normalise}", "acl", _chip(place))
        measured |= _compared(f"om_{normalise}", found, expected)
    within(measured, {name: _FLOAT16 for name in measured if name.endswith("difference")})
    return measured


def infer_lite(place: Place) -> dict[str, Any]:
    """The same by MindSpore Lite: in test mode the real library on its CPU device."""
    if not any("lite" in backend.exporters for backend in load_plugins().backends.values()):
        raise NotHere("no installed backend exports 'lite': install resnext-cpp-infer")
    weights = samples.small_weights(stem="imagenet")
    _program(place)
    expected = _onnx_logits(place, weights)
    path = place.folder / "model.mindir"
    place.command(
        "export", "--weights", _saved(place, weights), "--format", "lite", "--to", path, "--set",
        f"export.batch_size={_BATCH}",
    )  # fmt: skip
    device = "cpu" if place.device == "cpu" else _chip(place)
    measured = _compared("lite", _logits(place, path, "lite", "mslite", device), expected)
    within(measured, {"lite_difference": _FLOAT32 if device == "cpu" else _FLOAT16})
    return measured


def _om(place: Place, weights: Weights, normalise: Literal["aipp", "graph"]) -> Path:
    path = place.folder / f"{normalise}.om"
    conversion = om.OmConversion(soc_version=_soc(place), normalise=normalise)
    om.convert(weights, path, ExportRequest(batch_size=_BATCH), conversion, load_plugins())
    return path


def _soc(place: Place) -> str:
    if place.soc_version is not None:
        return place.soc_version
    place.need_device("npu-smi says for which chip an .om is made; or give --soc-version")
    named = next((c.soc_version for c in npu_smi.read_chips()[1]), None)
    if named is None:
        raise NotHere(
            "npu-smi info does not name the chip: give --soc-version, as npu-smi info -t board shows it"
        )
    return named


def _chip(place: Place) -> str:
    """Return the program's name of the device."""
    soc = _soc(place)
    return "ascend310p" if soc.startswith("Ascend310P") else soc[:9].lower()


def _program(place: Place) -> None:
    place.command("cpp", "path")


def _saved(place: Place, weights: Weights) -> Path:
    path = place.folder / "weights.safetensors"
    save_weights(weights, path)
    return path


def _onnx_logits(place: Place, weights: Weights) -> NDArray[Any]:
    samples.write_images(place.folder / "data", train=0, val=_IMAGES)
    path = place.folder / "model.onnx"
    place.command("export", "--weights", _saved(place, weights), "--format", "onnx", "--to", path)
    return _logits(place, path, "onnx", "onnx", "cpu")


def _logits(place: Place, model: Path, name: str, engine: str, device: str) -> NDArray[Any]:
    """Return float32 (N, classes) of the images in the order of their paths."""
    path = place.folder / f"{name}.npy"
    place.command(
        "cpp", "run", "--", "--model", model, "--data", place.folder / "data/val", "--engine", engine,
        "--device", device, "--batch", _BATCH, "--logits", path,
    )  # fmt: skip
    found: NDArray[Any] = np.load(path)
    if found.shape != (_IMAGES, len(samples.CLASSES)):
        raise Refuted(f"{engine} gave logits of shape {found.shape} for {_IMAGES} images")
    return found


def _compared(name: str, found: NDArray[Any], expected: NDArray[Any]) -> dict[str, Any]:
    agree = int((found.argmax(1) == expected.argmax(1)).sum())
    return {f"{name}_difference": relative(found, expected), f"{name}_same_class": f"{agree} of {len(found)}"}
