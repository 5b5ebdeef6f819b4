"""``resnext-run cpp``: build the program, say where it is, run it."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path

from resnext_core.console.flags import add_json_flag
from resnext_core.console.output import Output
from resnext_core.errors import UsageError
from resnext_cpp_infer.lite import LiteHome, install, lite_home
from resnext_cpp_infer.options import CppInferOptions
from resnext_cpp_infer.predictor import engine_flags
from resnext_cpp_infer.program import (
    build,
    build_folder,
    engines_beside,
    find_program,
    onnxruntime_library,
    other_builds,
    require_tools,
)

EPILOG = """\
examples:
  resnext-run cpp build                     compile it for this machine
  resnext-run cpp build --lite download     the same with MindSpore Lite, for MINDIR files
  resnext-run cpp path                      print its path
  resnext-run cpp run -- --model model.onnx --data photos/val --summary summary.json
"""

#: It builds and runs a program of its own: ``--backend`` is refused.
TAKES_BACKEND = False


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    make = actions.add_parser(
        "build", help="configure and compile the program and its engines", allow_abbrev=False
    )
    make.add_argument("--to", metavar="DIR", help=f"build folder (default: {_short(build_folder())})")
    make.add_argument(
        "--lite",
        metavar="download|WHEEL|DIR",
        help="MindSpore Lite, for the engine mslite: download it by pip (169 MB), or take a downloaded wheel or an "
        "unpacked tarball; later builds find it. Without this flag: $LITE_HOME, $MS_LITE_HOME, the one last given here",
    )
    make.add_argument("--define", metavar="NAME=VALUE", action="append", default=[], help="a CMake variable")
    add_json_flag(make)
    add_json_flag(actions.add_parser("path", help="print the program's path", allow_abbrev=False))
    run = actions.add_parser("run", help="run the program with the flags after --", allow_abbrev=False)
    run.add_argument("words", nargs="*", metavar="-- FLAGS", help="see: resnext-run cpp run -- --help")


def handle(args: argparse.Namespace) -> int:
    if args.action == "run":
        return _run(args.words)
    output = Output(json_result=args.json)
    if args.action == "path":
        path = find_program()
        output.result({"program": str(path)}, str(path))
        return 0
    for text in args.define:
        if "=" not in text:
            raise UsageError(f"--define takes NAME=VALUE, not '{text}'")
    folder = Path(args.to) if args.to else build_folder()
    require_tools()
    lite = install(args.lite, tell=output.say) if args.lite is not None else lite_home()
    found = sdks(lite)
    for name, (state, detail) in found.items():
        output.say(f"{name:<8} {state:<8} {detail}")
    program = build(folder, [f"-D{text}" for text in args.define], output.say, lite)
    engines = engines_beside(program)
    for old in other_builds():  # another installation may use them
        output.say(f"{old} was built from other sources; delete it if no other installation uses it")
    value = {
        "program": str(program), "engines": engines,
        "sdks": {name: {"state": state, "detail": detail} for name, (state, detail) in found.items()},
    }  # fmt: skip
    output.result(value, f"{program}: engines {', '.join(engines)}; the decoder turbo is beside it")
    return 0


def sdks(lite: LiteHome | None) -> dict[str, tuple[str, str]]:
    """Return what each engine finds on this machine: a state, and where or why not."""
    library, ascend = onnxruntime_library(), os.environ.get("ASCEND_TOOLKIT_HOME", "")
    return {
        "onnx": ("found", str(library)) if library else ("later", "needs libonnxruntime.so: pip install onnxruntime"),
        "mslite": ("found", str(lite)) if lite else ("skipped", "needs MindSpore Lite: --lite download"),
        "acl": ("found", ascend) if ascend else ("later", "needs CANN at run time: source its set_env.sh"),
        "null": ("found", "needs nothing; for tests"),
    }  # fmt: skip


def _run(words: list[str]) -> int:
    flags = []
    if _value(words, "--runtime") is None:
        options = CppInferOptions(engine=_value(words, "--engine"))
        flags = [f for f in engine_flags(options, Path(_value(words, "--model") or "")) if "--runtime" in f]
    return subprocess.run([find_program(), *flags, *words], check=False).returncode


def _value(words: list[str], flag: str) -> str | None:
    """Return what a flag of the program is set to, the last time; None without it."""
    found = None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == flag or word.startswith(f"{flag}="):
            found = following if word == flag else word.partition("=")[2]
    return found


def _short(path: Path) -> str:
    return str(path).replace(os.path.expanduser("~"), "~", 1)
