"""The exporter of MindSpore Lite's MINDIR: with stand-ins for the converter, and with the real one where it is."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from resnext_cpp_infer.lite import LiteHome
from resnext_cpp_infer.lite_converter import OWN_CONVERTER, VENDOR_CONVERTER
from resnext_cpp_infer.options import CppInferOptions, LiteOptions

from resnext_core.cli.main import main
from resnext_core.errors import BackendUnavailable, DataError, UsageError
from resnext_core.interfaces import READY, ExportRequest
from resnext_core.model.sidecar import read_artefact, sidecar_path
from resnext_core.model.weights import Weights, save_weights
from resnext_core.plugins import load_plugins
from resnext_core.serving.golden import GOLDEN_LOGITS, golden_images, golden_weights, synthetic_images
from resnext_core.serving.load import server_of
from resnext_core.testing.base import required
from resnext_cpp_infer import lite_converter, lite_export

pytest.importorskip("onnx")

SIZE = golden_weights().spec.image_size
#: Notes how it was called, and writes a MINDIR beside --outputFile, read-only as Lite's converter does.
CONVERTER = """#!/bin/sh
printf '%s\\n' "$@" > "{calls}"
printf '%s\\n' "$GLOG_v" "$LD_LIBRARY_PATH" >> "{calls}"
for word in "$@"; do
  case "$word" in
    --modelFile=*) cp "${{word#*=}}" "{calls}.onnx";;
    --configFile=*) cp "${{word#*=}}" "{calls}.ini";;
    --outputFile=*) printf mindir > "${{word#*=}}.mindir"; chmod 400 "${{word#*=}}.mindir";;
  esac
done
echo 'CONVERT RESULT SUCCESS:0'
"""
#: What Lite 2.0 said of a truncated ONNX file, shortened.
TRUNCATED = """#!/bin/sh
cat >&2 <<END
[WARNING] LITE(1,7f,c):2026-11-27-19:40:01.401.523 [mindspore/protobuf_utils.cc:94] ReadProto] Parse failed.
[ERROR] LITE(1,7f,c):2026-11-27-19:40:01.401.564 [mindspore/parser.cc:3797] InitModel] Read onnx model file failed
[ERROR] LITE(1,7f,c):2026-11-27-19:40:01.401.651 [mindspore/converter.cc:1108] RunConverter] Convert model failed
END
printf half > made.mindir
exit 1
"""
#: What it said when it was to optimise for an Ascend without CANN, shortened.
NO_CANN = """#!/bin/sh
cat >&2 <<END
[ERROR] LITE(1,7f,c):2026-11-27-19:41:18.046.395 [mindspore/plugin.cc:86] CreateAclPassInner] DLSoOpen failed, ret: \
dlopen /l/libascend_pass_plugin.so failed, error: libgraph.so: cannot open shared object file: No such file
[ERROR] LITE(1,7f,c):2026-11-27-19:41:18.046.485 [mindspore/converter.cc:314] Convert] Convert model failed
END
exit 1
"""

Install = Callable[[str], LiteHome]


def find(monkeypatch: pytest.MonkeyPatch, home: Callable[[], LiteHome | None]) -> None:
    """Let the exporter find this MindSpore Lite."""
    for module in (lite_export, lite_converter):
        monkeypatch.setattr(module, "lite_home", home)


@pytest.fixture
def tarball(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A LITE_HOME whose converter_lite is the script that it is called with."""

    def install(script: str) -> LiteHome:
        root = tmp_path / "lite-home"
        converter = root / VENDOR_CONVERTER
        converter.parent.mkdir(parents=True, exist_ok=True)
        converter.write_text(script)
        converter.chmod(0o755)
        home = LiteHome(
            root=root, include=root / "runtime/include", lib=root / "runtime/lib", version="2.0.0"
        )
        find(monkeypatch, lambda: home)
        return home

    return install


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "golden.safetensors"
    save_weights(golden_weights(), path)
    return path


def request_of(batch: int | None = None, kind: str = "uint8", **options: Any) -> ExportRequest:
    return ExportRequest(batch_size=batch, input=kind, options=LiteOptions(**options))


