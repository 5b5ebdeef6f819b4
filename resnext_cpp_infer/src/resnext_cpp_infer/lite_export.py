"""The exporter of the format ``lite``: ONNX to MindSpore Lite's MINDIR, by Lite's own converter."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from resnext_core.errors import BackendUnavailable, DataError, ResnextError, UsageError, reason
from resnext_core.files.scratch import Scratch
from resnext_core.interfaces import READY, ExportRequest, Readiness
from resnext_core.model.sidecar import artefact_section, keep_artefact
from resnext_core.model.weights import Weights
from resnext_cpp_infer.lite import LiteHome, lite_home
from resnext_cpp_infer.lite_converter import (
    ENDING,
    FORMAT,
    NO_LITE,
    OWN_CONVERTER,
    VENDOR_CONVERTER,
    find_converter,
    onnx_exporter,
)
from resnext_cpp_infer.options import CppInferOptions, LiteOptions

#: What the converter's --optimize takes for each of our words.
_OPTIMIZE = {"none": "none", "general": "general", "ascend": "ascend_oriented"}
#: An error in MindSpore's log: ``[ERROR] LITE(pid,thread,program):time [file:line] function] message``.
_ERROR = re.compile(r"^\[ERROR\] [^\]]*\[[^\]]*\] \w+\] (?P<message>.*)")
#: Names of ONNX inputs as the ONNX exporter gives them, see docs/deployment.md, and the layout that they have.
_INPUTS = {"uint8": "images", "float": "tensor"}


def file_readiness(path: Path, options: CppInferOptions | None) -> Readiness:
    """Return whether the program serves the file at `path` with its `options`, as far as its sidecar tells.

    Lite 2.0 does not read what MindSpore writes today, and a file that is made for an Ascend runs on nothing else.
    """
    if path.suffix != ENDING:
        return READY
    section = artefact_section(path)
    made_for = section.get("optimize")
    on_cpu = (options or CppInferOptions()).device == "cpu"
    if section.get("format") == FORMAT:
        if made_for == "ascend" and on_cpu:
            return Readiness(
                state="missing", reason="it is optimised for an Ascend: set cpp-infer.device to one"
            )
        return READY
    version = ""
    with suppress(ResnextError):
        version = home.version if (home := lite_home()) is not None else ""
    if section and version.startswith("2.0."):
        said = f"MindSpore wrote it, which MindSpore Lite {version} does not read: resnext-run export --format lite"
        return Readiness(state="missing", reason=said)
    return READY


def export_lite(weights: Weights, path: Path, request: ExportRequest) -> None:
    """Write `weights` as a MINDIR of MindSpore Lite at `path`, with the sidecar ``<name>.mindir.json``.

    Raises UsageError on another ending or settings that do not fit each other, BackendUnavailable where Lite, its
    converter, an ONNX exporter or CANN is missing, DataError with the converter's reason when it fails.
    """
    options = _checked(path, request)
    home = lite_home()
    if home is None:
        raise BackendUnavailable(NO_LITE)
    converter = find_converter(home)
    to_onnx = onnx_exporter()
    with Scratch("lite") as folder:
        onnx = folder / "network.onnx"
        to_onnx(weights, onnx, ExportRequest(
            batch_size=request.batch_size, input=request.input, fold_bn=request.fold_bn
        ))  # fmt: skip
        config = config_text(weights.spec.image_size, request)
        if config:
            onnx.with_suffix(".ini").write_text(config, encoding="utf-8")
        made = folder / f"made{ENDING}"
        words = command(str(converter), onnx, made, weights.spec.image_size, request)
        _convert(words, home, folder, options)
        if not made.is_file():
            raise DataError(f"{converter.name} succeeded but wrote no {ENDING} file")
        noted = {
            "format": FORMAT, "input": request.input, "batch_size": request.batch_size, "optimize": options.optimize,
            "fold_bn": request.fold_bn, "converter": f"MindSpore Lite {home.version}",
        }  # fmt: skip
        if options.optimize == "ascend":
            noted |= {"chip": options.chip, "precision": options.precision}
        if options.batch_sizes:
            noted["batch_sizes"] = list(options.batch_sizes)
        keep_artefact(made, path, weights, noted)


def describe(weights: Weights, path: Path, request: ExportRequest) -> str:
    """Return the converter's command line, on an ONNX file beside `path`, and the text of its configuration file."""
    _checked(path, request)
    onnx, size = path.with_suffix(".onnx"), weights.spec.image_size
    name = VENDOR_CONVERTER.name
    with suppress(ResnextError):
        name = find_converter(home).name if (home := lite_home()) is not None else name
    lines = [shlex.join(command(name, onnx, path, size, request))]
    if config := config_text(size, request):
        lines += [f"{onnx.with_suffix('.ini')}:", config.rstrip("\n")]
    return "\n".join(lines)


