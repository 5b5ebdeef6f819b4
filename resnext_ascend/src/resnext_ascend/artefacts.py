"""Artefacts of Ascend: AIR on an Ascend, and what every vendor's tool needs; `om` has the others."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from resnext_ascend import diagnose
from resnext_core.errors import BackendUnavailable, DataError, UsageError, reason
from resnext_core.files.scratch import Scratch
from resnext_core.interfaces import ExportRequest
from resnext_core.model.sidecar import keep_artefact
from resnext_core.model.weights import Weights
from resnext_core.plugins import PluginSet

#: Formats and their endings.
ENDINGS = {"air": ".air", "om": ".om"}
_SOC = re.compile(r"Ascend\d{3}[A-Za-z0-9_-]*")


def check_soc(soc_version: str) -> None:
    """Raise UsageError unless `soc_version` has the form of a chip's name."""
    if not _SOC.fullmatch(soc_version):
        raise UsageError(
            f"--soc-version must be like Ascend310P3 or Ascend910B2, Ascend and the name in npu-smi info, not "
            f"'{soc_version}'"
        )


def atc_path() -> str:
    """Return where ATC is; BackendUnavailable with what to source when it is not."""
    found = shutil.which("atc")
    if found is None:
        raise BackendUnavailable(
            "atc was not found; it comes with CANN's toolkit: source its set_env.sh, in a separate environment "
            "(protobuf 3.20). --dry-run shows its command line"
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

    # An AIR is a graph of GE: MindSpore 2.10 has ExportDFGraph and SetExportAir in that backend alone
    # (libmindspore_ge_backend.so, libmindspore_graph_ir.so), and level O2 is what chooses it.
    ms = open_device(Device(target="Ascend", device_id=device_id, jit_level="O2"))
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
