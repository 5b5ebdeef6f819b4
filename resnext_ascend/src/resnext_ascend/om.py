"""``.om`` for AscendCL: the ONNX file that ATC gets, its command line, and the AIPP file that normalises on the device.

Sources, "CANN" being Huawei's ATC documentation (commercial 8.0 and 9.0) and "GE" the source of its graph engine:

- ``--input_format`` of an ONNX model is NCHW, ND or NCDHW (CANN, page of that option; GE, ``kONNXFormatSupport``), and
  NCHW or NHWC beside ``--insert_op_conf``.
- An ONNX model has a uint8 input "by ``--insert_op_conf``" (CANN, general restrictions). ATC reads the type of an input
  from the ONNX file, so that a graph that begins with a cast from uint8 is converted too, but no page promises it.
- ``--dynamic_batch_size`` needs -1 as the first dimension in ``--input_shape`` and 2 to 100 sizes of 1 to 2048.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from resnext_ascend import artefacts
from resnext_core.errors import DataError, UsageError
from resnext_core.files.scratch import Scratch
from resnext_core.interfaces import ExportRequest
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.sidecar import keep_artefact
from resnext_core.model.weights import Weights
from resnext_core.plugins import PluginSet

#: What ATC's --precision_mode takes; anything else it refuses after a long start.
PRECISION = (
    "force_fp16", "force_fp32", "allow_fp32_to_fp16", "must_keep_origin_dtype", "allow_mix_precision",
    "allow_mix_precision_fp16",
)  # fmt: skip
#: Sizes of a dynamic batch: how many, and the largest one.
_SIZES, _LARGEST = range(2, 101), 2048
#: Sides of an image that AIPP takes, in pixels (CANN, configuration file template).
_SIDES = range(2, 4097)
#: AIPP keeps 1/std in float16: outside these it overflows, or has fewer than 11 bits.
_SCALES = (float(np.finfo(np.float16).tiny), float(np.finfo(np.float16).max))


@dataclass(frozen=True, kw_only=True)
class OmConversion:
    """How ATC makes an ``.om``.

    `normalise` says what normalises uint8 images: ``aipp``, the device's image unit, which gives the network float16
    pixels, or ``graph``, operators of the network. It has no effect on an artefact of float input. `dynamic` are the
    batch sizes of a dynamic batch; empty means the one of the ExportRequest. Raises UsageError.
    """

    soc_version: str
    precision: str = "allow_fp32_to_fp16"
    normalise: Literal["aipp", "graph"] = "aipp"
    dynamic: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        artefacts.check_soc(self.soc_version)
        if self.precision not in PRECISION:
            raise UsageError(f"ATC's precision is one of {', '.join(PRECISION)}, not '{self.precision}'")
        if self.dynamic and (
            len(self.dynamic) not in _SIZES or sorted(set(self.dynamic)) != list(self.dynamic)
            or not 1 <= self.dynamic[0] <= self.dynamic[-1] <= _LARGEST
        ):  # fmt: skip
            raise UsageError(
                f"a dynamic batch has {_SIZES[0]} to {_SIZES[-1]} sizes from 1 to {_LARGEST}, ascending, like 1,8,32"
            )

    def aipp(self, request: ExportRequest) -> bool:
        """Return whether AIPP normalises the images of an artefact of `request`."""
        return request.input == "uint8" and self.normalise == "aipp"


def onnx_request(request: ExportRequest, how: OmConversion) -> ExportRequest:
    """Return the request for the ONNX file that ATC reads; UsageError where its batch is not said, or twice."""
    if how.dynamic:
        if request.batch_size is not None:
            raise UsageError("give export.batch_size or --dynamic-batch, not both")
    elif request.batch_size is None:
        raise UsageError("ATC needs a fixed batch or --dynamic-batch: --set export.batch_size=N")
    return replace(request, input="float") if how.aipp(request) else request


def command(
    onnx: Path, target: Path, preprocess: PreprocessSpec, request: ExportRequest, how: OmConversion
) -> list[str]:
    """Return ATC's command line for the ONNX file of a network; its AIPP file lies beside `onnx` as ``.cfg``."""
    source, size = onnx_request(request, how), preprocess.size
    # the names that the ONNX exporter gives, see docs/deployment.md
    name, shape = ("images", (size, size, 3)) if source.input == "uint8" else ("tensor", (3, size, size))
    batch = -1 if how.dynamic else source.batch_size
    layout = "ND" if source.input == "uint8" else "NCHW"
    words = [
        "atc", "--framework=5", f"--model={onnx}", f"--output={target.with_suffix('')}",
        f"--soc_version={how.soc_version}", f"--input_shape={name}:{','.join(map(str, (batch, *shape)))}",
        f"--input_format={layout}", f"--precision_mode={how.precision}", "--log=error",
    ]  # fmt: skip
    if how.dynamic:
        words.append(f"--dynamic_batch_size={','.join(map(str, how.dynamic))}")
    if how.aipp(request):
        aipp_config(preprocess)
        words.append(f"--insert_op_conf={onnx.with_suffix('.cfg')}")
    return words