def command(converter: str, onnx: Path, target: Path, size: int, request: ExportRequest) -> list[str]:
    """Return the command line that makes the MINDIR `target` of an ONNX file of a network of `size` pixels.

    The flags are those of ``converter_lite``; ours takes the same. A fixed batch is stated, as MindSpore Lite's
    documentation asks ("For static BatchSize, use converter_lite command to specify inputShape parameter").
    """
    options = _options(request)
    optimize = _OPTIMIZE[options.optimize] + (f":{options.chip}" if options.chip else "")
    words = [
        converter, "--fmk=ONNX", f"--modelFile={onnx}", f"--outputFile={target.with_suffix('')}", "--saveType=MINDIR",
        f"--optimize={optimize}",
    ]  # fmt: skip
    if request.batch_size is not None:
        words.append(f"--inputShape={_INPUTS[request.input]}:{_shape(request.batch_size, size, request)}")
    if config_text(size, request):
        words.append(f"--configFile={onnx.with_suffix('.ini')}")
    return words


def config_text(size: int, request: ExportRequest) -> str:
    """Return the converter's configuration file, ``''`` where it needs none: for an Ascend alone it does.

    Section and keys are those of https://www.mindspore.cn/lite/docs/en/r2.7.0/mindir/converter_tool_ascend.html. Batch
    sizes stand in `dynamic_dims` for the -1 in `input_shape`; the latter is for these alone.
    """
    options = _options(request)
    if options.optimize != "ascend":
        return ""
    # Of images (N, S, S, 3) that the graph itself transposes, no layout is true.
    lines = ["[ascend_context]", f"input_format={'ND' if request.input == 'uint8' else 'NCHW'}"]
    if options.batch_sizes:
        lines.append(f"input_shape={_INPUTS[request.input]}:[{_shape(-1, size, request)}]")
        lines.append(f"dynamic_dims={','.join(f'[{n}]' for n in options.batch_sizes)}")
    if options.precision is not None:
        lines.append(f"precision_mode={options.precision}")
    return "\n".join(lines) + "\n"


def _checked(path: Path, request: ExportRequest) -> LiteOptions:
    """Return the options; UsageError where they, the request and the target do not fit each other."""
    if path.suffix != ENDING:
        raise UsageError(f"a file of format {FORMAT} ends in {ENDING}: rename {path.name}")
    if request.input not in _INPUTS:
        raise UsageError(f"export input must be uint8 or float, not {request.input!r}")
    options = _options(request)
    if options.optimize != "ascend":
        return options
    if request.batch_size is None and not options.batch_sizes:
        raise UsageError(
            "an Ascend takes the batch sizes that the file is made for: --set export.batch_size=8, or several: --set "
            "'lite.batch_sizes=[1,8]'"
        )
    if request.batch_size is not None and options.batch_sizes:
        raise UsageError("export.batch_size fixes the batch: leave it or lite.batch_sizes out")
    return options


def _options(request: ExportRequest) -> LiteOptions:
    return LiteOptions() if request.options is None else request.options


def _shape(batch: int, size: int, request: ExportRequest) -> str:
    rest = (size, size, 3) if request.input == "uint8" else (3, size, size)
    return ",".join(map(str, (batch, *rest)))


def _convert(words: Sequence[str], home: LiteHome, folder: Path, options: LiteOptions) -> None:
    """Run the converter in `folder`, its noise kept; raises with what told most when it fails."""
    folders = [
        *map(str, home.library_folders),
        *filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")),
    ]
    # 2: warnings and errors; with a higher level, which users set, the reason of a failure would be lost.
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(folders), "GLOG_v": "2", "GLOG_logtostderr": "1"}
    try:
        done = subprocess.run(
            list(words), cwd=folder, env=environment, capture_output=True, text=True, errors="replace", check=False
        )  # fmt: skip
    except OSError as error:
        raise BackendUnavailable(f"{words[0]} cannot be started: {reason(error)}") from error
    if done.returncode == 0:
        return
    name, told = Path(words[0]).name, _telling(done.stderr, done.stdout)
    if done.returncode < 0:
        told = f"killed by {signal.Signals(-done.returncode).name} after: {told}"
    if options.optimize == "ascend" and "cannot open shared object file" in told:
        missing = told.rpartition("error: ")[2]
        raise BackendUnavailable(
            f"optimising for an Ascend needs CANN: source its set_env.sh ({name}: {missing})"
        )
    error = UsageError if done.returncode == 2 and name == OWN_CONVERTER else DataError
    raise error(f"{name} failed: {told}")


def _telling(*outputs: str) -> str:
    """Return the first error in the log, which later ones only pass on, or else the last line of an output."""
    lines = [line for text in outputs for line in text.splitlines() if line.strip()]
    errors = [match["message"] for line in lines if (match := _ERROR.match(line))]
    if errors:
        return errors[0].strip()
    for text in outputs:
        said = [line.strip() for line in text.splitlines() if line.strip()]
        if said:
            return said[-1].removeprefix(f"{OWN_CONVERTER}: ")
    return "it said nothing"
