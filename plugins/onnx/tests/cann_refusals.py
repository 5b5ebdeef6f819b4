"""Compare the options of ``onnx.provider=cann`` with what an installed onnxruntime-cann takes and refuses; by hand.

Run it in an environment where onnxruntime-cann stands in place of onnxruntime, with a C compiler and binutils. CANN is
not needed: ONNX Runtime reads the options before it opens a device, and empty libraries with CANN's symbols, made here,
let its own library load. Prints a line a value; ends with 1 where OnnxOptions passes on what the library refuses.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import onnxruntime
from onnx import TensorProto, helper
from resnext_onnx.options import CANN_ARENA, CANN_IMPL_MODES, CANN_PRECISION, OnnxOptions

from resnext_core.errors import UsageError

#: Values of each option: what is sensible, what is at a bound, what is wrong.
VALUES: dict[str, tuple[object, ...]] = {
    "device_id": (0, 1, -1, "x"),  # a number above the last device is left to the library, which counts them
    "npu_mem_limit": (1, 2**33, 2**64 - 1, 2**64, -1, "1e9"),
    "arena_extend_strategy": (*CANN_ARENA, "0", "other"),
    "enable_cann_graph": (False, True, 2),
    "enable_cann_subgraph": (False, True, "x"),
    "dump_graphs": (False, True, 2),
    "dump_om_model": (False, True, "x"),
    "precision_mode": (*CANN_PRECISION, "other"),
    "op_select_impl_mode": (*CANN_IMPL_MODES, "other"),
    "optypelist_for_implmode": ("Gelu", "SoftmaxV2,Gelu", "a;b"),
    "precision_mode_v2": ("fp16",),
}
_STANDING_IN = "CANN_STAND_IN"


def main() -> int:
    if _STANDING_IN not in os.environ:
        with tempfile.TemporaryDirectory() as folder:
            _stand_in(Path(folder))
            environ = os.environ | {"LD_LIBRARY_PATH": folder, _STANDING_IN: "1"}
            return subprocess.run([sys.executable, __file__], env=environ, check=False).returncode
    onnxruntime.set_default_logger_severity(4)
    print(f"onnxruntime-cann {onnxruntime.__version__}")
    passed_on = 0
    for name, values in VALUES.items():
        for value in values:
            theirs, ours = _library(name, value), _options(name, value)
            passed_on += theirs is not None and ours is None
            print(f"{name}={value}: library {theirs or 'takes it'}; OnnxOptions {ours or 'takes it'}")
    return int(passed_on > 0)


def _library(name: str, value: object) -> str | None:
    """Return the library's refusal of an option, None where it goes on to open the device."""
    kinds = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("a", "b")]
    graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "g", kinds[:1], kinds[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    text = str(int(value)) if isinstance(value, bool) else str(value)
    provider = ("CANNExecutionProvider", {name: text})
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), providers=[provider], enable_fallback=0)
    except Exception as error:
        found = re.search(r"(Unknown provider option.*|Failed to parse provider option.*)", str(error))
        return f"refuses: {found[1]}" if found else None
    return None


def _options(name: str, value: object) -> str | None:
    given = {f"cann_{name}": value}
    if name == "optypelist_for_implmode":
        given["cann_op_select_impl_mode"] = "high_precision"
    try:
        OnnxOptions(provider="cann", **given)  # type: ignore[arg-type]
    except UsageError as error:
        return f"refuses: {error}"
    except TypeError:
        return "has no such option"
    return None


def _stand_in(folder: Path) -> None:
    """Make libraries with the symbols of CANN that the provider uses: two devices, none of which opens."""
    capi = Path(onnxruntime.__file__).parent / "capi"
    library = capi / "libonnxruntime_providers_cann.so"
    wanted = subprocess.run(
        ["nm", "-D", "--undefined-only", str(library)], text=True, capture_output=True, check=True
    )
    names = {line.split()[-1].split("@")[0] for line in wanted.stdout.splitlines()}
    own = {
        "aclrtGetDeviceCount": "int aclrtGetDeviceCount(unsigned *n) { *n = 2; return 0; }",
        "aclrtSetDevice": "int aclrtSetDevice(int n) { return 107001; }",
        "aclGetRecentErrMsg": 'const char *aclGetRecentErrMsg(void) { return ""; }',
    }
    cann = sorted(name for name in names if re.match(r"acl|_ZN?K?2ge|_ZNK?2ge", name))
    source = folder / "cann.c"
    source.write_text("\n".join(own.get(name, f"long {name}(void) {{ return 0; }}") for name in cann) + "\n")
    for name in ("ascendcl", "acl_op_compiler", "fmk_onnx_parser"):
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-o", str(folder / f"lib{name}.so"), str(source)], check=True
        )


if __name__ == "__main__":
    sys.exit(main())
