"""Whether and with what a MINDIR of MindSpore Lite can be made here. Probes import it, so it imports nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path

from resnext_core.errors import BackendUnavailable, ResnextError
from resnext_core.interfaces import READY, Exporter, Readiness
from resnext_core.plugins import load_plugins
from resnext_cpp_infer.lite import LiteHome, lite_home
from resnext_cpp_infer.program import find_program

#: Name of the format, and what its files end in: the runtimes of MindSpore Lite know it as MINDIR.
FORMAT, ENDING = "lite", ".mindir"
#: Our program that calls the converter in the wheel's libraries, and the program of the tarballs.
OWN_CONVERTER = "resnext-lite-converter"
VENDOR_CONVERTER = Path("tools", "converter", "converter", "converter_lite")
NO_LITE = "MindSpore Lite is not on this machine: resnext-run cpp build --lite download"


def lite_readiness() -> Readiness:
    """Return whether the format can be written here: MindSpore Lite, its converter, and an exporter of ONNX."""
    try:
        home = lite_home()
        if home is None:
            return Readiness(state="missing", reason=NO_LITE)
        find_converter(home)
        onnx_exporter()
    except ResnextError as error:
        return Readiness(state="missing", reason=str(error))
    return READY


def find_converter(home: LiteHome) -> Path:
    """Return the converter: the program in `home`, or ours; BackendUnavailable where neither is there."""
    vendor = home.root / VENDOR_CONVERTER
    if vendor.is_file() and os.access(vendor, os.X_OK):
        return vendor
    own = find_program().parent / OWN_CONVERTER
    if own.is_file():
        return own
    raise BackendUnavailable(
        f"no converter of MindSpore Lite beside {own.parent / 'resnext-infer'}, nor {vendor}: resnext-run cpp build"
    )


def onnx_exporter() -> Exporter:
    """Return what writes ONNX; BackendUnavailable with what is missing where nothing here does."""
    backend = load_plugins().choose(None, "export onnx", lambda b: "onnx" in b.exporters)
    return backend.exporters["onnx"]