@pytest.mark.parametrize(
    ("request_", "words", "config"),
    [
        (request_of(), ["--optimize=none"], ""),
        (request_of(8), ["--optimize=none", f"--inputShape=images:8,{SIZE},{SIZE},3"], ""),
        (
            request_of(2, "float", optimize="general"),
            ["--optimize=general", f"--inputShape=tensor:2,3,{SIZE},{SIZE}"], "",
        ),
        (
            request_of(8, optimize="ascend", chip="310P", precision="enforce_fp32"),
            ["--optimize=ascend_oriented:310P", f"--inputShape=images:8,{SIZE},{SIZE},3", "--configFile=a.ini"],
            "[ascend_context]\ninput_format=ND\nprecision_mode=enforce_fp32\n",
        ),
        (
            request_of(None, "float", optimize="ascend", batch_sizes=(1, 8)),
            ["--optimize=ascend_oriented", "--configFile=a.ini"],
            f"[ascend_context]\ninput_format=NCHW\ninput_shape=tensor:[-1,3,{SIZE},{SIZE}]\ndynamic_dims=[1],[8]\n",
        ),
    ],
)  # fmt: skip
def test_command_and_configuration(request_: ExportRequest, words: list[str], config: str) -> None:
    """As https://www.mindspore.cn/lite/docs/en/r2.7.0/mindir/converter_tool_ascend.html and converter_tool.html say."""
    usual = ["tool", "--fmk=ONNX", "--modelFile=a.onnx", "--outputFile=b", "--saveType=MINDIR"]
    assert lite_export.command("tool", Path("a.onnx"), Path("b.mindir"), SIZE, request_) == usual + words
    assert lite_export.config_text(SIZE, request_) == config


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precision": "enforce_fp16"}, "lite.precision is for lite.optimize=ascend, not none"),
        ({"optimize": "general", "chip": "310P"}, "lite.chip is for lite.optimize=ascend, not general"),
        ({"batch_sizes": (1, 8)}, "lite.batch_sizes is for lite.optimize=ascend"),
        ({"optimize": "ascend", "chip": "a:b"}, "lite.chip must be like 310P"),
        ({"optimize": "ascend", "batch_sizes": (1, 1)}, "at most 100 different sizes"),
        ({"optimize": "ascend", "batch_sizes": tuple(range(1, 102))}, "at most 100 different sizes"),
        ({"optimize": "ascend", "batch_sizes": (0,)}, "lite.batch_sizes must be numbers between 1 and 2048, not"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        LiteOptions(**options)


def test_precisions_are_those_of_lite(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It ignores any other, the ModelZoo's allow_fp32_to_fp16 included."""
    words = ["export", "--weights", str(weights), "--format", "lite", "--to", "x.mindir", "--dry-run"]
    assert main([*words, "--set", "lite.optimize=ascend", "--set", "lite.precision=allow_fp32_to_fp16"]) == 2
    assert "lite.precision: must be one of enforce_fp16, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("request_", "name", "says"),
    [
        (request_of(), "x.ms", "a file of format lite ends in .mindir: rename x.ms"),
        (request_of(None, "int8"), "x.mindir", "must be uint8 or float"),
        (request_of(optimize="ascend"), "x.mindir", "an Ascend takes the batch sizes that the file is made for"),
        (request_of(4, optimize="ascend", batch_sizes=(1, 8)), "x.mindir", "leave it or lite.batch_sizes out"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_are_refused_before_anything_is_looked_for(
    request_: ExportRequest, name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find(monkeypatch, lambda: pytest.fail("it looked for MindSpore Lite"))
    with pytest.raises(UsageError, match=says):
        lite_export.export_lite(golden_weights(), tmp_path / name, request_)


def test_converter_gets_the_network_and_its_configuration(tarball: Install, tmp_path: Path) -> None:
    import onnx

    calls = tmp_path / "calls"
    home = tarball(CONVERTER.format(calls=calls))
    target = tmp_path / "model.mindir"
    request = request_of(optimize="ascend", batch_sizes=(1, 8), chip="310P", precision="enforce_fp32")
    lite_export.export_lite(golden_weights(), target, request)
    said = calls.read_text().splitlines()
    assert "--optimize=ascend_oriented:310P" in said
    assert said[-2] == "2", "GLOG_v shows errors"
    assert said[-1].split(":")[0] == str(home.lib)
    assert Path(f"{calls}.ini").read_text() == lite_export.config_text(SIZE, request)
    (given,) = onnx.load(f"{calls}.onnx").graph.input
    shape = [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]
    assert given.name == "images"
    assert shape[1:] == [SIZE, SIZE, 3]
    assert isinstance(shape[0], str), "any batch size"
    assert target.read_text() == "mindir"
    assert os.access(target, os.W_OK), "the converter's own file is read-only"
    manifest, noted = read_artefact(target)
    assert manifest.digest == golden_weights().digest
    expected = {
        "format": "lite", "input": "uint8", "batch_size": None, "optimize": "ascend", "fold_bn": True, "chip": "310P",
        "precision": "enforce_fp32", "batch_sizes": [1, 8], "converter": "MindSpore Lite 2.0.0",
    }  # fmt: skip
    assert {key: noted[key] for key in expected} == expected
    float_request = request_of(2, "float")
    lite_export.export_lite(golden_weights(), target, float_request)
    (given,) = onnx.load(f"{calls}.onnx").graph.input
    dims = ",".join(str(d.dim_value) for d in given.type.tensor_type.shape.dim)
    assert f"--inputShape={given.name}:{dims}" in calls.read_text().splitlines()


@pytest.mark.parametrize(
    ("script", "options", "error", "says"),
    [
        (TRUNCATED, {}, DataError, "converter_lite failed: Read onnx model file failed$"),
        (NO_CANN, {"optimize": "ascend"}, BackendUnavailable,
         r"needs CANN: source its set_env.sh \(converter_lite: libgraph.so: cannot open shared object file: No such"),
        ("#!/bin/sh\necho start\necho 'ILLEGAL: fmk' >&2\nexit 255\n", {}, DataError, "failed: ILLEGAL: fmk"),
        ("#!/bin/sh\necho reading\nexit 1\n", {}, DataError, "converter_lite failed: reading"),
        ("#!/bin/sh\nexit 1\n", {}, DataError, "converter_lite failed: it said nothing"),
        ("#!/bin/sh\nkill -SEGV $$\n", {}, DataError, "killed by SIGSEGV after: it said nothing"),
        ("#!/bin/sh\nexit 0\n", {}, DataError, "succeeded but wrote no .mindir file"),
        ("#!/no/such/shell\n", {}, BackendUnavailable, "cannot be started: No such file or directory"),
    ],
)  # fmt: skip
def test_a_converter_that_fails_leaves_what_was_there(
    script: str, options: dict[str, Any], error: type[Exception], says: str, tarball: Install, tmp_path: Path
) -> None:
    tarball(CONVERTER.format(calls=tmp_path / "calls"))
    target = tmp_path / "out" / "model.mindir"
    target.parent.mkdir()
    lite_export.export_lite(golden_weights(), target, request_of(2))
    before = {path.name: path.read_bytes() for path in target.parent.iterdir()}
    tarball(script)
    with pytest.raises(error, match=says) as caught:
        lite_export.export_lite(golden_weights("symmetric"), target, request_of(2, **options))
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in target.parent.iterdir()} == before


def test_what_is_missing_is_said(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find(monkeypatch, lambda: None)
    words = ["export", "--weights", str(weights), "--format", "lite", "--to", str(tmp_path / "m.mindir")]
    assert main(words) == 4
    error = capsys.readouterr().err
    assert "MindSpore Lite is not on this machine: resnext-run cpp build --lite download" in error
    assert len(error.splitlines()) == 1
    program = tmp_path / "build" / "resnext-infer"
    program.parent.mkdir()
    program.touch()
    program.chmod(0o755)
    monkeypatch.setenv("RESNEXT_INFER", str(program))
    home = LiteHome(root=tmp_path, include=tmp_path, lib=tmp_path, version="2.0.0")
    find(monkeypatch, lambda: home)
    assert main(words) == 4
    assert f"no converter of MindSpore Lite beside {program}" in capsys.readouterr().err
    assert not (tmp_path / "m.mindir").exists()
    (program.parent / OWN_CONVERTER).touch()
    assert lite_export.find_converter(home) == program.parent / OWN_CONVERTER
    assert lite_converter.lite_readiness() == READY


def test_dry_run_shows_command_and_configuration_and_writes_nothing(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where MindSpore Lite is not: to see what to run on the machine that has it."""
    find(monkeypatch, lambda: None)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    words = ["export", "--weights", str(weights), "--format", "lite", "--to", "m.mindir", "--dry-run"]
    settings = [
        "lite.optimize=ascend",
        "lite.chip=310P",
        "lite.batch_sizes=[1,8]",
        "lite.precision=enforce_origin",
    ]
    for setting in settings:
        words += ["--set", setting]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines() == [
        "lite: m.mindir, by lite",
        "converter_lite --fmk=ONNX --modelFile=m.onnx --outputFile=m --saveType=MINDIR "
        "--optimize=ascend_oriented:310P --configFile=m.ini",
        "m.ini:",
        "[ascend_context]",
        "input_format=ND",
        f"input_shape=images:[-1,{SIZE},{SIZE},3]",
        "dynamic_dims=[1],[8]",
        "precision_mode=enforce_origin",
    ]
    assert main([*words, "--json"]) == 0
    (planned,) = json.loads(capsys.readouterr().out)["planned"]
    assert planned["format"] == "lite"
    assert planned["commands"].startswith("converter_lite --fmk=ONNX")
    assert sorted(tmp_path.iterdir()) == before


def test_who_serves_a_mindir_depends_on_who_wrote_it(
    tarball: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tarball(CONVERTER.format(calls=tmp_path / "calls"))
    cpu, ascend = CppInferOptions(), CppInferOptions(device="ascend310p")
    path = tmp_path / "m.mindir"
    lite_export.export_lite(golden_weights(), path, request_of())
    assert lite_export.file_readiness(path, cpu) == READY
    lite_export.export_lite(golden_weights(), path, request_of(2, optimize="ascend"))
    assert lite_export.file_readiness(path, ascend) == READY
    assert (
        "it is optimised for an Ascend: set cpp-infer.device" in lite_export.file_readiness(path, cpu).reason
    )
    mindspore = load_plugins().backends.get("mindspore")
    if mindspore is not None:
        assert mindspore.file_probe is not None
        answer = mindspore.file_probe(path, None)
        assert answer.reason == "MindSpore cannot read the format 'lite' of m.mindir"
        sidecar_path(path).unlink()
        assert mindspore.file_probe(path, None) == READY, "whoever opens it says that it has no manifest"
    noted = {"artefact": {"format": "mindir", "input": "uint8", "batch_size": None}}
    sidecar_path(path).write_text(json.dumps(noted))
    assert lite_export.file_readiness(path, cpu).reason.endswith(
        "MindSpore Lite 2.0.0 does not read: resnext-run export --format lite"
    )
    home = LiteHome(root=tmp_path, include=tmp_path, lib=tmp_path, version="2.7.0")
    find(monkeypatch, lambda: home)
    assert lite_export.file_readiness(path, cpu) == READY, "of newer releases it is not known"
    assert lite_export.file_readiness(tmp_path / "m.onnx", cpu) == READY


#: Lite's threads wait for each other in a loop: on busy cores one is many times faster than two.
ONE_THREAD = ["--set", "cpp-infer.threads=1"]


# -- the real converter ---------------------------------------------------------------------------------------------


@pytest.fixture
def converter(lite: LiteHome, program: Path) -> Path:
    """The real converter; tests with it skip where the program is built without it."""
    found = lite_export.find_converter(lite) if (lite.root / VENDOR_CONVERTER).exists() else None
    found = found or program.parent / OWN_CONVERTER
    if not found.is_file() or not (program.parent / "libresnext_engine_mslite.so").is_file():
        (pytest.fail if required("mslite") else pytest.skip)(f"no {OWN_CONVERTER} is built here")
    return found


@pytest.mark.parametrize(
    ("kind", "batch", "optimize"), [("uint8", None, "none"), ("float", 3, "none"), ("float", None, "general")]
)
def test_real_converter_keeps_the_logits(
    kind: str, batch: int | None, optimize: str, converter: Path, weights: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """`export` compares two images; here one and five, so that a batch of another size is tried too."""
    target = tmp_path / "m.mindir"
    words = ["export", "--weights", str(weights), "--format", "lite", "--to", str(target)]
    words += ["--set", f"export.input={kind}", "--set", f"lite.optimize={optimize}", *ONE_THREAD]
    assert main([*words, *(["--set", f"export.batch_size={batch}"] if batch else [])]) == 0
    assert "logits agree within" in capsys.readouterr().out
    manifest, noted = read_artefact(target)
    assert noted["format"] == "lite"
    assert noted["batch_size"] == batch
    assert manifest.digest == golden_weights().digest
    images = synthetic_images(5, SIZE)
    predictor = served(target)
    logits, expected = predictor.logits(images), served(weights).logits(images)
    np.testing.assert_allclose(predictor.logits(images[:1]), logits[:1], atol=1e-5)
    predictor.close()
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    assert difference <= 1e-5


def test_real_converter_keeps_the_pool_padding(converter: Path, tmp_path: Path) -> None:
    weights = golden_weights("symmetric")
    target = tmp_path / "m.mindir"
    lite_export.export_lite(weights, target, request_of())
    expected = np.array(GOLDEN_LOGITS["symmetric"])
    difference = np.abs(served(target).logits(golden_images()) - expected).max() / np.abs(expected).max()
    assert difference <= 1e-5


def test_real_converter_says_why_it_fails(
    converter: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of an ONNX file that is none, of a chip that it does not know, and of CANN that is not here."""
    words = ["export", "--weights", str(weights), "--format", "lite", "--to", str(tmp_path / "m.mindir")]
    ascend = ["--set", "lite.optimize=ascend", "--set", "export.batch_size=2"]
    if not Path("/usr/local/Ascend").exists():
        assert main([*words, *ascend]) == 4
        assert "optimising for an Ascend needs CANN: source its set_env.sh" in capsys.readouterr().err
    if converter.name == OWN_CONVERTER:
        assert main([*words, *ascend, "--set", "lite.chip=910b"]) == 2
        assert (
            "not 'ascend_oriented:910b'; converter_lite of a newer MindSpore Lite" in capsys.readouterr().err
        )

    def broken(weights: Weights, path: Path, request: ExportRequest) -> None:
        path.write_bytes(b"\x08\x08 no ONNX")

    monkeypatch.setattr(lite_export, "onnx_exporter", lambda: broken)
    assert main(words) == 3
    error = capsys.readouterr().err
    assert f"{converter.name} failed: Read onnx model file failed" in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == [weights.name]


def test_own_converter_refuses_wrong_words(converter: Path) -> None:
    if converter.name != OWN_CONVERTER:
        pytest.skip("MindSpore Lite has its own converter here")
    good = ["--fmk=ONNX", "--modelFile=a.onnx", "--outputFile=b", "--saveType=MINDIR"]
    for words, says in (
        ([*good, "none"], "unknown flag 'none'"),
        ([*good, "--optimize=fast"], "--optimize must be none, general, ascend_oriented"),
        ([*good, "--inputShape=images:1,"], "a size in --inputShape must be an integer above 0"),
        ([good[0], *good[2:]], "--modelFile is missing"),
    ):
        done = subprocess.run([converter, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 2, words
        assert done.stderr.startswith(f"{OWN_CONVERTER}: {says}"), done.stderr


def served(path: Path) -> Any:
    """Return a predictor of the backend that core chooses for the file."""
    from resnext_core.config import Layer, load_config
    from resnext_core.serving.load import serve

    layers = [Layer(source="test", values={"cpp-infer": {"threads": 1}})]
    config, sources = load_config(layers, load_plugins().option_types())
    if path.suffix == ".mindir":
        assert server_of(load_plugins(), ".mindir", file=path, options=config.backends).id == "cpp-infer"
    return serve(path, config, sources, load_plugins()).predictor
