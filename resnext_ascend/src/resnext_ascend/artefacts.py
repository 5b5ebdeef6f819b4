"""Artefacts of Ascend: AIR on an Ascend, MindSpore Lite's MINDIR by its converter; `om` has the others."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resnext_ascend import diagnose
from resnext_core.errors import BackendUnavailable, DataError, UsageError, reason
from resnext_core.files.scratch import Scratch
from resnext_core.interfaces import ExportRequest
from resnext_core.model.sidecar import keep_artefact
from resnext_core.model.weights import Weights
from resnext_core.plugins import PluginSet

#: Formats, their endings, and the program that makes them.
ENDINGS = {"air": ".air", "om": ".om", "lite": ".mindir"}
#: What a MindSpore Lite configuration takes under [ascend_context]; it ignores anything else.
LITE_PRECISION = ("enforce_fp16", "enforce_fp32", "enforce_origin", "preferred_fp32", "preferred_optimal")
_SOC = re.compile(r"Ascend\d{3}[A-Za-z0-9_-]*")


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How an ONNX file becomes an artefact of Ascend: `soc_version` of the device, `precision` of its tool."""

    soc_version: str
    precision: str | None = None

    def __post_init__(self) -> None:
        check_soc(self.soc_version)


def check_soc(soc_version: str) -> None:
    """Raise UsageError unless `soc_version` has the form of a chip's name."""
    if not _SOC.fullmatch(soc_version):
        raise UsageError(
            f"--soc-version must be like Ascend310P3 or Ascend910B2, Ascend and the name in npu-smi info, not "
            f"'{soc_version}'"
        )


def input_shape(size: int, request: ExportRequest) -> str:
    """Return the name and shape of the input as converter_lite takes it; UsageError without a fixed batch."""
    if request.batch_size is None:
        raise UsageError("converter_lite needs a fixed batch: --set export.batch_size=N")
    # the names that the ONNX exporter gives, see docs/deployment.md
    name, shape = ("images", (size, size, 3)) if request.input == "uint8" else ("tensor", (3, size, size))
    return f"{name}:" + ",".join(map(str, (request.batch_size, *shape)))


def lite_command(onnx: Path, target: Path, size: int, request: ExportRequest, how: Conversion) -> list[str]:
    """Return converter_lite's command line; its precision stands in a file, see :func:`lite_config`."""
    return [
        "converter_lite", "--fmk=ONNX", f"--modelFile={onnx}", f"--outputFile={target.with_suffix('')}",
        "--saveType=MINDIR", f"--optimize=ascend_oriented:{how.soc_version}",
        f"--inputShape={input_shape(size, request)}", f"--configFile={onnx.with_suffix('.ini')}",
    ]  # fmt: skip


def lite_config(size: int, request: ExportRequest, how: Conversion) -> str:
    """Return the configuration of converter_lite; UsageError on a precision that it would ignore."""
    precision = how.precision or "enforce_fp16"
    if precision not in LITE_PRECISION:
        raise UsageError(
            f"MindSpore Lite's precision is one of {', '.join(LITE_PRECISION)}, not '{precision}'"
        )
    return f"[ascend_context]\nprecision_mode={precision}\ninput_shape={input_shape(size, request)}\n"


def convert(
    weights: Weights, kind: str, target: Path, request: ExportRequest, how: Conversion, plugins: PluginSet
) -> None:
    """Write `weights` as ``lite`` at `target` with its sidecar, through ONNX and the vendor's tool.

    Raises BackendUnavailable where the tool or an exporter of ONNX is missing, DataError when the tool fails.
    """
    tool = tool_path(kind)
    with Scratch("ascend") as folder:
        onnx = folder / "network.onnx"
        export_onnx(weights, onnx, request, plugins)
        made = folder / f"made{ENDINGS[kind]}"
        run_tool([tool, *command(kind, onnx, made, weights.spec.image_size, request, how)[1:]], str(folder))
        found = made if made.is_file() else next(folder.glob(f"made*{ENDINGS[kind]}"), None)
        if found is None:  # ATC adds the operating system to some names
            raise DataError(f"{Path(tool).name} succeeded but wrote no {ENDINGS[kind]} file")
        keep_artefact(found, target, weights, {"input": request.input, "batch_size": request.batch_size})