def aipp_config(preprocess: PreprocessSpec) -> str:
    """Return the static AIPP file of a network: RGB images uint8 (N, S, S, 3) in, normalised float16 out.

    AIPP computes ``(pixel - mean_chn - min_chn) * var_reci_chn`` (CANN, "Normalization Configuration"), channel 0 being
    R for RGB888_U8 without swap. ``mean_chn`` is an integer and ``min_chn`` float16, so that a mean is split into both:
    a whole mean as float16 would be off by up to 1/16. Nothing is cropped: images come cropped, as the manifest says.

    Raises UsageError on a mean, std or size that AIPP cannot represent.
    """
    mean, std, side = preprocess.mean, preprocess.std, preprocess.size
    other = "; --normalise graph has no such limit"
    if side not in _SIDES:
        raise UsageError(f"AIPP takes images of {_SIDES[0]} to {_SIDES[-1]} pixels, not {side}{other}")
    if not all(0 <= m < 256 for m in mean):
        raise UsageError(f"AIPP subtracts a mean from 0 to 255, not {mean}{other}")
    if not all(_SCALES[0] <= 1 / s <= _SCALES[1] for s in std):
        raise UsageError(f"AIPP multiplies by 1/std in float16, which {std} exceeds{other}")
    lines = [
        "aipp_mode: static", "related_input_rank: 0", "input_format: RGB888_U8", "csc_switch: false",
        "rbuv_swap_switch: false", f"src_image_size_w: {side}", f"src_image_size_h: {side}", "crop: false",
    ]  # fmt: skip
    lines += [f"mean_chn_{i}: {math.floor(m)}" for i, m in enumerate(mean)]
    lines += [f"min_chn_{i}: {m - math.floor(m):.9g}" for i, m in enumerate(mean)]
    lines += [f"var_reci_chn_{i}: {1 / s:.9g}" for i, s in enumerate(std)]
    return "aipp_op {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


def dry_run(target: Path, preprocess: PreprocessSpec, request: ExportRequest, how: OmConversion) -> str:
    """Return ATC's command line on an ONNX file beside `target`, and the AIPP file that it reads, if any."""
    words = command(target.with_suffix(".onnx"), target, preprocess, request, how)
    shown = shlex.join(words)
    if how.aipp(request):
        shown += f"\n\n{target.with_suffix('.cfg')}:\n{aipp_config(preprocess)}".rstrip()
    return shown


def convert(
    weights: Weights, target: Path, request: ExportRequest, how: OmConversion, plugins: PluginSet
) -> None:
    """Write `weights` as ``.om`` at `target` with its sidecar, through ONNX and ATC.

    Raises BackendUnavailable where ATC or an exporter of ONNX is missing, DataError when ATC fails.
    """
    source = onnx_request(request, how)
    tool = artefacts.atc_path()
    with Scratch("ascend") as folder:
        onnx, made = folder / "network.onnx", folder / "made.om"
        words = command(onnx, made, weights.preprocess, request, how)
        if how.aipp(request):
            onnx.with_suffix(".cfg").write_text(aipp_config(weights.preprocess), encoding="utf-8")
        artefacts.export_onnx(weights, onnx, source, plugins)
        artefacts.run_tool([tool, *words[1:]], str(folder))
        found = made if made.is_file() else next(folder.glob("made*.om"), None)
        if found is None:  # ATC adds the operating system to some names
            raise DataError("atc succeeded but wrote no .om file")
        normalised = {"float": "caller", "uint8": how.normalise}[request.input]
        keep_artefact(
            found, target, weights,
            {"input": request.input, "batch_size": source.batch_size, "normalise": normalised},
        )  # fmt: skip