def command(
    kind: str, onnx: Path, target: Path, size: int, request: ExportRequest, how: Conversion
) -> list[str]:
    """Return the command line of the tool that makes `kind`; writes the file that converter_lite reads."""
    text = lite_config(size, request, how)
    if onnx.parent.is_dir() and onnx.is_file():
        onnx.with_suffix(".ini").write_text(text, encoding="utf-8")
    return lite_command(onnx, target, size, request, how)


def dry_run(kind: str, target: Path, size: int, request: ExportRequest, how: Conversion) -> str:
    """Return the command line that would be run, on an ONNX file beside `target`."""
    return shlex.join(command(kind, target.with_suffix(".onnx"), target, size, request, how))


def tool_path(kind: str) -> str:
    """Return where the tool is; BackendUnavailable with what to source when it is not."""
    name, where = (
        ("atc", "CANN's toolkit: source its set_env.sh, in a separate environment (protobuf 3.20)")
        if kind == "om"
        else ("converter_lite", "MindSpore Lite: put its tools/converter/converter on PATH, its lib on LD_LIBRARY_PATH")
    )  # fmt: skip
    found = shutil.which(name)
    if found is None:
        raise BackendUnavailable(
            f"{name} was not found; it comes with {where}. --dry-run shows its command line"
        )
    return found


def export_onnx(weights: Weights, path: Path, request: ExportRequest, plugins: PluginSet) -> None:
    """Write ONNX by whichever backend can; BackendUnavailable when none is installed."""
    able = [b for b in plugins.backends.values() if "onnx" in b.exporters and b.probe().usable]
    if not able:
        raise BackendUnavailable("this format is made through ONNX: pip install 'resnext-core[onnx]'")
    able[0].exporters["onnx"](weights, path, request)


def run_tool(words: Sequence[str], folder: str) -> None:
    """Run a vendor's tool in `folder`; DataError with its last line when it fails."""
    try:
        done = subprocess.run(
            list(words), cwd=folder, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise BackendUnavailable(f"{words[0]} cannot be started: {reason(error)}") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no output"]
        raise DataError(
            f"{Path(words[0]).name} failed with exit code {done.returncode}: {lines[-1]} (its command: "
            f"{shlex.join(words)})"
        )


def export_air(weights: Weights, target: Path, request: ExportRequest, device_id: int) -> None:
    """Write `weights` as AIR at `target` with its sidecar; on an Ascend only.

    Raises BackendUnavailable elsewhere, with the other way.
    """
    missing = diagnose.hardware()
    if missing is not None:
        raise BackendUnavailable(
            f"AIR can be written on an Ascend only: {missing}. Elsewhere: resnext-run export --format onnx, then ATC "
            "(resnext-run ascend export --format om)"
        )
    if request.batch_size is None:
        raise UsageError("AIR needs a fixed batch: --set export.batch_size=N")
    import numpy as np
    from resnext_mindspore.device import Device, open_device

    ms = open_device(Device(target="Ascend", device_id=device_id))
    from resnext_mindspore.network import Network, make_parameters

    spec, tensor = weights.spec, request.input == "float"
    network = Network(
        spec, weights.preprocess, make_parameters(spec, weights.tensors), training=False, tensor_input=tensor
    )
    side, count = spec.image_size, request.batch_size
    images = (
        np.zeros((count, 3, side, side), np.float32) if tensor else np.zeros((count, side, side, 3), np.uint8)
    )
    with Scratch("ascend") as folder:
        made = folder / "network.air"
        ms.export(network, ms.Tensor(images), file_name=str(made.with_suffix("")), file_format="AIR")
        keep_artefact(made, target, weights, {"input": request.input, "batch_size": request.batch_size})
